"""Recipes as files: names, what extends what, circles, kinds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shiftnorm.recipe import load_recipe
from shiftnorm.recipe_files import list_recipes, merge, resolve, text_of
from shiftnorm.recipe_tree import difference
from shiftnorm.train_recipe import load_train_recipe

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_names_are_paths_below_the_folder_of_recipes() -> None:
    names = [*list_recipes()]
    assert names == sorted(names) and {"compare-digits", "small/cnsn", "imagenet/resnet50/ibn-a"} <= {*names}
    assert text_of("small/cnsn").startswith("# shiftnorm train small/cnsn\n")


def test_a_file_extends_a_recipe_of_the_package_and_a_file_beside_it(folder: Path) -> None:
    save(folder / "mine" / "base.yaml", "extends: small/cnsn\nloop: {epochs: 3}\nevaluate: {severities: [5]}")
    last = save(folder / "mine" / "last.yaml", "extends: base.yaml\nsummary: mine\nloop: {seed: 4}")
    for name in (last, "mine/last.yaml"):  # wherever it is started from
        recipe = load_train_recipe(name)
        changed = {"summary": "mine", "loop.epochs": 3, "loop.seed": 4, "evaluate.severities": [5]}
        assert difference(recipe, load_train_recipe("small/cnsn")) == changed
    assert [level.name for level in resolve("mine/last.yaml")] == [
        "small/base", "small/cnsn", "mine/base.yaml", "mine/last.yaml"
    ]  # fmt: skip


def test_mappings_merge_and_lists_replace() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 2}
    over = {"a": {"c": [3]}, "d": 5, "f": {"g": 1}}
    assert merge(base, over) == {"a": {"b": 1, "c": [3]}, "d": 5, "f": {"g": 1}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 2}


def test_the_file_that_the_page_shows_is_a_recipe(folder: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    recipe = load_train_recipe(save(folder / "mine.yaml", text))
    assert [placement.name for placement in recipe.model.placements] == ["cnsn@residual", "ibn_a"]
    assert recipe.model.placements[1].where == ("stages:1",) and recipe.loop.epochs == 100


def test_compare_recipes_extend_too(folder: Path) -> None:
    save(folder / "mine.yaml", "extends: compare-digits\nepochs: 2\nseeds: [7]")
    recipe = load_recipe("mine.yaml")
    assert difference(recipe, load_recipe("compare-digits")) == {"epochs": 2, "seeds": [7]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: a.yaml"}, "a.yaml: extends goes in a circle: a.yaml -> a.yaml."),
        ({"a": "extends: b.yaml", "b": "extends: a.yaml"}, "a circle: a.yaml -> b.yaml -> a.yaml."),
        (
            {"a": "extends: b.yaml", "b": "extends: c.yaml", "c": "extends: ./b.yaml"},
            "a.yaml: extends goes in a circle: a.yaml -> b.yaml -> c.yaml -> b.yaml.",
        ),
        ({"a": "extends: [small/base]"}, "a.yaml: extends: expected the name of one recipe, got ['small/base']"),
        ({"a": "extends: small/base\nextends: small/cn"}, "the key 'extends' appears more than once"),
        ({"a": "kind: trian\nsummary: s"}, "a.yaml: kind: unknown kind 'trian'; did you mean train?"),
        ({"a": "extends: small/base\nkind: compare"}, "a.yaml: kind: expected 'train' as in what it extends"),
        ({"a": "summary: s"}, "expected a recipe of kind 'train', got 'compare'; run it with: shiftnorm compare"),
        ({"a": "extends: small/base\nloop: {epoch: 3}"}, "a.yaml: unknown key 'loop.epoch'"),
        # the file with the mistake is named, not the one that extends it
        ({"a": "extends: b.yaml", "b": "extends: small/base\nloop: {epoch: 3}"}, "b.yaml: unknown key 'loop.epoch'"),
        ({"a": "kind: train"}, "a.yaml: the keys summary are missing"),
        ({"a": ""}, "a.yaml: expected 'key: value' lines, got NoneType"),
    ],
)
def test_refused(folder: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        save(folder / f"{name}.yaml", text)
    with pytest.raises(ValueError) as caught:
        load_train_recipe("a.yaml")
    assert message in str(caught.value)


def test_a_circle_is_seen_under_different_names(folder: Path) -> None:
    save(folder / "a.yaml", f"extends: {folder / 'b.yaml'}")
    save(folder / "b.yaml", "extends: ./a.yaml")
    with pytest.raises(ValueError, match=r"goes in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml\.$"):
        load_train_recipe(folder / "a.yaml")


def test_what_is_not_there(folder: Path) -> None:
    save(folder / "a.yaml", "extends: small/bsae")
    with pytest.raises(FileNotFoundError, match=r"a\.yaml: extends: no recipe 'small/bsae'; did you mean small/base"):
        load_train_recipe("a.yaml")
    save(folder / "b.yaml", "extends: gone.yaml")
    with pytest.raises(FileNotFoundError, match=r"There is no file gone\.yaml either"):
        load_train_recipe("b.yaml")
    for name, near in (("cnsn", "/cnsn"), ("small/cnns", "small/cnsn"), ("cifar10/wrn402/cn", "cifar10/wrn40_2/cn")):
        with pytest.raises(FileNotFoundError, match=f"no recipe '{name}'; did you mean .*{near}"):
            load_train_recipe(name)
    for name in ("qqqq", str(folder)):
        with pytest.raises(FileNotFoundError, match="expected a YAML file, or a name that `shiftnorm recipes` lists"):
            load_train_recipe(name)
