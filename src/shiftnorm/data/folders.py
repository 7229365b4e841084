"""Folders of pictures that no name is known for: classes, classes with a split, or domains of classes."""

from __future__ import annotations

from pathlib import Path

from shiftnorm.data.dataset import Dataset
from shiftnorm.data.domains import LIST_FOLDERS, domain_set
from shiftnorm.data.labelled_files import (
    LabelledFile,
    Reading,
    class_files,
    dataset_of_files,
    peek,
    refuse_duplicates,
    subfolders,
)
from shiftnorm.data.provenance import Skipped

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
SPLITS["val"] = ("val", "valid", "validation", "test", "testing")
ALL_SPLITS = SPLITS["train"] + SPLITS["test"]
LAYOUTS = ("auto", "classes", "domains")


def layout_of(root: Path) -> str:
    """Return ``"split"``, ``"domains"`` or ``"classes"``, whichever the folder's two upper levels look like."""
    folders = subfolders(root)
    if folders and all(folder.name.lower() in ALL_SPLITS for folder in folders):
        return "split"
    # Lists of a split often lie in a folder of their own.
    # A forbidden folder raises, or is noted as skipped, when its files are read.
    inside = [{e.name for e in peek(folder)} for folder in folders if folder.name not in LIST_FOLDERS]
    # Domains hold the same classes; class folders that happen to have folders inside do not share their names.
    if len(inside) > 1 and all(inside) and 2 * len(set.intersection(*inside)) >= len(set.union(*inside)):
        return "domains"
    return "classes"


def picture_folder(
    root: Path, split: str, reading: Reading, *, name: str, layout: str = "auto", domain: str | None = None
) -> Dataset:
    """Read ROOT/CLASS/FILE, ROOT/SPLIT/CLASS/FILE or ROOT/DOMAIN/CLASS/FILE.

    Raises:
        ValueError: no classes, an unknown layout, or a split that the folder does not have.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"open_dataset: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    found = layout_of(root) if layout == "auto" else layout
    if found == "domains":
        return domain_set(root, split, reading, name=name, domain=domain)
    if domain is not None:
        raise ValueError(f"open_dataset: {root} has class folders and no domains, so domain={domain!r} has no meaning")
    notes = []
    if found == "split" and split != "all":
        by_name = {folder.name.lower(): folder for folder in subfolders(root)}
        part = next((by_name[each] for each in SPLITS[split] if each in by_name), None)
        if part is None:
            raise ValueError(
                f"open_dataset: {root} has no {split!r} part, only {', '.join(sorted(by_name))}; pass another split"
            )
        parts = [part]
        notes.append(f"split {part.name}")
    else:
        parts = subfolders(root) if found == "split" else [root]
        notes.append("all images, whatever split was asked for" if split != "all" else "all images")
    skipped: list[Skipped] = []
    by_part = [class_files(part, reading, skipped) for part in parts]
    classes = sorted(set().union(*by_part))
    refuse_duplicates((each, part) for part, found in zip(parts, by_part, strict=True) for each in found)
    labels = {each: label for label, each in enumerate(classes)}
    files = [LabelledFile(path, labels[each]) for part in by_part for each in classes for path in part.get(each, [])]
    return dataset_of_files(name, root, files, classes, reading, skipped=skipped, notes=notes)
