"""The table of networks that were measured under corruption, from the records of ``shiftnorm evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def make_table(directory: Path) -> str:
    """A row for every record of a directory, the largest error first."""
    records = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"{directory} holds no records")
    lines = [
        "| Network | Clean error % | Mean corruption error % | Worst corruption | Worst class, corrupted | "
        "ECE clean, corrupted |",
        "|---|---:|---:|---|---|---:|",
        *map(_row, sorted(records, key=lambda record: -record["mean_corruption_error"]["value"])),
    ]
    first, settings = records[0], records[0]["settings"]
    return "\n".join(
        [
            *lines,
            "",
            f"{first['images']:,} images, {len(settings['corruptions'])} corruptions at {len(settings['severities'])} "
            "severities; 95 % intervals over images. " + " ".join(first["notes"]),
        ]
    )


def _row(record: dict[str, Any]) -> str:
    corruptions: dict[str, list[float]] = {}
    for cell in record["cells"]:
        corruptions.setdefault(cell["corruption"], []).append(cell["error"]["value"])
    means = {name: sum(errors) / len(errors) for name, errors in corruptions.items()}
    worst = max(means, key=means.__getitem__)
    classes = dict(zip(record["classes"], record["class_errors"]["corrupted"], strict=True))
    hardest = max(classes, key=classes.__getitem__)
    calibration = record["calibration"]
    cells = [
        record["name"],
        _interval(record["clean"]["error"]),
        _interval(record["mean_corruption_error"]),
        f"{worst.replace('_', ' ')}, {means[worst]:.1f}",
        f"{hardest}, {classes[hardest]:.1f}",
        f"{calibration['clean']['ece']:.1f}, {calibration['corrupted']['ece']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"
