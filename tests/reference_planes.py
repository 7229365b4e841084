"""The few pieces all plain formulas share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]
Buffers = dict[str, Tensor]


def planes(x: Tensor) -> Tensor:
    """(N, C, *) as (N, C, L)."""
    return x.reshape(x.shape[0], x.shape[1], -1)


def per_channel(value: Tensor) -> Tensor:
    """C values, whatever their shape, ready to broadcast over (N, C, L)."""
    return value.reshape(1, -1, 1)


def mean_var(x: Tensor, dim: int | tuple[int, ...], *, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over ``dim``, kept; the unbiased variance of a single element is 0."""
    mean = x.mean(dim, keepdim=True)
    count = x.numel() // max(mean.numel(), 1)
    square = ((x - mean) ** 2).sum(dim, keepdim=True)
    return mean, square / max(count - correction, 1)


def mean_std(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of every plane of an (N, C, L) tensor."""
    mean, var = mean_var(x, -1, correction=1)
    return mean, (var + eps).sqrt()


def scale_shift(x: Tensor, state: State) -> Tensor:
    if "weight" in state:
        x = x * per_channel(state["weight"])
    if "bias" in state:
        x = x + per_channel(state["bias"])
    return x


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """The entries under ``prefix.``, without the prefix."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(prefix + ".")}


def under(prefix: str, buffers: Buffers) -> Buffers:
    return {f"{prefix}.{name}": value for name, value in buffers.items()}
