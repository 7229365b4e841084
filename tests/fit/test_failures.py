"""What goes wrong in a run says what and where, and loses nothing."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fit_runs import FORKS, STEPS, assert_same_weights, fork, make_pictures, run, small_recipe
from shiftnorm.fit import Stopped, train
from shiftnorm.fit.checkpoints import CheckpointFolder
from shiftnorm.fit.run_folder import RunFolder, identity_of
from shiftnorm.tasks.guard import FiniteGuard

resource = pytest.importorskip("resource")
pytestmark = FORKS


@pytest.mark.usefixtures("signals_arrive")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    def ask(line: str) -> None:
        if line.startswith("epoch 1/3"):
            os.kill(os.getpid(), number)

    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 7, which is kept") as caught:
        run(tmp_path / "run", say=ask)
    assert caught.value.status == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert [int(file.name[5:14]) for file in CheckpointFolder(tmp_path / "run" / "checkpoints").files()] == [6, 7]
    assert run(tmp_path / "run").record.complete
    run(tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_full_disk_leaves_the_checkpoint_before_intact(tmp_path: Path) -> None:
    run(tmp_path / "run", limit_steps=6)
    told = tmp_path / "told"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        try:
            run(tmp_path / "run")
        except OSError as fault:
            told.write_text(str(fault))

    fork(work).join()
    text = told.read_text()
    assert "train: the checkpoint of step 12" in text and "make room there and run the same command again" in text
    files = CheckpointFolder(tmp_path / "run" / "checkpoints").files()
    assert [int(file.name[5:14]) for file in files] == [6] and f"{files[0].name} is intact" in text
    run(tmp_path / "run")
    run(tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_loss_that_is_not_finite_names_the_place_and_keeps_the_weights(tmp_path: Path) -> None:
    with pytest.raises(
        ArithmeticError, match=r"(?s)train: .*step \d+.*failed\.safetensors; the last checkpoint is"
    ) as caught:
        run(tmp_path / "run", "optimizer.learning_rate=1.0e+30", "loop.checkpoint_every=1", "loop.ema=0")
    assert re.search(r"the output of '[\w.]+' \(\w+\).* Samples of the batch: \d+, \d+", str(caught.value))
    kept = load_file(tmp_path / "run" / "failed.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [(("loop.checkpoint_every=1",), [1]), (("loop.batch_size=30",), [])],  # found while saving; at the epoch's end
)
def test_a_step_that_is_found_bad_late_is_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], kept: list[int]
) -> None:
    # As on a GPU: a step is not looked at when it ends, but before the second one after it, or before a checkpoint.
    end, check, ending = FiniteGuard.end, FiniteGuard.check, []

    def end_unseen(self: FiniteGuard, **options: bool) -> None:
        ending.append(self)
        end(self, **options)
        ending.pop()

    monkeypatch.setattr(FiniteGuard, "end", end_unseen)
    monkeypatch.setattr(FiniteGuard, "check", lambda self, keep=0: None if ending else check(self, keep))
    with pytest.raises(ArithmeticError, match="at step 2 of"):
        run(tmp_path / "run", "optimizer.learning_rate=1.0e+30", "loop.ema=0", *settings)
    files = CheckpointFolder(tmp_path / "run" / "checkpoints").files()
    assert [int(file.name[5:14]) for file in files] == kept


@pytest.mark.usefixtures("signals_arrive")
@pytest.mark.parametrize("moment", ["the last step", "the end of the last epoch"])
def test_a_signal_in_the_last_moments_ends_the_run_before_it_is_measured(tmp_path: Path, moment: str) -> None:
    def ask(line: str) -> None:
        if line.startswith("epoch 3/3"):
            os.kill(os.getpid(), signal.SIGINT)

    def ask_at_the_end(done: float, _: str) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    how = {"on_progress": ask_at_the_end} if moment == "the last step" else {"say": ask}
    with pytest.raises(Stopped, match=f"stopped by SIGINT after step {STEPS}, which is kept") as caught:
        run(tmp_path / "run", **how)
    assert caught.value.status == 130
    assert not (tmp_path / "run" / "model.safetensors").exists()
    files = CheckpointFolder(tmp_path / "run" / "checkpoints").files()
    assert [int(file.name[5:14]) for file in files] == [12, 18]
    assert run(tmp_path / "run").record.complete
    run(tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


FILES = ("data.name=folder", "data.limit=null", "data.crop=resized", "loop.batch_size=4")


def test_images_that_disappear_are_named_and_the_steps_before_are_kept(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    whole = run(tmp_path / "whole", *FILES, data_root=pictures)
    assert whole.record.steps == STEPS

    def remove(line: str) -> None:
        if line.startswith("epoch 1/3"):
            (pictures / "train" / "cat").rename(tmp_path / "elsewhere")

    with pytest.raises(Exception, match=r"cat.*\.png") as caught:
        run(tmp_path / "run", *FILES, data_root=pictures, say=remove)
    assert isinstance(caught.value, ValueError | OSError)
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").files()
    (tmp_path / "elsewhere").rename(pictures / "train" / "cat")
    run(tmp_path / "run", *FILES, data_root=pictures)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_another_recipe_or_other_images_are_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "run", limit_steps=2)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"another recipe: loop\.epochs was 3, now 4\. Choose another --out"):
        run(tmp_path / "run", "loop.epochs=4")
    with pytest.raises(ValueError, match=r"data\.limit was 6, now 5; data\.sha256 was"):
        run(tmp_path / "run", "data.limit=5")
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    # what changes no weight is no other run
    assert run(tmp_path / "run", "loop.checkpoint_every=5", "evaluate.limit=30").record.complete


def test_a_run_that_ended_before_its_first_checkpoint_makes_way_for_another(tmp_path: Path) -> None:
    other = small_recipe("loop.epochs=2")
    with RunFolder(tmp_path / "run", identity_of(other, "0f")).claim(other, say=print):
        pass
    assert run(tmp_path / "run", "loop.epochs=1").record.complete


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"has model\.safetensors but no identity\.json"):
        run(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; choose another --out"):
        run(tmp_path / "file")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.arguments={width: 4, num_classes: 7}",), "num_classes=7, but the data have 10 classes"),
        (("model.arguments={nonsense: 4}",), "nonsense"),
        (("model.placements=[{name: rbnn}]",), "rbnn"),
        (("crossnorm.consistency=1", "crossnorm.p=1"), "the model has none"),
        (("data.limit=7", "loop.batch_size=23"), "leave a single image for the last batch"),
        (
            ("data.size=16", "model.name=shiftnorm/densenet121", "model.arguments={}"),
            r"expected images of a size that the network takes, such as 32x32, got 16x16 \(.*\)\. Set data\.size=32",
        ),
        (("data.name=folder",), "wants a folder of images, got none; say where it is with --data DIR"),
        (("evaluate.limit=40", "model.name=torchvision/fcn_resnet50", "model.arguments={}"), "to give .2, 10. scores"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(
    tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    placements = () if "placements" in settings[0] else ("model.placements=[]",)
    with pytest.raises((ValueError, TypeError), match=message):
        run(tmp_path / "runs" / "run", *placements, *settings)
    assert not (tmp_path / "runs").exists()


def test_the_first_line_has_a_speed_and_one_step_is_one(tmp_path: Path) -> None:
    lines: list[str] = []
    record = run(tmp_path / "run", "loop.batch_size=60", limit_steps=1, say=lines.append).record
    speeds = [re.findall(r"([\d.,]+) images/s", line) for line in lines if line.startswith("epoch")]
    assert speeds and all(float(speed.replace(",", "")) > 0 for (speed,) in speeds)
    assert "stopped after 1 step, " in f"{record.line()}, "


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    def intrude(line: str) -> None:
        if not line.startswith("epoch"):
            return
        with pytest.raises(BlockingIOError, match="another process is training in"):
            run(tmp_path / "run", "loop.epochs=1")

    assert run(tmp_path / "run", "loop.epochs=1", say=intrude).record.complete


def test_training_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    began = time.perf_counter()
    result = train(small_recipe("loop.epochs=1", "data.validation=0.5"), out=tmp_path, say=lambda line: None)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    record = result.record
    assert record.data["train"] == record.data["validation"]["images"] == 30
    assert record.validation_error == record.history["validation_error"][-1]
    assert record.clean_error is not None and math.isfinite(record.clean_error)
    assert 0 < record.durations["train"] < time.perf_counter() - began
    assert record.throughput["of_bare"] is None or record.throughput["of_bare"] > 0
    for name in ("recipe.yaml", "environment.json", "metrics.csv", "metrics.jsonl", "record.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 0, name
