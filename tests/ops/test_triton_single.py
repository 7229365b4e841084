"""Norms that read x once: what the two passes give, and the same gradients, also of gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import GroupNorm, InstanceNorm, LayerNorm
from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.fused import run_fused
from shiftnorm.ops import single, use_backend
from shiftnorm.ops.single import normalize_at_once
from triton_device import COMPILED, DEVICE, DTYPES, LAYOUTS, assert_near, laid_out, random, runs_kernels

pytestmark = runs_kernels

# shape, channels that share moments
CASES = [
    ((2, 3, 7), 1),
    ((3, 5), 5),
    ((2, 6, 1, 1), 3),
    ((2, 6, 5, 3), 3),  # a set that fills three rows of four
    ((3, 8, 4, 2), 2),
    ((2, 4, 2, 3, 2), 4),
    ((1, 12, 6, 6), 4),
    ((5, 40, 3, 1), 1),  # several programs to a sample, several samples to a program
    ((2, 70, 3, 3), 7),
    ((40, 2, 5), 1),
    *(
        [
            ((64, 2048, 7, 7), 64),
            ((64, 1024, 14, 14), 32),
            ((8, 512, 28, 28), 16),
            ((8, 33, 112, 112), 1),
            ((3, 96, 28, 28), 3),
            ((70000, 16), 16),
            ((64, 12345), 12345),
            ((70000, 30, 4, 4), 3),
        ]
        if COMPILED
        else []
    ),
]


def exact(x: Tensor, sharing: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """The formula, in the precision of x."""
    sets = x.reshape(x.shape[0], x.shape[1] // sharing, -1)
    var, mean = torch.var_mean(sets, 2, correction=0, keepdim=True)
    y = ((sets - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    row = (1, -1, *(1 for _ in x.shape[2:]))
    return y if weight is None or bias is None else y * weight.reshape(row) + bias.reshape(row)


def at_once(x: Tensor, sharing: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    with use_backend("triton"):
        y = normalize_at_once(x, sharing, weight, bias, 1e-5)
    assert y is not None
    return y


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.randn(channels) + 0.5).to(DEVICE, dtype).requires_grad_() for _ in range(2)]


def check(x: Tensor, sharing: int, rows: list[Tensor], g: Tensor) -> None:
    given = [x.detach().requires_grad_(), *rows]
    y = at_once(given[0], sharing, *(rows or [None, None]))
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    want = exact(wide[0], sharing, *(wide[1:] or [None, None]))
    assert y.dtype == x.dtype and y.stride() == x.stride()
    assert_near(y, want.detach(), x.dtype)
    gradients = torch.autograd.grad(y, given, g)
    assert gradients[0].stride() == x.stride()
    for got, right, tensor in zip(gradients, torch.autograd.grad(want, wide, g.double()), given, strict=True):
        assert got.dtype == tensor.dtype and got.shape == tensor.shape
        assert_near(got, right, tensor.dtype)


@pytest.mark.parametrize(("shape", "sharing"), CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients(shape: tuple[int, ...], sharing: int, layout: str, poisoned: None) -> None:
    x, g = random(shape, layout), random(shape, layout)
    check(x, sharing, parameters(shape[1]), g)
    check(x, sharing, [], g)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wide", [False, True], ids=["own_dtype", "float32_parameters"])
def test_sixteen_bits(dtype: torch.dtype, layout: str, wide: bool, poisoned: None) -> None:
    shape = (2, 6, 5, 3)
    rows = parameters(6, torch.float32 if wide else dtype)
    check(random(shape, layout, dtype), 3, rows, random(shape, layout, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_any_layout(layout: str) -> None:
    x, rows = random((2, 6, 5, 4), layout), parameters(6)
    for g in (
        random((2, 6, 5, 4), "contiguous" if layout == "channels_last" else "channels_last"),
        torch.ones((), device=DEVICE).expand(2, 6, 5, 4),
        random((2, 6, 5, 8), "contiguous")[..., ::2],
    ):
        check(x, 2, rows, g)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sharing", [1, 2])
def test_a_large_mean_costs_no_digits(layout: str, sharing: int) -> None:
    x = laid_out((torch.randn(2, 4, 9, 8, dtype=torch.float64) + 1e4).to(DEVICE, torch.float32), layout)
    check(x, sharing, parameters(4), random((2, 4, 9, 8), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_planes_give_exactly_the_bias(layout: str, dtype: torch.dtype) -> None:
    values = (torch.randn(2, 3, 1) * 100).to(DEVICE, dtype)
    weight, bias = parameters(3, dtype)
    x = laid_out(values.expand(2, 3, 77), layout).requires_grad_()
    y = at_once(x, 1, weight, bias)
    assert torch.equal(y, bias.detach()[None, :, None].expand_as(y))
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    assert not dweight.any() and torch.equal(dbias, torch.full_like(dbias, 2 * 77))
    assert (dx.abs() <= 1e-2 * weight.abs()[None, :, None]).all()


@pytest.mark.filterwarnings("ignore:.*invalid value encountered:RuntimeWarning")  # numpy, where a GPU computes on
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_that_are_not_finite_stay_in_their_set(layout: str, value: float) -> None:
    x = torch.randn(2, 6, 5, 3)
    x[1, 3, 2, 1] = value
    x = laid_out(x.to(DEVICE), layout).requires_grad_()
    y = at_once(x, 2, *parameters(6))
    (dx,) = torch.autograd.grad(y, x, random((2, 6, 5, 3), layout))
    for tensor in (y, dx):
        rest = tensor.detach().clone()
        assert not rest[1, 2:4].isfinite().any()
        rest[1, 2:4] = 0
        assert rest.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_twice(layout: str) -> None:
    x, g = (random((4, 6, 5, 3), layout) for _ in range(2))
    x.requires_grad_()
    rows = parameters(6)
    results = [[y := at_once(x, 3, *rows), *torch.autograd.grad(y, (x, *rows), g)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_what_is_wanted_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from shiftnorm.ops import triton_single

    asked: list[tuple[bool, bool]] = []
    whole = triton_single.backward

    def noted(*arguments: Any, of_x: bool, of_parameters: bool) -> Any:
        asked.append((of_x, of_parameters))
        return whole(*arguments, of_x=of_x, of_parameters=of_parameters)

    monkeypatch.setattr(triton_single, "backward", noted)
    x, rows = random((2, 6, 5), "contiguous"), parameters(6)
    y = at_once(x, 2, *rows)
    assert [t.shape for t in torch.autograd.grad(y.sum(), rows)] == [(6,), (6,)]
    frozen = [row.detach() for row in rows]
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(at_once(leaf, 2, *frozen).sum(), leaf)
    assert asked == [(False, True), (True, False)]


NORMS = [InstanceNorm(8), InstanceNorm(8, affine=True), GroupNorm(8, 2), GroupNorm(8, 4, affine=False), LayerNorm(8)]


@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norms_take_it_and_agree_with_their_two_passes(
    norm: MomentNorm, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = copy.deepcopy(norm).to(DEVICE)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    ran: list[int] = []
    function = single._AtOnce
    monkeypatch.setattr(function, "apply", lambda *a, run=function.apply: (ran.append(1), run(*a))[1])
    x, g = random((3, 8, 5, 3), layout).requires_grad_(), random((3, 8, 5, 3), layout)
    inputs = (x, *norm.parameters())
    with use_backend("triton"):
        results = [
            [y := way(x), *torch.autograd.grad(y, inputs, g)] for way in (norm, lambda x: run_fused([norm], x, [None]))
        ]
        assert len(ran) == 1
        norm(x, mask=torch.ones(3, 1, 5, 3, device=DEVICE))
        if isinstance(norm, LayerNorm):
            norm(random((1, 8, 50, 60), layout))  # does not fit
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    with use_backend("eager"):
        norm(x)
    torch.func.vmap(norm)(x.detach()[None])
    assert len(ran) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_derivatives_and_batched_gradients(layout: str) -> None:
    x, rows = random((2, 4, 3, 2), layout).requires_grad_(), parameters(4)
    given = [x, *rows]
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    found: list[list[Tensor]] = []
    for inputs, way in ((given, at_once), (wide, exact)):
        first = torch.autograd.grad(way(inputs[0], 2, *inputs[1:]).pow(3).sum(), inputs, create_graph=True)
        penalty = sum(tensor.square().sum() for tensor in first)
        assert isinstance(penalty, Tensor)
        found.append([*first, *torch.autograd.grad(penalty, inputs)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * float(want.detach().abs().max()))
    g = torch.stack([random((2, 4, 3, 2), layout) for _ in range(3)])
    batched = torch.autograd.grad(at_once(x, 2, *rows), given, g, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(at_once(x, 2, *rows), given, each) for each in g]
    for got, *wanted in zip(batched, *one_by_one, strict=True):
        torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-4)


def test_it_keeps_x_and_little_else() -> None:
    x, rows = random((4, 8, 16, 16), "contiguous").requires_grad_(), parameters(8)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        at_once(x, 2, *rows)
    assert sum(kept.values()) < 1.05 * x.untyped_storage().nbytes()
