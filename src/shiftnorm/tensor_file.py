"""Safetensors files that appear whole or not at all; for the parts that write tensors and may not import each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["safetensors_for", "write_tensors"]


def safetensors_for(who: str) -> Any:
    """The module ``safetensors.torch``.

    Example:
        >>> safetensors_for("these files").__name__
        'safetensors.torch'

    Args:
        who: needs it, in the plural; the error begins with it.

    Returns:
        The module, imported now and not before.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
    """
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f'{who} need safetensors: pip install "shiftnorm[train]"') from None
    return safetensors.torch


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, who: str) -> Path:
    """Write a safetensors file, which appears whole or not at all.

    Example:
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "new" / "a.safetensors"
        >>> path = write_tensors(path, {"x": torch.zeros(2)}, {"made": "today"}, who="these files")
        >>> safetensors_for("these files").load_file(path)
        {'x': tensor([0., 0.])}

    Args:
        path: the file; its folder is made.
        tensors: contiguous, and none shares memory with another.
        metadata: texts by name.
        who: as for `safetensors_for`.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
    """
    safetensors = safetensors_for(who)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        safetensors.save_file(dict(tensors), temporary, metadata=dict(metadata))
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are made for their owner alone
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
