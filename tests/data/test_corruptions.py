"""Corruptions: the published pixels, determinism, dtypes, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shiftnorm.data import CORRUPTIONS, corrupt
from shiftnorm.data.corruptions import Corruption, quantise

DETERMINISTIC = [name for name, corruption in CORRUPTIONS.items() if corruption.draw_one is None]
RANDOM = [name for name in CORRUPTIONS if name not in DETERMINISTIC]
SEVERITIES = (1, 2, 3, 4, 5)


def stored(golden: Path, name: str) -> dict[str, np.ndarray]:
    file = golden / "corruptions" / f"{name}_cifar.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with np.load(file) as arrays:
        return dict(arrays)


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).movedim(-1, -3).contiguous()


def photographs(n: int, size: int = 32) -> Tensor:
    """Smooth coloured pictures with a sharp edge, so that every corruption has something to change."""
    ramp = torch.linspace(0, 3, size)
    phase = torch.arange(n)[:, None, None, None] + torch.arange(3)[None, :, None, None]
    images = 127 + 100 * torch.sin(ramp[:, None] + phase) * torch.cos(2 * ramp + 0.5 * phase)
    images[..., size // 2 :] *= 0.6
    return images.to(torch.uint8)


def assert_same_pixels(ours: Tensor, expected: Tensor, exact: float) -> None:
    difference = (ours.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).double().mean() >= exact


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_golden_deterministic(golden: Path, name: str, severity: int) -> None:
    expected = channels_first(stored(golden, name)["out"][severity - 1])
    clean = channels_first(stored(golden, "clean")["images"][: len(expected)])
    assert_same_pixels(corrupt(clean, name, severity), expected, exact=0.997)
    # Single precision made from the same levels gives the same pixels.
    assert_same_pixels((corrupt(clean.float() / 255, name, severity) * 255).round(), expected, exact=0.997)


def golden_draw(arrays: dict[str, np.ndarray], name: str, severity: int, image: int) -> Tensor:
    """The draws of one image in our form: channels first, standard normal, unit uniform."""
    prefix = f"draw.s{severity}.i{image}."
    draws = [arrays[key] for key in sorted(arrays) if key.startswith(prefix)]
    constant = CORRUPTIONS[name].constants[severity - 1]
    if name == "fog":
        decay = constant[1]
        return torch.from_numpy(np.concatenate([d.ravel() * decay ** (i // 3) / 100 for i, d in enumerate(draws)]))
    if name == "motion_blur":
        return torch.from_numpy(draws[0])
    moved = torch.stack([channels_first(draw.astype(np.float64)) for draw in draws]).squeeze(0)
    return moved / constant if name == "gaussian_noise" else moved


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_golden_random_with_the_stored_draws(golden: Path, name: str, severity: int) -> None:
    arrays = stored(golden, name)
    expected = channels_first(arrays["exact_out"][severity - 1])
    clean = channels_first(stored(golden, "clean")["images"][: len(expected)]).double() / 255
    draw = torch.stack([golden_draw(arrays, name, severity, image) for image in range(len(expected))])
    assert_same_pixels(quantise(CORRUPTIONS[name](clean, severity, draw)), expected, exact=0.995)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_golden_random_in_distribution(golden: Path, name: str, severity: int) -> None:
    arrays = stored(golden, name)
    clean = channels_first(stored(golden, "clean")["images"])
    residual = (corrupt(clean, name, severity, seed=0).double() - clean.double()).flatten(1)
    expected = torch.from_numpy(arrays["mse"][severity - 1])
    # Both are means over the same images with other draws: they differ by a few standard errors of that difference.
    difference = residual.square().mean(1) - expected
    assert difference.mean().abs() < 4.5 * difference.std() / len(clean) ** 0.5
    bias = residual.mean(1) - torch.from_numpy(arrays["res_mean_rgb"][severity - 1]).mean(1)
    assert bias.mean().abs() < 4.5 * bias.std() / len(clean) ** 0.5


def test_golden_motion_blur_against_16_bit_ramps(golden: Path) -> None:
    file = golden / "corruptions" / "motion_blur_impulse.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with np.load(file) as arrays:
        ramp = torch.from_numpy(arrays["ramp_in"].astype(np.float64))
        expected = torch.from_numpy(arrays["ramp_out"].astype(np.float64))
        settings = arrays["ramp_radius_sigma_angle"]
    for (radius, sigma, angle), out in zip(settings, expected, strict=True):
        blur = Corruption(
            ((radius, sigma),) * 5, CORRUPTIONS["motion_blur"].arithmetic, CORRUPTIONS["motion_blur"].draw_one
        )
        got = blur(ramp[None, None], 1, torch.tensor([angle], dtype=torch.float64))
        # Taps below a millionth are left out, which is far below a level of 8 bits (257 of these units).
        torch.testing.assert_close(got[0, 0], out, rtol=0, atol=1.5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_changes_more(name: str) -> None:
    clean = photographs(6)
    before = clean.clone()
    harm = [(corrupt(clean, name, s, seed=0).int() - clean.int()).square().double().mean().item() for s in SEVERITIES]
    assert torch.equal(clean, before)
    assert harm[0] > 0
    if name == "saturate":
        # Severities 1 and 2 take colour away, 3 to 5 add it.
        assert harm[0] < harm[1] and harm[2] < harm[3] < harm[4]
    elif name in ("pixelate", "motion_blur", "fog"):
        assert harm[0] < harm[4]
    else:
        assert harm == sorted(harm)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_independent_of_the_batch_and_repeatable(name: str) -> None:
    clean = photographs(7)
    whole = corrupt(clean, name, 3, seed=5)
    assert torch.equal(whole, corrupt(clean, name, 3, seed=5))
    parts = [corrupt(clean[i : i + 3], name, 3, seed=5, start=i) for i in range(0, 7, 3)]
    assert torch.equal(whole, torch.cat(parts))


def test_independent_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = photographs(5)
    whole = {name: corrupt(clean, name, 4) for name in CORRUPTIONS}
    monkeypatch.setattr("shiftnorm.data.corruptions.ELEMENTS_PER_CHUNK", 2 * clean[0].numel())
    for name, expected in whole.items():
        assert torch.equal(corrupt(clean, name, 4), expected), name


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_severities_and_positions_draw_differently(name: str) -> None:
    clean = photographs(1).expand(2, -1, -1, -1)
    out = corrupt(clean, name, 5, seed=0)
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out, corrupt(clean, name, 5, seed=1))
    draw = [CORRUPTIONS[name].draw(clean[:1].double() / 255, 50, [torch.Generator().manual_seed(s)]) for s in (1, 2)]
    assert draw[0] is not None and draw[1] is not None
    assert not torch.equal(draw[0], draw[1])


def test_generator_gives_a_new_result_each_time_and_leaves_the_global_state_alone() -> None:
    clean, state = photographs(2), torch.get_rng_state()
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        runs.append([corrupt(clean, "gaussian_noise", 2, generator=generator) for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_float_images_keep_their_dtype_and_agree_with_uint8(name: str, dtype: torch.dtype) -> None:
    levels = photographs(3)
    out = corrupt((levels.double() / 255).to(dtype), name, 3)
    assert out.dtype == dtype
    expected = corrupt(levels, name, 3)
    tolerance = {torch.float64: 0, torch.float32: 0, torch.float16: 2, torch.bfloat16: 20}[dtype]
    difference = ((out.double() * 255).round() - expected.double()).abs()
    # Half precision moves the input by part of a level, which saturation and the Poisson counts amplify.
    assert difference.median() <= tolerance / 2
    assert difference.max() <= tolerance or dtype in (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_other_sizes_black_white_grey_and_empty(name: str) -> None:
    for images in (
        photographs(2, 48)[:, :, :33],
        torch.zeros(1, 3, 8, 8).byte(),
        torch.full((2, 3, 9, 20), 255).byte(),
    ):
        out = corrupt(images, name, 5, constants="cifar32")
        assert out.shape == images.shape and out.dtype == torch.uint8
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert corrupt(grey, name, 5).isfinite().all()
    assert corrupt(grey[:0], name, 5).shape == (0, 3, 32, 32)


def test_channels_last_input() -> None:
    clean = photographs(2)
    for name in CORRUPTIONS:
        ours = corrupt(clean.contiguous(memory_format=torch.channels_last), name, 2)
        assert torch.equal(ours, corrupt(clean, name, 2)), name


GOOD = torch.zeros(1, 3, 32, 32)
ERRORS = [
    (
        (GOOD, "gausian_noise", 1),
        {},
        ValueError,
        r"unknown corruption 'gausian_noise'; did you mean one of gaussian_noise",
    ),
    ((GOOD, "zzz", 1), {}, ValueError, "one of gaussian_noise, shot_noise, .*saturate"),
    ((GOOD, "fog", 0), {}, ValueError, "severity must be 1, 2, 3, 4 or 5, got 0"),
    ((GOOD, "fog", 6), {}, ValueError, "got 6"),
    ((GOOD, "fog", 2.5), {}, ValueError, "got 2.5"),
    ((GOOD, "fog", 2.0), {}, ValueError, "got 2.0"),
    ((GOOD, "fog", True), {}, ValueError, "got True"),
    ((GOOD * torch.nan, "fog", 1), {}, ValueError, "without NaN"),
    ((GOOD + 1.1, "fog", 1), {}, ValueError, "values from 1.1 to 1.1; corrupt before normalizing"),
    ((GOOD - 0.1, "fog", 1), {}, ValueError, "from -0.1"),
    ((GOOD.long(), "fog", 1), {}, TypeError, "uint8 or float .* got torch.int64"),
    ((GOOD[:, :1], "fog", 1), {}, ValueError, r"must be RGB.* got \(1, 1, 32, 32\)"),
    ((GOOD[0], "fog", 1), {}, ValueError, r"got \(3, 32, 32\)"),
    ((GOOD[..., :4], "fog", 1), {"constants": "cifar32"}, ValueError, "sides of at least 8"),
    ((GOOD[..., :30], "fog", 1), {}, ValueError, "no set of constants .* 32x30; .*constants='cifar32'"),
    ((GOOD, "fog", 1), {"constants": "imagenet"}, ValueError, "constants must be one of cifar32, got 'imagenet'"),
    ((GOOD, "fog", 1), {"seed": 1, "generator": torch.Generator()}, ValueError, "both a seed and a generator"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), ERRORS, ids=[case[3][:30] for case in ERRORS])
def test_errors(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        corrupt(*arguments, **options)  # type: ignore[arg-type]  (wrong on purpose)


def test_a_random_corruption_without_a_draw_says_so() -> None:
    with pytest.raises(ValueError, match="needs a draw"):
        CORRUPTIONS["fog"](GOOD, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_pixels() -> None:
    clean = photographs(4)
    for name in CORRUPTIONS:
        difference = corrupt(clean.cuda(), name, 3).cpu().int() - corrupt(clean, name, 3).int()
        assert (difference != 0).double().mean() < 0.01 and difference.abs().max() <= 1, name
