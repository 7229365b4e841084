"""The fused gradients under everything autograd can do with a graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from planes import FORMATS, inputs, mixed, norm, plain
from shiftnorm.ops import Affine, Moments, normalize
from shiftnorm.ops.passes import _moments_in_two_steps


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    arguments = inputs(3, 4, 5, 5)
    want = torch.autograd.grad(norm(*arguments).square().sum(), arguments)
    checkpoint(norm, *arguments, use_reentrant=reentrant).square().sum().backward()
    for argument, gradient in zip(arguments, want, strict=True):
        torch.testing.assert_close(argument.grad, gradient)


def test_functional_transforms() -> None:
    x, weight, bias = (argument.detach() for argument in inputs(3, 2, 4, 4))
    loss = lambda x: norm(x, weight, bias).square().sum()
    reference = lambda x: plain(x, weight, bias).square().sum()
    torch.testing.assert_close(torch.func.grad(loss)(x), torch.func.grad(reference)(x))
    tangent = torch.randn_like(x)
    torch.testing.assert_close(
        torch.func.jvp(loss, (x,), (tangent,))[1], torch.func.jvp(reference, (x,), (tangent,))[1]
    )
    stack = torch.randn(5, *x.shape, dtype=x.dtype)
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(loss))(stack), torch.stack([torch.func.grad(reference)(one) for one in stack])
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        assert torch.autograd.forward_ad.unpack_dual(norm(dual, weight, bias)).tangent is not None


def test_graph_can_be_walked_twice_in_parts_and_copied() -> None:
    x, weight, bias = inputs(3, 2, 4, 4)
    y = norm(x, weight, bias)
    once = torch.autograd.grad(y.sum(), (x, weight), retain_graph=True)
    torch.autograd.grad(y.sum(), weight, retain_graph=True)  # the first node is not walked, and must not remember
    again = torch.autograd.grad(y.sum(), (x, weight), retain_graph=True)
    torch.testing.assert_close(once, again)
    torch.autograd.grad(y.sum(), weight, retain_graph=True)
    honest = torch.autograd.grad(y.sum(), (x, weight), create_graph=True)
    torch.testing.assert_close(once, honest)
    stashed: list[Moments] = []

    def keep(m: Moments) -> Affine:
        stashed.append(m)
        return mixed(m, weight, bias)

    y = normalize(x, keep)
    torch.autograd.grad(y.sum(), weight, retain_graph=True)
    (alone,) = torch.autograd.grad(stashed[0].var.sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(x.var((2, 3), correction=0).sum(), x)
    torch.testing.assert_close(alone, expected)
    (both,) = torch.autograd.grad(y.sum() + stashed[0].var.sum(), x)
    torch.testing.assert_close(both, torch.autograd.grad(plain(x, weight, bias).sum(), x)[0] + expected)


def test_gradient_penalty_under_checkpointing() -> None:
    arguments = inputs(3, 4, 5, 5)

    def penalty(function) -> list[Tensor]:
        y = function(*arguments)
        (gradient,) = torch.autograd.grad(y.square().sum(), arguments[0], create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), arguments))

    got = penalty(lambda *a: checkpoint(norm, *a, use_reentrant=False))
    for ours, theirs in zip(got, penalty(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batched_gradients(layout: str, offset: float) -> None:
    x, weight, bias = inputs(3, 4, 5, 5, layout=layout)
    x = (x.detach() + offset).requires_grad_()
    y = norm(x, weight, bias)
    g = torch.randn(6, *y.shape, dtype=y.dtype)
    (batched,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    one_by_one = torch.stack([torch.autograd.grad(y, x, single, retain_graph=True)[0] for single in g])
    torch.testing.assert_close(batched, one_by_one, rtol=1e-6, atol=1e-6)


def test_the_variance_in_two_steps_is_the_variance_in_every_derivative() -> None:
    def derivatives(moments_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
        found = list(moments_of(x))
        total = (found[0] * weight + found[1].square()).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(total, x, create_graph=True)
            found.append(gradient)
            total = (gradient * direction).sum()
        return found

    def in_one(data: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(data, (2, 3), correction=0)
        return mean, var

    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    direction, weight = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(derivatives(_moments_in_two_steps), derivatives(in_one), rtol=1e-12, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        tangents = [
            torch.autograd.forward_ad.unpack_dual(each).tangent
            for moments_of in (_moments_in_two_steps, in_one)
            for each in moments_of(dual)
        ]
    torch.testing.assert_close(tangents[:2], tangents[2:], rtol=1e-12, atol=1e-12)
