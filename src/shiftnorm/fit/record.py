"""What a training run made, as one JSON file that tables are generated from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, final

from shiftnorm.evaluate.progress import plural, spell_rate
from shiftnorm.evaluate.record import read_fields, to_plain, write_json

__all__ = ["TrainRecord", "TrainResult"]

FORMAT: Final = "shiftnorm.train-record/1"


@final
@dataclass(frozen=True)
class TrainRecord:
    """One training run and its measurement.

    Example:
        >>> record = TrainRecord(key="0f", name="cnsn", seed=0, status="failed", message="the loss is nan at step 3")
        >>> record.complete, record.line()
        (False, 'cnsn, seed 0: failed: the loss is nan at step 3')

    Args:
        key: digest of everything that decides the weights.
        name: of the recipe.
        seed: of the run.
        status: "complete"; "limited" for a run that was told to stop early; "failed".
        message: why it failed; None where it did not.
        steps: optimizer steps that were made.
        recipe: all of it, as plain data.
        data: names, digests, sizes.
        parameters: trainable numbers in the network.
        clean_error: on the images it was measured on, in percent; None where it was not measured.
        mean_corruption_error: plain mean over corruptions and severities, as ``value``, ``low``, ``high``.
        mce: mean corruption error in percent of AlexNet's, for ImageNet under all fifteen; else None.
        corruption_errors: per corruption, errors at the recipe's severities.
        validation_error: on the held-out images, after the last epoch.
        history: per epoch, ``loss`` and, with held-out images, ``validation_error``.
        throughput: ``images_per_s`` of training, ``bare_images_per_s`` of forward and backward of the plain network
            without placements on one device, and ``of_bare``, their ratio per process.
        durations: seconds of ``train`` and ``evaluate``.
        versions: of Python and packages.
        machine: kind of machine.
        finished: UTC time, ISO 8601.
    """

    key: str
    name: str
    seed: int
    status: Literal["complete", "limited", "failed"]
    message: str | None = None
    steps: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    clean_error: float | None = None
    mean_corruption_error: dict[str, float | None] | None = None
    mce: dict[str, float | None] | None = None
    corruption_errors: dict[str, list[float]] = field(default_factory=dict)
    validation_error: float | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    throughput: dict[str, float | None] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    finished: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the run came to its end.

        Example:
            >>> TrainRecord("0f", "cnsn", 0, "limited").complete
            False
        """
        return self.status == "complete"

    def line(self) -> str:
        """The run in one line.

        Example:
            >>> TrainRecord("0f", "cnsn", 0, "complete", clean_error=5.0, throughput={"images_per_s": 812.4}).line()
            'cnsn, seed 0: clean error 5.00 %, 812 images/s'
        """
        if self.status == "failed":
            return f"{self.name}, seed {self.seed}: failed: {self.message}"
        parts = [] if self.status == "complete" else [f"stopped after {self.steps} {plural('step', self.steps)}"]
        if self.clean_error is not None:
            parts.append(f"clean error {self.clean_error:.2f} %")
        if self.mean_corruption_error is not None:
            low, high = self.mean_corruption_error["low"], self.mean_corruption_error["high"]
            between = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
            parts.append(f"corrupted {self.mean_corruption_error['value']:.2f}{between} %")
        if self.validation_error is not None:
            parts.append(f"held out {self.validation_error:.2f} %")
        speed = self.throughput.get("images_per_s")
        if speed is not None:
            parts.append(f"{spell_rate(speed)} images/s")
        share = self.throughput.get("of_bare")
        if share is not None:
            parts.append(f"{100 * share:.0f} % of the bare network's")
        return f"{self.name}, seed {self.seed}: {', '.join(parts) or 'trained'}"

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON; the file appears whole or not at all.

        Example:
            >>> import tempfile
            >>> path = TrainRecord("0f", "cnsn", 0, "complete").save(Path(tempfile.mkdtemp()) / "record.json")
            >>> TrainRecord.load(path).name
            'cnsn'

        Args:
            path: the file.

        Returns:
            The path.
        """
        write_json(Path(path), {"format": FORMAT, **to_plain(asdict(self))})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> TrainRecord:
        """Read a record.

        Example:
            >>> import tempfile
            >>> file = Path(tempfile.mkdtemp()) / "record.json"
            >>> _ = file.write_text('{"format": "else"}')
            >>> TrainRecord.load(file)
            Traceback (most recent call last):
            ...
            ValueError: record.json: expected a record of format 'shiftnorm.train-record/1', got format 'else'...

        Args:
            path: the file, or the folder of a run.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or not such a record.
        """
        file = Path(path) / "record.json" if Path(path).is_dir() else Path(path)
        return cls(**read_fields(file, FORMAT, cls))


@final
@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Example:
        >>> TrainResult(TrainRecord("0f", "cnsn", 0, "complete"), Path("runs/cnsn")).model.name
        'model.safetensors'

    Args:
        record: of the run.
        folder: of the run.
    """

    record: TrainRecord
    folder: Path

    @property
    def model(self) -> Path:
        """The trained network, which :func:`shiftnorm.surgery.load` reads.

        Example:
            >>> TrainResult(TrainRecord("0f", "cnsn", 0, "complete"), Path("runs/cnsn")).model.parent.name
            'cnsn'
        """
        return self.folder / "model.safetensors"
