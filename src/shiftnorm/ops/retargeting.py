"""What BatchNorm, CrossNorm and SelfNorm make of moments, in this order, as one kernel each way: in C++, or Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftnorm.ops import cpp_retarget
from shiftnorm.ops.dispatch import has_cpp, has_triton, is_batched, is_traced
from shiftnorm.ops.rows import ELEMENTS, fits, gradients_by_autograd, is_counter, is_flag, is_row
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
        acts: 0-d bool, False for everybody staying as they are; None for True. Not for the C++ kernel.
    """

    partner: Tensor
    eps: float
    acts: Tensor | None = None


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
    return not is_traced(tensor) and ((tensor.is_cpu and has_cpp()) or has_triton(tensor))


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
        m: moments of planes, (N, C).
        before: what is applied first, a BatchNorm or any affine, broadcastable to (N, C); None for nothing.
        exchange: None for none.
        gate: None for none.

    Returns:
        Gain and new mean, (N, C), differentiable, also twice.

    Raises:
        IndexError: if a partner is no sample of the batch; on a GPU, which cannot be asked, the sample is NaN.
    """
    samples, channels = m.var.shape
    on_cpu = m.var.is_cpu and has_cpp()
    pool = before if isinstance(before, Pool) else None
    gain, mean = before if isinstance(before, Affine) else (None, m.mean)
    if not isinstance(m.count, int) or samples < 2 or not ((on_cpu and m.var.dtype in ELEMENTS) or has_triton(m.var)):
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
    if not all(is_counter(each, m.var) for each in counters):
        return None
    if exchange and (exchange.partner.shape != (samples,) or not is_flag(exchange.acts, m.var)):
        return None
    if exchange and on_cpu and exchange.acts is not None:
        return None  # the C++ kernel does not ask
    if not on_cpu and not _triton().takes(samples, exchanges=exchange is not None):
        return None
    setting = Setting(m.count, pool, exchange, gate, on_cpu)
    whole = pool is not None or not on_cpu  # all the rows, though they may be one
    var, mean = m.var.contiguous(), _as_rows(mean.expand_as(m.var) if whole else mean, m.var)
    gain = None if gain is None else _as_rows(gain if on_cpu else gain.expand_as(m.var), m.var)
    parameters = (*(gate[:3] if gate else (None,) * 3), *((*pool[:2], pool.share) if pool else (None,) * 3))
    outputs = _Retarget.apply(var, mean, gain, *parameters, setting)
    return Affine(*cast("tuple[Tensor, Tensor]", outputs))


def _as_rows(row: Tensor, like: Tensor) -> Tensor:
    """(N, C) or (1, C), contiguous."""
    return (row if row.shape[1] == like.shape[1] else row.expand(like.shape)).contiguous()


class Setting(NamedTuple):
    size: int
    pool: Pool | None
    exchange: Exchange | None
    gate: Gate | None
    on_cpu: bool

    @property
    def bessel(self) -> float:
        return self.size / max(self.size - 1, 1)


class _Retarget(torch.autograd.Function):
    """The kernel each way, and plain formulas where its gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, var: Tensor, mean: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        *optional, setting = rest
        inputs: tuple[Tensor | None, ...] = (var, mean, *optional)
        new_gain, new_mean, *kept = (cpp_retarget if setting.on_cpu else _triton()).forward(inputs, setting)
        ctx.save_for_backward(*inputs, *kept)
        ctx.setting = setting
        return new_gain, new_mean

    @staticmethod
    def backward(ctx: Any, d_new_gain: Tensor, d_new_mean: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        setting: Setting = ctx.setting
        saved = ctx.saved_tensors  # asked for once, as checkpointing wants it
        inputs, kept = saved[:9], saved[9:]
        if torch.is_grad_enabled() or is_batched(d_new_gain) or is_batched(d_new_mean):
            given, needed = (d_new_gain, d_new_mean), ctx.needs_input_grad[:-1]
            return *gradients_by_autograd(lambda *each: _plain(each, setting), inputs, needed, given), None
        given = (d_new_gain.resolve_neg().contiguous(), d_new_mean.resolve_neg().contiguous())
        return *(cpp_retarget if setting.on_cpu else _triton()).backward(inputs, kept, setting, given), None


def _triton() -> Any:
    from shiftnorm.ops import triton_retarget  # imports Triton

    return triton_retarget


def _seen_by(share: Tensor, value: Tensor) -> Tensor:
    # a share of 0 lets nothing through, not even NaN, and yet has a gradient
    return torch.where((share != 0) | torch.isfinite(value), value, 0.0)


def _plain(inputs: Sequence[Tensor | None], setting: Setting) -> tuple[Tensor, Tensor]:
    """The kernel's formulas in operations that can be differentiated any number of times; no running moments."""
    var, mean, gain, linear, weight, bias, front_weight, front_bias, share = inputs
    var, mean = cast("Tensor", var), cast("Tensor", mean)
    if setting.pool is not None:
        m = Moments(mean, var, setting.size).pooled(over="batch")
        of_weight = torch.ones_like(var) if front_weight is None else front_weight
        level = gain = of_weight * torch.rsqrt(m.var + setting.pool.eps)
        distance = mean - m.mean
        if share is not None:
            level, distance = share * _seen_by(share, level), _seen_by(share, distance)
            gain = level + (1 - share) * of_weight * _seen_by(1 - share, torch.rsqrt(var + setting.pool.eps))
        mean = level * distance + (0.0 if front_bias is None else front_bias)
    mean = mean.expand_as(var)
    total = torch.ones_like(var) if gain is None else gain.expand_as(var)
    if setting.exchange is not None:
        std = torch.sqrt(setting.bessel * total.square() * var + setting.exchange.eps)
        partner, acts = setting.exchange.partner, setting.exchange.acts
        if acts is not None:
            partner = torch.where(acts, partner, torch.arange(partner.shape[0], device=partner.device))
        mean, total = mean.index_select(0, partner), total * (std.index_select(0, partner) / std)
    if setting.gate is not None and linear is not None:
        std = torch.sqrt(setting.bessel * total.square() * var + setting.gate.eps)
        z = linear[:, 0] * mean + linear[:, 1] * std
        level = F.batch_norm(z, None, None, weight, bias, True, 0.0, setting.gate.norm_eps)
        share = setting.gate.height * torch.sigmoid(level)
        mean, total = share * mean, share * total
    return total, mean
