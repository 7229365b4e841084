"""Lightning's trainer, set up for one run: device, processes, precision, loggers, callbacks."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from shiftnorm.fit.checkpoints import CheckpointFiles, CheckpointFolder
from shiftnorm.fit.metrics import MetricFiles
from shiftnorm.train_recipe import LoopRecipe

__all__ = ["choose_device", "make_trainer", "number_of_process", "settled"]

_PRECISIONS: Final[dict[str, Any]] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# Said by Lightning about itself, or about loaders of another kind than ours.
_NOISE: Final = (
    ".*LeafSpec",
    ".*does not have many workers",
    ".*`lightning.pytorch` package is not",
    ".*isinstance\\(treespec",
    # the averaged weights are, on purpose
    ".*in eval mode at the start of training",
)
_TOLD: set[str] = set()


def choose_device(loop: LoopRecipe) -> torch.device:
    """The kind of device a run uses.

    Example:
        >>> choose_device(LoopRecipe(device="cpu"))
        device(type='cpu')

    Args:
        loop: with "auto", CUDA is used where there is any.

    Returns:
        The device, of this process where there are several.

    Raises:
        ValueError: if there are fewer CUDA devices than asked for.
    """
    if loop.device == "cpu" or (loop.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if found < loop.processes:
        raise ValueError(
            f"train: expected {loop.processes} CUDA devices, as loop.device and loop.processes say, found {found}; use "
            "--set loop.device=cpu, or fewer processes."
        )
    if loop.processes == 1:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))


def number_of_process(loop: LoopRecipe) -> int:
    """The rank of this process, as torchrun, SLURM or Lightning's launcher have put it into the environment.

    Example:
        >>> number_of_process(LoopRecipe())
        0

    Args:
        loop: says how many processes there are; a single one is the first, whatever the environment says.

    Returns:
        0 for the first process, which writes the files.
    """
    if loop.processes * loop.nodes == 1:
        return 0
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", "0")) * loop.processes + int(os.environ.get("LOCAL_RANK", "0"))


def make_trainer(
    loop: LoopRecipe,
    folder: Path,
    checkpoints: CheckpointFolder,
    callbacks: Sequence[L.Callback],
    *,
    device: torch.device,
    step: int = 0,
    say: Callable[[str], object] = print,
) -> L.Trainer:
    """The trainer of a run.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> loop = LoopRecipe(epochs=3, device="cpu")
        >>> make_trainer(loop, folder, CheckpointFolder(folder), [], device=torch.device("cpu")).max_epochs
        3

    Args:
        loop: length, precision, processes.
        folder: of the run, for metrics.
        checkpoints: where checkpoints are written and read.
        callbacks: of the run.
        device: as `choose_device` gave it.
        step: that the run goes on after.
        say: is told where TensorBoard is not installed.

    Returns:
        The trainer.
    """
    distributed = loop.processes * loop.nodes > 1
    plugins: list[Any] = [CheckpointFiles(checkpoints)]
    if SLURMEnvironment.detect():
        # Its requeueing writes a checkpoint wherever the signal finds the loop, also in the middle of a step.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=loop.processes,
        num_nodes=loop.nodes,
        strategy=DDPStrategy() if distributed else "auto",
        precision=_PRECISIONS[loop.precision],
        max_epochs=loop.epochs,
        accumulate_grad_batches=loop.accumulate,
        deterministic=loop.deterministic or None,
        benchmark=(device.type == "cuda" and not loop.deterministic) or None,
        logger=_make_loggers(folder, step, say),
        # lines are written by a callback, which knows when reading the loss does not make the device wait
        log_every_n_steps=0,
        callbacks=list(callbacks),
        plugins=plugins,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _make_loggers(folder: Path, step: int, say: Callable[[str], object]) -> list[Logger]:
    loggers: list[Logger] = [MetricFiles(folder)]
    if importlib.util.find_spec("tensorboard") is not None:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step + 1))
    elif "tensorboard" not in _TOLD:
        _TOLD.add("tensorboard")
        say("TensorBoard is not installed: metrics go to metrics.csv and metrics.jsonl only.")
    return loggers


@contextmanager
def settled(loop: LoopRecipe) -> Iterator[None]:
    """Keep a run from changing the process it is in: random states, threads, modes of torch, Lightning's messages.

    Example:
        >>> before = torch.get_rng_state()
        >>> with settled(LoopRecipe(threads=1)):
        ...     _ = torch.manual_seed(7)
        >>> torch.equal(before, torch.get_rng_state())
        True

    Args:
        loop: says how many threads there are.
    """
    threads = torch.get_num_threads()
    modes = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    talkers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [talker.level for talker in talkers]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        for talker in talkers:
            talker.setLevel(logging.WARNING)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            for text in _NOISE:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(modes[0])
        torch.backends.cudnn.benchmark = modes[1]
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
