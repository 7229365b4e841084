"""The table of a record of `triton_resources.py`."""

from __future__ import annotations

from typing import Any


def markdown(record: dict[str, Any]) -> str:
    """One line per kernel and memory format, over all shapes and dtypes of the record."""
    lines = [
        "| Kernel | Memory format | Registers | Bytes spilled | Shared memory, most bytes | Widest loads, bytes |",
        "|---|---|---|---|---|---|",
    ]
    kernels = sorted({(row["kernel"], row["layout"]) for row in record["kernels"]})
    for name, layout in kernels:
        rows = [row for row in record["kernels"] if (row["kernel"], row["layout"]) == (name, layout)]
        registers = [row["registers"] for row in rows]
        wide = sum("16" in row["loads"] for row in rows)
        spilled, shared = (max(row[key] for row in rows) for key in ("spilled_bytes", "shared"))
        lines.append(
            f"| `{name}` | {layout} | {min(registers)} to {max(registers)} | {spilled} | {shared} "
            f"| 16 in {wide} of {len(rows)} launches |"
        )
    shapes = len({tuple(row["shape"]) for row in record["kernels"]})
    dtypes = " and ".join(sorted({row["dtype"] for row in record["kernels"]}))
    made = f"{record['date'][:10]}, Triton {record['triton']}, torch {record['torch']}"
    return "\n".join([*lines, "", f"Compiled for {record['target']}: {shapes} shapes, {dtypes}; {made}."])
