"""Unpacking an archive of images once, safely, into a cache."""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from shiftnorm.data.unpacked_size import compression_of, needed_at_least

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
_ELSEWHERE = "choose another folder for it: cache=, or the environment variable XDG_CACHE_HOME"


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/shiftnorm``, or ``~/.cache/shiftnorm``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks to ignore a relative path.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "shiftnorm"


def unpack_archive(archive: Path, cache: Path) -> Path:
    """Unpack a tar or zip archive into a folder of its own under ``cache`` and return that folder.

    The folder's name carries the archive's path, size and time of change, so a second call finds it and a changed
    archive gets a new one. It appears only when complete, also after an interruption or with two processes at once.

    Raises:
        ValueError: the archive is damaged, or holds paths or links that lead outside it.
        OSError: the disk has no room for it.
        RuntimeError: this Python is too old to unpack safely.
    """
    status = archive.stat()
    identity = f"{archive.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    target = cache / f"{archive.name.split('.')[0]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    except OSError as error:
        raise type(error)(
            f"{archive} is unpacked into {cache}, which cannot be written to ({error.strerror}); {_ELSEWHERE}"
        ) from error
    try:
        (_unpack_zip if archive.name.lower().endswith(".zip") else _unpack_tar)(archive, partial)
        try:
            partial.rename(target)
        except OSError:
            # Another process may have been first; its folder holds the same files.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _refuse_more_than_free(archive: Path, folder: Path, needed: int, *, whole: bool = True) -> None:
    # A few kilobytes can unpack to petabytes; the disk must not find out.
    if needed > (free := shutil.disk_usage(folder).free):
        raise _no_room(archive, folder, needed, free, whole=whole)


def _no_room(archive: Path, folder: Path, needed: int, free: int, *, whole: bool) -> OSError:
    least = "" if whole else "at least "
    return OSError(
        f"{archive} unpacks to {least}{_spell(needed)} and {folder.parent} has {_spell(free)} left; free some space, "
        f"or {_ELSEWHERE}"
    )


def _spell(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _unpack(archive: Path, folder: Path, extract: Callable[[], object], total: Callable[[], int | None]) -> None:
    """Extract; where the disk fills up meanwhile, as others may write on it too, say how much was needed."""
    try:
        extract()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        needed, free = total(), used + shutil.disk_usage(folder).free
        raise _no_room(archive, folder, needed or used, free, whole=needed is not None) from error


def _unpack_tar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            "this Python cannot unpack archives safely (needs 3.10.12, 3.11.4 or 3.12); "
            f"upgrade it, or unpack {archive} yourself and pass the folder"
        )
    try:
        with tarfile.open(archive) as tar:
            plain = compression_of(archive) is None
            # Without compression the headers are quickly read; else the compressed file says a little.
            least = sum(member.size for member in tar.getmembers()) if plain else needed_at_least(archive)
            _refuse_more_than_free(archive, folder, least, whole=plain)

            def fitting() -> Iterator[tarfile.TarInfo]:
                for member in tar:
                    if member.size > shutil.disk_usage(folder).free:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    yield member

            def total() -> int | None:
                try:
                    return sum(member.size for member in tar.getmembers())
                except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError):
                    return None  # damaged further on, so that nobody knows

            _unpack(archive, folder, lambda: tar.extractall(folder, fitting(), filter="data"), total)
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} is not safe to unpack: {error}") from error
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged or not a tar archive: {error}") from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                parts = PurePosixPath(member.filename.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(
                        f"{archive} is not safe to unpack: {member.filename!r} leads outside it or is a link"
                    )
            needed = sum(member.file_size for member in members)
            _refuse_more_than_free(archive, folder, needed)
            _unpack(archive, folder, lambda: file.extractall(folder), lambda: needed)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # zipfile raises RuntimeError for an encrypted member, NotImplementedError for a compression it does not know.
        raise ValueError(f"{archive} is damaged, encrypted or not a zip archive: {error}") from error
