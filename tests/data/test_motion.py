"""Motion blur and snow: ImageMagick's operator, its draws, and what snow makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_corruptions import golden_file
from shiftnorm.data.corruptions import CORRUPTIONS, motion
from shiftnorm.data.corruptions.base import truncate
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.motion import moved_levels, trail
from shiftnorm.data.corruptions.snow import SnowDraw

SEVERITIES = (1, 2, 3, 4, 5)


def pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).movedim(-1, -3).float().contiguous()


def test_impulse_responses_of_imagemagick(golden: Path) -> None:
    arrays = np.load(golden_file(golden, "motion_blur_impulse.npz"))
    for response, settings in zip(arrays["impulse_out"], arrays["impulse_radius_sigma_angle"], strict=True):
        radius, sigma, angle = settings.tolist()
        weights, down, right = trail(radius, sigma, torch.tensor([angle]))
        ours = torch.zeros(101, 101, dtype=torch.float64)
        # A pixel takes from the line; so an impulse is seen at the other side of it.
        at = (50 - down[0], 50 - right[0])
        ours.index_put_(at, torch.tensor(weights, dtype=torch.float64), accumulate=True)
        assert float((ours * 65535 - torch.from_numpy(response.astype(float))).abs().max()) <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("variant", "constants"), [("cifar", "cifar32"), ("imagenet", "imagenet224")])
def test_the_authors_pixels_of_motion_blur(golden: Path, variant: str, constants: str, severity: int) -> None:
    arrays = np.load(golden_file(golden, f"motion_blur_{variant}.npz"))
    expected = pixels(arrays["exact_out"][severity - 1])
    clean = pixels(np.load(golden_file(golden, f"clean_{variant}.npz"))["images"][: len(expected)])
    angles = [float(arrays[f"draw.s{severity}.i{i}.00.uniform"]) for i in range(len(expected))]
    corruption = CORRUPTIONS["motion_blur"]
    constant = corruption.constant(constants, severity)
    difference = (truncate(corruption.apply(clean / 255, constant, torch.tensor(angles))) - expected).abs()
    assert difference.max() <= 1
    assert (difference == 0).double().mean() > 0.9995


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_authors_pixels_of_snow(golden: Path, severity: int) -> None:
    arrays = np.load(golden_file(golden, "snow_cifar.npz"))
    expected = pixels(arrays["exact_out"][severity - 1])
    clean = pixels(np.load(golden_file(golden, "clean_cifar.npz"))["images"][: len(expected)])
    grains = np.stack([arrays[f"draw.s{severity}.i{i}.00.normal"] for i in range(len(expected))])
    angles = [float(arrays[f"draw.s{severity}.i{i}.01.uniform"]) for i in range(len(expected))]
    corruption = CORRUPTIONS["snow"]
    drawn = SnowDraw(torch.from_numpy(grains), torch.tensor(angles))
    constant = corruption.constant("cifar32", severity)
    difference = (truncate(corruption.apply(clean / 255, constant, drawn)) - expected).abs()
    assert difference.max() <= 1
    assert (difference == 0).double().mean() > 0.999


@pytest.mark.parametrize(("height", "width"), [(9, 40), (33, 20)])
def test_slices_and_picking_are_the_same(height: int, width: int) -> None:
    levels = torch.randint(0, 256, (4, 3, height, width)).float()
    line = trail(20, 15.0, torch.tensor([-135.0, -45.0, 0.0, 31.7]))
    slices, picked = motion._by_slices(levels, *line), motion._by_picking(levels, *line)
    torch.testing.assert_close(slices, picked, rtol=0, atol=2e-4)


def test_the_image_moves_along_the_angle() -> None:
    levels = torch.zeros(2, 1, 21, 21)
    levels[:, :, 10, 10] = 255
    moved = moved_levels(levels, 3, 2.0, torch.tensor([0.0, -90.0]))
    assert moved[0, 0].nonzero().unique(dim=0)[:, 0].unique().tolist() == [10]
    assert moved[0, 0, 10].nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10]
    assert moved[1, 0, :, 10].nonzero().flatten().tolist() == [10, 11, 12, 13, 14, 15]


def test_even_images_stay() -> None:
    levels = torch.arange(256.0)[:, None, None, None].expand(-1, 1, 8, 8)
    angle = torch.linspace(-45, 45, 256)
    for radius, sigma in ((6, 1), (15, 12), (22, 16)):
        assert torch.equal(moved_levels(levels, radius, sigma, angle), levels)


def test_angles_are_uniform() -> None:
    stream = Stream(0, "motion_blur", 1, torch.arange(4000))
    shape = torch.Size([4000, 3, 8, 8])
    for name, low, high in (("motion_blur", -45, 45), ("snow", -135, -45)):
        drawn = CORRUPTIONS[name].sample(stream, shape, CORRUPTIONS[name].constant("cifar32", 1))
        angle = drawn if isinstance(drawn, Tensor) else drawn.angle
        assert angle.shape == (4000,)
        expected = torch.linspace(low, high, 4000)
        # The bound of Kolmogorov and Smirnov that one seed in 10,000 exceeds.
        assert float((angle.sort().values - expected).abs().max()) / 90 < 2.23 / 4000**0.5


def test_grains_have_the_mean_and_deviation_of_the_constant() -> None:
    constant = CORRUPTIONS["snow"].constant("imagenet224", 3)
    grains = (
        CORRUPTIONS["snow"].sample(Stream(0, "snow", 3, torch.arange(2)), torch.Size([2, 3, 99, 80]), constant).grains
    )
    assert grains.shape == (2, 99, 80)
    assert float(grains.mean()) == pytest.approx(0.55, abs=0.01)
    assert float(grains.std()) == pytest.approx(0.3, abs=0.01)


def test_without_flakes_snow_only_whitens() -> None:
    x = torch.randint(0, 256, (2, 3, 16, 20)) / 255
    constant = (0.1, 0.2, 1.75, 0.6, 8, 3, 0.9)
    drawn = SnowDraw(torch.full((2, 16, 20), 0.5), torch.tensor([-90.0, -60.0]))
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    expected = (0.9 * x + 0.1 * torch.maximum(x, 1.5 * grey + 0.5)).clamp(0, 1)
    torch.testing.assert_close(CORRUPTIONS["snow"].apply(x, constant, drawn), expected, rtol=0, atol=2e-6)


def test_a_flake_falls_twice_turned_by_half_a_turn() -> None:
    x = torch.zeros(1, 3, 31, 31)
    grains = torch.zeros(1, 31, 31)
    grains[0, 8, 12] = 0.9
    drawn = SnowDraw(grains, torch.tensor([-90.0]))
    snow = CORRUPTIONS["snow"].apply(x, (0.1, 0.2, 1, 0.6, 3, 2, 1.0), drawn)[0, 0] - 2**-12 / 255
    rows, columns = (snow > 1e-5).nonzero().unbind(1)
    assert columns.unique().tolist() == [12, 18]
    assert rows[columns == 12].tolist() == list(range(8, 14))
    assert rows[columns == 18].tolist() == list(range(17, 23))
    torch.testing.assert_close(snow, snow.flip(0, 1))


def test_large_grains_are_enlarged_ones() -> None:
    x = torch.zeros(1, 3, 32, 32)
    grains = torch.zeros(1, 32, 32)
    grains[0, 16, 16] = 1
    flakes = [
        CORRUPTIONS["snow"].apply(x, (0.1, 0.2, factor, 0.3, 3, 2, 1.0), SnowDraw(grains, torch.tensor([-90.0])))
        for factor in (1, 2, 4)
    ]
    areas = [int((flake[0, 0] > 0.01).sum()) for flake in flakes]
    assert areas[0] < areas[1] < areas[2]
