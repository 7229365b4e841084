"""Opening corrupted images that lie in files, by name or by place, together with the clean ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from shiftnorm.data.archive import default_cache
from shiftnorm.data.catalogue import default_root, open_dataset
from shiftnorm.data.corrupted_origin import (
    check_size,
    noted_names,
    of_imagenet,
    published_arrays,
    published_pictures,
)
from shiftnorm.data.corrupted_set import CorruptedSet, align, image_keys
from shiftnorm.data.corruptions import COMMON, EXTRA, SEVERITIES
from shiftnorm.data.dataset import Dataset
from shiftnorm.data.imagenet import CORRUPTIONS as ARCHIVED
from shiftnorm.data.imagenet import Wnids
from shiftnorm.data.labelled_files import DEBRIS, Reading, peek
from shiftnorm.data.locate import find_file, is_archive, locate, unpacked
from shiftnorm.data.made_folder import MANIFEST, read_manifest
from shiftnorm.data.preprocess import parse_preprocess
from shiftnorm.data.sequences import holds_sequences
from shiftnorm.data.sources import SOURCES, download_dataset

__all__ = ["CORRUPTED", "corrupted_layout", "open_corrupted"]

CORRUPTED: Final[dict[str, str]] = {"cifar10-c": "cifar10", "cifar100-c": "cifar100", "imagenet-c": "imagenet"}
"""The published sets by name, with the sets they were made from."""

_LEVELS: Final = tuple(map(str, SEVERITIES))
_LABELS: Final = "labels.npy"
GROUPS: Final = 20
_Find = Callable[[Path], Path | None]
_Read = Callable[[str, int, str], Dataset]


def corrupted_layout(folder: str | os.PathLike[str]) -> str | None:
    """Say whether a folder holds corrupted images, and how they lie.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "fog" / "3" / "cat").mkdir(parents=True)
        >>> corrupted_layout(root), corrupted_layout(root / "fog" / "3")
        ('imagenet-c', None)

    Args:
        folder: any; one that is not there or may not be read has no layout.

    Returns:
        ``"cifar-c"`` for CORRUPTION.npy beside labels.npy, ``"imagenet-c"`` for CORRUPTION/SEVERITY/CLASS/FILE, maybe
        with one more folder around the corruptions of a group; else None.
    """
    path = Path(folder)
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        return None
    arrays = {file.stem for file in path.glob("*.npy")}
    known = sorted(arrays & {*COMMON, *EXTRA}) or (sorted(arrays - {"labels"}) if (path / MANIFEST).is_file() else [])
    if known and not holds_sequences(path / f"{known[0]}.npy"):
        return "cifar-c"
    return "imagenet-c" if _corruption_folders(path) else None


def _corruption_folders(path: Path) -> dict[str, Path]:
    """The folders CORRUPTION, all of whose folders are called by severities and hold class folders."""
    outer = peek(path)
    found = {entry.name: entry for entry in outer if _severities(entry)}
    # ImageNet-C's archives have a folder each around their corruptions; a set of photographs has many folders.
    if not found and len(outer) <= GROUPS:
        found = {entry.name: entry for folder in outer for entry in peek(folder) if _severities(entry)}
    return found


def _severities(folder: Path) -> tuple[int, ...]:
    """The severities of a corruption's folder; none as soon as something else lies there, which may be many files."""
    found: list[int] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in DEBRIS:
                    continue
                if entry.name not in _LEVELS or not entry.is_dir():
                    return ()
                if _holds_folder(entry.path):
                    found.append(int(entry.name))
    except PermissionError:
        return ()
    return tuple(sorted(found))


