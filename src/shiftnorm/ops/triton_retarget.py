"""How the Triton kernels of ``retargeting`` are launched."""

# pyright: reportUnknownMemberType=false
# The arguments of a Triton kernel have no types.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shiftnorm.ops import triton_retarget_kernels as kernels
from shiftnorm.ops.triton_passes import Wrap, bare

if TYPE_CHECKING:
    from shiftnorm.ops.retargeting import Pool, Setting

_TILE = 1024  # samples times channels: eight numbers for every thread
_ROWS = 128  # samples, if there are as many: few steps, one after the other, and many programs
_COLUMNS = 32  # channels: full 128-byte lines; a quarter of it at least, what memory hands out at once
_LOOKED_THROUGH = 1 << 13  # pairs of a sample and one that may look at it, which the gradient's kernel compares at once
_MOST_SAMPLES = 1 << 10


def takes(samples: int, *, exchanges: bool) -> bool:
    """Whether so many samples are for the kernels: with an exchange each is looked for among all.

    Example:
        >>> takes(4096, exchanges=False), takes(4096, exchanges=True)
        (True, False)
    """
    return samples <= _MOST_SAMPLES or not exchanges


def _launch(samples: int, channels: int) -> tuple[tuple[int], dict[str, int]]:
    rows = min(_ROWS, _power_of_2(samples))
    columns = min(_COLUMNS, _TILE // rows, _power_of_2(channels))
    return (-(-channels // columns),), {"ROWS": rows, "COLUMNS": columns}


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()


def forward(inputs: Sequence[Tensor | None], setting: Setting, *, wrap: Wrap = bare) -> tuple[Tensor, Tensor, Tensor]:
    """Gain and mean, (N, C) float32, and what the backward pass wants, (3, C).

    ``inputs`` are var, mean, gain, linear, weight and bias of the gate, weight, bias and share of the BatchNorm, as
    ``retargeting`` has checked them; moments and gain are (N, C).
    """
    var, mean, gain, linear, gate_weight, gate_bias, *front = inputs
    assert var is not None
    samples, channels = var.shape
    pool, exchange, gate = setting.pool, setting.exchange, setting.gate
    kept = torch.empty(3, channels, dtype=torch.float32, device=var.device)
    new_gain, new_mean = torch.empty_like(var), torch.empty_like(var)
    grid, tile = _launch(samples, channels)
    every = float(setting.size * samples)
    with torch.cuda.device_of(var):
        wrap(kernels.retarget_block)[grid](
            *(mean, var, gain, *front, *(pool[2:5] if pool else (None,) * 3)),
            *((exchange.partner.contiguous(), exchange.acts) if exchange else (None, None)),
            *(linear, gate_weight, gate_bias, *(gate[3:6] if gate else (None,) * 3)),
            *(new_gain, new_mean, kept, samples, channels, every / max(every - 1, 1), setting.bessel),
            *((float(pool.eps), float(pool.pace)) if pool else (0.0, 0.0)),
            float(exchange.eps) if exchange else 0.0,
            *((float(gate.eps), float(gate.norm_eps), float(gate.pace), float(gate.height)) if gate else (0.0,) * 4),
            **(_flags(front, pool) | tile),
        )
    return new_gain, new_mean, kept


def backward(
    inputs: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    setting: Setting,
    given: tuple[Tensor, Tensor],
    *,
    wrap: Wrap = bare,
) -> list[Tensor | None]:
    """The gradients of all inputs from those of gain and mean."""
    var, mean, gain, linear, gate_weight, gate_bias, *front = inputs
    assert var is not None
    samples, channels = var.shape
    pool, exchange, gate = setting.pool, setting.exchange, setting.gate
    gradients = [None if each is None else torch.empty_like(each) for each in inputs]
    d_var, d_mean, d_gain, d_linear, d_gate_weight, d_gate_bias, *d_front = gradients
    scratch = var.new_empty(3 * bool(exchange) + bool(pool), samples, channels)
    grid, tile = _launch(samples, channels)
    if exchange:
        tile["SAMPLES"] = _power_of_2(samples)
        tile["ROWS"] = max(1, min(tile["ROWS"], _LOOKED_THROUGH // tile["SAMPLES"]))
    with torch.cuda.device_of(var):
        wrap(kernels.retarget_gradient_block)[grid](
            *(mean, var, gain, *front),
            *((exchange.partner.contiguous(), exchange.acts) if exchange else (None, None)),
            *(linear, gate_weight, gate_bias, *kept, *given),
            *(d_mean, d_var, scratch[-1] if pool else d_gain, *d_front, d_linear, d_gate_weight, d_gate_bias, scratch),
            *(samples, channels, samples * channels, setting.bessel),
            float(pool.eps) if pool else 0.0,
            float(exchange.eps) if exchange else 0.0,
            *((float(gate.eps), float(gate.height)) if gate else (0.0, 1.0)),
            **(_flags(front, pool) | {"SAMPLES": 1} | tile),
        )
    return gradients


def _flags(front: Sequence[Tensor | None], pool: Pool | None) -> dict[str, bool]:
    weights, biases = (each is not None and each.dim() == 2 for each in front[:2])
    return {"POOLED": pool is not None, "WEIGHTS": weights, "BIASES": biases}
