"""Keeping a run: when a checkpoint is written, what is in it beyond Lightning's own, and how a run goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from shiftnorm.fit.stopping import Stopped, StopSignals
from shiftnorm.tasks.batches import EpochBatches

__all__ = ["Keeping"]

_KEY = "shiftnorm"


@final
class Keeping(Checkpoint):
    """Writes checkpoints at the end of optimizer steps and of epochs, and stops where asked to.

    Lightning's checkpoint has the weights, the optimizer, its schedule, the precision's scaler, the callbacks' and the
    task's own states. Added here is the position in the data, which Lightning restores in the middle of an epoch only.
    There it writes down that the batch is not quite finished; as nothing is left of it to do, it is put down as
    finished, so that it is not run again. States of random generators are not needed: the objective seeds them in every
    step.

    Example:
        >>> Keeping(StopSignals(), every=10).every
        10

    Args:
        stop: says whether to stop.
        batches: what is trained on; None if their position is not kept.
        every: steps between checkpoints; 0 for the end of each epoch.
        limit: stop after so many steps of the whole run; None for none.
        say: gets lines of text.
    """

    def __init__(
        self,
        stop: StopSignals,
        batches: EpochBatches | None = None,
        *,
        every: int = 0,
        limit: int | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        self.stop, self.batches, self.every, self.limit, self.say = stop, batches, every, limit, say
        self.resumed: dict[str, Any] | None = None
        self._step = 0
        self._due: str | None = None
        self._whole = False
        self._group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore what a checkpoint held.

        Example:
            >>> Keeping(StopSignals()).resumed is None
            True
        """
        if trainer.world_size > 1:
            # On the CPU, so that asking whether to stop never waits for the accelerator.
            self._group = distributed.new_group(backend="gloo")
        if self.resumed is not None and self.batches is not None:
            self.batches.load_state_dict(self.resumed["batches"])
        self._step = trainer.global_step
        # Lightning has put its own handlers in front, which would end the loop in the middle of a step.
        self.stop.install()
        self.stop.looping = True
        if self.limit is not None and self._step >= self.limit:
            raise Stopped(self._step, "limit")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note that the weights are about to change.

        Example:
            >>> Keeping(StopSignals()).on_train_batch_start(L.Trainer(logger=False, barebones=True), None)
        """
        self._whole = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """After an optimizer step: keep it if its turn has come, and stop if asked to.

        Example:
            >>> keeping = Keeping(StopSignals())
            >>> keeping.on_train_batch_end(L.Trainer(logger=False, barebones=True), None)  # no step was made
        """
        if trainer.global_step == self._step:
            return  # one of several batches that make a step
        self._step, self._whole = trainer.global_step, True
        reason = self._reason(trainer)
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last:  # the end of the epoch, which follows, is where its checkpoint is written
            self._due = reason
        elif reason is not None:
            trainer.save_checkpoint("")
            if reason != "turn":
                raise Stopped(self._step, reason)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After an epoch: keep it, unless checkpoints come by number of steps and this is not one.

        Example:
            >>> keeping = Keeping(StopSignals(), every=10)
            >>> keeping.on_train_epoch_end(L.Trainer(logger=False, barebones=True, max_epochs=9), None)  # nothing due
        """
        reason, self._due = self._due, None
        finished = trainer.current_epoch + 1 == trainer.max_epochs
        if self.every == 0 or finished or reason is not None:
            trainer.save_checkpoint("")
        if reason not in (None, "turn") and not finished:
            raise Stopped(self._step, reason or "")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the last step when something fails between two steps, such as reading the next images.

        Example:
            >>> Keeping(StopSignals()).on_exception(L.Trainer(logger=False, barebones=True), None, OSError())
        """
        self.stop.looping = False
        if isinstance(exception, ArithmeticError):
            # A device's numbers are looked at some steps late: what is there now, momentum too, may come from a step
            # that was not finite, and the next run would go on from it.
            return
        # More than one process: the others may be in the middle of a step, and would not come to help.
        if self._whole and trainer.world_size == 1 and isinstance(exception, Exception | KeyboardInterrupt):
            if not isinstance(exception, Stopped) and self._step:
                trainer.save_checkpoint("")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the signals to what follows.

        Example:
            >>> stop = StopSignals()
            >>> Keeping(stop).on_train_end(L.Trainer(logger=False, barebones=True), None)
            >>> stop.looping
            False
        """
        self.stop.looping = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the position in the data, and put a finished batch down as finished.

        Example:
            >>> trainer = L.Trainer(logger=False, barebones=True)
            >>> checkpoint = {"loops": {"fit_loop": trainer.fit_loop.state_dict()}}
            >>> Keeping(StopSignals()).on_save_checkpoint(trainer, None, checkpoint)
            >>> sorted(checkpoint["shiftnorm"])
            ['batches', 'step']
        """
        position = None if self.batches is None else self.batches.state_dict()
        checkpoint[_KEY] = {"batches": position, "step": trainer.global_step}
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["completed"] = counts["processed"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hold what `on_save_checkpoint` added until the loop starts.

        Example:
            >>> keeping = Keeping(StopSignals())
            >>> keeping.on_load_checkpoint(None, None, {"shiftnorm": {"batches": None, "step": 3}})
            >>> keeping.resumed["step"]
            3
        """
        self.resumed = checkpoint[_KEY]

    def asked(self) -> str | None:
        """The signal that asks to stop, on any process; all of them have to call this.

        Example:
            >>> Keeping(StopSignals()).asked() is None
            True

        Returns:
            Its name; None if there was none.
        """
        signal = self.stop.requested
        # The processes of a run that ended early, at its limit, have no group any more.
        if self._group is not None and distributed.is_initialized():
            asked = torch.tensor(0 if signal is None else 1)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self._group)
            signal = signal or ("SIGTERM" if asked.item() else None)
        return signal

    def _reason(self, trainer: L.Trainer) -> str | None:
        """Why a checkpoint is due after this step: a signal, the limit, its turn; the same on all processes."""
        signal = self.asked()
        if signal is not None:
            return signal
        if self.limit is not None and self._step >= self.limit:
            return "limit"
        return "turn" if self.every and self._step % self.every == 0 else None
