"""random_shift_flip against one image at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shiftnorm.data.augment import Augmentation, random_shift_flip, shift_flip
from shiftnorm.data.corruptions.draws import Stream


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_every_image_is_a_crop_of_the_padded_one(dtype: torch.dtype, pad: int, flip: bool) -> None:
    images = torch.randint(1, 256, (200, 2, 6, 5)).to(dtype)
    out = random_shift_flip(images, pad=pad, flip=flip, generator=seeded())
    assert out.dtype == dtype and out.is_contiguous()
    seen = set()
    for before, after in zip(images, out, strict=True):
        padded = F.pad(before, (pad,) * 4)
        candidates = {
            (y, x, mirrored): padded[:, y : y + 6, x : x + 5].flip(-1) if mirrored else padded[:, y : y + 6, x : x + 5]
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            for mirrored in ({False, flip})
        }
        found = [key for key, crop in candidates.items() if torch.equal(crop, after)]
        assert len(found) == 1
        seen.add(found[0])
    # 200 draws reach nearly all of up to 98 possibilities.
    assert len(seen) > 0.7 * (2 * pad + 1) ** 2 * (1 + flip)


def test_repeatable_and_global_state_untouched() -> None:
    images, state = torch.rand(8, 3, 8, 8), torch.get_rng_state()
    first, second = (random_shift_flip(images, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, random_shift_flip(images, generator=seeded(4)))
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_of_shifts_does_not_depend_on_flip() -> None:
    images = torch.ones(64, 1, 8, 8)
    plain = random_shift_flip(images, flip=False, generator=seeded())
    flipped = random_shift_flip(images, flip=True, generator=seeded())
    assert torch.equal(plain.amax(3), flipped.amax(3))


def test_gradients_and_empty_batch() -> None:
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    random_shift_flip(images, pad=0, generator=seeded()).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
    assert random_shift_flip(images[:0], generator=seeded()).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "pad", "message"), [((3, 8, 8), 4, r"\(N, C, H, W\), got \(3, 8, 8\)"), ((1, 3, 8, 8), -1, "got -1")]
)
def test_errors(shape: tuple[int, ...], pad: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_shift_flip(torch.zeros(shape), pad=pad, generator=seeded())


def test_an_augmentation_gives_each_image_its_own_draw() -> None:
    images, indices = torch.randint(1, 256, (300, 2, 6, 5)).to(torch.uint8), torch.arange(300)
    augment = Augmentation(shift=2, flip=True, seed=4)
    out = augment(images, 1, indices)
    shifted = Stream(4, "shift_flip", 1, indices)
    shifts, mirrored = shifted.integers(0, 5, 2), shifted.uniform() < 0.5
    assert 100 < int(mirrored.sum()) < 200 and len(shifts.unique(dim=0)) == 25
    for image, result, (y, x), flip in zip(images, out, shifts.tolist(), mirrored.tolist(), strict=True):
        cut = F.pad(image, (2,) * 4)[:, y : y + 6, x : x + 5]
        assert torch.equal(result, cut.flip(-1) if flip else cut)
    backwards = augment(images.flip(0), 1, indices.flip(0))
    assert torch.equal(backwards.flip(0), out)
    assert not torch.equal(augment(images, 2, indices), out)


def test_an_augmentation_cuts_then_mirrors() -> None:
    images, indices = torch.randint(0, 256, (40, 3, 16, 16)).to(torch.uint8), torch.arange(40)
    cut = Augmentation(resized=12, seed=4)(images, 1, indices)
    both = Augmentation(resized=12, flip=True, seed=4)(images, 1, indices)
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(cut, both, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(cut, both, strict=True)])
    assert cut.shape == (40, 3, 12, 12) and bool((mirrored ^ kept).all()) and 8 < int(mirrored.sum()) < 32


def test_nothing_to_do() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert Augmentation()(images, 0, torch.arange(2)) is images


@pytest.mark.parametrize("arguments", [{"shift": -1}, {"resized": 0}, {"resized": 8, "shift": 1}])
def test_impossible_augmentations(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected shift >= 0, or resized >= 1 without a shift"):
        Augmentation(**arguments)


def test_draws_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2\) shifts, \(N,\) mirrored and pad >= 0, got .*, pad 0"):
        shift_flip(torch.zeros(2, 3, 4, 4), torch.zeros(3, 2).long(), torch.zeros(2).bool(), pad=0)
