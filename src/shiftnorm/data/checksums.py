"""Files that appear whole or not at all, and the list of their checksums."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

__all__ = ["CHECKSUMS", "Checksums", "write_whole"]

CHECKSUMS = "SHA256SUMS"
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
    temporary = temporary_of(path)
    try:
        _write_at(temporary, write)
        if synced:
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """Return the name that a file has in this process while it is written."""
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
            aside = temporary_of(target)
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


def abandoned(file: Path, host: str, process: int) -> bool:
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
