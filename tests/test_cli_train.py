"""`shiftnorm train` as a user calls it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from fit_runs import FORKS, SETTINGS, STEPS, fork
from shiftnorm.cli import main
from shiftnorm.fit import TrainRecord
from shiftnorm.fit.checkpoints import CheckpointFolder

pytestmark = FORKS
FAST = [word for setting in SETTINGS for word in ("--set", setting)]


def test_help_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert "shiftnorm train small/cnsn --limit-steps 20 --no-evaluate" in text
    assert "shiftnorm train cifar10/wrn40_2/cnsn --data DIR --seed 1" in text


def test_train_stops_goes_on_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "small/base", *FAST, "--seed", "3"]
    assert main([*words, "--limit-steps", "4", "--no-evaluate"]) == 0
    assert "small/base, seed 3: stopped after 4 steps" in capsys.readouterr().out
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"Going on after step 4 of {STEPS}." in text and "Folder: runs/train-small-base-seed3" in text
    record = TrainRecord.load(tmp_path / "runs" / "train-small-base-seed3")
    assert record.complete and record.name == "small/base" and record.seed == 3
    assert list(record.corruption_errors) == ["contrast"]
    assert "shiftnorm train small/base" in (tmp_path / "runs" / "train-small-base-seed3" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small/nothing"], "no recipe 'small/nothing'"),
        (["small/base", "--set", "loop.epoch=3"], "unknown key 'loop.epoch'; did you mean loop.epochs"),
        (["small/base", "--set", "loop.seed=1", "--seed", "2"], "'loop.seed' appears more than once"),
        (["small/base", "--limit-steps", "0"], "expected --limit-steps of at least 1, got 0"),
        (["cifar10/wrn40_2/base", "--data", "nowhere"], "nowhere"),
        (["compare-digits"], "run it with: shiftnorm compare"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("shiftnorm: error: ") and text.count("\n") == 1 and message in text
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("signals_arrive")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_its_status_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    words = ["train", "small/base", *FAST, "--set", "loop.checkpoint_every=1", "--out", str(tmp_path / "run")]

    def work() -> None:
        with (tmp_path / "told").open("w") as stream:
            sys.stderr = stream
            status = main(words)
        os._exit(status)

    process = fork(work)
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    while not folder.files() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == 128 + number
    text = (tmp_path / "told").read_text()
    assert f"stopped by {number.name} after step" in text
    assert "the same command continues from there: shiftnorm train small/base" in text
