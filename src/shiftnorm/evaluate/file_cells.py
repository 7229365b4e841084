"""Cells whose corrupted images lie in files: which files these are, and the images that all cells have."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shiftnorm.data.contents import digest_contents
from shiftnorm.data.corrupted_set import CorruptedSet
from shiftnorm.data.dataset import Dataset
from shiftnorm.evaluate.cells import CLEAN, Cells, common_images
from shiftnorm.evaluate.outcome import CellOutcome

__all__ = ["check_files", "describe_files", "files_of", "keep_common"]


def files_of(files: CorruptedSet | None, key: tuple[str, int]) -> dict[str, str]:
    """What a finished cell notes of its files; nothing where its images were made.

    Example:
        >>> files_of(None, ("fog", 3))
        {}

    Args:
        files: where the images are from, or None.
        key: corruption and severity, or `CLEAN`.
    """
    if files is None or key == CLEAN:
        return {}
    checksum = files.checksum(*key)
    if not _by_names(checksum):
        return {"files": checksum}
    pictures = files.cell(*key).files() or []
    return {"files": checksum, "stamp": _stamp(pictures), "contents": digest_contents(pictures)}


def _by_names(checksum: str) -> bool:
    return not checksum.startswith("sha256:")


def _stamp(files: Sequence[str]) -> str:
    """A digest of the files' times of change, which are quick to get."""
    times = [os.stat(file).st_mtime_ns if os.path.exists(file) else None for file in files]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()


def check_files(files: CorruptedSet | None, key: tuple[str, int], metadata: Mapping[str, Any]) -> None:
    """Refuse a finished cell that is of other files than those that are there now.

    Example:
        >>> check_files(None, ("fog", 3), {"files": "sha256:0f"})
        Traceback (most recent call last):
        ...
        ValueError: robustness: the folder has fog 3 of other files (checksum sha256:0f, now None). Choose another ...

    Args:
        files: where the images are from, or None.
        key: corruption and severity, or `CLEAN`.
        metadata: of the finished cell.

    Raises:
        ValueError: if they are others.
    """
    before = metadata.get("files")
    now = None if files is None or key == CLEAN else files.checksum(*key)
    if before != now:
        raise ValueError(
            f"robustness: the folder has {key[0]} {key[1]} of other files (checksum {before}, now {now}). Choose "
            "another folder for out, or get the files back to go on with it."
        )
    # Cells of an earlier version have names and sizes alone.
    if files is None or now is None or "contents" not in metadata:
        return
    pictures = files.cell(*key).files() or []
    # A copy of a folder has other times; what is in its files decides then.
    if metadata.get("stamp") != _stamp(pictures) and metadata["contents"] != digest_contents(pictures):
        raise ValueError(
            f"robustness: the folder has {key[0]} {key[1]} of files with the same names and sizes, but other contents. "
            "Choose another folder for out, or get the files back to go on with it."
        )


def describe_files(
    files: CorruptedSet | None, keys: Sequence[tuple[str, int]]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The checksums of the cells' files for a result, and one digest of them all.

    Example:
        >>> describe_files(None, [("fog", 3)])
        ({}, {})

    Args:
        files: where the images are from, or None.
        keys: of the corrupted cells.

    Returns:
        Checksums by corruption, or by corruption and severity where these are different files; and the digest.
    """
    if files is None:
        return {}, {}
    sums = {key: files.checksum(*key) for key in keys}
    named: dict[str, str] = {}
    for (name, severity), value in sums.items():
        whole = len({other for key, other in sums.items() if key[0] == name}) == 1
        named[name if whole else f"{name}/{severity}"] = value
    text = json.dumps(sorted((name, severity, value) for (name, severity), value in sums.items()))
    return {"corrupted checksums": named}, {"corrupted files": hashlib.sha256(text.encode()).hexdigest()}


def keep_common(measured: Cells, data: Dataset) -> tuple[dict[tuple[str, int], CellOutcome], list[str]]:
    """The cells with the images that all of them have, and a sentence on the others.

    Example:
        >>> import torch
        >>> pets = Dataset.of_images("pets", torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long(), ("cat",))
        >>> whole = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> part = CellOutcome.from_logits(torch.eye(2)[1:], torch.tensor([0]), index=torch.tensor([1]))
        >>> keep_common({CLEAN: whole, ("fog", 1): part}, pets)[1]
        ['1 of 2 images could not be read in every cell and is left out of all: 0 (fog 1).']

    Args:
        measured: the cells.
        data: the clean images.

    Raises:
        ValueError: if there is no such image.
    """
    cells = common_images(measured)
    kept = len(next(iter(cells.values()))) if cells else 0
    if cells and not kept:
        raise ValueError("robustness: there is no image that could be read in every cell.")
    if all(len(cell) == kept for cell in measured.values()):
        return cells, []
    files = data.files()
    lost: list[str] = []
    for key, cell in measured.items():
        present = set(cell.index.tolist()) if len(cell) < len(data) else range(len(data))
        gone = [number for number in range(len(data)) if number not in present]
        lost += [f"{Path(files[number]).name if files else number} ({key[0]} {key[1]})" for number in gone]
    more = f", and {len(lost) - 5} more" if len(lost) > 5 else ""
    are = "is" if len(data) - kept == 1 else "are"
    return cells, [
        f"{len(data) - kept:,} of {len(data):,} images could not be read in every cell and {are} left out of all: "
        f"{', '.join(lost[:5])}{more}."
    ]
