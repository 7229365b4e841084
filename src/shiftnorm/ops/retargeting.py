"""What BatchNorm, CrossNorm and SelfNorm make of moments, in this order, as one C++ kernel each way."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftnorm.ops.cpp import run_between
from shiftnorm.ops.dispatch import has_cpp, is_batched, is_traced
from shiftnorm.ops.rows import ELEMENTS, address, fits, gradients_by_autograd, is_counter, is_row
from shiftnorm.ops.types import Affine, Moments

__all__ = ["Exchange", "Gate", "Pool", "has_retargeting", "retarget"]


class Pool(NamedTuple):
    """Every channel is normalised by its moments over the batch: BatchNorm in training, and what is built on it.

        z = (x - batch.mean) / sqrt(batch.var + eps)                    # share of it; the rest:
        own = (x - m.mean) / sqrt(m.var + eps)
        y = weight * (share * z + (1 - share) * own) + bias

    Example:
        >>> Pool(None, None, None, None, None, pace=0.1, eps=1e-5).eps
        1e-05

    Args:
        weight: (C,) or (N, C); None for ones.
        bias: (C,) or (N, C); None for zeros.
        running_mean: (C,), updated; None where there is none.
        running_var: (C,), likewise, unbiased.
        batches: the int64 that counts batches, updated; None where there is none.
        pace: weight of this batch in them.
        eps: added to the variance.
        share: (C,), of the batch; a channel with 0 does not see the batch at all. None for ones.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    pace: float
    eps: float
    share: Tensor | None = None


class Exchange(NamedTuple):
    """Every plane takes the moments of the same channel of another sample: CrossNorm's 2-instance mode.

    Example:
        >>> Exchange(torch.tensor([1, 0]), eps=1e-5).eps
        1e-05

    Args:
        partner: (N,) int64, whose moments sample n takes.
        eps: added to both unbiased variances under the root.
    """

    partner: Tensor
    eps: float


class Gate(NamedTuple):
    """Every plane is scaled by ``height * sigmoid(BatchNorm over n of (w0 * mean + w1 * std))``: SelfNorm in training.

    Example:
        >>> one = torch.ones(3)
        >>> Gate(torch.ones(3, 2), one, 0 * one, None, None, None, pace=0.1, eps=1e-12, norm_eps=1e-5).height
        1.0

    Args:
        linear: (C, 2), w0 and w1 of every channel.
        weight: (C,), of the BatchNorm.
        bias: (C,), of the BatchNorm.
        running_mean: (C,), updated; None where there is none.
        running_var: (C,), likewise, unbiased.
        batches: the int64 that counts batches, updated; None where there is none.
        pace: weight of this batch in them.
        eps: added to the unbiased variance of the planes under the root.
        norm_eps: added to the biased variance over the batch.
        height: the gate's upper end.
    """

    linear: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    pace: float
    eps: float
    norm_eps: float
    height: float = 1.0


def has_retargeting(tensor: Tensor) -> bool:
    """Whether :func:`retarget` may compute with a tensor of moments, or with those of x.

    Example:
        >>> has_retargeting(torch.zeros(2, 3, device="meta"))
        False
    """
    return tensor.device.type == "cpu" and not is_traced(tensor) and has_cpp()


