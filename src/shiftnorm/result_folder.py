"""Whose results a folder holds, so that one command does not write over another's, and whether it can be written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "COMPARISON",
    "EVALUATION",
    "GRID",
    "TRAINING",
    "check_owner",
    "check_writable",
    "list_changes",
    "name_below",
    "owner_of",
    "plain_faults",
]

COMPARISON = "a comparison of norms"
EVALUATION = "an evaluation"
GRID = "a comparison of recipes"
TRAINING = "a training run"
_NAMED = 8
# What the system says by a number, in words that say what to do; PLACE is where.
_FAULTS = {
    errno.EROFS: "the disk of PLACE is read-only; choose another out=",
    errno.ENAMETOOLONG: "a name in it is longer than the disk allows; choose a shorter out=",
    errno.ENOSPC: "the disk of PLACE is full; free some space, or choose another out=",
    errno.EDQUOT: "your share of the disk of PLACE is used up; free some space, or choose another out=",
    errno.ELOOP: "a link in it leads back to itself; choose another out=",
    errno.EIO: "the disk of PLACE does not work; choose another out=",
}
_FORBIDDEN = "there is no permission to write in PLACE; change its mode, or choose another out="
_WRITING = {**_FAULTS, errno.EACCES: _FORBIDDEN, errno.EPERM: _FORBIDDEN}
_FORBIDDEN_FILE = "there is no permission; change its mode or that of PLACE"
_USING = {**_FAULTS, errno.EACCES: _FORBIDDEN_FILE, errno.EPERM: _FORBIDDEN_FILE}


def owner_of(folder: Path) -> str | None:
    """What a folder holds the results of; None if it is empty, not there, or nobody's.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> owner_of(folder) is None
        True
        >>> (folder / "cells").mkdir()
        >>> owner_of(folder)
        'an evaluation'
    """
    if (folder / "records").is_dir():
        return COMPARISON
    if (folder / "recipe.yaml").is_file():
        return TRAINING
    if (folder / "cells").is_dir():
        return EVALUATION
    if (folder / "table.md").is_file() and next(folder.glob("*/recipe.yaml"), None) is not None:
        return GRID
    return None


def check_owner(folder: Path, owner: str, who: str) -> None:
    """Refuse a folder with the results of something else.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "records").mkdir()
        >>> check_owner(folder, COMPARISON, "compare")
        >>> check_owner(folder, TRAINING, "train")
        Traceback (most recent call last):
        ...
        ValueError: train: ... holds a comparison of norms, which would be written over; choose another --out.

    Args:
        folder: where results are to go.
        owner: what they are results of, one of the names of this module.
        who: what the error begins with.

    Raises:
        ValueError: if the folder holds the results of something else.
    """
    found = owner_of(folder)
    if found not in (None, owner):
        raise ValueError(f"{who}: {folder} holds {found}, which would be written over; choose another --out.")


def check_writable(path: Path, who: str, *, file: bool = False) -> None:
    """Refuse a place where nothing can be written, before the work is done whose results are to go there.

    It is tried out beside the place, in the nearest folder there is, and nothing is left of it.

    Example:
        >>> place = Path(tempfile.mkdtemp())
        >>> check_writable(place / "new" / "results", "evaluate")
        >>> list(place.iterdir())
        []
        >>> (place / "notes.txt").touch()
        >>> check_writable(place / "notes.txt" / "results", "evaluate")
        Traceback (most recent call last):
        ...
        NotADirectoryError: evaluate: cannot write into .../notes.txt/results: .../notes.txt is a file, ...

    Args:
        path: a folder, there already or not.
        who: what the error begins with.
        file: ``path`` is a file instead, which is to be written or replaced.

    Raises:
        NotADirectoryError: if a file is in the place of a folder.
        IsADirectoryError: if a folder is in the place of a file.
        PermissionError: if the place may not be written to.
        OSError: if it cannot be written for another reason, such as a name that is too long or a full disk.
    """
    path = path.absolute()
    said = f"{who}: cannot write {path}" if file else f"{who}: cannot write into {path}"
    if file and os.path.isdir(path):
        raise IsADirectoryError(f"{said}: it is a folder; choose another name.")
    folder = path.parent if file else path
    # Not Path.exists, which itself fails for a name that is too long.
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not os.path.isdir(there):
        kind = "a link to nothing" if there.is_symlink() and not there.exists() else "a file, not a folder"
        raise NotADirectoryError(f"{said}: {there} is {kind}; choose another out=.")
    inside = folder.relative_to(there)
    tried: str | None = None
    try:
        tried = tempfile.mkdtemp(prefix=".try-", dir=there)
        place = Path(tried, inside)
        place.mkdir(parents=True, exist_ok=True)
        # Files are written under a longer name first, so that they appear whole.
        (place / (f".{path.name}.{os.getpid()}.tmp" if file else "file")).write_bytes(b"x")
    except (OSError, ValueError) as fault:
        raise _said_plainly(fault, said, there, _WRITING) from fault
    finally:
        if tried is not None:
            shutil.rmtree(tried, ignore_errors=True)


def _said_plainly(fault: OSError | ValueError, said: str, place: Path, reasons: Mapping[int, str]) -> Exception:
    number = fault.errno if isinstance(fault, OSError) else None
    if number is None:
        return type(fault)(f"{said}: {fault}")
    reason = reasons.get(number, f"{os.strerror(number)}; choose another out=").replace("PLACE", str(place))
    # The exception that goes with the number, but without the number in its text.
    return type(OSError(number, ""))(f"{said}: {reason}.")


@contextmanager
def plain_faults(who: str, place: Path) -> Iterator[None]:
    """Let what the system has against a file, such as a full disk, be said with its name and what to do.

    Example:
        >>> with plain_faults("evaluate", Path("runs/a")):
        ...     raise OSError(errno.ENOSPC, "No space left on device", "runs/a/result.json")
        Traceback (most recent call last):
        ...
        OSError: evaluate: cannot use runs/a/result.json: the disk of runs/a is full; free some space, or ...

    Args:
        who: what the error begins with.
        place: where results go, for faults that do not say which file they are of.

    Raises:
        OSError: of the same kind; errors that are words already, and of other numbers, are left as they are.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno not in _USING:
            raise
        # As of a disk that is full while a file is written.
        nameless = fault.filename is None
        file = place if nameless else Path(os.fsdecode(fault.filename))
        said = f"{who}: cannot {'write into' if nameless else 'use'} {file}"
        raise _said_plainly(fault, said, place if nameless else file.parent, _USING) from fault


