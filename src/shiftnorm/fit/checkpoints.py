"""Checkpoint files that are whole or not there, known by their own digest, and found again after any kind of end."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, final

import torch
from lightning.pytorch.plugins.io import CheckpointIO

__all__ = ["CheckpointFiles", "CheckpointFolder", "is_full_disk"]

SUFFIX: Final = ".ckpt"
_NAME: Final = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.ckpt")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full_disk(fault: BaseException) -> bool:
    """Whether an error says that there is no room for a file.

    Example:
        >>> is_full_disk(OSError(errno.ENOSPC, "No space left on device")), is_full_disk(OSError(errno.EACCES, "no"))
        (True, False)
    """
    return isinstance(fault, OSError) and fault.errno in _FULL


@final
class CheckpointFolder:
    """The checkpoints of one run: ``step-NUMBER-DIGEST.ckpt``, of which the last ones are kept.

    A file gets its name only when it is on the disk with all its bytes, and the digest in the name tells later whether
    they are still the same. Files are torch's own, without any code in them: ``torch.load(file, weights_only=True)``
    reads them.

    Example:
        >>> import tempfile
        >>> folder = CheckpointFolder(Path(tempfile.mkdtemp()) / "checkpoints", say=print)
        >>> folder.newest() is None
        True
        >>> for step in (1, 2, 3):
        ...     _ = folder.write({"step": step, "weight": torch.ones(2)}, step)
        >>> [int(file.name[5:14]) for file in folder.files()]
        [2, 3]
        >>> cut = folder.files()[-1]
        >>> _ = cut.write_bytes(cut.read_bytes()[:-1])
        >>> folder.read(folder.newest())["step"]
        The checkpoint step-000000003-....ckpt is damaged (its bytes are not those that were written); going on
        from the one before.
        2

    Args:
        path: the folder; it is made when the first file is written.
        keep: how many files stay.
        say: gets a line about every damaged file.
        owner: this process writes here, and sets damaged files aside; one of several that train together does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: int = 2,
        say: Callable[[str], object] = print,
        owner: bool = True,
    ) -> None:
        self.path, self.keep, self.say, self.owner = Path(path), keep, say, owner

    def files(self) -> list[Path]:
        """The finished files, by rising step.

        Example:
            >>> CheckpointFolder("nowhere").files()
            []
        """
        found: list[tuple[int, int, Path]] = []
        for file in self.path.glob(f"step-*{SUFFIX}"):
            if _NAME.fullmatch(file.name):
                try:
                    found.append((int(file.name.split("-")[1]), file.stat().st_mtime_ns, file))
                except FileNotFoundError:  # the process that writes here has just removed it
                    continue
        return [file for _, _, file in sorted(found)]

    def write(self, content: dict[str, Any], step: int) -> Path:
        """Write a checkpoint, then remove the ones that are too many.

        Example:
            >>> import tempfile
            >>> CheckpointFolder(tempfile.mkdtemp()).write({"x": 1}, 7).name
            'step-000000007-....ckpt'

        Args:
            content: tensors, numbers, strings and containers of them.
            step: its number.

        Returns:
            The file.

        Raises:
            OSError: if there is no room for it, or it cannot be written; the ones before are untouched.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getbuffer()
        path = self.path / f"step-{step:09d}-{_digest(data)}{SUFFIX}"
        temporary = self.path / f".{path.name}.{os.getpid()}.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                _write(temporary, data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(self.path)
        except OSError as fault:
            kept = self.files()
            left = f"{kept[-1].name} is intact" if kept else "there is none yet"
            advice = "make room there" if is_full_disk(fault) else "see to that"
            raise OSError(
                fault.errno,
                f"train: the checkpoint of step {step} ({len(data) / 2**20:.1f} MiB) could not be written to "
                f"{self.path}: {fault.strerror or fault}. The last one, {left}: {advice} and run the same command "
                "again.",
            ) from fault
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """The last file whose bytes are those that were written; None without one. Damaged ones are told of.

        Example:
            >>> CheckpointFolder("nowhere").newest() is None
            True
        """
        files = self.files()
        for place, file in reversed(list(enumerate(files))):
            try:
                whole = _digest(file.read_bytes()) == _digest_in(file)
            except FileNotFoundError:  # its owner was faster to set it aside
                continue
            if whole:
                return file
            if self.owner:
                # under its own name it would count as one of the last ones, and whole ones would be removed for it
                os.replace(file, file.with_name(f"{file.name}.damaged"))
                before = "going on from the one before" if place else "there is none before it, so the run starts anew"
                self.say(
                    f"The checkpoint {file.name} is damaged (its bytes are not those that were written); {before}."
                )
        return None

    def read(self, path: Path | None) -> dict[str, Any]:
        """The content of a file.

        Example:
            >>> import tempfile
            >>> folder = CheckpointFolder(tempfile.mkdtemp())
            >>> folder.read(folder.write({"x": 1}, 7))
            {'x': 1}

        Raises:
            ValueError: if it is no such file, or damaged.
        """
        if path is None or not path.is_file():
            raise ValueError(f"train: expected a checkpoint, there is none at {path}.")
        data = path.read_bytes()
        if _digest(data) != _digest_in(path):
            raise ValueError(f"train: the checkpoint {path} is damaged: its bytes are not those that were written.")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def clean(self) -> None:
        """Remove what a killed process began to write, for the one process that writes here.

        Example:
            >>> CheckpointFolder("nowhere").clean()
        """
        for file in self.path.glob(".*.tmp"):
            file.unlink(missing_ok=True)


@final
class CheckpointFiles(CheckpointIO):
    """Lets a Lightning trainer write to a `CheckpointFolder` and read from it.

    Example:
        >>> import tempfile
        >>> files = CheckpointFiles(CheckpointFolder(tempfile.mkdtemp()))
        >>> files.save_checkpoint({"global_step": 3}, "")
        >>> files.load_checkpoint(files.folder.newest())
        {'global_step': 3}

    Args:
        folder: of the run.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, under a name made from the step; ``path`` is not used.

        Example:
            >>> import tempfile
            >>> CheckpointFiles(CheckpointFolder(tempfile.mkdtemp())).save_checkpoint({"global_step": 3}, "")
        """
        self.folder.write(checkpoint, int(checkpoint["global_step"]))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read, onto the CPU and without running anything in the file.

        Example:
            >>> import tempfile
            >>> folder = CheckpointFolder(tempfile.mkdtemp())
            >>> CheckpointFiles(folder).load_checkpoint(folder.write({"x": 1}, 7))
            {'x': 1}
        """
        return self.folder.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file.

        Example:
            >>> CheckpointFiles(CheckpointFolder("nowhere")).remove_checkpoint("nowhere/step.ckpt")
        """
        Path(path).unlink(missing_ok=True)


def _write(path: Path, data: memoryview) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    # The new name is on the disk only when the folder is; systems that cannot open folders do it on their own.
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _digest_in(path: Path) -> str:
    found = _NAME.fullmatch(path.name)
    return found[2] if found else ""
