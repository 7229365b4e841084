"""One self-contained HTML page from results of robustness evaluations, with Markdown and CSV beside it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from shiftnorm.evaluate.chart import Line, draw_lines, stroke
from shiftnorm.evaluate.comparison import Comparison
from shiftnorm.evaluate.corruption_rows import compare_corruptions
from shiftnorm.evaluate.group_mean import average_runs
from shiftnorm.evaluate.group_table import describe_groups, list_group_notes, render_group_markdown
from shiftnorm.evaluate.heat_table import LEVELS, find_top, pick_shade, write_rules
from shiftnorm.evaluate.paired_results import find_comparisons, find_cost
from shiftnorm.evaluate.record import write_text
from shiftnorm.evaluate.report import encode_png
from shiftnorm.evaluate.result import CellResult, Estimate, Result
from shiftnorm.evaluate.result_csv import render_csv, render_summary
from shiftnorm.evaluate.result_facts import collect_facts, say
from shiftnorm.evaluate.result_text import name_mce
from shiftnorm.evaluate.robustness_chart import Axis, draw_reliability, place_estimates, shorten
from shiftnorm.evaluate.robustness_table import (
    HurtClass,
    describe_results,
    find_hurt_classes,
    find_mismatches,
    format_estimate,
    label_results,
    make_visible,
    render_markdown,
)
from shiftnorm.evaluate.seed_groups import GroupRow, compare_runs
from shiftnorm.evaluate.table import format_signed, format_summary

__all__ = ["REPORT_ENDINGS", "render_results", "write_report"]

TEMPLATE: Final = "robustness.html.j2"
# Of the files that one report is.
REPORT_ENDINGS: Final = (".html", ".md", ".csv", ".summary.csv")
_SMALL: Final = 64  # pictures up to this side are shown pixel by pixel


class _HeatRow(NamedTuple):
    corruption: str
    cells: list[tuple[CellResult, int] | None]
    mean: float
    shade: int


class _Run(NamedTuple):
    """What the template shows of one result beside others."""

    label: str
    stroke: str
    result: Result
    gap: Estimate | None


@dataclass(frozen=True)
class _Net:
    """What the template shows of one network."""

    label: str
    stroke: str
    result: Result
    gap: Estimate | None
    heat: list[tuple[str, list[_HeatRow]]]
    hurt: list[HurtClass]
    diagram: str


def write_report(
    results: Result | Sequence[Result],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    comparisons: Mapping[int, Comparison] | None = None,
    groups: Sequence[GroupRow] = (),
) -> Path:
    """Write the report as HTML, and its numbers as Markdown and CSV beside it: every cell, and what sums them up.

    Example:
        >>> import tempfile
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 0.5, 1.0, 0.1)
        >>> result = Result("net", 100, clean, [], None)
        >>> path = write_report(result, Path(tempfile.mkdtemp()) / "report.html")
        >>> sorted(file.name for file in path.parent.iterdir())
        ['report.csv', 'report.html', 'report.md', 'report.summary.csv']

    Args:
        results: of one network, or of several; the first is what the others are compared to.
        path: the HTML file, its name ending in ".html"; the others have the same name and end in ".md", ".csv" and
            ".summary.csv" (`REPORT_ENDINGS`).
        title: of the page.
        comparisons: by place in `results`, that network compared to the first (`compare(result, results[0])`);
            default: worked out for results that still have their cells in their folder.
        groups: networks over their training seeds (`compare_groups`), if `results` are their runs, one group after the
            other. Tables and charts are then of the groups' means, and comparisons those of `compare_runs`.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: if there is no result, they are not the groups' runs, or the path does not end in ".html".
        ModuleNotFoundError: if jinja2 is not installed.
    """
    results = _listed(results, groups)
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"write_report: expected a path that ends in .html, got {path}.")
    title = title or _choose_title(groups or results)
    comparisons = _compare(results, groups) if comparisons is None else comparisons
    page = render_results(results, title=title, comparisons=comparisons, groups=groups)
    write_text(path.with_suffix(".csv"), render_csv(results))
    write_text(path.with_suffix(".summary.csv"), render_summary(results, comparisons, groups))
    differences = _estimate(comparisons)
    text = render_group_markdown(groups, differences, title) if groups else render_markdown(results, differences, title)
    write_text(path.with_suffix(".md"), text)
    write_text(path, page)
    return path


def render_results(
    results: Result | Sequence[Result],
    *,
    title: str | None = None,
    comparisons: Mapping[int, Comparison] | None = None,
    groups: Sequence[GroupRow] = (),
) -> str:
    """The page of `write_report` as text.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 0.5, 1.0, 0.1)
        >>> page = render_results(Result("<b>net</b>", 100, clean, [], None))
        >>> page.startswith("<!doctype html>"), "<b>net" in page, "http" in page
        (True, False, False)

    Args:
        results: of one network, or of several.
        title: of the page.
        comparisons: as for `write_report`.
        groups: as for `write_report`.

    Returns:
        HTML without any reference to another file.

    Raises:
        ValueError: if there is no result, or they are not the groups' runs.
        ModuleNotFoundError: if jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError:
        raise ModuleNotFoundError('A report needs jinja2: pip install "shiftnorm[train]"') from None
    results = _listed(results, groups)
    comparisons = _compare(results, groups) if comparisons is None else comparisons
    differences = _estimate(comparisons)
    # What tables and charts are of: each network, which with groups is the mean of its runs.
    means = [average_runs(row) for row in groups] or results
    gaps = _estimate_groups(groups) if groups else differences

    def show(value: Any) -> Any:
        return make_visible(value) if type(value) is str else value

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=show
    )
    environment.filters |= {"signed": format_signed, "estimate": format_estimate, "said": say, "pm": format_summary}
    source = files("shiftnorm.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8")
    run_labels, labels = label_results(results), label_results(means)
    top = find_top([cell.error.value for result in means for cell in (result.clean, *result.cells)])
    networks = [place for place, row in enumerate(groups) for _ in row.runs] or range(len(results))
    nets = [
        _Net(
            label=label,
            stroke=stroke(place),
            result=result,
            gap=gaps.get(place),
            heat=_build_heat(result, top),
            hurt=find_hurt_classes(result),
            diagram=draw_reliability(result.calibration, title=f"Reliability of {label}"),
        )
        for place, (result, label) in enumerate(zip(means, labels, strict=True))
    ]
    return environment.from_string(source).render(
        title=title or _choose_title(means),
        nets=nets,
        runs=[
            _Run(label, stroke(network), result, differences.get(place))
            for place, (label, network, result) in enumerate(zip(run_labels, networks, results, strict=True))
        ],
        comparable=len(results) - len(groups[0].runs) if groups else len(results) - 1,
        compared=len(differences),
        mce=name_mce(results),
        cost=find_cost(results[0]) if len(results) == 1 else None,
        mismatches=_list_mismatches(results, run_labels),
        warnings=_gather([result.warnings for result in results], run_labels),
        notes=_gather([result.notes for result in results], run_labels),
        groups=groups,
        group_notes=list_group_notes(groups) if groups else [],
        findings=describe_groups(groups) if groups else describe_results(results, differences),
        rules=(write_rules(), write_rules(dark=True)),
        top=top,
        levels=LEVELS,
        axis=_place_errors(means, labels),
        gaps=place_estimates(labels, gaps, signed=True) if gaps else None,
        rows=compare_corruptions(means, comparisons, groups),
        curve=_draw_curve(means, labels),
        panels=_draw_panels(means, labels),
        pictures=_collect_pictures(results),
        facts=collect_facts(results),
    )


