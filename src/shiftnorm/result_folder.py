"""Whose results a folder holds, so that one command does not write over what another has left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["COMPARISON", "EVALUATION", "GRID", "TRAINING", "check_owner", "list_changes", "name_below", "owner_of"]

COMPARISON = "a comparison of norms"
EVALUATION = "an evaluation"
GRID = "a comparison of recipes"
TRAINING = "a training run"
_NAMED = 8


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
