"""A run that is stopped and goes on ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fit_runs import STEPS, assert_same_weights, run
from shiftnorm.fit.metrics import read_metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(out).record.steps == STEPS
    return out


@pytest.mark.parametrize("step", [1, 6, 17])
def test_a_run_that_is_stopped_anywhere_ends_the_same(whole: Path, tmp_path: Path, step: int) -> None:
    stopped = run(tmp_path / "run", limit_steps=step)
    assert (stopped.record.status, stopped.record.steps) == ("limited", step)
    again = run(tmp_path / "run")
    assert (again.record.status, again.record.steps) == ("complete", STEPS)
    assert_same_weights(tmp_path / "run", whole)


def test_a_run_in_many_pieces_ends_the_same_and_logs_every_step_once(whole: Path, tmp_path: Path) -> None:
    for step in (2, 3, 9, 14):
        run(tmp_path / "run", limit_steps=step)
    result = run(tmp_path / "run")
    assert_same_weights(tmp_path / "run", whole)
    ours, theirs = (read_metrics(folder) for folder in (tmp_path / "run", whole))
    clocks = ("images_per_s", "seconds")
    strip = lambda rows: [{key: value for key, value in row.items() if key not in clocks} for row in rows]
    assert strip(ours) == strip(theirs)
    assert len(result.record.history["loss"]) == 3


def test_checkpoints_by_steps_change_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", "loop.checkpoint_every=4")
    assert_same_weights(tmp_path / "run", whole)
    names = [file.name[5:14] for file in sorted((tmp_path / "run" / "checkpoints").glob("*.ckpt"))]
    assert [int(name) for name in names] == [16, 18]


@pytest.mark.parametrize(
    "settings",
    [
        ("loop.precision=bf16", "loop.deterministic=true", "loss.mixup=0.2", "data.validation=0.3"),
        ("augmix.enabled=true", "optimizer.clip=1.0", "loop.accumulate=2", "loop.channels_last=false"),
    ],
)
def test_other_ways_of_training_resume_too(tmp_path: Path, settings: tuple[str, ...]) -> None:
    run(tmp_path / "whole", *settings, "loop.epochs=2")
    run(tmp_path / "run", *settings, "loop.epochs=2", limit_steps=4)
    run(tmp_path / "run", *settings, "loop.epochs=2")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("step", [2, 4])
def test_accumulated_batches_resume_too(tmp_path: Path, step: int) -> None:
    settings = ("loop.accumulate=4", "loop.batch_size=5")  # 12 batches: 3 steps an epoch
    whole = run(tmp_path / "whole", *settings)
    assert whole.record.steps == 9
    run(tmp_path / "run", *settings, limit_steps=step)
    run(tmp_path / "run", *settings)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_extra_passes_with_their_own_statistics_and_dropout_resume_too(tmp_path: Path) -> None:
    settings = (
        "crossnorm.consistency=10.0",
        "crossnorm.statistics=separate",
        "model.arguments={width: 4, dropout: 0.3}",
        "loop.epochs=1",
    )
    run(tmp_path / "whole", *settings)
    run(tmp_path / "run", *settings, limit_steps=4)
    run(tmp_path / "run", *settings)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_an_incomplete_last_batch_is_a_step_and_resumes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "loop.batch_size=16", "loop.epochs=2")
    assert whole.record.steps == 8  # 60 images: 16, 16, 16, 12
    assert run(tmp_path / "full", "loop.batch_size=16", "loop.epochs=2", "loop.drop_last=true").record.steps == 6
    run(tmp_path / "run", "loop.batch_size=16", "loop.epochs=2", limit_steps=4)
    run(tmp_path / "run", "loop.batch_size=16", "loop.epochs=2")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_is_not_made_again(whole: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    before = (whole / "model.safetensors").stat().st_mtime_ns
    again = run(whole, say=lines.append)
    assert again.record.complete and lines[0].startswith("This run is finished: run, seed 0:")
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
