"""The benchmark of whole training steps runs end to end without a GPU, goes on where it stopped, and judges fairly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_models
from gpu_model_steps import QUICK, Case, Sizes, Step, compared
from residual_encoder import ResidualEncoder, no_norm

ROOT = Path(__file__).resolve().parent.parent
PLANNED = gpu_models.planned(QUICK)


@pytest.mark.slow
def test_everything_runs_with_tiny_networks(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_models.py", "--quick", "--output", str(path)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert record["format"] == "shiftnorm.gpu-models/1"
    assert record["finished"] and record["not_reached"] == []
    assert record["settings"]["device"] == "cpu" and record["settings"]["quick"]
    assert set(record["units"]) == {unit.label for unit in PLANNED}
    rows = [row for unit in record["units"].values() for row in unit["rows"]]
    assert [each["error"] for each in [*record["units"].values(), *rows] if "error" in each] == []
    assert all(row["finite"] for row in rows)
    steps = [row for row in rows if "ms" in row]
    assert all(row["ms"]["median"] > 0 and row["step_bytes"] is None for row in steps)
    assert all(row["graph_breaks"] == 0 for row in steps)
    assert {row["network"] for row in record["units"]["resnet50, eager, contiguous"]["rows"]} == {
        *("plain", "cnsn", "cnsn behind bn3", "our BatchNorm", "torchvision", "torchvision cnsn")
    }
    epochs = record["units"]["cifar epochs, eager, bf16"]["rows"]
    assert [(row["network"], row["steps"], row["epochs"]) for row in epochs] == [("base", 3, 1), ("cnsn", 3, 1)]
    # every target finds what it is about, and on a CPU none is judged
    assert {each["target"] for each in record["targets"]} == {
        target.what for target in gpu_models.TARGETS if "bytes" not in target.what
    }
    assert {each["met"] for each in record["targets"]} == {None}


def record_in(path: Path, **options: Any) -> dict[str, Any]:
    return gpu_models.begun(path, "2026-01-01T00:00:00+00:00", QUICK, "cpu", fresh=False, **options)


def measure(record: dict[str, Any], path: Path, **options: Any) -> None:
    gpu_models.measure_all(record, PLANNED, QUICK, "cpu", path, seconds=1e9, **options)


def noting(asked: list[str]) -> Callable[..., list[dict[str, Any]]]:
    """In the place of ``measured``: keeps what it is asked for, and finds nothing."""

    def measured(unit: gpu_models.Unit, sizes: Sizes, device: str) -> list[dict[str, Any]]:
        asked.append(unit.label)
        return []

    return measured


@pytest.mark.slow
def test_an_unfinished_record_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stops(unit: gpu_models.Unit, sizes: Sizes, device: str) -> list[dict[str, Any]]:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(unit.label)
        return [{"network": "plain", "layout": "contiguous", "finite": True}]

    monkeypatch.setattr(gpu_models, "measured", stops)
    path = tmp_path / "models.json"
    with pytest.raises(KeyboardInterrupt):
        measure(record_in(path), path)
    first = json.loads(path.read_text())
    assert list(first["units"]) == asked == [unit.label for unit in PLANNED[:3]]
    assert not first["finished"] and len(first["not_reached"]) == len(PLANNED) - 3
    assert [file.name for file in tmp_path.iterdir()] == ["models.json"]

    again: list[str] = []
    monkeypatch.setattr(gpu_models, "measured", noting(again))
    measure(record_in(path), path)
    second = json.loads(path.read_text())
    assert again == [unit.label for unit in PLANNED[3:]]
    assert second["finished"] and second["not_reached"] == [] and len(second["calls"]) == 2
    assert {label: second["units"][label] for label in asked} == first["units"]
    with pytest.raises(ValueError, match=r"this record is finished\. --fresh measures anew"):
        record_in(path)


def test_a_record_of_other_settings_or_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    record = record_in(path)
    record["machine"]["torch"] = "2.0.0"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"begun with another machine \(torch\)\. --fresh measures anew"):
        record_in(path)
    path.write_text(json.dumps({**record_in(tmp_path / "none"), "settings": {}}))
    with pytest.raises(ValueError, match=r"begun with another settings \(batch, "):
        record_in(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"expected a record of format shiftnorm\.gpu-models/1"):
        record_in(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="expected a record, got"):
        record_in(path)


def test_what_may_take_longer_than_there_is_time_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(gpu_models, "measured", noting(asked))
    path = tmp_path / "models.json"
    record = record_in(path)
    gpu_models.measure_all(record, gpu_models.UNITS, Sizes(), "cpu", path, seconds=55)
    assert asked == [unit.label for unit in gpu_models.UNITS if unit.reserve < 55]
    assert "resnet50, compiled, channels_last" in record["not_reached"]
    assert "not reached: resnet50, compiled, channels_last" in gpu_models.summary(record)


@pytest.mark.slow
def test_a_unit_that_fails_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(unit: gpu_models.Unit, sizes: Sizes, device: str) -> list[dict[str, Any]]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_models, "measured", fails)
    path = tmp_path / "models.json"
    record = record_in(path)
    measure(record, path)
    assert record["finished"]
    assert record["units"]["encoder, eager, bf16"]["error"] == "RuntimeError: out of memory"
    assert "RuntimeError: out of memory" in gpu_models.summary(record)


def ratio(median: float, **more: float) -> dict[str, float]:
    return {"median": median, "q1": median, "q3": median, **more}


def test_targets_are_judged_on_a_gpu_only(tmp_path: Path) -> None:
    record = record_in(tmp_path / "none")
    record["units"] = {
        "resnet": {
            "part": "resnet50",
            "rows": [
                {"network": "plain", "ratios": {}},
                {"network": "cnsn", "ratios": {"plain": ratio(1.021, bytes=1.2)}},
                {"network": "our BatchNorm", "ratios": {"plain": ratio(3.0, bytes=1.0)}},
                {"network": "torchvision cnsn", "ratios": {"torchvision": ratio(1.02, bytes=1.01)}},
                {"network": "cnsn behind bn3", "error": "RuntimeError"},
            ],
        },
        "encoder": {
            "part": "encoder",
            "rows": [
                {"network": "ours", "ratios": {"torch contiguous": ratio(0.5)}},
                {"network": "ours", "ratios": {"ours contiguous": ratio(1.0), "torch channels_last_3d": ratio(0.3)}},
                {"network": "torch", "ratios": {"torch contiguous": ratio(1.24)}},
            ],
        },
        "cifar": {"part": "cifar steps", "rows": [{"network": "cnsn", "ratios": {"base": ratio(1.03)}}]},
        "epochs": {"part": "cifar epochs", "rows": [{"network": "base", "epoch_s": ratio(6.1)}]},
    }
    expected = {
        ("resnet", "cnsn", 1.021): False,
        ("resnet", "cnsn", 1.2): False,
        ("resnet", "our BatchNorm", 1.0): True,
        ("resnet", "torchvision cnsn", 1.02): True,
        ("resnet", "torchvision cnsn", 1.01): True,
        ("encoder", "ours", 1.0): False,  # it has to be faster, not as fast
        ("cifar", "cnsn", 1.03): True,
        ("epochs", "base", 6.1): False,
    }
    rows = {(each["unit"], each["network"], each["measured"]): each["met"] for each in gpu_models.judged(record)}
    assert rows == dict.fromkeys(expected)
    record["settings"] |= {"device": "cuda", "quick": False}
    assert {(each["unit"], each["network"], each["measured"]): each["met"] for each in gpu_models.judged(record)} == (
        expected
    )
    record["targets"] = gpu_models.judged(record)
    assert "MISSED   1.021 of 1.02  step with CNSN over the plain network's: cnsn (resnet)" in gpu_models.summary(
        record
    )


def test_a_network_that_cannot_run_says_why_and_the_others_are_compared() -> None:
    def make(slow: int) -> Step:
        if slow == 3:
            raise RuntimeError("no kernel for this")
        weight = torch.ones(64 * slow, 64 * slow, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 1e-9)
        return Step(lambda: (weight @ weight @ weight).sum(), optimizer, device="cpu", precision="32")

    cases = {
        "one": Case("one", "contiguous", (), lambda: make(1)),
        "eight": Case("eight", "contiguous", ("one", "three"), lambda: make(8)),
        "three": Case("three", "contiguous", ("one",), lambda: make(3)),
    }
    one, eight, three = compared(cases, Sizes(round_ms=1.0, min_rounds=3, max_rounds=3), "cpu")
    assert three["error"] == "RuntimeError: no kernel for this" and "ms" not in three
    assert one["ratios"] == {} and list(eight["ratios"]) == ["one"]
    assert eight["ratios"]["one"]["median"] > 2
    assert eight["rounds"] == 3 and eight["finite"] and eight["ratios"]["one"]["bytes"] is None


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # there is none to switch autocast on for
def test_a_gpu_is_timed_by_its_own_clock_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            events.append("record")

        def synchronize(self) -> None:
            events.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 60.0

    for name, value in {"memory_allocated": 1000, "max_memory_allocated": 1750}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: events.append(name))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    weight = torch.ones(2, 2, requires_grad=True)
    step = Step(weight.sum, torch.optim.SGD([weight], 0.1), device="cuda", precision="32")
    (row,) = compared({"one": Case("one", "contiguous", (), lambda: step)}, Sizes(round_ms=100, max_rounds=7), "cuda")
    assert row["step_bytes"] == 750
    assert row["calls"] == 2  # of 60 ms each, to fill 100
    assert row["ms"]["median"] == 30.0 and row["host_ms"] < 30.0
    assert events[-4:] == ["synchronize", "record", "record", "synchronize"]


def test_it_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu_models.main([])
    assert stopped.value.code == 2
    assert "needs a GPU; --quick" in capsys.readouterr().err


def test_the_encoder_has_the_stages_of_nnu_net() -> None:
    with torch.device("meta"):
        model = ResidualEncoder()
        y = model.stages(model.stem(torch.empty(1, 1, 128, 128, 128)))
    assert y.shape == (1, 320, 4, 4, 4)
    assert sum(isinstance(module, torch.nn.InstanceNorm3d) for module in model.modules()) == 1 + 2 * 26 + 5
    assert not any(
        isinstance(each, torch.nn.InstanceNorm3d) for each in ResidualEncoder((4, 8), (1, 1), norm=no_norm).modules()
    )
