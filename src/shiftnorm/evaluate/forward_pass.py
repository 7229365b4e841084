"""How a model is run: its dtype under autocast, what results say of it, and sizes of images that it does not take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from shiftnorm.evaluate.normalization import Normalization

__all__ = ["choose_amp", "describe_pass", "naming_sizes"]

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SIDES: Final = (16, 32, 64, 128, 224, 256, 299, 384)
# What networks raise of images that are too small for a layer, or not of the one size they are made for.
_REFUSALS: Final = (RuntimeError, ValueError, AssertionError)


def choose_amp(amp: bool | str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype that ``amp`` stands for.

    Example:
        >>> choose_amp(True, torch.device("cpu")), choose_amp("float16", torch.device("cuda"))
        (torch.bfloat16, torch.float16)

    Args:
        amp: True for the device's default, a dtype or its name; None or False for none.
        device: where the model runs.

    Raises:
        ValueError: for another dtype or name.
    """
    if amp is None or amp is False:
        return None
    dtype = torch.get_autocast_dtype(device.type) if amp is True else _DTYPES.get(str(amp).removeprefix("torch."))
    if dtype not in _DTYPES.values():
        raise ValueError(f"robustness: amp must be True, 'bfloat16' or 'float16', got {amp!r}.")
    return dtype


def describe_pass(
    normalization: Normalization, amp: torch.dtype | None, *, channels_last: bool, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """The settings of a forward pass, for a result.

    Example:
        >>> half = Normalization((0.5,) * 3, (0.5,) * 3, "half")
        >>> options = {"channels_last": False, "batch_size": 8, "device": torch.device("cpu")}
        >>> describe_pass(half, torch.bfloat16, **options)["amp"]
        'bfloat16'
    """
    return {
        "normalize": normalization.name,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "bytes": normalization.bytes,
        "amp": None if amp is None else str(amp).removeprefix("torch."),
        "channels_last": channels_last,
        "batch_size": batch_size,
        "device": device.type,
    }


@contextmanager
def naming_sizes(
    run: Callable[[Tensor], object],
    images: Tensor,
    *,
    who: str,
    advice: str = "Resize them, with preprocess='resize{0}x{0}'.",
) -> Iterator[None]:
    """Let the error of a model that does not take images of a size say which size it takes.

    Any other error stays as it is. A usual size is looked for only where the model fails on ``images`` once more.

    Example:
        >>> pool = torch.nn.AvgPool2d(20)
        >>> with naming_sizes(pool, torch.zeros(2, 3, 8, 8), who="train", advice="Set size={0}."):
        ...     pool(torch.zeros(64, 3, 8, 8))
        Traceback (most recent call last):
        ...
        ValueError: train: expected images of a size that the network takes, such as 32x32, got 8x8 (...). Set size=32.

    Args:
        run: gives images to the model.
        images: some of those that the model is given.
        who: what the error begins with.
        advice: what it ends with; {0} stands for the side of the squares that the model takes.

    Raises:
        ValueError: instead of the model's error, if it takes squares of another size.
    """
    try:
        yield
    except _REFUSALS as fault:
        height, width = images.shape[-2:]
        sides = () if _takes(run, images) else sorted(_SIDES, key=lambda side: abs(side - max(height, width)))
        side = next((side for side in sides if _takes(run, images.new_zeros((*images.shape[:2], side, side)))), None)
        if side is None:
            raise
        said = str(fault).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{who}: expected images of a size that the network takes, such as {side}x{side}, got {height}x{width} "
            f"({said}). {advice.format(side)}"
        ) from fault


def _takes(run: Callable[[Tensor], object], images: Tensor) -> bool:
    try:
        run(images)
    except _REFUSALS:
        return False
    return True
