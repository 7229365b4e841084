"""What the files of corrupted copies are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shiftnorm.data.dataset import Dataset
from shiftnorm.data.labelled_files import class_key

JPEG_ENDINGS = (".jpg", ".jpeg")


def _safe(name: str) -> str:
    """The name without what would end a line of the checksums or lead into another folder."""
    cleaned = "".join("_" if character in "/\\\r\n\0" else character for character in name)
    return cleaned if cleaned.strip(".") else f"_{cleaned}"


def made_names(dataset: Dataset, *, as_jpeg: bool) -> list[str]:
    """For every image its file, relative to CORRUPTION/SEVERITY; one that two images would have gets the number too."""
    ending = ".JPEG" if as_jpeg else ".png"
    classes = [_safe(each) for each in dataset.classes]
    if len({class_key(each) for each in classes}) < len(classes):
        raise ValueError("corrupt: two class names differ only in spelling or in signs that no file name can have.")
    folders = classes
    labels: Sequence[int] = dataset.labels.tolist()
    if dataset.domains is not None and dataset.domain_labels is not None:
        folders = [f"{_safe(domain)}/{each}" for domain in dataset.domains for each in classes]
        labels = (dataset.domain_labels * len(classes) + dataset.labels).tolist()
    paths = dataset.files()
    names: list[str] = []
    taken: set[str] = set()
    for place, (label, number) in enumerate(zip(labels, dataset.numbers.tolist(), strict=True)):
        file = Path(paths[place]) if paths else Path(f"{number:08d}")
        keeps = file.suffix.lower() in (JPEG_ENDINGS if ending == ".JPEG" else (ending,))
        stem, suffix = _safe(file.stem), file.suffix if keeps else ending
        name = f"{folders[label]}/{stem}{suffix}"
        while name.casefold() in taken:
            stem = f"{stem}-{number:08d}"
            name = f"{folders[label]}/{stem}{suffix}"
        taken.add(name.casefold())
        names.append(name)
    return names
