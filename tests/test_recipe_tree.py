"""Trees of dataclasses from plain data: what is taken, what is refused, and the way back."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import yaml

from shiftnorm.recipe_tree import build, check_ranges, difference, override, to_mapping, to_yaml
from shiftnorm.recipe_yaml import parse, parse_value, write
from shiftnorm.train_recipe import (
    AugMixRecipe,
    CrossNormRecipe,
    DataRecipe,
    EvaluateRecipe,
    LoopRecipe,
    LossRecipe,
    ModelRecipe,
    OptimizerRecipe,
    PlacementRecipe,
    TrainRecipe,
)

RICH = TrainRecipe(
    summary="all kinds of values",
    data=DataRecipe("cifar10", mean=(0.5, 0.25, 1e-3), std=(1.0, 2.0, 3e-7), limit=4),
    model=ModelRecipe(
        "torchvision/resnet50",
        {"a": [1, {"b": None}], "on": True, "1e-3": "1e-3"},
        (PlacementRecipe("cnsn@post", ("stages:1-2",), {"crop": "both"}), PlacementRecipe("ibn_a")),
    ),
    optimizer=OptimizerRecipe(schedule="steps", milestones=(3, 5), learning_rate=1e20, clip=1e-9),
    loop=LoopRecipe(precision="16", epochs=7),
    evaluate=EvaluateRecipe(("fog", "snow"), (2,)),
)


def read(text: str) -> TrainRecipe:
    return build(TrainRecipe, parse(text, "mine.yaml"), "mine.yaml")


@pytest.mark.parametrize("tree", [RICH, TrainRecipe("default"), TrainRecipe("x", source="a: b\n# c")])
def test_yaml_reads_back_as_an_equal_tree(tree: TrainRecipe) -> None:
    text = to_yaml(tree)
    assert text.startswith("kind: train\nsummary:")
    mapping = parse(text, "printed")
    assert mapping.pop("kind") == "train"
    assert build(TrainRecipe, mapping, "printed") == tree
    assert build(TrainRecipe, to_mapping(tree), "mapping") == tree


def test_what_it_holds_belongs_to_it() -> None:
    arguments: dict[str, Any] = {"widths": [1, 2]}
    recipe = ModelRecipe(arguments=arguments)
    arguments["widths"].append(3)
    to_mapping(recipe)["arguments"]["widths"].append(4)
    assert recipe.arguments == {"widths": [1, 2]}


def test_numbers_and_lists_are_converted_where_that_loses_nothing() -> None:
    recipe = read("summary: s\noptimizer: {learning_rate: 1}\nloop: {precision: 16}\nevaluate: {severities: [1]}")
    assert type(recipe.optimizer.learning_rate) is float
    assert recipe.loop.precision == "16" and recipe.evaluate.severities == (1,)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("loop: {epoch: 3}", ValueError, "unknown key 'loop.epoch'; did you mean loop.epochs?"),
        ("learning_rate: 3", ValueError, "unknown key 'learning_rate'; did you mean optimizer.learning_rate?"),
        ("opimizer: {}", ValueError, "unknown key 'opimizer'; did you mean optimizer?"),
        ("loss: {zzz: 1}", ValueError, "'loss.zzz'; known: loss.label_smoothing, loss.mixup, loss.cutmix."),
        ("model: {placements: [{nam: x}]}", ValueError, "unknown key 'model.placements[0].nam'"),
        ("model: {placements: [{where: [a]}]}", ValueError, "the keys model.placements[0].name are missing"),
        ("model: {placements: cnsn}", TypeError, "model.placements: expected a list of a mapping, got 'cnsn'"),
        ("model: {placements: [cnsn]}", TypeError, "model.placements[0]: expected a mapping, got 'cnsn'"),
        ("loop: 3", TypeError, "loop: expected a mapping, got 3"),
        ("loop: {epochs: 2.0}", TypeError, "loop.epochs: expected int, got 2.0"),
        ("loop: {epochs: true}", TypeError, "loop.epochs: expected int, got True"),
        ("loop: {compile: 1}", TypeError, "loop.compile: expected bool, got 1"),
        ("loop: {precision: 64}", ValueError, "loop.precision: expected one of '32', 'bf16', '16', got 64"),
        ("optimizer: {learning_rate: 1e-3}", TypeError, "got '1e-3'. YAML reads 1e-3 as text: write 1.0e-3."),
        ("optimizer: {learning_rate: 5E3}", TypeError, "write 5.0e+3."),
        ("optimizer: {learning_rate: fast}", TypeError, "expected float, got 'fast'."),
        ("optimizer: {learning_rate: .nan}", ValueError, "learning_rate: expected a finite number, got nan"),
        ("data: {mean: [0.5, x], std: [1, 1]}", TypeError, "data.mean[1]: expected float, got 'x'"),
        ("data: {mean: 0.5}", TypeError, "data.mean: expected a list of float, got 0.5"),
        ("evaluate: {corruptions: fog}", TypeError, "corruptions: expected a list of str or 'common', got 'fog'"),
        ("evaluate: {corruptions: [fogg]}", ValueError, "evaluate.corruptions: unknown 'fogg'; did you mean fog?"),
        ("model: {arguments: {a: 2020-01-01}}", TypeError, "model.arguments.a: expected numbers, text"),
        ("data: {limit: many}", TypeError, "data.limit: expected int, got 'many'"),
        ("summary: t", ValueError, "the key 'summary' appears more than once"),
        ("loop: {epochs: 3, epochs: 3}", ValueError, "the key 'loop.epochs' appears more than once"),
        ("model: {placements: [{name: a, name: b}]}", ValueError, "'model.placements[0].name' appears more than once"),
        ("on: 3", ValueError, "expected a name as a key, got 'on'; write it in quotes"),
        ("loop: &a {epochs: 3}\nloss: *a", ValueError, "loss: expected values written out, got an alias"),
        ("loop: &a [*a]", ValueError, "expected values written out, got an alias"),
        ("<<: {loop: {epochs: 3}}", ValueError, "expected a name as a key, got '<<'"),
        ("a: [", ValueError, "expected YAML"),
        ("loop: {epochs: 0}", ValueError, "loop.epochs: expected at least 1, got 0"),
        ("augmix: {severity: 11}", ValueError, "augmix.severity: expected a value in [1, 10], got 11"),
    ],
)
def test_refused(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        read(f"summary: s\n{text}")
    assert str(caught.value).startswith("mine.yaml: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (DataRecipe, {"name": "cifar"}, "DataRecipe: name: unknown 'cifar'; did you mean cifar10"),
        (DataRecipe, {"mean": [0.5]}, "std: expected numbers where mean has some"),
        (DataRecipe, {"mean": [0.5], "std": [1, 1]}, "std: expected as many numbers as mean has (1), got [1.0, 1.0]"),
        (DataRecipe, {"mean": [0.5], "std": [0]}, "std: expected numbers above 0"),
        (DataRecipe, {"validation": 1}, "validation: expected a value in [0, 1), got 1.0"),
        (PlacementRecipe, {"name": " "}, "name: expected a placement or a norm"),
        (ModelRecipe, {"name": "resnet50"}, "name: expected a library and a name such as 'shiftnorm/wide_resnet40_2'"),
        (ModelRecipe, {"name": "shiftnorm/resnet5"}, "name: unknown 'resnet5'; did you mean resnet50"),
        (OptimizerRecipe, {"learning_rate": 0}, "learning_rate: expected a value in (0, inf), got 0.0"),
        (OptimizerRecipe, {"momentum": 0}, "nesterov: expected false where momentum is 0"),
        (OptimizerRecipe, {"final_learning_rate": 1}, "final_learning_rate: expected at most learning_rate (0.1)"),
        (OptimizerRecipe, {"milestones": [3]}, "milestones: expected none with schedule: cosine, got [3]. Say"),
        (OptimizerRecipe, {"schedule": "steps"}, "milestones: expected one or more epochs"),
        (OptimizerRecipe, {"schedule": "steps", "milestones": [5, 5]}, "milestones: expected rising epochs from 1"),
        (OptimizerRecipe, {"schedule": "step"}, "schedule: expected one of 'cosine', 'steps', got 'step'"),
        (CrossNormRecipe, {"p": 1.5}, "p: expected a value in [0, 1], got 1.5"),
        (CrossNormRecipe, {"crop": "both"}, "crop: expected 'neither' unless images is true, got 'both'"),
        (
            CrossNormRecipe,
            {"statistics": "frozen"},
            "statistics: expected 'shared' unless consistency is above 0, got 'frozen'",
        ),
        (AugMixRecipe, {"depth": 0}, "depth: expected at least 1, or -1"),
        (LossRecipe, {"mixup": -1}, "mixup: expected at least 0, got -1.0"),
        (LoopRecipe, {"ema": 1}, "ema: expected a value in [0, 1), got 1.0"),
        (EvaluateRecipe, {"severities": [0]}, "severities: expected one or more numbers from 1 to 5"),
        (EvaluateRecipe, {"severities": []}, "severities: expected one or more numbers from 1 to 5"),
        (EvaluateRecipe, {"corruptions": ["fog", "fog"]}, "corruptions: expected different values"),
        (EvaluateRecipe, {"constants": "cifar"}, "constants: unknown 'cifar'; did you mean cifar32"),
        (TrainRecipe, {"summary": "a\nb"}, "summary: expected one line of text"),
    ],
)
def test_values_out_of_range(part: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        part(**values)
    assert str(caught.value).startswith(f"{part.__name__}: ") and message in str(caught.value)


@pytest.mark.parametrize(("interval", "fits"), [("[1, 2)", (1, 1.9)), ("(1, 2]", (1.1, 2)), ("[1, inf)", (1, 9))])
def test_ends_of_intervals(interval: str, fits: tuple[float, float]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Part:
        value: float

    for value in (0.9, 1, 1.1, 1.9, 2, 2.1, 9):
        inside = fits[0] <= value <= fits[1]
        try:
            check_ranges(Part(value), value=interval)
        except ValueError as fault:
            assert not inside and "Part: value: expected" in str(fault)
        else:
            assert inside


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (["loop.epochs"], ValueError, "expected KEY=VALUE such as loop.epochs=3, got 'loop.epochs'"),
        (["=3"], ValueError, "expected KEY=VALUE"),
        (["loop.epochs=3", "loop.epochs=4"], ValueError, "the key 'loop.epochs' appears more than once"),
        (["loop.epoch=3"], ValueError, "unknown key 'loop.epoch'; did you mean loop.epochs?"),
        (["epochs=3"], ValueError, "did you mean loop.epochs?"),
        (["loop={epochs: 3}"], ValueError, "loop is a group of keys; set them one by one, such as loop.epochs=..."),
        (["loop.epochs.x=3"], ValueError, "loop.epochs.x: loop.epochs has no keys to set"),
        (["model.placements.0.name=x"], ValueError, "model.placements has no keys to set; give its whole value"),
        (["optimizer.learning_rate=1e-3"], TypeError, "optimizer.learning_rate: expected float, got '1e-3'"),
        (["loop.epochs=0"], ValueError, "loop.epochs: expected at least 1"),
        (["data.root=[1"], ValueError, "--set data.root: expected YAML"),
        (["kind=compare"], ValueError, "unknown key 'kind'"),
    ],
)
def test_overrides_that_are_refused(settings: list[str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        override(RICH, settings)
    assert str(caught.value).startswith("--set") and message in str(caught.value)


def test_the_difference_is_what_was_overridden_and_overrides_again() -> None:
    settings = [
        "loop.epochs=3",
        "model.placements=[{name: rbn}]",
        "model.arguments.a=5",
        "data.limit=null",
        "evaluate.corruptions=common",
        "summary=another = one",
    ]
    changed = override(RICH, settings)
    found = difference(changed, RICH)
    assert [*found] == [
        "summary", "data.limit", "model.arguments", "model.placements", "loop.epochs", "evaluate.corruptions"
    ]  # fmt: skip
    assert found["model.arguments"] == {**RICH.model.arguments, "a": 5} and found["data.limit"] is None
    assert override(RICH, [f"{path}={yaml.safe_dump(value)}" for path, value in found.items()]) == changed
    assert difference(RICH, RICH) == {} and override(RICH, []) == RICH
    with pytest.raises(TypeError, match="expected two of a class, got TrainRecipe and LoopRecipe"):
        difference(RICH, LoopRecipe())


def test_writing() -> None:
    data = {"a": [1, 2], "b": [{"c": [None, "yes"]}], "d": "1e-3", "e": "é"}
    assert write(data).startswith("a: [1, 2]\nb:\n- c: [null, 'yes']\n") and parse(write(data), "x") == data
    assert parse_value("", "x") is None


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    for call in (lambda: parse("a: 1", "x"), lambda: to_yaml(RICH)):
        with pytest.raises(ModuleNotFoundError, match=r"PyYAML, which is not installed.*shiftnorm\[train\]"):
            call()
