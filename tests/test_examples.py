"""The scripts in examples/ run as they are, and show what they claim."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

EXPECTED = {
    "your_own_norm": [
        "alone       (8, 16, 32, 32) channels_last kept: True",
        "in a chain  (8, 16, 32, 32)",
        "compiled    (8, 16, 32, 32)",
        "in a network: 7 TideNorms, every one with a gradient: True",
    ]
}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == EXPECTED[script.stem]


def test_a_norm_of_ones_own_takes_about_fifteen_lines() -> None:
    source = next(script for script in EXAMPLES if script.stem == "your_own_norm").read_text()
    body = source.split("class TideNorm")[1].split("\n\n\n")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 16
