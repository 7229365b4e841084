"""What is shown of a run while it trains, and that a finished one is measured again in another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fit_runs import make_pictures, run, weights_of
from shiftnorm.fit.metrics import read_metrics


def test_the_loss_that_is_shown_is_the_mean_of_batches_however_many_make_a_step(tmp_path: Path) -> None:
    still = (
        "optimizer.learning_rate=1.0e-12",
        "optimizer.final_learning_rate=0",
        "model.placements=[]",
        "loop.epochs=1",
        "loop.ema=0",
    )
    rows, losses = {}, {}
    for accumulate in (1, 4):
        result = run(tmp_path / str(accumulate), *still, f"loop.accumulate={accumulate}")
        losses[accumulate] = result.record.history["loss"][0]
        rows[accumulate] = [row["loss"] for row in read_metrics(result.folder) if row.get("loss") is not None]
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)
    assert rows[4][0] == pytest.approx(sum(rows[1][:4]) / 4, rel=1e-4)


def test_a_finished_run_is_measured_again_where_it_is_asked_for_other_measuring(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(out, "loop.epochs=1", evaluate=True)
    before = weights_of(out)
    errors = {}
    for change in ("limit=20", "seed=3", "constants=imagenet224", "corruptions=[contrast, fog]"):
        result = run(out, "loop.epochs=1", f"evaluate.{change}", evaluate=True)
        assert result.record.complete and result.record.steps == first.record.steps
        errors[change] = result.record.corruption_errors
        assert all(torch.equal(before[key], weights) for key, weights in weights_of(out).items())
    assert list(errors["corruptions=[contrast, fog]"]) == ["contrast", "fog"]
    # the fourth went on in the folder of the first
    assert len(list((out / "evaluation").iterdir())) == 4
    lines: list[str] = []
    again = run(out, "loop.epochs=1", "evaluate.corruptions=[contrast, fog]", evaluate=True, say=lines.append)
    assert lines[0].startswith("This run is finished")
    assert again.record.corruption_errors == errors["corruptions=[contrast, fog]"]


def test_a_finished_run_is_measured_again_on_other_test_images(tmp_path: Path) -> None:
    place, out = make_pictures(tmp_path / "pictures"), tmp_path / "run"
    settings = ("data.name=folder", "data.size=32", "data.limit=null", "evaluate.limit=null", "loop.epochs=1")
    first = run(out, *settings, data_root=place, evaluate=True)
    for name in ("cat", "dog"):
        (place / "test" / name / "0.png").unlink()
    lines: list[str] = []
    second = run(out, *settings, data_root=place, evaluate=True, say=lines.append)
    assert not any(line.startswith("This run is finished") for line in lines)
    assert (first.record.data["test"], second.record.data["test"]) == (8, 6)
    assert first.record.key == second.record.key
