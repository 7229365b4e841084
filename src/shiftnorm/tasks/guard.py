"""Stops a training whose numbers stop being finite, with the weights from before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, distributed, nn

from shiftnorm.tasks.copies import copy_each
from shiftnorm.tasks.diagnose import first_not_finite

__all__ = ["FiniteGuard"]


@dataclass
class _Pass:
    """One forward pass of a step: its batch, and how to run it again."""

    indices: Tensor | None
    run: Callable[[], object]
    loss: Tensor
    autocast: tuple[str, torch.dtype, bool]


@dataclass
class _Step:
    """One optimizer step: its number, its passes, what was there before it, and whether all of it is finite."""

    number: int
    before: list[Tensor]
    passes: list[_Pass] = field(default_factory=list)
    finite: Tensor | None = None
    ready: torch.cuda.Event | None = None
    gradients: str = ""


@final
class FiniteGuard:
    """Look at every loss and gradient before they change the weights, or soon after where that would wait for a device.

    On a CPU a step is looked at before the optimizer runs. On an accelerator looking would stop the host until the
    device is done, so a step is looked at two steps later, and copies of the tensors from before the last steps are
    kept. Either way parameters and buffers become what they were before the bad step; then its batches run once more,
    to name the first layer whose output is not finite. Momentum is not put back: resume from a checkpoint.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> guard = FiniteGuard(model, model)
        >>> x = torch.tensor([[float("nan")]])
        >>> guard.begin(1)
        >>> loss = model(x).sum()
        >>> guard.note(loss, torch.tensor([17]), lambda: model(x))
        >>> loss.backward()
        >>> guard.end()
        Traceback (most recent call last):
        ...
        ArithmeticError: the training loss is nan at step 1. First not finite: the images as the network takes them.
        Samples of the batch: 17. Parameters and buffers are as they were before this step.

    Args:
        model: the network, whose layers are named.
        owner: the module whose parameters and buffers are put back.
        advice: follows the step in the message.

    Raises: ArithmeticError from ``begin``, ``end`` and ``check``.
    Cost: a copy of the buffers per step, on an accelerator of the parameters too, for up to three steps; a norm of the
        gradients.
    """

    def __init__(self, model: nn.Module, owner: nn.Module, advice: str = "") -> None:
        self.model, self.owner, self.advice = model, owner, advice
        self._steps: deque[_Step] = deque()
        self._spare: list[list[Tensor]] = []

    def begin(self, number: int) -> None:
        """Start a pass of optimizer step ``number``, counted from 1.

        Example:
            >>> FiniteGuard(nn.Linear(1, 1), nn.Linear(1, 1)).begin(1)
        """
        if self._steps and self._steps[-1].finite is None:
            return  # a further pass of the same step
        self.check(keep=2)
        now = list(self._tensors())
        kept = self._spare.pop() if self._spare else [torch.empty_like(each) for each in now]
        copy_each(kept, now)
        self._steps.append(_Step(number, kept))

    def note(self, loss: Tensor, indices: Tensor | None, run: Callable[[], object]) -> None:
        """Keep what a pass came to, and how to run it again.

        Example:
            >>> guard = FiniteGuard(nn.Linear(1, 1), nn.Linear(1, 1))
            >>> guard.begin(1)
            >>> guard.note(torch.tensor(0.5), None, lambda: None)

        Args:
            loss: 0-d.
            indices: which samples the batch holds; None if nobody knows.
            run: the forward pass again, with the same draws.
        """
        kind = loss.device.type
        autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self._steps[-1].passes.append(_Pass(indices, run, loss.detach(), autocast))

    def end(self, *, gradients: bool = True) -> None:
        """All passes of the step are done, and the optimizer has not run yet.

        Example:
            >>> model = nn.Linear(1, 1)
            >>> guard = FiniteGuard(model, model)
            >>> guard.begin(1)
            >>> guard.note(torch.tensor(0.5), None, lambda: None)
            >>> guard.end()

        Args:
            gradients: whether to look at the gradients too; not where a scaler skips steps by them.
        """
        step = self._steps[-1]
        seen = [each.loss for each in step.passes]
        grads = [each.grad for each in self.owner.parameters() if each.grad is not None]
        if gradients and grads:
            # The largest size, which unlike a sum of squares cannot overflow. torch has no public name for the call.
            seen += torch._foreach_norm(grads, float("inf"))  # pyright: ignore[reportPrivateImportUsage]
        wide = torch.float64 if any(each.dtype == torch.float64 for each in seen) else torch.float32
        finite = torch.stack([each.to(wide) for each in seen]).isfinite().all().float()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            # All ranks stop at the same step: the batches run again together, as synchronised norms have to.
            distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        if finite.device.type == "cuda":
            step.finite = torch.empty_like(finite, device="cpu", pin_memory=True).copy_(finite, non_blocking=True)
            step.ready = torch.cuda.Event()
            step.ready.record()
        else:
            step.finite = finite
        if finite.device.type == "cpu":
            self.check()

    def check(self, keep: int = 0) -> None:
        """Look at all steps but the last ``keep`` ones.

        Example:
            >>> FiniteGuard(nn.Linear(1, 1), nn.Linear(1, 1)).check()
        """
        while len(self._steps) > keep and self._steps[0].finite is not None:
            step = self._steps.popleft()
            if step.ready is not None:
                step.ready.synchronize()
            if not bool(step.finite):
                self._steps.clear()
                self._stop(step)
            self._spare.append(step.before)

    def _tensors(self) -> Iterator[Tensor]:
        """What is put back: on a CPU the optimizer has not touched the parameters when a step is looked at."""
        for parameter in self.owner.parameters():
            if parameter.device.type != "cpu":
                yield parameter.detach()
        yield from self.owner.buffers()

    def _stop(self, step: _Step) -> None:
        gradient = self._bad_gradient() if step.ready is None else ""
        self._restore(step)
        bad = next((each for each in step.passes if not bool(each.loss.isfinite())), None)
        where = ""
        for each in step.passes:
            kind, dtype, enabled = each.autocast
            with torch.autocast(kind, dtype=dtype, enabled=enabled):
                found = first_not_finite(self.model, each.run) or ""
            if found and not where:  # and on to the other passes, which another rank may be waiting in
                where, bad = found, bad or each
        self._restore(step)
        self.owner.zero_grad()
        number = f"step {step.number}{self.advice}"
        if bad is not None and not bool(bad.loss.isfinite()):
            text = f"the training loss is {bad.loss.item()} at {number}."
        else:
            text = f"the gradients are not finite at {number}; the loss is {step.passes[-1].loss.item()}."
        where = where or (f"the gradient of {gradient!r}" if gradient else "nothing in a second run of the batch")
        groups = [each.indices for each in ([bad] if bad is not None else step.passes) if each.indices is not None]
        if groups:
            samples = ", ".join(str(index) for index in torch.cat(groups).tolist())
            where += f". Samples of the batch: {samples}"
        raise ArithmeticError(
            f"{text} First not finite: {where}. Parameters and buffers are as they were before this step."
        )

    def _bad_gradient(self) -> str:
        """Gradients are made from the end of the network to its beginning."""
        for name, parameter in reversed(list(self.model.named_parameters())):
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return name
        return ""

    def _restore(self, step: _Step) -> None:
        copy_each(list(self._tensors()), step.before)
