"""Where a data set's pixels lie: in memory, in a .npy file, or in image files decoded when they are asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from shiftnorm.data.decode import UnreadableImage, decode_image, image_tensor, inspect_image
from shiftnorm.data.preprocess import STANDARD, Preprocess

__all__ = ["ArrayPixels", "Failure", "FilePixels", "Pixels", "TensorPixels"]


class Failure(NamedTuple):
    """An image that could not be read: its position among those asked for, its file and the reason.

    Example:
        >>> from shiftnorm.data.pixels import Failure
        >>> Failure(3, "cats/3.jpg", "the file is empty").reason
        'the file is empty'
    """

    position: int
    path: str
    reason: str


class Pixels(Protocol):
    """What a data set reads its images from."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, indices: Tensor) -> tuple[Tensor, list[Failure]]:
        """Return the images at ``indices`` that can be read, (N, 3, H, W) uint8, and the others as failures."""
        ...


class TensorPixels:
    """Images in memory.

    Example:
        >>> import torch
        >>> from shiftnorm.data.pixels import TensorPixels
        >>> pixels = TensorPixels(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
        >>> len(pixels), pixels.read(torch.tensor([4, 0]))[0].shape
        (5, torch.Size([2, 3, 8, 8]))

    Args:
        images: (N, 3, H, W) uint8.

    Raises:
        ValueError: for another shape or dtype.
    """

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"TensorPixels: images must be (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
            )
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> tuple[Tensor, list[Failure]]:
        """Return a copy of the images at ``indices``; nothing can fail.

        Example:
            >>> TensorPixels(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)).read(torch.tensor([1]))[1]
            []
        """
        return self.images[indices], []


class ArrayPixels:
    """Rows of a ``.npy`` file of (N, H, W, 3) uint8 images, read from the disk as they are asked for.

    Example:
        >>> import tempfile
        >>> from shiftnorm.data.pixels import ArrayPixels
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "fog.npy"
        ...     np.save(file, np.zeros((50, 8, 8, 3), dtype=np.uint8))
        ...     pixels = ArrayPixels(file, range(40, 50))
        ...     len(pixels), tuple(pixels.read(torch.arange(4))[0].shape)
        (10, (4, 3, 8, 8))

    Args:
        path: the file.
        rows: which of its images; None takes all.

    Raises:
        ValueError: the file is truncated, no array file, or holds something else than such images.
    """

    def __init__(self, path: Path, rows: range | None = None) -> None:
        self.path = path
        self._array = load_array(path)
        if self._array.ndim != 4 or self._array.shape[-1] != 3 or self._array.dtype != np.uint8:
            raise ValueError(f"{path} must hold (N, H, W, 3) uint8 images, got {self._array.shape} {self._array.dtype}")
        self.rows = range(len(self._array)) if rows is None else rows
        if len(self.rows) and not 0 <= self.rows[0] <= self.rows[-1] < len(self._array):
            raise ValueError(f"{path} holds {len(self._array)} images, not the rows {self.rows[0]} to {self.rows[-1]}")

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # Made anew in every worker process: a mapped array would be copied.
        return type(self), (self.path, self.rows)

    def read(self, indices: Tensor) -> tuple[Tensor, list[Failure]]:
        """Return the images at ``indices``; nothing can fail, since the file was checked when it was opened.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     np.save(Path(folder) / "fog.npy", np.full((2, 8, 8, 3), 7, dtype=np.uint8))
            ...     ArrayPixels(Path(folder) / "fog.npy").read(torch.tensor([1]))[0].unique()
            tensor([7], dtype=torch.uint8)
        """
        chosen = self._array[np.asarray(self.rows, dtype=np.int64)[indices.numpy()]]
        return torch.from_numpy(chosen).permute(0, 3, 1, 2).contiguous(), []


class FilePixels:
    """Image files, decoded and preprocessed when they are asked for.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from shiftnorm.data.pixels import FilePixels
        >>> from shiftnorm.data.preprocess import Preprocess
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     whole, broken = Path(folder) / "a.png", Path(folder) / "b.png"
        ...     Image.new("RGB", (50, 40)).save(whole)
        ...     _ = broken.write_bytes(b"")
        ...     images, failures = FilePixels([whole, broken], Preprocess(resize=36, crop=32)).read(torch.arange(2))
        >>> tuple(images.shape), failures[0].reason
        ((1, 3, 32, 32), 'the file is empty')

    Args:
        paths: the files.
        preprocess: applied to each picture.
        as_stored: see `shiftnorm.data.decode.decode_image`.
    """

    def __init__(self, paths: list[Path], preprocess: Preprocess, *, as_stored: bool = True) -> None:
        # As text, which is a third of the size and pickles fast to worker processes.
        self.paths = [str(path) for path in paths]
        self.preprocess, self.as_stored = preprocess, as_stored

    def __len__(self) -> int:
        return len(self.paths)

    def inspect(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image after preprocessing, from its header.

        Example:
            >>> import tempfile
            >>> from PIL import Image
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Image.new("RGB", (50, 40)).save(Path(folder) / "a.png")
            ...     FilePixels([Path(folder) / "a.png"], Preprocess()).inspect(0)
            (40, 50)

        Raises:
            UnreadableImage: if the file cannot be read, as far as that shows without decoding it.
        """
        width, height = self.preprocess.resized(*inspect_image(Path(self.paths[index]), as_stored=self.as_stored))
        crop = self.preprocess.crop
        return (height, width) if crop is None else (crop, crop)

    def read(self, indices: Tensor) -> tuple[Tensor, list[Failure]]:
        """Decode the images at ``indices``.

        Example:
            >>> FilePixels([Path("nowhere.png")], Preprocess()).read(torch.tensor([0]))[1][0].reason
            'it does not exist; a broken link?'

        Raises:
            ValueError: the images differ in size.
        """
        images: list[Tensor] = []
        names: list[str] = []
        failures: list[Failure] = []
        for position, index in enumerate(indices.tolist()):
            path = self.paths[index]
            try:
                image = image_tensor(self.preprocess(decode_image(Path(path), as_stored=self.as_stored)))
            except UnreadableImage as error:
                failures.append(Failure(position, path, str(error)))
                continue
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{names[0]} is {images[0].shape[2]}x{images[0].shape[1]} and {path} "
                    f"{image.shape[2]}x{image.shape[1]} after preprocess={self.preprocess.name!r}; images of a batch "
                    f"must have one size: pass, for instance, preprocess={STANDARD!r}"
                )
            images.append(image)
            names.append(path)
        return torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8), failures


def load_array(path: Path) -> np.ndarray:
    """Map a ``.npy`` file into memory, without ever unpickling.

    Raises:
        ValueError: the file is truncated or holds no plain array.
    """
    try:
        with warnings.catch_warnings():
            # NumPy warns of old headers, which it reads all the same
            warnings.simplefilter("ignore")
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise PermissionError(f"no permission to read {path}; change its mode") from error
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or holds no plain array ({error}); get it again") from error
