"""Charts of a robustness report: reliability diagrams as inline SVG, and where estimates lie on an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from shiftnorm.evaluate.chart import choose_ticks, color
from shiftnorm.evaluate.result import Calibration, Estimate

__all__ = ["Axis", "Place", "draw_reliability", "place_estimates", "shorten"]

SIDE = 300  # of a reliability diagram


def shorten(name: str, length: int) -> str:
    """A name that fits, its middle left out: beginnings and ends are what sets names apart.

    Example:
        >>> shorten("timm/resnet50.a1_in1k", 12)
        'timm/r…_in1k'

    Args:
        name: any text.
        length: how many characters there may be, at least 3.

    Returns:
        The name, or its two ends around an ellipsis.
    """
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[-end:]}"


class Place(NamedTuple):
    """Where an estimate lies on an axis, in percent of its length.

    Example:
        >>> Place("net", 0, Estimate(15.0, 12.0, 18.0), 50.0, 20.0, 80.0).at
        50.0
    """

    name: str
    color: int
    estimate: Estimate
    at: float
    low: float
    high: float


class Axis(NamedTuple):
    """Estimates on a common axis, for a page to lay out at its own width.

    Example:
        >>> axis = place_estimates(["net"], {0: Estimate(15.0, 12.0, 18.0)})
        >>> [text for _, text in axis.ticks][0], axis.rows[0].name
        ('12', 'net')
    """

    ticks: list[tuple[float, str]]
    rows: list[Place]
    zero: float | None


def place_estimates(names: Sequence[str], estimates: Mapping[int, Estimate], *, signed: bool = False) -> Axis:
    """Lay estimates with their intervals out on a common axis.

    Example:
        >>> axis = place_estimates(["a", "b"], {1: Estimate(-4.0, -8.0, 0.0)}, signed=True)
        >>> axis.rows[0].at, axis.zero, axis.ticks[0]
        (50.0, 100.0, (0.0, '−8'))

    Args:
        names: of all networks.
        estimates: by place in `names`; at least one.
        signed: whether they are differences: 0 is then on the axis, and numbers have signs.

    Returns:
        The axis.
    """
    bounds = [bound for estimate in estimates.values() for bound in estimate if bound is not None]
    ticks = choose_ticks(min([*bounds, *([0.0] * signed)]), max([*bounds, *([0.0] * signed)]), 4)

    def locate(value: float) -> float:
        return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    rows: list[Place] = []
    for place, estimate in estimates.items():
        value, low, high = estimate
        low, high = value if low is None else low, value if high is None else high
        rows.append(Place(names[place], color(place), estimate, locate(value), locate(low), locate(high)))
    texts = [f"{tick:+g}".replace("-", "−") if signed and tick else f"{tick:g}" for tick in ticks]
    return Axis(
        [(locate(tick), text) for tick, text in zip(ticks, texts, strict=True)], rows, locate(0) if signed else None
    )


def draw_reliability(calibration: dict[str, Calibration], *, title: str) -> str:
    """A reliability diagram: of the images a network is so sure about, how many it gets right.

    Dots are as large in area as their share of the images. Clean images are circles, corrupted ones squares.

    Example:
        >>> bins = [{"lower": 0.5, "upper": 1.0, "count": 8, "confidence": 0.9, "accuracy": 0.75}]
        >>> svg = draw_reliability({"clean": Calibration(15.0, 15.0, bins)}, title="Reliability")
        >>> svg.count("<circle"), "90 % sure, 75 % right" in svg
        (1, True)

    Args:
        calibration: by "clean" and "corrupted"; each may be missing.
        title: read out in place of the picture.

    Returns:
        SVG.
    """
    left, above = 44, 10
    size = SIDE - left - 10

    def x(value: float) -> float:
        return left + size * value

    def y(value: float) -> float:
        return above + size * (1 - value)

    height = above + size + 44
    parts = [f'<svg viewBox="0 0 {SIDE} {height}" role="img" aria-label="{escape(title)}">']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>'
            f'<text class="tick" x="{x(tick):.1f}" y="{above + size + 17}" text-anchor="middle">{100 * tick:.0f}</text>'
        )
    parts.append(f'<line class="zero" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>')
    parts.append(
        f'<text class="tick" x="{left + size / 2}" y="{height - 8}" text-anchor="middle">confidence, %</text>'
        f'<text class="tick" transform="translate(11 {above + size / 2}) rotate(-90)" text-anchor="middle">'
        "correct, %</text>"
    )
    for kind, index in (("clean", 1), ("corrupted", 2)):
        if kind not in calibration:
            continue
        bins = [row for row in calibration[kind].bins if row["count"]]
        total = sum(row["count"] for row in bins)
        line = " ".join(f"{x(row['confidence']):.1f},{y(row['accuracy']):.1f}" for row in bins)
        parts.append(f'<polyline class="line c{index}" points="{line}"/>')
        for row in bins:
            radius = 2.5 + 9 * (row["count"] / total) ** 0.5
            place = x(row["confidence"]), y(row["accuracy"])
            note = (
                f"<title>{kind}: {row['count']} images, {100 * row['confidence']:.0f} % sure, "
                f"{100 * row['accuracy']:.0f} % right</title>"
            )
            if kind == "clean":
                parts.append(
                    f'<circle class="dot f{index}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius:.1f}">'
                    f"{note}</circle>"
                )
            else:
                side = radius * 1.77  # of the square of the same area
                at = f'x="{place[0] - side / 2:.1f}" y="{place[1] - side / 2:.1f}"'
                parts.append(f'<rect class="dot f{index}" {at} width="{side:.1f}" height="{side:.1f}">{note}</rect>')
    return "".join(parts) + "</svg>"
