"""The dtype that a model runs in under autocast."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["choose_amp"]

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