def _holds_folder(path: str) -> bool:
    with os.scandir(path) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def open_corrupted(
    where: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    clean: Dataset | str | os.PathLike[str] | None = None,
    on_missing: str = "raise",
    preprocess: str = "auto",
    on_error: str = "raise",
    wnids: Wnids = None,
    cache: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> CorruptedSet:
    """Open images that were corrupted before: every corruption and severity that is there, and the clean ones.

    Example:
        >>> import tempfile, torch
        >>> from shiftnorm.data.materialise import corrupt_folder
        >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 64, 64).byte(), torch.tensor([0, 0, 1, 1]), ("a", "b"))
        >>> made = corrupt_folder(pets, Path(tempfile.mkdtemp()) / "c", corruptions=["fog"], severities=[3])
        >>> open_corrupted(made.folder, clean=pets).present
        {'fog': (3,)}

    Args:
        where: ``"cifar10-c"``, ``"cifar100-c"`` or ``"imagenet-c"``; or the path of a folder or archive with
            CORRUPTION.npy and labels.npy, or with CORRUPTION/SEVERITY/CLASS/FILE.
        root: where a named set lies: its folder or archive, or a folder around it; None is `default_root`.
        clean: the images it was made from: a data set, or its name or path. None looks for the original of a published
            set in ``root``, beside the folder and in `default_root`.
        on_missing: of corruptions that are asked for and not there, ``"raise"``, or ``"skip"`` and name them.
        preprocess: of the corrupted images: as for `open_dataset`, but ``"auto"`` is ``"none"``, since they were
            resized before they were corrupted.
        on_error: with an image that cannot be read, ``"raise"``, or ``"skip"`` it in every cell.
        wnids: the classes behind a model's outputs, where there are fewer than ImageNet's 1000.
        cache: where archives are unpacked.
        download: get a missing named set first, if it can be downloaded: all of it, of ImageNet-C 66 GB.

    Returns:
        The set.

    Raises:
        FileNotFoundError: it is not there, or its clean images are not; the message says where to put them.
        NotADirectoryError: a file that is no archive.
        TypeError: a clean set of another kind.
        ValueError: a folder without such a layout, damaged files, or clean images that are not those it was made from.
    """
    name = where if isinstance(where, str) and where in CORRUPTED else None
    reading = Reading("none", on_error, cache=None if cache is None else Path(cache))
    place = (default_root() if root is None else Path(root)) if name else Path(where)
    if root is not None and name is None:
        raise TypeError(f"open_corrupted: root= belongs to a named data set, and {str(where)!r} is taken as a path")
    path = _find_named(name, place, reading, download) if name else _find_path(place, reading)
    layout = corrupted_layout(path)
    if layout == "cifar-c" and not (path / _LABELS).is_file():
        raise FileNotFoundError(f"open_corrupted: {path / _LABELS} is missing beside the other files; put it there")
    made = read_manifest(path) if (path / MANIFEST).is_file() else None
    if layout == "cifar-c":
        present, read = _of_arrays(name, path, made, preprocess)
        published = name or (published_arrays(read(next(iter(present)), 1, "none")) if present else None)
        origin = None if published is None else CORRUPTED[published]
    elif name is not None or of_imagenet(_first_classes(path), wnids):
        present, read = _of_wnids(path, reading, preprocess, wnids)
        published = name or ("imagenet-c" if published_pictures(_first_classes(path)) else None)
        origin = "imagenet"
    else:
        present, read = _levels_of(path), _pictures(path, on_error, preprocess)
        published = origin = None
    if not present:
        raise ValueError(f"open_corrupted: {path} holds no corruption; expected CORRUPTION.npy or CORRUPTION/SEVERITY/")
    if made is not None and origin is None and made.get("data", {}).get("name") in CORRUPTED.values():
        origin = made["data"]["name"]
    label = name or path.absolute().name.split(".tar")[0]
    sample = next((each, levels[0], "none") for each, levels in present.items())
    cell = read(*sample)
    whole = _clean(clean, origin, path, root, wnids, on_error, _preprocess_of(made))
    if layout == "cifar-c" and published is None and made is None:
        read = _with_classes(read, whole.classes)
        cell = read(*sample)
    names = None if made is None or layout == "cifar-c" else noted_names(whole, made, label)
    aligned, chosen = align(whole, cell, label, names=names)
    held = cell if chosen is None else cell.subset(chosen)
    check_size(aligned, held, label, whole.name)
    return CorruptedSet(
        label,
        path,
        present,
        read,
        aligned,
        on_missing=on_missing,
        published=published if made is None else None,
        made=None if made is None else {**made["identity"], "frost": made.get("frost")},
        notes=_notes(path, preprocess, made, whole, aligned),
        chosen=chosen,
        on_error=on_error,
        preprocess="none" if preprocess == "auto" else parse_preprocess(preprocess).name,
        keys=None if names is None else tuple(image_keys(held, held.files()) or ()),
    )


def _find_path(path: Path, reading: Reading) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"open_corrupted: there is nothing at {path}")
    if not path.is_dir() and not is_archive(path):
        raise NotADirectoryError(f"open_corrupted: {path} is a file; pass a folder or an archive")
    folder = path if path.is_dir() else unpacked(path, reading)
    if corrupted_layout(folder) is None:
        raise ValueError(
            f"open_corrupted: {path} holds no corrupted images: expected CORRUPTION.npy and {_LABELS}, or "
            "CORRUPTION/SEVERITY/CLASS/FILE with severities 1 to 5"
        )
    return folder


