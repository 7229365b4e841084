"""Image files to RGB pictures, whatever their mode."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImage(ValueError):
    """An image file that cannot be turned into a picture; the message says why."""


def import_pillow() -> ModuleType:
    """Return ``PIL.Image``, or say how to install it."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError(
            "load_folder needs Pillow to decode images; install it with: pip install 'shiftnorm[train]'"
        ) from error
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


def decode_image(path: Path) -> Image:
    """Return the first frame of an image file as RGB, upright, transparency on white, 16 bits scaled to 8.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, no image, too large, not permitted to be read, or of a
            mode without a known range.
    """
    pillow = import_pillow()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow also warns about odd metadata, which does not matter; above its size limit it must refuse.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            if path.stat().st_size == 0:
                raise UnreadableImage("the file is empty")
            with pillow.open(path) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
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
