from __future__ import annotations

import importlib.util
import json
import os

import pytest

from shiftnorm import __version__, cli
from shiftnorm import norms as roster
from shiftnorm.recipe_tree import to_mapping
from shiftnorm.train_recipe import TrainRecipe
from shiftnorm.variants import VARIANTS


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images."""
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (16, 16), (40 * index, 10, 90)).save(tmp_path / "pets" / name / f"{index}.png")
    return tmp_path / "pets"


def run(capsys, *words):
    status = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def assert_one_clear_line(status, out, err, *parts):
    assert status == 2
    assert out == ""
    assert err.startswith("shiftnorm: error: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_a_corrupt_image_is_named(capsys, folder, tmp_path):
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG not really")
    words = ["compare", "--data", folder, "--out", tmp_path / "out"]
    assert_one_clear_line(*run(capsys, *words), "broken.png", "leave such files out with --on-error skip")
    assert not (tmp_path / "out").exists()
    smallest = ["--norms", "BatchNorm", "--seeds", 0, "--epochs", 1, "--corruptions", "contrast", "--workers", 0]
    status, out, _ = run(capsys, *words, "--on-error", "skip", *smallest)
    record = json.loads(next((tmp_path / "out" / "records").glob("BatchNorm*")).read_text())
    left_out = os.path.join("dog", "broken.png")
    assert status == 0 and f"left out: {left_out}\n" in out and record["data"]["left_out"] == [left_out]


def test_one_class(capsys, folder, tmp_path):
    for path in (folder / "dog").iterdir():
        path.unlink()
    (folder / "dog").rmdir()
    assert_one_clear_line(*run(capsys, "compare", "--data", folder, "--out", tmp_path / "out"), "two classes")


def test_no_images(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_clear_line(*run(capsys, "compare", "--data", tmp_path / "empty", "--out", tmp_path / "out"), "empty")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--data", "/no/such/folder"], ["/no/such/folder"]),
        (["--norms", "SelfNrm"], ["unknown norm 'SelfNrm'", "did you mean SelfNorm"]),
        (["--recipe", "compare-digitz"], ["compare-digitz", "compare-digits"]),
        (["--epochs", "0"], ["epochs", "at least 1"]),
        (["--corruptions", "fogg"], ["did you mean fog?"]),
        (["--depth", "11"], ["6n + 4"]),
    ],
)
def test_mistakes_end_with_one_line(capsys, tmp_path, words, parts):
    assert_one_clear_line(*run(capsys, "compare", *words, "--out", tmp_path / "out"), *parts)


def test_a_file_where_the_results_should_go(capsys, folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_one_clear_line(*run(capsys, "compare", "--data", folder, "--out", tmp_path / "out"), "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="unknown norm"):
        cli.main(["compare", "--norms", "SelfNrm", "--out", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    ("absent", "words"),
    [("lightning", ["compare"]), ("numpy", ["corrupt", "pets", "--out", "c"]), ("PIL", ["evaluate", "x"])],
)
def test_missing_extras(capsys, monkeypatch, tmp_path, absent, words):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == absent else find(name, *a))
    named = "pillow" if absent == "PIL" else absent
    assert_one_clear_line(*run(capsys, *words), f"{words[0]} needs {named}", 'pip install "shiftnorm[train]"')


def test_compare(capsys, folder, tmp_path):
    words = ["compare", "--data", folder, "--out", tmp_path / "out", "--norms", "SelfNorm", "--epochs", 1, "--seeds", 0]
    words += ["--size", 16, "--limit", 3, "--corruptions", "contrast", "--severities", 1, "--workers", 0]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "| SelfNorm " in out and f"Report: {tmp_path / 'out' / 'report.html'}" in out
    assert (tmp_path / "out" / "report.html").exists()


def test_a_failed_run_makes_the_status_1(capsys, folder, tmp_path, monkeypatch):
    from shiftnorm import run as module

    def fail(*_, **__):
        raise RuntimeError("no luck")

    monkeypatch.setattr(module, "train_and_evaluate", fail)
    words = ["compare", "--data", folder, "--out", tmp_path, "--norms", "SelfNorm", "--seeds", 0, "--workers", 0]
    status, out, err = run(capsys, *words)
    assert status == 1
    assert "2 of 2 runs failed" in err and "SelfNorm, seed 0 failed: RuntimeError: no luck" in out


def test_norms_are_listed(capsys):
    status, out, _ = run(capsys, "norms")
    assert status == 0
    named = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    assert set(named) <= set(roster.__all__)
    assert {"BatchNorm", "CNSN", "SelfNorm", "IBN", "SwitchNorm"} <= set(named)
    assert not {"MomentNorm", "NormLayer", "RunningMoments", "CrossNormController", "Chain"} & set(named)
    for name in named:
        assert callable(getattr(roster, name))
    assert {name for name in VARIANTS if name != "IBN-a"} <= set(named)


def test_some_norms_are_listed(capsys):
    assert run(capsys, "norms", "*mix*", "--plain") == (0, "EFDMix\nMixStyle\nMixtureNorm\n", "")
    assert_one_clear_line(*run(capsys, "norms", "selfnrm"), "norms: none matches 'selfnrm'; did you mean SelfNorm?")


def test_recipes(capsys):
    _, out, _ = run(capsys, "recipes")
    assert "compare-digits" in out and "shiftnorm compare --recipe compare-digits" in out
    status, out, _ = run(capsys, "recipes", "show", "compare-digits")
    assert status == 0 and out.startswith("# shiftnorm compare")
    assert_one_clear_line(*run(capsys, "recipes", "show", "compare-digts"), "did you mean compare-digits")
    assert_one_clear_line(*run(capsys, "recipes", "show"), "expected a name")


def test_no_verb_shows_help(capsys):
    status, out, _ = run(capsys)
    assert status == 2 and "compare" in out


def refused(capsys, *words):
    """The lines of a call that does not parse."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"shiftnorm {__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian", "small/base"], "unknown verb 'trian'; did you mean train?"),
        (["recipe"], "unknown verb 'recipe'; did you mean recipes?"),
        (["recipes", "lsit"], "unknown action 'lsit'; did you mean list?"),
        (["qqqq"], "unknown verb 'qqqq'; known: compare, norms, "),
    ],
)
def test_a_mistyped_verb_gets_a_near_one(capsys, words, text):
    assert text in refused(capsys, *words)[-1]


