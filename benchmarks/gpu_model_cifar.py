"""Training steps and epochs of a CIFAR network by the project's own recipes, data path and trainer."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gpu_model_steps import Case, Sizes, Step, forget_compiled, prepare, release, wait
from measure import spread
from shiftnorm.data import Dataset
from shiftnorm.fit.checkpoints import CheckpointFolder
from shiftnorm.fit.data import FitData
from shiftnorm.fit.engine import make_trainer, settled
from shiftnorm.fit.keeping import Keeping
from shiftnorm.fit.network import build_network
from shiftnorm.fit.stopping import StopSignals
from shiftnorm.fit.watching import Watching
from shiftnorm.recipe_tree import override
from shiftnorm.tasks import Classify
from shiftnorm.train_recipe import TrainRecipe, load_train_recipe

# Recipes of cifar10/wrn40_2 and what each is compared with.
RECIPES: dict[str, tuple[str, ...]] = {"base": (), "cnsn": ("base",)}


def cifar_cases(mode: str, precision: str, sizes: Sizes, device: str) -> dict[str, Case]:
    return {
        name: Case(name, "channels_last", against, partial(_step, name, mode, precision, sizes, device))
        for name, against in RECIPES.items()
    }


def recipe_of(name: str, precision: str, sizes: Sizes, device: str) -> TrainRecipe:
    """A recipe of the published trainings, with other lengths."""
    changed = [
        f"model.name={sizes.cifar_model}",
        f"loop.epochs={sizes.epochs}",
        f"loop.batch_size={sizes.cifar_batch}",
        f"loop.precision='{precision}'",
        f"loop.device={device}",
    ]
    return override(load_train_recipe(f"cifar10/wrn40_2/{name}"), changed)


@cache
def random_data(count: int) -> FitData:
    """Random images in the form of CIFAR-10's."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (count,), generator=draw)
    data = Dataset.of_images("random", images, labels, tuple("0123456789"))
    return FitData(data, None, data, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def task_of(name: str, mode: str, recipe: TrainRecipe, batches: Any, sizes: Sizes, dynamic: bool | None) -> Classify:
    """The task that ``shiftnorm train`` makes of a recipe."""
    data = random_data(sizes.cifar_images)
    classes = len(data.train.classes)
    model = build_network(recipe.model, classes, 32, seed=recipe.loop.seed, say=_silent)
    prepare(model, mode, sizes, ours=name != "base", dynamic=dynamic)
    return Classify.of(recipe, model, batches_per_epoch=len(batches), mean=data.mean, std=data.std, classes=classes)


def _step(name: str, mode: str, precision: str, sizes: Sizes, device: str) -> Step:
    recipe = recipe_of(name, precision, sizes, device)
    batches = random_data(sizes.cifar_images).batches(
        recipe.data, batch_size=sizes.cifar_batch, seed=0, device=torch.device(device), drop_last=True
    )
    task = task_of(name, mode, recipe, batches, sizes, False).to(device).train()
    objective, stream = task.objective, _endless(batches)
    assert objective is not None
    optimizer: Any = task.configure_optimizers()["optimizer"]
    done = 0

    def loss() -> Tensor:
        nonlocal done
        images, labels, _ = next(stream)
        done += 1
        return objective(images, labels, done - 1)[0]

    return Step(loss, optimizer, device=device, precision=precision)


def _endless(batches: Any) -> Iterator[Sequence[Tensor]]:
    while True:
        yield from batches


def epoch_rows(mode: str, precision: str, sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Whole epochs as ``shiftnorm train`` runs them: trainer, guard, loggers and checkpoints included."""
    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        row: dict[str, Any] = {"network": name, "layout": "channels_last"}
        try:
            row |= _epochs(name, mode, precision, sizes, device)
        except Exception as error:  # a recipe that cannot run is a result, and the other one still counts
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        forget_compiled()
        release(device)
        rows.append(row)
    return rows


class _Stamps(L.Callback):
    """The time at the start of every epoch and at the end of the last one."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        wait(self.device)
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        wait(self.device)
        self.times.append(time.perf_counter())


def _epochs(name: str, mode: str, precision: str, sizes: Sizes, device: str) -> dict[str, Any]:
    recipe = recipe_of(name, precision, sizes, device)
    loop, place = recipe.loop, torch.device(device)
    stamps = _Stamps(device)
    with tempfile.TemporaryDirectory() as folder, settled(loop), StopSignals() as stop:
        batches = random_data(sizes.cifar_images).batches(
            recipe.data, batch_size=loop.batch_size, seed=loop.seed, device=place
        )
        # the last batch of an epoch is smaller, and loop.compile leaves such things to the compiler
        task = task_of(name, mode, recipe, batches, sizes, None)
        watching = Watching(
            steps=task.steps, epochs=loop.epochs, images_per_batch=loop.batch_size, say=_silent, on_progress=_silent
        )
        checkpoints = CheckpointFolder(Path(folder) / "checkpoints", say=_silent)
        callbacks = [watching, Keeping(stop, batches, say=_silent), stamps]
        trainer = make_trainer(loop, Path(folder), checkpoints, callbacks, device=place, say=_silent)
        trainer.fit(task, batches)
    # from the start of an epoch to that of the next: order, checkpoint and logs included; the first one warms up
    first, *epochs = [later - earlier for earlier, later in zip(stamps.times, stamps.times[1:], strict=False)]
    return {
        "steps": len(batches),
        "first_epoch_s": first,
        "epoch_s": spread(epochs),
        "epochs": len(epochs),
        "finite": all(math.isfinite(loss) for loss in watching.epoch_losses),
    }


def _silent(*_: object) -> None:
    pass
