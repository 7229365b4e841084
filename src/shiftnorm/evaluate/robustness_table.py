"""Results of robustness evaluations side by side: what differs, findings in words, Markdown and CSV."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from shiftnorm.evaluate.fingerprint import other_contents
from shiftnorm.evaluate.result import Estimate, Result
from shiftnorm.evaluate.result_text import name_mce
from shiftnorm.evaluate.table import format_signed

__all__ = [
    "HurtClass",
    "describe_results",
    "find_hurt_classes",
    "find_mismatches",
    "format_estimate",
    "label_results",
    "make_visible",
    "render_markdown",
    "say_sides",
]

# What decides which images a network was shown; how it was fed (normalization, batches, precision) is its own affair.
_DECISIVE: Final = ("seed", "constants", "storage", "frost", "preprocess")


class HurtClass(NamedTuple):
    """A class, its clean error, and its mean error over the corrupted cells, in percent.

    Example:
        >>> HurtClass("cat", 8.0, 40.0).added
        32.0
    """

    name: str
    clean: float
    corrupted: float

    @property
    def added(self) -> float:
        """What the corruptions add to the error, in points.

        Example:
            >>> HurtClass("cat", 8.0, 40.0).added
            32.0
        """
        return self.corrupted - self.clean


def find_hurt_classes(result: Result, count: int = 10) -> list[HurtClass]:
    """The classes that the corruptions add most errors to, most hurt first.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> errors = {"clean": [1.0, 9.0, None], "corrupted": [31.0, 20.0, None]}
        >>> result = Result("net", 9, clean, [], None, classes=["cat", "dog", "eel"], class_errors=errors)
        >>> [each.name for each in find_hurt_classes(result)]
        ['cat', 'dog']

    Args:
        result: of one network.
        count: how many at most.

    Returns:
        Classes that have images and err more under corruption.
    """
    clean, corrupted = result.class_errors.get("clean", []), result.class_errors.get("corrupted", [])
    found = [
        HurtClass(result.classes[place] if place < len(result.classes) else f"class {place}", before, after)
        for place, (before, after) in enumerate(zip(clean, corrupted, strict=False))
        if before is not None and after is not None and after > before
    ]
    return sorted(found, key=lambda each: -each.added)[:count]


def label_results(results: Sequence[Result]) -> list[str]:
    """A name for each result that no other has.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> label_results([Result("net", 9, clean, [], None), Result("net", 9, clean, [], None)])
        ['net', 'net (2)']

    Args:
        results: in the order of the report.

    Returns:
        Their names as `make_visible` writes them, numbered where they repeat.
    """
    labels: list[str] = []
    for result in results:
        name, number = make_visible(result.name), 1
        label = name
        while label in labels:
            number += 1
            label = f"{name} ({number})"
        labels.append(label)
    return labels


def find_mismatches(first: Result, second: Result) -> list[str]:
    """Why two results cannot be compared number by number; empty if they can.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> a = Result("a", 9, clean, [], None, settings={"seed": 0})
        >>> b = Result("b", 9, clean, [], None, settings={"seed": 1})
        >>> find_mismatches(a, b)
        ['seed 0 and 1']

    Args:
        first: of one network.
        second: of another.

    Returns:
        What decides the images and differs.
    """
    found: list[str] = []
    data, photographs = (
        [result.fingerprint.get(key) for result in (first, second)] for key in ("data", "frost photographs")
    )
    if first.images != second.images:
        found.append(f"{first.images:,} and {second.images:,} images")
    elif data[0] != data[1] or other_contents(first.fingerprint, second.fingerprint):
        found.append("different images")
    if photographs[0] != photographs[1]:
        found.append("different photographs of frost")
    cells = [{(cell.corruption, cell.severity) for cell in result.cells} for result in (first, second)]
    if cells[0] != cells[1]:
        names = sorted({f"{name} {severity}".replace("_", " ") for name, severity in cells[0] ^ cells[1]})
        found.append(f"not the same corruptions ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})")
    sources = [
        "read from files" if result.settings.get("source") == "files" else "made here" for result in (first, second)
    ]
    if sources[0] != sources[1]:
        return [*found, f"corruptions {sources[0]} and {sources[1]}"]
    if first.fingerprint.get("corrupted files") != second.fingerprint.get("corrupted files"):
        found.append("different files of corrupted images")
    for key in _DECISIVE:
        ours, theirs = first.settings.get(key), second.settings.get(key)
        if ours != theirs:
            found.append(f"{key} {ours} and {theirs}")
    return found


def format_estimate(estimate: Estimate | None, unit: str = "") -> str:
    """An estimate in one decimal, with its interval where it has one.

    Example:
        >>> format_estimate(Estimate(23.41, 22.87, 24.0), " %"), format_estimate(Estimate(5.0)), format_estimate(None)
        ('23.4 % (22.9 to 24.0)', '5.0', '–')

    Args:
        estimate: or None.
        unit: set behind the value.

    Returns:
        The text.
    """
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" ({estimate.low:.1f} to {estimate.high:.1f})"
    return f"{estimate.value:.1f}{unit}{interval}"


def make_visible(text: str) -> str:
    """Text without characters that change how others are shown: control characters, or those that turn the direction.

    Example:
        >>> make_visible("a\u202eb\\nc")
        'a\\\\u202eb\\\\nc'

    Args:
        text: a name of unknown origin.

    Returns:
        The text with such characters written as their escapes.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def describe_results(results: Sequence[Result], differences: Mapping[int, Estimate]) -> list[str]:
    """What the results say, in sentences; the first network is what the others are compared to.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> fog = CellResult("fog", 1, Estimate(20.0), 0.0, 1.0, 0.1)
        >>> result = Result("net", 100, clean, [fog], Estimate(20.0, 15.0, 26.0))
        >>> describe_results([result], {})[0]
        'net errs on 5.0 % of the clean images and on 20.0 % (15.0 to 26.0) of the corrupted ones: shift costs it
         15.0 points.'

    Args:
        results: at least one.
        differences: by place in `results`, the mean corruption error minus the first network's.

    Returns:
        One to four sentences.
    """
    first, labels = results[0], label_results(results)
    if first.mean_corruption_error is None:
        return [f"{labels[0]} errs on {format_estimate(first.clean.error, ' %')} of the clean images."]
    before, after = first.clean.error.value, first.mean_corruption_error
    cost = after.value - before
    verdict = f"shift costs it {cost:.1f} points" if cost >= 0.05 else "shift costs it nothing here"
    sentences = [
        f"{labels[0]} errs on {before:.1f} % of the clean images and on {format_estimate(after, ' %')} of the "
        f"corrupted ones: {verdict}."
    ]
    if len(results) == 1:
        means = {name: statistics.fmean(row) for name, row in first.errors.items()}
        worst, mildest = (choose(means, key=means.__getitem__) for choose in (max, min))
        if worst != mildest:
            sentences.append(
                f"Worst is {worst.replace('_', ' ')} ({means[worst]:.1f} %), "
                f"mildest {mildest.replace('_', ' ')} ({means[mildest]:.1f} %)."
            )
        hurt = find_hurt_classes(first, 1)
        if hurt:
            sentences.append(f"The class hurt most is {make_visible(hurt[0].name)} (+{hurt[0].added:.1f} points).")
        return sentences
    told = [
        (labels[place], estimate.value, estimate.low, estimate.high, "")
        for place, estimate in differences.items()
        if estimate.low is not None and estimate.high is not None
    ]
    return [
        *sentences,
        *say_sides(
            told,
            fewer=f"Under corruption these err less than {labels[0]}",
            more="These err more",
            neither=f"Not told apart from {labels[0]} by these images",
        ),
    ]


