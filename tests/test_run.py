from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import shiftnorm
from shiftnorm import run as module
from shiftnorm import variants
from shiftnorm.evaluate.record import read_record
from shiftnorm.recipe import CompareRecipe
from shiftnorm.run import compare
from shiftnorm.training import load_data
from shiftnorm.variants import Variant
from shiftnorm.workers import Job

TINY = CompareRecipe(
    norms=("BatchNorm", "CNSN"),
    corruptions=("contrast", "gaussian_noise"),
    severities=(1, 5),
    seeds=(0, 1),
    epochs=1,
    batch_size=8,
    size=16,
    workers=0,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(shiftnorm.__file__).parents[1])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 12 images, bright and dark."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data") / "shades"
    generator = torch.Generator().manual_seed(0)
    for name, base in (("bright", 150), ("dark", 20)):
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = base + torch.randint(0, 80, (20, 20, 3), generator=generator)
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / name / f"{index}.png")
    return root


def forbid(*_, **__):
    raise AssertionError("nothing may be trained here")


def run(folder, out, recipe=TINY, **arguments):
    lines: list[str] = []
    return compare(recipe, data_dir=folder, out_dir=out, say=lines.append, **arguments), lines


def test_end_to_end_then_resume(folder, tmp_path, monkeypatch):
    first, _ = run(folder, tmp_path)
    assert [row.norm for row in first.rows] == ["BatchNorm", "CNSN"]
    assert not first.failed and len(first.records) == 4
    for record in first.records:
        assert record.clean_error is not None and 0 <= record.clean_error <= 100
        assert set(record.corruption_errors) == set(TINY.corruptions)
        assert record.data["name"] == "shades" and record.data["classes"] == ["bright", "dark"]
        assert record.versions["torch"] and record.durations["train_s"] > 0 and len(record.history["loss"]) == 1
    text = "".join(path.read_text() for path in (tmp_path / "records").iterdir())
    assert str(folder.parent) not in text and str(tmp_path) not in text
    assert {row.step_time is not None for row in first.rows} == {True}
    page = first.report.read_text()
    assert "CNSN" in page and "BatchNorm" in page and "http" not in page
    assert (tmp_path / "table.md").read_text() == first.table

    # again: nothing is trained or timed, and a file of the user's is still there
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(module, "train_and_evaluate", forbid)
    monkeypatch.setattr(module, "time_steps", forbid)
    second, lines = run(folder, tmp_path)
    assert second.table == first.table
    assert lines[0] == "4 of 4 runs are finished already, 0 to go."
    assert (tmp_path / "notes.txt").read_text() == "mine"

    # one seed or norm more is one run more; another recipe keeps the records of this one
    wanted: list[Job] = []
    monkeypatch.setattr(module, "run_jobs", lambda execute, recipe, data, jobs, finish, **_: wanted.extend(jobs))
    monkeypatch.setattr(module, "build_rows", lambda *_, **__: (_ for _ in ()).throw(KeyError("stop")))
    for changes, jobs in (
        ({"norms": ["CNSN", "SelfNorm"], "seeds": [1]}, [Job("SelfNorm", 1)]),
        ({"epochs": 2, "seeds": [0]}, [Job("BatchNorm", 0), Job("CNSN", 0)]),
    ):
        wanted.clear()
        with pytest.raises(KeyError):
            run(folder, tmp_path, TINY.changed(**changes))
        assert wanted == jobs


def test_the_same_seed_gives_the_same_numbers(folder):
    data = load_data(TINY, folder)
    torch.manual_seed(99)
    first = module.train_and_evaluate(TINY, "CNSN", 0, data, lambda part, text: None)
    torch.manual_seed(7)
    second = module.train_and_evaluate(TINY, "CNSN", 0, data, lambda part, text: None)
    third = module.train_and_evaluate(TINY, "CNSN", 1, data, lambda part, text: None)
    assert first["history"] == second["history"] != third["history"]
    assert first["corruption_errors"] == second["corruption_errors"]


def fake_run(recipe, norm, seed, data, on_progress=None):
    errors = {name: [float(seed + 1)] * len(recipe.severities) for name in recipe.corruptions}
    return {"clean_error": 1.0, "corruption_errors": errors, "parameters": 3, "durations": {"train_s": 1.0}}


