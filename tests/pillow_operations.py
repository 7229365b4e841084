"""AugMix's operations as the authors do them: with Pillow, on one image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

BILINEAR = Image.Resampling.BILINEAR
AFFINE = Image.Transform.AFFINE


def whole(level: float, largest: float) -> int:
    return int(level * largest / 10)


def by_pillow(name: str, image: Image.Image, level: float, negative: bool) -> Image.Image:
    """What the authors do with Pillow, at a given level and sign."""
    sign, (width, height) = -1 if negative else 1, image.size
    if name in ("autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    if name == "posterize":
        return ImageOps.posterize(image, 4 - whole(level, 4))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - whole(level, 256))
    if name == "rotate":
        return image.rotate(sign * whole(level, 30), resample=BILINEAR)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return getattr(ImageEnhance, name.capitalize())(image).enhance(level * 1.8 / 10 + 0.1)
    matrix = {
        "shear_x": (1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "translate_x": (1, 0, sign * whole(level, width / 3), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * whole(level, height / 3)),
    }[name]
    return image.transform((width, height), AFFINE, matrix, resample=BILINEAR)


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
