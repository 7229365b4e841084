"""The authors' corruptions: every golden file against ours.

``pytest tests -k golden --golden DIR``: DIR is the folder with ``corruptions/``, or one that holds npz files itself.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from golden_corruptions import (
    CorruptionCase,
    check_pixels,
    check_replayed,
    check_statistics,
    find_corruption_cases,
    load_corruption_case,
    statistics,
)

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "golden"
PHOTOS = "the authors' photographs of frost are not shipped"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "corruption_path" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--golden", default=None)
    directory = DEFAULT if given is None else metafunc.config.invocation_params.dir / given
    cases = [pytest.param(path, id=f"golden-{path.stem}") for path in find_corruption_cases(directory)]
    absent = pytest.mark.skip(reason=f"no golden corruptions in {directory}; give a folder with --golden DIR")
    metafunc.parametrize("corruption_path", cases or [pytest.param(directory, id="golden-none", marks=absent)])


def test_golden_corruption(corruption_path: Path) -> None:
    case = load_corruption_case(corruption_path)
    if case.name == "frost":
        pytest.skip(PHOTOS)
    if case.random:
        assert case.corruption.random
        check_replayed(case)
        check_statistics(case)
    else:
        check_pixels(case)


def stored(golden: Path, name: str) -> Path:
    """A file that the harness itself is tried with, wherever it is; a folder of other cases need not hold it."""
    for folder in (golden, golden / "corruptions", DEFAULT / "corruptions"):
        if (folder / f"{name}.npz").exists():
            return folder / f"{name}.npz"
    pytest.skip(f"no {name}.npz here")


@pytest.fixture
def contrast(golden: Path) -> CorruptionCase:
    return load_corruption_case(stored(golden, "contrast_cifar"))


@pytest.fixture
def speckle(golden: Path) -> CorruptionCase:
    return load_corruption_case(stored(golden, "speckle_noise_cifar"))


def test_golden_pixels_that_differ_fail(contrast: CorruptionCase) -> None:
    out = contrast.arrays["out"].copy()
    out[2, :, :8] ^= 2
    with pytest.raises(AssertionError, match=r"contrast_cifar severity 3: .* more than one level"):
        check_pixels(replace(contrast, arrays={"out": out}))
    with pytest.raises(AssertionError, match="severity 1"):
        check_pixels(replace(contrast, constants="imagenet224"))


def test_golden_draws_that_differ_fail(speckle: CorruptionCase) -> None:
    key = next(key for key in speckle.arrays if key.startswith("draw.s4.i1"))
    wrong = speckle.arrays | {key: speckle.arrays[key] * 1.1}
    with pytest.raises(AssertionError, match=r"speckle_noise_cifar severity 4: .* more than one level"):
        check_replayed(replace(speckle, arrays=wrong))


@pytest.mark.parametrize("key", ["out_mean", "out_std", "psnr", "ssim", "mse", "frac_changed", "power_mean"])
def test_golden_statistics_that_differ_fail(speckle: CorruptionCase, key: str) -> None:
    factor = {"power_mean": 1.6, "mse": 1.06}.get(key, 1.02)
    wrong = speckle.arrays | {key: speckle.arrays[key] * factor}
    what = "power at" if key == "power_mean" else f"mean {key}"
    with pytest.raises(AssertionError, match=f"severity 1: {what}"):
        check_statistics(replace(speckle, arrays=wrong))


def test_golden_statistics_are_defined_as_the_stored_ones(speckle: CorruptionCase) -> None:
    outputs = torch.from_numpy(speckle.arrays["exact_out"]).movedim(-1, 2)
    for severity, out in enumerate(outputs, 1):
        ours = statistics(out, speckle.clean[: len(out)])
        for key in ("out_mean", "out_std", "psnr", "ssim", "mse", "frac_changed"):
            theirs = torch.from_numpy(speckle.arrays[key][severity - 1, : len(out)])
            torch.testing.assert_close(ours[key], theirs, rtol=1e-6, atol=1e-9)
        theirs = torch.from_numpy(speckle.arrays["res_mean_rgb"][severity - 1, : len(out)])
        torch.testing.assert_close(ours["res_mean"], theirs)


def test_golden_corruption_that_nobody_knows_fails(golden: Path, tmp_path: Path) -> None:
    for source, copy in (("contrast_cifar", "mist_cifar"), ("clean_cifar", "clean_cifar")):
        shutil.copy(stored(golden, source), tmp_path / f"{copy}.npz")
    assert find_corruption_cases(tmp_path) == [tmp_path / "mist_cifar.npz"]
    with pytest.raises(AssertionError, match="no corruption 'mist'"):
        check_pixels(load_corruption_case(tmp_path / "mist_cifar.npz"))
    (tmp_path / "mist_cifar.npz").rename(tmp_path / "mist_mars.npz")
    with pytest.raises(AssertionError, match="ends in one of cifar, tiny, imagenet, inception"):
        load_corruption_case(tmp_path / "mist_mars.npz")
