"""Where the result of an evaluation lies, in its own folder or in the run of a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["RESULT_FILE", "find_result"]

RESULT_FILE: Final = "result.json"
# Within a run of `shiftnorm train`; fit.run_folder.evaluation_of names them.
_OF_RUN = ("evaluation", "evaluation-step*")


def find_result(path: str | os.PathLike[str]) -> Path:
    """The result file that a path means: itself, the one of a folder, or the one evaluation of a trained run.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> (run / "evaluation" / "0f").mkdir(parents=True)
        >>> (run / "evaluation" / "0f" / "result.json").touch()
        >>> find_result(run).relative_to(run).as_posix()
        'evaluation/0f/result.json'

    Args:
        path: a file, the folder of an evaluation, or the folder of a run of `shiftnorm train`.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if there is nothing at the path, or no result in the folder.
        ValueError: if the run was evaluated in several ways; the text names their folders.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Result: no file {path}, nor a folder of that name.")
    if path.is_file() or (path / RESULT_FILE).is_file():
        return path if path.is_file() else path / RESULT_FILE
    inside = any(path.match(place) for place in _OF_RUN)
    places = ("*",) if inside else tuple(f"{place}/*" for place in _OF_RUN)
    found = [file for place in places for file in sorted(path.glob(f"{place}/{RESULT_FILE}"))]
    if len(found) > 1:
        folders = ", ".join(str(file.parent) for file in found)
        raise ValueError(f"Result: {path} was evaluated in {len(found)} ways; name the one you mean: {folders}.")
    if not found:
        raise FileNotFoundError(
            f"Result: no file {path / RESULT_FILE}. An unfinished evaluation has none: run it again to end."
        )
    return found[0]
