"""Lists of labelled image files to data sets, with one policy for damaged files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.data.dataset import NAMED, Dataset
from shiftnorm.data.decode import UnreadableImage, jpeg_quality
from shiftnorm.data.pixels import FilePixels
from shiftnorm.data.preprocess import STANDARD, Preprocess, parse_preprocess
from shiftnorm.data.provenance import Provenance, Skipped

# Left behind by desktops; no user put them there.
DEBRIS = ("thumbs.db", "desktop.ini", "__macosx")
CHECKS = ("none", "quick", "full")


class LabelledFile(NamedTuple):
    """An image file with its class and domain as numbers."""

    path: Path
    label: int
    domain: int = 0


@dataclass(frozen=True)
class Reading:
    """How files are read: preprocessing, and what happens with damaged ones.

    Args:
        preprocess: a name as `parse_preprocess` reads, or ``"auto"``: as the images are if all have one size, else the
            standard of ImageNet.
        on_error: ``"raise"`` or ``"skip"``.
        check: ``"quick"`` looks at every file's header and end, ``"full"`` decodes every file, ``"none"`` looks at
            nothing.
        workers: processes that a full check decodes with.
        cache: where archives are unpacked; None is the user's cache.
        as_stored: decode as torchvision's loader does, not upright and on white.
        archives: filled with the archives that were unpacked, by the folders they were unpacked into.
    """

    preprocess: str = "auto"
    on_error: str = "raise"
    check: str = "quick"
    workers: int = 0
    cache: Path | None = None
    as_stored: bool = True
    archives: dict[Path, Path] = field(default_factory=dict[Path, Path])

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"open_dataset: on_error must be 'raise' or 'skip', got {self.on_error!r}")
        if self.check not in CHECKS:
            raise ValueError(f"open_dataset: check must be one of {', '.join(CHECKS)}, got {self.check!r}")
        if self.preprocess != "auto":
            parse_preprocess(self.preprocess)
        elif self.check == "none":
            raise ValueError(
                "open_dataset: preprocess='auto' looks at the size of every image, which check='none' forbids; name "
                f"the preprocessing, for instance preprocess={STANDARD!r} or 'none'"
            )

    def unless_given(self, preprocess: str) -> Reading:
        """Return the same with ``preprocess`` in place of ``"auto"``."""
        return replace(self, preprocess=preprocess) if self.preprocess == "auto" else self


def list_folder(folder: Path, who: str = "open_dataset") -> list[Path]:
    """Return a folder's visible entries, sorted.

    Raises:
        PermissionError: it may not be read.
    """
    try:
        entries = list(folder.iterdir())
    except PermissionError as error:
        raise PermissionError(f"{who}: no permission to read the folder {folder}; change its mode") from error
    return sorted(entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in DEBRIS)


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders inside a folder, sorted."""
    return [entry for entry in list_folder(folder) if entry.is_dir()]


def peek(folder: Path) -> list[Path]:
    """Return the folders inside a folder, none if it may not be read: for looking around, not for reading."""
    try:
        return subfolders(folder)
    except PermissionError:
        return []


def files_below(folder: Path, who: str = "open_dataset") -> list[Path]:
    """Return the visible files in a folder and the folders inside it, sorted."""
    files: list[Path] = []
    for entry in list_folder(folder, who):
        files += files_below(entry, who) if entry.is_dir() and not entry.is_symlink() else [entry]
    return files


