"""Metrics of a run as CSV and JSON lines, which go on where the run goes on."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

from lightning.pytorch.loggers import Logger

from shiftnorm.evaluate.record import write_text

__all__ = ["MetricFiles", "read_metrics"]

COLUMNS: Final = ("step", "epoch", "loss", "learning_rate", "images_per_s", "seconds", "epoch_loss", "validation_error")


@final
class MetricFiles(Logger):
    """A Lightning logger that appends to ``metrics.csv`` and ``metrics.jsonl``, a line for each step that is logged.

    A run that goes on from a checkpoint drops the lines of later steps, which it is about to make again; so every step
    has one line however often the run was ended.

    Example:
        >>> import tempfile
        >>> files = MetricFiles(tempfile.mkdtemp())
        >>> files.log_metrics({"loss": 2.5, "epoch": 0}, step=1)
        >>> files.log_metrics({"loss": 2.25, "epoch": 0, "objective": 0.5}, step=2)
        >>> print((files.folder / "metrics.csv").read_text())
        step,epoch,loss,learning_rate,images_per_s,seconds,epoch_loss,validation_error
        1,0,2.5,,,,,
        2,0,2.25,,,,,
        >>> files.go_on_from(1)
        >>> read_metrics(files.folder)
        [{'step': 1, 'loss': 2.5, 'epoch': 0}]

    Args:
        folder: of the run. Columns of the CSV are fixed; the JSON lines have everything.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """What Lightning calls it.

        Example:
            >>> MetricFiles("runs").name
            'metrics'
        """
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for one; the folder is enough here.

        Example:
            >>> MetricFiles("runs").version
            ''
        """
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the recipe lies beside the metrics.

        Example:
            >>> MetricFiles("runs").log_hyperparams({})
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line to both files.

        Example:
            >>> import tempfile
            >>> MetricFiles(tempfile.mkdtemp()).log_metrics({"loss": 1.0}, step=1)

        Args:
            metrics: numbers by name; what is not finite becomes null.
            step: optimizer steps so far.
        """
        row: dict[str, Any] = {"step": step, **{key: _plain(value) for key, value in metrics.items()}}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        file = self.folder / "metrics.csv"
        text = _csv([row], header=not file.is_file())
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text)

    def go_on_from(self, step: int) -> None:
        """Drop the lines after a step, and one that was cut off.

        Example:
            >>> import tempfile
            >>> MetricFiles(tempfile.mkdtemp()).go_on_from(0)
        """
        rows = [row for row in read_metrics(self.folder) if row["step"] <= step]
        if rows or (self.folder / "metrics.jsonl").is_file():
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            write_text(self.folder / "metrics.csv", _csv(rows, header=True))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that was cut off by the end of its process is left out.

    Example:
        >>> read_metrics("nowhere")
        []

    Args:
        folder: of the run.

    Returns:
        Numbers by name.
    """
    file = Path(folder) / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a kill in the middle of writing
    return rows


def _csv(rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _plain(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) or math.isfinite(number) else None
