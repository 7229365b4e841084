"""Fog and its plasma fractals."""

from __future__ import annotations

import json
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
from shiftnorm.data.corruptions.fog import CORRUPTIONS, fog, plasma, sample_fog

FOG = CORRUPTIONS[0]
SETS = {"cifar": "cifar32", "imagenet": "imagenet224"}


def reference_plasma(draw: np.ndarray, size: int, decay: float) -> np.ndarray:
    """Point by point: squares, then the two kinds of sides."""
    heights, roughness, numbers, step = np.zeros((size, size)), 100.0, iter(draw), size
    while step >= 2:
        half = step // 2
        for first_row, first_column in ((half, half), (0, half), (half, 0)):
            diagonal = first_row == first_column
            around = ((-1, -1), (-1, 1), (1, -1), (1, 1)) if diagonal else ((-1, 0), (1, 0), (0, -1), (0, 1))
            for row in range(first_row, size, step):
                for column in range(first_column, size, step):
                    near = [heights[(row + i * half) % size, (column + j * half) % size] for i, j in around]
                    heights[row, column] = sum(near) / 4 + roughness * roughness * next(numbers)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return heights / heights.max()


def authors_draw(seed: int, size: int, decay: float) -> Tensor:
    """The numbers of numpy's generator, seeded as the stored outputs were, divided by the authors' amplitude."""
    generator, wobble, side, draws = np.random.RandomState(seed), 100.0, 1, []
    while side < size:
        draws += [generator.uniform(-wobble, wobble, (side, side)).ravel() / wobble for _ in range(3)]
        side, wobble = side * 2, wobble / decay
    return torch.from_numpy(np.concatenate(draws))


@pytest.mark.parametrize(("size", "decay"), [(2, 3.0), (8, 1.5), (32, 2.0)])
def test_plasma_is_the_diamond_square_method(size: int, decay: float) -> None:
    draw = torch.rand(3, size * size - 1, dtype=torch.float64) * 2 - 1
    expected = np.stack([reference_plasma(numbers, size, decay) for numbers in draw.numpy()])
    torch.testing.assert_close(plasma(draw, decay), torch.from_numpy(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(plasma(draw.float(), decay), torch.from_numpy(expected).float(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("variant", SETS)
def test_golden_with_the_authors_draws(golden: Path, variant: str, severity: int) -> None:
    with np.load(golden_file(golden, f"fog_{variant}.npz")) as z:
        stored = {key: z[key] for key in ("exact_out", "out_mean", "out_std", "frac_changed", "meta")}
    assert json.loads(str(stored["meta"]))["seed"].startswith("np.random.seed(100000*(j+1)+1000*severity+i)")
    count = 32 if variant == "cifar" else 3
    with np.load(golden_file(golden, f"clean_{variant}.npz")) as z:
        clean = torch.from_numpy(z["images"][:count]).movedim(-1, 1).contiguous()
    constant = FOG.constant(SETS[variant], severity)
    size = 1 << (clean.shape[-1] - 1).bit_length()
    draw = torch.stack([authors_draw(900_000 + 1000 * severity + i, size, constant[1]) for i in range(count)])
    levels = truncate(fog(clean / 255, constant, draw))
    expected = torch.from_numpy(stored["exact_out"][severity - 1]).movedim(-1, 1)
    difference = (levels[: len(expected)] - expected).abs()
    assert difference.max() <= 1
    assert (difference == 0).double().mean() > 0.999
    flat = levels.double().flatten(1)
    for name, ours in (
        ("out_mean", flat.mean(1)),
        ("out_std", flat.std(1, correction=0)),
        ("frac_changed", (levels != clean).double().mean((1, 2, 3))),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(stored[name][severity - 1][:count]), rtol=0, atol=0.005)


@pytest.mark.parametrize(("shape", "count"), [((8, 8), 63), ((32, 32), 1023), ((33, 20), 4095), ((224, 224), 65535)])
def test_the_fractal_covers_the_image(shape: tuple[int, int], count: int) -> None:
    drawn = sample_fog(Stream(0, "fog", 1, torch.arange(2)), torch.Size([2, 3, *shape]), (1.5, 2))
    assert drawn.shape == (2, count)
    assert drawn.min() >= -1
    assert drawn.max() < 1
    assert abs(float(drawn.mean())) < 6 / (3 * 2 * count) ** 0.5
    assert fog(torch.rand(2, 3, *shape), (1.5, 2.0), drawn).shape == (2, 3, *shape)


def test_fog_brightens_dark_parts_and_takes_contrast() -> None:
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spread = [float(corrupt(images, "fog", severity).float().std((1, 2, 3)).mean()) for severity in SEVERITIES]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.8 * float(images.float().std())


def test_fog_leaves_its_input_and_takes_no_images() -> None:
    images = torch.rand(2, 3, 16, 16)
    before = images.clone()
    fog(images, (1.5, 2.0), torch.rand(2, 255) * 2 - 1)
    assert torch.equal(images, before)
    assert fog(images[:0], (1.5, 2.0), torch.rand(0, 255)).shape == (0, 3, 16, 16)
    assert plasma(torch.rand(0, 255), 2.0).shape == (0, 16, 16)
