"""Every recipe that comes with the package: its command, its values, its network."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from shiftnorm import norms
from shiftnorm.models import create_model
from shiftnorm.recipe_files import list_recipes, resolve, text_of
from shiftnorm.recipe_tree import build, difference, override, to_yaml
from shiftnorm.recipe_yaml import parse
from shiftnorm.surgery import build_model, convert
from shiftnorm.train_recipe import TrainRecipe, load_train_recipe

NAMES = [name for name in list_recipes() if not name.startswith("compare-")]
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits": 10}
RUNS = ("base", "cn", "sn", "cnsn", "cnsn-consist", "augmix", "cnsn-augmix")
NETS = {"AllConv": "allconv", "DenseNet": "densenet40_12", "ResNeXt": "resnext29", "WRN": "wrn40_2"}

# The settings of the authors' 40 scripts: position / probability / active layers / crop; AllConv's positions 1, 2, 3.
SCRIPTS = """
| data, run | AllConv | DenseNet | ResNeXt | WRN |
| C10 cn | 1/.5/1/neither | conv1_pre/.25/1/neither | post/.5/1/neither | post/.5/2/neither |
| C10 sn | 1 | conv1_post | pre | pre |
| C10 cnsn | 1/.5/2/style | conv1_pre/.5/1/both | post/.25/1/neither | post/.25/2/both |
| C10 cnsn-consist | 1/.75/2/style | conv1_pre/.25/1/content | post/.5/1/neither | post/.75/2/both |
| C10 cnsn-augmix | 1/.25/1/style | conv1_pre/.5/2/both | post/.25/1/neither | post/.75/1/style |
| C100 cn | 1/.5/1/neither | conv1_pre/.25/1/neither | post/.25/1/neither | post/.5/2/neither |
| C100 sn | 1 | conv1_pre | residual | post |
| C100 cnsn | 1/.5/1/style | conv1_pre/.25/2/both | post/.5/1/neither | post/.25/2/both |
| C100 cnsn-consist | 1/.25/1/style | conv1_pre/.25/2/neither | post/.25/1/neither | post/.5/2/both |
| C100 cnsn-augmix | 1/.25/1/style | conv1_pre/.5/1/both | post/.5/1/neither | post/.25/2/both |
"""


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


HEAD, *ROWS = rows_of(SCRIPTS)
CELLS = [
    (row[0].split()[0].replace("C", "cifar"), NETS[net], row[0].split()[1], cell)
    for row in ROWS
    for net, cell in zip(HEAD[1:], row[1:], strict=True)
]


def slots_of(recipe: TrainRecipe) -> dict[str, Any]:
    """Norm factories by the constructor's slots, from the recipe's only placement."""
    (placement,) = recipe.model.placements
    name, _, slot = placement.name.partition("@")
    norm = {"cnsn": norms.CNSN, "selfnorm": norms.SelfNorm, "crossnorm": norms.CrossNorm}[name]
    return {slot: lambda channels: norm(channels, **placement.arguments)}


@cache
def network(name: str) -> nn.Module:
    """A recipe's network on the meta device; tests only look at it."""
    recipe, classes = load_train_recipe(name).model, CLASSES[load_train_recipe(name).data.name]
    arguments = {key: value for key, value in recipe.arguments.items() if key != "weights"}  # nothing is downloaded
    with torch.device("meta"):
        model = build_model(recipe.name, num_classes=classes, **arguments)
        for placement in recipe.placements:
            where = list(placement.where) or None
            model, report = convert(model, placement.name, where, preserve=False, **placement.arguments)
            assert len(report) and not report.skipped
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_there_is_one_for_everything_that_was_promised() -> None:
    cifar = {f"{data}/{net}/{run}" for data in ("cifar10", "cifar100") for net in NETS.values() for run in RUNS}
    resnets = {f"{data}/resnet18/{run}" for data in ("cifar10", "cifar100") for run in ("base", "bin", "rbn", "switch")}
    runs = ("base", "ibn-a", "ibn-b", "rbn", "cn", "sn", "cnsn", "cnsn-consist", "cnsn-ibn-augmix")
    small = {f"small/{run}" for run in (*RUNS, "image-cn", "mixup")}
    compared = {*("base", "cn", "sn", "cnsn", "augmix", "cnsn-augmix"), *("ibn-a", "rbn", "mixstyle")}
    small |= {f"small/cifar10/{run}" for run in compared}
    assert {*NAMES} == cifar | resnets | small | {f"imagenet/resnet50/{run}" for run in runs}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_loaded_printed_back_and_builds_its_network(name: str) -> None:
    recipe = load_train_recipe(name)
    mapping = parse(to_yaml(recipe), name)
    assert mapping.pop("kind") == "train" and build(TrainRecipe, mapping, name) == recipe
    data = "" if recipe.data.name == "digits" else " --data DIR"
    assert text_of(name).splitlines()[0] == f"# shiftnorm train {name}{data}"
    assert recipe.source and len(recipe.summary) < 120
    assert (recipe.data.mean is not None) and recipe.evaluate.constants == (
        "imagenet224" if recipe.data.size == 224 else "cifar32"
    )
    model = network(name)
    layers = sum(isinstance(module, norms.CrossNorm) for module in model.modules())
    acts = (recipe.crossnorm.images, layers > 0)
    said = "cn" in name.rpartition("/")[2]
    assert any(acts) == said and not all(acts)
    assert layers == 0 or recipe.crossnorm.active_num <= layers
    assert recipe.crossnorm.consistency == 0 or any(acts)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_states_what_differs(name: str) -> None:
    levels = resolve(name)
    stated = parse(text_of(name), name)
    base = stated.pop("extends", None)
    if base is None:
        assert name in ("cifar10/wrn40_2/base", "imagenet/resnet50/base", "small/base")
        return
    assert levels[-2].name == base
    changes = difference(load_train_recipe(name), load_train_recipe(base))
    assert "summary" in changes
    # a method's own settings are written out where it comes in, whatever the defaults are
    groups = {path.partition(".")[0] for path in changes}
    assert {*stated} <= groups | {"crossnorm", "augmix"}


