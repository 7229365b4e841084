"""Folders of small pictures for the tests of the readers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (40, 32), seed: int = 0) -> Path:
    """Save a picture whose pixels the seed decides; a path that ends in .png keeps them exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def tree(root: Path, names: Iterable[str], size: tuple[int, int] = (40, 32)) -> Path:
    """Save one picture, each with its own pixels, under every name."""
    for seed, name in enumerate(names):
        picture(root / name, size, seed)
    return root


def pixels_of(path: Path) -> np.ndarray:
    """Return a picture as (3, H, W)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def bomb(width: int = 60000, height: int = 60000) -> bytes:
    """Return a PNG of few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
