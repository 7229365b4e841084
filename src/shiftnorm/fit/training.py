"""Training by a recipe, from its first step or from wherever the run was ended, to a measured network."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from shiftnorm.evaluate.html_report import write_report
from shiftnorm.evaluate.record import describe_machine, describe_versions
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.fit.checkpoints import CheckpointFolder, is_full_disk
from shiftnorm.fit.data import FitData, load_fit_data
from shiftnorm.fit.engine import choose_device, make_trainer, number_of_process, settled
from shiftnorm.fit.keeping import Keeping
from shiftnorm.fit.metrics import MetricFiles
from shiftnorm.fit.network import build_network
from shiftnorm.fit.record import TrainRecord, TrainResult
from shiftnorm.fit.run_folder import MODEL_FILE, RECORD_FILE, RunFolder, evaluation_of, identity_of
from shiftnorm.fit.stopping import Stopped, StopSignals
from shiftnorm.fit.throughput import measure_bare
from shiftnorm.fit.watching import Watching
from shiftnorm.recipe_tree import to_mapping
from shiftnorm.surgery import load, save
from shiftnorm.tasks import Classify
from shiftnorm.train_recipe import ModelRecipe, TrainRecipe

__all__ = ["train"]

OnProgress = Callable[[float, str], object]

FAILED_FILE = "failed.safetensors"
# About so many lines of metrics in an epoch, none of more steps than this.
_LINES, _MOST_STEPS = 4, 50
_MOST_WORKERS = 16
_IMAGENET = 1000  # classes


def train(
    recipe: TrainRecipe,
    *,
    out: str | Path,
    data_root: str | Path | None = None,
    say: Callable[[str], object] = print,
    name: str | None = None,
    evaluate: bool = True,
    limit_steps: int | None = None,
    command: str | None = None,
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Train the network of a recipe, measure it, and leave everything in one folder.

    Killed at any moment and called again, it goes on from the last whole checkpoint, and on a CPU ends with the same
    bits. SIGTERM and SIGINT end it after the running step, with a checkpoint. A finished run is not made again.

    Example:
        >>> import tempfile
        >>> from shiftnorm.recipe_tree import override
        >>> recipe = override(TrainRecipe("toy"), [
        ...     "data.limit=4", "model.name=shiftnorm/all_conv", "model.arguments={width: 8}", "loop.epochs=1",
        ...     "loop.batch_size=20", "loop.device=cpu",
        ...     "evaluate.corruptions=[contrast]", "evaluate.severities=[5]", "evaluate.limit=20",
        ... ])
        >>> result = train(recipe, out=tempfile.mkdtemp(), say=lambda line: None)
        >>> result.record.status, result.record.steps, list(result.record.corruption_errors)
        ('complete', 2, ['contrast'])

    Args:
        recipe: what to do.
        out: the run's folder. It belongs to one recipe and one set of images; another is refused.
        data_root: where the images lie.
        say: gets lines of text.
        name: of the run in tables; default: the folder's name.
        evaluate: measure the trained network under the recipe's corruptions.
        limit_steps: stop after so many optimizer steps, keep them, and measure what is there; calling again without it
            goes on.
        command: how to repeat this, for the report.
        on_progress: gets the finished part (0 to 1) and a text, for callers that show many runs; the measuring is
            silent then.

    Returns:
        The record, also in ``record.json``, and the folder.

    Raises:
        Stopped: if a signal asked for it; the same call goes on.
        ArithmeticError: if the loss stops being finite; the weights from before are in ``failed.safetensors``.
        ValueError: for images or a network that do not fit the recipe, or a folder of another run.
        OSError: if a file cannot be written or images cannot be read; what was kept before is intact.
        KeyboardInterrupt: if interrupted outside the training loop.
    """
    loop = recipe.loop
    rank = number_of_process(loop)
    owner = rank == 0
    tell = say if owner else _silent
    device = choose_device(loop)
    data = load_fit_data(recipe.data, data_root, test_limit=recipe.evaluate.limit, part=recipe.evaluate.part)
    for each in data.left_out:
        tell(f"left out: {each}")
    folder = RunFolder(out, identity_of(recipe, data.sha256))
    title = name or folder.path.name
    if owner:
        folder.check()
    done = _find_finished(folder, recipe, data, evaluate)
    if done is not None:
        tell(f"This run is finished: {done.line()}")
        return TrainResult(done, folder.path)
    with ExitStack() as stack:
        stack.enter_context(settled(loop))
        # Whatever of the recipe is refused is refused before there is a folder.
        model = build_network(recipe.model, len(data.train.classes), recipe.data.size, seed=loop.seed, say=tell)
        run = _Run(recipe, data, folder, model, device, tell, rank, limit_steps, on_progress)
        if owner:
            stack.enter_context(folder.claim(recipe, say=tell))
        try:
            watching, steps = run.fit(stack.enter_context(StopSignals()))
        except OSError as fault:
            if is_full_disk(fault) and "train:" not in str(fault):
                raise OSError(
                    fault.errno, f"train: there is no room left in {folder.path}; make some and run the same command "
                    f"again, which goes on from the last checkpoint ({fault.strerror})."
                ) from fault  # fmt: skip
            raise
        record = run.finish(watching, steps, title, evaluate=evaluate, command=command)
    tell(record.line())
    return TrainResult(record, folder.path)


