"""A robustness result as text for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from shiftnorm.evaluate.progress import plural
from shiftnorm.evaluate.result import Result

__all__ = ["describe_result", "name_mce"]


def describe_result(result: Result) -> str:
    """The result as a headline, a table corruption by severity, and how it was measured.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult, Estimate
        >>> cells = [CellResult("fog", s, Estimate(10.0 * s), 0.0, 1.0, 0.1) for s in (1, 2)]
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.5, 5.5), 0.0, 1.0, 0.1)
        >>> print(describe_result(Result("net", 100, clean, cells, Estimate(15.0, 14.0, 16.0))))
        net on 100 images
          clean error            5.00 [4.50, 5.50] %
          mean corruption error  15.00 [14.00, 16.00] %
          worst corruption       fog, 15.00 %
                1     2  mean
        fog  10.0  20.0  15.0

    Args:
        result: what `robustness` returned.

    Returns:
        Lines without a final line break.
    """
    name = result.data.get("name")
    lines = [f"{result.name} on {result.images} {plural('image', result.images)}" + (f" of {name}" if name else "")]
    rows = [("clean error", f"{result.clean.error} %")]
    if result.mean_corruption_error is not None:
        rows.append(("mean corruption error", f"{result.mean_corruption_error} %"))
    if result.mce is not None and result.baseline is not None:
        rows.append((result.baseline["called"], f"{result.mce} % of {result.baseline['name']}"))
    if result.relative_mce is not None and result.baseline is not None:
        rows.append((f"relative {result.baseline['called']}", f"{result.relative_mce} % of {result.baseline['name']}"))
    if (worst := result.worst_corruption) is not None:
        rows.append(("worst corruption", f"{worst[0]}, {worst[1]:.2f} %"))
    if (worst := result.worst_class) is not None:
        rows.append(("worst class", f"{worst[0]}, {worst[1]:.2f} %"))
    for kind, found in result.calibration.items():
        rows.append((f"calibration, {kind}", f"ECE {found.ece:.2f} %, RMS {found.rms:.2f} %"))
    width = max(len(label) for label, _ in rows)
    lines += [f"  {label:{width}}  {text}" for label, text in rows]
    lines += _table(result)
    lines += [f"warning: {text}" for text in result.warnings]
    lines += [f"note: {text}" for text in result.notes]
    return "\n".join(lines)


def _table(result: Result) -> list[str]:
    if not result.cells:
        return []
    severities = result.severities
    known = {(cell.corruption, cell.severity): cell.error.value for cell in result.cells}
    width = max(map(len, result.corruptions))
    lines = [" " * width + "".join(f"{severity:6}" for severity in severities) + "  mean"]
    for name in result.corruptions:
        row = [known.get((name, severity)) for severity in severities]
        mean = statistics.fmean(value for value in row if value is not None)
        cells = "".join("     -" if value is None else f"{value:6.1f}" for value in row)
        lines.append(f"{name:{width}}{cells}{mean:6.1f}")
    return lines


def name_mce(results: Sequence[Result]) -> str:
    """What the mCE of some results may be called: with a remark where they were not measured as the baseline was.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult, Estimate
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> told = {"name": "AlexNet", "source": "published", "called": "mCE with procedural frost"}
        >>> name_mce([Result("a", 9, clean, [], None, mce=Estimate(80.0), baseline=told)])
        'mCE with procedural frost'

    Args:
        results: at least one.

    Returns:
        The names, each once.
    """
    called = [(result.baseline or {}).get("called", "mCE") for result in results if result.mce is not None]
    return " or ".join(dict.fromkeys(called)) or "mCE"
