"""What a robustness evaluation found, as plain data that JSON can hold."""

from __future__ import annotations

import base64
import json
import os
import statistics
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor

from shiftnorm.evaluate.record import read_json, to_plain, write_json
from shiftnorm.evaluate.result_file import RESULT_FILE, find_result

__all__ = ["RESULT_FILE", "Calibration", "CellResult", "Estimate", "Example", "Result"]

FORMAT: Final = "shiftnorm.robustness/1"


class Estimate(NamedTuple):
    """A number between the bounds of its confidence interval, None where no interval was asked for.

    Example:
        >>> print(Estimate(23.4, 22.9, 24.0))
        23.40 [22.90, 24.00]
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class CellResult(NamedTuple):
    """One cell, a corruption at a severity, or the clean images (``"clean"``, 0); errors in percent.

    Example:
        >>> CellResult("fog", 3, Estimate(12.0, 11.0, 13.0), 2.0, 0.4, 0.2).error.value
        12.0

    Args:
        corruption: its name.
        severity: 1 to 5; 0 for the clean images.
        error: top-1 error with Wilson's interval.
        top5_error: top-5 error.
        nll: mean negative log-likelihood in nats; None if it is infinite.
        brier: mean Brier score, from 0 to 2.
    """

    corruption: str
    severity: int
    error: Estimate
    top5_error: float
    nll: float | None
    brier: float


class Calibration(NamedTuple):
    """How far confidence is from accuracy.

    Example:
        >>> Calibration(2.0, 3.0, []).ece
        2.0

    Args:
        ece: expected calibration error over 15 bins of equal width, in percent.
        rms: root mean square calibration error over bins of 100 images, in percent.
        bins: the reliability diagram: per bin of equal width ``lower``, ``upper``, ``count``, and ``confidence`` and
            ``accuracy`` (0 to 1; None for an empty bin).
    """

    ece: float
    rms: float
    bins: list[dict[str, Any]]


class Example(NamedTuple):
    """An image as a network was given it before normalization, made small for a report.

    Example:
        >>> shown = Example("fog", 3, 0, torch.zeros(3, 8, 8, dtype=torch.uint8))
        >>> torch.equal(Example.from_json(shown.to_json()).image, shown.image)
        True

    Args:
        corruption: its name; ``"clean"`` for the image as it is.
        severity: 1 to 5; 0 for the image as it is.
        number: of the image in its data set.
        image: (3, H, W) uint8.
    """

    corruption: str
    severity: int
    number: int
    image: Tensor

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``pixels`` is the base64 of the zlib-compressed (H, W, 3) bytes.

        Example:
            >>> sorted(Example("clean", 0, 0, torch.zeros(3, 8, 8, dtype=torch.uint8)).to_json())
            ['corruption', 'height', 'number', 'pixels', 'severity', 'width']
        """
        raw = bytes(self.image.permute(1, 2, 0).contiguous().flatten().tolist())
        return {
            "corruption": self.corruption,
            "severity": self.severity,
            "number": self.number,
            "height": self.image.shape[1],
            "width": self.image.shape[2],
            "pixels": base64.b64encode(zlib.compress(raw, 9)).decode("ascii"),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Example:
        """Read what :meth:`to_json` gave.

        Example:
            >>> data = Example("clean", 0, 7, torch.zeros(3, 8, 8, dtype=torch.uint8)).to_json()
            >>> Example.from_json(data).number
            7

        Raises:
            ValueError: if the pixels are not as many as height and width say.
        """
        height, width = int(content["height"]), int(content["width"])
        size = 3 * height * width
        # A stranger's file may name a small picture and unpack into gigabytes.
        raw = zlib.decompressobj().decompress(base64.b64decode(content["pixels"]), max(size + 1, 1))
        if len(raw) != size or size == 0:
            raise ValueError(f"Example: expected {height}x{width}x3 bytes of pixels, got {len(raw)} or more.")
        image = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)
        return cls(content["corruption"], int(content["severity"]), int(content["number"]), image.contiguous())


