"""The GPU benchmark runs end to end without a GPU, and the record of the cross-compiled kernels is what docs show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from resource_table import markdown

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed here")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )


def smoke(path: Path, *arguments: str) -> dict[str, Any]:
    """The record that the benchmark writes, of small tensors by the interpreter."""
    done = run("benchmarks/gpu.py", "--smoke", *arguments, "--output", str(path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_every_part_runs_by_the_interpreter(tmp_path: Path) -> None:
    record = smoke(tmp_path / "gpu.json", "--norms", "BatchNorm", "Chain (BatchNorm, CNSN)")
    assert record["format"] == "shiftnorm.gpu/1"
    assert record["not_reached"] == []
    assert record["machine"]["before"]["interpreted"]
    results = record["results"]
    assert [row["error"] for row in results if "error" in row] == []
    assert {(row["part"], row["kind"]) for row in results} == {
        ("passes", "kernel"),
        ("norms", "ours"),
        ("torch", "torch"),
        ("plain", "plain"),
        ("compiled", "plain_compiled"),
        ("compiled", "ours_compiled"),
    }
    configs = {(tuple(row["shape"]), row["dtype"], row["layout"]) for row in results}
    assert len(configs) == 8
    assert all(row["plain_ms"] > 0 and row["floor_ms"] > 0 for row in results)


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    record = smoke(tmp_path / "gpu.json", "--seconds", "0", "--only", "passes")
    assert record["results"] == []
    assert "passes 2x4x5x3 bfloat16 channels_last" in record["not_reached"]


def test_it_asks_for_a_gpu() -> None:
    done = run("benchmarks/gpu.py")
    assert done.returncode == 2
    assert "needs a GPU; --smoke" in done.stderr


def test_every_kernel_compiles_for_hopper_without_spills(tmp_path: Path) -> None:
    path = tmp_path / "resources.json"
    done = run("benchmarks/triton_resources.py", "--quick", "--output", str(path), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["kernels"]
    kernels = {"moments_tile", "reduce_tile", "apply_tile", "combine_tile", "join_moments", "join_sums"}
    kernels |= {f"{name}_activated_tile" for name in ("apply", "reduce", "combine")}
    assert {row["kernel"].removesuffix("_masked") for row in rows} == kernels
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        if row["kernel"] in ("apply_tile", "combine_tile"):  # 56 x 56 planes and 64 channels: full vectors both ways
            assert set(row["stores"]) == {"16"}, row
            assert row["loads"]["16"] >= row["stores"]["16"], row


def test_the_page_shows_the_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "triton-sm_90.json").read_text())
    assert [row for row in record["kernels"] if row["spilled_bytes"]] == []
    assert markdown(record) in (ROOT / "docs" / "performance.md").read_text()
