"""AugMix's operations against Pillow's, one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pillow_operations import as_picture, as_tensor, by_pillow
from shiftnorm.data import augmix_operations
from shiftnorm.data.augmix_operations import OPERATIONS, operate


def pictures(n: int, height: int, width: int) -> Tensor:
    """Noise, smooth waves, and flat or nearly flat channels, whose histograms are the hard cases."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (n, 3, height, width), generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phases = torch.rand(n, 3, 1, 1, generator=generator) * 6
    waves = (128 + 100 * torch.sin(x / 5 + phases) * torch.cos(y / 7 - phases)).round()
    images = torch.where(torch.arange(n)[:, None, None, None] % 2 == 0, noise, waves.long()).to(torch.uint8)
    images[0, 1] = 77
    images[1, 2] = 255
    images[2] = images[2] % 3
    images[3] = 100 + images[3] // 8
    images[4, 0] = 0
    images[4, 0, 0, 0] = 1
    images[4, 0, -1, -1] = 255
    return images


def pillow_batch(name: str, images: Tensor, levels: Tensor, negative: Tensor) -> Tensor:
    items = zip(images, levels.tolist(), negative.tolist(), strict=True)
    return torch.stack([as_tensor(by_pillow(name, as_picture(image), level, sign)) for image, level, sign in items])


def cases(n: int) -> tuple[Tensor, Tensor]:
    levels = torch.linspace(0.1, 9.999, n, dtype=torch.float64)
    # Levels at which truncation matters: products that are whole numbers.
    levels[:8] = torch.tensor([0.1, 1 / 3, 2.5, 5.0, 7.5, 10 / 3, 20 / 3, 0.3125], dtype=torch.float64)
    return levels, torch.arange(n) // 2 % 2 == 0


INTERPOLATED = ("rotate", "shear_x", "shear_y")


@pytest.mark.parametrize("size", [(32, 32), (45, 33)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_against_pillow(name: str, size: tuple[int, int]) -> None:
    images, (levels, negative) = pictures(80, *size), cases(80)
    ours = operate(images, torch.full((80,), OPERATIONS.index(name)), levels, negative)
    theirs = pillow_batch(name, images, levels, negative)
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    wrong = (ours.int() - theirs.int()).abs()
    if name not in INTERPOLATED:
        assert torch.equal(ours, theirs)
    else:
        # Interpolation here is in single precision, then cut off.
        assert wrong.max() <= 1 and (wrong > 0).double().mean() < 1e-3
    if name not in ("autocontrast", "equalize"):
        assert (ours != images).double().mean() > 0.1


def test_large_image() -> None:
    images, levels = pictures(6, 224, 224), torch.tensor([0.4, 1.0, 2.9, 9.0, 0.9, 5.0], dtype=torch.float64)
    negative = torch.arange(6) % 2 == 0
    for name in OPERATIONS:
        ours = operate(images, torch.full((6,), OPERATIONS.index(name)), levels, negative)
        wrong = (ours.int() - pillow_batch(name, images, levels, negative).int()).abs()
        assert wrong.max() <= (name in INTERPOLATED) and (wrong > 0).double().mean() < 1e-3, name


def test_each_image_has_its_own_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    images, (levels, negative) = pictures(40, 16, 16), cases(40)
    which = torch.arange(40) % 14 - 1
    before = images.clone()
    mixed = operate(images, which, levels, negative)
    assert torch.equal(images, before)
    for index in range(40):
        one = slice(index, index + 1)
        alone = operate(images[one], which[one], levels[one], negative[one])
        assert torch.equal(mixed[one], alone)
        assert which[index] >= 0 or torch.equal(mixed[index], images[index])
    # However much is done at once.
    monkeypatch.setattr(augmix_operations, "PIXELS_ON_CPU", 512)
    assert torch.equal(operate(images, which, levels, negative), mixed)


def test_no_images() -> None:
    none = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    levels = torch.empty(0, dtype=torch.float64)
    assert operate(none, torch.empty(0, dtype=torch.int64), levels, levels > 0).shape == none.shape


def test_tiny_images() -> None:
    images, levels = pictures(6, 2, 1), torch.full((6,), 2.0, dtype=torch.float64)
    for name in OPERATIONS:
        ours = operate(images, torch.full((6,), OPERATIONS.index(name)), levels, levels > 3)
        assert torch.equal(ours, pillow_batch(name, images, levels, levels > 3)), name