def test_an_unknown_option_shows_the_usage_of_its_verb(capsys):
    lines = refused(capsys, "norms", "--bogus")
    assert lines[0].startswith("usage: shiftnorm norms ")
    assert lines[-1] == "shiftnorm norms: error: unrecognized arguments: --bogus"
    lines = refused(capsys, "recipes", "list", "a", "b")
    assert lines[-1] == "shiftnorm recipes list: error: unrecognized arguments: b"


def test_images_without_their_option_are_told(capsys, folder):
    last = refused(capsys, "compare", folder)[-1]
    assert last == f"shiftnorm compare: error: unrecognized arguments: {folder}; images are given by --data {folder}"
    assert "--data" not in refused(capsys, "compare", "nowhere")[-1]


@pytest.mark.parametrize("verb", ["train", "compare-recipes"])
def test_an_option_that_is_a_key_of_the_recipe_is_told(capsys, verb):
    lines = refused(capsys, verb, "small/base", "--device", "cuda", "--epochs=2", "--bogus")
    assert lines[0].startswith(f"usage: shiftnorm {verb} ")
    for text in ("--set loop.device=...", "--set loop.epochs=..."):
        assert text in lines[-1]
    assert "--bogus is" not in lines[-1]
    text = refused(capsys, verb, "small/base", "--batch-size", "2")[-1]
    assert text.endswith("--batch-size is a key of the recipe: --set loop.batch_size=...")


def test_the_keys_that_are_told_are_of_the_recipe():
    parts = to_mapping(TrainRecipe("any"))
    for key in cli._RECIPE_KEYS:
        part, _, name = key.partition(".")
        assert name in parts[part], key
