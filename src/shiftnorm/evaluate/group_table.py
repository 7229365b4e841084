"""Networks over their training seeds as sentences, notes, Markdown, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shiftnorm.evaluate.corruption_rows import MeanError, compare_corruptions
from shiftnorm.evaluate.group_mean import average_runs
from shiftnorm.evaluate.paired import SeedComparison
from shiftnorm.evaluate.result import Estimate
from shiftnorm.evaluate.robustness_table import (
    draw_errors,
    draw_facts,
    draw_results,
    draw_table,
    escape,
    label_results,
    make_visible,
    say_sides,
)
from shiftnorm.evaluate.seed_groups import GroupRow
from shiftnorm.evaluate.table import format_signed, format_summary

__all__ = ["describe_groups", "list_group_notes", "render_group_markdown", "render_groups", "say_groups"]


def describe_groups(rows: Sequence[GroupRow]) -> list[str]:
    """What the groups say, in sentences that claim no more than the seeds allow.

    Example:
        >>> from shiftnorm.evaluate.metrics import summarize
        >>> row = GroupRow("a", [0, 1], True, summarize([4.0, 6.0]), None, None, None, None, None, None)
        >>> describe_groups([row])
        ['a errs on 5.0 ± 1.4 % of the clean images.']

    Args:
        rows: from `compare_groups`; the first is what the others are compared to.

    Returns:
        One to five sentences.
    """
    first, *others = rows
    name = make_visible(first.name)
    if first.corrupted is None:
        return [f"{name} errs on {format_summary(first.clean)} % of the clean images."]
    sentences = [
        f"{name} errs on {format_summary(first.clean)} % of the clean images and on {format_summary(first.corrupted)} "
        "% of the corrupted ones."
    ]
    told: list[tuple[str, float, float, float, str]] = []
    single: list[str] = []
    for row in others:
        found = row.difference
        if found is None:
            continue
        if found.low is None or found.high is None:
            single.append(make_visible(row.name))
        else:
            then = f" (p = {found.p_t:.2g})"
            told.append((make_visible(row.name), found.difference, found.low, found.high, then))
    sentences += say_sides(
        told,
        fewer="Under corruption, over the training seeds, these err less",
        more="Over the training seeds these err more",
        neither=f"Not told apart from {name} by these seeds",
    )
    if single:
        sentences.append(f"One common seed says nothing about other seeds: {', '.join(single)}.")
    return sentences


def list_group_notes(rows: Sequence[GroupRow]) -> list[str]:
    """Sentences that a reader of the table needs.

    Example:
        >>> from shiftnorm.evaluate.metrics import summarize
        >>> row = GroupRow("a", [1, 2], False, summarize([4.0, 6.0]), None, None, None, None, None, None)
        >>> list_group_notes([row])[-1]
        'Which seeds the runs are of is in neither their records, names nor folders: they are paired in the order ...'

    Args:
        rows: from `compare_groups`.

    Returns:
        One sentence group per item.
    """
    notes = ["Mean ± standard deviation over training seeds; errors in percent, lower is better."]
    found = [row.difference or row.clean_difference for row in rows if row.clean_difference is not None]
    least = [each.smallest_p_flip for each in found if each is not None and each.smallest_p_flip is not None]
    if least:
        notes.append(
            "Differences are paired by seed, with Student's 95 % interval. p over seeds: of the paired t-test, which "
            "takes differences between seeds as normal, and of exact sign flips, which does not, but with so few seeds "
            f"cannot be below {min(least):.2g}."
        )
    if any(row.over_images is not None for row in rows):
        notes.append(
            "p over images: of a permutation test of the errors averaged over the common seeds, which takes these "
            "seeds as given and says nothing about others."
        )
    if len({tuple(row.seeds) for row in rows}) > 1:
        notes.append("Not all have the same seeds; only common ones are paired.")
    if not all(row.known for row in rows):
        notes.append(
            "Which seeds the runs are of is in neither their records, names nor folders: they are paired in the order "
            "given."
        )
    return notes


def _difference(found: SeedComparison | None) -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return format_signed(found.difference)
    return f"{format_signed(found.difference)} ({format_signed(found.low)} to {format_signed(found.high)})"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _seeds(row: GroupRow) -> str:
    return f"{len(row.seeds)} ({', '.join(map(str, row.seeds))})" if row.known else str(len(row.seeds))


def render_groups(rows: Sequence[GroupRow]) -> list[str]:
    """The groups as a section of Markdown.

    Example:
        >>> from shiftnorm.evaluate.metrics import summarize
        >>> row = GroupRow("a|b", [0, 1], True, summarize([4.0, 6.0]), None, None, None, None, None, None)
        >>> print(render_groups([row])[4])
        | a\\|b | 2 (0, 1) | 5.0 ± 1.4 | – | – | – | – | – |

    Args:
        rows: from `compare_groups`.

    Returns:
        Lines; names are escaped.
    """
    head = ["Network", "Seeds", "Clean error %", "Mean corruption error %", f"Difference to {escape(rows[0].name)}"]
    body = [
        [
            escape(row.name),
            _seeds(row),
            format_summary(row.clean),
            format_summary(row.corrupted),
            _difference(row.difference),
            _p(None if row.difference is None else row.difference.p_t),
            _p(None if row.difference is None else row.difference.p_flip),
            _p(None if row.over_images is None else row.over_images.p_value),
        ]
        for row in rows
    ]
    table = draw_table([*head, "p over seeds (t)", "p over seeds (sign flips)", "p over images"], body)
    return ["## Over training seeds", "", *table, "", *(f"* {note}" for note in list_group_notes(rows))]


def render_group_markdown(rows: Sequence[GroupRow], differences: Mapping[int, Estimate], title: str) -> str:
    """The numbers of a page of groups as Markdown: the groups, their means, and the single runs.

    Example:
        >>> from shiftnorm.evaluate.metrics import summarize
        >>> from shiftnorm.evaluate.result import CellResult, Result
        >>> run = Result("a, seed 0", 100, CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1), [], None)
        >>> row = GroupRow("a", [0], True, summarize([5.0]), *(None,) * 6, runs={0: run})
        >>> [line for line in render_group_markdown([row], {}, "Seeds").splitlines() if line.startswith("## ")]
        ['## Over training seeds', '## The single runs', '## a, seed 0: how it was measured']

    Args:
        rows: from `compare_groups`.
        differences: by place among all runs, the mean corruption error minus that of the first group's run of the same
            seed.
        title: of the page.

    Returns:
        Markdown; names are escaped, so that none is taken for markup.
    """
    means = [average_runs(row) for row in rows]
    labels = label_results(means)
    lines = [f"# {escape(title)}", "", escape(" ".join(describe_groups(rows))), "", *render_groups(rows)]
    if compared := compare_corruptions(means, {}, rows):
        lines += ["", "## Corruption by corruption: mean over severities and seeds, and difference to the first", ""]
        lines += draw_table(
            ["Corruption", *map(escape, labels)],
            [[escape(name.replace("_", " ")), *map(_say_mean, entries)] for name, entries in compared],
        )
        lines += ["", "Paired by seed; * p < 0.05 in a paired t-test over seeds, after Holm's correction."]
    for label, mean in zip(labels, means, strict=True):
        lines += draw_errors(label, mean, ", mean over seeds")
    runs = [run for row in rows for run in row.runs.values()]
    alike = f"Difference to {escape(labels[0])}, {'same seed' if rows[0].known else 'same place'}"
    lines += ["", "## The single runs", "", *draw_results(runs, differences, alike)]
    for label, run in zip(label_results(runs), runs, strict=True):
        lines += draw_facts(label, run)
    return "\n".join(lines) + "\n"


def _say_mean(mean: MeanError | None) -> str:
    if mean is None:
        return "–"
    difference = "" if mean.difference is None else f" ({format_signed(mean.difference.value)}{' *' * mean.clear})"
    return f"{mean.value:.1f}{difference}".replace("*", "\\*")


def say_groups(rows: Sequence[GroupRow]) -> list[str]:
    """The groups as lines for a terminal.

    Example:
        >>> from shiftnorm.evaluate.metrics import summarize
        >>> row = GroupRow("a", [0, 1], True, summarize([4.0, 6.0]), None, None, None, None, None, None)
        >>> say_groups([row])[0]
        'a  2 seeds (0, 1)  clean 5.0 ± 1.4 %'

    Args:
        rows: from `compare_groups`.

    Returns:
        One line for each group, and the notes.
    """
    lines: list[str] = []
    names = [make_visible(row.name) for row in rows]
    width = max(map(len, names))
    for name, row in zip(names, rows, strict=True):
        count = f"{len(row.seeds)} {'seed' if row.known else 'run'}{'' if len(row.seeds) == 1 else 's'}"
        listed = f" ({', '.join(map(str, row.seeds))})" if row.known else ""
        line = f"{name:{width}}  {count}{listed}  clean {format_summary(row.clean)} %"
        if row.corrupted is not None:
            line += f", corrupted {format_summary(row.corrupted)} %"
        if (found := row.difference) is not None:
            line += f", against {names[0]} {_difference(found)}"
            if found.p_t is not None:
                line += f", p over seeds {_p(found.p_t)} (t), {_p(found.p_flip)} (sign flips)"
            if row.over_images is not None:
                line += f", over images {_p(row.over_images.p_value)}"
        lines.append(line)
    return [*lines, *(f"note: {note}" for note in list_group_notes(rows))]
