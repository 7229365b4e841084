"""What the tests of the command line ask of its errors."""

from __future__ import annotations


def one_clear_line(result: tuple[int, str, str], *parts: str) -> None:
    """A call of the fixture ``run`` failed with one line of error that has all these parts."""
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("shiftnorm: error: ")]
    assert status == 2 and len(lines) == 1, result
    for part in parts:
        assert part in lines[0]
