"""Image files to RGB pictures, whatever their mode."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# The EXIF tag of the camera's orientation, and its values that exchange width and height.
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
# What a complete file ends with, and how many of its last bytes to look through.
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
TAIL = 32


class UnreadableImage(ValueError):
    """An image file that cannot be turned into a picture; the message says why."""


def import_pillow() -> ModuleType:
    """Return ``PIL.Image``, or say how to install it."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("decoding images needs Pillow; install it with: pip install 'shiftnorm[train]'") from error
    return PIL.Image


def _to_rgb(image: Image) -> Image:
    pillow = import_pillow()
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit values from {values.min()} to {values.max()} have no known range; save as 8 bits")
        return pillow.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point values have no known range; save as 8 bits")
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary and must not reach a network.
        image = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _explained(path: Path) -> Iterator[ModuleType]:
    """Turn whatever decoding a damaged file raises into the reason why it cannot be read."""
    pillow = import_pillow()
    try:
        with warnings.catch_warnings():
            # Pillow also warns about odd metadata, which does not matter; above its size limit it must refuse.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            if path.stat().st_size == 0:
                raise UnreadableImage("the file is empty")
            yield pillow
    except UnreadableImage:
        raise
    except pillow.UnidentifiedImageError as error:
        raise UnreadableImage("not an image, or of a format Pillow does not know") from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise UnreadableImage(f"more than {pillow.MAX_IMAGE_PIXELS} pixels: a decompression bomb?") from error
    except PermissionError as error:
        raise UnreadableImage("no permission to read it") from error
    except FileNotFoundError as error:
        raise UnreadableImage("it does not exist; a broken link?") from error
    except Exception as error:
        # Decoders meet damaged files with almost any exception: OSError, SyntaxError, struct.error, zlib.error, …
        raise UnreadableImage(f"damaged or not supported ({error})") from error


def decode_image(path: Path, *, as_stored: bool = False) -> Image:
    """Return the first frame of an image file as RGB, upright, transparency on white, 16 bits scaled to 8.

    Args:
        path: the file.
        as_stored: turn nothing upright and drop transparency, as torchvision's loader does and as the published
            numbers of benchmark data sets were made.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, no image, too large, not permitted to be read, or of a
            mode without a known range.
    """
    with _explained(path) as pillow:
        from PIL import ImageOps

        with pillow.open(path) as image:
            if as_stored and image.mode not in (*SIXTEEN_BIT, "F"):
                return image.convert("RGB")
            return _to_rgb(image if as_stored else ImageOps.exif_transpose(image))


def inspect_image(path: Path, *, as_stored: bool = False) -> tuple[int, int]:
    """Return (width, height) from an image's header, having looked for the damage that shows without decoding.

    Finds missing, empty, forbidden, oversized and truncated files and files that are no images. Damage in the middle
    of the data shows only when the image is decoded.

    Raises:
        UnreadableImage: as `decode_image`.
    """
    with _explained(path) as pillow, pillow.open(path) as image:
        # Of the mode without a range too, which decoding would refuse.
        suspicious = image.mode in ("I", "F")
        size, kind = image.size, image.format
        # Without the note in the header, Pillow would decode a whole PNG to look for it behind the pixels.
        noted = kind != "PNG" or "exif" in image.info
        if not as_stored and noted and image.getexif().get(ORIENTATION) in TURNED:
            size = size[::-1]
        if kind in ENDINGS:
            with path.open("rb") as file:
                file.seek(-min(path.stat().st_size, TAIL), os.SEEK_END)
                suspicious |= ENDINGS[kind] not in file.read()
    if suspicious:
        # Some writers pad their files, so that a missing end mark is only a reason to look closer.
        decode_image(path, as_stored=as_stored)
    return size


def jpeg_quality(path: Path) -> int | None:
    """Return the quality a JPEG file was saved with, None for another format or tables of its own.

    Raises:
        UnreadableImage: as `decode_image`.
    """
    with _explained(path) as pillow, pillow.open(path) as image:
        if image.format != "JPEG":
            return None
        return _qualities().get(tuple(tuple(table) for table in image.quantization.values()))


@cache
def _qualities() -> dict[tuple[tuple[int, ...], ...], int]:
    """Return the quality for every pair, or one, of libjpeg's quantisation tables."""
    pillow = import_pillow()
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for mode in ("RGB", "L"):
        for quality in range(1, 101):
            buffer = io.BytesIO()
            pillow.new(mode, (8, 8)).save(buffer, "JPEG", quality=quality)
            with pillow.open(buffer) as image:
                found[tuple(tuple(table) for table in image.quantization.values())] = quality
    return found


def fit_image(image: Image, size: int) -> Image:
    """Return the image with its shorter side scaled to ``size`` and the centre square cut out."""
    pillow = import_pillow()
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) == (size, size):
        return image
    return image.resize((size, size), pillow.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def image_tensor(image: Image) -> Tensor:
    """Return an RGB picture as a (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