def retarget(m: Moments, before: Affine | Pool | None, exchange: Exchange | None, gate: Gate | None) -> Affine | None:
    """What comes first, then the exchange, then the gate, as one affine; None where the kernel does not take them.

    Equal, up to rounding, to composing :meth:`Moments.through` and :meth:`Affine.then` with the formulas above.

    Example:
        >>> from shiftnorm.ops import moments
        >>> x = torch.randn(2, 3, 4, 4)
        >>> exchange = Exchange(torch.tensor([1, 0]), eps=1e-5)
        >>> affine = retarget(moments(x), None, exchange, None) if has_retargeting(x) else None
        >>> affine is None or torch.equal(affine.mean, moments(x).mean.flip(0))
        True

    Args:
        m: moments of planes, (N, C), on the CPU.
        before: what is applied first, a BatchNorm or any affine, broadcastable to (N, C); None for nothing.
        exchange: None for none.
        gate: None for none.

    Returns:
        Gain and new mean, (N, C), differentiable, also twice.

    Raises:
        IndexError: if a partner is no sample of the batch.
    """
    samples, channels = m.var.shape
    pool = before if isinstance(before, Pool) else None
    gain, mean = before if isinstance(before, Affine) else (None, m.mean)
    if not isinstance(m.count, int) or samples < 2 or m.var.dtype not in ELEMENTS or m.var.device.type != "cpu":
        return None
    rows = ((samples, channels), (1, channels), (samples, 1), (1, 1))
    if not all(fits(each, m.var, rows) for each in (m.var, m.mean, mean, gain)):
        return None
    of_channels = (*((*pool[2:4], pool.share) if pool else ()), *(gate[1:5] if gate else ()))
    if not all(is_row(each, m.var, ((channels,),)) for each in of_channels):
        return None
    if pool and not all(is_row(each, m.var, ((channels,), (samples, channels))) for each in pool[:2]):
        return None
    if gate and not is_row(gate.linear, m.var, ((channels, 2),)):
        return None
    counters = (exchange.partner if exchange else None, pool.batches if pool else None, gate.batches if gate else None)
    if not all(is_counter(each) for each in counters):
        return None
    if exchange and exchange.partner.shape != (samples,):
        return None
    setting = _Setting(m.count, pool, exchange, gate)
    var, mean = m.var.contiguous(), _as_rows(mean.expand_as(m.var) if pool else mean, m.var)
    gain = None if gain is None else _as_rows(gain, m.var)
    parameters = (*(gate[:3] if gate else (None,) * 3), *((*pool[:2], pool.share) if pool else (None,) * 3))
    outputs = _Retarget.apply(var, mean, gain, *parameters, setting)
    return Affine(*cast("tuple[Tensor, Tensor]", outputs))


def _as_rows(row: Tensor, like: Tensor) -> Tensor:
    """(N, C) or (1, C), contiguous."""
    return (row if row.shape[1] == like.shape[1] else row.expand(like.shape)).contiguous()


class _Setting(NamedTuple):
    size: int
    pool: Pool | None
    exchange: Exchange | None
    gate: Gate | None

    @property
    def bessel(self) -> float:
        return self.size / max(self.size - 1, 1)


# ``struct Retarget`` of kernels/retarget.h: integers, numbers and addresses, eight bytes each. A ctypes structure would
# take ten times as long to fill.
_ARGUMENTS = struct.Struct("@4q d 3P 2q 3P 2q 3P 3P 3d P d 6P 4d 4P 2P 10P")


