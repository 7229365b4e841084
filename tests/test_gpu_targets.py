"""What the GPU benchmark's record is judged by, on records made up for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_targets import FORMAT, markdown, verdicts

ROOT = Path(__file__).resolve().parent.parent
LARGE, SMALL, DEEP = [64, 256, 56, 56], [64, 2048, 7, 7], [2, 32, 128, 128, 128]


def row(part: str, name: str, kind: str, ms: float, shape: list[int] = LARGE, **more: Any) -> dict[str, Any]:
    common = {"shape": shape, "dtype": "bfloat16", "layout": "channels_last", "what": "forward+backward"}
    return {**common, "part": part, "row": name, "kind": kind, "graph_ms": ms, **more}


def a_pass(name: str, ms: float, floor: float) -> dict[str, Any]:
    return row("passes", name, "kernel", ms, what="pass", floor_ms=floor)


RECORD: dict[str, Any] = {
    "format": FORMAT,
    "results": [
        a_pass("moments", 1.0, 0.95),
        a_pass("apply", 2.0, 1.90),
        a_pass("reduce", 2.0, 1.7),
        a_pass("combine", 3.0, 2.8),
        row("norms", "BatchNorm", "ours", 10.0),
        row("norms", "SelfNorm", "ours", 10.4),
        row("norms", "CrossNorm", "ours", 10.6),
        row("norms", "EFDMix", "ours", 500.0),  # no moment norm
        row("norms", "DSU", "ours", 900.0, SMALL),  # too small to count
        row("torch", "BatchNorm (cuDNN)", "torch", 11.0),
        row("plain", "SelfNorm", "plain", 52.0),
        row("plain", "CrossNorm", "plain", 40.0),
        row("compiled", "SelfNorm", "plain_compiled", 13.0),
        {**row("compiled", "BatchNorm", "plain_compiled", 0.0), "error": "out of memory"},
        row("norms", "InstanceNorm", "ours", 2.0, DEEP),
        row("torch", "InstanceNorm", "torch", 7.0, DEEP),
    ],
}


def test_the_worst_case_decides() -> None:
    found = {each.target: each for each in verdicts(RECORD)}
    assert {target: each.is_met for target, each in found.items()} == {
        "moments and apply, share of a copy's bandwidth": True,
        "reduce and combine, share of a copy's bandwidth": True,
        "moment norms over our BatchNorm": False,
        "moment norms over cuDNN's BatchNorm, channels last": True,
        "speed-up over eager formulas": False,
        "speed-up over compiled formulas": False,
        "speed-up over autotuned formulas": None,
        "InstanceNorm3d, channels last, speed-up over torch's": True,
    }
    over = found["moment norms over our BatchNorm"]
    assert (over.worst, over.cases) == (pytest.approx(1.06), 2) and over.where.startswith("CrossNorm, 64x256x56x56")
    assert found["reduce and combine, share of a copy's bandwidth"].worst == pytest.approx(0.9)
    assert found["speed-up over compiled formulas"].worst == pytest.approx(1.25)
    assert found["InstanceNorm3d, channels last, speed-up over torch's"].worst == pytest.approx(3.5)


def test_the_table_by_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(RECORD))
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_targets.py", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == markdown(RECORD) + "\n"
    assert "| speed-up over autotuned formulas | at least 1.3 | – | – | 0 | not measured |" in done.stdout
    path.write_text(json.dumps({"format": "shiftnorm.bench/1"}))
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "benchmarks/gpu_targets.py", str(path)], cwd=ROOT, check=True, capture_output=True
        )
