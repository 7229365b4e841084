"""A norm, a residual sum and an activation in one pass: what the three compute one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftnorm.norms import BatchNorm, Chain, SelfNorm
from shiftnorm.ops import Affine, Moments, apply, moments, use_backend
from shiftnorm.ops.epilogue import apply_activated, normalize_activated
from triton_device import DEVICE, LAYOUTS, random, runs_kernels

ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
BACKENDS = ["eager", pytest.param("triton", marks=runs_kernels)]
WAYS = ["joined", "apart"]
SHAPES = [(2, 3, 5, 4), (1, 2, 4100), (3, 5)]


def inputs(shape: tuple[int, ...], layout: str, dtype: torch.dtype, *, residual: bool) -> list[Tensor]:
    tensors = [random(shape, layout, dtype) for _ in range(1 + residual)]
    rows = [torch.rand(1, shape[1]).to(DEVICE), torch.randn(shape[0], shape[1]).to(DEVICE)]
    return [tensor.requires_grad_() for tensor in (*rows, *tensors)]


def affine_of(m: Moments, weight: Tensor, bias: Tensor) -> Affine:
    return Affine(weight * torch.rsqrt(m.var + 0.1), bias + 0.3 * m.mean)


def fused(way: str, activation: str, weight: Tensor, bias: Tensor, x: Tensor, residual: Tensor | None = None) -> Tensor:
    behind = {"residual": residual, "activation": activation}
    if way == "joined":
        return normalize_activated(x, lambda m: affine_of(m, weight, bias), **behind)
    m = moments(x)
    return apply_activated(x, m, affine_of(m, weight, bias), **behind)


def separate(activation: str, weight: Tensor, bias: Tensor, x: Tensor, residual: Tensor | None = None) -> Tensor:
    m = moments(x)
    y = apply(x, m, affine_of(m, weight, bias))
    return ACTIVATIONS[activation](y if residual is None else y + residual)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients(
    backend: str, way: str, layout: str, activation: str, residual: bool, poisoned: None
) -> None:
    one = backend == "eager" or way == "apart" or activation in ("none", "gelu")
    for shape in SHAPES[:1] if one else SHAPES:
        given = inputs(shape, layout, torch.float32, residual=residual)
        exact = [tensor.detach().double().requires_grad_() for tensor in given]
        with use_backend(backend):
            y = fused(way, activation, *given)
            g = torch.randn(shape).to(DEVICE)
            gradients = torch.autograd.grad(y, given, g)
        want = separate(activation, *exact)
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
        assert y.stride() == given[2].stride()
        for got, right in zip(gradients, torch.autograd.grad(want, exact, g.double()), strict=True):
            torch.testing.assert_close(got.double(), right, rtol=1e-3, atol=1e-3 * (1 + float(right.abs().max())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_bits(backend: str, way: str, dtype: torch.dtype) -> None:
    given = inputs((2, 3, 5, 4), "channels_last", dtype, residual=True)
    with use_backend(backend):
        y = fused(way, "silu", *given)
        gradients = torch.autograd.grad(y, given, torch.ones_like(y))
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    want = separate("silu", *exact)
    assert y.dtype == gradients[2].dtype == gradients[3].dtype == dtype
    torch.testing.assert_close(y.double(), want, rtol=2.0**-7 if dtype == torch.bfloat16 else 2.0**-10, atol=1e-3)
    right = torch.autograd.grad(want, exact, torch.ones_like(want))
    for got, exactly in zip(gradients, right, strict=True):
        torch.testing.assert_close(got.double(), exactly, rtol=2e-2, atol=2e-2 * float(exactly.abs().max()))


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str, way: str, activation: str) -> None:
    def penalty(function: Callable[..., Tensor], *arguments: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        y = function(*arguments, activation, *tensors)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(tensor.square().sum() for tensor in first), tensors)

    given = inputs((2, 3, 5, 4), "contiguous", torch.float32, residual=True)
    with use_backend(backend):
        got = penalty(fused, way, tensors=given)
    want = penalty(separate, tensors=[tensor.detach().double().requires_grad_() for tensor in given])
    for ours, right in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


@runs_kernels
def test_four_launches_when_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    from shiftnorm.ops import triton_passes

    seen: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        plain = getattr(triton_passes, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            return plain(*arguments, **options)

        return call

    for name in ("moments", "apply", "reduce", "combine"):
        monkeypatch.setattr(triton_passes, name, counted(name))
    given = inputs((2, 3, 5, 4), "contiguous", torch.float32, residual=True)
    with use_backend("triton"):
        fused("joined", "relu", *given).sum().backward()
    assert seen == ["moments", "apply", "reduce", "combine"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("asked", [(0, 1), (2,), (3,), (1, 3)], ids=str)
def test_gradients_of_some(backend: str, asked: tuple[int, ...]) -> None:
    given = inputs((2, 3, 5, 4), "contiguous", torch.float32, residual=True)
    ours = [tensor.detach().requires_grad_(place in asked) for place, tensor in enumerate(given)]
    exact = [tensor.detach().double().requires_grad_(place in asked) for place, tensor in enumerate(given)]
    g = torch.randn(2, 3, 5, 4).to(DEVICE)
    with use_backend(backend):
        y = fused("joined", "silu", *ours)
        # Of a graph that is walked twice the first walk ends before the node of the moments.
        early = torch.autograd.grad(y, ours[asked[0]], g, retain_graph=True)
        gradients = torch.autograd.grad(y, [ours[place] for place in asked], g)
    right = torch.autograd.grad(separate("silu", *exact), [exact[place] for place in asked], g.double())
    for got, want in zip((*early, *gradients), (right[0], *right), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ELU()]
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_activation_in_a_chain(backend: str, activation: nn.Module, training: bool) -> None:
    chain = Chain(BatchNorm(3), SelfNorm(3), activation, SelfNorm(3)).to(DEVICE).train(training)
    single = copy.deepcopy(chain)
    x, g = random((4, 3, 5, 4), "contiguous"), torch.randn(4, 3, 5, 4).to(DEVICE)
    outcomes: list[list[Tensor]] = []
    with use_backend(backend):
        for norm, steps in ((chain, [chain]), (single, list(single))):
            own = x.clone().requires_grad_()
            y = own
            for step in steps:
                y = step(y)
            outcomes.append([y.detach(), *torch.autograd.grad(y, [own, *norm.parameters()], g)])
    for got, want in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * (1 + float(want.abs().max())))


def test_hooks_of_an_activation_in_a_chain_fire() -> None:
    chain = Chain(BatchNorm(3), SelfNorm(3), nn.ReLU())
    seen: list[Tensor] = []
    chain[2].register_forward_hook(lambda module, inputs, y: seen.append(y))
    y = chain(torch.randn(4, 3, 5, 4))
    assert seen[0] is y


@runs_kernels
def test_the_kernel_of_both_paths_equals_the_sum_of_two() -> None:
    from shiftnorm.ops import triton_passes
    from shiftnorm.ops.triton_backend import TritonBackend

    x, residual, g = (random((2, 3, 5, 4), "contiguous") for _ in range(3))
    gain, center, mean, slope, offset = (torch.randn(2, 3).to(DEVICE) for _ in range(5))
    dx, h = triton_passes.combine(g, x, gain, center, slope, offset, mean, residual, "gelu")
    assert h is not None
    torch.testing.assert_close(dx, TritonBackend().combine(h, x, gain, center, center, slope, offset))


def test_what_is_unknown_is_refused() -> None:
    x = torch.randn(2, 3, 4)
    m = moments(x)
    with pytest.raises(ValueError, match="expected activation to be one of none, relu, silu, gelu, got 'tanh'"):
        apply_activated(x, m, Affine(m.var, m.mean), activation="tanh")
    with pytest.raises(ValueError, match=r"expected a residual of x's shape \(2, 3, 4\), got \(3, 4\)"):
        apply_activated(x, m, Affine(m.var, m.mean), residual=x[0])
