"""Training augmentation as batched tensor operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.crops import crop_boxes, draw_crops, resize_crops

__all__ = ["Augmentation", "random_shift_flip", "shift_flip"]


def shift_flip(images: Tensor, shifts: Tensor, mirrored: Tensor, *, pad: int) -> Tensor:
    """Cut every image out of itself with a border of ``pad`` zeros, and mirror some: the arithmetic, without a draw.

    Example:
        >>> shift_flip(torch.tensor([[[[1, 2, 3]]]]), torch.tensor([[1, 2]]), torch.tensor([True]), pad=1)
        tensor([[[[0, 3, 2]]]])

    Args:
        images: (N, C, H, W), any dtype and device.
        shifts: (N, 2) int64, first row and column in the padded image, 0 to 2 * pad; pad leaves the image in place.
        mirrored: (N,) bool, which images are mirrored, after the cut.
        pad: pixels of the border.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: shapes that do not belong together, or a negative ``pad``.
    """
    n = len(images)
    if images.ndim != 4 or shifts.shape != (n, 2) or mirrored.shape != (n,) or pad < 0:
        raise ValueError(
            "shift_flip: expected (N, C, H, W) images, (N, 2) shifts, (N,) mirrored and pad >= 0, got "
            f"{tuple(images.shape)}, {tuple(shifts.shape)}, {tuple(mirrored.shape)}, pad {pad}."
        )
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + shifts[:, :1]
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + shifts[:, 1:]
    padded = F.pad(images, (pad, pad, pad, pad))
    which = torch.arange(n, device=images.device)[:, None, None]
    # The index tensors surround the channel axis, so indexing puts that axis last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def random_shift_flip(images: Tensor, *, pad: int = 4, flip: bool = True, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``pad`` pixels, filling with zeros, and mirror every other one at random.

    This is the usual random crop with padding and horizontal flip of CIFAR training, one draw for each image.

    Example:
        >>> import torch
        >>> from shiftnorm.data import random_shift_flip
        >>> images = torch.rand(8, 3, 32, 32)
        >>> random_shift_flip(images, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])

    Args:
        images: (N, C, H, W), any dtype and device.
        pad: the largest shift in pixels, in each direction.
        flip: mirror left to right with probability one half. Leave it off for digits and letters.
        generator: the source of the draws; it may live on another device than the images.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: ``images`` is not (N, C, H, W) or ``pad`` is negative.
    """
    if images.ndim != 4:
        raise ValueError(f"random_shift_flip: images must be (N, C, H, W), got {tuple(images.shape)}")
    if pad < 0:
        raise ValueError(f"random_shift_flip: pad must not be negative, got {pad}")
    n = len(images)
    shifts = torch.randint(2 * pad + 1, (2, n), generator=generator, device=generator.device).to(images.device)
    mirrored = torch.rand(n, generator=generator, device=generator.device).to(images.device) < (0.5 if flip else 0.0)
    return shift_flip(images, shifts.T, mirrored, pad=pad)


@final
@dataclass(frozen=True)
class Augmentation:
    """What is done to training images before any method of a paper, each image by a draw of its own.

    The draws depend on (seed, epoch, index of the image) alone: not on the batch, the process or the device.

    Example:
        >>> images, indices = torch.randint(0, 256, (8, 3, 32, 32)).to(torch.uint8), torch.arange(8)
        >>> augment = Augmentation(shift=4, flip=True, seed=0)
        >>> whole, tail = augment(images, 3, indices), augment(images[6:], 3, indices[6:])
        >>> torch.equal(whole[6:], tail)
        True

    Args:
        shift: largest shift in pixels over black; 0 for none.
        flip: mirror half of the images.
        resized: side of the squares to which random parts of 8 to 100 % of the area are scaled; None to cut nothing.
        seed: of the draws.

    Raises:
        ValueError: for a negative shift, a size below 1, or shift and resized together.
    """

    shift: int = 0
    flip: bool = False
    resized: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0 or (self.resized is not None and (self.resized < 1 or self.shift)):
            raise ValueError(
                "Augmentation: expected shift >= 0, or resized >= 1 without a shift, "
                f"got shift={self.shift}, resized={self.resized}."
            )

    def __call__(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        """Augment uint8 images (N, C, H, W), whose numbers are ``indices`` (N,) on the same device."""
        if self.resized is not None:
            draw = draw_crops(Stream(self.seed, "resized_crop", epoch, indices))
            images = resize_crops(images, crop_boxes(draw, *images.shape[2:]), self.resized)
        if not (self.shift or self.flip):
            return images
        stream = Stream(self.seed, "shift_flip", epoch, indices)
        shifts = stream.integers(0, 2 * self.shift + 1, 2)
        mirrored = stream.uniform() < (0.5 if self.flip else 0.0)
        return shift_flip(images, shifts, mirrored, pad=self.shift)
