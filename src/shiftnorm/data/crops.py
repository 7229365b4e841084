"""Random parts of images, scaled to one size, as batched tensor operations and for files on the disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.dataset import _Selected
from shiftnorm.data.decode import UnreadableImage, decode_image, image_tensor, import_pillow
from shiftnorm.data.pixels import Failure, FilePixels, Pixels

__all__ = ["CropDraw", "CroppedFiles", "crop_boxes", "crop_files", "draw_crops", "resize_crops"]

ATTEMPTS = 10


class CropDraw(NamedTuple):
    """The random numbers of a crop for each image: areas and shapes to try, and the place.

    Example:
        >>> draw_crops(Stream(0, "resized_crop", 0, torch.arange(4))).places.shape
        torch.Size([4, 2])
    """

    areas: Tensor
    ratios: Tensor
    places: Tensor


def draw_crops(
    stream: Stream, *, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> CropDraw:
    """Draw what torchvision's ``RandomResizedCrop`` draws, for each image of a stream.

    Example:
        >>> draw = draw_crops(Stream(0, "resized_crop", 0, torch.arange(4)))
        >>> bool((draw.areas >= 0.08).all() and (draw.areas <= 1).all())
        True

    Args:
        stream: the source of the draws.
        scale: smallest and largest part of the area, uniform between them.
        ratio: smallest and largest width divided by height, uniform in its logarithm.

    Returns:
        ``areas`` and ``ratios`` (N, 10) float64, one for each attempt, and ``places`` (N, 2) in [0, 1).

    Raises:
        ValueError: if a range is empty or not positive, or an area above 1.
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"draw_crops: expected 0 < scale <= 1 and 0 < ratio, smaller first, got scale={scale}, ratio={ratio}."
        )
    low, high = math.log(ratio[0]), math.log(ratio[1])
    areas = stream.uniform(ATTEMPTS).double().mul_(scale[1] - scale[0]).add_(scale[0])
    ratios = stream.uniform(ATTEMPTS).double().mul_(high - low).add_(low).exp_()
    return CropDraw(areas, ratios, stream.uniform(2).double())


