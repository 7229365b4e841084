"""Watching a run: the loss, the speed and the time left, on a terminal, in the loggers and in the record."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, final

import lightning as L
import torch
from torch import Tensor, distributed

from shiftnorm.data import Dataset
from shiftnorm.evaluate.progress import spell_rate, spell_seconds

__all__ = ["Watching", "count_errors"]


def count_errors(
    score: Callable[[Tensor], Tensor], data: Dataset, device: torch.device, batch_size: int = 256
) -> float:
    """Share of images that are not given their class, in percent.

    Example:
        >>> images, labels = torch.zeros(4, 3, 8, 8).byte(), torch.tensor([0, 0, 0, 1])
        >>> toy = Dataset.of_images("toy", images, labels, ("cat", "dog"))
        >>> count_errors(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2), toy, torch.device("cpu"))
        25.0

    Args:
        score: gives (N, classes) scores of uint8 images.
        data: the images.
        device: where the scores are computed.
        batch_size: images at a time.

    Returns:
        The error.
    """
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad():
        for batch in data.batches(batch_size):
            wrong += (score(batch.images.to(device)).argmax(1) != batch.labels.to(device)).sum()
    return 100 * int(wrong) / len(data)


@final
class Watching(L.Callback):
    """Logs loss, learning rate and images/s, measures the held-out images after each epoch, and shows progress.

    On a terminal a bar shows the run; elsewhere each epoch is a line. Losses are added up on the device and read now
    and then, so that a GPU is not waited for after every step.

    Example:
        >>> watching = Watching(steps=10, epochs=2, images_per_batch=8, every=5)
        >>> watching.images_per_s is None, watching.epoch_losses
        (True, [])

    Args:
        steps: optimizer steps of the whole run.
        epochs: of the whole run.
        images_per_batch: of all processes together.
        every: steps between lines of the metrics.
        validation: images that were held out; None without.
        say: gets a line per epoch where there is no terminal.
        on_progress: gets the finished part (0 to 1) and a text with every line of the metrics, instead of a bar.
    """

    def __init__(
        self,
        *,
        steps: int,
        epochs: int,
        images_per_batch: int,
        every: int = 50,
        validation: Dataset | None = None,
        say: Callable[[str], object] = print,
        on_progress: Callable[[float, str], object] | None = None,
    ) -> None:
        self.steps, self.epochs, self.images_per_batch, self.every = steps, epochs, images_per_batch, every
        self.validation, self.say, self.on_progress = validation, say, on_progress
        self.epoch_losses: list[float] = []
        self.validation_errors: list[float] = []
        self.seconds = 0.0
        self.speeds: list[float] = []
        self._sums: dict[str, Any] = {"epoch": 0.0, "batches": 0, "line": 0.0, "line_batches": 0}
        # What the objective says its loss is made of: sum and count, as not every step has every part.
        self._parts: dict[str, tuple[Any, int]] = {}
        self._line_began = self._began = self._newest = 0.0
        self._batches = 0
        self._bar: Any = None
        self._step = self._first = 0

    @property
    def images_per_s(self) -> float | None:
        """The median over the lines of the metrics; None before the second.

        Example:
            >>> Watching(steps=1, epochs=1, images_per_batch=1).images_per_s
        """
        return statistics.median(self.speeds) if self.speeds else None

    def state_dict(self) -> dict[str, Any]:
        """What is summed up and not yet written, and the history, so that a resumed run writes the same lines.

        Example:
            >>> sorted(Watching(steps=1, epochs=1, images_per_batch=1).state_dict())
            ['epoch_losses', 'parts', 'seconds', 'speeds', 'sums', 'validation_errors']
        """
        sums = {key: float(value) if key in ("epoch", "line") else value for key, value in self._sums.items()}
        return {
            "sums": sums,
            "parts": {name: (float(total), count) for name, (total, count) in self._parts.items()},
            "epoch_losses": list(self.epoch_losses),
            "validation_errors": list(self.validation_errors),
            "seconds": self.seconds + (time.perf_counter() - self._began if self._began else 0.0),
            "speeds": list(self.speeds),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Example:
            >>> first, second = (Watching(steps=1, epochs=1, images_per_batch=1) for _ in range(2))
            >>> second.load_state_dict(first.state_dict())
        """
        self._sums, self._parts = dict(state_dict["sums"]), dict(state_dict["parts"])
        self.epoch_losses, self.validation_errors = state_dict["epoch_losses"], state_dict["validation_errors"]
        self.seconds, self.speeds = state_dict["seconds"], state_dict["speeds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the bar.

        Example:
            >>> watching = Watching(steps=1, epochs=1, images_per_batch=1)
            >>> watching.on_train_start(L.Trainer(logger=False, barebones=True), None)
        """
        self._began = self._line_began = time.perf_counter()
        self._step = self._first = trainer.global_step
        if trainer.is_global_zero and self.on_progress is None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.steps, initial=self._step, unit="step", dynamic_ncols=True, smoothing=0.05, leave=False
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss; write a line where its turn has come.

        Example:
            >>> watching = Watching(steps=1, epochs=1, images_per_batch=1, every=2)
            >>> trainer = L.Trainer(logger=False, barebones=True)
            >>> watching.on_train_batch_end(trainer, None, {"loss": torch.tensor(2.5)}, None, 0)
            >>> watching.state_dict()["sums"]["line"]
            2.5
        """
        # Lightning has divided it, so that the gradients of the batches of a step add up to a mean
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        sums = self._sums
        sums["epoch"], sums["line"] = sums["epoch"] + loss, sums["line"] + loss
        for name, part in outputs.items():
            if name != "loss":
                total, count = self._parts.get(name, (0.0, 0))
                self._parts[name] = total + part.detach(), count + 1
        sums["batches"] += 1
        sums["line_batches"] += 1
        self._batches += 1
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every == 0:
            self._write_line(trainer)
        if self._bar is not None:
            self._bar.update(self._step - self._bar.n)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's mean loss and the error on the held-out images.

        Example:
            >>> watching = Watching(steps=1, epochs=1, images_per_batch=1, say=lambda line: None)
            >>> trainer = L.Trainer(logger=False, barebones=True)
            >>> watching.on_train_batch_end(trainer, None, {"loss": torch.tensor(2.5)}, None, 0)
            >>> watching.on_train_epoch_end(trainer, None)
            >>> watching.epoch_losses
            [2.5]
        """
        sums = self._sums
        loss = _mean(sums["epoch"], sums["batches"], trainer)
        sums["epoch"], sums["batches"] = 0.0, 0
        self.epoch_losses.append(loss)
        epoch = trainer.current_epoch
        metrics = {"epoch": epoch, "epoch_loss": loss}
        text = f"epoch {epoch + 1}/{self.epochs}: loss {loss:.4g}"
        if self.validation is not None:
            began = time.perf_counter()
            pl_module.eval()
            error = count_errors(pl_module, self.validation, pl_module.device)
            pl_module.train()
            self.validation_errors.append(error)
            metrics["validation_error"] = error
            text += f", held-out error {error:.2f} %"
            self._line_began += time.perf_counter() - began
        _log(trainer, metrics, self._step)
        if trainer.is_global_zero and self._bar is None:
            # a line may just have been written, with all that was counted
            speed = self.images_per_s or (self._speed() if self._batches else self._newest)
            self.say(f"{text}, {spell_rate(speed)} images/s, {spell_seconds(self._left())} left")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock and the bar.

        Example:
            >>> watching = Watching(steps=1, epochs=1, images_per_batch=1)
            >>> watching.on_train_end(L.Trainer(logger=False, barebones=True), None)
        """
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop the bar.

        Example:
            >>> watching = Watching(steps=1, epochs=1, images_per_batch=1)
            >>> watching.on_exception(L.Trainer(logger=False, barebones=True), None, OSError())
        """
        self._stop()

    def _stop(self) -> None:
        if self._began:
            self.seconds += time.perf_counter() - self._began
            self._began = 0.0
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write_line(self, trainer: L.Trainer) -> None:
        sums = self._sums
        loss = _mean(sums["line"], sums["line_batches"], trainer)
        sums["line"], sums["line_batches"] = 0.0, 0
        self._newest = speed = self._speed()
        if self._step - self._first > self.every:  # the first line has whatever warms up in it
            self.speeds.append(speed)
        self._batches, self._line_began = 0, time.perf_counter()
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        metrics = {
            "epoch": trainer.current_epoch,
            "loss": loss,
            "learning_rate": rates[0],
            "images_per_s": round(speed, 2),
            "seconds": round(self.seconds + time.perf_counter() - self._began, 3),
            **{name: float(total) / count for name, (total, count) in self._parts.items()},
        }
        self._parts.clear()
        _log(trainer, metrics, self._step)
        text = f"loss {loss:.4g}, {spell_rate(speed)} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        if self.on_progress is not None:
            self.on_progress(self._step / self.steps, text)

    def _speed(self) -> float:
        return self._batches * self.images_per_batch / max(time.perf_counter() - self._line_began, 1e-9)

    def _left(self) -> float:
        done = self._step - self._first
        return (time.perf_counter() - self._began) / max(done, 1) * (self.steps - self._step) if self._began else 0.0


def _mean(total: Any, batches: int, trainer: L.Trainer) -> float:
    """The mean over the batches of all processes."""
    if trainer.world_size > 1:
        total = torch.as_tensor(total, dtype=torch.float32, device=trainer.strategy.root_device).clone()
        distributed.all_reduce(total)
    return float(total) / max(batches, 1) / trainer.world_size


def _log(trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
