"""AttentiveNorm's shares and the affine they mix, as one C++ kernel each way."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftnorm.ops.cpp import run_between
from shiftnorm.ops.dispatch import has_cpp, is_batched
from shiftnorm.ops.rows import ELEMENTS, address, count_blocks, gradients_by_autograd, is_counter, is_row
from shiftnorm.ops.types import Moments

__all__ = ["Attention", "attend"]


class Attention(NamedTuple):
    """K pairs of weight and bias, mixed for every sample by its planes: AttentiveNorm's "bn_hsigmoid" in training.

        share_nk = hard_sigmoid(BatchNorm over n of (linear @ (m.mean / sqrt(unbiased + eps))))
        weight_nc, bias_nc = sum_k share_nk * (pair_weight_kc, pair_bias_kc)

    Example:
        >>> pairs, row = torch.ones(2, 3), torch.ones(2)
        >>> Attention(pairs, row, row, pairs, pairs, None, None, None, pace=0.1, eps=1e-3, norm_eps=1e-5).eps
        0.001

    Args:
        linear: (K, C).
        weight: (K,), of the BatchNorm.
        bias: (K,), of the BatchNorm.
        pair_weight: (K, C).
        pair_bias: (K, C).
        running_mean: (K,), updated; None where there is none.
        running_var: (K,), likewise, unbiased.
        batches: the int64 that counts batches, updated; None where there is none.
        pace: weight of this batch in them.
        eps: added to the unbiased variance of the planes under the root.
        norm_eps: added to the biased variance over the batch.
    """

    linear: Tensor
    weight: Tensor
    bias: Tensor
    pair_weight: Tensor
    pair_bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    pace: float
    eps: float
    norm_eps: float


def attend(m: Moments, setting: Attention) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of every plane, (N, C), differentiable, also twice; None where the kernel does not take them.

    Example:
        >>> from shiftnorm.ops import has_retargeting, moments
        >>> pairs, row = torch.ones(2, 3), torch.ones(2)
        >>> setting = Attention(pairs, row, row, pairs, pairs, None, None, None, pace=0.1, eps=1e-3, norm_eps=1e-5)
        >>> m = moments(torch.randn(4, 3, 4, 4))
        >>> found = attend(m, setting) if has_retargeting(m.var) else None
        >>> found is None or found[0].shape == (4, 3)
        True

    Args:
        m: moments of planes, (N, C), on the CPU.
        setting: the pairs, and how they are mixed.
    """
    samples, channels = m.var.shape
    if not isinstance(m.count, int) or samples < 2 or m.var.dtype not in ELEMENTS or not (m.var.is_cpu and has_cpp()):
        return None
    (pairs,) = setting.weight.shape
    of_pairs, of_planes = ((pairs,),), ((pairs, channels),)
    shapes = (of_planes, of_pairs, of_pairs, of_planes, of_planes, of_pairs, of_pairs)
    if not all(is_row(each, m.var, shape) for each, shape in zip(setting[:7], shapes, strict=True)):
        return None
    if not all(is_row(each, m.var, ((samples, channels),)) for each in m[:2]) or not is_counter(setting.batches, m.var):
        return None
    bessel = m.count / max(m.count - 1, 1)
    return cast("tuple[Tensor, Tensor]", _Attend.apply(m.mean, m.var, *setting[:5], setting, bessel))


# ``struct Attend`` of kernels/attend.h.
_ARGUMENTS = struct.Struct("@5q 4d 7P 3P 3P 2P 7P P")


class _Attend(torch.autograd.Function):
    """The kernel each way, and plain formulas where its gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, mean: Tensor, var: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        *parameters, setting, bessel = rest
        samples, pairs = len(var), len(setting.weight)
        kept = (var.new_empty(samples, pairs), var.new_empty(pairs), var.new_empty(samples, pairs))
        results = (torch.empty_like(var), torch.empty_like(var))
        _run((mean, var, *parameters), setting, bessel, kept, results)
        ctx.save_for_backward(mean, var, *parameters, *kept)
        ctx.setting, ctx.bessel = setting, bessel
        return results

    @staticmethod
    def backward(ctx: Any, d_weight: Tensor, d_bias: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        saved = ctx.saved_tensors
        inputs, kept = saved[:7], saved[7:]
        if torch.is_grad_enabled() or is_batched(d_weight) or is_batched(d_bias):
            formula = partial(_plain, bessel=ctx.bessel, setting=ctx.setting)
            needed = ctx.needs_input_grad[:7]
            return *gradients_by_autograd(formula, inputs, needed, (d_weight, d_bias)), None, None
        gradients = [torch.empty_like(each) for each in inputs]
        given = (d_weight.resolve_neg().contiguous(), d_bias.resolve_neg().contiguous())
        _run(inputs, ctx.setting, ctx.bessel, kept, given, gradients)
        return *gradients, None, None


def _run(
    inputs: tuple[Tensor, ...],
    setting: Attention,
    bessel: float,
    kept: tuple[Tensor, ...],
    results: tuple[Tensor, Tensor],
    gradients: list[Tensor] | None = None,
) -> None:
    """Forward, or backward with the gradients to fill; the results are then their gradients."""
    samples, channels = results[0].shape
    pairs = len(setting.weight)
    scratch = results[0].new_empty(count_blocks(channels), samples, pairs, dtype=torch.float64)
    arguments = _ARGUMENTS.pack(
        *(ELEMENTS[results[0].dtype], torch.get_num_threads(), samples, channels, pairs),
        *(bessel, setting.eps, setting.norm_eps, setting.pace),
        *(address(each) for each in (*inputs, *setting[5:8], *kept, *results, *(gradients or (None,) * 7), scratch)),
    )
    run_between("attend", arguments)


def _plain(
    mean: Tensor,
    var: Tensor,
    linear: Tensor,
    weight: Tensor,
    bias: Tensor,
    pair_weight: Tensor,
    pair_bias: Tensor,
    *,
    bessel: float,
    setting: Attention,
) -> tuple[Tensor, Tensor]:
    logits = (mean * torch.rsqrt(bessel * var + setting.eps)) @ linear.T
    level = F.batch_norm(logits, None, None, weight, bias, True, 0.0, setting.norm_eps)
    share = F.hardtanh(0.5 + level / 6, 0.0, 1.0)
    return share @ pair_weight, share @ pair_bias
