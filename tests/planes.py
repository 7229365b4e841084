"""A norm in which everything depends on everything, fused and as one plain formula, and inputs for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftnorm.ops import Affine, Moments, normalize
from shiftnorm.ops.cpp import CppBackend

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BACKENDS = ("cpp", "aten", "eager")
NO_CPP = CppBackend().unsupported(torch.zeros(1, 1, 2))


def mixed(m: Moments, weight: Tensor, bias: Tensor) -> Affine:
    """An affine in which everything depends on everything: own, batch and permuted moments, parameters."""
    batch = m.pooled(over="batch")
    other = m.permuted(torch.arange(m.mean.shape[0] - 1, -1, -1))
    gain = weight * torch.rsqrt(0.5 * m.var + 0.5 * batch.var + 1e-5)
    return Affine(gain, bias + 0.3 * m.mean - 0.2 * batch.mean + 0.1 * torch.sqrt(other.unbiased + 1e-3))


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in one autograd formula, nothing of ours but the tuples."""
    dims = tuple(range(2, x.dim()))
    mean, var = x.mean(dims), x.var(dims, correction=0)
    affine = mixed(Moments(mean, var, x[0, 0].numel()), weight, bias)
    shape = (*mean.shape, *(1 for _ in dims))
    return affine.gain.view(shape) * (x - mean.view(shape)) + affine.mean.expand_as(mean).reshape(shape)


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return normalize(x, lambda m: mixed(m, weight, bias))


def skip_without_compiler(backend: str) -> None:
    if backend == "cpp" and NO_CPP is not None:
        pytest.skip(f"the C++ backend {NO_CPP}")


def inputs(
    *shape: int, dtype: torch.dtype = torch.float64, layout: str = "contiguous"
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    if layout == "channels_last" and len(shape) > 3:
        x = x.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return (
        x.requires_grad_(),
        torch.rand(1, shape[1], dtype=dtype, requires_grad=True),
        torch.randn(1, shape[1], dtype=dtype, requires_grad=True),
    )
