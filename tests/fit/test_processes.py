"""Two processes that share every batch train as one process with the whole batch does."""

from __future__ import annotations

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from fit_runs import FORKS, fork, small_recipe, weights_of
from shiftnorm.fit import Stopped, TrainRecord, train
from shiftnorm.fit.checkpoints import CheckpointFolder

pytestmark = FORKS

# No CrossNorm and no dropout, which draw for their own part of the batch. A small rate, as rounding grows with steps.
PLAIN = (
    "model.placements=[]",
    "model.arguments={width: 4, dropout: 0.0}",
    "optimizer.learning_rate=0.02",
    "loop.epochs=2",
)
TWO = (*PLAIN, "loop.processes=2", "loop.batch_size=5")


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class Pair:
    """A run of two processes, which find each other as those of torchrun do."""

    def __init__(self, out: Path, *settings: str, evaluate: bool = False) -> None:
        port = str(free_port())

        def work(rank: int) -> None:
            names = {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
            os.environ.update(names, MASTER_ADDR="127.0.0.1", NODE_RANK="0")
            try:
                train(small_recipe(*settings), out=out, say=lambda line: None, evaluate=evaluate)
            except Stopped as stopped:
                os._exit(stopped.status)
            os._exit(0)  # a forked process must not run what this one does at its end

        self.processes = [fork(partial(work, rank)) for rank in (0, 1)]

    def join(self) -> list[int | None]:
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the whole batches."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(small_recipe(*PLAIN), out=out, say=lambda line: None)
    return out


def test_two_processes_train_and_measure_as_one(alone: Path, tmp_path: Path) -> None:
    assert Pair(tmp_path / "run", *TWO, evaluate=True).join() == [0, 0]
    ours, theirs = weights_of(tmp_path / "run"), weights_of(alone)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    first, second = TrainRecord.load(tmp_path / "run"), TrainRecord.load(alone)
    assert first.steps == second.steps == 12
    torch.testing.assert_close(first.history["loss"], second.history["loss"], rtol=1e-4, atol=1e-4)
    assert first.clean_error == second.clean_error


def test_unsynced_processes_end_elsewhere(alone: Path, tmp_path: Path) -> None:
    assert Pair(tmp_path / "run", *TWO, "loop.synced=false").join() == [0, 0]
    ours, theirs = weights_of(tmp_path / "run"), weights_of(alone)
    assert max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours) > 0.01


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "run", *TWO, "loop.checkpoint_every=1")
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    while not folder.files() and pair.processes[0].is_alive():
        time.sleep(0.01)
    os.kill(pair.processes[1].pid or 0, signal.SIGTERM)
    assert pair.join() == [143, 143]
    step = int(folder.files()[-1].name[5:14])
    assert 1 <= step < 12
    assert Pair(tmp_path / "run", *TWO).join() == [0, 0]
    assert Pair(tmp_path / "again", *TWO).join() == [0, 0]
    ours, theirs = weights_of(tmp_path / "run"), weights_of(tmp_path / "again")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
