"""Unpacking an archive of images once, safely, into a cache."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")


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
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
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


def _unpack_tar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            "this Python cannot unpack archives safely (needs 3.10.12, 3.11.4 or 3.12); "
            f"upgrade it, or unpack {archive} yourself and pass the folder"
        )
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
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
            # A few kilobytes can unpack to petabytes; the disk must not find out.
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise OSError(
                    f"{archive} unpacks to {needed / 2**30:.1f} GiB and {folder.parent} has "
                    f"{free / 2**30:.1f} GiB left; free some space, or pass another cache"
                )
            file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # zipfile raises RuntimeError for an encrypted member, NotImplementedError for a compression it does not know.
        raise ValueError(f"{archive} is damaged, encrypted or not a zip archive: {error}") from error