def say_sides(
    told: Iterable[tuple[str, float, float, float, str]], *, fewer: str, more: str, neither: str
) -> list[str]:
    """Sentences on which differences have intervals below zero, above it, or around it.

    Example:
        >>> told = [("a", -2.0, -3.0, -1.0, ""), ("b", 0.5, -1.0, 2.0, "")]
        >>> say_sides(told, fewer="Less", more="More", neither="Equal")
        ['Less: a by 2.0 points.', 'Equal: b.']

    Args:
        told: name, difference, lower and upper end of its interval, and what follows it.
        fewer: how the sentence on those below zero begins.
        more: on those above zero.
        neither: on the others.
    """
    sides: dict[str, list[str]] = {fewer: [], more: [], neither: []}
    for name, difference, low, high, then in told:
        side = fewer if high < 0 else more if low > 0 else neither
        sides[side].append(name if side is neither else f"{name} by {abs(difference):.1f} points{then}")
    return [f"{side}: {', '.join(names)}." for side, names in sides.items() if names]


def render_markdown(results: Sequence[Result], differences: Mapping[int, Estimate], title: str) -> str:
    """The report's numbers as Markdown.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> print(render_markdown([Result("a|b", 100, clean, [], None)], {}, "Robustness").splitlines()[6])
        | a\\|b | 5.0 | – | – | – | – | – | – |

    Args:
        results: at least one; the first is what the others are compared to.
        differences: by place in `results`, the mean corruption error minus the first network's.
        title: of the page.

    Returns:
        Markdown; names are escaped, so that none is taken for markup.
    """
    labels = label_results(results)
    lines = [f"# {escape(title)}", "", escape(" ".join(describe_results(results, differences))), ""]
    lines += draw_results(results, differences, f"Difference to {escape(labels[0])}")
    for label, result in zip(labels, results, strict=True):
        lines += [*draw_errors(label, result), *draw_facts(label, result)]
    return "\n".join(lines) + "\n"


