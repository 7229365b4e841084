"""How results were measured, as names and values for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness_table import make_visible

__all__ = ["collect_facts", "say"]

# Names of the facts of a measurement, in the order of the table; others follow under their own names.
_FACTS: Final = {
    "command": "Command",
    "seed": "Seed of the corruptions",
    "constants": "Constants",
    "storage": "Storage",
    "frost": "Frost",
    "normalize": "Normalization",
}
_SHOWN_ELSEWHERE: Final = (
    "images",
    "classes",
    "path",
    "corruptions",
    "severities",
    "skipped_files",
    "corrupted checksums",
)
_LONGEST: Final = 12  # values of a list


def say(name: str) -> str:
    """A name as words.

    Example:
        >>> say("gaussian_noise")
        'gaussian noise'
    """
    return make_visible(name).replace("_", " ")


def collect_facts(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """How it was measured: name and values, one value where all networks share it.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult, Estimate
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> collect_facts([Result("net", 9, clean, [], None, settings={"seed": 0, "amp": None})])
        [('Seed of the corruptions', ['0'])]

    Args:
        results: at least one.

    Returns:
        Names with one value, or one for each result.
    """
    columns: list[dict[str, Any]] = []
    for result in results:
        facts: dict[str, Any] = {"command": result.command}
        facts |= {f"data {key}": value for key, value in result.data.items() if key not in _SHOWN_ELSEWHERE}
        facts |= {key: value for key, value in result.settings.items() if key not in _SHOWN_ELSEWHERE}
        facts |= {
            "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
            "machine": ", ".join(f"{say(name)} {value}" for name, value in result.machine.items()),
            "baseline": result.baseline and ", ".join(result.baseline.values()),
            "seconds": None if (seconds := result.cost.get("seconds")) is None else f"{seconds:,.0f}",
            "finished": result.finished and f"{result.finished[:16].replace('T', ' ')} UTC",
        }
        digests = {key: result.fingerprint.get(key) for key in ("model", "data", "corrupted files", "corruption code")}
        facts["fingerprints"] = ", ".join(f"{key} {value[:12]}" for key, value in digests.items() if value)
        columns.append(facts)
    keys = dict.fromkeys([*_FACTS, *(key for facts in columns for key in facts)])
    rows: list[tuple[str, list[str]]] = []
    for key in keys:
        values = [_format_fact(facts.get(key)) for facts in columns]
        if any(values):
            name = _FACTS.get(key, say(key).capitalize())
            rows.append((name, values[:1] if len(set(values)) == 1 else values))
    return rows


def _format_fact(value: Any) -> str:
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        rest = f", and {len(value) - _LONGEST} more" if len(value) > _LONGEST else ""
        return ", ".join(_format_fact(part) for part in value[:_LONGEST]) + rest
    if isinstance(value, Mapping):
        return ", ".join(f"{say(str(key))} {_format_fact(part)}" for key, part in value.items())
    return str(value)
