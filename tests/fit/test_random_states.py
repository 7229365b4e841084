"""States of random generators are no part of a run: every step seeds them."""

from __future__ import annotations

from pathlib import Path

import torch

from fit_runs import assert_same_weights, run
from shiftnorm.fit.checkpoints import CheckpointFolder

DROPOUT = ("model.arguments={width: 4, dropout: 0.3}", "loop.epochs=1")


def test_a_run_in_pieces_draws_the_same_whatever_the_generators_are_at(tmp_path: Path) -> None:
    torch.manual_seed(1)
    run(tmp_path / "whole", *DROPOUT)
    torch.manual_seed(2)
    run(tmp_path / "run", *DROPOUT, limit_steps=3)
    torch.manual_seed(3)
    run(tmp_path / "run", *DROPOUT)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert sorted(folder.read(folder.newest())["shiftnorm"]) == ["batches", "step"]
