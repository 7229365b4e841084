"""Opening a data set by its name or by its place, whatever layout it has."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shiftnorm.data import cifar, digit_sets, domains, imagenet
from shiftnorm.data.archive import SUFFIXES, default_cache
from shiftnorm.data.dataset import Dataset
from shiftnorm.data.decode import import_pillow
from shiftnorm.data.folders import picture_folder
from shiftnorm.data.labelled_files import Reading, list_folder
from shiftnorm.data.locate import is_archive, unpacked
from shiftnorm.data.pixels import load_array
from shiftnorm.data.provenance import Provenance
from shiftnorm.data.sources import SOURCES, download_dataset

__all__ = ["DATASETS", "default_root", "open_dataset"]

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class _Reader:
    """The function that reads a data set, and the splits it has."""

    read: Callable[..., Dataset | None]
    splits: tuple[str, ...] = ("test",)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the reader's own options."""
        kinds = inspect.signature(self.read).parameters.values()
        return tuple(each.name for each in kinds if each.kind is each.KEYWORD_ONLY and each.name != "name")


_PARTS = ("train", "test")
_READERS: dict[str, _Reader] = {
    "cifar10": _Reader(cifar.cifar, _PARTS),
    "cifar100": _Reader(cifar.cifar, _PARTS),
    "cifar10-c": _Reader(cifar.cifar_corrupted),
    "cifar100-c": _Reader(cifar.cifar_corrupted),
    "cifar10.1": _Reader(cifar.cifar10_1),
    "imagenet": _Reader(imagenet.imagenet, ("train", "val", "test")),
    "imagenet-c": _Reader(imagenet.imagenet_corrupted),
    "imagenet-v2": _Reader(imagenet.imagenet_v2),
    **{name: _Reader(imagenet.imagenet_relative) for name in imagenet.RELATIVES},
    **{name: _Reader(domains.published_domains, SPLITS) for name in domains.PUBLISHED},
    "mnist": _Reader(digit_sets.digit_set, _PARTS),
    "usps": _Reader(digit_sets.digit_set, _PARTS),
    "mnist-m": _Reader(digit_sets.mnist_m, _PARTS),
}
DATASETS: tuple[str, ...] = tuple(_READERS)
_FOLDER = _Reader(picture_folder, SPLITS)


def default_root() -> Path:
    """Return where named data sets are looked for: ``$SHIFTNORM_DATA``, else ``data`` in the cache.

    Example:
        >>> default_root().is_absolute()
        True
    """
    given = os.environ.get("SHIFTNORM_DATA", "")
    return Path(given).absolute() if given else default_cache() / "data"


