"""The GPU benchmark runs end to end without a GPU, and the record of the cross-compiled kernels is what docs show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gpu
import gpu_clock
from resource_table import markdown
from shiftnorm.ops.triton_backend import TritonBackend

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
    record = json.loads(path.read_text())
    assert len(record["between"]) == 10 and not any(row["spilled_bytes"] for row in record["between"])
    rows = record["kernels"]
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


class Ticking:
    """A clock in the place of the module ``time``; it stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    clock = Ticking()
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda config, clock: 1e9)
    monkeypatch.setattr(gpu.Clock, "here", lambda smoke: gpu.Clock("cpu", 0, 0.0, 1))
    return clock


def measured(parts: list[str], *, seconds: float = 100.0, smoke: bool = True, **options: Any) -> dict[str, Any]:
    return gpu.measured(gpu.TINY[:1], parts=parts, names=["SelfNorm", "CNSN"], seconds=seconds, smoke=smoke, **options)


def test_what_fails_is_a_result_and_the_rest_is_kept(ticking: Ticking, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(config: gpu.Config, clock: gpu.Clock) -> Iterator[dict[str, Any]]:
        if config.dtype == "float32":
            raise RuntimeError("an illegal memory access was encountered")
        yield {"row": "moments", "kind": "kernel", "what": "pass", "units": 1, "plain_ms": 2.0}

    monkeypatch.setattr(gpu, "pass_results", passes)
    kept: list[int] = []
    record = measured(["passes"], keep=lambda record: kept.append(len(record["results"])))
    assert kept == [1, 2, 3, 4, 4]  # after each part, and at the end
    found = [(row["dtype"], row.get("row"), row.get("error")) for row in record["results"]]
    assert found == 2 * [("bfloat16", "moments", None)] + 2 * [
        ("float32", None, "RuntimeError: an illegal memory access was encountered")
    ]
    assert all(row["of_copy"] > 0 for row in record["results"][:2])


def test_a_pass_that_fails_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(TritonBackend):
        def unsupported(self, x: Tensor) -> None:
            return None

        def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raise RuntimeError("out of resources")

        def apply(self, x: Tensor, *rows: Tensor) -> Tensor:
            return x

        reduce = combine = apply

    monkeypatch.setattr(gpu, "choose", lambda x: Fails())
    rows = list(gpu.pass_results(gpu.Config(gpu.TINY[0], "float32", "contiguous"), gpu.Clock("cpu", 0, 0.0, 1)))
    assert [row["row"] for row in rows] == ["moments", "apply", "reduce", "combine"]
    assert [row.get("error") for row in rows] == ["RuntimeError: out of resources", None, None, None]


def test_nothing_is_started_that_there_is_no_time_for(ticking: Ticking, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(seconds: float) -> Callable[..., dict[str, Any]]:
        def timed(*arguments: Any) -> dict[str, Any]:
            ticking.now += seconds
            return {"plain_ms": 1.0}

        return timed

    monkeypatch.setattr(gpu, "forward_times", takes(1.0))
    monkeypatch.setattr(gpu, "step_times", takes(30.0))
    record = measured(["norms"])
    assert [row["row"] for row in record["results"] if row["what"] == "forward"] == ["SelfNorm", "CNSN"] * 2
    assert record["not_reached"] == [f"norms 2x4x5x3 float32 {layout}" for layout in gpu.LAYOUTS]
    assert record["seconds"] == 124.0
    # compiling one cannot be cut short
    ticking.now = 0.0
    record = measured(["compiled"], smoke=False)
    assert [(row["row"], row["kind"]) for row in record["results"]] == [
        ("SelfNorm", "plain_compiled"),
        ("SelfNorm", "ours_compiled"),
    ]
    assert record["not_reached"] == [
        "compiled 2x4x5x3 bfloat16 channels_last from SelfNorm, plain_max_autotune",
        "compiled 2x4x5x3 bfloat16 contiguous from SelfNorm, plain_compiled",
    ]
    assert record["seconds"] == 60.0


@pytest.mark.parametrize("stuck", [False, True])
def test_a_capture_that_fails_leaves_stream_and_generator_as_they_were(
    stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def wait_stream(self, other: Stream) -> None:
            pass

    class Capture:
        def __init__(self, graph: object) -> None:
            pass

        def __enter__(self) -> None:
            current.append(side)

        def __exit__(self, *given: object) -> None:  # as torch's does: its stream stays
            raise RuntimeError("operation failed due to a previous error during capture")

    class Generator:
        def __init__(self, device: str = "cuda", *, stuck: bool = False) -> None:
            self.stuck = stuck

        def graphsafe_set_state(self, other: Generator) -> None:
            self.stuck = other.stuck

    def rand(*shape: object, device: str) -> None:
        if generator.stuck:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    main, side = Stream(), Stream()
    current, generator = [main], Generator(stuck=stuck)
    for name, value in {
        "Stream": Stream,
        "CUDAGraph": object,
        "graph": Capture,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: current[-1],
        "set_stream": current.append,
        "current_device": lambda: 0,
        "default_generators": (generator,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "Generator", Generator)
    with pytest.raises(RuntimeError, match="operation failed due to a previous error"):
        gpu_clock._captured(lambda: None)
    assert current == [main, side, main]
    assert not generator.stuck