def test_an_interrupted_comparison_continues(folder, tmp_path, monkeypatch):
    done: list[tuple[str, int]] = []

    def interrupted(recipe, norm, seed, data, on_progress=None):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((norm, seed))
        return fake_run(recipe, norm, seed, data)

    monkeypatch.setattr(module, "train_and_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path)
    assert done == [("BatchNorm", 0), ("CNSN", 0)]
    assert len(list((tmp_path / "records").iterdir())) == 2

    def continued(recipe, norm, seed, data, on_progress=None):
        done.append((norm, seed))
        return fake_run(recipe, norm, seed, data)

    monkeypatch.setattr(module, "train_and_evaluate", continued)
    result, _ = run(folder, tmp_path)
    assert done == [("BatchNorm", 0), ("CNSN", 0), ("BatchNorm", 1), ("CNSN", 1)]
    assert not result.failed


def test_a_damaged_record_is_run_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_and_evaluate", fake_run)
    run(folder, tmp_path)
    path = next((tmp_path / "records").glob("CNSN-seed1-*.json"))
    whole = path.read_text()
    path.write_text(whole[:100])
    _, lines = run(folder, tmp_path)
    assert any(path.name in line and "repeated" in line for line in lines)
    assert read_record(path).complete


class Broken(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), float("nan")))

    def forward(self, x):
        return x * self.weight


def test_a_failed_norm_is_recorded_and_the_others_go_on(folder, tmp_path, monkeypatch):
    broken = Variant("multiplies by NaN", lambda: {"norm": Broken})
    monkeypatch.setitem(variants.VARIANTS, "Broken", broken)
    recipe = TINY.changed(norms=["BatchNorm", "Broken", "MixStyle"], seeds=[0])
    result, lines = run(folder, tmp_path, recipe)
    assert [record.norm for record in result.failed] == ["Broken"]
    assert re.search(r"ArithmeticError: the training loss is nan at step 1 of \d+", result.failed[0].message or "")
    assert [row.corrupted is None for row in result.rows] == [False, True, False]
    assert "Broken, seed 0 failed: ArithmeticError" in result.table
    assert "Broken" in result.report.read_text()
    # the record says so on disk, and the next call tries again
    path = next((tmp_path / "records").glob("Broken-*.json"))
    assert json.loads(path.read_text())["status"] == "failed"
    monkeypatch.setattr(module, "train_and_evaluate", fake_run)
    again, lines = run(folder, tmp_path, recipe)
    assert not again.failed and lines[0] == "2 of 3 runs are finished already, 1 to go."


def test_without_the_reference_nothing_is_claimed(folder, tmp_path, monkeypatch):
    def only_others(recipe, norm, seed, data, on_progress=None):
        if norm == "BatchNorm":
            raise RuntimeError("out of memory")
        return fake_run(recipe, norm, seed, data)

    monkeypatch.setattr(module, "train_and_evaluate", only_others)
    result, _ = run(folder, tmp_path)
    assert result.rows[1].difference is None
    assert "nothing to be compared to" in result.report.read_text()


JOB = """
import os, signal, sys
from typing import NamedTuple
import torch
from shiftnorm.workers import Job, run_jobs

class Recipe(NamedTuple):
    threads: int

def execute(recipe, norm, seed, data, on_progress):
    on_progress(0.5, "half")
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 2:
        raise ValueError("a mistake")
    return {"value": seed + int(data["offset"]), "threads": torch.get_num_threads()}

def finish(job, outcome):
    print("END", job.seed, outcome.results, outcome.message, flush=True)

if __name__ == "__main__":
    jobs = [Job("n", seed) for seed in (0, 1, 2, 3)]
    run_jobs(execute, Recipe(1), {"offset": torch.tensor(10)}, jobs, finish, workers=2)
"""


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_own_job_only(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(JOB)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=ENVIRONMENT, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ends = dict(line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("END"))
    assert ends["0"] == "{'value': 10, 'threads': 1} None"
    assert "ended by SIGKILL" in ends["1"]
    assert ends["2"] == "{} ValueError: a mistake"
    assert ends["3"] == "{'value': 13, 'threads': 1} None"


@pytest.mark.slow
def test_the_command_can_be_ended_and_continued(folder, tmp_path):
    """SIGTERM in the middle: finished runs are kept, no process and no half-written file stays behind."""
    words = ["compare", "--data", str(folder), "--out", str(tmp_path / "out"), "--size", "16", "--epochs", "1"]
    words += ["--corruptions", "contrast", "--norms", "BatchNorm", "--seeds", *map(str, range(60)), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shiftnorm", *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    records = tmp_path / "out" / "records"
    end = time.monotonic() + 90
    while not list(records.glob("*.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors and "Traceback" not in errors
    finished = list(records.iterdir())
    assert 1 <= len(finished) < 60
    assert all(read_record(path).complete for path in finished)