def _silent(_: str) -> None:
    """What processes other than the first say."""


def _find_finished(folder: RunFolder, recipe: TrainRecipe, data: FitData, evaluate: bool) -> TrainRecord | None:
    if not (folder.path / RECORD_FILE).is_file():
        return None
    record = TrainRecord.load(folder.path)
    asked = (to_mapping(recipe.evaluate), data.test_sha256)
    before = (record.recipe.get("evaluate"), record.data.get("test_sha256"))
    measured = not evaluate or (record.clean_error is not None and before == asked)
    return record if record.complete and record.key == folder.key and measured else None


class _Run:
    """One call of `train`, after everything was opened."""

    def __init__(
        self,
        recipe: TrainRecipe,
        data: FitData,
        folder: RunFolder,
        model: nn.Module,
        device: torch.device,
        say: Callable[[str], object],
        rank: int,
        limit: int | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.recipe, self.data, self.folder, self.device = recipe, data, folder, device
        self.say, self.limit, self.owner, self.on_progress = say, limit, rank == 0, on_progress
        self.checkpoints = CheckpointFolder(folder.path / "checkpoints", say=say, owner=self.owner)
        loop = recipe.loop
        self.world = loop.processes * loop.nodes
        self.batches = data.batches(
            recipe.data,
            batch_size=loop.batch_size,
            seed=loop.seed,
            device=device,
            on_device=loop.images_on_device,
            rank=rank,
            world=self.world,
            workers=min(_MOST_WORKERS, (os.cpu_count() or 1) // loop.processes),
            drop_last=loop.drop_last,
        )
        self.task = Classify.of(
            recipe,
            model,
            batches_per_epoch=len(self.batches),
            mean=data.mean,
            std=data.std,
            classes=len(data.train.classes),
        )

    def fit(self, stop: StopSignals) -> tuple[Watching, int]:
        """Train to the end, or to the limit."""
        loop, task, batches = self.recipe.loop, self.task, self.batches
        watching = Watching(
            steps=task.steps,
            epochs=loop.epochs,
            images_per_batch=batches.order.batch_size * self.world,
            every=max(1, min(_MOST_STEPS, task.steps_per_epoch // _LINES)),
            validation=self.data.validation,
            say=self.say,
            on_progress=self.on_progress,
        )
        keeping = Keeping(stop, batches, every=loop.checkpoint_every, limit=self.limit, say=self.say)
        if self.owner:
            self.checkpoints.clean()
        newest = self.checkpoints.newest()
        step = 0 if newest is None else int(newest.name.split("-")[1])
        trainer = make_trainer(
            loop, self.folder.path, self.checkpoints, [watching, keeping], device=self.device, step=step, say=self.say
        )
        if self.owner:
            MetricFiles(self.folder.path).go_on_from(step)
            if newest is not None:
                self.say(f"Going on after step {step} of {task.steps}.")
        try:
            trainer.fit(task, batches, ckpt_path=newest)
        except Stopped as stopped:
            if stopped.reason != "limit":
                raise
        except SystemExit as left:
            # Lightning answers KeyboardInterrupt by leaving the whole program
            raise KeyboardInterrupt from left
        except ArithmeticError as fault:
            kept = self._keep_failed()
            raise ArithmeticError(f"train: {fault} {kept}") from fault
        # A signal that came too late for the loop: in its last step, or while its last epoch was measured.
        signal = keeping.asked()
        if signal is not None:
            raise Stopped(trainer.global_step, signal)
        return watching, trainer.global_step

    def _keep_failed(self) -> str:
        newest = self.checkpoints.newest()
        last = "there is no checkpoint yet" if newest is None else f"the last checkpoint is {newest.name}"
        if not self.owner:
            return last
        self._save(self.folder.path / FAILED_FILE)
        return f"The weights from before are in {self.folder.path / FAILED_FILE}; {last}."

    def _save(self, path: Path) -> None:
        network: Any = self.task.evaluated
        network.input_normalization = (list(self.data.mean), list(self.data.std))
        save(network, path)

    def finish(self, watching: Watching, steps: int, title: str, *, evaluate: bool, command: str | None) -> TrainRecord:
        """Write the network, measure it, write the record and the report."""
        recipe, loop, task = self.recipe, self.recipe.loop, self.task
        path = self.folder.path / MODEL_FILE
        if self.owner:
            self._save(path)
        _wait()
        began = time.perf_counter()
        result = self._evaluate(path, title, steps, command, limited=steps < task.steps) if evaluate else None
        measured = time.perf_counter() - began
        bare = (
            self._measure_bare(min(2.0, 0.1 * watching.seconds))
            if self.owner and evaluate and watching.images_per_s is not None
            else None
        )
        speed = watching.images_per_s
        errors = watching.validation_errors
        found = result.mean_corruption_error if result is not None else None
        history = {"loss": watching.epoch_losses, **({"validation_error": errors} if errors else {})}
        record = TrainRecord(
            key=self.folder.key,
            name=title,
            seed=loop.seed,
            status="limited" if steps < task.steps else "complete",
            steps=steps,
            recipe=to_mapping(recipe),
            data=self.data.describe(),
            parameters=sum(each.numel() for each in task.model.parameters() if each.requires_grad),
            clean_error=None if result is None else result.clean.error.value,
            mean_corruption_error=None if found is None else found._asdict(),
            mce=None if result is None or result.mce is None else result.mce._asdict(),
            corruption_errors={} if result is None else result.errors,
            validation_error=errors[-1] if errors else None,
            history=history,
            throughput={
                "images_per_s": speed,
                "bare_images_per_s": bare,
                "of_bare": None if speed is None or bare is None else speed / bare / self.world,
            },
            durations={"train": watching.seconds, "evaluate": measured},
            versions=describe_versions(),
            machine=describe_machine(self.device.type, torch.get_num_threads()),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        if self.owner:
            if result is not None:
                write_report(result, self.folder.path / "report.html", title=f"{title}: {recipe.summary}")
            record.save(self.folder.path / RECORD_FILE)
        return record

    def _evaluate(self, path: Path, title: str, steps: int, command: str | None, *, limited: bool) -> Result:
        asked = self.recipe.evaluate
        place = evaluation_of(to_mapping(asked), self.data.test_sha256, step=steps if limited else None)
        # from its file, so that what is measured is what was written
        model, _ = load(path)
        with warnings.catch_warnings():
            # they are in the result and its report
            warnings.filterwarnings("ignore", category=UserWarning, module=__name__)
            result = robustness(
                model,
                self.data.test,
                asked.corruptions,
                asked.severities,
                asked.seed,
                normalize=(self.data.mean, self.data.std),
                constants=asked.constants,
                baseline="AlexNet" if len(self.data.train.classes) == _IMAGENET else None,
                device=self.device,
                channels_last=self.recipe.loop.channels_last,
                out=self.folder.path / place,
                name=title,
                command=command,
                progress=self.on_progress is None,
            )
        return result

    def _measure_bare(self, seconds: float) -> float:
        recipe, loop = self.recipe, self.recipe.loop
        classes, size = len(self.data.train.classes), recipe.data.size
        plain = build_network(ModelRecipe(recipe.model.name, recipe.model.arguments), classes, size, say=_silent)
        return measure_bare(
            plain,
            batch_size=loop.batch_size,
            size=size,
            classes=classes,
            device=self.device,
            precision=loop.precision,
            channels_last=loop.channels_last,
            seconds=seconds,
        )


def _wait() -> None:
    """Until the first process has written the network."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
