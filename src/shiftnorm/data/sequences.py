"""Perturbation sequences, the frames of CIFAR-10-P and ImageNet-P: arrays, videos, or folders of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from shiftnorm.data.catalogue import default_root
from shiftnorm.data.decode import UnreadableImage, decode_image, image_tensor
from shiftnorm.data.labelled_files import Reading, list_folder, peek
from shiftnorm.data.locate import is_archive, locate, unpacked
from shiftnorm.data.pixels import load_array
from shiftnorm.data.preprocess import Preprocess, parse_preprocess
from shiftnorm.data.provenance import Provenance, Skipped
from shiftnorm.data.sources import SOURCES, download_dataset
from shiftnorm.data.video import decode_video, import_av

__all__ = ["PERTURBATIONS", "SEQUENCE_SETS", "SequenceSet", "open_sequences", "sequence_layout"]

SEQUENCE_SETS: Final[dict[str, int]] = {"cifar10-p": 10, "imagenet-p": 1000}
"""The published sets by name, with the number of classes a model of them has."""
PERTURBATIONS: Final = (
    *("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness"),
    *("translate", "rotate", "tilt", "scale", "speckle_noise", "gaussian_blur", "spatter", "shear"),
)
"""The perturbations of the published sets; noise has a second and third difficulty, such as gaussian_noise_2."""

VIDEOS: Final = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_DIFFICULTY: Final = re.compile(r"_[23]$")
_Item = Path | int


@final
@dataclass(frozen=True, eq=False)
class SequenceSet:
    """Sequences of frames by perturbation; they have no labels, since only changes of the prediction are counted.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "tilt.npy", np.zeros((4, 31, 32, 32, 3), np.uint8))
        >>> found = open_sequences(folder)
        >>> found.perturbations, found.count("tilt"), [tuple(frames.shape) for frames in found.read("tilt", limit=1)]
        (('tilt',), 4, [(31, 3, 32, 32)])

    Args:
        name: what tables and reports call it.
        path: where it lies.
        layout: ``"arrays"``, ``"videos"`` or ``"frames"``.
        places: the file or folder of every perturbation.
        preprocess: of frames that are pictures.
        on_error: with a sequence that cannot be read, ``"raise"``, or ``"skip"`` it and list it in ``skipped``.
        classes: how many outputs a model for it has; None where it is not known.
        skipped: what was left out.
    """

    name: str
    path: Path
    layout: str
    places: dict[str, Path]
    preprocess: Preprocess
    on_error: str = "raise"
    classes: int | None = None
    skipped: list[Skipped] = field(default_factory=list[Skipped])

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Names of the perturbations that are there, those of a higher difficulty with ``_2`` or ``_3``.

        Example:
            >>> SequenceSet("p", Path("p"), "arrays", {"tilt": Path("p/tilt.npy")}, Preprocess()).perturbations
            ('tilt',)
        """
        return tuple(self.places)

    def count(self, perturbation: str) -> int:
        """How many sequences a perturbation has.

        Example:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> np.save(folder / "tilt.npy", np.zeros((4, 31, 32, 32, 3), np.uint8))
            >>> open_sequences(folder).count("tilt")
            4

        Raises:
            KeyError: it is not there.
            ValueError: its file is damaged.
        """
        return len(self._items(perturbation))

    def checksum(self, perturbation: str) -> str:
        """The checksum of a perturbation's files: of an array its contents, else of names and sizes.

        Example:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> np.save(folder / "tilt.npy", np.zeros((4, 31, 32, 32, 3), np.uint8))
            >>> open_sequences(folder).checksum("tilt")[:7]
            'sha256:'
        """
        place = self._place(perturbation)
        items = [item for item in self._items(perturbation) if isinstance(item, Path)]
        files = [file for item in items for file in (_pictures(item) if item.is_dir() else [item])]
        return Provenance(self.path, tuple(files) if self.layout != "arrays" else (place,)).checksum

    def read(self, perturbation: str, *, limit: int | None = None) -> Iterator[Tensor]:
        """Go through the sequences, each (frames, 3, H, W) uint8.

        Example:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> np.save(folder / "tilt.npy", np.zeros((4, 31, 32, 32, 3), np.uint8))
            >>> len(list(open_sequences(folder).read("tilt")))
            4

        Args:
            perturbation: its name.
            limit: at most so many, the first ones.

        Raises:
            KeyError: it is not there.
            UnreadableImage: a sequence cannot be read and ``on_error`` is ``"raise"``.
        """
        array = _open_array(self._place(perturbation)) if self.layout == "arrays" else None
        for item in self._items(perturbation)[:limit]:
            if array is not None and isinstance(item, int):
                yield torch.from_numpy(array[item].copy()).permute(0, 3, 1, 2)
                continue
            assert isinstance(item, Path)
            try:
                yield self._frames(item)
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise UnreadableImage(
                        f"{self.name}: cannot read {item}: {error}; repair or remove it, or leave such sequences out "
                        "with on_error='skip'"
                    ) from error
                if (lost := Skipped(str(item), str(error))) not in self.skipped:
                    self.skipped.append(lost)

    def _frames(self, item: Path) -> Tensor:
        if self.layout == "videos":
            pictures = decode_video(item)
        else:
            pictures = [decode_image(file, as_stored=True) for file in _pictures(item)]
        frames = [image_tensor(self.preprocess(each)) for each in pictures]
        if len(frames) < 2 or len({frame.shape for frame in frames}) > 1:
            raise UnreadableImage(
                f"a sequence needs two frames or more of one size, it has {len(frames)} of "
                f"{len({frame.shape for frame in frames})} sizes"
            )
        return torch.stack(frames)

    def _place(self, perturbation: str) -> Path:
        if perturbation not in self.places:
            raise KeyError(f"{self.name} in {self.path} has no {perturbation!r}; it has {', '.join(self.places)}")
        return self.places[perturbation]

    def _items(self, perturbation: str) -> Sequence[_Item]:
        place = self._place(perturbation)
        if self.layout == "arrays":
            return range(len(_open_array(place)))
        return _videos(place) if self.layout == "videos" else _picture_folders(place)

    def describe(self) -> dict[str, Any]:
        """Name, place and layout, as records keep them.

        Example:
            >>> SequenceSet("p", Path("p"), "arrays", {}, Preprocess()).describe()["layout"]
            'arrays'
        """
        return {
            "name": self.name,
            "path": str(self.path),
            "layout": self.layout,
            "preprocess": self.preprocess.name,
            "skipped": len(self.skipped),
            "skipped_files": [str(item) for item in self.skipped],
        }


