"""A folder of finished cells, so that a sweep can stop at any moment and go on later."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, final

from shiftnorm.evaluate.cells import CLEAN, common_images
from shiftnorm.evaluate.fingerprint import CONTENTS
from shiftnorm.evaluate.outcome import CellOutcome, read_metadata
from shiftnorm.evaluate.record import read_json, write_json
from shiftnorm.evaluate.result import RESULT_FILE
from shiftnorm.result_folder import EVALUATION, check_owner, check_writable, list_changes

__all__ = ["CellFolder", "read_cells"]

_FORMAT: Final = "shiftnorm.cells/1"
_IDENTITY: Final = "identity.json"
_STALE_SECONDS: Final = 3600.0
_WORDS: Final = {
    "model": "model is another one, or has other weights",
    CONTENTS: "images have other contents in files of the same names and sizes",
    "corruption code": "corruptions are those of another version",
    "frost photographs": "frost photographs are others",
}


@final
class CellFolder:
    """The cells of one evaluation: ``identity.json`` says of which, ``cells/NAME-SEVERITY.safetensors`` hold them.

    Each file appears whole or not at all. A folder belongs to one identity; another is refused, so that no two
    evaluations mix and nothing is overwritten.

    Example:
        >>> import tempfile, torch
        >>> folder = CellFolder(Path(tempfile.mkdtemp()) / "run", {"seed": 0})
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> folder.write(("fog", 3), cell, {})
        >>> folder.read(("fog", 3))[0].error, folder.read(("fog", 4))
        (50.0, None)
        >>> CellFolder(folder.path, {"seed": 1})
        Traceback (most recent call last):
        ...
        ValueError: robustness: .../run holds another evaluation; seed was 0, now 1. ...

    Args:
        path: the folder, made if need be.
        identity: what decides the cells' numbers, as plain data.
        images: how many there are, for the error.

    Raises: ValueError if the folder belongs to another identity, or holds results that are not from here. OSError, or
        one of its kinds, if it cannot be written to.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], *, images: int | None = None) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        self.remarks: list[str] = []
        # What opening adds, the innermost first, for `abandon`.
        self._added: list[Path] = []
        check_writable(self.path, "robustness")
        check_owner(self.path, EVALUATION, "robustness")
        file = self.path / _IDENTITY
        if file.is_file():
            self._compare(read_json(file), images)
        else:
            taken = [name for name in (RESULT_FILE, "cells") if (self.path / name).exists()]
            if taken:
                raise ValueError(
                    f"robustness: {self.path} has {' and '.join(taken)} but no {_IDENTITY}, so it is not known of "
                    "which evaluation they are. Choose another folder for out."
                )
            self._added = [file, *(each for each in (self.path, *self.path.parents) if not each.exists())]
            write_json(file, {"format": _FORMAT, "identity": self.identity})
        self._remove_stale()

    def _compare(self, content: dict[str, Any], images: int | None) -> None:
        before = content.get("identity")
        if content.get("format") != _FORMAT or not isinstance(before, dict):
            raise ValueError(f"robustness: {self.path / _IDENTITY} is not from an evaluation. Choose another folder.")
        if CONTENTS not in before:
            # Of an earlier version, which did not look into the files: it goes on as it began.
            self.identity.pop(CONTENTS, None)
        now, words = self.identity, _WORDS
        if before.get("data") != now.get("data"):
            words = {**_WORDS, "data": self._describe_data(images)}
            # of other images the contents are others too, which is no news
            before, now = ({key: of[key] for key in of if key != CONTENTS} for of in (before, now))
        if changed := list_changes(before, now, words):
            raise ValueError(
                f"robustness: {self.path} holds another evaluation; {'; '.join(changed)}. "
                "Choose another folder for out=, or go back to the same model, data and settings to go on with it."
            )

    def _describe_data(self, images: int | None) -> str:
        """How the images that are asked for differ from those of the cells, which alone know how many they were."""
        try:
            measured = len(CellOutcome.from_file(self.file(CLEAN)))
        except (FileNotFoundError, ValueError):  # not measured yet, or damaged
            measured = images
        if measured != images and images is not None:
            return f"data are other images ({measured} were measured, now {images}: another limit= or split=?)"
        return "data are other images, labels or classes, or otherwise preprocessed"

    def _remove_stale(self) -> None:
        """Remove what a killed process began to write; a younger file may belong to one that still runs."""
        for file in (self.path / "cells").glob(".*.tmp"):
            if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Remove what opening added, unless something was measured: a refused evaluation leaves nothing.

        Example:
            >>> import tempfile
            >>> folder = CellFolder(Path(tempfile.mkdtemp()) / "run", {"seed": 0})
            >>> folder.abandon()
            >>> folder.path.exists()
            False
        """
        if not self._added or (self.path / "cells").exists():
            return
        file, *folders = self._added
        file.unlink(missing_ok=True)
        for folder in folders:
            if not folder.is_dir() or any(folder.iterdir()):
                return  # somebody else is using it by now
            folder.rmdir()

    def file(self, key: tuple[str, int]) -> Path:
        """Where a cell is, or will be.

        Example:
            >>> import tempfile
            >>> CellFolder(tempfile.mkdtemp(), {}).file(("fog", 3)).name
            'fog-3.safetensors'
        """
        return self.path / "cells" / f"{key[0]}-{key[1]}.safetensors"

    def read(self, key: tuple[str, int]) -> tuple[CellOutcome, dict[str, Any]] | None:
        """A finished cell with its metadata; None if it is still to be measured.

        A file that cannot be read, or is not of this cell, is set aside under a name with ``.damaged``, with a remark
        in ``remarks``.

        Example:
            >>> import tempfile
            >>> CellFolder(tempfile.mkdtemp(), {}).read(("fog", 3)) is None
            True
        """
        file = self.file(key)
        if not file.is_file():
            return None
        try:
            metadata = read_metadata(file)
            if metadata.get("cell") != list(key) or metadata.get("identity") != self.identity:
                raise ValueError(f"{file.name} was made by another evaluation.")
            return CellOutcome.from_file(file), metadata
        except ValueError as fault:
            aside = file.with_name(f"{file.name}.{time.time_ns()}.damaged")
            file.rename(aside)
            self.remarks.append(
                f"{file.name} could not be used ({fault}) and was measured again; it is kept as {aside.name}."
            )
            return None

    def write(self, key: tuple[str, int], outcome: CellOutcome, metadata: Mapping[str, Any]) -> None:
        """Write a finished cell.

        Example:
            >>> import tempfile, torch
            >>> folder = CellFolder(tempfile.mkdtemp(), {})
            >>> folder.write(("fog", 1), CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0])), {"seconds": 2.0})
            >>> folder.read(("fog", 1))[1]["seconds"]
            2.0
        """
        outcome.to_file(self.file(key), {**metadata, "cell": list(key), "identity": self.identity})


def read_cells(path: Path, wanted: Collection[tuple[str, int]] | None = None) -> dict[tuple[str, int], CellOutcome]:
    """Cells of a folder by (corruption, severity).

    Example:
        >>> import tempfile, torch
        >>> folder = CellFolder(tempfile.mkdtemp(), {})
        >>> folder.write(("fog", 1), CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0])), {})
        >>> list(read_cells(folder.path))
        [('fog', 1)]

    Args:
        path: the folder with ``cells/``.
        wanted: which cells; None for all. The folder may hold more than a result is of, which may lack other images.

    Returns:
        Outcomes, of those that are there, of the images that every one of them has.

    Raises:
        FileNotFoundError: if it has no cells.
        ValueError: if one is damaged.
    """
    found: dict[tuple[str, int], CellOutcome] = {}
    for file in sorted((path / "cells").glob("*.safetensors")):
        name, severity = read_metadata(file).get("cell", (None, None))
        if isinstance(name, str) and isinstance(severity, int) and (wanted is None or (name, severity) in wanted):
            found[name, severity] = CellOutcome.from_file(file)
    if not found:
        which = "no cells" if wanted is None else f"none of the cells {list(wanted)}"
        raise FileNotFoundError(f"robustness: {which} in {path / 'cells'}.")
    return common_images(found)