def _find_named(name: str, place: Path, reading: Reading, download: bool) -> Path:
    """The folder of a published set."""
    found = _look_for(name, place, reading)
    if found is None and download:
        download_dataset(name, place)
        found = _look_for(name, place, reading)
    if found is None:
        source = SOURCES[name]
        raise FileNotFoundError(
            f"open_corrupted: no {name} in {place}; expected there: {source.layout}. Get it from "
            f"{source.instructions}, or say where it lies with root= or $SHIFTNORM_DATA"
        )
    return found


def _look_for(name: str, place: Path, reading: Reading) -> Path | None:
    if name == "imagenet-c":
        archives = place.is_dir() and any(find_file(place, (each,)) for each in set(ARCHIVED.values()))
        return place if archives else locate(place, lambda folder: bool(_corruption_folders(folder)), reading)
    own, other = ("CIFAR-10-C", "cifar-100-c") if name == "cifar10-c" else ("CIFAR-100-C", "cifar-10-c")
    return locate(
        place,
        lambda folder: corrupted_layout(folder) == "cifar-c" and folder.name.lower() != other,
        reading,
        archives=(f"{own}.tar*",),
    )


def _levels_of(path: Path) -> dict[str, tuple[int, ...]]:
    return {
        name: _severities(folder) for name, folder in sorted(_corruption_folders(path).items(), key=_published_order)
    }


def _published_order(item: tuple[str, Any]) -> tuple[int, str]:
    order = (*COMMON, *EXTRA)
    return (order.index(item[0]) if item[0] in order else len(order), item[0])


def _first_classes(path: Path) -> list[Path]:
    folder = next(iter(_corruption_folders(path).values()), None)
    if folder is None:
        return []
    return peek(folder / str(_severities(folder)[0]))


def _with_classes(read: _Read, classes: tuple[str, ...]) -> _Read:
    """Arrays have no names of classes; where it is not CIFAR, they are those of the clean images."""

    def named(corruption: str, severity: int, check: str) -> Dataset:
        cell = read(corruption, severity, check)
        return cell if len(classes) <= int(cell.labels.max()) else replace(cell, classes=classes)

    return named


def _of_arrays(name: str | None, path: Path, made: Any, preprocess: str) -> tuple[Any, _Read]:
    if preprocess not in ("auto", "none"):
        raise ValueError(f"open_corrupted: {path} is read as it is stored; preprocess must be 'none'")
    files = sorted((file.stem, file) for file in path.glob("*.npy") if file.name != _LABELS)
    present = {stem: tuple(SEVERITIES) for stem, _ in sorted(files, key=_published_order)}
    classes = None if made is None else tuple(made.get("data", {}).get("classes", ())) or None

    def read(corruption: str, severity: int, check: str) -> Dataset:
        del check  # the shape of an array is looked at whenever it is opened
        where, root = (name, path) if name else (path, None)
        cell = open_dataset(where, root, corruption=corruption, severity=severity)
        # What was made from other images has other classes than CIFAR.
        return cell if classes is None or len(classes) <= int(cell.labels.max()) else replace(cell, classes=classes)

    return present, read


