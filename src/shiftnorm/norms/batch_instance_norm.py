"""Batch-Instance Normalization: how much style to remove, learnt for every channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Moments, is_traced

__all__ = ["BatchInstanceNorm"]


@final
class BatchInstanceNorm(RunningMoments, MomentNorm):
    """Mix BatchNorm and InstanceNorm in every channel by a learnt gate in [0, 1].

        y = weight_c * (gate_c * BN(x) + (1 - gate_c) * IN(x)) + bias_c        # both with biased variances

    The gate stays in [0, 1] whatever the optimizer does: it always acts clamped, its gradient never pushes a value
    outside further out, and training, saving and reading ``norm.gate`` write the clamped value back into the parameter.
    Optimizers need to know nothing; the authors train gates at ten times the learning rate, without weight decay.

    Example:
        >>> norm = BatchInstanceNorm(16)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])
        >>> with torch.no_grad():
        ...     norm.gate.fill_(7.0).shape
        torch.Size([16])
        >>> norm.gate.max()
        tensor(1., grad_fn=...)

    Args:
        num_features: channels C.
        eps: added to both variances, in squared units of x.
        momentum: weight of the newest batch in the running moments; None averages all batches equally.
        affine: learn ``weight`` and ``bias``; the gate is always learnt.
        track_running_stats: keep running moments; without them evaluation uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``gate`` from 1 (pure BatchNorm), ``weight`` from 1 and ``bias`` from 0, all (C,); the buffers of
        RunningMoments.
    Modes: training pools the batch and updates the running moments; evaluation uses the running ones in the BatchNorm
        part. The InstanceNorm part is the same in both.
    Raises: ValueError for another channel count, or in training for a single value per channel.
    Cost: two reads and one write of x; 3C parameters.
    Source: Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks", NeurIPS 2018.
    Differences: the gate is bounded here, not by a loop over the optimizer's parameters that copies of the model
        escape; any rank and channels-last, where the authors' classes for other ranks crash; batches are counted, so
        ``momentum=None`` works (the authors' count never moves).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        MomentNorm.__init__(self, num_features)
        self.eps = eps
        self.init_running(
            num_features, momentum=momentum, track_running_stats=track_running_stats, device=device, dtype=dtype
        )
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)
        self.register_parameter("gate", nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)))
        self.official_count = 0

    @property
    def gate(self) -> nn.Parameter:
        """The share of BatchNorm in every channel, (C,); what an optimizer moved out of [0, 1] is back when it is read.

        Example:
            >>> norm = BatchInstanceNorm(2)
            >>> _ = torch.optim.SGD([norm.gate], lr=1.0), norm.gate.data.fill_(3.0)
            >>> norm.gate.tolist()
            [1.0, 1.0]
        """
        gate = self._parameters.get("gate")
        if gate is None:  # as before its registration, where torch asks whether the name is free
            raise AttributeError("gate")
        # Under functional_call any tensor, and the caller's is not ours to write into.
        if _is_written(gate):
            # Through .data: the version counter stays, so a second forward before the backward of the first is fine.
            gate.data.clamp_(0, 1)
        return gate

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean from the batch moments seen now and the plane's own.

        Example:
            >>> norm = BatchInstanceNorm(2)
            >>> norm.affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).gain.shape
            torch.Size([4, 2])
        """
        raw = self._parameters.get("gate")  # evaluation changes no parameter
        gate = self.gate if self.training or raw is None else raw
        if not (self.training and _is_written(gate)):
            gate = _bounded(gate)
        affine = self.by_kernel(m, self.eps, self.weight, self.bias, gate)
        if affine is not None:
            return affine
        batch = self.seen(m)
        by_batch = gate * torch.rsqrt(batch.var + self.eps)
        gain = by_batch + (1 - gate) * torch.rsqrt(m.var + self.eps)
        mean = by_batch * (m.mean - batch.mean)
        if self.weight is not None:
            gain, mean = self.weight * gain, self.weight * mean
        return Affine(gain, mean if self.bias is None else mean + self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        _ = self.gate  # reading bounds it
        super()._save_to_state_dict(destination, prefix, keep_vars)  # pyright: ignore[reportUnknownMemberType]

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the authors' state_dict into ours; the keys are the same.

        Example:
            >>> norm = BatchInstanceNorm(3)
            >>> norm.from_official(norm.to_official())["gate"]
            tensor([1., 1., 1.])
        """
        ours = super().from_official(state)
        self.official_count = int(ours.get("num_batches_tracked", 0))
        return ours

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Translate ours into the authors', who never count batches: theirs stays what ``from_official`` read, or 0.

        Example:
            >>> BatchInstanceNorm(3).to_official()["num_batches_tracked"]
            tensor(0)
        """
        theirs = super().to_official(state)
        if "num_batches_tracked" in theirs:
            theirs["num_batches_tracked"] = torch.full_like(theirs["num_batches_tracked"], self.official_count)
        return theirs

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> BatchInstanceNorm(3)
            BatchInstanceNorm(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
        """
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


def _is_written(gate: Tensor) -> bool:
    return isinstance(gate, nn.Parameter) and not is_traced(gate)


def _bounded(gate: Tensor) -> Tensor:
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        return gate + (gate.clamp(0, 1) - gate).detach()
    return _InwardClamp.apply(gate)  # pyright: ignore


class _InwardClamp(torch.autograd.Function):
    """Clamp to [0, 1] that never traps: a value outside still receives the gradients that lead back in.

    torch.clamp gives a value outside no gradient at all, so a gate that left [0, 1] in a compiled step, which cannot
    write the parameter back, would stay at the border for good.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gate.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # pyright: ignore
        (gate,) = inputs
        ctx.save_for_backward(gate < 0, gate > 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        below, above = ctx.saved_tensors
        # A step goes against the gradient: a positive one drives the value down.
        outward = (below & (grad > 0)) | (above & (grad < 0))
        return torch.where(outward, torch.zeros_like(grad), grad)
