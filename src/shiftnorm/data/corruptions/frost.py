"""Frost: a picture of ice on glass added to a weakened image.

The published sets use photographs that are not part of this package: ``frost`` needs a directory with them.
``frost_procedural`` uses pictures made by computation instead, with the same colours, contrast and spectra; it is not
the same corruption, and so has a name of its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.frost_plates import plates

__all__ = ["CORRUPTIONS", "PHOTOS", "FrostDraw", "Overlays", "frost_from_photos", "lay_frost"]

# The authors list a sixth and draw from five. The second and the third are the same picture.
PHOTOS: tuple[str, ...] = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
PLATE_OF_PHOTO = (0, 1, 1, 2, 3)
ELSEWHERE = "use 'frost_procedural', which needs no files but is not the frost of CIFAR-C and ImageNet-C"


class FrostDraw(NamedTuple):
    """Which part of which photograph lies on each image; all (N,) int64, as the authors draw them.

    Example:
        >>> frost = CORRUPTIONS[1]
        >>> stream = Stream(0, frost.name, 1, torch.arange(4))
        >>> draw = frost.sample(stream, torch.Size([4, 3, 32, 32]), frost.constant("cifar32", severity=1))
        >>> draw.photo.shape, bool((draw.photo < 5).all())
        (torch.Size([4]), True)
    """

    photo: Tensor
    row: Tensor
    column: Tensor


class Overlays(NamedTuple):
    """The pictures of frost that crops are taken from.

    Example:
        >>> black = torch.zeros(1, 3, 50, 60, dtype=torch.uint8)
        >>> overlays = Overlays(black, (0, 0, 0, 0, 0), torch.tensor([[18, 28]] * 5))
        >>> overlays.crops(FrostDraw(*torch.tensor([[4], [17], [27]])), 32, 32).shape
        torch.Size([1, 3, 32, 32])
    """

    pictures: Tensor
    """(P, 3, H, W) uint8; smaller ones are filled up below and on the right."""
    of_photo: tuple[int, ...]
    """Which of the pictures stands for each of the five photographs."""
    starts: Tensor
    """(5, 2): how many rows and columns there are at which a crop from the photograph can start."""

    def crops(self, draw: FrostDraw, height: int, width: int) -> Tensor:
        """The parts of the pictures that were drawn.

        Example:
            >>> ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 4, 256)
            >>> overlays = Overlays(ramp, (0, 0, 0, 0, 0), torch.tensor([[2, 253]] * 5))
            >>> overlays.crops(FrostDraw(*torch.tensor([[0], [1], [7]])), 2, 3)[0, 0].tolist()
            [[7, 8, 9], [7, 8, 9]]

        Args:
            draw: for N images.
            height: of the images.
            width: of the images.

        Returns:
            (N, 3, height, width) uint8.
        """
        windows = self.pictures.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
        picture = torch.tensor(self.of_photo, device=draw.photo.device)[draw.photo]
        return windows[picture, draw.row, draw.column]


# (height, width, factor by which the pictures are resized, device) → the pictures to crop from
Source = Callable[[int, int, float, torch.device], Overlays]


def _resized(picture: Tensor, factor: float) -> Tensor:
    """A picture (3, H, W) resized without smoothing, between neighbours, as OpenCV does."""
    for axis in (1, 2):
        size = picture.shape[axis]
        # A fifth takes every fifth pixel as it is.
        middles = torch.arange(round(size * factor), dtype=torch.float64) + 0.5
        position = (middles * (1 / factor) - 0.5).clamp(0, size - 1)
        lower = position.long()
        share = (position - lower).view([-1, 1] if axis == 1 else [-1])
        upper = (lower + 1).clamp(max=size - 1)
        picture = picture.index_select(axis, lower) * (1 - share) + picture.index_select(axis, upper) * share
    return (picture + 0.5).floor().to(torch.uint8)


def _overlays_of(photos: list[Tensor], height: int, width: int, factor: float, device: torch.device) -> Overlays:
    fitting = []
    for photo in photos:
        # Beyond the published sizes: a photograph too small for the image is enlarged, with a tenth to spare.
        covering = 1.1 * max((height + 1) / photo.shape[1], (width + 1) / photo.shape[2])
        fits = round(photo.shape[1] * factor) > height and round(photo.shape[2] * factor) > width
        scale = factor if fits else covering
        fitting.append(photo if scale == 1 else _resized(photo, scale))
    starts = torch.tensor([[picture.shape[1] - height, picture.shape[2] - width] for picture in fitting])
    rows, columns = (max(picture.shape[axis] for picture in fitting) for axis in (1, 2))
    filled = [F.pad(picture, (0, columns - picture.shape[2], 0, rows - picture.shape[1])) for picture in fitting]
    return Overlays(torch.stack(filled).to(device), tuple(range(len(photos))), starts.to(device))


@functools.lru_cache(maxsize=4)
def _photo_overlays(
    files: tuple[tuple[str, int, int], ...], height: int, width: int, factor: float, device: torch.device
) -> Overlays:
    from shiftnorm.data.decode import UnreadableImage, decode_image

    photos = []
    for file, _, _ in files:
        try:
            image = decode_image(Path(file), as_stored=True)
        except UnreadableImage as error:
            raise ValueError(f"frost: cannot read {file}: {error}; copy it again, or {ELSEWHERE}") from error
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        photos.append(pixels.view(image.height, image.width, 3).movedim(2, 0))
    return _overlays_of(photos, height, width, factor, device)


@functools.lru_cache(maxsize=4)
def _made_overlays(height: int, width: int, factor: float, device: torch.device) -> Overlays:
    pictures = plates() if factor == 1 else torch.stack([_resized(plate, factor) for plate in plates()])
    rows, columns = pictures.shape[2:]
    # They are tori: a crop may start anywhere, and be of any size.
    around_rows, around_columns = (torch.arange(n + side - 1) % n for n, side in ((rows, height), (columns, width)))
    pictures = pictures[:, :, around_rows][:, :, :, around_columns]
    starts = torch.tensor([[rows, columns]] * len(PHOTOS))
    return Overlays(pictures.to(device), PLATE_OF_PHOTO, starts.to(device))


def _sample(source: Source, stream: Stream, shape: torch.Size, constant: tuple[float, ...]) -> FrostDraw:
    overlays = source(shape[2], shape[3], constant[2], stream.device)
    photo = stream.integers(0, len(PHOTOS), 1)[:, 0]
    # As many rows and columns as the photograph drawn has: random bits times their number, without the lower bits.
    place = (stream.integers(0, 2**31, 2) * overlays.starts[photo]) >> 31
    return FrostDraw(photo, place[:, 0], place[:, 1])


def _apply(source: Source, x: Tensor, constant: tuple[float, ...], draw: FrostDraw) -> Tensor:
    height, width = x.shape[2:]
    overlays = source(height, width, constant[2], x.device)
    return lay_frost(x, constant, overlays.crops(draw, height, width))


def lay_frost(x: Tensor, constant: tuple[float, ...], overlays: Tensor) -> Tensor:
    """Images under frost: (weight of the image) · x + (weight of the frost) · overlay, in whole levels.

    Example:
        >>> images, ice = torch.full((1, 3, 8, 8), 100 / 255), torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
        >>> float(lay_frost(images, (0.85, 0.4, 0.2), ice)[0, 0, 0, 0] * 255)
        165.0

    Args:
        x: (N, 3, H, W) in [0, 1], of whole levels k / 255.
        constant: the two weights; the third number, the factor that resizes the pictures, is not used here.
        overlays: (N, 3, H, W) uint8.

    Returns:
        (N, 3, H, W) in [0, 1], of whole levels, cut off as the authors do.
    """
    # Sums are whole levels so often that only the authors' double precision cuts them off as the authors do.
    precise = torch.float32 if x.device.type == "mps" else torch.float64
    levels = (x * 255).round_().to(precise).mul_(constant[0])
    levels.add_(overlays.to(precise).mul_(constant[1]))
    return levels.clamp_(0, 255).floor_().to(x.dtype).div_(255)


def frost_from_photos(frost_dir: str | os.PathLike[str]) -> Corruption:
    """The frost of CIFAR-C and ImageNet-C, with the photographs in a directory.

    A photograph is drawn from five with equal chances, then the row and the column of the crop. For the small sets the
    photograph is first made smaller, as the authors do. For images larger than a photograph, which no published set
    has, the photograph is enlarged until it covers the image, with a tenth to spare.

    Example:
        >>> frost_from_photos("no_photos_here")
        Traceback (most recent call last):
        ...
        FileNotFoundError: frost: frost_dir has to hold frost1.png, frost2.png, ... missing in no_photos_here: ...

    Args:
        frost_dir: a directory with frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg as in the authors'
            repository (hendrycks/robustness, ImageNet-C/create_c). They are read at the first use and when they change.

    Returns:
        The corruption ``frost``.

    Raises:
        FileNotFoundError: if one of the five is missing.
        ValueError: when it is used: if one of the five cannot be read.
    """
    directory = Path(frost_dir)
    missing = [name for name in PHOTOS if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"frost: frost_dir has to hold {', '.join(PHOTOS)} as in the authors' repository (hendrycks/robustness, "
            f"ImageNet-C/create_c); missing in {directory}: {', '.join(missing)}; copy them there, or {ELSEWHERE}"
        )
    status = [(directory / name).stat() for name in PHOTOS]
    files = tuple(
        (str(directory / name), each.st_mtime_ns, each.st_size) for name, each in zip(PHOTOS, status, strict=True)
    )
    source = functools.partial(_photo_overlays, files)
    return Corruption(
        "frost", "weather", functools.partial(_sample, source), functools.partial(_apply, source), CONSTANTS["frost"]
    )


def _no_photos(height: int, width: int, factor: float, device: torch.device) -> Overlays:
    raise ValueError(
        f"frost: the photographs of the published sets are not part of this package; pass frost_dir=, a directory with "
        f"{', '.join(PHOTOS)} from the authors' repository, or {ELSEWHERE}"
    )


CORRUPTIONS = tuple(
    Corruption(
        name, "weather", functools.partial(_sample, source), functools.partial(_apply, source), CONSTANTS["frost"]
    )
    for name, source in (("frost", _no_photos), ("frost_procedural", _made_overlays))
)