def _of_wnids(path: Path, reading: Reading, preprocess: str, wnids: Wnids) -> tuple[Any, _Read]:
    present = _levels_of(path)
    for each, archive in sorted(ARCHIVED.items(), key=_published_order):
        if each not in present and find_file(path, (archive,)) is not None:
            present[each] = tuple(SEVERITIES)
    options: dict[str, Any] = {} if wnids is None else {"wnids": wnids}

    def read(corruption: str, severity: int, check: str) -> Dataset:
        return open_dataset(
            "imagenet-c",
            path,
            preprocess="none" if preprocess == "auto" else preprocess,
            on_error=reading.on_error,
            check=check,
            cache=reading.cache or default_cache(),
            corruption=corruption,
            severity=severity,
            **options,
        )

    return present, read


def _pictures(path: Path, on_error: str, preprocess: str) -> _Read:
    folders = _corruption_folders(path)

    def read(corruption: str, severity: int, check: str) -> Dataset:
        return open_dataset(
            folders[corruption] / str(severity),
            preprocess="none" if preprocess == "auto" else preprocess,
            on_error=on_error,
            check=check,
        )

    return read


def _preprocess_of(made: Any) -> dict[str, Any]:
    """What the images were opened with before `shiftnorm corrupt` corrupted them, if it noted that."""
    noted = None if made is None else made.get("data", {}).get("preprocess")
    return {} if noted is None else {"preprocess": noted}


def _clean(
    clean: Any, named: str | None, path: Path, root: Any, wnids: Wnids, on_error: str, noted: dict[str, Any]
) -> Dataset:
    if isinstance(clean, Dataset):
        return clean
    if clean is not None and not isinstance(clean, str | os.PathLike):
        raise TypeError(
            f"open_corrupted: expected clean to be a Dataset, a name or a path, got {type(clean).__name__}."
        )
    matched = named == "imagenet" and wnids is not None
    options: dict[str, Any] = {**noted, **({"wnids": wnids} if matched else {})}
    if clean is not None and clean not in CORRUPTED.values():
        # The val folder of ImageNet is a folder like others; only as ImageNet its classes are matched to outputs.
        if matched:
            return open_dataset("imagenet", clean, on_error=on_error, **options)
        return open_dataset(clean, on_error=on_error, **options)
    named = named if clean is None else str(clean)
    places = [Path(root)] if root is not None else [path.parent, default_root()]
    for place in places if named is not None else ():
        try:
            return open_dataset(str(named), place, on_error=on_error, **options)
        except FileNotFoundError:
            continue
    wanted = f"no {named} in {' or '.join(map(str, places))}" if named else f"{path} does not say where they are"
    raise FileNotFoundError(
        f"open_corrupted: the clean error needs the images as they were before corruption, and {wanted}. Give them by "
        f"clean=..., the {SOURCES[named].layout if named else 'folder'} that the corrupted images were made from."
    )


def _notes(path: Path, preprocess: str, made: Any, whole: Dataset, aligned: Dataset) -> tuple[str, ...]:
    steps = "none" if preprocess == "auto" else preprocess
    notes = [f"The corrupted images were read from files in {path}, not made here; preprocessed by {steps}."]
    notes.append(f"The clean images are {whole.name} in {whole.provenance.path}.")
    if made is not None:
        identity = made["identity"]
        notes.append(
            f"The files were made by shiftnorm corrupt with the strengths {identity.get('constants')}, storage "
            f"{identity.get('storage')} and seed {identity.get('seed')}."
        )
    if len(aligned) < len(whole):
        notes.append(f"Of the {len(whole):,} clean images the {len(aligned):,} were taken that the corrupted set has.")
    return tuple(notes)
