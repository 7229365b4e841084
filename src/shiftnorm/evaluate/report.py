"""One self-contained HTML page from the records of a comparison."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from shiftnorm.evaluate.chart import Line, color, draw_dots, draw_lines, stroke
from shiftnorm.evaluate.record import Record
from shiftnorm.evaluate.table import Row, format_signed, format_summary, group_by_verdict, list_notes


def render_report(
    rows: Sequence[Row],
    records: Sequence[Record],
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    versions: Mapping[str, str],
    machine: Mapping[str, Any],
    pictures: Mapping[str, Sequence[Tensor]],
    reference: str,
) -> str:
    """Render the page: findings, table, charts, corrupted images, how it was made.

    Example:
        >>> record = Record("0f", "BatchNorm", 0, "ok", clean_error=5.0, corruption_errors={"fog": [9.0]}, parameters=9)
        >>> from shiftnorm.evaluate.table import build_rows
        >>> rows = build_rows([record], ["BatchNorm"], reference="BatchNorm")
        >>> data = {"name": "toy", "train": 8, "test": 2, "classes": ["a", "b"], "sha256": "0f", "size": [8, 8]}
        >>> recipe = {"severities": [3], "seeds": [0], "epochs": 1, "corruptions": ["fog"], "shift": 0, "flip": False}
        >>> recipe |= {"depth": 10, "widen_factor": 1, "batch_size": 4, "momentum": 0.9, "learning_rate": 0.1}
        >>> recipe |= {"weight_decay": 0.0}
        >>> pictures = {"fog": [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)] * 2}
        >>> page = render_report(rows, [record], recipe, data, {}, {}, pictures, "BatchNorm")
        >>> page.startswith("<!doctype html>"), "http" in page
        (True, False)

    Args:
        rows: from `build_rows`, the reference among them.
        records: one per run.
        recipe: its fields.
        data: name, sha256, sizes and classes.
        versions: of packages.
        machine: kind of machine.
        pictures: per corruption, (images, 3, H, W) uint8: clean, then one per severity.
        reference: the norm that differences are taken to.

    Returns:
        HTML without any reference to another file.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"signed": format_signed, "pm": format_summary}
    source = files("shiftnorm.evaluate").joinpath("report.html.j2").read_text(encoding="utf-8")
    severities = [str(severity) for severity in recipe["severities"]]
    finished = [(index, row) for index, row in enumerate(rows) if row.corrupted and row.clean]
    seconds = [sum(record.durations.values()) for record in records if record.complete]
    return environment.from_string(source).render(
        data=data,
        recipe=recipe,
        versions=versions,
        machine=machine,
        reference=reference,
        rows=[(index, color(index), stroke(index), row) for index, row in enumerate(rows)],
        findings=describe_findings(rows, reference),
        notes=list_notes(rows, reference),
        names=[name.replace("_", " ") for name in recipe["corruptions"]],
        severities=severities,
        dots=_draw_dots(finished),
        curve=_draw_curve(finished, severities),
        panels=_draw_panels(finished, recipe["corruptions"], severities),
        best=_find_best(finished, recipe["corruptions"]),
        pictures={name.replace("_", " "): [encode_png(image) for image in strip] for name, strip in pictures.items()},
        runs=len(records),
        seconds=sum(seconds) / len(seconds) if seconds else None,
        last=max((record.finished for record in records if record.finished), default=None),
    )


def describe_findings(rows: Sequence[Row], reference: str) -> list[str]:
    """What the table shows, as sentences that claim no more than the seeds allow.

    Example:
        >>> describe_findings([], "BatchNorm")
        ['No run has finished, so there is nothing to compare yet.']

    Args:
        rows: from `build_rows`.
        reference: the norm that differences are taken to.

    Returns:
        One to three sentences.
    """
    done = [row for row in rows if row.corrupted is not None]
    if not done:
        return ["No run has finished, so there is nothing to compare yet."]
    base = next((row for row in done if row.norm == reference), None)
    if base is None or base.corrupted is None or base.clean is None:
        return [f"No run of {reference} has finished, so the others have nothing to be compared to."]
    sentences = [
        f"{reference} errs on {base.clean.mean:.1f} % of the clean test images and on {base.corrupted.mean:.1f} % "
        "of the corrupted ones."
    ]
    names = group_by_verdict(sorted(done, key=lambda row: row.difference.mean if row.difference else 0.0))
    sizes = {row.norm: f"{row.norm} by {abs(row.difference.mean):.1f}" for row in done if row.difference}
    if names["better"]:
        better = ", ".join(sizes[name] for name in names["better"])
        sentences.append(f"Under corruption, better by more than the seeds' spread: {better} points.")
    if names["worse"]:
        worse = ", ".join(sizes[name] for name in names["worse"])
        sentences.append(f"Worse by more than the seeds' spread: {worse} points.")
    if names["tentative"]:
        tentative = ", ".join(names["tentative"])
        sentences.append(f"Beyond the spread, but zero lies in the interval of the difference: {tentative}.")
    if names["within spread"]:
        sentences.append(f"Not told apart from {reference} by these seeds: {', '.join(names['within spread'])}.")
    if names["spread unknown"]:
        sentences.append("One seed does not tell how much seeds differ; no difference is claimed.")
    return sentences


def encode_png(image: Tensor) -> str:
    """A uint8 image as a PNG data address.

    Example:
        >>> encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8))[:22]
        'data:image/png;base64,'

    Args:
        image: (3, H, W), or (N, 3, H, W) to be put side by side.

    Returns:
        Text for the src of an img element.
    """
    from PIL import Image

    if image.ndim == 4:
        image = torch.cat(list(image), dim=-1)
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _mean(columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def _draw_dots(finished: Sequence[tuple[int, Row]]) -> str:
    if not finished:
        return ""
    groups = [(row.norm, index, list(row.per_seed.values())) for index, row in finished]
    return draw_dots(groups, title="Mean corruption error of every run, by norm")


def _draw_curve(finished: Sequence[tuple[int, Row]], severities: Sequence[str]) -> str:
    lines = [
        Line(row.norm, index, [row.clean.mean if row.clean else 0.0, *_mean(list(row.by_corruption.values()))])
        for index, row in finished
    ]
    return (
        draw_lines(lines, ["clean", *severities], title="Error by severity, averaged over corruptions") if lines else ""
    )


def _draw_panels(
    finished: Sequence[tuple[int, Row]], corruptions: Sequence[str], severities: Sequence[str]
) -> list[tuple[str, str]]:
    if not finished:
        return []
    top = max(value for _, row in finished for values in row.by_corruption.values() for value in values)
    panels: list[tuple[str, str]] = []
    for name in corruptions:
        lines = [
            Line(row.norm, index, [row.clean.mean if row.clean else 0.0, *row.by_corruption[name]])
            for index, row in finished
        ]
        title = name.replace("_", " ")
        svg = draw_lines(
            lines,
            ["0", *severities],
            title=f"Error by severity under {title}",
            width=300,
            height=200,
            top=top,
            named=False,
        )
        panels.append((title, svg))
    return panels


def _find_best(finished: Sequence[tuple[int, Row]], corruptions: Sequence[str]) -> dict[str, float]:
    """Per corruption, the lowest mean error of any norm."""
    return {
        name: min(
            (sum(values) / len(values) for _, row in finished if (values := row.by_corruption[name])), default=0.0
        )
        for name in corruptions
    }
