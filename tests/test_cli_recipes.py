"""The verb recipes: listed, shown, copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from shiftnorm import cli
from shiftnorm.recipe import load_recipe
from shiftnorm.recipe_files import list_recipes, text_of
from shiftnorm.recipe_tree import difference
from shiftnorm.train_recipe import load_train_recipe

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "list"], ["recipes", "list", "*"]])
def test_all_are_listed_by_what_runs_them(run: Run, words: list[str]) -> None:
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    compare, train = out.partition("shiftnorm train NAME\n")[::2]
    assert (
        compare.startswith("shiftnorm compare --recipe NAME\n  compare-digits ") and "The demo: handwritten" in compare
    )
    for name in list_recipes():
        part = compare if name.startswith("compare-") else train
        (line,) = [line for line in part.splitlines() if line.startswith(f"  {name} ")]
        if part is train:
            assert line.endswith(load_train_recipe(name).summary)
    assert "Run one: shiftnorm compare --recipe compare-digits, shiftnorm train small/cnsn." in out


def test_some_are_listed(run: Run) -> None:
    _, out, _ = run("recipes", "list", "*/wrn40_2/sn", "--plain")
    assert out == "cifar10/wrn40_2/sn\ncifar100/wrn40_2/sn\n"
    _, out, _ = run("recipes", "list", "small/*")
    assert "compare --recipe NAME" not in out
    assert out.count("  small/") == sum(name.startswith("small/") for name in list_recipes()) > 0
    status, _, err = run("recipes", "list", "smal/*")
    assert status == 2 and "none matches 'smal/*'; did you mean small/*?" in err


@pytest.mark.parametrize("name", ["cifar10/wrn40_2/cnsn-augmix", "small/base", "compare-folder"])
def test_show_prints_every_value_and_can_be_read_again(run: Run, tmp_path: Path, name: str) -> None:
    status, out, _ = run("recipes", "show", name)
    assert status == 0 and out.splitlines()[0] == text_of(name).splitlines()[0]
    (tmp_path / "shown.yaml").write_text(out)
    load = load_recipe if name.startswith("compare") else load_train_recipe
    assert load(tmp_path / "shown.yaml") == load(name)
    assert "extends" not in yaml.safe_load(out)
    assert run("recipes", "show", name, "--short")[1] == text_of(name)


def test_show_says_what_is_extended(run: Run) -> None:
    _, out, _ = run("recipes", "show", "cifar10/wrn40_2/cnsn-augmix")
    chain = "cifar10/wrn40_2/cnsn-augmix, which extends cifar10/wrn40_2/cnsn, which extends cifar10/wrn40_2/base."
    assert out.splitlines()[1] == f"# Every value of {chain}"


@pytest.mark.parametrize("more", [[], ["--resolved"]])
@pytest.mark.parametrize("name", ["small/cnsn", "compare-digits", "cifar100/resnext29/cnsn-consist"])
def test_a_copy_is_the_same_recipe_under_its_own_name(run: Run, tmp_path: Path, name: str, more: list[str]) -> None:
    status, out, _ = run("recipes", "copy", name, "mine.yaml", *more)
    load = load_recipe if name.startswith("compare") else load_train_recipe
    assert status == 0 and load(tmp_path / "mine.yaml") == load(name)
    text = (tmp_path / "mine.yaml").read_text()
    command = text.splitlines()[0].removeprefix("# ")
    assert command == text_of(name).splitlines()[0].removeprefix("# ").replace(name, "mine.yaml")
    assert out == f"mine.yaml: a copy of {name}; run it with: {command}\n"
    assert ("extends:" in text) == ("extends:" in text_of(name) and not more)
    # and it is there to be changed
    (tmp_path / "mine.yaml").write_text(f"{text}" if more else f"{text}\n")
    assert run("recipes", "show", "mine.yaml", "--short")[1].startswith(f"# {command}\n")


def test_a_copy_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    status, _, err = run("recipes", "copy", "small/cnsn", "mine.yaml")
    assert status == 2 and "mine.yaml is there already, and is kept" in err
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_a_copy_of_a_file_that_extends_a_file_stands_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "base.yaml").write_text("extends: small/cn\nloop: {epochs: 3}")
    (tmp_path / "a" / "last.yaml").write_text("extends: base.yaml\nloop: {seed: 5}")
    assert run("recipes", "copy", "a/last.yaml", "here.yaml")[0] == 0
    changed = difference(load_train_recipe(tmp_path / "here.yaml"), load_train_recipe("small/cn"))
    assert changed == {"loop.epochs": 3, "loop.seed": 5}
    assert (tmp_path / "here.yaml").read_text().startswith("# shiftnorm train here.yaml\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "recipes show: expected a name, got none"),
        (["show", "small/cnsnn"], "no recipe 'small/cnsnn'; did you mean small/cnsn"),
        (["show", "cnsn-augmix"], "did you mean cifar10/allconv/cnsn-augmix"),
        (["show", "broken.yaml"], "broken.yaml: unknown key 'loop.epoch'; did you mean loop.epochs?"),
        (["show", "broken.yaml", "--short"], "unknown key 'loop.epoch'"),
        (["copy", "small/cnsn"], "expected NAME FILE, such as: shiftnorm recipes copy small/cnsn mine.yaml"),
        (["copy", "small/cnsnn", "mine.yaml"], "did you mean small/cnsn"),
        (["copy", "broken.yaml", "mine.yaml"], "unknown key 'loop.epoch'"),
        (["copy", "small/cnsn", "mine"], "expected a file that ends in .yaml, got 'mine'"),
        (["copy", "small/cnsn", "nowhere/mine.yaml"], "there is no folder nowhere; make it"),
    ],
)
def test_mistakes_get_one_clear_line(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "broken.yaml").write_text("extends: small/cnsn\nloop: {epoch: 3}")
    status, out, err = run("recipes", *words)
    assert (status, out) == (2, "")
    assert err.startswith("shiftnorm: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("action", ["list", "show", "copy"])
def test_every_help_ends_with_examples_that_parse(capsys: pytest.CaptureFixture[str], action: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["recipes", action, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.partition("examples:\n")[2].strip().splitlines()
    assert 2 <= len(lines) <= 3
    for line in lines:
        program, verb, *words = line.replace("'", "").split()
        assert (program, verb, words[0]) == ("shiftnorm", "recipes", action)
        assert cli._make_parser().parse_args([verb, *words]).action == action


@pytest.mark.parametrize("name", list_recipes())
def test_the_first_line_is_a_command_that_parses(name: str) -> None:
    program, *words = text_of(name).splitlines()[0].removeprefix("# ").split()
    options = cli._make_parser().parse_args(words)
    assert program == "shiftnorm" and options.recipe == name
    assert options.data == ("DIR" if "--data" in words else None)
