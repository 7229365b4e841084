"""Runs that are killed at any moment, also while a checkpoint is being written, end with the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from fit_runs import FORKS, assert_same_weights, fork, run
from shiftnorm.fit import checkpoints
from shiftnorm.fit.checkpoints import CheckpointFolder

pytestmark = FORKS

OFTEN = "loop.checkpoint_every=1"


def test_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole", OFTEN)
    draw, folder = random.Random(0), CheckpointFolder(tmp_path / "run" / "checkpoints")
    killed = 0
    while True:
        before = folder.files()[-1:]
        process = fork(lambda: run(tmp_path / "run", OFTEN))
        # The first at any moment; the others when the run has got on, or it would never end.
        while killed and folder.files()[-1:] == before and process.is_alive():
            time.sleep(0.001)
        process.join(timeout=draw.uniform(0, 0.03 if killed else 0.3) if killed < 5 else None)
        if not process.is_alive():
            break
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        killed += 1
    assert process.exitcode == 0 and killed >= 2
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_file_that_is_removed_while_the_folder_is_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    kept = folder.write({"x": 1}, 7)
    gone = kept.with_name(kept.name.replace("7-", "6-"))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([gone, kept]))
    assert folder.files() == [kept]


def test_a_kill_while_a_checkpoint_is_written_loses_that_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    write, marker = checkpoints._write, tmp_path / "half"

    def write_slowly(path: Path, data: memoryview) -> None:
        if "step-000000012" not in path.name:
            return write(path, data)
        with path.open("wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            marker.touch()
            time.sleep(60)

    monkeypatch.setattr(checkpoints, "_write", write_slowly)
    process = fork(lambda: run(tmp_path / "run"))
    while not marker.exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    monkeypatch.undo()
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert list(folder.path.glob(".*.tmp")), "the half of a file that the kill left"
    assert [int(file.name[5:14]) for file in folder.files()] == [6]
    lines: list[str] = []
    run(tmp_path / "run", say=lines.append)
    assert "Going on after step 6 of 18." in lines
    assert not list(folder.path.glob(".*.tmp"))
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "run", limit_steps=13)
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    newest = folder.files()[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content[:-100]) if damage == "cut" else bytes(content))
    lines: list[str] = []
    run(tmp_path / "run", say=lines.append)
    assert f"The checkpoint {newest.name} is damaged" in lines[0] and "going on from the one before" in lines[0]
    assert lines[1] == "Going on after step 12 of 18."
    assert (folder.path / f"{newest.name}.damaged").is_file()
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
