"""A folder of generated files: whole files only, checksums beside them, and a note of what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from shiftnorm.result_folder import list_changes

__all__ = ["CHECKSUMS", "MANIFEST", "Checksums", "MadeFolder", "Verified", "verify_folder", "write_whole"]

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
FORMAT = "shiftnorm.corrupted/1"
CHUNK = 2**20
# A checksum and a name, as the program sha256sum writes and reads them.
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.tmp")
# Processes of several machines may fill one folder.
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
STALE_SECONDS = 86400.0


def write_whole(path: Path, write: bytes | Callable[[Path], object], *, synced: bool = False) -> None:
    """Write a file so that a reader finds nothing, the old file or the whole new one, even if this process is killed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.bin"
        >>> write_whole(file, b"whole")
        >>> file.read_bytes()
        b'whole'

    Args:
        path: the file, in a folder that exists.
        write: its content, or a function that writes a file at the path it is given.
        synced: wait until it is on the disk, for files that must survive the loss of power too.
    """
    temporary = _temporary(path)
    try:
        _write_at(temporary, write)
        if synced:
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # With the number of the process, so that two of them never write into one file.
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}.tmp")


def _write_at(path: Path, write: bytes | Callable[[Path], object]) -> None:
    if callable(write):
        write(path)
    else:
        path.write_bytes(write)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@final
class Checksums:
    """The checksums of the files made in one folder, ``SHA256SUMS``; a file that is not in there was not made here.

    Lines are added as files are finished. One that a killed process left half written is dropped, and its file made
    again.

    Example:
        >>> import tempfile
        >>> sums = Checksums(Path(tempfile.mkdtemp()))
        >>> sums.put("a.bin", b"content")
        True
        >>> sums.flush()
        >>> Checksums(sums.folder).has("a.bin"), sums.has("b.bin")
        (True, False)

    Args:
        folder: where the files are; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / CHECKSUMS
        self.sums: dict[str, str] = {}
        self._new: list[str] = []
        self._folders: set[Path] = set()
        if not self.file.is_file():
            return
        text = self.file.read_text(encoding="utf-8", errors="surrogateescape")
        whole, _, torn = text.rpartition("\n")
        for line in whole.split("\n") if whole else ():
            if match := LINE.fullmatch(line):
                self.sums[match[2]] = match[1]
        if torn:
            write_whole(self.file, f"{whole}\n".encode(errors="surrogateescape") if whole else b"")

    def has(self, name: str) -> bool:
        """Whether a file was finished and is there.

        Example:
            >>> Checksums(Path("nowhere")).has("a.bin")
            False
        """
        return name in self.sums and (self.folder / name).is_file()

    def put(self, name: str, write: bytes | Callable[[Path], object]) -> bool:
        """Write a file that is not there; its checksum follows at the next `flush`.

        Example:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> _ = (folder / "a.bin").write_bytes(b"somebody's")
            >>> Checksums(folder).put("a.bin", b"ours")
            Traceback (most recent call last):
            ...
            FileExistsError: corrupt: .../a.bin is there and was not made by this command; move it elsewhere.

        Args:
            name: relative to the folder, with slashes.
            write: as `write_whole` takes it.

        Returns:
            Whether it had to be written: a file with the same content is kept.

        Raises:
            FileExistsError: another file has the name.
        """
        target = self.folder / name
        if target.parent not in self._folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(target.parent)
        if os.path.lexists(target):
            # Made by this process's predecessor, which was killed before it could write the checksum down; or not.
            aside = _temporary(target)
            try:
                _write_at(aside, write)
                digest = digest_of(aside)
            finally:
                aside.unlink(missing_ok=True)
            if not target.is_file() or digest_of(target) != digest:
                raise FileExistsError(
                    f"corrupt: {target} is there and was not made by this command; move it elsewhere."
                )
            self._note(name, digest)
            return False
        write_whole(target, write)
        self._note(name, hashlib.sha256(write).hexdigest() if isinstance(write, bytes) else digest_of(target))
        return True

    def _note(self, name: str, digest: str) -> None:
        self.sums[name] = digest
        self._new.append(f"{digest}  {name}\n")

    def flush(self) -> None:
        """Write down the checksums of the files since the last time.

        Example:
            >>> Checksums(Path("nowhere")).flush()  # nothing to write down
        """
        if not self._new:
            return
        with self.file.open("a", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write("".join(self._new))
        self._new.clear()

    def summary(self) -> dict[str, Any]:
        """How many files there are, and the checksum of the list.

        Example:
            >>> Checksums(Path("nowhere")).summary()["files"]
            0
        """
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.sums.items()))
        return {"files": len(self.sums), "sha256": hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()}


@final
class MadeFolder:
    """A folder that belongs to one set of settings, which its ``manifest.json`` names.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "made"
        >>> _ = MadeFolder(path, {"seed": 0}, {})
        >>> MadeFolder(path, {"seed": 1}, {})
        Traceback (most recent call last):
        ...
        ValueError: corrupt: .../made was made with other settings: seed was 0, now 1. Choose another folder, ...

    Args:
        path: the folder, made if need be.
        identity: what decides the files' contents, as plain data.
        facts: further remarks for the manifest.

    Raises: ValueError if it was made with other settings. FileExistsError if it holds anything else.
        NotADirectoryError if a file is in its place.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.path = path
        # Through JSON, so that what is compared later is equal to what was written.
        self.content: dict[str, Any] = json.loads(
            json.dumps({"format": FORMAT, "identity": dict(identity), **facts, "cells": {}})
        )
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"corrupt: expected a folder to write into, {path} is a file.")
        manifest = path / MANIFEST
        if manifest.is_file():
            before = read_manifest(path)
            self._compare(before["identity"])
            self.content["cells"] = before["cells"]
        elif path.is_dir() and (taken := [each for each in path.iterdir() if not TEMPORARY.fullmatch(each.name)]):
            raise FileExistsError(
                f"corrupt: {path} has files of its own, such as {min(taken).name}; choose a new or an empty folder."
            )
        path.mkdir(parents=True, exist_ok=True)
        self._write()
        self._remove_stale()

    def _compare(self, before: Mapping[str, Any]) -> None:
        if changed := list_changes(before, self.content["identity"]):
            raise ValueError(
                f"corrupt: {self.path} was made with other settings: {'; '.join(changed)}. Choose another folder, or "
                "go back to those settings to go on with it."
            )

    def _write(self) -> None:
        write_whole(self.path / MANIFEST, f"{json.dumps(self.content, indent=1)}\n".encode(), synced=True)

    def _remove_stale(self) -> None:
        """Remove the large files that killed processes had begun; small ones lie deeper and are left."""
        for file in self.path.iterdir():
            match = TEMPORARY.fullmatch(file.name)
            if match and file.is_file() and _abandoned(file, match[1], int(match[2])):
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


def _abandoned(file: Path, host: str, process: int) -> bool:
    """Whether a file that was begun will not be finished."""
    # On Windows a signal to look whether a process runs would end it.
    if host != HOST or os.name != "posix":
        return time.time() - file.stat().st_mtime > STALE_SECONDS
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to somebody else
        return False
    return False
