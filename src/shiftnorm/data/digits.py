"""The embedded benchmark: real handwritten digits over patches of real photographs."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.image_set import ImageSet

# The last three of the 14 forms that the digits file is made of. Each is by one person and starts with 0 to 9 in order.
FIRST_TEST_DIGIT = 1415
# Strips of both photographs that only test patches come from; they cross sky, roofs, lake, trees, petals and leaves.
TEST_COLUMNS = ((192, 256), (448, 512))
SIZES = range(16, 65)


def _photo_patches(photos: list[Tensor], test: bool, count: int, size: int, generator: torch.Generator) -> Tensor:
    edges = [0, *(edge for strip in TEST_COLUMNS for edge in strip), photos[0].shape[2]]
    strips = list(pairwise(edges))[1 if test else 0 :: 2]
    # Every left edge at which the patch stays inside one strip, so that no pixel is in both sets.
    lefts = torch.cat([torch.arange(first, end - size + 1) for first, end in strips if end - first >= size])
    height = photos[0].shape[1]
    which = torch.randint(len(photos), (count,), generator=generator).tolist()
    tops = torch.randint(height - size + 1, (count,), generator=generator).tolist()
    left = lefts[torch.randint(len(lefts), (count,), generator=generator)].tolist()
    return torch.stack([photos[p][:, y : y + size, x : x + size] for p, y, x in zip(which, tops, left, strict=True)])


def digits_on_photos(seed: int = 0, size: int = 32) -> tuple[ImageSet, ImageSet]:
    """Return train and test images of handwritten digits over photographs, made from what scikit-learn bundles.

    The digits are the 1797 of ``sklearn.datasets.load_digits`` (8x8, real handwriting), enlarged bicubically; the
    backgrounds are patches of its two sample photographs; a pixel is ``|photo - digit|``, so a digit can be darker or
    lighter than what it lies on and no threshold finds it. Nothing is downloaded, and the result depends on ``seed``
    and ``size`` only.

    Nothing is shared between the two sets:

    - **Writers.** The file holds 14 forms one after the other, filled in by 13 people. The last three forms are the
      test set: 1415 train and 382 test images. A random split would put every writer into both sets and make the
      error look smaller than it is for a new writer. scikit-learn does not publish the writers' names; the border is
      one between forms, where the ordered run 0 to 9 starts again.
    - **Photographs.** Test patches come from two vertical strips of each photograph that no train patch touches.
      Strips rather than one photograph each, so that the clean test set is no distribution shift of its own.

    Example:
        >>> from shiftnorm.data import digits_on_photos
        >>> train, test = digits_on_photos()
        >>> len(train), len(test), tuple(train.images.shape[1:])
        (1415, 382, (3, 32, 32))

    Args:
        seed: of the choice of patches. Keep it fixed while comparing models.
        size: side of the images, 16 to 64.

    Returns:
        The train and the test set, with classes "0" to "9".

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: ``size`` out of range.
    """
    if size not in SIZES:
        raise ValueError(f"digits_on_photos: size must be in {SIZES.start}..{SIZES.stop - 1}, got {size}")
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError(
            "digits_on_photos needs scikit-learn, which bundles the digits and photographs; "
            "install it with: pip install 'shiftnorm[train]'"
        ) from error

    values, targets = load_digits(return_X_y=True)
    digits = torch.from_numpy(values).float().view(-1, 1, 8, 8) / 16
    digits = F.interpolate(digits, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    labels = torch.from_numpy(targets).long()
    # A copy: the photographs arrive as read-only memory, which torch.from_numpy warns about.
    photos = [torch.from_numpy(photo.copy()).movedim(2, 0).float() / 255 for photo in load_sample_images().images]

    sets: list[ImageSet] = []
    for test, part in ((False, slice(None, FIRST_TEST_DIGIT)), (True, slice(FIRST_TEST_DIGIT, None))):
        generator = torch.Generator().manual_seed(2 * seed + test)
        patches = _photo_patches(photos, test, len(labels[part]), size, generator)
        images = ((patches - digits[part]).abs() * 255).round().to(torch.uint8)
        sets.append(ImageSet(images, labels[part], tuple(str(digit) for digit in range(10)), "digits on photos"))
    return sets[0], sets[1]
