"""The scripts in examples/ run as they are, and show what they claim."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# An ellipsis stands for numbers that another machine rounds otherwise.
EXPECTED = {
    "convert_a_trained_model": [
        "SelfNorm starts such that a trained model keeps its function:",
        "selfnorm@post: 4 changed, 0 left alone; parameters 11,181,642 -> 11,183,178.",
        "  layer1.0.post  nothing -> SelfNorm  open",
        "  layer1.1.post  nothing -> SelfNorm  open",
        "  layer2.0.post  nothing -> SelfNorm  open",
        "  layer2.1.post  nothing -> SelfNorm  open",
        "The function is kept: max |Δ| ..., mean |Δ| ... (the outputs' own spread is ...).",
        "",
        "IBN does not, and the report says so:",
        "ibn_a: 2 changed, 0 left alone; parameters 11,183,178 -> 11,183,178.",
        "  layer1.0.bn1  BatchNorm2d -> IBN  replace  keeps weight, bias, running_mean, running_var, ...",
        "  layer1.1.bn1  BatchNorm2d -> IBN  replace  keeps weight, bias, running_mean, running_var, ...",
        "The function moved: max |Δ| 0..., mean |Δ| 0... (the outputs' own spread is ...). Fine-tune before use; ...",
        "",
        "loaded from its file, the model gives the same outputs: True",
        "taken back, it gives the outputs it gave before: True",
    ],
    "evaluate_a_model": [
        "whole picture on 100 images of temperatures",
        "  clean error             4.00 [1.57, 9.84] %",
        "  mean corruption error   4... [..., ...] %",
        "  worst corruption        gaussian_noise, ... %",
        "  worst class             warm, ... %",
        "  calibration, clean      ECE ... %, RMS ... %",
        "  calibration, corrupted  ECE ... %, RMS ... %",
        "                   1     3     5  mean",
        "gaussian_noise ...",
        "fog ...",
        "contrast ...",
        "note: The corruptions' strengths are cifar32, the set published for images of this size.",
        "note: Images are 32x32; stored without loss.",
        "note: The normalization of the inputs could not be checked: ...",
        "",
        "centre only minus whole picture, in points of mean corruption error: +1... [+..., +...], p = 0.00...",
        "written: report.csv, report.html, report.md, report.summary.csv True",
    ],
    "your_own_norm": [
        "alone       (8, 16, 32, 32) channels_last kept: True",
        "in a chain  (8, 16, 32, 32)",
        "compiled    (8, 16, 32, 32)",
        "in a network: 7 TideNorms, every one with a gradient: True",
    ],
}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown, expected = done.stdout.splitlines(), EXPECTED[script.stem]
    assert len(shown) == len(expected), done.stdout
    for got, want in zip(shown, expected, strict=True):
        assert doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS), f"{got!r}, expected {want!r}"


def test_a_norm_of_ones_own_takes_about_fifteen_lines() -> None:
    source = next(script for script in EXAMPLES if script.stem == "your_own_norm").read_text()
    body = source.split("class TideNorm")[1].split("\n\n\n")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 16
