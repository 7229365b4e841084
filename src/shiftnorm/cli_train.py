"""The verbs that train networks by recipes."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftnorm.cli_verb import TRAINING, add_verb, require, stopping_politely

if TYPE_CHECKING:
    from shiftnorm.fit import Stopped

__all__ = ["add_train_verbs"]


def add_train_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verbs train and compare-recipes.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_train_verbs(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        >>> parser.parse_args(["train", "small/cnsn", "--set", "loop.epochs=2", "--seed", "1"]).settings
        ['loop.epochs=2']

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
    """
    train = add_verb(
        verbs,
        common,
        "train",
        help="train a network by a recipe and measure it under corruption",
        description="Train the network of a recipe and measure it on clean and corrupted test images. Everything goes "
        "into one folder: the recipe with every default, checkpoints, metrics, the network, a record and a report. "
        "Ended in any way, by Ctrl-C, a scheduler or a loss of power, the same command continues.",
        examples=[
            "train small/cnsn",
            "train cifar10/wrn40_2/cnsn --data DIR --seed 1",
            "train cifar10/wrn40_2/base --data DIR --set loop.epochs=20 --set loop.precision=bf16",
            "train mine.yaml --data photos/ --out runs/mine",
            "train small/cnsn --limit-steps 20 --no-evaluate",
            "evaluate runs/train-small-cnsn-seed0/model.safetensors --data DIR",
        ],
    )
    train.add_argument("recipe", metavar="RECIPE", help="a recipe by name or file, see `shiftnorm recipes`")
    _add_recipe_options(train, "the recipe, such as loop.epochs=20")
    train.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/train-NAME-seedN)")
    train.add_argument("--seed", type=int, metavar="N", help="the same as --set loop.seed=N")
    train.add_argument("--no-evaluate", action="store_true", help="leave the measuring out")
    train.add_argument(
        "--limit-steps", type=int, metavar="N", help="stop after N optimizer steps; without it the run goes on"
    )
    train.set_defaults(run=_train)

    compare = add_verb(
        verbs,
        common,
        "compare-recipes",
        help="train several recipes with several seeds and compare them",
        description="Train and measure every recipe with every seed, each run in its own folder, and compare the "
        "recipes with the first: a table with intervals over seeds and over images, and a report. A run that fails is "
        "recorded and does not stop the others. Interrupted, the same command continues.",
        examples=[
            "compare-recipes small/base small/cn small/cnsn --seeds 0 1 2",
            "compare-recipes cifar10/wrn40_2/base cifar10/wrn40_2/cnsn --seeds 0 1 2 --data DIR",
            "compare-recipes small/base small/augmix --workers 2 --set loop.epochs=20 --out runs/augmix",
        ],
    )
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="by name or file; the first is compared to")
    compare.add_argument("--seeds", nargs="+", type=int, metavar="N", default=[0, 1, 2], help="default: 0 1 2")
    _add_recipe_options(compare, "every recipe")
    compare.add_argument("--out", metavar="DIR", help="where everything goes (default: runs/recipes- and their names)")
    compare.add_argument(
        "--workers", type=int, metavar="N", default=0,
        help="processes that train at the same time (default: 0, one run after the other in this one)",
    )  # fmt: skip
    compare.add_argument("--threads", type=int, metavar="N", default=1, help="torch threads per process (default: 1)")
    compare.set_defaults(run=_compare_recipes)


def _add_recipe_options(verb: argparse.ArgumentParser, whose: str) -> None:
    verb.add_argument("--data", metavar="DIR", help="where the images lie; not needed for digits")
    verb.add_argument(
        "--set", dest="settings", action="append", metavar="A.B=C", default=[],
        help=f"another value for a key of {whose}; repeatable",
    )  # fmt: skip


def _train(options: argparse.Namespace) -> int:
    require("train", *TRAINING)
    if options.limit_steps is not None and options.limit_steps < 1:
        raise ValueError(f"train: expected --limit-steps of at least 1, got {options.limit_steps}.")
    from shiftnorm.fit import Stopped, train
    from shiftnorm.fit.engine import number_of_process
    from shiftnorm.fit.grid import name_of_folder
    from shiftnorm.recipe_tree import override
    from shiftnorm.train_recipe import load_train_recipe

    seed = [] if options.seed is None else [f"loop.seed={options.seed}"]
    recipe = override(load_train_recipe(options.recipe), [*options.settings, *seed])
    folder = f"train-{name_of_folder(options.recipe)}-seed{recipe.loop.seed}"
    out = Path("runs", folder) if options.out is None else Path(options.out)
    try:
        result = train(
            recipe,
            out=out,
            data_root=options.data,
            name=options.recipe.removesuffix(".yaml"),
            evaluate=not options.no_evaluate,
            limit_steps=options.limit_steps,
            command=options.command,
            say=_say,
        )
    except Stopped as stopped:
        return _tell_of(stopped, options)
    if number_of_process(recipe.loop) == 0:
        _say(f"Folder: {result.folder}")
    return 0


def _compare_recipes(options: argparse.Namespace) -> int:
    require("train", *TRAINING)
    if options.workers < 0 or options.threads < 1:
        raise ValueError("compare-recipes: expected --workers of at least 0 and --threads of at least 1.")
    from shiftnorm.fit import Stopped, compare_recipes
    from shiftnorm.recipe_tree import override
    from shiftnorm.train_recipe import load_train_recipe

    names = [name.removesuffix(".yaml") for name in options.recipes]
    recipes = [override(load_train_recipe(name), options.settings) for name in options.recipes]
    if len(set(names)) < len(names):
        raise ValueError(f"compare-recipes: expected different recipes, got {', '.join(names)}.")
    out = _default_folder(names, options.settings) if options.out is None else Path(options.out)
    try:
        with stopping_politely():
            grid = compare_recipes(
                dict(zip(names, recipes, strict=True)),
                options.seeds,
                out=out,
                data_root=options.data,
                workers=options.workers,
                threads=options.threads,
                command=options.command,
                say=_say,
            )
    except Stopped as stopped:
        return _tell_of(stopped, options)
    _say(f"\n{grid.table}\nReport: {grid.report}")
    if grid.failed:
        print(f"shiftnorm: {len(grid.failed)} of {len(grid.records)} runs failed, see above.", file=sys.stderr)
        return 1
    return 0


def _tell_of(stopped: Stopped, options: argparse.Namespace) -> int:
    print(f"\nshiftnorm: {stopped}; the same command continues from there: {options.command}", file=sys.stderr)
    return stopped.status


def _say(line: str) -> None:
    print(line, flush=True)


def _default_folder(names: Sequence[str], settings: Sequence[str]) -> Path:
    """A folder for every comparison, so that another one does not meet its runs."""
    from shiftnorm.fit.grid import name_of_folder

    shown = "-".join(map(name_of_folder, names))[:80]
    changed = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:8]
    return Path("runs", f"recipes-{shown}" + (f"-{changed}" if settings else ""))