@pytest.mark.parametrize(("data", "net", "run", "cell"), CELLS, ids=lambda value: str(value).replace("/", "-"))
def test_the_settings_are_those_of_the_authors_scripts(data: str, net: str, run: str, cell: str) -> None:
    recipe = load_train_recipe(f"{data}/{net}/{run}")
    position, *rest = cell.split("/")
    probability, active, crop = rest or ("0.5", "1", "neither")
    (placement,) = recipe.model.placements
    norm = {"cn": "crossnorm", "sn": "selfnorm"}.get(run, "cnsn")
    assert placement.name == f"{norm}@{'conv' if position == '1' else position}"
    assert placement.arguments.get("crop", "neither") == crop and not placement.where
    assert recipe.crossnorm.p == float(probability) and recipe.crossnorm.active_num == int(active)
    assert recipe.crossnorm.consistency == (10 if run in ("cnsn-consist", "cnsn-augmix") else 0)
    assert recipe.crossnorm.statistics == "shared" and not recipe.crossnorm.images
    assert recipe.augmix.enabled == (run == "cnsn-augmix")
    # the network that surgery makes is the one the constructor makes with its slots
    with torch.device("meta"):
        built = create_model(
            recipe.model.name.partition("/")[2],
            num_classes=CLASSES[data],
            **recipe.model.arguments,
            slots=slots_of(recipe),
        )
    made = network(f"{data}/{net}/{run}")
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (built, made)]
    assert shapes[0] == shapes[1]
    paths = [
        [(path, repr(module)) for path, module in model.named_modules() if isinstance(module, norms.CrossNorm)]
        for model in (built, made)
    ]
    assert paths[0] == paths[1] and (len(paths[0]) > 0) == (run != "sn")


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("net", "model", "epochs", "decay"),
    [
        ("allconv", "all_conv", 100, 5e-4),
        ("wrn40_2", "wide_resnet40_2", 100, 5e-4),
        ("densenet40_12", "densenet40_12", 200, 1e-4),
        ("resnext29", "resnext29_4x32", 200, 5e-4),
    ],
)
def test_schedules_on_cifar(data: str, net: str, model: str, epochs: int, decay: float) -> None:
    for run in RUNS:
        recipe = load_train_recipe(f"{data}/{net}/{run}")
        half = (data, run) == ("cifar100", "cnsn-consist") and net in ("resnext29", "densenet40_12")
        lower = half and net == "resnext29"
        assert recipe.model.name == f"shiftnorm/{model}" and recipe.data.name == data
        assert (recipe.loop.epochs, recipe.loop.seed, recipe.loop.batch_size) == (epochs, 1, 64 if half else 128)
        assert recipe.data.mean == recipe.data.std == (0.5, 0.5, 0.5)
        assert (recipe.data.size, recipe.data.crop, recipe.data.pad, recipe.data.flip) == (32, "pad", 4, True)
        optimizer = recipe.optimizer
        assert (optimizer.learning_rate, optimizer.final_learning_rate) == (0.05 if lower else 0.1, 1e-6)
        assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, True, decay)
        assert optimizer.schedule == "cosine" and optimizer.warmup == 0 and optimizer.clip is None
        mixed = recipe.augmix
        assert mixed.enabled == run.endswith("augmix") and not mixed.all_operations
        assert (mixed.severity, mixed.width, mixed.depth, mixed.alpha, mixed.consistency) == (3, 3, -1, 1, 12)


