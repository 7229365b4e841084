"""Stopping an evaluation at any moment and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

from shiftnorm.evaluate.outcome import CellOutcome
from shiftnorm.evaluate.robustness import robustness

NAMES = ("gaussian_noise", "fog", "contrast")


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def make_data(n=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(n) % 3


def run(out, model=None, data=None, corruptions=NAMES, severities=(1, 3, 5), **options):
    options = {"normalize": "half", "progress": False, "bootstrap": 50, "batch_size": 7, **options}
    return robustness(model or make_net(), data or make_data(), corruptions, severities, out=out, **options)


def same_numbers(first, second):
    ours, theirs = first.to_json(), second.to_json()
    keys = ("clean", "cells", "mean_corruption_error", "class_errors", "calibration", "fingerprint", "examples")
    return all(ours[key] == theirs[key] for key in keys)


def counted(model):
    calls = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    return model, calls


SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_robustness_resume import make_net, run
model = make_net()
model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
run({out!r}, model)
"""


def test_kill_9_in_the_middle_and_go_on(tmp_path):
    out, whole = tmp_path / "killed", run(tmp_path / "whole")
    script = SCRIPT.format(here=os.path.dirname(__file__), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("cells/*.safetensors"))) < 4 and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("cells/*.safetensors")}
    assert 4 <= len(finished) < 10 and not (out / "result.json").exists()
    model, calls = counted(make_net())
    resumed = run(out, model)
    assert same_numbers(resumed, whole)
    assert sum(calls) == 24 * (10 - len(finished))
    assert all(file.stat().st_mtime_ns == then for file, then in finished.items())


@pytest.mark.parametrize("stage", range(0, 40, 3))
def test_stopping_anywhere(stage, tmp_path):
    """An exception after any number of forward passes."""
    whole, model = run(tmp_path / "whole", examples=False), make_net()
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) > stage:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", model, examples=False)
    handle.remove()
    assert not list((tmp_path / "out").glob("cells/.*"))
    model, calls = counted(model)
    assert same_numbers(run(tmp_path / "out", model, examples=False), whole)
    assert sum(calls) == 24 * (10 - stage // 4)


def test_a_finished_evaluation_runs_nothing_and_can_grow(tmp_path):
    first = run(tmp_path)
    model, calls = counted(make_net())
    assert same_numbers(run(tmp_path, model), first) and not calls
    grown = run(tmp_path, model, corruptions=[*NAMES, "pixelate"])
    assert sum(calls) == 3 * 24 and grown.errors["fog"] == first.errors["fog"]
    assert grown.cost["ms_per_image"] == first.cost["ms_per_image"]
    fewer = run(tmp_path, model, corruptions=["fog"], severities=[3])
    assert sum(calls) == 3 * 24 and fewer.errors == {"fog": [first.errors["fog"][1]]}
    assert len(list(tmp_path.glob("cells/*"))) == 13


def changed_net():
    model = make_net()
    with torch.no_grad():
        model[0].bias[0] += 1e-3
    return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: {"model": changed_net()}, "model is another one, or has other weights"),
        (
            lambda: {"data": make_data(23)},
            r"data are other images \(24 were measured, now 23: another limit= or split=",
        ),
        (lambda: {"data": (make_data()[0], (make_data()[1] + 1) % 3)}, "data are other images, labels or classes"),
        (lambda: {"seed": 1}, "seed was 0, now 1"),
        (lambda: {"constants": "tiny64"}, "constants was 'cifar32', now 'tiny64'"),
        (lambda: {"storage": "jpeg85"}, "storage was 'none', now 'jpeg85'"),
        (lambda: {"normalize": "imagenet"}, r"mean was \[0.5, 0.5, 0.5\], now \[0.485"),
        (lambda: {"amp": "bfloat16"}, "amp was None, now 'bfloat16'"),
    ],
)
def test_changed_settings_are_refused_by_name(change, named, tmp_path):
    run(tmp_path, corruptions=["fog"], severities=[1])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"holds another evaluation; .*{named}.*Choose another folder"):
        run(tmp_path, corruptions=["fog"], severities=[1], **change())
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_settings_that_do_not_matter_may_change(tmp_path):
    first = run(tmp_path)
    assert same_numbers(run(tmp_path, make_net().train(), batch_size=24), first)


def test_a_damaged_cell_is_kept_aside_and_measured_again(tmp_path):
    first = run(tmp_path)
    file = tmp_path / "cells" / "fog-3.safetensors"
    whole = file.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"garbage" * 40):
        file.write_bytes(damage)
        again = run(tmp_path)
        assert same_numbers(again, first)
        assert any("fog-3.safetensors could not be used" in note for note in again.notes)
    assert len(list(tmp_path.glob("cells/*.damaged"))) == 3
    # a cell of another evaluation, copied in
    other = run(tmp_path / "other", seed=5, corruptions=["fog"], severities=[3])
    file.write_bytes((tmp_path / "other" / "cells" / "fog-3.safetensors").read_bytes())
    again = run(tmp_path)
    assert same_numbers(again, first) and other.fingerprint != first.fingerprint
    assert any("made by another evaluation" in note for note in again.notes)


def test_what_a_user_made_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, corruptions=["fog"], severities=[1])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "result.json").write_text("mine")
    with pytest.raises(ValueError, match=r"has result.json but no identity.json"):
        run(other)
    assert (other / "result.json").read_text() == "mine" and len(list(other.iterdir())) == 1
    with pytest.raises(NotADirectoryError, match="is a file"):
        run(tmp_path / "notes.txt")


def test_a_refused_evaluation_leaves_nothing(tmp_path):
    few = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))  # outputs, for 3 classes
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for out in (tmp_path / "new" / "run", mine):
        with pytest.raises(ValueError, match="the model has 2 outputs, but images has 3 classes"):
            run(out, few)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"] and [*mine.iterdir()] == [mine / "notes.txt"]
    # The folder is free for another evaluation, and what one has measured outlives the next that fails.
    first = run(mine, corruptions=["fog"], severities=[1])
    with pytest.raises(ValueError, match="holds another evaluation"):
        run(mine, few)
    broken = make_net()
    broken.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(mine, broken, corruptions=["fog", "contrast"], severities=[1])
    assert same_numbers(run(mine, corruptions=["fog"], severities=[1]), first)


def test_warnings_of_the_inputs_are_kept_for_the_resumed_run(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images, labels = make_data()
    with torch.no_grad():
        for _ in range(60):
            model(images.float() / 255)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = run(tmp_path, model, (images, labels), corruptions=["fog"], severities=[1], normalize="imagenet")
        assert [str(item.message) for item in caught] == result.warnings and len(result.warnings) == 1
        assert caught[0].filename == __file__


def test_cells_hold_every_image(tmp_path):
    run(tmp_path, corruptions=["fog"], severities=[1])
    cell = CellOutcome.from_file(tmp_path / "cells" / "fog-1.safetensors")
    assert torch.equal(cell.index, torch.arange(24)) and torch.equal(cell.label.long(), make_data()[1])
