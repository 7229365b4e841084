"""Gaussian, defocus and zoom blur: the authors' pixels and plain definitions of the same."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_corruptions import golden_file
from shiftnorm.data.corruptions import CORRUPTIONS
from shiftnorm.data.corruptions.base import Corruption, truncate
from shiftnorm.data.corruptions.blur import along_both, blur_levels, defocus_kernel, gaussian_matrix, lean, whole_levels
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.zoom import zoom_matrix, zoom_window

SEVERITIES = (1, 2, 3, 4, 5)
DETERMINISTIC = ("gaussian_blur", "defocus_blur", "zoom_blur")
BLURS = (*DETERMINISTIC, "motion_blur", "glass_blur", "glass_blur_swap", "snow", "elastic_transform")


def noise_images(n: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width)) / 255


def result(corruption: Corruption, x: Tensor, constants: str, severity: int, start: int = 0) -> Tensor:
    constant = corruption.constant(constants, severity)
    stream = Stream(0, corruption.name, severity, torch.arange(start, start + len(x)))
    return corruption.apply(x, constant, corruption.sample(stream, x.shape, constant))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("variant", "constants"), [("cifar", "cifar32"), ("imagenet", "imagenet224")])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_authors_pixels(golden: Path, name: str, variant: str, constants: str, severity: int) -> None:
    file = golden_file(golden, f"{name}_{variant}.npz")
    if not file.exists():
        pytest.skip(f"{file} is not there")
    expected = torch.from_numpy(np.load(file)["out"][severity - 1]).movedim(-1, 1)
    clean = np.load(golden_file(golden, f"clean_{variant}.npz"))["images"][: len(expected)]
    x = torch.from_numpy(clean).movedim(-1, 1).float().contiguous() / 255
    ours = truncate(result(CORRUPTIONS[name], x, constants, severity))
    difference = (ours - expected).abs()
    assert difference.max() <= 1
    # The authors enlarge in single precision, whose last bit is not followed.
    assert (difference == 0).double().mean() >= (0.999 if name == "zoom_blur" else 1)


@pytest.mark.parametrize(
    ("constants", "height", "width"),
    [("cifar32", 32, 32), ("cifar32", 8, 8), ("tiny64", 64, 40), ("imagenet224", 61, 97), ("inception299", 9, 34)],
)
@pytest.mark.parametrize("severity", (1, 3, 5))
@pytest.mark.parametrize("name", BLURS)
def test_bits_do_not_depend_on_the_batch(name: str, severity: int, constants: str, height: int, width: int) -> None:
    x = noise_images(6, height, width)
    before = x.clone()
    whole = result(CORRUPTIONS[name], x, constants, severity)
    assert torch.equal(x, before)
    assert whole.shape == x.shape
    assert whole.dtype == torch.float32
    assert bool(((whole >= 0) & (whole <= 1)).all())
    for start, end in ((0, 1), (1, 3), (3, 6)):
        assert torch.equal(result(CORRUPTIONS[name], x[start:end], constants, severity, start), whole[start:end])


@pytest.mark.parametrize("name", BLURS)
def test_every_set_changes_the_image(name: str) -> None:
    corruption = CORRUPTIONS[name]
    x = noise_images(1, 32, 32)
    assert set(corruption.constants) == {"cifar32", "tiny64", "imagenet224", "inception299"}
    for constants in corruption.constants:
        changed = [result(corruption, x, constants, severity) for severity in SEVERITIES]
        assert all(not torch.equal(truncate(a), truncate(x)) for a in changed)
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(changed))


@pytest.mark.parametrize(("border", "numpy_mode"), [("replicate", "edge"), ("symmetric", "symmetric")])
@pytest.mark.parametrize(("size", "sigma"), [(9, 0.3), (9, 1.0), (5, 4.0), (7, 30.0)])
def test_gaussian_matrix_is_a_padded_convolution(size: int, sigma: float, border: str, numpy_mode: str) -> None:
    signal = torch.rand(size, dtype=torch.float64)
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    padded = torch.from_numpy(np.pad(signal.numpy(), radius, mode=numpy_mode))
    expected = padded.unfold(0, 2 * radius + 1, 1) @ (taps / taps.sum())
    ours = gaussian_matrix(size, sigma, signal, truncate=3, border=border) @ signal
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_gaussian_matrix_of_sigma_zero_is_the_identity() -> None:
    assert torch.equal(gaussian_matrix(6, 0, torch.empty(())), torch.eye(6))


def test_along_both_takes_matrices_that_change_the_size() -> None:
    x, rows, columns = torch.rand(2, 3, 5, 7), torch.rand(4, 5), torch.rand(6, 7)
    torch.testing.assert_close(along_both(x, rows, columns), torch.einsum("ij,ncjk,lk->ncil", rows, x, columns))


@pytest.mark.parametrize(("sigma", "level"), [(1.1, 254), (2.5, 254), (4.5, 254), (1, 255), (6, 255), (0.05, 255)])
def test_white_follows_the_rounding_of_the_reference(sigma: float, level: int) -> None:
    white = torch.full((1, 1, 40, 40), 255.0)
    assert blur_levels(white, sigma).floor().unique().tolist() == [level]


def test_lean_moves_single_and_double_alike() -> None:
    values = torch.tensor([0.0, 1 - 1e-12, 1 + 1e-12, 1.5, 255.0], dtype=torch.float64)
    assert lean(values).floor().tolist() == [0, 1, 1, 1, 255]
    assert lean(values, (True, False) * 128).floor().tolist() == [0, 0, 0, 1, 254]
    assert lean(values.float(), (True, False) * 128).floor().tolist() == [0, 0, 0, 1, 254]
    # A value that double precision knows to lie below a level does so in single precision as well.
    below = torch.tensor([7 - 1e-7], dtype=torch.float64)
    assert lean(below).dtype == torch.float32
    assert truncate(lean(below) / 255).item() == 6


def test_lean_does_not_touch_its_input() -> None:
    for values in (torch.rand(9), torch.rand(9, dtype=torch.float64)):
        before = values.clone()
        lean(values)
        lean(values, (False,) * 256)
        assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("radius", "alias", "side"), [(0.3, 0.4, 3), (1.5, 0.1, 3), (3, 0.1, 7), (6, 0.5, 15), (8, 0.5, 17), (10, 0.5, 21)]
)
def test_defocus_kernel_is_a_smoothed_disk(radius: float, alias: float, side: int) -> None:
    kernel = defocus_kernel(radius, alias)
    reach, rim = (8, 1) if radius <= 8 else (int(radius), 2)
    axis = torch.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    taps = torch.exp(-0.5 * (torch.arange(-rim, rim + 1).double() / alias) ** 2)
    taps = taps / taps.sum()
    padded = F.pad((disk / disk.sum())[None, None], (rim,) * 4, mode="reflect")
    expected = F.conv2d(padded, torch.outer(taps, taps)[None, None])[0, 0]
    edge = reach - side // 2
    assert kernel.shape == (side, side)
    torch.testing.assert_close(kernel.double(), expected[edge : edge + side, edge : edge + side], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(float(kernel.double().sum()), float(expected.sum()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("height", "width"), [(40, 31), (12, 21), (5, 6)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_mirrored_convolution(severity: int, height: int, width: int) -> None:
    x = noise_images(2, height, width)
    kernel = defocus_kernel(*CORRUPTIONS["defocus_blur"].constant("imagenet224", severity)).double()
    reach = len(kernel) // 2
    padded = np.pad(x.double().numpy(), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    expected = F.conv2d(torch.from_numpy(padded).flatten(0, 1)[:, None], kernel[None, None]).view_as(x).clamp(0, 1)
    ours = result(CORRUPTIONS["defocus_blur"], x, "imagenet224", severity)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", (8, 31, 32, 224))
@pytest.mark.parametrize("factor", (1, 1.01, 1.31, 1.75, 4.5))
def test_zoom_window_covers_the_image(size: int, factor: float) -> None:
    first, cut, grown, kept = zoom_window(size, factor)
    assert 0 <= first <= first + cut <= size
    assert cut == math.ceil(size / factor)
    assert grown >= size
    assert 0 <= kept <= kept + size <= grown


@pytest.mark.parametrize("factor", (1, 1.07, 1.75, 3))
def test_zoom_matrix_is_aligned_interpolation(factor: float) -> None:
    signal = torch.rand(37, dtype=torch.float64)
    first, cut, grown, kept = zoom_window(37, factor)
    grown_signal = F.interpolate(signal[None, None, first : first + cut], grown, mode="linear", align_corners=True)
    ours = zoom_matrix(37, factor, signal) @ signal
    torch.testing.assert_close(ours, grown_signal[0, 0, kept : kept + 37], rtol=1e-10, atol=1e-10)


def test_zoom_blur_counts_the_image_twice() -> None:
    factors = CORRUPTIONS["zoom_blur"].constant("imagenet224", 1)
    assert len(factors) == 12
    assert factors[0] == 1
    x = noise_images(2, 25, 18)
    matrices = [(zoom_matrix(25, factor, x), zoom_matrix(18, factor, x)) for factor in factors]
    total = x + sum(along_both(x, rows, columns) for rows, columns in matrices)
    ours = result(CORRUPTIONS["zoom_blur"], x, "imagenet224", 1)
    torch.testing.assert_close(ours, total / 13, rtol=0, atol=5e-6)


def test_whole_levels_are_exact() -> None:
    levels = torch.arange(256.0)
    assert torch.equal(whole_levels(levels / 255), levels)
