"""Downloading one file: resumed after an interruption, from the first mirror that works, and checked."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

__all__ = ["DownloadError", "download", "file_digest"]

CHUNK = 2**18
ATTEMPTS = 5
TIMEOUT = 30.0
# Seconds before the second attempt; doubled before each further one.
PAUSE = 1.0
LENGTHS = {32: "md5", 40: "sha1", 64: "sha256"}


class DownloadError(OSError):
    """No mirror gave the file that was asked for; the message names each with its reason.

    Example:
        >>> raise DownloadError("nothing came")
        Traceback (most recent call last):
            ...
        shiftnorm.data.download.DownloadError: nothing came
    """


class _Refused(Exception):
    """This mirror does not help, however often it is asked."""


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from shiftnorm.data.download import file_digest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a"
        ...     _ = file.write_bytes(b"pixels")
        ...     file_digest(file, "md5")
        'd399848208da8b80a306af0fd62bb03f'
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    urls: Sequence[str],
    target: Path,
    *,
    checksum: str,
    size: int | None = None,
    on_progress: Callable[[int, int | None], object] | None = None,
    attempts: int = ATTEMPTS,
    timeout: float = TIMEOUT,
    pause: float = PAUSE,
) -> Path:
    """Download a file to ``target``, unless it is there already with the right checksum.

    What has arrived is kept in ``target.part``; an interrupted download goes on from there, in the same call after a
    pause or in a later one, also from another mirror. The target appears only when the checksum agrees.

    Example:
        >>> import hashlib, tempfile
        >>> from pathlib import Path
        >>> from shiftnorm.data.download import download
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there = Path(folder) / "images.tar"
        ...     _ = there.write_bytes(b"pixels")
        ...     download([], there, checksum=hashlib.md5(b"pixels").hexdigest()).name
        'images.tar'

    Args:
        urls: the file's addresses, http or https, the best first.
        target: where to put it.
        checksum: its hexadecimal md5, sha1 or sha256, told apart by length.
        size: bytes of the complete file, if known.
        on_progress: called with the bytes there are and the size of all, None if unknown.
        attempts: how often to ask each mirror.
        timeout: seconds without any data after which an attempt is given up.
        pause: seconds before the second attempt, doubled before each further one.

    Returns:
        ``target``.

    Raises:
        ValueError: an address that is not http(s), or a checksum of no known length.
        DownloadError: no mirror gave the file.
        OSError: the target cannot be written, or the disk is full.
    """
    algorithm = LENGTHS.get(len(checksum))
    if algorithm is None or not re.fullmatch("[0-9a-fA-F]+", checksum):
        raise ValueError(f"download: checksum must be the hexadecimal md5, sha1 or sha256, got {checksum!r}")
    if strangers := [url for url in urls if not url.startswith(("https://", "http://"))]:
        raise ValueError(f"download: addresses must start with https:// or http://, got {strangers[0]!r}")
    if target.is_file() and file_digest(target, algorithm) == checksum.lower():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reasons: list[str] = []
    for url in urls:
        # What is there may come from an earlier failure: a wrong sum then deserves one fresh start from this mirror.
        for fresh in (False, True):
            if fresh:
                part.unlink(missing_ok=True)
            resumed = part.exists()
            try:
                _fetch(url, part, size, on_progress, attempts, timeout, pause)
            except _Refused as error:
                reasons.append(f"{url}: {error}")
                break
            found = file_digest(part, algorithm)
            if found == checksum.lower():
                os.replace(part, target)
                return target
            if fresh or not resumed:
                part.unlink(missing_ok=True)
                reasons.append(f"{url}: {algorithm} {found} instead of {checksum}")
                break
    listed = "\n  ".join(reasons) or "no address is known"
    raise DownloadError(
        f"download: could not get {target.name}:\n  {listed}\nTry again later (what has arrived is kept), or download "
        f"it elsewhere and put it at {target}"
    )


def _fetch(
    url: str,
    part: Path,
    size: int | None,
    on_progress: Callable[[int, int | None], object] | None,
    attempts: int,
    timeout: float,
    pause: float,
) -> None:
    """Bring ``part`` to completeness from one mirror."""
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _continue(url, part, size, on_progress, timeout)
            return
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            # Only these go away by themselves.
            if error.code not in (408, 425, 429) and error.code < 500:
                raise _Refused(reason) from error
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    raise _Refused(f"{reason} ({attempts} attempts)")


def _continue(
    url: str,
    part: Path,
    size: int | None,
    on_progress: Callable[[int, int | None], object] | None,
    timeout: float,
) -> None:
    there = part.stat().st_size if part.exists() else 0
    if size is not None and there == size:
        return
    if size is not None and there > size:
        part.unlink()
        there = 0
    # The plain bytes, or the ranges would be those of a compressed copy.
    headers = {"User-Agent": "shiftnorm", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:
            raise
        # Nothing lies behind what is there: it is complete, or of another file, which the checksum tells.
        if re.fullmatch(rf"bytes \*/{there}", error.headers.get("Content-Range", "")):
            return
        part.unlink()
        raise ConnectionError("the server has less than what was there; starting again") from error
    with response:
        start, total = _where(response, there)
        with part.open("r+b" if part.exists() else "wb") as file:
            file.seek(start)
            file.truncate()
            got = start
            while chunk := response.read(CHUNK):
                file.write(chunk)
                got += len(chunk)
                if on_progress is not None:
                    on_progress(got, total if size is None else size)
    expected = total if size is None else size
    if expected is not None and got < expected:
        raise ConnectionError(f"the connection ended after {got} of {expected} bytes")


def _where(response: HTTPResponse, there: int) -> tuple[int, int | None]:
    """Return at which byte the response's data start, and the size of the whole file, None if unknown."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != there:
            raise _Refused(f"asked for the bytes from {there}, got {response.headers.get('Content-Range')!r}")
        return there, None if found[2] == "*" else int(found[2])
    # The server does not know ranges and sends everything.
    return 0, int(length) if length is not None and length.isdigit() else None
