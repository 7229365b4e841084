"""Image classification."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from shiftnorm.norms import DSU, MixtureNorm, RunningMoments
from shiftnorm.surgery import sync
from shiftnorm.surgery.kinds import kind_of
from shiftnorm.tasks.average import WeightAverage
from shiftnorm.tasks.guard import FiniteGuard
from shiftnorm.tasks.normalize import Normalize
from shiftnorm.tasks.objective import Objective
from shiftnorm.tasks.parameter_groups import grouped
from shiftnorm.tasks.schedule import rate_factor
from shiftnorm.tasks.statistics import PassStatistics

if TYPE_CHECKING:
    from shiftnorm.train_recipe import OptimizerRecipe, TrainRecipe


@final
class Classify(L.LightningModule):
    """Train a classifier of uint8 images: cross-entropy or an objective, SGD, a learning rate from step to step.

    :meth:`of` makes one from a training recipe. The constructor alone gives plain training, as ``shiftnorm compare``
    does it: cross-entropy, Nesterov momentum, and

        lr(step) = learning_rate · ½(1 + cos(π · step / steps))

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> task = Classify(model, steps=10)
        >>> task(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([4, 2])

    Args:
        model: maps (N, 3, H, W) float images to (N, classes) scores.
        steps: optimizer steps in total; the learning rate reaches its end there.
        learning_rate: at the first step.
        momentum: of SGD, Nesterov's form.
        weight_decay: L2 penalty on every parameter.
        mean: per channel, subtracted from images scaled to [0, 1].
        std: per channel, divided by.
        channels_last: memory format of the batches; convolutions on a CPU are faster with True.
        before_step: called before every training forward, e.g. `CrossNormController.step`; not with an objective.
        objective: the training loss; None for cross-entropy. It has its own mean and std.
        optimizer: SGD and its schedule; None for what the numbers above say.
        steps_per_epoch: optimizer steps; for milestones and warmup, which count epochs.
        ema: decay of averaged weights, which are then the ones evaluated; 0 for none.
        synced: in a distributed job, norms pool over all ranks (`surgery.sync`) as far as they can.
        compiled: run the model through `torch.compile`.

    Shape: `forward` takes (N, 3, H, W) uint8 images and gives (N, classes) scores. Batches are (images, labels) or
        (images, labels, indices); indices are only used to name samples.
    State: that of the model, under ``model.``; ``average.`` with ema; ``statistics.`` with separate statistics. Draws
        follow from the seed and the number of batches seen, which checkpoints keep: no state of a generator is needed.
    Modes: training uses the model; evaluation the averaged weights where there are any.
    Raises: ArithmeticError where a loss or gradient stops being finite, naming the step, the layer and the samples,
        with the weights as they were before; ValueError for impossible arguments, and where ``synced`` asks norms to
        pool over all ranks and none can. Where some cannot, a warning names them.
    Cost: in a distributed job one number is summed over the ranks per batch, so that a rank with fewer samples counts
        less.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.25, 0.25, 0.25),
        channels_last: bool = True,
        before_step: Callable[[], object] | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerRecipe | None = None,
        steps_per_epoch: int = 1,
        ema: float = 0.0,
        synced: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if steps < 1 or not learning_rate > 0 or not 0 < momentum < 1 or weight_decay < 0 or min(std) <= 0:
            raise ValueError(
                "Classify: expected steps >= 1, learning_rate > 0, 0 < momentum < 1, weight_decay >= 0 and std > 0, "
                f"got {steps}, {learning_rate}, {momentum}, {weight_decay}, {std}."
            )
        if objective is not None and (objective.model is not model or before_step is not None):
            raise ValueError(
                "Classify: expected an objective made for the same model, and no before_step beside it, got "
                f"{'another model' if objective.model is not model else 'both'}."
            )
        self.normalize = Normalize(mean, std, channels_last=channels_last) if objective is None else objective.normalize
        self.model = model.to(memory_format=self.normalize.memory_format)
        self.steps, self.learning_rate, self.momentum, self.weight_decay = steps, learning_rate, momentum, weight_decay
        self.optimizer, self.steps_per_epoch = optimizer, steps_per_epoch
        self.synced, self.compiled, self._configured = synced, compiled, False
        if optimizer is not None:
            self.learning_rate = optimizer.learning_rate
        self.before_step, self.objective = before_step, objective
        self.average = WeightAverage(model, ema) if ema > 0 else None
        if objective is not None:
            self.statistics = objective.statistics
        self.guard = self._new_guard()
        self.batches_seen = 0
        self.epoch_losses: list[float] = []
        self._losses: list[Tensor] = []
        self._weight = 1.0

    @classmethod
    def of(
        cls,
        recipe: TrainRecipe,
        model: nn.Module,
        *,
        batches_per_epoch: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
    ) -> Classify:
        """The task of a training recipe.

        Example:
            >>> from shiftnorm.train_recipe import LoopRecipe, TrainRecipe
            >>> recipe = TrainRecipe("toy", loop=LoopRecipe(epochs=3, accumulate=4))
            >>> Classify.of(recipe, nn.Flatten(), batches_per_epoch=10, mean=(0.5,), std=(0.5,), classes=2).steps
            9

        Args:
            recipe: its optimizer, crossnorm, augmix, loss and loop are looked at.
            model: the network, after its last edit.
            batches_per_epoch: per process, before accumulation.
            mean: per channel of images in [0, 1].
            std: likewise.
            classes: how many.
        """
        loop = recipe.loop
        steps_per_epoch = math.ceil(batches_per_epoch / loop.accumulate)
        normalize = Normalize(mean, std, channels_last=loop.channels_last)
        return cls(
            model,
            steps=loop.epochs * steps_per_epoch,
            objective=Objective.of(recipe, model, normalize, classes=classes),
            optimizer=recipe.optimizer,
            steps_per_epoch=steps_per_epoch,
            ema=loop.ema,
            synced=loop.synced,
            compiled=loop.compile,
        )

    @property
    def mean(self) -> Tensor:
        """Subtracted from images scaled to [0, 1], (1, C, 1, 1)."""
        return self.normalize.mean

    @property
    def std(self) -> Tensor:
        """Divided by, (1, C, 1, 1)."""
        return self.normalize.std

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and to keep: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module

    def forward(self, images: Tensor) -> Tensor:
        """Scores of uint8 images."""
        return (self.model if self.training else self.evaluated)(self.normalize(images))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Training loss of a batch, after the `before_step` call."""
        return self._loss_and_parts(images, labels)[0]

    def _loss_and_parts(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.objective is not None:
            return self.objective(images, labels, self.batches_seen)
        if self.before_step is not None:
            self.before_step()
        return F.cross_entropy(self(images), labels), {}

    def configure_model(self) -> None:
        """Let norms pool over all ranks, and compile, for Lightning, which calls this before it wraps the model."""
        if self._configured:
            return
        self._configured = True
        if self.synced and _world() > 1 and any(_looks_at_batch(module) for module in self.model.modules()):
            self._sync()
        if self.compiled:
            self.model.compile()  # in place, so that the names of the state stay

    def _sync(self) -> None:
        try:
            _, rows = sync(self.model)
        except ValueError as fault:
            raise ValueError(
                "Classify: expected norms that can pool over all processes, as loop.synced asks for; set loop.synced "
                f"to false to have every process use its own batches. {fault}"
            ) from fault
        left = [str(row) for row in rows if row.reason]
        if left and distributed.get_rank() == 0:
            warnings.warn(
                f"Classify: loop.synced has norms pool over all processes, but {len(left)} cannot and look at the "
                f"batches of their own process: {'; '.join(left)}.",
                stacklevel=2,
            )
        if self.objective is not None:
            # Buffers may lie in other modules now.
            choice = self.objective.statistics.choice
            self.objective.statistics = self.statistics = PassStatistics(self.model, choice)

    def _new_guard(self) -> FiniteGuard:
        return FiniteGuard(self.model, self, f" of {self.steps}; try a learning rate below {self.learning_rate}")

    def on_fit_start(self) -> None:
        """Forget what an interrupted training left behind, for Lightning."""
        self.guard = self._new_guard()
        # A checkpoint is read before the task goes to its device.
        self._losses = [loss.to(self.device) for loss in self._losses]

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        """One step, for Lightning: the loss, and the parts it has."""
        images, labels, *indices = batch
        self.guard.begin(self.trainer.global_step + 1)
        step = self.batches_seen
        loss, parts = self._loss_and_parts(images, labels)
        self.guard.note(loss, indices[0] if indices else None, lambda: self._again(images, labels, step))
        self.batches_seen += 1
        self._weight = self._weight_of(batch_idx)
        if self.objective is None:  # a recipe's losses are summed up by what watches its run
            self._losses.append(loss.detach())
        logged = bool(self.trainer.loggers)
        self.log("loss", loss.detach(), prog_bar=True, logger=logged)
        for name, part in parts.items():
            self.log(name, part, logger=logged)
        return {"loss": loss if _world() == 1 else loss * self._share(images), **parts}

    def _weight_of(self, batch_idx: int) -> float:
        """What Lightning's share for each of ``accumulate_grad_batches`` batches lacks where a step has fewer.

        The last batches of an epoch make a step too, whether or not they are as many.
        """
        asked, count = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        if isinstance(count, float):  # infinite: nobody knows which batch is the last
            return 1.0
        return asked / min(asked, count - batch_idx // asked * asked)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Make gradients, such that those of a step are a mean over its batches, for Lightning."""
        super().backward(loss if self._weight == 1 else loss * self._weight, *args, **kwargs)

    def _again(self, images: Tensor, labels: Tensor, step: int) -> object:
        return self(images) if self.objective is None else self.objective(images, labels, step)

    def _share(self, images: Tensor) -> Tensor:
        """Number of samples over the ranks' mean number: gradients are averaged as if all ranks had as many."""
        total = torch.full((), float(len(images)), device=images.device)
        distributed.all_reduce(total)
        return len(images) * _world() / total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at loss and gradients while nothing has changed, for Lightning."""
        # A scaler finds gradients beyond half precision all the time, and skips those steps by itself.
        self.guard.end(gradients=getattr(self.trainer.precision_plugin, "scaler", None) is None)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the recipe says, for Lightning."""
        clip = gradient_clip_val if self.optimizer is None else self.optimizer.clip
        self.clip_gradients(optimizer, gradient_clip_val=clip, gradient_clip_algorithm=gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the averaged weights follow, for Lightning."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.model)

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean loss, in plain training."""
        self.guard.check()
        if self._losses:
            self.epoch_losses.append(torch.stack(self._losses).mean().item())
            self._losses.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the draws follow from, and the losses; refuse to save weights that are not finite."""
        self.guard.check()
        losses = torch.stack(self._losses).cpu() if self._losses else torch.zeros(0)
        checkpoint["classify"] = {"batches_seen": self.batches_seen, "losses": losses, "epochs": [*self.epoch_losses]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was kept."""
        state = checkpoint["classify"]
        self.batches_seen, self.epoch_losses = state["batches_seen"], [*state["epochs"]]
        self._losses = [*state["losses"].unbind()]

    def configure_optimizers(self) -> dict[str, object]:
        """SGD and the learning rate of every step, for Lightning."""
        recipe = self.optimizer
        if recipe is None:
            momentum, decay, nesterov, options = self.momentum, self.weight_decay, True, {}
        else:
            momentum, decay, nesterov = recipe.momentum, recipe.weight_decay, recipe.nesterov
            options = {
                "schedule": recipe.schedule,
                "final": recipe.final_learning_rate / recipe.learning_rate,
                "milestones": tuple(epoch * self.steps_per_epoch for epoch in recipe.milestones),
                "factor": recipe.factor,
                "warmup": recipe.warmup * self.steps_per_epoch,
            }
        groups = list(self.model.parameters()) if recipe is None else grouped(self.model, recipe)
        optimizer = torch.optim.SGD(groups, self.learning_rate, momentum, weight_decay=decay, nesterov=nesterov)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, steps=self.steps, **options)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _world() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _looks_at_batch(module: nn.Module) -> bool:
    """Whether a module's output in training depends on other samples in a way that more processes change."""
    if isinstance(module, MixtureNorm | DSU):
        return True
    if isinstance(module, RunningMoments):
        return module.pools_batch
    kind = kind_of(module)
    if kind is None or kind.name not in ("batch", "sync batch", "other"):
        return False
    # Of those with a formula of their own, the ones without running statistics look at each sample alone.
    return kind.refusal is None or getattr(module, "running_var", None) is not None
