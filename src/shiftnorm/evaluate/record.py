"""One JSON record per run: everything needed to read it, and to run it again."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, final

FORMAT: Final = "shiftnorm.run/1"


@final
@dataclass(frozen=True)
class Record:
    """One finished or failed run.

    Example:
        >>> record = Record(key="0f", norm="SelfNorm", seed=0, status="failed", message="loss is NaN at step 3")
        >>> record.complete
        False

    Args:
        key: digest of all that determines the run's numbers; a run with the same key need not be repeated.
        norm: name of the compared variant.
        seed: seed of initial weights, batch order and augmentation.
        status: "ok" or "failed".
        message: why it failed; None where it did not.
        recipe: the recipe, field by field.
        data: name, sha256, sizes and classes of the data.
        clean_error: error on clean test images, in percent; None where failed.
        corruption_errors: per corruption, errors in percent at the recipe's severities.
        parameters: number of trainable numbers in the network.
        history: per epoch, the mean training loss.
        durations: seconds per part of the run.
        versions: of Python and the packages that matter.
        machine: kind of machine, never its name.
        finished: UTC time, ISO 8601.
    """

    key: str
    norm: str
    seed: int
    status: Literal["ok", "failed"]
    message: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    clean_error: float | None = None
    corruption_errors: dict[str, list[float]] = field(default_factory=dict)
    parameters: int | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    finished: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the run ended with results.

        Example:
            >>> Record("0f", "BatchNorm", 0, "failed", message="loss is NaN at step 3").complete
            False
        """
        return self.status == "ok"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader finds the old file or the whole new one, never a part.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(path, {"x": 1})
        >>> read_json(path)
        {'x': 1}

    Args:
        path: the file; its directory is created.
        content: what to write; NaN and infinities are refused, as JSON has none.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a temporary neighbour, flushed to disk, then renamed over the target.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sub" / "a.txt"
        >>> write_text(path, "whole")
        >>> path.read_text()
        'whole'

    Args:
        path: the file; its directory is created.
        text: its content, written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = path.write_text('{"x": ')
        >>> read_json(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: a.json: expected a JSON object, got text that ends or breaks at line 1. Delete ...

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        ValueError: if the file is not a JSON object, naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise ValueError(
            f"{path.name}: expected a JSON object, got text that ends or breaks at line {fault.lineno}. "
            "Delete the file to run again."
        ) from fault
    except UnicodeDecodeError as fault:
        raise ValueError(
            f"{path.name}: expected a JSON object, got bytes that are not UTF-8. Delete the file to run again."
        ) from fault
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name}: expected a JSON object, got {type(content).__name__}. Delete the file to run again."
        )
    return content


def read_fields(path: Path, form: str, kind: type) -> dict[str, Any]:
    """Read the fields of a dataclass from a file that says its format, and check their names.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.json"
        >>> write_json(path, {"format": FORMAT, "key": "0f", "error": 5.0})
        >>> read_fields(path, FORMAT, Record)
        Traceback (most recent call last):
        ...
        ValueError: run.json: ... missing fields ['norm', 'seed', 'status'], unknown fields ['error']. Delete ...

    Args:
        path: the file.
        form: its format.
        kind: the dataclass; fields without a default must be there.

    Returns:
        Name to value.

    Raises:
        ValueError: if the file is damaged, of another format, or has missing or unknown fields; it names the file.
    """
    content = read_json(path)
    found = content.pop("format", None)
    needed = {item.name: item.default is MISSING and item.default_factory is MISSING for item in fields(kind)}
    missing = [name for name, need in needed.items() if need and name not in content]
    unknown = sorted(content.keys() - needed)
    if found != form or missing or unknown:
        raise ValueError(
            f"{path.name}: expected a record of format {form!r}, got format {found!r}, missing fields {missing}, "
            f"unknown fields {unknown}. Delete the file to run again."
        )
    return content


def to_plain(value: Any) -> Any:
    """A value as JSON can hold it: named tuples as dictionaries, NaN and infinities as None.

    Example:
        >>> to_plain({"rows": (1.0, float("nan"))})
        {'rows': [1.0, None]}
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_plain(value._asdict())  # pyright: ignore  (a NamedTuple, which has no type)
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_record(path: Path, record: Record) -> None:
    """Write a run's record atomically.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.json"
        >>> write_record(path, Record(key="0f", norm="BatchNorm", seed=0, status="ok", clean_error=5.0))
        >>> read_record(path).clean_error
        5.0

    Args:
        path: the file.
        record: the record.
    """
    write_json(path, {"format": FORMAT, **asdict(record)})


def read_record(path: Path) -> Record:
    """Read a run's record, and check it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.json"
        >>> write_record(path, Record(key="0f", norm="BatchNorm", seed=3, status="ok", clean_error=5.0))
        >>> read_record(path).seed
        3

    Args:
        path: the file.

    Returns:
        The record.

    Raises:
        ValueError: if the file is damaged, of another format, or says "ok" without finite results; it names the file.
    """
    record = Record(**read_fields(path, FORMAT, Record))
    if record.complete:
        values = [record.clean_error, *(v for row in record.corruption_errors.values() for v in row)]
        if any(not isinstance(value, int | float) or not math.isfinite(value) for value in values):
            raise ValueError(f"{path.name}: expected finite errors in a record marked 'ok'. Delete it to run again.")
    return record


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers.

    Example:
        >>> sorted(describe_versions())[:2]
        ['lightning', 'numpy']

    Returns:
        Name to version; "not installed" for a missing package.
    """
    versions = {"python": platform.python_version()}
    for name in ("shiftnorm", "torch", "torchvision", "lightning", "numpy", "scikit-learn"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Kind of machine a run used; no names and no paths.

    Example:
        >>> describe_machine("cpu", 1)["threads"]
        1

    Args:
        device: torch device type.
        threads: torch threads per process.

    Returns:
        Architecture, operating system, cores, device and threads.
    """
    return {
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "threads": threads,
    }
