"""Where a data set's images come from, for records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Provenance", "Skipped"]

CHUNK = 2**20


class Skipped(NamedTuple):
    """A file, or an empty class folder, that a data set leaves out, and why.

    Example:
        >>> from shiftnorm.data.provenance import Skipped
        >>> print(Skipped("cats/3.jpg", "the file is empty"))
        cats/3.jpg: the file is empty
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Provenance:
    """Path, checksum and remarks of a data set's files.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "images.npy"
        ...     _ = file.write_bytes(b"pixels")
        ...     source = Provenance(file, (file,), ("JPEG q75",))
        ...     source.describe()
        {'path': '.../images.npy', 'checksum': 'sha256:6ec9c2b0eb1401...', 'notes': ['JPEG q75']}

    Args:
        path: the folder, archive or file that was opened.
        files: the files to take the checksum of: their contents with one to three, else only their names and sizes,
            since reading hundreds of thousands of pictures takes long.
        notes: what a reader of the numbers has to know, such as the preprocessing.
    """

    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the files' contents, or of their names and sizes if they are many; computed when asked for.

        Example:
            >>> Provenance(Path("nowhere"), ()).checksum
            'names-and-sizes-sha256:e3b0c44298fc1c14...'
        """
        if 0 < len(self.files) <= 3:
            digest = hashlib.sha256()
            try:
                for file in self.files:
                    with file.open("rb") as stream:
                        while chunk := stream.read(CHUNK):
                            digest.update(chunk)
                return f"sha256:{digest.hexdigest()}"
            except (FileNotFoundError, PermissionError):
                # A file that was skipped for this reason is told by its name, and the checksum's name says so.
                pass
        digest = hashlib.sha256()
        for file in self.files:
            name = file.relative_to(self.path) if file.is_relative_to(self.path) else file
            # A broken link, which may have been skipped, has no size.
            size = file.stat().st_size if file.exists() else None
            digest.update(f"{name.as_posix()}\n{size}\n".encode())
        return f"names-and-sizes-sha256:{digest.hexdigest()}"

    def describe(self) -> dict[str, Any]:
        """Return path, checksum and notes as records keep them.

        Example:
            >>> Provenance(Path("nowhere"), ()).describe()["notes"]
            []
        """
        return {"path": str(self.path), "checksum": self.checksum, "notes": list(self.notes)}
