"""What an evaluation on perturbation sequences found, as plain data that JSON can hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from shiftnorm.evaluate.progress import plural
from shiftnorm.evaluate.record import read_json, to_plain, write_json
from shiftnorm.evaluate.result import Estimate
from shiftnorm.evaluate.robustness_table import escape

__all__ = ["STABILITY_FILE", "PerturbationResult", "StabilityResult"]

FORMAT: Final = "shiftnorm.stability/1"
STABILITY_FILE: Final = "stability.json"


class PerturbationResult(NamedTuple):
    """How often a network changes its mind along the sequences of one perturbation.

    Example:
        >>> PerturbationResult("tilt", 100, 31, Estimate(3.0), None).flips.value
        3.0

    Args:
        perturbation: its name, without the number of the difficulty.
        sequences: how many.
        frames: of a sequence; of the longest where they differ.
        flips: flip probability in percent, with a bootstrap interval over sequences.
        top5_distance: T5D, 0 to 15; None for a network of fewer than five classes.
    """

    perturbation: str
    sequences: int
    frames: int
    flips: Estimate
    top5_distance: Estimate | None


@final
@dataclass(frozen=True, eq=False)
class StabilityResult:
    """Flip probabilities and top-5 distances of a network by perturbation, and how they were measured.

    Example:
        >>> rows = [PerturbationResult("tilt", 9, 31, Estimate(2.0), Estimate(1.0))]
        >>> result = StabilityResult("net", rows, Estimate(2.0), Estimate(1.0))
        >>> StabilityResult.from_json(result.to_json()).mean_flips.value
        2.0
        >>> print(result)
        net on 9 sequences
          mean flip probability (mFP)  2.00 %
          mean top-5 distance          1.00
                flips %   T5D
          tilt     2.00  1.00

    Args:
        name: of the network.
        rows: by perturbation, in the order of measuring.
        mean_flips: mean flip probability over perturbations in percent, mFP: the convention of CIFAR-10-P.
        mean_top5: mean top-5 distance over perturbations, not normalised; None for fewer than five classes.
        mfr: mean flip rate: flips in percent of a baseline's; None without one.
        mt5d: mean top-5 distance in percent of a baseline's; None without one.
        baseline: name of the baseline.
        data: name, path, layout, checksums and what was skipped.
        settings: all that decides the numbers.
        notes: sentences a reader of the numbers needs.
        warnings: sentences about what looks wrong.
        versions: of Python and packages.
        machine: kind of machine.
        command: what was run, or None.
        finished: UTC time, ISO 8601.
        seconds: of the evaluation in this process.
        folder: where it is written; None if nowhere. It is not in the JSON.
    """

    name: str
    rows: list[PerturbationResult]
    mean_flips: Estimate
    mean_top5: Estimate | None
    mfr: float | None = None
    mt5d: float | None = None
    baseline: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    finished: str | None = None
    seconds: float | None = None
    folder: Path | None = None

    @property
    def flips(self) -> dict[str, float]:
        """Flip probability by perturbation, in percent.

        Example:
            >>> rows = [PerturbationResult("tilt", 9, 31, Estimate(2.0), None)]
            >>> StabilityResult("net", rows, Estimate(2.0), None).flips
            {'tilt': 2.0}
        """
        return {row.perturbation: row.flips.value for row in self.rows}

    @property
    def top5_distances(self) -> dict[str, float]:
        """Top-5 distance by perturbation; empty for a network of fewer than five classes.

        Example:
            >>> rows = [PerturbationResult("tilt", 9, 31, Estimate(2.0), Estimate(1.5))]
            >>> StabilityResult("net", rows, Estimate(2.0), Estimate(1.5)).top5_distances
            {'tilt': 1.5}
        """
        return {row.perturbation: row.top5_distance.value for row in self.rows if row.top5_distance is not None}

    def to_json(self) -> dict[str, Any]:
        """The result as plain data: the fields by their names, and ``"format"``.

        Example:
            >>> StabilityResult("net", [], Estimate(2.0), None).to_json()["mean_flips"]
            {'value': 2.0, 'low': None, 'high': None}
        """
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        return {"format": FORMAT, **json.loads(json.dumps(to_plain(content), default=str))}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StabilityResult:
        """Read what :meth:`to_json` gave.

        Example:
            >>> StabilityResult.from_json({"format": "else"})
            Traceback (most recent call last):
            ...
            ValueError: StabilityResult: expected format 'shiftnorm.stability/1', got 'else'.

        Raises:
            ValueError: if it is of another format, or a field is missing, unknown or of another kind.
        """
        if content.get("format") != FORMAT:
            raise ValueError(f"StabilityResult: expected format {FORMAT!r}, got {content.get('format')!r}.")
        values = {key: value for key, value in content.items() if key != "format"}
        try:
            rows = [
                PerturbationResult(
                    **{**row, "flips": _estimate(row["flips"]), "top5_distance": _estimate(row["top5_distance"])}
                )
                for row in values.pop("rows")
            ]
            means = {key: _estimate(values.pop(key)) for key in ("mean_flips", "mean_top5")}
            return cls(rows=rows, **means, **values)
        except (TypeError, KeyError, AttributeError) as fault:
            raise ValueError(f"StabilityResult: a field is not of the expected form ({fault}).") from fault

    def to_markdown(self) -> str:
        """The numbers as Markdown, with how they were measured.

        Example:
            >>> rows = [PerturbationResult("tilt", 9, 31, Estimate(2.0, 1.5, 2.5), None)]
            >>> print(StabilityResult("net", rows, Estimate(2.0), None).to_markdown().splitlines()[6])
            | tilt | 9 | 2.00 [1.50, 2.50] | – |
        """
        means = [f"mFP {self.mean_flips} %"]
        means += [] if self.mean_top5 is None else [f"mean top-5 distance {self.mean_top5}"]
        means += [] if self.mfr is None else [f"mFR {self.mfr:.2f} % of {escape(str(self.baseline))}"]
        means += [] if self.mt5d is None else [f"mT5D {self.mt5d:.2f} % of {escape(str(self.baseline))}"]
        lines = [f"# How often {escape(self.name)} changes its mind", "", "; ".join(means), ""]
        lines += ["| Perturbation | Sequences | Flip probability % | Top-5 distance |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {escape(row.perturbation)} | {row.sequences:,} | {row.flips} | {row.top5_distance or '–'} |"
            for row in self.rows
        ]
        facts = {**self.data, **self.settings, "command": self.command, **self.versions, "finished": self.finished}
        lines += ["", *(f"* {escape(text)}" for text in (*self.warnings, *self.notes)), ""]
        lines += [f"* {escape(str(key))}: {escape(str(value))}" for key, value in facts.items() if value is not None]
        return "\n".join(lines) + "\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON; the file appears whole or not at all.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "stability.json"
            >>> StabilityResult.load(StabilityResult("net", [], Estimate(2.0), None).save(path)).name
            'net'
        """
        write_json(Path(path), self.to_json())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StabilityResult:
        """Read a file that :meth:`save` wrote, or the ``stability.json`` of a folder.

        Example:
            >>> StabilityResult.load("nowhere")
            Traceback (most recent call last):
            ...
            FileNotFoundError: StabilityResult: no file nowhere. An unfinished evaluation has none: run it again to end.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no such result; the text names the file.
        """
        file = Path(path) / STABILITY_FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"StabilityResult: no file {file}. An unfinished evaluation has none: run it again to end."
            )
        try:
            return replace(cls.from_json(read_json(file)), folder=file.parent.resolve())
        except ValueError as fault:
            raise ValueError(f"{file}: {fault}") from fault

    def __str__(self) -> str:
        sequences = max((row.sequences for row in self.rows), default=0)
        named = f" of {self.data['name']}" if "name" in self.data else ""
        found = [("mean flip probability (mFP)", f"{self.mean_flips} %")]
        if self.mean_top5 is not None:
            found.append(("mean top-5 distance", str(self.mean_top5)))
        for label, value in (("mean flip rate (mFR)", self.mfr), ("mT5D", self.mt5d)):
            if value is not None:
                found.append((label, f"{value:.2f} % of {self.baseline}"))
        width = max(len(label) for label, _ in found)
        wide = max((len(row.perturbation) for row in self.rows), default=0)
        lines = [
            f"{self.name} on {sequences} {plural('sequence', sequences)}{named}",
            *(f"  {label:{width}}  {text}" for label, text in found),
        ]
        lines.append("  " + " " * wide + "  flips %" + ("   T5D" if self.top5_distances else ""))
        for row in self.rows:
            distance = "" if row.top5_distance is None else f"{row.top5_distance.value:6.2f}"
            lines.append(f"  {row.perturbation:{wide}}{row.flips.value:9.2f}{distance}")
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines)


def _estimate(content: Mapping[str, Any] | None) -> Any:
    return None if content is None else Estimate(**content)