class _Retarget(torch.autograd.Function):
    """The kernel each way, and plain formulas where its gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, var: Tensor, mean: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        *optional, setting = rest
        inputs: tuple[Tensor | None, ...] = (var, mean, *optional)
        samples, channels = var.shape
        followed = bool(setting.exchange) or bool(setting.gate)
        rows = 2 * (bool(setting.pool) and followed) + bool(setting.exchange) + 2 * bool(setting.gate)
        kept = var.new_empty(rows, samples, channels)
        of_channels = var.new_empty(3, channels)
        new_gain, new_mean = torch.empty_like(var), torch.empty_like(var)
        partner = None if setting.exchange is None else setting.exchange.partner.contiguous()
        if not _run(inputs, partner, kept, of_channels, setting, (new_gain, new_mean)):
            raise IndexError(f"CrossNorm: expected partners from 0 to {samples - 1}, got {partner}.")
        ctx.save_for_backward(*inputs, partner, kept, of_channels)
        ctx.setting = setting
        return new_gain, new_mean

    @staticmethod
    def backward(ctx: Any, d_new_gain: Tensor, d_new_mean: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        *inputs, partner, kept, of_channels = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batched(d_new_gain) or is_batched(d_new_mean):
            given, needed = (d_new_gain, d_new_mean), ctx.needs_input_grad[:-1]
            return *gradients_by_autograd(lambda *each: _plain(each, ctx.setting), inputs, needed, given), None
        gradients = [None if each is None else torch.empty_like(each) for each in inputs]
        given = (d_new_gain.resolve_neg().contiguous(), d_new_mean.resolve_neg().contiguous())
        scratch = kept.new_empty(2 if ctx.setting.pool else 1, *kept.shape[1:])
        _run(inputs, partner, kept, of_channels, ctx.setting, given, gradients, scratch)
        return *gradients, None


def _run(
    inputs: Sequence[Tensor | None],
    partner: Tensor | None,
    kept: Tensor,
    of_channels: Tensor,
    setting: _Setting,
    results: tuple[Tensor, Tensor],
    gradients: Sequence[Tensor | None] = (None,) * 9,
    scratch: Tensor | None = None,
) -> bool:
    """Forward, or backward with the gradients to fill; the results are then their gradients."""
    var, mean, gain, linear, weight, bias, *front = inputs
    assert var is not None and mean is not None
    samples, channels = var.shape
    _, pool, exchange, gate = setting
    row = channels * var.element_size()
    plane = samples * row
    first = kept.data_ptr()
    behind_pool = (first, first + plane) if exchange or gate else (results[0].data_ptr(), results[1].data_ptr())
    second = first + 2 * plane * bool(pool and (exchange or gate))
    third = second + plane * bool(exchange)
    d_var, d_mean, d_gain, *others = (address(each) for each in gradients)
    if pool and scratch is not None:
        d_gain = scratch.data_ptr() + plane  # behind BatchNorm the gain is a number between, not an input
    arguments = _ARGUMENTS.pack(
        *(ELEMENTS[var.dtype], torch.get_num_threads(), samples, channels, setting.bessel),
        *(mean.data_ptr(), var.data_ptr(), address(gain)),
        channels if mean.shape[0] == samples else 0,
        channels if gain is not None and gain.shape[0] == samples else 0,
        *(address(each) for each in front),
        *(channels if each is not None and each.dim() == 2 else 0 for each in front[:2]),
        *((address(pool.running_mean), address(pool.running_var), address(pool.batches)) if pool else (0, 0, 0)),
        *((of_channels.data_ptr() + 2 * row, *behind_pool) if pool else (0, 0, 0)),
        *((pool.eps, pool.pace) if pool else (0.0, 0.0)),
        setting.size,
        *((partner.data_ptr(), exchange.eps) if exchange and partner is not None else (0, 0.0)),
        *(address(linear), address(weight), address(bias)),
        *((address(gate.running_mean), address(gate.running_var), address(gate.batches)) if gate else (0, 0, 0)),
        *((gate.eps, gate.norm_eps, gate.pace, gate.height) if gate else (0.0, 0.0, 0.0, 1.0)),
        *(second, third, third + plane, of_channels.data_ptr()),
        *(results[0].data_ptr(), results[1].data_ptr()),
        *(d_mean, d_var, d_gain, *others, address(scratch)),
    )
    return run_between("retarget", arguments)


def _plain(inputs: Sequence[Tensor | None], setting: _Setting) -> tuple[Tensor, Tensor]:
    """The kernel's formulas in operations that can be differentiated any number of times; no running moments."""
    var, mean, gain, linear, weight, bias, front_weight, front_bias, share = inputs
    var, mean = cast("Tensor", var), cast("Tensor", mean)
    if setting.pool is not None:
        m = Moments(mean, var, setting.size).pooled(over="batch")
        of_weight = torch.ones_like(var) if front_weight is None else front_weight
        level = gain = of_weight * torch.rsqrt(m.var + setting.pool.eps)
        distance = mean - m.mean
        if share is not None:
            sees = share != 0
            level, distance = torch.where(sees, share * level, 0.0), torch.where(sees, distance, 0.0)
            own = torch.where(share == 1, 0.0, torch.rsqrt(var + setting.pool.eps))
            gain = level + (1 - share) * of_weight * own
        mean = level * distance + (0.0 if front_bias is None else front_bias)
    mean = mean.expand_as(var)
    total = torch.ones_like(var) if gain is None else gain.expand_as(var)
    if setting.exchange is not None:
        std = torch.sqrt(setting.bessel * total.square() * var + setting.exchange.eps)
        partner = setting.exchange.partner
        mean, total = mean.index_select(0, partner), total * (std.index_select(0, partner) / std)
    if setting.gate is not None and linear is not None:
        std = torch.sqrt(setting.bessel * total.square() * var + setting.gate.eps)
        z = linear[:, 0] * mean + linear[:, 1] * std
        level = F.batch_norm(z, None, None, weight, bias, True, 0.0, setting.gate.norm_eps)
        share = setting.gate.height * torch.sigmoid(level)
        mean, total = share * mean, share * total
    return total, mean
