"""A folder of generated files: whole files only, checksums beside them, and a note of what they were made from."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from shiftnorm.data.checksums import CHECKSUMS, TEMPORARY, Checksums, abandoned, digest_of, temporary_of, write_whole
from shiftnorm.result_folder import check_writable, list_changes

__all__ = ["MANIFEST", "MadeFolder", "Verified", "verify_folder"]

MANIFEST = "manifest.json"
LABELS = "labels.npy"
# What of the identity folders of before do not have.
CONTENTS = "contents of the images' files"
FORMAT = "shiftnorm.corrupted/1"


@final
class MadeFolder:
    """A folder that belongs to one set of settings, which its ``manifest.json`` names.

    Used in a ``with`` statement, it is left without a trace if that fails before anything was made; what was made is
    never removed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "made"
        >>> with MadeFolder(path, {"seed": 0}, {}):
        ...     _ = Checksums(path).put("fog.npy", b"pixels")
        >>> MadeFolder(path, {"seed": 1}, {})
        Traceback (most recent call last):
        ...
        ValueError: corrupt: .../made was made with other settings: seed was 0, now 1. Choose another folder, ...

    Args:
        path: the folder, made if need be.
        identity: what decides the files' contents, as plain data.
        facts: further remarks for the manifest.

    Raises: ValueError if files in it were made with other settings. FileExistsError if it holds anything else. OSError,
        or one of its kinds, if it cannot be written to.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.path = path
        # Through JSON, so that what is compared later is equal to what was written.
        self.content: dict[str, Any] = json.loads(
            json.dumps({"format": FORMAT, "identity": dict(identity), **facts, "cells": {}})
        )
        check_writable(path, "corrupt")
        # What this call adds, the innermost first.
        self._added = [each for each in (path.absolute(), *path.absolute().parents) if not each.exists()]
        manifest = path / MANIFEST
        if manifest.is_file():
            before = read_manifest(path)
            known = {CONTENTS: self.content["identity"].get(CONTENTS), **before["identity"]}
            if changed := list_changes(known, self.content["identity"]):
                self._take_over(changed)
            else:
                self.content["cells"] = before["cells"]
        elif path.is_dir() and (taken := [each for each in path.iterdir() if not TEMPORARY.fullmatch(each.name)]):
            raise FileExistsError(
                f"corrupt: {path} has files of its own, such as {min(taken).name}; choose a new or an empty folder."
            )
        path.mkdir(parents=True, exist_ok=True)
        self._write()
        self._remove_stale()

    def __enter__(self) -> MadeFolder:
        # Says to other processes that this one is at work, before there is anything else to see.
        self._sign().touch()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # What went wrong is on its way to the caller, who is to see that and not this.
        with contextlib.suppress(OSError):
            self._sign().unlink(missing_ok=True)
            if kind is not None and self._is_bare():
                self._clear()
                for folder in self._added:
                    folder.rmdir()

    def _sign(self) -> Path:
        return temporary_of(self.path / "begun")

    def _take_over(self, changed: list[str]) -> None:
        """Make room if nothing was made with the other settings, as by a process that was killed at once."""
        if not self._is_bare():
            raise ValueError(
                f"corrupt: {self.path} was made with other settings: {'; '.join(changed)}. Choose another folder, or "
                "go back to those settings to go on with it."
            )
        self._clear()

    def _is_bare(self) -> bool:
        """Whether nothing of use is in it, and no other process is at work in it."""
        # The labels say nothing without images.
        known = {MANIFEST, CHECKSUMS, *Checksums(self.path).sums.keys() & {LABELS}}
        for where, _, names in os.walk(self.path):
            for name in names:
                file = Path(where, name)
                if match := TEMPORARY.fullmatch(name):
                    if not abandoned(file, match[1], int(match[2])):
                        return False
                elif file.parent != self.path or name not in known:
                    return False
        return not read_manifest(self.path)["cells"]

    def _clear(self) -> None:
        """Remove what is in a bare folder, the manifest last, without which the rest would be nobody's."""
        for where, _, names in os.walk(self.path, topdown=False):
            for name in names:
                if name != MANIFEST:
                    Path(where, name).unlink(missing_ok=True)
            if Path(where) != self.path:
                Path(where).rmdir()
        (self.path / MANIFEST).unlink(missing_ok=True)

    def _write(self) -> None:
        write_whole(self.path / MANIFEST, f"{json.dumps(self.content, indent=1)}\n".encode(), synced=True)

    def _remove_stale(self) -> None:
        """Remove the large files that killed processes had begun; small ones lie deeper and are left."""
        for file in self.path.iterdir():
            match = TEMPORARY.fullmatch(file.name)
            if match and file.is_file() and abandoned(file, match[1], int(match[2])):
                file.unlink(missing_ok=True)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Replace remarks of the manifest by what is known now, such as images that turned out unreadable.

        Example:
            >>> import tempfile
            >>> folder = MadeFolder(Path(tempfile.mkdtemp()), {}, {"frost": "procedural"})
            >>> folder.note({"frost": "photographs"})
            >>> json.loads((folder.path / "manifest.json").read_text())["frost"]
            'photographs'
        """
        known: dict[str, Any] = json.loads(json.dumps(dict(facts)))
        if any(self.content.get(key) != value for key, value in known.items()):
            self.content |= {**known, "cells": read_manifest(self.path)["cells"]}
            self._write()

    def finish(self, cell: str, summary: Mapping[str, Any]) -> None:
        """Note in the manifest that a cell is complete, with the number and the checksum of its files.

        Example:
            >>> import tempfile
            >>> folder = MadeFolder(Path(tempfile.mkdtemp()), {}, {})
            >>> folder.finish("fog", {"files": 1, "sha256": "0f"})
            >>> read_manifest(folder.path)["cells"]
            {'fog': {'files': 1, 'sha256': '0f'}}
        """
        # Read anew, as another process may have finished other cells.
        cells = read_manifest(self.path)["cells"]
        self.content["cells"] = {**cells, cell: dict(summary)}
        if cells != self.content["cells"]:
            self._write()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is of something else, or damaged.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"corrupt: {path} has no {MANIFEST}; it is not a folder that `shiftnorm corrupt` made.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ValueError(f"corrupt: {file} is damaged ({fault}).") from fault
    parts = (content.get("identity"), content.get("cells")) if isinstance(content, dict) else ()
    if not parts or content.get("format") != FORMAT or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"corrupt: {file} is not from `shiftnorm corrupt`; choose another folder.")
    return content


class Verified(NamedTuple):
    """What a check of all checksums found.

    Example:
        >>> Verified(10, ["fog/3/cat/1.JPEG: another content"], []).good
        False

    Args:
        files: how many were checked.
        damaged: files that are missing or have another content, with the reason.
        unfinished: cells that are not complete yet.
    """

    files: int
    damaged: list[str]
    unfinished: list[str]

    @property
    def good(self) -> bool:
        """Whether every file is there and as it was made.

        Example:
            >>> Verified(10, [], []).good
            True
        """
        return not self.damaged and not self.unfinished


def verify_folder(path: Path, on_progress: Callable[[int], object] | None = None) -> Verified:
    """Read every file that was made and compare it with its checksum.

    Example:
        >>> import tempfile
        >>> folder = MadeFolder(Path(tempfile.mkdtemp()), {}, {})
        >>> sums = Checksums(folder.path)
        >>> _ = sums.put("fog.npy", b"pixels")
        >>> sums.flush()
        >>> folder.finish("fog", {"files": 1, "sha256": sums.sums["fog.npy"]})
        >>> _ = (folder.path / "fog.npy").write_bytes(b"others")
        >>> verify_folder(folder.path)
        Verified(files=1, damaged=['fog.npy: another content'], unfinished=[])

    Args:
        path: the folder.
        on_progress: called with the number of files so far.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: the folder was not made by `corrupt_folder` or `corrupt_cifar`.
        ValueError: its manifest is damaged.
    """
    cells = read_manifest(path)["cells"]
    places = {file.parent for pattern in (CHECKSUMS, f"*/*/{CHECKSUMS}") for file in path.glob(pattern)}
    damaged: list[str] = []
    found: dict[str, Any] = {}
    files = 0
    for place in sorted(places):
        sums = Checksums(place)
        if place == path:
            found |= {name.removesuffix(".npy"): {"files": 1, "sha256": each} for name, each in sums.sums.items()}
        else:
            found[place.relative_to(path).as_posix()] = sums.summary()
        for name, digest in sums.sums.items():
            file = place / name
            files += 1
            problem = "missing" if not file.is_file() else "another content" if digest_of(file) != digest else None
            if problem:
                damaged.append(f"{file.relative_to(path).as_posix()}: {problem}")
            if on_progress is not None:
                on_progress(files)
    damaged += [f"{cell}: not the files that the manifest names" for cell in cells if found.get(cell) != cells[cell]]
    return Verified(files, damaged, sorted(found.keys() - cells.keys() - {"labels"}))
