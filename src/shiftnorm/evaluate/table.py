"""From records to the rows of a comparison, and to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shiftnorm.evaluate.metrics import (
    VERDICTS,
    PairedDifference,
    Summary,
    compare_paired,
    mean_corruption_error,
    summarize,
)
from shiftnorm.evaluate.record import Record
from shiftnorm.evaluate.timing import StepTime

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Row:
    """One compared norm over its seeds; errors in percent, None where no run finished.

    Example:
        >>> record = Record("0f", "BatchNorm", 0, "ok", clean_error=5.0, corruption_errors={"contrast": [10.0, 20.0]})
        >>> row = build_rows([record], ["BatchNorm"], reference="BatchNorm")[0]
        >>> row.clean.mean, row.corrupted.mean
        (5.0, 15.0)

    Args:
        norm: its name.
        summary: where it sits in the network.
        clean: clean error.
        corrupted: mean corruption error, not normalised.
        per_seed: mean corruption error by seed.
        clean_difference: of the clean error to the reference, paired by seed; None for the reference itself.
        difference: of the mean corruption error to the reference, paired by seed.
        by_corruption: per corruption, the errors at the severities, averaged over seeds.
        parameters: trainable numbers in the network.
        step_time: of one training step, and relative to the reference.
        failures: seed to message, of the runs that failed.
    """

    norm: str
    summary: str
    clean: Summary | None
    corrupted: Summary | None
    per_seed: dict[int, float]
    clean_difference: PairedDifference | None
    difference: PairedDifference | None
    by_corruption: dict[str, list[float]]
    parameters: int | None
    step_time: StepTime | None
    failures: dict[int, str]


def build_rows(
    records: Sequence[Record],
    norms: Sequence[str],
    *,
    reference: str,
    step_times: Mapping[str, StepTime] | None = None,
    summaries: Mapping[str, str] | None = None,
) -> list[Row]:
    """Collect records into one row per norm.

    Example:
        >>> make = lambda norm, error: Record("0f", norm, 0, "ok", clean_error=5.0, corruption_errors={"fog": [error]})
        >>> rows = build_rows([make("BatchNorm", 40.0), make("SelfNorm", 30.0)], ["BatchNorm", "SelfNorm"],
        ...                   reference="BatchNorm")
        >>> rows[1].difference.mean
        -10.0

    Args:
        records: of one recipe and data set.
        norms: which rows, in order.
        reference: the norm that differences are taken to.
        step_times: per norm, where measured.
        summaries: per norm, where it sits.

    Returns:
        One row per norm.
    """
    step_times, summaries = step_times or {}, summaries or {}
    clean: dict[str, dict[int, float]] = {}
    corrupted: dict[str, dict[int, float]] = {}
    for norm in norms:
        done = [record for record in records if record.norm == norm and record.complete]
        clean[norm] = {record.seed: record.clean_error for record in done if record.clean_error is not None}
        corrupted[norm] = {record.seed: mean_corruption_error(record.corruption_errors) for record in done}
    rows: list[Row] = []
    for norm in norms:
        done = [record for record in records if record.norm == norm and record.complete]
        compared = norm != reference and reference in corrupted
        rows.append(
            Row(
                norm=norm,
                summary=summaries.get(norm, ""),
                clean=summarize(list(clean[norm].values())) if done else None,
                corrupted=summarize(list(corrupted[norm].values())) if done else None,
                per_seed=corrupted[norm],
                clean_difference=compare_paired(clean[norm], clean[reference]) if compared else None,
                difference=compare_paired(corrupted[norm], corrupted[reference]) if compared else None,
                by_corruption=_average([record.corruption_errors for record in done]),
                parameters=done[0].parameters if done else None,
                step_time=step_times.get(norm),
                failures={
                    record.seed: record.message or "no message"
                    for record in records
                    if record.norm == norm and not record.complete
                },
            )
        )
    return rows


def _average(errors: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    if not errors:
        return {}
    return {
        name: [sum(values) / len(values) for values in zip(*(each[name] for each in errors), strict=True)]
        for name in errors[0]
    }


def format_summary(summary: Summary | None) -> str:
    """Mean ± standard deviation over seeds.

    Example:
        >>> format_summary(Summary(33.21, 1.04, 32.0, 34.0, 2))
        '33.2 ± 1.0'
        >>> format_summary(Summary(33.21, None, 33.21, 33.21, 1)), format_summary(None)
        ('33.2', '–')

    Args:
        summary: the quantity, or None.

    Returns:
        The text.
    """
    if summary is None:
        return "–"
    return f"{summary.mean:.1f}" + ("" if summary.std is None else f" ± {summary.std:.1f}")


def format_signed(value: float) -> str:
    """A difference with its sign, in one decimal.

    Example:
        >>> format_signed(-1.25), format_signed(0.5)
        ('−1.2', '+0.5')

    Args:
        value: the difference.

    Returns:
        The text.
    """
    text = f"{abs(value):.1f}"
    return text if float(text) == 0 else (MINUS if value < 0 else "+") + text


def _format_difference(difference: PairedDifference | None) -> str:
    return "–" if difference is None else f"{format_signed(difference.mean)} ({difference.verdict})"


def to_markdown(rows: Sequence[Row], reference: str) -> str:
    """The rows as a Markdown table whose columns line up in a terminal too, with what it must say below.

    Example:
        >>> def make(norm, error):
        ...     return Record("0f", norm, 0, "ok", clean_error=5.0, corruption_errors={"fog": [error]}, parameters=9)
        >>> records = [make("BatchNorm", 40.0), make("CNSN", 30.0)]
        >>> rows = build_rows(records, ["BatchNorm", "CNSN"], reference="BatchNorm")
        >>> print(to_markdown(rows, "BatchNorm").splitlines()[3])
        | CNSN      |           5.0 |                    30.0 |   −10.0 (spread unknown) |          9 |         – |

    Args:
        rows: from `build_rows`.
        reference: the norm that differences are taken to.

    Returns:
        Markdown.
    """
    header = [
        "Norm",
        "Clean error %",
        "Mean corruption error %",
        f"Difference to {reference}",
        "Parameters",
        "Step time",
    ]
    body = [
        [
            row.norm,
            format_summary(row.clean),
            format_summary(row.corrupted),
            _format_difference(row.difference),
            "–" if row.parameters is None else f"{row.parameters:,}",
            "–" if row.step_time is None else f"{row.step_time.ratio:.2f} ×",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]

    def draw(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    lines = [draw(header), rule, *(draw(cells) for cells in body), "", *list_notes(rows, reference)]
    return "\n".join(lines) + "\n"


def group_by_verdict(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Which norms the seeds allow to say what of.

    Example:
        >>> group_by_verdict([])["better"]
        []

    Args:
        rows: from `build_rows`.

    Returns:
        The norms, in the rows' order, under every verdict of `PairedDifference`.
    """
    return {
        verdict: [row.norm for row in rows if row.difference and row.difference.verdict == verdict]
        for verdict in VERDICTS
    }


