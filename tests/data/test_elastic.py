"""Elastic transform: its affine map and its shifts, against plain definitions and the authors' pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_corruptions import golden_file
from shiftnorm.data.corruptions import CORRUPTIONS
from shiftnorm.data.corruptions.base import truncate
from shiftnorm.data.corruptions.blur import along_both, gaussian_matrix
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.elastic import ElasticDraw, affine_places

ELASTIC = CORRUPTIONS["elastic_transform"]


@pytest.mark.parametrize("severity", (1, 2, 3, 4, 5))
def test_the_authors_pixels(golden: Path, severity: int) -> None:
    arrays = np.load(golden_file(golden, "elastic_transform_cifar.npz"))
    expected = torch.from_numpy(arrays["exact_out"][severity - 1]).movedim(-1, 1)
    clean = np.load(golden_file(golden, "clean_cifar.npz"))["images"][: len(expected)]
    draws = [
        torch.from_numpy(np.stack([arrays[f"draw.s{severity}.i{i}.{k:02d}.uniform"] for i in range(len(expected))]))
        for k in range(3)
    ]
    x = torch.from_numpy(clean).movedim(-1, 1).float() / 255
    ours = truncate(ELASTIC.apply(x, ELASTIC.constant("cifar32", severity), ElasticDraw(*draws)))
    difference = (ours - expected).abs()
    assert difference.max() <= 1
    assert (difference == 0).double().mean() > 0.998


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 45)])
def test_three_points_go_where_they_are_moved(height: int, width: int) -> None:
    third = min(height, width) // 3
    x, y = width // 2, height // 2
    points = torch.tensor([[x + third, y + third], [x + third, y - third], [x - third, y - third]]).double()
    # Whole shifts, so that the places they come from are in the grid.
    jitter = torch.tensor([[2.0, -1.0], [0.0, 1.0], [-1.0, 2.0]])
    places = affine_places(jitter[None], height, width)[0]
    moved = (points + jitter).long()
    torch.testing.assert_close(places[moved[:, 1], moved[:, 0]].double(), points, rtol=0, atol=1 / 32)
    # The map is the affine one through these pairs, rounded to 1/32 pixel.
    homogeneous = torch.cat([moved.double(), torch.ones(3, 1)], 1)
    matrix = torch.linalg.solve(homogeneous, points)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([columns, rows, torch.ones_like(rows)], -1).double()
    assert float((places.double() - grid @ matrix).abs().max()) <= 1 / 64 + 2 / 1024
    assert torch.equal(places * 32, (places * 32).round())


def test_no_draw_leaves_the_image() -> None:
    x = torch.randint(0, 256, (2, 3, 24, 37)) / 255
    still = ElasticDraw(torch.zeros(2, 3, 2), torch.zeros(2, 24, 37), torch.zeros(2, 24, 37))
    for constant in ((0, 0, 2.0), (5.0, 1.0, 2.0)):
        assert torch.equal(truncate(ELASTIC.apply(x, constant, still)), truncate(x))


def folded(place: int, size: int) -> int:
    """Reflection that repeats the border pixel."""
    place %= 2 * size
    return min(place, 2 * size - 1 - place)


def interpolated(image: Tensor, y: float, x: float) -> Tensor:
    height, width = image.shape[-2:]
    top, left = math.floor(y), math.floor(x)
    total = torch.zeros(3, dtype=torch.float64)
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            total += weight_y * weight_x * image[:, folded(row, height), folded(column, width)].double()
    return total


def test_shifts_are_smoothed_noise_and_mirror_at_the_border() -> None:
    height, width = 12, 9
    x = torch.randint(0, 256, (1, 3, height, width)) / 255
    dx, dy = (torch.rand(1, height, width) * 2 - 1 for _ in range(2))
    alpha, sigma = 9.0, 0.8
    ours = ELASTIC.apply(x, (alpha, sigma, 1.0), ElasticDraw(torch.zeros(1, 3, 2), dx, dy))
    smooth = [gaussian_matrix(size, sigma, dx, truncate=3, border="symmetric") for size in (height, width)]
    right, down = (alpha * along_both(field, *smooth)[0] for field in (dx, dy))
    assert float(right.abs().max()) > 2
    for row in range(height):
        for column in range(width):
            expected = interpolated(x[0], row + float(down[row, column]), column + float(right[row, column]))
            torch.testing.assert_close(ours[0, :, row, column].double(), expected, rtol=0, atol=2e-5)


def test_the_constants_keep_the_authors_244() -> None:
    assert ELASTIC.constant("imagenet224", 1) == pytest.approx((488, 170.8, 24.4))
    assert ELASTIC.constant("cifar32", 5) == pytest.approx((3.2, 0.96, 0.96))


def test_draws_are_uniform() -> None:
    constant = ELASTIC.constant("imagenet224", 2)
    drawn = ELASTIC.sample(Stream(0, "elastic_transform", 2, torch.arange(500)), torch.Size([500, 3, 9, 16]), constant)
    assert drawn.jitter.shape == (500, 3, 2)
    assert drawn.dx.shape == drawn.dy.shape == (500, 9, 16)
    assert not torch.equal(drawn.dx, drawn.dy)
    for values, bound in ((drawn.jitter, constant[2]), (drawn.dx, 1), (drawn.dy, 1)):
        values = values.flatten().sort().values / bound
        expected = torch.linspace(-1, 1, len(values))
        assert float((values - expected).abs().max()) / 2 < 2.23 / len(values) ** 0.5