def sequence_layout(folder: str | os.PathLike[str]) -> str | None:
    """Say whether a folder holds perturbation sequences, and how they lie.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> sequence_layout(folder)
        >>> np.save(folder / "tilt.npy", np.zeros((4, 31, 32, 32, 3), np.uint8))
        >>> sequence_layout(folder)
        'arrays'

    Args:
        folder: any; one that is not there has no layout.

    Returns:
        ``"arrays"`` for PERTURBATION.npy of five axes; ``"videos"`` for PERTURBATION/[CLASS/]FILE.mp4; ``"frames"`` for
        PERTURBATION/[CLASS/]SEQUENCE/FRAME, if every folder has the name of a published perturbation; else None.
    """
    path = Path(folder)
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        return None
    if any(holds_sequences(file) for file in sorted(path.glob("*.npy"))):
        return "arrays"
    folders = _perturbation_folders(path)
    if not folders:
        return None
    return "videos" if any(_videos(each, 1) for each in folders.values()) else "frames"


def holds_sequences(file: Path) -> bool:
    """Return whether an array has five axes; those of CIFAR-10-C have four, and the same names."""
    try:
        return load_array(file).ndim == 5
    except (ValueError, OSError):
        return False  # of a set that is named or pointed at, reading says what is wrong


def _perturbation_folders(path: Path) -> dict[str, Path]:
    """The folders of perturbations, maybe inside those of their groups, as the archives of ImageNet-P have them."""
    outer = peek(path)
    for level in (outer, [entry for folder in outer[:20] for entry in peek(folder)] if len(outer) <= 20 else []):
        found = {entry.name: entry for entry in level}
        if found and all(_DIFFICULTY.sub("", name) in PERTURBATIONS for name in found):
            return dict(sorted(found.items(), key=lambda item: _published_order(item[0])))
    return {}


def _published_order(name: str) -> tuple[int, str]:
    plain = _DIFFICULTY.sub("", name)
    return (PERTURBATIONS.index(plain) if plain in PERTURBATIONS else len(PERTURBATIONS), name)