def list_notes(rows: Sequence[Row], reference: str) -> list[str]:
    """Sentences without which the table would mislead.

    Example:
        >>> list_notes([], "BatchNorm")[0]
        'Errors in percent, lower is better; no run has finished.'

    Args:
        rows: from `build_rows`.
        reference: the norm that differences are taken to.

    Returns:
        One sentence group per line.
    """
    counts = sorted({row.corrupted.count for row in rows if row.corrupted})
    spread = "no run has finished"
    if counts:
        seeds = f"{counts[-1]} seeds" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]} seeds"
        spread = f"mean ± standard deviation over {seeds}" if counts[-1] > 1 else "one seed each"
    notes = [f"Errors in percent, lower is better; {spread}."]
    base = next((row for row in rows if row.norm == reference), None)
    if base is not None and base.step_time is not None:
        milliseconds = f"{base.step_time.milliseconds:.1f} ms"
        notes.append(f"Step time: ms per training step relative to {reference}, which takes {milliseconds}.")
    names = group_by_verdict(rows)
    if clear := [row.norm for row in rows if row.norm in names["better"] + names["worse"]]:
        notes.append(f"Difference to {reference} larger than the spread of the seeds: {', '.join(clear)}.")
    if names["tentative"]:
        notes.append(
            "Larger than the spread, but its 95 % interval over paired seeds holds zero, so confirm with more seeds: "
            f"{', '.join(names['tentative'])}."
        )
    if names["within spread"]:
        within = ", ".join(names["within spread"])
        notes.append(f"Not larger than the spread of the seeds, so no finding either way: {within}.")
    if clear or names["tentative"] or names["within spread"]:
        notes.append(
            "Spread is the larger of the two ranges (highest minus lowest seed). "
            + (
                "With two seeds it is itself a rough estimate: confirm with more before relying on it."
                if counts[-1] < 3
                else ""
            )
        )
    if counts and counts[-1] == 1:
        notes.append("One seed only: how much seeds differ is unknown, so no difference here is established.")
    notes += [f"{row.norm}, seed {seed} failed: {message}" for row in rows for seed, message in row.failures.items()]
    return notes
