"""Small training runs that the tests of `shiftnorm.fit` make, and what is compared of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from shiftnorm.fit import TrainResult, train
from shiftnorm.recipe_tree import override
from shiftnorm.train_recipe import TrainRecipe

# Six steps in each of three epochs, with everything that has a state: EMA, CrossNorm's draws, running statistics,
# momentum, schedule, augmentation.
SETTINGS = (
    "data.limit=6",
    "model.name=shiftnorm/all_conv",
    "model.arguments={width: 4}",
    "model.placements=[{name: cnsn@conv}]",
    "loop.epochs=3",
    "loop.batch_size=10",
    "loop.device=cpu",
    "loop.threads=1",
    "loop.ema=0.9",
    "evaluate.corruptions=[contrast]",
    "evaluate.severities=[5]",
    "evaluate.limit=40",
)
STEPS = 18

# For tests that fork, as starting Python anew takes most of the time; a forked process is killed like any other.
FORKS = [
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork"),
    # Python 3.12 warns of the parent's threads, which the children here do without
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def fork(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start a process that does some work."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def small_recipe(*settings: str) -> TrainRecipe:
    """A run of seconds, with changes."""
    changed = {setting.partition("=")[0] for setting in settings}
    kept = [setting for setting in SETTINGS if setting.partition("=")[0] not in changed]
    return override(TrainRecipe(summary="a test"), [*kept, *settings])


def run(out: Path, *settings: str, **options: Any) -> TrainResult:
    """Train quietly and without evaluation."""
    return train(small_recipe(*settings), out=out, **{"say": lambda line: None, "evaluate": False, **options})


def weights_of(out: Path) -> dict[str, Tensor]:
    """The final weights of a run."""
    return load_file(out / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    """Fail unless two runs ended with the same bits."""
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    differing = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    assert not differing, f"{len(differing)} of {len(ours)} tensors differ, such as {differing[:3]}"


def make_pictures(folder: Path, size: int = 40) -> Path:
    """A folder of pictures with train and test parts, no two alike."""
    for part, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                shade = (number * 16, 128 if name == "cat" else 64, 200)
                Image.new("RGB", (size, size), shade).save(folder / part / name / f"{number}.png")
    return folder