def class_key(name: str) -> str:
    """Return what two spellings of one class have in common: not case, how accents are encoded, nor spaces around."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def refuse_duplicates(named: Iterable[tuple[str, Path]], who: str = "open_dataset") -> None:
    """Raise if names differ only in case, encoding or spaces around, as two spellings of one class do.

    Args:
        named: names of classes, each with the folder that has it; a class may lie in several folders.
        who: what the error begins with.

    Raises:
        ValueError: naming the two.
    """
    seen: dict[str, tuple[str, Path]] = {}
    for name, where in named:
        before, place = seen.setdefault(class_key(name), (name, where))
        if before == name:
            continue
        if place == where:
            said = f"{before!r} and {name!r} of {where} differ only in spelling; merge or rename them"
        else:
            said = f"{before!r} of {place} and {name!r} of {where} differ only in spelling; give both one name"
        raise ValueError(f"{who}: the class folders {said}")


def class_files(folder: Path, reading: Reading, skipped: list[Skipped]) -> dict[str, list[Path]]:
    """Return the files of every class folder; an empty or forbidden one is an error, or noted and kept as a class.

    Raises:
        ValueError: no class folders, an empty one, or two that differ only in spelling.
        PermissionError: a folder may not be read.
    """
    found: dict[str, list[Path]] = {}
    for entry in subfolders(folder):
        try:
            found[entry.name] = files_below(entry)
        except PermissionError:
            if reading.on_error == "raise":
                raise
            found[entry.name] = []
            skipped.append(Skipped(str(entry), "no permission to read the folder"))
            continue
        if not found[entry.name]:
            if reading.on_error == "raise":
                raise ValueError(
                    f"open_dataset: no files in the class folder {entry}; add images, remove the folder, or keep the "
                    "empty class with on_error='skip'"
                )
            skipped.append(Skipped(str(entry), "an empty class"))
    if not found:
        raise ValueError(
            f"open_dataset: no class folders in {folder}; put the images into one folder per class, "
            f"{folder.name}/CLASS/FILE"
        )
    refuse_duplicates((name, folder) for name in found)
    return found


def dataset_of_files(
    name: str,
    root: Path,
    files: Sequence[LabelledFile],
    classes: Sequence[str],
    reading: Reading,
    *,
    domains: Sequence[str] | None = None,
    class_subset: Tensor | None = None,
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
) -> Dataset:
    """Make a data set of files, having looked for damage as ``reading`` says.

    Args:
        name: of the data set.
        root: what the user opened.
        files: in their order, which numbers the images.
        classes: names of the classes.
        reading: preprocessing and policy.
        domains: names of the domains, or None.
        class_subset: see `Dataset`.
        skipped: what was left out before.
        notes: for the provenance.

    Raises:
        ValueError: no image is left, images of several sizes, or a damaged one under ``on_error="raise"``.
    """
    left_out = list(skipped)
    kept = list(range(len(files)))
    preprocess = Preprocess() if reading.preprocess == "auto" else parse_preprocess(reading.preprocess)
    pixels = FilePixels([file.path for file in files], preprocess, as_stored=reading.as_stored)
    if reading.check != "none":
        sizes: dict[int, tuple[int, int]] = {}
        damaged: list[Skipped] = []
        for index, file in enumerate(files):
            try:
                sizes[index] = pixels.inspect(index)
            except UnreadableImage as error:
                damaged.append(Skipped(str(file.path), str(error)))
        different = Counter(sizes.values())
        if reading.preprocess == "auto" and len(different) > 1:
            preprocess = pixels.preprocess = parse_preprocess(STANDARD)
            for index, (height, width) in list(sizes.items()):
                try:
                    preprocess.resized(width, height)
                except UnreadableImage as error:
                    damaged.append(Skipped(str(files[index].path), str(error)))
                    del sizes[index]
        elif len(different) > 1:
            common = ", ".join(f"{count} of {w}x{h}" for (h, w), count in different.most_common(3))
            raise ValueError(
                f"open_dataset: the images of {root} have {len(different)} sizes ({common}, ...) after "
                f"preprocess={preprocess.name!r}, but a batch needs one; pass, for instance, preprocess={STANDARD!r}"
            )
        _refuse(name, damaged, len(files), reading)
        left_out += damaged
        kept = list(sizes)
    counts = Counter(files[index].label for index in kept)
    if not counts:
        raise ValueError(
            f"open_dataset: none of the {len(files)} files of {name!r} in {root} is an image that can be read"
            + (f", for instance {left_out[0]}" if left_out else "")
        )
    with_files = {file.label for file in files}
    left_out += [
        Skipped(classes[label], "a class none of whose files can be read") for label in sorted(with_files - set(counts))
    ]
    decoding = "decoded as stored" if reading.as_stored else "upright, transparency on white"
    encoding = () if reading.check == "none" else _encoding(files[kept[0]].path)
    dataset = Dataset(
        name,
        FilePixels([files[index].path for index in kept], preprocess, as_stored=reading.as_stored),
        torch.tensor([files[index].label for index in kept]),
        tuple(classes),
        torch.tensor(kept),
        Provenance(
            root,
            tuple(file.path for file in files),
            (*notes, *encoding, f"preprocess {preprocess.name}, {decoding}"),
        ),
        domains=None if domains is None else tuple(domains),
        domain_labels=None if domains is None else torch.tensor([files[index].domain for index in kept]),
        class_subset=class_subset,
        on_error=reading.on_error,
        skipped=left_out,
    )
    return fully_checked(dataset, reading.workers) if reading.check == "full" else dataset


def fully_checked(dataset: Dataset, workers: int) -> Dataset:
    """Decode every image once, and leave out or raise for those that cannot be read."""
    readable = [batch.indices for batch in dataset.batches(64, workers=workers)]
    if sum(map(len, readable)) == len(dataset):
        return dataset
    if not readable:
        raise ValueError(
            f"open_dataset: none of the {len(dataset)} images of {dataset.name!r} can be decoded, for instance "
            f"{dataset.skipped[-1]}"
        )
    return dataset.subset(torch.cat(readable))


def _encoding(path: Path) -> tuple[str, ...]:
    quality = jpeg_quality(path)
    return () if quality is None else (f"JPEG q{quality} (the first file)",)


def _refuse(name: str, damaged: list[Skipped], files: int, reading: Reading) -> None:
    if damaged and reading.on_error == "raise":
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise ValueError(
            f"open_dataset: {len(damaged)} of the {files} files of {name!r} cannot be read: "
            f"{'; '.join(map(str, damaged[:NAMED]))}{more}; repair or remove them, or leave such files out with "
            "on_error='skip'"
        )
