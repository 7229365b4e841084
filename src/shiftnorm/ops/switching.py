"""SwitchNorm's algebra as one C++ kernel each way."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from shiftnorm.ops.cpp import run_between
from shiftnorm.ops.dispatch import has_cpp, is_batched
from shiftnorm.ops.rows import ELEMENTS, address, count_blocks, gradients_by_autograd, is_counter, is_row
from shiftnorm.ops.types import Affine, Moments

__all__ = ["Switch", "switch"]


class Switch(NamedTuple):
    """Every plane is normalised by moments mixed of its own, its sample's and its channel's: SwitchNorm in training.

        mean = sum of mean_shares * (m.mean, sample.mean, channel.mean)
        var = sum of var_shares * (unbiased, sample.var, channel.var)   # pooled, from the unbiased ones of the planes
        y = weight * (x - mean) / sqrt(var + eps) + bias

    Example:
        >>> third = torch.full((3,), 1 / 3)
        >>> Switch(third, third, None, None, None, None, None, pace=0.1, eps=1e-5).eps
        1e-05

    Args:
        mean_shares: (3,) of plane, sample and channel, with the sum 1.
        var_shares: (3,), likewise.
        weight: (C,); None for ones.
        bias: (C,); None for zeros.
        running_mean: (C,), updated; None where there is none.
        running_var: (C,), likewise.
        batches: the int64 that counts batches, updated; None where there is none.
        pace: weight of this batch in them.
        eps: added to the variance.
    """

    mean_shares: Tensor
    var_shares: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    pace: float
    eps: float


def switch(m: Moments, setting: Switch) -> Affine | None:
    """The affine of a mixture of moments; None where the kernel does not take them.

    Example:
        >>> from shiftnorm.ops import has_retargeting, moments
        >>> third = torch.full((3,), 1 / 3)
        >>> m = moments(torch.randn(2, 3, 4, 4))
        >>> setting = Switch(third, third, None, None, None, None, None, pace=0.1, eps=1e-5)
        >>> affine = switch(m, setting) if has_retargeting(m.var) else None
        >>> affine is None or affine.gain.shape == (2, 3)
        True

    Args:
        m: moments of planes, (N, C), on the CPU.
        setting: what to mix, and by which shares.

    Returns:
        Gain and new mean, (N, C), differentiable, also twice.
    """
    samples, channels = m.var.shape
    if not isinstance(m.count, int) or samples < 1 or m.var.dtype not in ELEMENTS or not (m.var.is_cpu and has_cpp()):
        return None
    shapes = ((3,), (3,), (channels,), (channels,), (channels,), (channels,))
    if not all(is_row(each, m.var, (shape,)) for each, shape in zip(setting[:6], shapes, strict=True)):
        return None
    if not all(is_row(each, m.var, ((samples, channels),)) for each in m[:2]) or not is_counter(setting.batches, m.var):
        return None
    bessel = m.count / max(m.count - 1, 1)
    return Affine(*cast("tuple[Tensor, Tensor]", _Switch.apply(m.mean, m.var, *setting[:4], setting, bessel)))


# ``struct Switch`` of kernels/switch.h.
_ARGUMENTS = struct.Struct("@4q 3d 6P 3P 3P 2P 6P P")


class _Switch(torch.autograd.Function):
    """The kernel each way, and plain formulas where its gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, mean: Tensor, var: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        *parameters, setting, bessel = rest
        samples, channels = var.shape
        pooled = (var.new_empty(2, size, dtype=torch.float64) for size in (samples, channels))
        kept = (*pooled, torch.empty_like(var))
        results = (torch.empty_like(var), torch.empty_like(var))
        _run((mean, var, *parameters), setting, bessel, kept, results)
        ctx.save_for_backward(mean, var, *parameters, *kept)
        ctx.setting, ctx.bessel = setting, bessel
        return results

    @staticmethod
    def backward(ctx: Any, d_gain: Tensor, d_mean: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        saved = ctx.saved_tensors
        inputs, kept = saved[:6], saved[6:]
        if torch.is_grad_enabled() or is_batched(d_gain) or is_batched(d_mean):
            formula = partial(_plain, bessel=ctx.bessel, eps=ctx.setting.eps)
            needed = ctx.needs_input_grad[:6]
            return *gradients_by_autograd(formula, inputs, needed, (d_gain, d_mean)), None, None
        gradients = [None if each is None else torch.empty_like(each) for each in inputs]
        given = (d_gain.resolve_neg().contiguous(), d_mean.resolve_neg().contiguous())
        _run(inputs, ctx.setting, ctx.bessel, kept, given, gradients)
        return *gradients, None, None


def _run(
    inputs: tuple[Tensor | None, ...],
    setting: Switch,
    bessel: float,
    kept: tuple[Tensor, ...],
    results: tuple[Tensor, Tensor],
    gradients: list[Tensor | None] | None = None,
) -> None:
    """Forward, or backward with the gradients to fill; the results are then their gradients."""
    samples, channels = results[0].shape
    scratch: Tensor | None = None
    if gradients is not None:
        scratch = kept[0].new_empty(count_blocks(channels), 2 * samples + 6)
    arguments = _ARGUMENTS.pack(
        *(ELEMENTS[results[0].dtype], torch.get_num_threads(), samples, channels, bessel, setting.eps, setting.pace),
        *(address(each) for each in (*inputs, *setting[4:7], *kept, *results, *(gradients or (None,) * 6), scratch)),
    )
    run_between("switch", arguments)


def _plain(
    mean: Tensor,
    var: Tensor,
    mean_shares: Tensor,
    var_shares: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    bessel: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    planes = Moments(mean, bessel * var, 1)
    parts = (planes, planes.pooled(over="channels"), planes.pooled(over="batch"))
    center, total = torch.zeros_like(mean), torch.zeros_like(var)
    for of_mean, of_var, part in zip(mean_shares, var_shares, parts, strict=True):
        center, total = center + of_mean * part.mean, total + of_var * part.var
    gain = torch.rsqrt(total + eps) * (1.0 if weight is None else weight)
    return gain, gain * (mean - center) + (0.0 if bias is None else bias)
