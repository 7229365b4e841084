"""One run: its data, its network, trained by Lightning and measured; and its single training step, for timing."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch

from shiftnorm.data import ImageSet, digits_on_photos, load_folder
from shiftnorm.evaluate.sweep import sweep
from shiftnorm.recipe import CompareRecipe
from shiftnorm.tasks import Classify
from shiftnorm.tasks.generator_batches import GeneratorBatches
from shiftnorm.trained import pack_network
from shiftnorm.variants import build

OnProgress = Callable[[float, str], object]


class Data(NamedTuple):
    """Training and test images and what identifies them.

    Example:
        >>> images = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ("a", "b"), "toy")
        >>> Data(images, images).describe()["train"]
        2
    """

    train: ImageSet
    test: ImageSet
    left_out: tuple[str, ...] = ()
    """Files that could not be read, from the folder on."""

    def sha256(self) -> str:
        """Digest of all pixels and labels, in order."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for tensor in (part.images, part.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Name, digest, sizes and classes, as records keep them."""
        return {
            "name": self.train.name,
            "sha256": self.sha256(),
            "train": len(self.train),
            "test": len(self.test),
            "size": list(self.train.images.shape[2:]),
            "classes": list(self.train.classes),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }


def load_data(recipe: CompareRecipe, folder: Path | None, *, on_error: Literal["raise", "skip"] = "raise") -> Data:
    """Load the images of a comparison.

    Example:
        >>> from shiftnorm.recipe import load_recipe
        >>> data = load_data(load_recipe("compare-digits").changed(limit=5), None)
        >>> len(data.train), len(data.test)
        (50, 50)

    Args:
        recipe: gives size, test fraction and limit.
        folder: in ImageFolder layout; None for the embedded digits.
        on_error: what becomes of files that cannot be read as images: "raise", or "skip" and list them.

    Returns:
        Training and test images.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder without images, with one class, or with an image that cannot be read.
    """
    if folder is not None:
        train, test, left_out = load_folder(
            folder, recipe.size, test_fraction=recipe.test_fraction, limit=recipe.limit, seed=0, on_error=on_error
        )
        return Data(train, test, tuple(os.path.relpath(each, folder) for each in left_out))
    train, test = digits_on_photos(seed=0, size=recipe.size)
    return Data(_limit(train, recipe.limit), _limit(test, recipe.limit))


def _limit(images: ImageSet, limit: int | None) -> ImageSet:
    """At most `limit` images of every class, as `load_folder` counts."""
    if limit is None:
        return images
    classes = range(len(images.classes))
    return images.subset(torch.cat([(images.labels == label).nonzero().flatten()[:limit] for label in classes]))


class _ProgressCallback(L.Callback):
    """Forwards Lightning's steps to a progress display."""

    def __init__(self, on_progress: OnProgress, steps: int) -> None:
        self.on_progress, self.steps, self.last = on_progress, steps, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if now - self.last > 0.2:
            self.last = now
            text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.on_progress(trainer.global_step / self.steps, text)


def _make_task(recipe: CompareRecipe, norm: str, seed: int, train: ImageSet, steps: int) -> Classify:
    torch.manual_seed(seed)
    network = build(
        norm,
        depth=recipe.depth,
        widen_factor=recipe.widen_factor,
        num_classes=len(train.classes),
        dropout=recipe.dropout,
        seed=seed,
    )
    scaled = train.images.float().div(255)
    return Classify(
        network.model,
        steps=steps,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        mean=tuple(scaled.mean((0, 2, 3)).tolist()),
        std=tuple(scaled.std((0, 2, 3)).clamp_min(1e-3).tolist()),
        channels_last=recipe.channels_last,
        before_step=network.before_step,
    )


def _make_batches(recipe: CompareRecipe, train: ImageSet, seed: int) -> GeneratorBatches:
    return GeneratorBatches(
        train.images.to(recipe.device),
        train.labels.to(recipe.device),
        batch_size=recipe.batch_size,
        shift=recipe.shift,
        flip=recipe.flip,
        seed=seed,
    )


