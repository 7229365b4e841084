"""Reading the pickles of CIFAR without running what a stranger may have put into them."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


class _Array:
    """Stands for a numpy array while unpickling; takes its state as plain values."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin1")
        sizes_fit = all(isinstance(side, int) and side >= 0 for side in shape) and len(data) == math.prod(shape)
        if not isinstance(dtype, _Dtype) or fortran or not sizes_fit:
            raise pickle.UnpicklingError("an array that is not plain bytes of the stated shape")
        self.value = np.frombuffer(data, dtype=np.uint8).reshape(shape)


class _Dtype:
    """Stands for numpy's dtype; only bytes are known."""

    def __init__(self, kind: str, *_: Any) -> None:
        kind = kind.decode("latin1") if isinstance(kind, bytes) else kind
        if kind not in ("u1", "uint8"):
            raise pickle.UnpicklingError(f"an array of {kind!r}, but images are bytes, 'u1'")

    def __setstate__(self, state: Any) -> None:
        del state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, not latin1")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    """Knows plain containers, numbers and text, and stands-in for byte arrays; nothing it knows does anything."""

    def find_class(self, module: str, name: str, /) -> Any:
        if module in NUMPY and name == "_reconstruct":
            return _reconstruct
        if module in NUMPY and name == "ndarray":
            return _Array
        if module in NUMPY and name == "dtype":
            return _Dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data file has no need of")


def _plain(value: Any) -> Any:
    """Return the value with stands-in replaced by their arrays and byte strings by text."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle of plain values and byte arrays, as CIFAR is distributed.

    Nothing that the file names is imported or called: anything but containers, numbers, text and uint8 arrays is
    refused.

    Raises:
        ValueError: the file is damaged, or holds anything else.
    """
    try:
        value = _plain(_Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load())
    except OSError:
        raise
    except Exception as error:
        # A damaged pickle is a program gone astray: it fails with almost any exception.
        raise ValueError(
            f"{path} is damaged or no data file of CIFAR ({type(error).__name__}: {error}); get it again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} instead of a dictionary; it is no data file of CIFAR")
    return value
