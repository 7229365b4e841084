from __future__ import annotations

import pytest
import yaml

from shiftnorm.recipe import CompareRecipe, list_recipes, load_recipe, parse_recipe
from shiftnorm.variants import REFERENCE, VARIANTS, check_names

MINIMAL = "norms: [SelfNorm]\ncorruptions: [contrast]\n"


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("compare-")])
def test_packaged_recipes(name):
    recipe = load_recipe(name)
    text = list_recipes()[name]
    assert text.startswith(f"# shiftnorm compare --recipe {name}")
    assert parse_recipe(yaml.safe_dump(recipe.to_dict()), name) == recipe
    assert len(recipe.norms) >= 6 and len(recipe.corruptions) >= 6 and len(recipe.severities) == 5
    assert recipe.norms[0] == REFERENCE


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("epoch: 3", ValueError, "unknown key 'epoch'; did you mean epochs"),
        ("zzz: 3", ValueError, "unknown key 'zzz'; known: norms"),
        ("epochs: 3\nepochs: 4", ValueError, "'epochs' appears more than once"),
        ("epochs: many", TypeError, "epochs: expected int, got 'many'"),
        ("epochs: true", TypeError, "expected int, got True"),
        ("epochs: 0", ValueError, "at least 1, got 0"),
        ("learning_rate: 1e-3", TypeError, "write 1.0e-3"),
        ("learning_rate: .inf", ValueError, "finite number"),
        ("kind: train", ValueError, "expected a recipe of kind 'compare', got 'train'"),
        ("learning_rate: 0", ValueError, "learning_rate: expected a value in"),
        ("flip: 1", TypeError, "expected bool"),
        ("seeds: 3", TypeError, "expected a list"),
        ("seeds: [1, 1]", ValueError, "different values"),
        ("severities: [6]", ValueError, "from 1 to 5"),
        ("depth: 12", ValueError, "6n \\+ 4"),
        ("device: gpu", ValueError, "'cpu', 'cuda'"),
    ],
)
def test_strictness(text, kind, message):
    with pytest.raises(kind, match=message) as caught:
        parse_recipe(MINIMAL + text, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norms: [SelfNrm]\ncorruptions: [contrast]", "unknown norm 'SelfNrm'; did you mean SelfNorm"),
        ("norms: [SelfNorm]\ncorruptions: [gausian_noise]", "did you mean gaussian_noise"),
        ("norms: [SelfNorm]\ncorruptions: [fog, frost]", "'frost' needs photographs .* use frost_procedural"),
        ("norms: [SelfNorm]", "keys corruptions are missing"),
        ("- a", "got list"),
        ("", "got NoneType"),
        ("a: [", "expected YAML"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(text, "mine.yaml")


def test_no_such_recipe():
    with pytest.raises(FileNotFoundError, match=r"no recipe 'nowhere.yaml'; expected a YAML file, or a name"):
        load_recipe("nowhere.yaml")
    with pytest.raises(FileNotFoundError, match="did you mean compare-digits"):
        load_recipe("compare-digitz")
    with pytest.raises(
        ValueError, match="expected a recipe of kind 'compare', got 'train'; run it with: shiftnorm train"
    ):
        load_recipe("small/cnsn")


def test_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL + "epochs: 7\nlearning_rate: 1\n")
    recipe = load_recipe(path)
    assert (recipe.epochs, recipe.learning_rate, recipe.norms) == (7, 1.0, ("BatchNorm", "SelfNorm"))


def test_changed_checks_again():
    recipe = parse_recipe(MINIMAL, "mine.yaml")
    assert recipe.changed(epochs=5).epochs == 5
    with pytest.raises(ValueError, match="did you mean epochs"):
        recipe.changed(epoch=5)
    with pytest.raises(ValueError, match="at least 1"):
        recipe.changed(epochs=0)


def test_run_keys_of_earlier_versions_stay():
    # computed by version 0.2.0: a comparison that was begun goes on
    recipe = CompareRecipe(norms=("SelfNorm",), corruptions=("contrast",))
    digits = load_recipe("compare-digits").changed(epochs=16)  # as many as it had then
    assert recipe.run_key("SelfNorm", 0, "ff", "1") == "3c4ea853f2e77993"
    assert digits.run_key("CNSN", 1, "ff", "1") == "47071f8b141ca81e"
    assert load_recipe("compare-folder").run_key("CNSN", 1, "ff", "1") == "a29782bc11552bb4"
    changed = digits.changed(limit=5, severities=[1, 3], workers=0)
    assert changed.run_key("CNSN", 1, "ff", "1") == "cce88f94beb544f2"


def test_run_key_follows_what_decides_a_run():
    recipe = CompareRecipe(norms=("SelfNorm",), corruptions=("contrast",))
    key = recipe.run_key("SelfNorm", 0, "ff", "1")
    for same in (dict(norms=["CNSN"]), dict(seeds=[0, 5]), dict(workers=2), dict(threads=2)):
        assert recipe.changed(**same).run_key("SelfNorm", 0, "ff", "1") == key
    for other in (dict(epochs=3), dict(severities=[1]), dict(flip=True), dict(learning_rate=0.2)):
        assert recipe.changed(**other).run_key("SelfNorm", 0, "ff", "1") != key
    keys = {
        recipe.run_key(*each)
        for each in (("CNSN", 0, "ff", "1"), ("SelfNorm", 1, "ff", "1"), ("SelfNorm", 0, "f", "1"))
    }
    assert len(keys | {key}) == 4


def test_names_ignore_case_and_start_with_the_reference():
    assert check_names(["selfnorm", "ibn-A"]) == ("BatchNorm", "SelfNorm", "IBN-a")
    assert check_names(VARIANTS) == tuple(VARIANTS)