def draw_results(results: Sequence[Result], differences: Mapping[int, Estimate], compared: str) -> list[str]:
    """The table of results one under the other, `compared` heading the column of their differences."""
    head = ["Network", "Clean error %", "Mean corruption error %", compared]
    if any(result.mce for result in results):
        head += [f"{escape(name_mce(results))} %", f"Relative {escape(name_mce(results))} %"]
    head += ["ECE clean → corrupted %", "Parameters", "ms per image", "Peak memory"]
    return draw_table(head, _model_rows(results, differences))


def draw_errors(label: str, result: Result, of: str = "") -> list[str]:
    """The tables of a network's errors by corruption and class; `of` says in the headings of what they are means."""
    label, lines = escape(label), []
    if result.cells:
        lines += ["", f"## {label}: error in percent by corruption and severity{of}", "", *_heat_rows(result)]
    if hurt := find_hurt_classes(result):
        rows = [[escape(h.name), f"{h.clean:.1f}", f"{h.corrupted:.1f}", format_signed(h.added)] for h in hurt]
        lines += ["", f"## {label}: most-hurt classes{of}", ""]
        lines += draw_table(["Class", "Clean error %", "Corrupted error %", "Added"], rows)
    return lines


def draw_facts(label: str, result: Result) -> list[str]:
    """What a reader of a result must know, and how it was measured."""
    label, lines = escape(label), []
    if remarks := [*result.warnings, *result.notes]:
        lines += ["", f"## {label}: notes", "", *(f"* {escape(remark)}" for remark in remarks)]
    baseline = result.baseline and ", ".join(result.baseline.values())
    told = {"baseline": baseline, "command": result.command, **result.versions, "finished": result.finished}
    facts = {**result.settings, **told}
    lines += ["", f"## {label}: how it was measured", ""]
    return lines + [f"* {escape(str(key))}: {escape(str(value))}" for key, value in facts.items() if value is not None]


def _model_rows(results: Sequence[Result], differences: Mapping[int, Estimate]) -> list[list[str]]:
    rows: list[list[str]] = []
    normalised = any(result.mce for result in results)
    for place, (label, result) in enumerate(zip(label_results(results), results, strict=True)):
        difference = differences.get(place)
        signed = "–"
        if difference is not None:
            signed = format_signed(difference.value)
            if difference.low is not None and difference.high is not None:
                signed += f" ({format_signed(difference.low)} to {format_signed(difference.high)})"
        calibration = [result.calibration.get(kind) for kind in ("clean", "corrupted")]
        parameters, ms = result.cost.get("parameters"), result.cost.get("ms_per_image")
        rows.append(
            [
                escape(label),
                format_estimate(result.clean.error),
                format_estimate(result.mean_corruption_error),
                signed,
                *((format_estimate(e) for e in (result.mce, result.relative_mce)) if normalised else ()),
                " → ".join(f"{each.ece:.1f}" for each in calibration if each) or "–",
                "–" if parameters is None else f"{parameters:,}",
                "–" if ms is None else f"{ms:.3g}",
                _memory(result),
            ]
        )
    return rows


def _memory(result: Result) -> str:
    """The peak on the device; where it is not known, of a CPU, that of the weights."""
    peak, weights = result.cost.get("peak_memory_mb"), result.cost.get("parameter_bytes")
    if peak is not None:
        return f"{peak:,.0f} MB"
    return "–" if weights is None else f"{weights / 2**20:,.1f} MB of weights"


def _heat_rows(result: Result) -> list[str]:
    values = {(cell.corruption, cell.severity): cell.error.value for cell in result.cells}
    rows = [
        [
            escape(name.replace("_", " ")),
            *(f"{values[name, s]:.1f}" if (name, s) in values else "–" for s in result.severities),
            f"{statistics.fmean(errors):.1f}",
        ]
        for name, errors in result.errors.items()
    ]
    return draw_table(["Corruption", *map(str, result.severities), "mean"], rows)


def draw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, the first column to the left and the others to the right."""
    rule = "|" + "|".join([" --- ", *(" ---: " for _ in head[1:])]) + "|"
    return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def escape(text: str) -> str:
    """A text of unknown origin as Markdown that shows it, and takes no part of it for markup."""
    text = make_visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\|`*[]" else char for char in text)
