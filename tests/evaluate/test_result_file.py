"""A result is found in its folder, or in the run of a recipe whose evaluation it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustness_results import make_trio
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.result_file import find_result


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a trained run with one evaluation."""
    folder = tmp_path / "runs" / "train-a"
    (folder / "evaluation" / "0f").mkdir(parents=True)
    make_trio()[0].save(folder / "evaluation" / "0f" / "result.json")
    (folder / "model.safetensors").write_bytes(b"network")
    return folder


def test_the_evaluation_of_a_run_is_found(trained: Path) -> None:
    file = trained / "evaluation" / "0f" / "result.json"
    for where in (trained, str(trained), trained / "evaluation", file.parent, file):
        assert find_result(where) == file
    assert Result.load(trained).name == make_trio()[0].name


def test_a_result_of_its_own_comes_first(trained: Path) -> None:
    make_trio()[1].save(trained / "result.json")
    assert find_result(trained) == trained / "result.json"


@pytest.mark.parametrize("second", ["evaluation/1a", "evaluation-step5/1a"])
def test_several_evaluations_are_named(trained: Path, second: str) -> None:
    (trained / second).mkdir(parents=True)
    assert find_result(trained).parent.name == "0f"  # the second is unfinished
    make_trio()[1].save(trained / second / "result.json")
    with pytest.raises(ValueError, match="evaluated in 2 ways; name the one you mean") as caught:
        Result.load(trained)
    assert str(trained / "evaluation" / "0f") in str(caught.value) and str(trained / second) in str(caught.value)


def test_nothing_and_unfinished_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file \S*nowhere, nor a folder of that name\.$"):
        Result.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file \S*result\.json\. An unfinished evaluation has none"):
        Result.load(tmp_path)


def test_report_takes_the_run_of_a_recipe(run, trained: Path) -> None:
    pytest.importorskip("jinja2")
    status, out, _ = run("report", trained, trained / "evaluation" / "0f")
    assert status == 0 and "Report: report.html" in out and Path("report.html").is_file()
    (trained / "evaluation" / "0f" / "result.json").unlink()
    status, _, err = run("report", trained, "--force")
    assert status == 2 and "train-a is a run that was not measured" in err and "shiftnorm evaluate" in err