def _listed(results: Result | Sequence[Result], groups: Sequence[GroupRow]) -> list[Result]:
    found = [results] if isinstance(results, Result) else list(results)
    if not found:
        raise ValueError("write_report: expected at least one result, got none.")
    runs = [run for row in groups for run in row.runs.values()]
    if groups and [id(result) for result in found] != [id(run) for run in runs]:
        raise ValueError(
            f"write_report: expected the {len(runs)} runs of the groups as results, one group after the other, got "
            f"{len(found)} results; pass [run for row in groups for run in row.runs.values()]."
        )
    return found


def _compare(results: Sequence[Result], groups: Sequence[GroupRow]) -> dict[int, Comparison]:
    return compare_runs(groups) if groups else find_comparisons(results)


def _estimate_groups(groups: Sequence[GroupRow]) -> dict[int, Estimate]:
    return {
        place: Estimate(found.difference, found.low, found.high)
        for place, row in enumerate(groups)
        if (found := row.difference) is not None
    }


def _choose_title(results: Sequence[Result | GroupRow]) -> str:
    if len(results) > 1:
        return "Which network holds up when the images change?"
    return f"What shift costs {make_visible(results[0].name)}"


def _list_mismatches(results: Sequence[Result], labels: Sequence[str]) -> list[str]:
    found = [(label, find_mismatches(results[0], result)) for label, result in zip(labels, results, strict=True)]
    return [
        f"{labels[0]} and {label} were not measured alike: {', '.join(reasons)}. Their errors are not comparable."
        for label, reasons in found
        if reasons
    ]


