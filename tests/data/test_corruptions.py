"""Every corruption alike: determinism, dtypes, layouts, sizes, storage, errors."""

from __future__ import annotations

import multiprocessing
import pickle
import zlib

import pytest
import torch
from torch import Tensor

from shiftnorm.data import CORRUPTIONS, corrupt
from shiftnorm.data.corruptions import (
    COMMON,
    CONSTANT_SETS,
    EXTRA,
    SEVERITIES,
    choose_corruptions,
)
from shiftnorm.data.corruptions.base import truncate
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.digital import through_jpeg

NAMES = [name for name in CORRUPTIONS if name != "frost"]  # which needs photographs
RANDOM = [name for name in NAMES if CORRUPTIONS[name].random]
DETERMINISTIC = {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "saturate"),
    "gaussian_blur",
}


def photographs(n: int, size: int = 32) -> Tensor:
    """Smooth coloured pictures with a sharp edge, so that every corruption has something to change."""
    ramp = torch.linspace(0, 3, size)
    phase = torch.arange(n)[:, None, None, None] + torch.arange(3)[None, :, None, None]
    images = 127 + 100 * torch.sin(ramp[:, None] + phase) * torch.cos(2 * ramp + 0.5 * phase)
    images[..., size // 2 :] *= 0.6
    return images.to(torch.uint8)


def test_the_names() -> None:
    assert len(COMMON) == 15 and len(EXTRA) == 4 and not set(COMMON) & set(EXTRA)
    assert set(COMMON + EXTRA) == set(CONSTANTS)
    assert set(CORRUPTIONS) == {*COMMON, *EXTRA, "glass_blur_swap", "frost_procedural"}
    assert DETERMINISTIC == set(NAMES) - set(RANDOM)
    assert {CORRUPTIONS[name].group for name in NAMES} == {"noise", "blur", "weather", "digital"}
    for name, corruption in CORRUPTIONS.items():
        assert corruption.name == name
        assert tuple(corruption.constants) == CONSTANT_SETS
        assert all(len(constants) == len(SEVERITIES) for constants in corruption.constants.values())


def test_constants_that_are_computed() -> None:
    counts = {"cifar32": [7, 12, 16, 21, 26], "imagenet224": [12, 16, 11, 13, 11]}
    lasts = {"cifar32": [1.06, 1.11, 1.15, 1.20, 1.25], "imagenet224": [1.11, 1.15, 1.20, 1.24, 1.30]}
    for name in counts:
        factors = CONSTANTS["zoom_blur"][name]
        assert [len(each) for each in factors] == counts[name]
        assert [each[-1] for each in factors] == pytest.approx(lasts[name])
        assert all(each[0] == 1 for each in factors)
    assert CONSTANTS["elastic_transform"]["imagenet224"][0] == pytest.approx((488, 170.8, 24.4))
    assert CONSTANTS["elastic_transform"]["cifar32"][1] == pytest.approx((1.6, 6.4, 2.24))
    # Severity 5 of one set differs from the other large sets.
    assert [CONSTANTS["saturate"][name][4] for name in CONSTANT_SETS] == [(2.5, 0.2), (30, 0.2), (20, 0.2), (20, 0.2)]


def test_choose_corruptions() -> None:
    procedural = tuple("frost_procedural" if name == "frost" else name for name in COMMON)
    assert choose_corruptions("common") == procedural
    assert choose_corruptions("common", frost_dir="photos") == COMMON
    assert choose_corruptions("all") == procedural + EXTRA
    assert choose_corruptions("fog") == ("fog",)
    assert choose_corruptions(["frost", "glass_blur_swap"]) == ("frost", "glass_blur_swap")
    for which, message in (
        ("comon", "unknown corruption 'comon'; did you mean common?"),
        (["fog", "snwo"], "did you mean snow?"),
        ("fgo", "did you mean one of fog, frost?"),
        ("qqq", "unknown corruption 'qqq'; known: common, "),
        ([], r"expected names, each once, got \(\)"),
        (["fog", "fog"], "each once, got"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_corruptions(which)


@pytest.mark.parametrize("name", NAMES)
def test_every_severity_changes_something_and_nothing_in_place(name: str) -> None:
    clean = photographs(6)
    before = clean.clone()
    harm = [(corrupt(clean, name, s).int() - clean.int()).square().double().mean().item() for s in SEVERITIES]
    assert torch.equal(clean, before)
    assert min(harm) > 0
    if name == "saturate":
        # Severities 1 and 2 take colour away, 3 to 5 add it.
        assert harm[0] < harm[1] and harm[2] < harm[3] < harm[4]
    elif name == "elastic_transform":
        # The set for 32 pixels is hardest at severity 1, as published.
        assert harm[0] > harm[4]
    else:
        assert harm[0] < harm[4]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constants", ["cifar32", "imagenet224"])
def test_independent_of_batch_order_and_chunks(name: str, constants: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = photographs(7)
    whole = corrupt(clean, name, 3, seed=5, constants=constants)
    parts = [corrupt(clean[i : i + 3], name, 3, seed=5, start=i, constants=constants) for i in range(0, 7, 3)]
    assert torch.equal(whole, torch.cat(parts))
    order = torch.tensor([4, 0, 6, 1])
    assert torch.equal(whole[order], corrupt(clean[order], name, 3, seed=5, indices=order, constants=constants))
    monkeypatch.setattr("shiftnorm.data.corruptions.CPU_ELEMENTS", 2 * clean[0].numel())
    assert torch.equal(whole, corrupt(clean, name, 3, seed=5, constants=constants))


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_severities_and_images_draw_differently(name: str) -> None:
    clean = photographs(1).expand(2, -1, -1, -1)
    out = corrupt(clean, name, 5, seed=0)
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out, corrupt(clean, name, 5, seed=1))
    assert torch.equal(out[1:], corrupt(clean[:1], name, 5, indices=[1]))


def checksums(names: list[str]) -> dict[str, int]:
    torch.set_num_threads(1)
    return {name: zlib.crc32(corrupt(photographs(3), name, 4, seed=9).numpy().tobytes()) for name in names}


def test_other_processes_and_global_state_make_no_difference() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    here = checksums(RANDOM)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(checksums, (RANDOM,)) == here


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_float_images_keep_their_dtype_and_agree_with_uint8(name: str, dtype: torch.dtype) -> None:
    levels = photographs(3)
    images = (levels.double() / 255).to(dtype)
    before = images.clone()
    out = corrupt(images, name, 3)
    assert out.dtype == dtype and torch.equal(images, before)
    # Half precision holds all 256 levels, the shorter one does not.
    same = (images.double() * 255).round().to(torch.uint8)
    assert torch.equal(same, levels) or dtype == torch.bfloat16
    difference = (out.double() * 255 - corrupt(same, name, 3).double()).abs()
    assert difference.max() <= {torch.bfloat16: 0.51, torch.float16: 0.07}.get(dtype, 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constants", CONSTANT_SETS)
def test_other_sizes_black_white_and_empty(name: str, constants: str) -> None:
    for images in (
        photographs(2, 48)[:, :, :33],
        torch.zeros(1, 3, 8, 8).byte(),
        torch.full((2, 3, 9, 40), 255).byte(),
    ):
        for severity in (1, 5):
            out = corrupt(images, name, severity, constants=constants)
            assert out.shape == images.shape and out.dtype == torch.uint8
    empty = torch.zeros(0, 3, 32, 32)
    assert corrupt(empty, name, 5, constants=constants).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_memory_formats_and_views(name: str) -> None:
    clean = photographs(4)
    expected = corrupt(clean, name, 2)
    last = corrupt(clean.contiguous(memory_format=torch.channels_last), name, 2)
    assert torch.equal(last, expected) and last.is_contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(4, 3, 32, 64, dtype=torch.uint8)
    wide[..., ::2] = clean
    assert torch.equal(corrupt(wide[..., ::2], name, 2), expected)


def test_images_that_require_gradients() -> None:
    images = (photographs(1).float() / 255).requires_grad_()
    assert not corrupt(images, "contrast", 1).requires_grad


def test_storage() -> None:
    clean = photographs(2)
    plain = corrupt(clean, "contrast", 1)
    assert torch.equal(plain, corrupt(clean, "contrast", 1, storage="none"))
    assert torch.equal(through_jpeg(plain, 85), corrupt(clean, "contrast", 1, storage="jpeg85"))
    for constants in ("tiny64", "imagenet224", "inception299"):
        stored = corrupt(clean, "contrast", 1, constants=constants)
        made = corrupt(clean, "contrast", 1, constants=constants, storage="none")
        assert torch.equal(stored, through_jpeg(made, 85)) and not torch.equal(stored, made)


def test_truncation_keeps_whole_levels() -> None:
    levels = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(truncate(levels.to(dtype) / 255).long(), levels)
        assert torch.equal(truncate((levels.to(dtype) + 0.999) / 255).long(), levels)


GOOD = torch.zeros(1, 3, 32, 32)
ERRORS = [
    ((GOOD, "gausian_noise", 1), {}, ValueError, "unknown corruption 'gausian_noise'; did you mean one of gaussian_no"),
    ((GOOD, "zzz", 1), {}, ValueError, "known: gaussian_noise, shot_noise, .*saturate"),
    ((GOOD, "fog", 0), {}, ValueError, "severity must be 1, 2, 3, 4 or 5, got 0"),
    ((GOOD, "fog", 6), {}, ValueError, "got 6"),
    ((GOOD, "fog", 2.0), {}, ValueError, "got 2.0"),
    ((GOOD, "fog", True), {}, ValueError, "got True"),
    ((GOOD * torch.nan, "fog", 1), {}, ValueError, "without NaN"),
    ((GOOD + 1.1, "fog", 1), {}, ValueError, "values from 1.1 to 1.1; corrupt before normalizing"),
    ((GOOD - 0.1, "fog", 1), {}, ValueError, "from -0.1"),
    ((GOOD.long(), "fog", 1), {}, TypeError, "uint8 or float .* got torch.int64"),
    ((GOOD[:, :1], "fog", 1), {}, ValueError, r"must be RGB.* got \(1, 1, 32, 32\)"),
    ((GOOD[0], "fog", 1), {}, ValueError, r"got \(3, 32, 32\)"),
    ((GOOD[..., :4], "fog", 1), {}, ValueError, "sides of at least 8"),
    ((GOOD, "fog", 1), {"constants": "imagenet"}, ValueError, "constants must be one of cifar32, .* got 'imagenet'"),
    ((GOOD, "fog", 1), {"storage": "png"}, ValueError, "storage must be one of default, jpeg85, none, got 'png'"),
    ((GOOD, "fog", 1), {"start": 3, "indices": [3]}, ValueError, "both start and indices"),
    ((GOOD, "fog", 1), {"indices": [3, 4]}, ValueError, r"one whole number for each of the 1 images, .* \(2,\)"),
    ((GOOD, "fog", 1), {"indices": [0.5]}, ValueError, "got torch.float32"),
    ((GOOD, "frost", 1), {}, ValueError, "frost_dir.*frost_procedural"),
    ((GOOD, "frost", 1), {"frost_dir": "/nowhere"}, FileNotFoundError, "missing in /nowhere"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), ERRORS, ids=[case[3][:30] for case in ERRORS])
def test_errors(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        corrupt(*arguments, **options)


def test_constants_of_an_unknown_set() -> None:
    with pytest.raises(KeyError, match="fog: no constants named 'coco'; there are cifar32"):
        CORRUPTIONS["fog"].constant("coco", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_gives_the_same_pixels(name: str) -> None:
    clean = photographs(4)
    difference = corrupt(clean.cuda(), name, 3).cpu().int() - corrupt(clean, name, 3).int()
    # Spatter and glass decide by thresholds, where the last bit of a float may turn a pixel.
    assert (difference.abs() > 1).double().mean() < 0.01


def test_corruptions_reach_other_processes() -> None:
    for name, corruption in CORRUPTIONS.items():
        again = pickle.loads(pickle.dumps(corruption))
        assert again.name == name and dict(again.constants) == dict(corruption.constants)
