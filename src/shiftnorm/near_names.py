"""What errors say to an unknown name: the names that look like it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["suggest"]


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: near matches, or else all that is known.

    Example:
        >>> suggest("selfnrm", ["BatchNorm", "SelfNorm"])
        'did you mean SelfNorm?'
        >>> suggest("x", ["BatchNorm", "SelfNorm"])
        'known: BatchNorm, SelfNorm.'

    Args:
        name: what was asked for.
        known: the names there are.

    Returns:
        A half-sentence.
    """
    exact = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), exact, n=3, cutoff=0.6)
    if near:
        return f"did you mean {', '.join(exact[match] for match in near)}?"
    return f"known: {', '.join(exact.values())}."
