"""What a corruption is: constants, random draws, and arithmetic that replays them.

A family module (``noise.py``, ``blur.py``, ...) holds functions and ends in a tuple ``CORRUPTIONS`` of its
:class:`Corruption` objects. Nothing else has to know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shiftnorm.data.corruptions.draws import Stream

__all__ = ["Corruption", "draw_nothing", "truncate"]

# In levels. Single precision turns k / 255 * 255 into at least k - 2.3e-5, which must stay k.
SLACK = 2.0**-14

Sample = Callable[[Stream, torch.Size, Any], Any]
Apply = Callable[[Tensor, Any, Any], Tensor]


def draw_nothing(stream: Stream, shape: torch.Size, constant: Any) -> None:
    """Return None: the ``sample`` of a deterministic corruption.

    Example:
        >>> stream = Stream(0, "contrast", 1, torch.arange(2))
        >>> draw_nothing(stream, torch.Size([2, 3, 32, 32]), 0.75) is None
        True

    Args:
        stream: not used.
        shape: not used.
        constant: not used.
    """


def truncate(x: Tensor) -> Tensor:
    """Whole levels 0 to 255, as float, of images in [0, 1]: clipped and cut off instead of rounded, as the authors do.

    Cutting off is what made the published sets; it darkens by half a level on average.

    Example:
        >>> truncate(torch.tensor([-1.0, 0.5, 0.999, 128 / 255, 2.0])).tolist()
        [0.0, 127.0, 254.0, 128.0, 255.0]

    Args:
        x: float, any shape.

    Returns:
        The levels, a new tensor of the same shape and dtype.
    """
    return (x * 255).add_(SLACK).clamp_(0, 255).floor_()


@dataclass(frozen=True)
class Corruption:
    """One corruption: its constants, the draw, and the arithmetic that replays it.

    Its parts neither check nor quantise; use :func:`shiftnorm.data.corrupt` for that.

    Example:
        >>> from shiftnorm.data.corruptions import CORRUPTIONS
        >>> noise = CORRUPTIONS["gaussian_noise"]
        >>> sigma = noise.constant("cifar32", severity=1)
        >>> images = torch.full((2, 3, 32, 32), 0.5)
        >>> drawn = noise.sample(Stream(0, noise.name, 1, torch.arange(2)), images.shape, sigma)
        >>> torch.allclose(noise.apply(images, sigma, drawn), images + sigma * drawn)
        True

    Args:
        name: its name.
        group: ``"noise"``, ``"blur"``, ``"weather"`` or ``"digital"``.
        sample: (stream, shape of the images, constant) → the random numbers: None, a tensor or a named tuple of
            tensors, each with the images on its first axis, on the device of the stream.
        apply: (images (N, 3, H, W), constant, what ``sample`` returned) → images. The images are float32, whole
            levels k / 255, and are not changed in place; the result is not yet quantised, unless the authors' code
            does so inside.
        constants: by the name of the set, five constants each.
    """

    name: str
    group: str
    sample: Sample
    apply: Apply
    constants: Mapping[str, tuple[Any, ...]]

    @property
    def random(self) -> bool:
        """Whether it draws random numbers.

        Example:
            >>> from shiftnorm.data.corruptions import CORRUPTIONS
            >>> CORRUPTIONS["gaussian_noise"].random, CORRUPTIONS["contrast"].random
            (True, False)
        """
        return self.sample is not draw_nothing

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "constants": dict(self.constants)}  # read-only views do not pickle

    def constant(self, constants: str, severity: int) -> Any:
        """The strength at a severity.

        Example:
            >>> from shiftnorm.data.corruptions import CORRUPTIONS
            >>> CORRUPTIONS["contrast"].constant("imagenet224", severity=5)
            0.05

        Args:
            constants: the name of the set.
            severity: 1 to 5.

        Returns:
            The constant, in the form that ``sample`` and ``apply`` take.

        Raises:
            KeyError: for a set that this corruption has no constants of.
        """
        if constants not in self.constants:
            known = ", ".join(self.constants)
            raise KeyError(f"{self.name}: no constants named {constants!r}; there are {known}")
        return self.constants[constants][severity - 1]