def open_sequences(
    where: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    preprocess: str = "auto",
    on_error: str = "raise",
    cache: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> SequenceSet:
    """Open perturbation sequences by name or by place.

    Example:
        >>> open_sequences("imagenet-p", "nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: open_sequences: no imagenet-p in nowhere; expected there: PERTURBATION/WNID/FILE.mp4, ...

    Args:
        where: ``"cifar10-p"`` or ``"imagenet-p"``; or the path of a folder or archive with PERTURBATION.npy
            (sequences, frames, H, W, 3), PERTURBATION/[CLASS/]FILE.mp4, or PERTURBATION/[CLASS/]SEQUENCE/FRAME.
        root: where a named set lies: its folder or archive, or a folder around it; None is `default_root`.
        preprocess: of frames that are pictures, as `parse_preprocess` reads; ``"auto"`` is ``"none"``.
        on_error: with a sequence that cannot be read, ``"raise"``, or ``"skip"`` it and list it.
        cache: where archives are unpacked.
        download: get a missing named set first, if it can be downloaded.

    Returns:
        The sequences.

    Raises:
        FileNotFoundError: they are not there; the message says where to put them.
        ModuleNotFoundError: they are videos, and PyAV is not installed.
        NotADirectoryError: a file that is no archive.
        ValueError: a folder without such a layout, or an array of another shape.
    """
    reading = Reading("none", on_error, cache=None if cache is None else Path(cache))
    name = where if isinstance(where, str) and where in SEQUENCE_SETS else None
    if root is not None and name is None:
        raise TypeError(f"open_sequences: root= belongs to a named data set, and {str(where)!r} is taken as a path")
    if name is None:
        path = Path(where)
        if not path.exists():
            raise FileNotFoundError(
                f"open_sequences: there is nothing at {path}; known names: {', '.join(SEQUENCE_SETS)}"
            )
        if not path.is_dir() and not is_archive(path):
            raise NotADirectoryError(f"open_sequences: {path} is a file; pass a folder or an archive")
        path = path if path.is_dir() else unpacked(path, reading)
    else:
        place = default_root() if root is None else Path(root)
        wanted = ("arrays",) if name == "cifar10-p" else ("videos", "frames")
        archives = ("CIFAR-10-P.tar*",) if name == "cifar10-p" else ()

        def find() -> Path | None:
            return locate(place, lambda folder: sequence_layout(folder) in wanted, reading, archives=archives)

        found = find()
        if found is None and download:
            download_dataset(name, place)
            found = find()
        if found is None:
            source = SOURCES[name]
            raise FileNotFoundError(
                f"open_sequences: no {name} in {place}; expected there: {source.layout}. Get it from "
                f"{source.instructions}, or say where it lies with root= or $SHIFTNORM_DATA"
            )
        path = found
    layout = sequence_layout(path)
    if layout is None:
        raise ValueError(
            f"open_sequences: {path} holds no perturbation sequences: expected PERTURBATION.npy (sequences, frames, H, "
            "W, 3), PERTURBATION/[CLASS/]FILE.mp4 or PERTURBATION/[CLASS/]SEQUENCE/FRAME, with perturbations such as "
            f"{', '.join(PERTURBATIONS[:3])}"
        )
    if layout == "arrays":
        if preprocess not in ("auto", "none"):
            raise ValueError(f"open_sequences: {path} is read as it is stored; preprocess must be 'none'")
        stems = sorted((file.stem for file in path.glob("*.npy") if file.stem != "labels"), key=_published_order)
        places = {stem: path / f"{stem}.npy" for stem in stems}
        for file in places.values():
            _open_array(file)
    else:
        places = _perturbation_folders(path)
        if layout == "videos":
            import_av()
    steps = Preprocess() if preprocess == "auto" else parse_preprocess(preprocess)
    title = name or path.absolute().name
    classes = None if name is None else SEQUENCE_SETS[name]
    return SequenceSet(title, path, layout, places, steps, on_error, classes)


def _open_array(file: Path) -> np.ndarray:
    array = load_array(file)
    if array.ndim != 5 or array.shape[-1] != 3 or array.dtype != np.uint8 or array.shape[1] < 2 or not len(array):
        raise ValueError(
            f"open_sequences: {file} must hold (sequences, frames, H, W, 3) uint8 with two frames or more, got "
            f"{array.shape} {array.dtype}"
        )
    return array


def _videos(folder: Path, limit: int | None = None) -> list[Path]:
    """The videos in a folder and in its class folders; the first ones if not all are needed."""
    found: list[Path] = []
    for entry in list_folder(folder):
        found += _videos(entry, limit) if entry.is_dir() else [entry] if entry.suffix.lower() in VIDEOS else []
        if limit is not None and len(found) >= limit:
            return found[:limit]
    return found


def _picture_folders(folder: Path) -> list[Path]:
    """The innermost folders: those with files instead of folders."""
    inside = peek(folder)
    return [leaf for entry in inside for leaf in _picture_folders(entry)] if inside else [folder]


def _pictures(folder: Path) -> list[Path]:
    def natural(file: Path) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", file.stem)  # frame 10 after frame 9, also without leading zeros
        return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]

    return sorted((file for file in list_folder(folder) if file.is_file()), key=natural)
