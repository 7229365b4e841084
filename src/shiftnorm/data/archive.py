"""Unpacking a tar archive of images once, safely, into a cache."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/shiftnorm``, or ``~/.cache/shiftnorm``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks to ignore a relative path.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "shiftnorm"


def unpack_archive(archive: Path, cache: Path) -> Path:
    """Unpack a tar archive into a folder of its own under ``cache`` and return that folder.

    The folder's name carries the archive's path, size and time of change, so a second call finds it and a changed
    archive gets a new one. It appears only when complete, also after an interruption or with two processes at once.

    Raises:
        ValueError: the archive is damaged, or holds paths or links that lead outside it.
        RuntimeError: this Python is too old to unpack safely.
    """
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            "load_folder: this Python cannot unpack archives safely (needs 3.10.12, 3.11.4 or 3.12); "
            f"upgrade it, or unpack {archive} yourself and pass the folder"
        )
    status = archive.stat()
    identity = f"{archive.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    target = cache / f"{archive.name.split('.')[0]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
        except tarfile.FilterError as error:
            raise ValueError(f"load_folder: {archive} is not safe to unpack: {error}") from error
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"load_folder: {archive} is damaged or not a tar archive: {error}") from error
        try:
            partial.rename(target)
        except OSError:
            # Another process may have been first; its folder holds the same files.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