def _gather(lists: Sequence[Sequence[str]], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Sentences with whom they are about, "" for what is said of every network."""
    said: dict[str, list[str]] = {}
    for label, sentences in zip(labels, lists, strict=True):
        for sentence in dict.fromkeys(sentences):
            said.setdefault(sentence, []).append(label)
    return [("" if len(who) == len(labels) else ", ".join(who), sentence) for sentence, who in said.items()]


def _build_heat(result: Result, top: float) -> list[tuple[str, list[_HeatRow]]]:
    """Rows of the heat table by group of corruptions."""
    from shiftnorm.data.corruptions import CORRUPTIONS

    cells = {(cell.corruption, cell.severity): cell for cell in result.cells}
    groups: dict[str, list[_HeatRow]] = {}
    for name, errors in result.errors.items():
        group = CORRUPTIONS[name].group if name in CORRUPTIONS else "other"
        row = [
            (cell, pick_shade(cell.error.value, top)) if (cell := cells.get((name, severity))) else None
            for severity in result.severities
        ]
        mean = statistics.fmean(errors)
        groups.setdefault(group, []).append(_HeatRow(name, row, mean, pick_shade(mean, top)))
    return list(groups.items())


def _estimate(comparisons: Mapping[int, Comparison]) -> dict[int, Estimate]:
    """Differences of the mean corruption errors."""
    return {
        place: Estimate(found.difference, found.low, found.high)
        for place, comparison in comparisons.items()
        if (found := comparison.mean_corruption_error) is not None
    }


def _place_errors(results: Sequence[Result], labels: Sequence[str]) -> Axis | None:
    known = {place: e for place, result in enumerate(results) if (e := result.mean_corruption_error) is not None}
    return place_estimates(labels, known) if len(known) > 1 else None


def _whole(result: Result) -> bool:
    """Whether every corruption was measured at every severity, so that lines can be drawn."""
    return bool(result.cells) and len(result.cells) == len(result.corruptions) * len(result.severities)


def _draw_curve(results: Sequence[Result], labels: Sequence[str]) -> tuple[str, str] | None:
    """The chart for wide pages, with names at the ends of the lines, and for narrow ones, without."""
    lines: list[Line] = []
    severities = max((result.severities for result in results), key=len)
    for place, (result, label) in enumerate(zip(results, labels, strict=True)):
        if _whole(result) and result.severities == severities:
            means = [statistics.fmean(column) for column in zip(*result.errors.values(), strict=True)]
            lines.append(Line(shorten(label, 28), place, [result.clean.error.value, *means]))
    if not lines:
        return None
    marks, title = ["clean", *map(str, severities)], "Error by severity, averaged over corruptions"
    wide = draw_lines(lines, marks, title=title, height=320)
    return wide, draw_lines(lines, marks, title=title, width=340, height=230, named=False)


def _draw_panels(results: Sequence[Result], labels: Sequence[str]) -> list[tuple[str, str]]:
    severities = max((result.severities for result in results), key=len)
    drawn = [
        (place, result, label)
        for place, (result, label) in enumerate(zip(results, labels, strict=True))
        if _whole(result) and result.severities == severities
    ]
    top = max((value for _, result, _ in drawn for row in result.errors.values() for value in row), default=0.0)
    panels: list[tuple[str, str]] = []
    for name in dict.fromkeys(name for _, result, _ in drawn for name in result.corruptions):
        lines = [
            Line(label, place, [result.clean.error.value, *result.errors[name]])
            for place, result, label in drawn
            if name in result.errors
        ]
        title, marks = say(name), ["0", *map(str, severities)]
        svg = draw_lines(
            lines, marks, title=f"Error by severity under {title}", width=230, height=160, top=top, named=False
        )
        panels.append((title, svg))
    return panels


def _collect_pictures(results: Sequence[Result]) -> dict[str, Any]:
    """Pictures by corruption and severity, of the first result that has any."""
    examples = next((result.examples for result in results if result.examples), [])
    number = examples[0].number if examples else 0
    found = {(each.corruption, each.severity): each.image for each in examples if each.number == number}
    names = [name for name in dict.fromkeys(name for name, _ in found) if name != "clean"]
    encoded = {key: encode_png(image) for key, image in found.items()}
    return {
        "severities": sorted({severity for name, severity in found if name != "clean"}),
        "names": names,
        "images": encoded,
        "clean": encoded.get(("clean", 0)),
        "pixelated": bool(examples) and max(examples[0].image.shape[-2:]) <= _SMALL,
    }
