"""Line and dot charts as inline SVG; colours are CSS classes, so that a page's light and dark themes apply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

# Dash patterns set apart what colour alone does not, once there are more lines than colours.
COLORS = 8
_DASHES = ("", "6 3", "2 3")


class Line(NamedTuple):
    """One line of a chart.

    Example:
        >>> Line("SelfNorm", 1, [5.0, 8.0]).style
        'class="line c1"'
    """

    name: str
    index: int
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @property
    def style(self) -> str:
        """Attributes of its stroke."""
        return stroke(self.index)


def stroke(index: int) -> str:
    """SVG attributes of the stroke of series `index`; 0 is the reference.

    Example:
        >>> stroke(0)
        'class="line c0"'

    Args:
        index: place of the series in the comparison.

    Returns:
        Class and, past the last colour, a dash pattern.
    """
    turn = 0 if index == 0 else (index - 1) // (COLORS - 1)
    dash = _DASHES[turn % len(_DASHES)]
    return f'class="line c{color(index)}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def color(index: int) -> int:
    """Colour number of series `index`: 0 for the reference alone, the others in turn.

    Example:
        >>> [color(index) for index in (0, 1, 7, 8)]
        [0, 1, 7, 1]

    Args:
        index: place of the series in the comparison.

    Returns:
        0 to COLORS - 1.
    """
    return 0 if index == 0 else 1 + (index - 1) % (COLORS - 1)


def choose_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range.

    Example:
        >>> choose_ticks(3.0, 47.0)
        [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]

    Args:
        low: smallest value.
        high: largest value.
        count: about how many steps.

    Returns:
        Ticks, the first at most `low` and the last at least `high`.
    """
    # equal values are given an axis of about one unit
    span = max(high - low, 1.0)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(tick * step, 10) for tick in range(first, last + 1)]


def draw_lines(
    lines: Sequence[Line],
    labels: Sequence[str],
    *,
    title: str,
    width: int = 720,
    height: int = 380,
    top: float | None = None,
    named: bool = True,
) -> str:
    """A line chart: error upwards, severity to the right.

    Example:
        >>> svg = draw_lines([Line("BatchNorm", 0, [5.0, 9.0])], ["clean", "1"], title="Error")
        >>> svg.startswith("<svg") and "BatchNorm" in svg
        True

    Args:
        lines: what to draw, each with one value per label.
        labels: of the horizontal axis.
        title: read out in place of the picture.
        width: of the drawing, in its own units.
        height: of the drawing.
        top: highest value of the vertical axis; None for the data's.
        named: whether each line's name stands at its end.

    Returns:
        SVG.
    """
    right = 26 + _measure([line.name for line in lines]) if named else 10
    left, above, below = 40, 12, 30
    values = [v for line in lines for v in (*line.values, *(line.high or ()))]
    ticks = choose_ticks(0.0, max([top or 0.0, *values, 1.0]))

    def x(index: float) -> float:
        return left + 8 + (width - left - right - 16) * index / max(len(labels) - 1, 1)

    def y(value: float) -> float:
        return above + (height - above - below) * (1 - value / ticks[-1])

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for index, label in enumerate(labels):
        parts.append(
            f'<text class="tick" x="{x(index):.1f}" y="{height - 10}" text-anchor="middle">{escape(label)}</text>'
        )
    for line in lines:
        if line.low and line.high:
            edge = [*enumerate(line.high), *reversed(list(enumerate(line.low)))]
            points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in edge)
            parts.append(f'<polygon class="band b{color(line.index)}" points="{points}"/>')
    # The reference is drawn last, over the others.
    for line in sorted(lines, key=lambda each: each.index == 0):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line.values))
        parts.append(f'<polyline {line.style} points="{points}"><title>{escape(line.name)}</title></polyline>')
        for i, v in enumerate(line.values):
            parts.append(
                f'<circle class="dot f{color(line.index)}" cx="{x(i):.1f}" cy="{y(v):.1f}" r="2.6">'
                f"<title>{escape(line.name)}, {escape(labels[i])}: {v:.1f} %</title></circle>"
            )
    if named:
        ends = spread_labels([y(line.values[-1]) for line in lines], 15.0, above + 6.0, height - below)
        for line, at in zip(lines, ends, strict=True):
            start = width - right
            parts.append(
                f'<path class="leader" d="M{start - 4:.1f} {y(line.values[-1]):.1f} L{start + 8} {at:.1f}"/>'
                f'<text class="name t{color(line.index)}" x="{start + 12}" y="{at + 4:.1f}">{escape(line.name)}</text>'
            )
    return "".join(parts) + "</svg>"


