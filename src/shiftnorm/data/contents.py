"""What is in the files of many images, which their names and sizes do not tell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shiftnorm.data.checksums import digest_of
from shiftnorm.data.dataset import Dataset

__all__ = ["contents_of", "digest_contents"]

# Files that are read at the same time: a disk or a network that is asked for several is quicker than for one.
READERS = 8


def contents_of(dataset: Dataset) -> str | None:
    """The SHA-256 of the contents of all images' files; None where the provenance's checksum is of contents already.

    Example:
        >>> import torch
        >>> contents_of(Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",)))

    Args:
        dataset: any; of a part of a data set only the files of that part are read.

    Returns:
        64 hexadecimal digits, or None.
    """
    source = dataset.provenance
    if not source.files or source.checksum.startswith("sha256:"):
        return None
    return digest_contents(dataset.files() or source.files)


def digest_contents(files: Sequence[str | Path]) -> str:
    """The SHA-256 of the contents of many files, in their order, whatever they are called and wherever they lie.

    Reading a picture takes a small part of the time that decoding it takes.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "images.npy"
        >>> _ = file.write_bytes(b"pixels")
        >>> before = digest_contents([file, file])
        >>> _ = file.write_bytes(b"pixelz")
        >>> digest_contents([file, file]) == before
        False

    Args:
        files: the files; one that cannot be read counts as such.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for each in pool.map(_digest_or_why, files):
            digest.update(each.encode())
    return digest.hexdigest()


def _digest_or_why(file: str | Path) -> str:
    try:
        return digest_of(Path(file))
    except OSError as fault:  # as of a file that will be skipped when it is to be decoded
        return type(fault).__name__
