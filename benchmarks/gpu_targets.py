"""What a record of gpu.py says about the targets: the worst case of each, and whether it was met.

python benchmarks/gpu_targets.py RECORD         the table
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from record import load
from rows import ROWS

FORMAT = "shiftnorm.gpu/1"
LARGE = 64e6  # bytes; smaller tensors stay in the cache, and no target is about them
MOMENT_NORMS = [name for name, row in ROWS.items() if row.moment]

Row = dict[str, Any]


class Verdict(NamedTuple):
    """One target: its limit, the worst that was measured and where, over how many cases."""

    target: str
    limit: float
    at_least: bool
    worst: float | None
    where: str
    cases: int

    @property
    def is_met(self) -> bool | None:
        """None where nothing was measured."""
        if self.worst is None:
            return None
        return self.worst >= self.limit if self.at_least else self.worst <= self.limit


class Times:
    """The times of a record by part, row and kind, of one kind of input."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.found = {
            (row["part"], row["row"], row["kind"], row["what"]): row
            for row in rows
            if "error" not in row and taken(row)
        }

    def ms(self, part: str, row: str, kind: str, what: str = "forward+backward") -> float | None:
        found = self.found.get((part, row, kind, what))
        return None if found is None else taken(found)

    def of_copy(self, *passes: str) -> float | None:
        """The share of a copy's bandwidth at which passes that follow one another move what they have to."""
        rows = [self.found.get(("passes", name, "kernel", "pass")) for name in passes]
        known = [row for row in rows if row is not None]
        if len(known) < len(passes):
            return None
        return sum(row["floor_ms"] for row in known) / sum(taken(row) for row in known)


Cases = Callable[[tuple[Any, ...], Times], Iterator[tuple[str, float | None]]]


def taken(row: Row) -> float:
    """Milliseconds in a replayed graph, which have no host in them, or else one by one."""
    return row.get("graph_ms") or row.get("plain_ms") or 0.0


def verdicts(record: dict[str, Any], *, least: float = LARGE) -> list[Verdict]:
    """All targets of the record, whatever was measured."""
    inputs: dict[tuple[Any, ...], list[Row]] = {}
    for row in record["results"]:
        inputs.setdefault((tuple(row["shape"]), row["dtype"], row["layout"]), []).append(row)
    times = {
        (shape, dtype, layout): Times(rows)
        for (shape, dtype, layout), rows in inputs.items()
        if math.prod(shape) * getattr(torch, dtype).itemsize >= least
    }

    def worst(target: str, limit: float, cases: Cases, *, at_least: bool) -> Verdict:
        found = [
            (value, f"{name}, {'x'.join(map(str, key[0]))} {key[1]} {key[2]}")
            for key, each in times.items()
            for name, value in cases(key, each)
            if value is not None
        ]
        value, where = (min if at_least else max)(found, default=(None, ""))
        return Verdict(target, limit, at_least, value, where, len(found))

    return [
        worst("moments and apply, share of a copy's bandwidth", 0.9, _pair("moments", "apply"), at_least=True),
        worst("reduce and combine, share of a copy's bandwidth", 0.9, _pair("reduce", "combine"), at_least=True),
        worst("moment norms over our BatchNorm", 1.05, _over("norms", "BatchNorm", "ours"), at_least=False),
        worst(
            "moment norms over cuDNN's BatchNorm, channels last", 1.0,
            _over("torch", "BatchNorm (cuDNN)", "torch", layout="channels_last"), at_least=False,
        ),
        worst("speed-up over eager formulas", 4.0, _speed_up("plain", "plain"), at_least=True),
        worst("speed-up over compiled formulas", 1.3, _speed_up("compiled", "plain_compiled"), at_least=True),
        worst("speed-up over autotuned formulas", 1.3, _speed_up("compiled", "plain_max_autotune"), at_least=True),
        worst("InstanceNorm3d, channels last, speed-up over torch's", 3.0, _instance_norm_3d, at_least=True),
    ]  # fmt: skip


def _pair(first: str, second: str) -> Cases:
    def cases(key: tuple[Any, ...], times: Times) -> Iterator[tuple[str, float | None]]:
        yield f"{first}+{second}", times.of_copy(first, second)

    return cases


def _over(part: str, other: str, kind: str, *, layout: str | None = None) -> Cases:
    def cases(key: tuple[Any, ...], times: Times) -> Iterator[tuple[str, float | None]]:
        if layout in (None, key[2]):
            for name in MOMENT_NORMS:
                if (part, name) != ("norms", other):
                    yield name, _ratio(times.ms("norms", name, "ours"), times.ms(part, other, kind))

    return cases


def _speed_up(part: str, kind: str) -> Cases:
    def cases(key: tuple[Any, ...], times: Times) -> Iterator[tuple[str, float | None]]:
        for name in MOMENT_NORMS:
            yield name, _ratio(times.ms(part, name, kind), times.ms("norms", name, "ours"))

    return cases


def _instance_norm_3d(key: tuple[Any, ...], times: Times) -> Iterator[tuple[str, float | None]]:
    if len(key[0]) == 5 and key[2] == "channels_last":
        ours = times.ms("norms", "InstanceNorm", "ours")
        yield "InstanceNorm", _ratio(times.ms("torch", "InstanceNorm", "torch"), ours)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def markdown(record: dict[str, Any], *, least: float = LARGE) -> str:
    """The table of the targets."""
    lines = [
        f"Forward and backward of tensors of at least {least / 1e6:g} MB.",
        "",
        "| Target | Limit | Worst | Where | Cases | |",
        "|---|---:|---:|---|---:|---|",
    ]
    for each in verdicts(record, least=least):
        said = {None: "not measured", True: "met", False: "missed"}[each.is_met]
        limit = f"{'at least' if each.at_least else 'at most'} {each.limit:g}"
        found = "–" if each.worst is None else f"{each.worst:.3g}"
        lines.append(f"| {each.target} | {limit} | {found} | {each.where or '–'} | {each.cases} | {said} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="of benchmarks/gpu.py")
    print(markdown(load(parser.parse_args(arguments).record, wanted=FORMAT, maker="gpu.py")))


if __name__ == "__main__":
    main()
