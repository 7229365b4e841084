"""Finding a data set below a folder, unpacked or as an archive."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shiftnorm.data.archive import SUFFIXES, default_cache, unpack_archive
from shiftnorm.data.labelled_files import Reading, list_folder, subfolders

# Below this many folders a search is quick; a data set that lies deeper is named by its own path.
SEARCHED = 200


def is_archive(path: Path) -> bool:
    """Return whether a file's name says that it is an archive."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked(archive: Path, reading: Reading) -> Path:
    """Unpack an archive into the cache and return the innermost folder that holds all of it."""
    folder = unpack_archive(archive, default_cache() if reading.cache is None else reading.cache)
    reading.archives[folder] = archive
    while len(inside := list_folder(folder)) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def folders_below(root: Path, depth: int = 3) -> Iterator[Path]:
    """Yield a folder and the folders inside it, the outer ones first, not more than are searched quickly."""
    level, count = [root], 0
    for _ in range(depth):
        deeper: list[Path] = []
        for folder in level:
            # Beside data sets may lie what is nobody's business, such as lost+found; only the root has to be readable.
            if folder != root and not os.access(folder, os.R_OK | os.X_OK):
                continue
            yield folder
            count += 1
            if count >= SEARCHED:
                return
            deeper += subfolders(folder)
        level = deeper


def locate(
    root: Path, holds: Callable[[Path], bool], reading: Reading, *, archives: Sequence[str] = (), depth: int = 3
) -> Path | None:
    """Return the outermost folder below ``root`` for which ``holds`` is true, else one in an archive named alike.

    Args:
        root: a folder or an archive.
        holds: whether a folder is the one.
        reading: its cache is where archives are unpacked.
        archives: patterns of the archives' names, case ignored.
        depth: how many levels to search.
    """
    if is_archive(root):
        return next((folder for folder in folders_below(unpacked(root, reading), depth) if holds(folder)), None)
    if not root.is_dir():
        return None
    packed: list[Path] = []
    for folder in folders_below(root, depth):
        if holds(folder):
            return folder
        packed += [
            entry
            for entry in list_folder(folder)
            if any(fnmatch.fnmatch(entry.name.lower(), pattern.lower()) for pattern in archives) and is_archive(entry)
        ]
    for archive in packed:
        for folder in folders_below(unpacked(archive, reading), depth):
            if holds(folder):
                return folder
    return None


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files that lies in the folder."""
    return next((folder / name for name in names if (folder / name).is_file()), None)