def open_dataset(
    where: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    split: str = "test",
    *,
    preprocess: str = "auto",
    on_error: str = "raise",
    check: str = "quick",
    upright: bool | None = None,
    workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    download: bool = False,
    **options: Any,
) -> Dataset:
    """Open labelled images: a published data set by name, or any folder or archive of pictures by its path.

    A folder may be ``CLASS/FILE``, ``SPLIT/CLASS/FILE`` (train, test, val) or ``DOMAIN/CLASS/FILE``; files that are
    not inside a class folder, and hidden ones, do not belong to it. The published files of CIFAR (also -C and 10.1),
    MNIST and USPS are recognised by their names. Small images (CIFAR, digits) are held in memory;
    others are decoded when they are asked for. Nothing is downloaded unless asked for.

    Of every file the first frame is read; palettes, CMYK and grey become RGB, 16 bits become 8.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from shiftnorm.data import open_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for domain in ("photo", "sketch"):
        ...         for name in ("cat", "dog"):
        ...             (Path(folder) / domain / name).mkdir(parents=True)
        ...             Image.new("RGB", (40, 32)).save(Path(folder) / domain / name / "1.png")
        ...     pets = open_dataset(folder)
        ...     pets.domains, pets.classes, pets.labels.tolist(), pets.images([0, 3]).shape
        (('photo', 'sketch'), ('cat', 'dog'), [0, 1, 0, 1], torch.Size([2, 3, 32, 40]))

    Args:
        where: a name in `DATASETS`, or the path of a folder or archive (.tar, .tar.gz, .tar.xz, .tar.bz2, .zip).
        root: where a named data set lies: its folder or archive, or a folder around it; None is `default_root`.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``, as far as the data set has them. Of domains, ``test``
            is everything unless lists say otherwise.
        preprocess: a name such as ``"resize256-crop224"`` (see `parse_preprocess`), ``"none"``, or ``"auto"``: what is
            usual for a named set, else as the images are if all have one size and resize256-crop224 if not. It is
            named in the provenance.
        on_error: with a damaged file or an empty class, ``"raise"``, or ``"skip"`` it and list it in
            `Dataset.skipped`.
        check: how to look for damage before anything is computed: ``"quick"`` looks at the header and end of every
            file, ``"full"`` decodes every file, ``"none"`` trusts them.
        upright: turn photos upright as the camera noted and put transparency on white; None does so for folders, but
            not for named data sets, whose published numbers were made without.
        workers: processes that a full check decodes with.
        cache: where archives are unpacked; by default ``$XDG_CACHE_HOME/shiftnorm`` or ``~/.cache/shiftnorm``.
        download: get a missing data set first, if it can be downloaded.
        options: of the data set: ``domain`` (one name or several), ``corruption`` and ``severity``, ``version``
            (CIFAR-10.1), ``variant`` (ImageNet-V2), ``labels`` (``"fine"`` or ``"coarse"``, CIFAR-100), ``wnids`` (the
            classes behind a model's outputs, ImageNet's relatives), ``layout`` (``"classes"`` or ``"domains"``, of
            folders).

    Returns:
        The data set.

    Raises:
        FileNotFoundError: it is not there; the message says what must lie where, and where to get it.
        NotADirectoryError: a file that is no archive.
        PermissionError: a folder may not be read.
        TypeError: an option that the data set does not have.
        ValueError: damaged files, empty or doubled classes, a split or value that does not exist, images of several
            sizes.
        ImportError: Pillow is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"open_dataset: split must be one of {', '.join(SPLITS)}, got {split!r}")
    name = str(where)
    if isinstance(where, str) and name in SOURCES and name not in _READERS:
        raise ValueError(
            f"open_dataset: {name} holds sequences without labels, not images: shiftnorm.data.open_sequences({name!r}) "
            f"reads them, and shiftnorm evaluate MODEL --data {name} measures a model on them"
        )
    # A Path is always a place, also one that is called like a data set.
    named = isinstance(where, str) and name in _READERS
    reading = Reading(
        preprocess,
        on_error,
        check,
        workers,
        None if cache is None else Path(cache),
        named if upright is None else not upright,
    )
    import_pillow()
    if not named:
        return _open_path(Path(where), root, split, reading, options)
    reader = _READERS[name]
    _check_options(name, reader, split, options)
    place = default_root() if root is None else Path(root)
    dataset = reader.read(place, split, reading, name=name, **options)
    if dataset is None and download:
        # Of ImageNet-C only the archive that holds the corruption: all are 66 GB.
        corruption = options.get("corruption")
        download_dataset(name, place, only=imagenet.archive_of(corruption) if name == "imagenet-c" else None)
        dataset = reader.read(place, split, reading, name=name, **options)
    if dataset is None:
        source = SOURCES[name]
        wanted = ", ".join([name, f"split={split!r}", *(f"{option}={value!r}" for option, value in options.items())])
        how = "or pass download=True" if source.files or source.torchvision else "it cannot be downloaded by a program"
        raise FileNotFoundError(
            f"open_dataset: no {wanted} in {place}; expected there: {source.layout}. Get it from "
            f"{source.instructions}, {how}; or say where it lies with root= or $SHIFTNORM_DATA"
        )
    return _of_archive(dataset, reading)


def _open_path(
    path: Path, root: str | os.PathLike[str] | None, split: str, reading: Reading, options: dict[str, Any]
) -> Dataset:
    if root is not None:
        raise TypeError(f"open_dataset: root= belongs to a named data set, and {str(path)!r} is taken as a path")
    name = path.absolute().name.split(".tar")[0].removesuffix(".zip")
    if not path.exists():
        close = difflib.get_close_matches(str(path).lower(), DATASETS, n=1)
        hint = f"; did you mean the data set {close[0]!r}?" if close else "."
        raise FileNotFoundError(
            f"open_dataset: there is nothing at {path}, and no data set has that name{hint} Known names: "
            f"{', '.join(DATASETS)}"
        )
    if not path.is_dir() and not is_archive(path):
        raise NotADirectoryError(
            f"open_dataset: {path} is a file; pass a folder, or an archive with one of the endings "
            f"{', '.join(SUFFIXES)}"
        )
    folder = path if path.is_dir() else unpacked(path, reading)
    if (known := _recognised(folder)) is not None:
        reader = _READERS[known]
        _check_options(known, reader, split, options)
        dataset = reader.read(folder, split, reading, name=known, **options)
        if dataset is None:
            raise FileNotFoundError(f"open_dataset: {folder} looks like {known}, but holds no {split!r} part of it")
        return _of_archive(dataset, reading)
    _check_options(name, _FOLDER, split, options)
    return _of_archive(picture_folder(folder, split, reading, name=name, **options), reading)


def _recognised(folder: Path) -> str | None:
    """Return the name of the published set whose files, which are no pictures, lie in a folder."""
    files = {entry.name for entry in list_folder(folder)}
    if files & {"data_batch_1", "test_batch", "cifar-10-batches-py"}:
        return "cifar10"
    if "cifar-100-python" in files or ({"train", "test", "meta"} <= files and (folder / "meta").is_file()):
        return "cifar100"
    if "labels.npy" in files:
        return "cifar10-c" if load_array(folder / "labels.npy").max(initial=0) < 10 else "cifar100-c"
    if any(name.startswith("cifar10.1_") for name in files):
        return "cifar10.1"
    sets = {name.split("-")[0] for name in files if "-images-idx3-ubyte" in name}
    # A folder with several sets of digits has to be asked for by name.
    return "usps" if sets == {"usps"} else "mnist" if sets and sets <= {"mnist", "train", "t10k"} else None


def _of_archive(dataset: Dataset, reading: Reading) -> Dataset:
    """Let the provenance tell of the archive instead of the folder in the cache that it was unpacked into."""
    source = dataset.provenance
    for folder, archive in reading.archives.items():
        if source.path.is_relative_to(folder):
            return replace(dataset, provenance=Provenance(archive, (archive,), source.notes))
    return dataset


def _check_options(name: str, reader: _Reader, split: str, options: dict[str, Any]) -> None:
    if strangers := sorted(options.keys() - set(reader.options)):
        known = f"its options are {', '.join(reader.options)}" if reader.options else "it has no options"
        raise TypeError(f"open_dataset: {name} has no option {strangers[0]!r}; {known}")
    if split not in reader.splits:
        raise ValueError(f"open_dataset: {name} has no split {split!r}, only {', '.join(reader.splits)}")
