"""Glass blur: the batched passes against the authors' loop, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_corruptions import golden_file
from shiftnorm.data.corruptions import CORRUPTIONS
from shiftnorm.data.corruptions.base import truncate
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.glass import GlassDraw, copied_from, swapped_from

SIZES = [(8, 8), (11, 17), (32, 32)]


def looped(dx: Tensor, dy: Tensor, height: int, width: int, shift: int, *, swap: bool) -> list[int]:
    """One pass as the scan goes, of the flat places instead of pixels."""
    pixels = list(range(height * width))
    step = 0
    for row in range(height - shift, shift, -1):
        for column in range(width - shift, shift, -1):
            here = row * width + column
            there = here + int(dy.flatten()[step]) * width + int(dx.flatten()[step])
            pixels[here], pixels[there] = pixels[there], pixels[here] if swap else pixels[there]
            step += 1
    assert step == dx.numel()
    return pixels


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shift", (1, 2, 3))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_pass_is_the_loop(height: int, width: int, shift: int, swap: bool) -> None:
    shape = (3, height - 2 * shift, width - 2 * shift)
    dx, dy = (torch.randint(-shift, shift, shape) for _ in range(2))
    source = (swapped_from if swap else copied_from)((dy * width + dx).flatten(1), height, width, shift)
    for i in range(3):
        assert source[i].tolist() == looped(dx[i], dy[i], height, width, shift, swap=swap)


def test_long_chains_of_copies_are_followed_to_their_end() -> None:
    # Every pixel copies its neighbour on the right, which has been set before it: one colour runs along each row.
    offsets = torch.ones(1, 20 * 20, dtype=torch.int64)
    source = copied_from(offsets, 24, 24, 2).view(24, 24)
    assert torch.equal(source[3:23, 3:23], (torch.arange(3, 23) * 24 + 23)[:, None].expand(20, 20))


def test_swaps_lose_no_pixel() -> None:
    offsets = torch.randint(-4, 4, (2, 24 * 24)) * 32 + torch.randint(-4, 4, (2, 24 * 24))
    source = swapped_from(offsets, 32, 32, 4)
    assert torch.equal(source.sort().values, torch.arange(32 * 32).expand(2, -1))


@pytest.mark.parametrize("severity", (1, 2, 3, 4, 5))
def test_the_authors_pixels(golden: Path, severity: int) -> None:
    arrays = np.load(golden_file(golden, "glass_blur_cifar.npz"))
    clean = np.load(golden_file(golden, "clean_cifar.npz"))["images"]
    corruption = CORRUPTIONS["glass_blur"]
    constant = corruption.constant("cifar32", severity)
    for i, expected in enumerate(arrays["exact_out"][severity - 1]):
        draw = torch.from_numpy(arrays[f"draw.s{severity}.i{i}.00.randint"])
        x = torch.from_numpy(clean[i]).movedim(-1, 0)[None].float() / 255
        drawn = GlassDraw(*draw.view(1, constant[2], 30, 30, 2).unbind(-1))
        ours = truncate(corruption.apply(x, constant, drawn))
        assert torch.equal(ours, torch.from_numpy(expected).movedim(-1, 0)[None].float())


def test_passes_follow_each_other() -> None:
    # With almost no blur, two passes are the loop run twice.
    x = torch.randint(0, 256, (2, 3, 12, 15)) / 255
    constant = (0.05, 2, 2)
    for name, swap in (("glass_blur", False), ("glass_blur_swap", True)):
        corruption = CORRUPTIONS[name]
        drawn = corruption.sample(Stream(0, name, 1, torch.arange(2)), x.shape, constant)
        assert drawn.dx.shape == drawn.dy.shape == (2, 2, 8, 11)
        ours = truncate(corruption.apply(x, constant, drawn))
        for i in range(2):
            first, second = (looped(drawn.dx[i, k], drawn.dy[i, k], 12, 15, 2, swap=swap) for k in range(2))
            source = torch.tensor(first)[torch.tensor(second)]
            assert torch.equal(ours[i].flatten(1), truncate(x[i]).flatten(1)[:, source])


def test_draws_are_uniform_and_never_the_upper_bound() -> None:
    corruption = CORRUPTIONS["glass_blur"]
    drawn = corruption.sample(Stream(0, "glass_blur", 5, torch.arange(4)), torch.Size([4, 3, 64, 64]), (1.5, 4, 2))
    table = torch.zeros(8, 8)
    table.index_put_((drawn.dy.flatten() + 4, drawn.dx.flatten() + 4), torch.ones(drawn.dx.numel()), accumulate=True)
    expected = drawn.dx.numel() / 64
    assert drawn.dx.shape == (4, 2, 56, 56)
    # 63 degrees of freedom: above 120 once in 30,000 seeds.
    assert float(((table - expected) ** 2 / expected).sum()) < 120


def test_an_image_too_small_to_be_scanned_is_blurred_only() -> None:
    x = torch.rand(1, 3, 8, 8).mul(255).round().div(255)
    corruption = CORRUPTIONS["glass_blur"]
    drawn = corruption.sample(Stream(0, "glass_blur", 5, torch.arange(1)), x.shape, (1.5, 4, 2))
    assert drawn.dx.numel() == 0
    assert torch.equal(
        corruption.apply(x, (1.5, 4, 2), drawn), CORRUPTIONS["glass_blur_swap"].apply(x, (1.5, 4, 2), drawn)
    )
