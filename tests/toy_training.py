"""A small network with places for everything training can switch, and recipes and batches for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from shiftnorm.norms import CNSN, BatchNorm, CrossNorm, SelfNorm
from shiftnorm.tasks import Classify, Normalize, Objective
from shiftnorm.train_recipe import AugMixRecipe, CrossNormRecipe, LoopRecipe, LossRecipe, OptimizerRecipe, TrainRecipe

CLASSES = 5


def network(crop: Any = "neither", *, crossnorm: bool = True) -> nn.Sequential:
    """Convolutions with torch's and our BatchNorm, SelfNorm and two CrossNorms; the same weights every time."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        CNSN(4, crop=crop) if crossnorm else SelfNorm(4),
        nn.Conv2d(4, 6, 3, stride=2),
        BatchNorm(6),
        nn.ReLU(),
        CrossNorm(6, crop=crop) if crossnorm else nn.Identity(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def batch(count: int = 8, seed: int = 1, size: int = 12) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, size, size), generator=generator).to(torch.uint8)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def recipe(
    *,
    crossnorm: dict[str, Any] | None = None,
    augmix: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **loop: Any,
) -> TrainRecipe:
    """A recipe of these parts; CrossNorm never acts unless asked for."""
    return TrainRecipe(
        "toy",
        crossnorm=CrossNormRecipe(**{"p": 0.0, **(crossnorm or {})}),
        augmix=AugMixRecipe(**(augmix or {})),
        loss=LossRecipe(**(loss or {})),
        optimizer=OptimizerRecipe(**(optimizer or {})),
        loop=LoopRecipe(**{"epochs": 1, **loop}),
    )


class Watched:
    """An objective on a toy network, and what the network was given, answered and had switched on in each pass."""

    def __init__(self, model: nn.Sequential, **parts: Any) -> None:
        self.model, self.normalize = model, Normalize()
        self.objective = Objective.of(recipe(**parts), model, self.normalize, classes=CLASSES)
        self.layers = [module for module in model.modules() if isinstance(module, CrossNorm)]
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.active: list[list[bool]] = []
        model.register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.append(inputs[0])
        self.outputs.append(output)
        self.active.append([bool(layer.active) for layer in self.layers])

    def __call__(self, images: Tensor, labels: Tensor, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        for seen in (self.inputs, self.outputs, self.active):
            seen.clear()
        return self.objective(images, labels, step)


class Given:
    """Batches that are given, as a trainer takes them: a plain list would be a list of loaders."""

    def __init__(self, batches: list[tuple[Tensor, ...]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self.batches)


def trainer(**options: Any) -> L.Trainer:
    """One process on the CPU that writes nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(**{"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, **quiet, **options})


def task(model: nn.Module, batches_per_epoch: int, plan: TrainRecipe) -> Classify:
    """The task of a recipe, for images that are standardised by round numbers."""
    numbers: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": CLASSES}
    return Classify.of(plan, model, batches_per_epoch=batches_per_epoch, **numbers)