@pytest.mark.parametrize(
    ("run", "placements", "batch", "images", "epochs", "milestones"),
    [
        ("base", [], 256, None, 90, (30, 60)),
        ("ibn-a", ["ibn_a"], 256, None, 100, (30, 60, 90)),
        ("ibn-b", ["ibn_b"], 256, None, 100, (30, 60, 90)),
        ("rbn", ["rbn"], 256, None, 90, (30, 60)),
        ("cn", [], 128, "both", 90, (30, 60)),
        ("sn", ["selfnorm@post"], 128, None, 90, (30, 60)),
        ("cnsn", ["selfnorm@post"], 128, "neither", 90, (30, 60)),
        ("cnsn-consist", ["selfnorm@post"], 128, "both", 90, (30, 60)),
        ("cnsn-ibn-augmix", ["ibn_b", "selfnorm@residual"], 256, "neither", 90, (30, 60)),
    ],
)
def test_settings_on_imagenet(
    run: str, placements: list[str], batch: int, images: str | None, epochs: int, milestones: tuple[int, ...]
) -> None:
    recipe = load_train_recipe(f"imagenet/resnet50/{run}")
    optimizer, crossnorm, augmix = recipe.optimizer, recipe.crossnorm, recipe.augmix
    assert [placement.name for placement in recipe.model.placements] == placements
    assert (recipe.loop.batch_size, recipe.loop.epochs, optimizer.milestones) == (batch, epochs, milestones)
    assert optimizer.learning_rate == pytest.approx(0.1 * batch / 256) and optimizer.factor == 10
    assert (optimizer.schedule, optimizer.nesterov, optimizer.weight_decay) == ("steps", False, 1e-4)
    assert (recipe.data.size, recipe.data.crop, recipe.data.flip) == (224, "resized", True)
    assert recipe.data.mean == (0.485, 0.456, 0.406) and recipe.data.std == (0.229, 0.224, 0.225)
    assert (crossnorm.images, crossnorm.crop) == (images is not None, images or "neither")
    assert crossnorm.p == 0.5 and crossnorm.consistency == (10 if run == "cnsn-consist" else 0)
    assert augmix.enabled == (run == "cnsn-ibn-augmix") and (not augmix.enabled or augmix.severity == 1)
    assert ("weights" in recipe.model.arguments) == (run == "cn")


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_settings_of_other_norms_on_cifar(data: str) -> None:
    for run, placements in (("base", []), ("bin", ["bin"]), ("rbn", ["rbn"]), ("switch", ["switch"])):
        recipe = load_train_recipe(f"{data}/resnet18/{run}")
        optimizer = recipe.optimizer
        assert [placement.name for placement in recipe.model.placements] == placements
        assert (recipe.loop.epochs, optimizer.milestones, optimizer.schedule) == (164, (81, 122), "steps")
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.nesterov) == (0.1, 1e-4, False)
        assert recipe.data.name == data and recipe.model.arguments == {"stem": "cifar"}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 10 outputs; 100 outputs add 90 times the features and a bias
        ("cifar10/wrn40_2/base", 2_243_546),
        ("cifar100/wrn40_2/base", 2_243_546 + 90 * 129),
        ("cifar10/allconv/base", 1_409_674),
        ("cifar100/allconv/base", 1_409_674 + 90 * 193),
        ("cifar10/densenet40_12/base", 1_059_298),
        ("cifar100/densenet40_12/base", 1_059_298 + 90 * 457),
        ("cifar10/resnext29/base", 6_807_882),
        ("cifar100/resnext29/base", 6_807_882 + 90 * 1025),
        ("cifar10/resnet18/base", 11_173_962),
        ("imagenet/resnet50/base", 25_557_032),
        # SelfNorm has four parameters per channel; counted on the authors' networks
        ("cifar10/wrn40_2/cnsn", 2_243_546 + 5_376),
        ("cifar10/allconv/cnsn", 1_409_674 + 5_760),
        ("cifar10/densenet40_12/cnsn", 1_059_298 + 33_696),
        ("cifar10/resnext29/cnsn", 6_807_882 + 21_504),
        ("imagenet/resnet50/sn", 25_617_448),
        ("imagenet/resnet50/ibn-a", 25_557_032),
        ("imagenet/resnet50/ibn-b", 25_557_032 + 2 * (256 + 512)),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert count(network(name)) == parameters


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("small/")])
def test_small_recipes_run_forwards_and_are_short(name: str) -> None:
    recipe = override(load_train_recipe(name), ["loop.threads=1"])
    assert recipe.loop.epochs <= 30
    assert (recipe.data.name, recipe.data.limit) == (("cifar10", 1000) if "cifar10" in name else ("digits", None))
    model = build_model(recipe.model.name, num_classes=10, **recipe.model.arguments)
    for placement in recipe.model.placements:
        model, _ = convert(model, placement.name, preserve=False, **placement.arguments)
    assert count(model) < 300_000
    assert model(torch.randn(4, 3, 32, 32)).isfinite().all()
