"""Spatter and the parts of OpenCV that it is made of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_corruptions import golden_file
from shiftnorm.data import corrupt
from shiftnorm.data.corruptions import SEVERITIES
from shiftnorm.data.corruptions.base import truncate
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.spatter import CORRUPTIONS, canny, chamfer, equalize, sample_spatter, spatter

SPATTER = CORRUPTIONS[0]
ONE = 65536
WATER, MUD = (0.65, 0.3, 2, 0.68, 0.5, 0), (0.65, 0.3, 1, 0.65, 1.5, 1)


def reference_canny(levels: np.ndarray, weak: int, strong: int) -> np.ndarray:
    """Pixel by pixel, in whole numbers."""
    height, width = levels.shape
    around = np.pad(levels.astype(int), 1, mode="edge")
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3))
    dx, dy = (windows * sobel).sum((2, 3)), (windows * sobel.T).sum((2, 3))
    slope = np.pad(abs(dx) + abs(dy), 1)
    edges = np.zeros((height, width), dtype=int)
    for i in range(height):
        for j in range(width):
            x, y, m = abs(int(dx[i, j])), abs(int(dy[i, j])) << 15, slope[i + 1, j + 1]
            flat = x * 13573
            if y < flat:
                crest = m > slope[i + 1, j] and m >= slope[i + 1, j + 2]
            elif y > flat + (x << 16):
                crest = m > slope[i, j + 1] and m >= slope[i + 2, j + 1]
            else:
                s = -1 if (dx[i, j] < 0) != (dy[i, j] < 0) else 1
                crest = m > slope[i, j + 1 - s] and m > slope[i + 2, j + 1 + s]
            edges[i, j] = (1 + (m > strong)) * (crest and m > weak)
    todo = list(zip(*np.nonzero(edges == 2), strict=True))
    while todo:
        i, j = todo.pop()
        for k in range(max(i - 1, 0), min(i + 2, height)):
            for n in range(max(j - 1, 0), min(j + 2, width)):
                if edges[k, n] == 1:
                    edges[k, n] = 2
                    todo.append((k, n))
    return edges == 2


def reference_distance(down: int, right: int) -> float:
    long, short = max(abs(down), abs(right)), min(abs(down), abs(right))
    knights = min(short, long - short)
    diagonals = short - knights
    return knights * round(2.1969 * ONE) + diagonals * round(1.4 * ONE) + (long - 2 * knights - diagonals) * ONE


@pytest.mark.parametrize("kind", ["smooth", "rough", "steps"])
def test_canny_is_opencvs_method(kind: str) -> None:
    generator = np.random.RandomState(0)
    for _ in range(8):
        noise = generator.randint(0, 256, (20, 23))
        smooth = sum(np.roll(noise, (i, j), (0, 1)) for i in range(3) for j in range(3)) // 9
        levels = {"rough": noise, "smooth": smooth, "steps": smooth // 60 * 60}[kind]
        ours = canny(torch.from_numpy(levels).float()[None], 50, 150)[0].numpy()
        expected = reference_canny(levels, 50, 150)
        np.testing.assert_array_equal(ours, expected)
        assert expected.any()


def test_canny_follows_a_weak_edge_however_long() -> None:
    levels = torch.zeros(2, 60, 12)
    levels[:, :, 6:] = 20.0
    levels[0, 0, 6:] = 200.0
    edges = canny(levels, 50, 150)
    assert edges[0].sum() >= 59  # strong at the top, weak below it
    assert not edges[1].any()


@pytest.mark.parametrize("shape", [(24, 24), (9, 40), (3, 5)])
def test_chamfer_is_the_shortest_path(shape: tuple[int, int]) -> None:
    edges = torch.rand(4, *shape) < 0.02
    edges[0], edges[1] = False, False
    edges[1, 0, 0] = True
    ours = chamfer(edges)
    for image, distance in zip(edges, ours, strict=True):
        places = image.nonzero().tolist()
        for i in range(shape[0]):
            for j in range(shape[1]):
                paths = [reference_distance(i - row, j - column) for row, column in places]
                assert distance[i, j] == min([*paths, 20 * ONE])


def test_equalize_spreads_the_levels() -> None:
    levels = torch.randint(3, 21, (5, 16, 16)).float()
    levels[0], levels[1, 0, 0] = 7, 20
    for image, ours in zip(levels, equalize(levels), strict=True):
        lowest = int((image == image.min()).sum())
        if lowest == image.numel():
            assert torch.equal(ours, image)
            continue
        for level in image.unique().tolist():
            below = int((image <= level).sum()) - lowest
            expected = np.rint(np.float32(below) * (np.float32(255) / np.float32(image.numel() - lowest)))
            assert (ours[image == level] == float(expected)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_golden_with_the_authors_draws(golden: Path, severity: int) -> None:
    with np.load(golden_file(golden, "spatter_cifar.npz")) as z:
        stored = {key: z[key][severity - 1] for key in ("exact_out", "out_mean", "out_std", "mse", "frac_changed")}
        first = z[f"draw.s{severity}.i0.00.normal"]
    with np.load(golden_file(golden, "clean_cifar.npz")) as z:
        clean = torch.from_numpy(z["images"]).movedim(-1, 1).contiguous()
    constant = SPATTER.constant("cifar32", severity)
    # numpy's generator, seeded as the stored outputs were.
    seeds = 1_100_000 + 1000 * severity + np.arange(len(clean))
    draw = torch.from_numpy(np.stack([np.random.RandomState(seed).standard_normal((32, 32)) for seed in seeds]))
    torch.testing.assert_close(draw[0] * constant[1] + constant[0], torch.from_numpy(first))
    levels = truncate(spatter(clean / 255, constant, draw))
    expected = torch.from_numpy(stored["exact_out"]).movedim(-1, 1)
    assert (levels[: len(expected)] - expected).abs().max() <= 1
    flat, residual = levels.double().flatten(1), (levels - clean).double().flatten(1)
    for name, ours, tolerance in (
        ("out_mean", flat.mean(1), 0.002),
        ("out_std", flat.std(1, correction=0), 0.003),
        ("mse", residual.square().mean(1), 0.3),
        ("frac_changed", (residual != 0).double().mean(1), 0.001),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(stored[name]), rtol=0, atol=tolerance)


def images(n: int, height: int = 48, width: int = 40) -> Tensor:
    return torch.randint(256, (n, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("constant", [WATER, MUD])
def test_each_image_has_its_own_drops(constant: tuple[float, ...]) -> None:
    x = images(6)
    draw = sample_spatter(Stream(0, "spatter", 3, torch.arange(6)), x.shape, constant)
    assert draw.shape == (6, 48, 40)
    together = spatter(x, constant, draw)
    alone = torch.cat([spatter(x[i : i + 1], constant, draw[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    changed = (together != x).any(1)
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(x, images(6))
    assert spatter(x[:0], constant, draw[:0]).shape == (0, 3, 48, 40)


def test_water_adds_light_and_mud_covers() -> None:
    x = images(4)
    draw = torch.randn(4, 48, 40)
    water = spatter(x, WATER, draw) - x
    assert water.min() >= 0
    assert water.max() > 0.1
    mud = spatter(torch.ones(4, 3, 48, 40), MUD, draw)
    covered = mud[:, 0] < 1
    assert 0 < covered.double().mean() < 1
    # At least four fifths of mud, or none.
    assert mud[:, 0][covered].max() <= 1 - 0.8 * (1 - 63 / 255) + 1e-6


def test_no_drop_leaves_the_image() -> None:
    x = images(2)
    for constant in (WATER, MUD):
        assert torch.equal(spatter(x, constant, torch.full((2, 48, 40), -9.0)), x)


def test_deep_drops_start_again_from_dark() -> None:
    # A mean of 1.02 is 260 levels, which as a byte is 4.
    x = torch.zeros(1, 3, 32, 32)
    draw = torch.zeros(1, 32, 32)
    draw[:, :, 16:] = 1.0
    out = spatter(x, (0.9, 0.12, 0.7, 0.69, 0.5, 0), draw)
    assert out[0, :, :, 22:].max() < out[0, :, :, :10].max()


@pytest.mark.parametrize(("constants", "size"), [("cifar32", 32), ("tiny64", 64), ("imagenet224", 96)])
def test_every_set_gives_drops(constants: str, size: int) -> None:
    grey = torch.full((4, 3, size, size), 128, dtype=torch.uint8)
    for severity in SEVERITIES:
        out = corrupt(grey, "spatter", severity, constants=constants, storage="none")
        share = float((out != grey).any(1).double().mean())
        assert 0.001 < share < 0.9, f"severity {severity}: {share}"
        assert math.isfinite(float(out.float().mean()))
