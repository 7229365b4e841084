"""Resizing and cropping pictures as published evaluations do it, named, so that tables can say which it was."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftnorm.data.decode import UnreadableImage, import_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Preprocess", "parse_preprocess"]

STANDARD = "resize256-crop224"
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """Resize, then cut out the centre: on the decoded picture, bit for bit what torchvision's transforms give.

    Example:
        >>> from PIL import Image
        >>> from shiftnorm.data.preprocess import Preprocess
        >>> standard = Preprocess(resize=256, crop=224)
        >>> standard.name, standard(Image.new("RGB", (640, 480))).size
        ('resize256-crop224', (224, 224))

    Args:
        resize: an int scales the shorter side to it, a pair (height, width) squashes the picture to it; None leaves
            the size as it is.
        crop: side of the centre square to cut out; None keeps all. A smaller picture gets a black border, as in
            torchvision.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"nearest"`` or ``"lanczos"``; all but nearest antialiased.

    Raises:
        ValueError: a size below 1, or an unknown interpolation.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sides = [self.crop, *(self.resize if isinstance(self.resize, tuple) else (self.resize,))]
        if any(side is not None and side < 1 for side in sides):
            raise ValueError(f"Preprocess: sizes must be at least 1, got resize={self.resize}, crop={self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"Preprocess: interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}"
            )

    @property
    def name(self) -> str:
        """What reports call it; `parse_preprocess` reads it back.

        Example:
            >>> Preprocess(resize=(224, 224)).name, Preprocess(crop=224).name, Preprocess().name
            ('resize224x224', 'crop224', 'none')
        """
        steps = []
        if self.resize is not None:
            sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
            steps.append("resize" + "x".join(map(str, sides)))
            if self.interpolation != "bilinear":
                steps.append(self.interpolation)
        if self.crop is not None:
            steps.append(f"crop{self.crop}")
        return "-".join(steps) or "none"

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing, before the crop.

        Example:
            >>> Preprocess(resize=256, crop=224).resized(640, 480)
            (341, 256)

        Raises:
            UnreadableImage: if that picture would be as large as a decompression bomb.
        """
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = sorted((width, height))
        longer = int(self.resize * long / short)
        if (limit := import_pillow().MAX_IMAGE_PIXELS) is not None and longer * self.resize > limit:
            raise UnreadableImage(f"{width}x{height} would have more than {limit} pixels after {self.name}")
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def __call__(self, image: Image) -> Image:
        """Return the resized and cropped picture."""
        pillow = import_pillow()
        size = self.resized(*image.size)
        if size != image.size:
            image = image.resize(size, pillow.Resampling[self.interpolation.upper()])
        if self.crop is None:
            return image
        left, top = (self._offset(side) for side in image.size)
        # Outside the picture Pillow's crop is black, and torchvision pads with zeros.
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _offset(self, side: int) -> int:
        assert self.crop is not None
        # torchvision pads by the floor of half of what is missing, but cuts at the rounded half of what is too much.
        return round((side - self.crop) / 2) if side >= self.crop else -((self.crop - side) // 2)


def parse_preprocess(text: str) -> Preprocess:
    """Read a name such as ``none``, ``resize256-crop224``, ``resize248-bicubic-crop224`` or ``resize224x224``.

    Example:
        >>> parse_preprocess("resize248-bicubic-crop224")
        Preprocess(resize=248, crop=224, interpolation='bicubic')

    Raises:
        ValueError: if the text is no such name.
    """
    steps = f"(?:resize([0-9]+)(?:x([0-9]+))?(?:-({'|'.join(INTERPOLATIONS)}))?)?(?:(?:^|-)crop([0-9]+))?"
    match = re.fullmatch(steps, "" if text == "none" else text)
    if match is None or not text:
        raise ValueError(
            f"preprocess must look like 'none', {STANDARD!r}, 'resize248-bicubic-crop224', 'resize224x224' or "
            f"'crop224', got {text!r}"
        )
    first, second, interpolation, crop = match.groups()
    resize = None if first is None else int(first) if second is None else (int(first), int(second))
    return Preprocess(resize, None if crop is None else int(crop), interpolation or "bilinear")