def name_below(folder: Path, *files: str) -> str | None:
    """Advice to name one of the folders up to three levels down that hold a file; None if there is none.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> (place / "runs" / "first").mkdir(parents=True)
        >>> (place / "runs" / "first" / "record.json").touch()
        >>> name_below(place, "record.json")
        'name one: .../runs/first'

    Args:
        folder: that is not one itself.
        files: names, any of which will do.
    """
    places = [f"{level}/{name}" for level in ("*", "*/*", "*/*/*") for name in files]
    found = sorted({path.parent for place in places for path in folder.glob(place)})
    if not found:
        return None
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"name one: {', '.join(map(str, found[:_NAMED]))}{more}"


def list_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], words: Mapping[str, str] | None = None
) -> list[str]:
    """How what a folder is of differs from what is asked for.

    Example:
        >>> list_changes({"seed": 0, "model": "0f" * 32}, {"seed": 1, "model": "f0" * 32})
        ['seed was 0, now 1', 'model was 0f0f0f0f…, now f0f0f0f0…']
        >>> list_changes({"model": "0f" * 32}, {"model": "f0" * 32}, {"model": "another model"})
        ['another model']

    Args:
        before: values by name, as the folder has them.
        now: as they are asked for.
        words: what to say instead, by name, where the values are digests, which tell a reader nothing.

    Returns:
        One text for each name with another value.
    """
    return [
        (words or {}).get(name) or f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = f"{value[:8]}…" if isinstance(value, str) and len(value) >= 64 else repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