def _measure(names: Sequence[str]) -> int:
    # about the width of the bold 13-unit labels in the widest of the usual fonts
    return max(60, *(math.ceil(8.2 * len(name)) for name in names))


def spread_labels(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart along an axis until none overlap, keeping their order.

    Example:
        >>> spread_labels([50.0, 50.0, 90.0], 10.0, 0.0, 100.0)
        [45.0, 55.0, 90.0]

    Args:
        places: where the labels would like to be.
        gap: smallest distance between neighbours.
        low: no label above this, where there is room.
        high: no label below this, where there is room.

    Returns:
        New places, in the order given.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    # Clusters of labels that touch: each is centred on the mean of what its labels want.
    clusters: list[tuple[list[int], float]] = []

    def start(members: list[int], center: float) -> float:
        length = gap * (len(members) - 1)
        return max(low, min(center - length / 2, high - length))

    for index in order:
        members, center = [index], places[index]
        while clusters:
            before, middle = clusters[-1]
            if start(before, middle) + gap * len(before) <= start(members, center) + 1e-9:
                break
            clusters.pop()
            members = before + members
            center = sum(places[i] for i in members) / len(members)
        clusters.append((members, center))
    result = list(places)
    for members, center in clusters:
        for offset, index in enumerate(members):
            result[index] = start(members, center) + gap * offset
    return result


def draw_dots(groups: Sequence[tuple[str, int, Sequence[float]]], *, title: str, width: int = 720) -> str:
    """A dot chart: one row per norm, one dot per run, a tick at the mean, the reference's range as a band.

    Example:
        >>> draw_dots([("BatchNorm", 0, [40.0, 42.0]), ("SelfNorm", 1, [31.0])], title="Errors").count("<circle")
        3

    Args:
        groups: name, series index and values; the group with index 0 is the reference.
        title: read out in place of the picture.
        width: of the drawing, in its own units.

    Returns:
        SVG.
    """
    left, right, above, row = 22 + _measure([name for name, _, _ in groups]), 20, 8, 28
    height = above + row * len(groups) + 30
    values = [value for _, _, each in groups for value in each]
    ticks = choose_ticks(min(values), max(values), 6)

    def x(value: float) -> float:
        return left + (width - left - right) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    bottom = height - 26
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for _, index, each in groups:
        if index == 0 and each:
            start, span = x(min(each)), max(x(max(each)) - x(min(each)), 2.0)
            place = f'x="{start:.1f}" y="{above}" width="{span:.1f}" height="{bottom - above}"'
            parts.append(f'<rect class="band b0" {place}/>')
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{above}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:g} %</text>')
    for number, (name, index, each) in enumerate(groups):
        y = above + row * (number + 0.5)
        place = f'x="{left - 14}" y="{y + 4:.1f}" text-anchor="end"'
        parts.append(f'<text class="name t{color(index)}" {place}>{escape(name)}</text>')
        if each:
            mean = sum(each) / len(each)
            parts.append(
                f'<line class="mean m{color(index)}" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y - 8}" y2="{y + 8}"/>'
            )
        for value in each:
            parts.append(
                f'<circle class="dot f{color(index)}" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5">'
                f"<title>{escape(name)}: {value:.1f} %</title></circle>"
            )
    return "".join(parts) + "</svg>"
