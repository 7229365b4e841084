"""How large a compressed tar archive is when unpacked, as far as its file says without being read."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

# How files of a compression begin.
_BEGINNINGS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_FOOTER = 12
# The end of a tar file, filled with zeros, is not unpacked.
_PADDING = 10240


def compression_of(archive: Path) -> str | None:
    """Return ``"gz"``, ``"bz2"`` or ``"xz"``, whatever the file's name says; None for another or none."""
    with archive.open("rb") as stream:
        beginning = stream.read(8)
    return next((name for bytes_, name in _BEGINNINGS.items() if beginning.startswith(bytes_)), None)


def needed_at_least(archive: Path) -> int:
    """Return a number of bytes that the unpacked files need on a disk, or more.

    The end of an xz file lists the sizes of its blocks. That of a gzip file holds its size modulo 4 GiB, a bzip2 file
    none; these are at least as large as they are compressed. The headers inside a tar file take less than what files
    lose to the blocks of a disk.
    """
    packed = archive.stat().st_size
    kind = compression_of(archive)
    with archive.open("rb") as stream:
        unpacked = _size_of_gz(stream) if kind == "gz" else _size_of_xz(stream, packed) if kind == "xz" else 0
    return max(packed, unpacked) - min(_PADDING, packed)


def _size_of_gz(stream: BinaryIO) -> int:
    stream.seek(-4, os.SEEK_END)
    return struct.unpack("<I", stream.read(4))[0]


def _size_of_xz(stream: BinaryIO, size: int) -> int:
    """The sizes of the blocks in the index of the last stream; 0 if this is not where the format has it."""
    if size < 2 * _FOOTER:
        return 0
    stream.seek(size - _FOOTER)
    footer = stream.read(_FOOTER)
    backward = 4 * (struct.unpack("<I", footer[4:8])[0] + 1)
    if footer[-2:] != b"YZ" or backward + 2 * _FOOTER > size:
        return 0
    stream.seek(size - _FOOTER - backward)
    index = stream.read(backward)
    try:
        records, place = _number(index, 1)
        total = 0
        for _ in range(records):
            _, place = _number(index, place)
            unpacked, place = _number(index, place)
            total += unpacked
    except IndexError:  # the end is damaged, which unpacking will say
        return 0
    return total


def _number(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value, shift = 0, 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