@final
@dataclass(frozen=True, eq=False)
class Result:
    """Errors of a network on clean and corrupted images, with intervals, and how they were measured.

    ``to_json()`` is a dictionary with the fields below by their names and ``"format": "shiftnorm.robustness/1"``.
    An :class:`Estimate` becomes ``{"value", "low", "high"}``, a :class:`CellResult` and a :class:`Calibration` objects
    with their fields' names, an :class:`Example` what its own ``to_json`` says; ``folder`` is left out. Errors are in
    percent, cells in the order of measuring: corruption by corruption, severities rising.

    Example:
        >>> cells = [CellResult("fog", s, Estimate(10.0 * s), 0.0, 1.0, 0.1) for s in (1, 2)]
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.5, 5.5), 0.0, 1.0, 0.1)
        >>> result = Result("net", 100, clean, cells, Estimate(15.0, 14.0, 16.0))
        >>> result.errors, result.worst_corruption
        ({'fog': [10.0, 20.0]}, ('fog', 15.0))
        >>> Result.from_json(result.to_json()).clean.error
        Estimate(value=5.0, low=4.5, high=5.5)

    Args:
        name: of the network.
        images: how many images each cell has.
        clean: the clean images.
        cells: the corrupted cells.
        mean_corruption_error: plain mean of the errors over corruptions and severities, with a bootstrap interval over
            images.
        mce: mean corruption error in percent of the baseline's; None without a baseline that covers the cells.
        relative_mce: the same for what corruptions add to the clean error.
        baseline: what mce divides by: ``name``, ``source``, and ``called``, the name its number may go by ("mCE", or
            "mCE-like" with a remark where the images are not those the baseline was measured on); None without.
        classes: names of the classes.
        class_errors: ``"clean"`` and ``"corrupted"`` (mean over the corrupted cells): errors by class, None for a class
            without images.
        calibration: ``"clean"`` and ``"corrupted"`` (all corrupted cells together).
        data: name, number, checksum, path and notes of the images.
        settings: all that decides the numbers (``seed``, ``constants``, ``storage``, ``frost``, ``normalize``,
            ``mean``, ``std``, ``amp``, ...) or the intervals (``bootstrap``, ``level``), and ``batch_size``,
            ``device``, ``ranks``.
        cost: ``parameters``, ``ms_per_image`` (of the forward pass), ``peak_memory_mb`` (None where it cannot be known)
            and ``seconds`` of the whole evaluation in this process.
        notes: sentences a reader of the numbers needs.
        warnings: sentences about what looks wrong.
        versions: of Python and packages.
        machine: kind of machine.
        command: what was run, or None.
        finished: UTC time, ISO 8601.
        fingerprint: digests of model, data and settings; results with the same one are of the same evaluation.
        examples: the same image clean and under every corruption at a few severities.
        folder: where ``result.json`` and ``cells/`` are; None if nothing was written. It is not in the JSON.
    """

    name: str
    images: int
    clean: CellResult
    cells: list[CellResult]
    mean_corruption_error: Estimate | None
    mce: Estimate | None = None
    relative_mce: Estimate | None = None
    baseline: dict[str, str] | None = None
    classes: list[str] = field(default_factory=list)
    class_errors: dict[str, list[float | None]] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    finished: str | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    folder: Path | None = None

    @property
    def corruptions(self) -> list[str]:
        """Names of the corruptions, in the order of measuring.

        Example:
            >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
            >>> Result("net", 100, clean, [clean._replace(corruption="fog", severity=2)], None).corruptions
            ['fog']
        """
        return list(dict.fromkeys(cell.corruption for cell in self.cells))

    @property
    def severities(self) -> list[int]:
        """The severities, rising.

        Example:
            >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
            >>> Result("net", 100, clean, [clean._replace(corruption="fog", severity=2)], None).severities
            [2]
        """
        return sorted({cell.severity for cell in self.cells})

    @property
    def errors(self) -> dict[str, list[float]]:
        """Top-1 errors by corruption, one for each severity.

        Example:
            >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
            >>> Result("net", 100, clean, [clean._replace(corruption="fog", severity=2)], None).errors
            {'fog': [5.0]}
        """
        found: dict[str, list[float]] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.severity):
            found.setdefault(cell.corruption, []).append(cell.error.value)
        return {name: found[name] for name in self.corruptions}

    @property
    def worst_corruption(self) -> tuple[str, float] | None:
        """The corruption with the highest mean error, and that error; None without corruptions.

        Example:
            >>> Result("net", 100, CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1), [], None).worst_corruption
        """
        means = {name: statistics.fmean(row) for name, row in self.errors.items()}
        return max(means.items(), key=lambda item: item[1]) if means else None

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """The class with the highest error under corruption (clean, if nothing was corrupted), and that error.

        Example:
            >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
            >>> by_class = {"clean": [1.0, 9.0, None]}
            >>> Result("net", 9, clean, [], None, classes=["cat", "dog", "eel"], class_errors=by_class).worst_class
            ('dog', 9.0)
        """
        row = self.class_errors.get("corrupted") or self.class_errors.get("clean") or []
        known = [(value, -place) for place, value in enumerate(row) if value is not None]
        if not known:
            return None
        value, place = max(known)
        return (self.classes[-place] if -place < len(self.classes) else str(-place)), value

    def to_json(self) -> dict[str, Any]:
        """The result as plain data; see the class.

        Example:
            >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
            >>> Result("net", 100, clean, [], None).to_json()["clean"]["error"]
            {'value': 5.0, 'low': None, 'high': None}
        """
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        content["examples"] = [example.to_json() for example in self.examples]
        return {"format": FORMAT, **to_plain(content)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | str) -> Result:
        """Read what :meth:`to_json` gave, or its text.

        Example:
            >>> Result.from_json({"format": "else"})
            Traceback (most recent call last):
            ...
            ValueError: Result: expected format 'shiftnorm.robustness/1', got 'else'. ...

        Raises:
            ValueError: if it is of another format, or fields are missing, unknown or of another kind.
        """
        found = json.loads(content) if isinstance(content, str) else content
        form = found.get("format") if isinstance(found, Mapping) else None
        if form != FORMAT:
            raise ValueError(
                f"Result: expected format {FORMAT!r}, got {form!r}. "
                "Is this the result.json that a robustness evaluation wrote?"
            )
        values = {key: value for key, value in found.items() if key != "format"}
        known = {item.name for item in fields(cls)} - {"folder"}
        required = {"name", "images", "clean", "cells", "mean_corruption_error"}
        if values.keys() - known or required - values.keys():
            raise ValueError(
                f"Result: missing fields {sorted(required - values.keys())}, unknown fields "
                f"{sorted(values.keys() - known)}; it was written by another version."
            )
        try:
            values["clean"] = _cell(values["clean"])
            values["cells"] = [_cell(cell) for cell in values["cells"]]
            for key in ("mean_corruption_error", "mce", "relative_mce"):
                values[key] = None if values.get(key) is None else Estimate(**values[key])
            rows = values.get("calibration", {})
            values["calibration"] = {key: Calibration(**row) for key, row in rows.items()}
            values["examples"] = [Example.from_json(row) for row in values.get("examples", [])]
        except (TypeError, KeyError, AttributeError, zlib.error) as fault:
            raise ValueError(f"Result: a field is not of the expected form ({fault}).") from fault
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON; the file appears whole or not at all.

        Example:
            >>> import tempfile
            >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
            >>> path = Result("net", 100, clean, [], None).save(Path(tempfile.mkdtemp()) / "result.json")
            >>> Result.load(path).name
            'net'

        Args:
            path: the file; in a folder beside ``cells/``, :meth:`load` finds the cells again.

        Returns:
            The path.
        """
        write_json(Path(path), self.to_json())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a file that :meth:`save` wrote, the ``result.json`` of a folder, or the one evaluation of a trained run.

        Example:
            >>> Result.load("no-such-folder")
            Traceback (most recent call last):
            ...
            FileNotFoundError: Result: no file no-such-folder, ...

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no result, or a run has several; the text names the file or them.
        """
        file = find_result(path)
        content = read_json(file)
        try:
            result = cls.from_json(content)
        except ValueError as fault:
            raise ValueError(f"{file}: {fault}") from fault
        folder = file.parent.resolve() if (file.parent / "cells").is_dir() else None
        return replace(result, folder=folder)

    def __str__(self) -> str:
        from shiftnorm.evaluate.result_text import describe_result

        return describe_result(self)


def _cell(content: Mapping[str, Any]) -> CellResult:
    return CellResult(**{**content, "error": Estimate(**content["error"])})