def crop_boxes(draw: CropDraw, height: int, width: int, *, ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Tensor:
    """The boxes that a draw means in images of one size.

    The first attempt that fits is taken; where none does, the largest box in the middle with a ratio in the range.

    Example:
        >>> draw = CropDraw(torch.tensor([[0.25]]), torch.tensor([[1.0]]), torch.tensor([[0.0, 0.5]]))
        >>> crop_boxes(draw, 32, 32)
        tensor([[ 0,  8, 16, 16]])

    Args:
        draw: from `draw_crops`.
        height: of the images.
        width: of the images.
        ratio: as it was drawn with.

    Returns:
        (N, 4) int64: top, left, height, width.
    """
    areas = draw.areas * (height * width)
    wide = (areas * draw.ratios).sqrt_().round_().long()
    high = (areas / draw.ratios).sqrt_().round_().long()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.int().argmax(1, keepdim=True)
    high, wide = high.gather(1, first), wide.gather(1, first)
    room = torch.cat([height + 1 - high, width + 1 - wide], 1)
    boxes = torch.cat([(draw.places * room).long(), high, wide], 1)
    # Column by column, because a tensor of these numbers would have to be copied to the device.
    missing = ~fits.any(1)
    last = _largest_box(height, width, ratio)
    return torch.stack([column.masked_fill(missing, last[i]) for i, column in enumerate(boxes.unbind(1))], 1)


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    high, wide = height, width
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def _weights(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(N, size, source): rows that resample ``length`` pixels from ``start`` on to ``size``, antialiased."""
    scale = (length.double() / size)[:, None]
    reach = scale.clamp(min=1)
    centres = (torch.arange(size, device=start.device) + 0.5) * scale
    places = torch.arange(source, device=start.device) - start[:, None]
    inside = (places >= 0) & (places < length[:, None])
    distances = (places[:, None] + 0.5 - centres[:, :, None]).abs_().div_(reach[:, :, None])
    weights = (1 - distances).clamp_(min=0).mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True)).float()


def resize_crops(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and scale it to a square, bilinear and antialiased, as Pillow does.

    Along rows first, then along columns, rounded after each. Pillow's result differs by at most one level: which axis
    comes first there depends on its version and the sizes, and its fixed point breaks ties otherwise.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        >>> resize_crops(images, torch.tensor([[1, 1, 2, 2]]), 2)
        tensor([[[[ 5,  6],
                  [ 9, 10]]]], dtype=torch.uint8)

    Args:
        images: (N, C, H, W) uint8.
        boxes: (N, 4) int64, as `crop_boxes` returns them.
        size: side of the results.

    Returns:
        (N, C, size, size) uint8.

    Raises:
        ValueError: if images or boxes have another form, or size is below 1.
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or boxes.shape != (len(images), 4) or size < 1:
        raise ValueError(
            "resize_crops: expected (N, C, H, W) uint8 images, (N, 4) boxes and size >= 1, "
            f"got {tuple(images.shape)} {images.dtype}, {tuple(boxes.shape)}, size {size}."
        )
    n, channels, height, width = images.shape
    top, left, high, wide = boxes.to(images.device).unbind(1)
    # Half precision, which a trainer may have switched on around this, would lose levels.
    with torch.autocast(images.device.type, enabled=False):
        across = _weights(left, wide, width, size).transpose(1, 2)
        x = images.reshape(n, channels * height, width).float().bmm(across)
        x = x.add_(0.5).floor_().view(n, channels, height, size).transpose(1, 2).reshape(n, height, channels * size)
        x = _weights(top, high, height, size).bmm(x)
    x = x.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return x.view(n, size, channels, size).transpose(1, 2).contiguous()


class CroppedFiles:
    """Image files of any size, of which a random part is read, scaled to one size: the training images of an epoch.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from shiftnorm.data.preprocess import Preprocess
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (50, 40)).save(Path(folder) / "a.png")
        ...     files = FilePixels([Path(folder) / "a.png"], Preprocess())
        ...     CroppedFiles(files, torch.arange(1), size=32, seed=0, epoch=0).read(torch.tensor([0]))[0].shape
        torch.Size([1, 3, 32, 32])

    Args:
        files: the files; how they preprocess pictures is not used.
        chosen: (N,) int64, which of the files these images are.
        size: side of the images.
        seed: of the draws.
        epoch: of the draws.
    """

    def __init__(self, files: FilePixels, chosen: Tensor, *, size: int, seed: int, epoch: int) -> None:
        self.files, self.chosen, self.size, self.seed, self.epoch = files, chosen, size, seed, epoch

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: Tensor) -> tuple[Tensor, list[Failure]]:
        """Decode, cut and scale the images at ``indices``; which part depends on (seed, epoch, index) alone.

        Example:
            >>> from shiftnorm.data.preprocess import Preprocess
            >>> nowhere = FilePixels([Path("nowhere.png")], Preprocess())
            >>> files = CroppedFiles(nowhere, torch.arange(1), size=32, seed=0, epoch=0)
            >>> files.read(torch.tensor([0]))[1][0].reason
            'it does not exist; a broken link?'
        """
        draw = draw_crops(Stream(self.seed, "resized_crop", self.epoch, indices))
        bilinear = import_pillow().Resampling.BILINEAR
        images, failures = [torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)], list[Failure]()
        for position, file in enumerate(self.chosen[indices].tolist()):
            path = self.files.paths[file]
            try:
                picture = decode_image(Path(path), as_stored=self.files.as_stored)
            except UnreadableImage as error:
                failures.append(Failure(position, path, str(error)))
                continue
            one = CropDraw(*(part[position : position + 1] for part in draw))
            top, left, high, wide = crop_boxes(one, picture.height, picture.width)[0].tolist()
            box = (left, top, left + wide, top + high)
            images.append(image_tensor(picture.crop(box).resize((self.size, self.size), bilinear))[None])
        return torch.cat(images), failures


def crop_files(pixels: Pixels, *, size: int, seed: int, epoch: int) -> CroppedFiles | None:
    """Random parts of the image files that a data set reads, or None where it reads something else.

    Example:
        >>> from shiftnorm.data.pixels import TensorPixels
        >>> crop_files(TensorPixels(torch.zeros(2, 3, 8, 8).byte()), size=8, seed=0, epoch=0) is None
        True

    Args:
        pixels: of a `shiftnorm.data.Dataset`.
        size: side of the images.
        seed: of the draws.
        epoch: of the draws.
    """
    chosen = torch.arange(len(pixels))
    if isinstance(pixels, _Selected):
        pixels, chosen = pixels.pixels, pixels.chosen
    return CroppedFiles(pixels, chosen, size=size, seed=seed, epoch=epoch) if isinstance(pixels, FilePixels) else None
