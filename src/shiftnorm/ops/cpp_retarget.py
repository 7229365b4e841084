"""How the C++ kernel of ``retargeting`` is called."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shiftnorm.ops.cpp import run_between
from shiftnorm.ops.rows import ELEMENTS, address

if TYPE_CHECKING:
    from shiftnorm.ops.retargeting import Setting

__all__ = ["backward", "forward"]

# ``struct Retarget`` of kernels/retarget.h: integers, numbers and addresses, eight bytes each. A ctypes structure would
# take ten times as long to fill.
_ARGUMENTS = struct.Struct("@4q d 3P 2q 3P 2q 3P 3P 3d P d 6P 4d 4P 2P 10P")


def forward(inputs: Sequence[Tensor | None], setting: Setting) -> tuple[Tensor, ...]:
    """Gain and mean, (N, C), and what the backward pass wants: rows (N, C) and rows (C,).

    Example:
        >>> forward.__name__  # ``retarget`` checks the inputs
        'forward'

    Args:
        inputs: var, mean, gain, linear, weight and bias of the gate, weight, bias and share of the BatchNorm.
        setting: what else the kernel is told.

    Raises:
        IndexError: if a partner is no sample of the batch.
    """
    var = inputs[0]
    assert var is not None
    samples, channels = var.shape
    followed = bool(setting.exchange) or bool(setting.gate)
    rows = 2 * (bool(setting.pool) and followed) + bool(setting.exchange) + 2 * bool(setting.gate)
    kept, of_channels = var.new_empty(rows, samples, channels), var.new_empty(3, channels)
    new_gain, new_mean = torch.empty_like(var), torch.empty_like(var)
    if not _run(inputs, kept, of_channels, setting, (new_gain, new_mean)):
        partner = setting.exchange and setting.exchange.partner
        raise IndexError(f"CrossNorm: expected partners from 0 to {samples - 1}, got {partner}.")
    return new_gain, new_mean, kept, of_channels


def backward(
    inputs: Sequence[Tensor | None], kept: Sequence[Tensor], setting: Setting, given: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    """The gradients of all inputs from those of gain and mean.

    Example:
        >>> backward.__name__  # called by autograd
        'backward'

    Args:
        inputs: those of :func:`forward`.
        kept: what the backward pass wants, from there.
        setting: as there.
        given: the gradients, contiguous.
    """
    gradients = [None if each is None else torch.empty_like(each) for each in inputs]
    scratch = kept[0].new_empty(2 if setting.pool else 1, *kept[0].shape[1:])
    rows, of_channels = kept
    _run(inputs, rows, of_channels, setting, given, gradients, scratch)
    return gradients


def _run(
    inputs: Sequence[Tensor | None],
    kept: Tensor,
    of_channels: Tensor,
    setting: Setting,
    results: tuple[Tensor, Tensor],
    gradients: Sequence[Tensor | None] = (None,) * 9,
    scratch: Tensor | None = None,
) -> bool:
    """Forward, or backward with the gradients to fill; the results are then their gradients."""
    var, mean, gain, linear, weight, bias, *front = inputs
    assert var is not None and mean is not None
    samples, channels = var.shape
    pool, exchange, gate = setting.pool, setting.exchange, setting.gate
    partner = None if exchange is None else exchange.partner.contiguous()
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
