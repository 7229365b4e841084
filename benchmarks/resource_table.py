"""The tables of a record of `triton_resources.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown(record: dict[str, Any]) -> str:
    """One line per kernel of the passes and memory format, over all shapes and dtypes of the record."""
    rows = record["kernels"]
    dtypes = " and ".join(sorted({row["dtype"] for row in rows}))
    made = f"{record['date'][:10]}, Triton {record['triton']}, torch {record['torch']}"
    return "\n".join([*_lines(rows), "", f"Compiled for {record['target']}: {_shapes(rows)} shapes, {dtypes}; {made}."])


def norms_markdown(record: dict[str, Any]) -> str:
    """The same of the kernels that keep parts of x on chip."""
    return "\n".join([*_lines(record["norms"]), "", f"Compiled at the same time: {_shapes(record['norms'])} shapes."])


def between_markdown(record: dict[str, Any]) -> str:
    """The same of the kernels between the passes."""
    rows = record["between"]
    sizes = ", ".join(dict.fromkeys(f"{samples} x {channels}" for samples, channels in (row["shape"] for row in rows)))
    return "\n".join([*_lines(rows), "", f"Compiled at the same time: (N, C) of {sizes}, for five norms."])


def _shapes(rows: Sequence[dict[str, Any]]) -> int:
    return len({tuple(row["shape"]) for row in rows})


def _lines(kernels: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| Kernel | Memory format | Registers | Bytes spilled | Shared memory, most bytes | Widest loads, bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name, layout in sorted({(row["kernel"], row["layout"]) for row in kernels}):
        rows = [row for row in kernels if (row["kernel"], row["layout"]) == (name, layout)]
        registers = [row["registers"] for row in rows]
        wide = sum("16" in row["loads"] for row in rows)
        spilled, shared = (max(row[key] for row in rows) for key in ("spilled_bytes", "shared"))
        lines.append(
            f"| `{name}` | {layout} | {min(registers)} to {max(registers)} | {spilled} | {shared} "
            f"| 16 in {wide} of {len(rows)} launches |"
        )
    return lines