def train_and_evaluate(
    recipe: CompareRecipe, norm: str, seed: int, data: Data, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Train one network with Lightning and measure it, clean and corrupted.

    Example:
        >>> from shiftnorm.recipe import load_recipe
        >>> recipe = load_recipe("compare-digits").changed(limit=4, epochs=1, corruptions=["contrast"])
        >>> data = load_data(recipe, None)
        >>> results = train_and_evaluate(recipe, "BatchNorm", 0, data, on_progress=lambda part, text: None)
        >>> len(results["corruption_errors"]["contrast"])
        5

    Args:
        recipe: how to train and what to measure.
        norm: the variant.
        seed: of initial weights, batch order and augmentation.
        data: training and test images.
        on_progress: gets the finished part (0 to 1) and a text; None shows Lightning's own progress bar
            where there is a terminal.

    Returns:
        The result fields of a `Record`; and ``"network"``, the content of a file that holds the network.

    Raises:
        ArithmeticError: if the loss stops being finite.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    batches = _make_batches(recipe, data.train, seed)
    steps = recipe.epochs * len(batches)
    task = _make_task(recipe, norm, seed, data.train, steps)
    trainer = L.Trainer(
        accelerator="gpu" if recipe.device == "cuda" else "cpu",
        devices=1,
        max_epochs=recipe.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=on_progress is None and sys.stdout.isatty(),
        callbacks=[] if on_progress is None else [_ProgressCallback(on_progress, steps)],
    )
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 with torch 2.14, about a test inside Lightning that users cannot change
            warnings.filterwarnings("ignore", message=".*LeafSpec")
            trainer.fit(task, batches)
    except SystemExit as stop:
        # Lightning answers Ctrl-C by leaving the whole program; here the caller still has to report what is finished.
        raise KeyboardInterrupt from stop
    trained = time.perf_counter()
    result = sweep(
        task.to(recipe.device),
        data.test,
        recipe.corruptions,
        recipe.severities,
        seed=recipe.corruption_seed,
        on_cell=None if on_progress is None else (lambda name: on_progress(1.0, f"evaluating {name}")),
    )
    return {
        "clean_error": result.clean_error,
        "corruption_errors": result.corruption_errors,
        "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "history": {"loss": task.epoch_losses},
        "durations": {"train_s": trained - start, "evaluate_s": time.perf_counter() - trained},
        "network": pack_network(
            task.model,
            norm=norm,
            seed=seed,
            depth=recipe.depth,
            widen_factor=recipe.widen_factor,
            classes=data.train.classes,
            mean=task.mean.flatten().tolist(),
            std=task.std.flatten().tolist(),
            images={
                "name": data.train.name,
                "sha256": data.sha256(),
                "size": recipe.size,
                "test_fraction": recipe.test_fraction,
                "limit": recipe.limit,
            },
        ),
    }


def make_step(recipe: CompareRecipe, norm: str, train: ImageSet) -> Callable[[], None]:
    """One training step of a fresh network on a fixed batch, to be timed.

    Example:
        >>> from shiftnorm.recipe import load_recipe
        >>> recipe = load_recipe("compare-digits").changed(limit=4)
        >>> step = make_step(recipe, "SelfNorm", load_data(recipe, None).train)
        >>> step()

    Args:
        recipe: gives the network and the optimizer.
        norm: the variant.
        train: where the batch comes from.

    Returns:
        A function that runs forward, backward and the optimizer.
    """
    images, labels = next(iter(_make_batches(recipe, train, seed=0)))
    task = _make_task(recipe, norm, 0, train, steps=1).to(recipe.device).train()
    optimizer = torch.optim.SGD(
        task.parameters(), 1e-3, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )

    def step() -> None:
        optimizer.zero_grad()
        task.loss(images, labels).backward()
        optimizer.step()

    return step
