"""A few corrupted images for a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.evaluate.cells import CLEAN
from shiftnorm.evaluate.measure import Measurer
from shiftnorm.evaluate.result import Example

__all__ = ["show_examples", "shrink"]

_SIDE: Final = 96
_TRIED: Final = 64


@torch.inference_mode()
def show_examples(measurer: Measurer, names: Sequence[str], severities: Sequence[int]) -> list[Example]:
    """The first readable image, clean and under every corruption at the lowest, middle and highest severity.

    Example:
        >>> from shiftnorm.evaluate.borrow import Borrowed
        >>> from shiftnorm.evaluate.measure import Images, as_dataset
        >>> from shiftnorm.evaluate.normalization import Normalization
        >>> data = as_dataset((torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4).long()))
        >>> images, none = Images(data, torch.arange(4), 2), Normalization((0.0,) * 3, (1.0,) * 3, "none")
        >>> measurer = Measurer(Borrowed(torch.nn.Flatten()), data, images, none, "cifar32")
        >>> [(shown.corruption, shown.severity) for shown in show_examples(measurer, ["fog"], [1, 2, 3, 4, 5])]
        [('clean', 0), ('fog', 1), ('fog', 3), ('fog', 5)]

    Args:
        measurer: corrupts the image.
        names: of the corruptions.
        severities: that were measured.

    Returns:
        The examples, at most 96 pixels high and wide.
    """
    batch = next(iter(measurer.data.batches(1, indices=range(min(len(measurer.data), _TRIED)))), None)
    if batch is None:
        return []
    shown = sorted({severities[0], severities[len(severities) // 2], severities[-1]})
    keys = [CLEAN, *((name, severity) for name in names for severity in shown)]
    number, index = int(batch.numbers[0]), int(batch.indices[0])
    return [
        Example(name, severity, number, shrink(found[0].cpu(), _SIDE))
        for name, severity in keys
        if (found := measurer.example((name, severity), index)) is not None
    ]


def shrink(image: Tensor, side: int) -> Tensor:
    """An image with no side longer than given; a small one is returned as it is.

    Example:
        >>> shrink(torch.zeros(3, 224, 112, dtype=torch.uint8), 96).shape
        torch.Size([3, 96, 48])

    Args:
        image: (3, H, W) uint8.
        side: pixels.

    Returns:
        (3, h, w) uint8.
    """
    longest = max(image.shape[1:])
    if longest <= side:
        return image
    size = [max(1, round(length * side / longest)) for length in image.shape[1:]]
    small = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)
