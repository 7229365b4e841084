"""Image classification."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class Classify(L.LightningModule):
    """Train a classifier of uint8 images: cross-entropy, SGD with Nesterov momentum, a cosine from step to step.

        lr(step) = learning_rate · ½(1 + cos(π · step / steps))

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> task = Classify(model, steps=10)
        >>> task(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([4, 2])

    Args:
        model: maps (N, 3, H, W) float images to (N, classes) scores.
        steps: training steps in total; the learning rate reaches 0 there.
        learning_rate: at the first step.
        momentum: of SGD, Nesterov's form.
        weight_decay: L2 penalty on every parameter.
        mean: per channel, subtracted from images scaled to [0, 1].
        std: per channel, divided by.
        channels_last: memory format of the batches; convolutions on a CPU are faster with True.
        before_step: called before every training forward, e.g. `CrossNormController.step`.

    Shape: `forward` takes (N, 3, H, W) uint8 images and gives (N, classes) scores.
    State: that of the model; mean and std as buffers.
    Raises: ArithmeticError naming the step where the loss stops being finite; ValueError for impossible arguments.
    """

    mean: Tensor
    std: Tensor

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
    ) -> None:
        super().__init__()
        if steps < 1 or not learning_rate > 0 or not 0 < momentum < 1 or weight_decay < 0 or min(std) <= 0:
            raise ValueError(
                "Classify: expected steps >= 1, learning_rate > 0, 0 < momentum < 1, weight_decay >= 0 and std > 0, "
                f"got {steps}, {learning_rate}, {momentum}, {weight_decay}, {std}."
            )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        self.steps, self.learning_rate, self.momentum, self.weight_decay = steps, learning_rate, momentum, weight_decay
        self.before_step = before_step
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.epoch_losses: list[float] = []
        self._losses: list[Tensor] = []
        self._epoch_start = 0

    def forward(self, images: Tensor) -> Tensor:
        """Scores of uint8 images."""
        x = images.to(memory_format=self.memory_format)
        return self.model(x.to(self.mean.dtype).div(255).sub(self.mean).div(self.std))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Training loss of a batch, after the `before_step` call."""
        if self.before_step is not None:
            self.before_step()
        return F.cross_entropy(self(images), labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step, for Lightning."""
        loss = self.loss(*batch)
        self._losses.append(loss.detach())
        # On an accelerator, looking at the loss would wait for it: there it is looked at once per epoch.
        if loss.device.type == "cpu":
            self._check_finite()
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the epoch's list of losses."""
        self._epoch_start += len(self._losses)
        self._losses.clear()

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean loss."""
        self._check_finite()
        self.epoch_losses.append(torch.stack(self._losses).mean().item())

    def _check_finite(self) -> None:
        on_cpu = self._losses[-1].device.type == "cpu"
        first = len(self._losses) - 1 if on_cpu else 0
        finite = torch.stack(self._losses[first:]).isfinite()
        if not bool(finite.all()):
            index = first + int(finite.int().argmin())
            raise ArithmeticError(
                f"the training loss is {self._losses[index].item()} at step {self._epoch_start + index + 1} "
                f"of {self.steps}; try a learning rate below {self.learning_rate}."
            )

    def configure_optimizers(self) -> dict[str, object]:
        """SGD with Nesterov momentum and a cosine over the steps, for Lightning."""
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
