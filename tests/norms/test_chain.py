"""A chain is its sequence, in two passes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, build
from shiftnorm import ops
from shiftnorm.norms import CNSN, IBN, BatchNorm, Chain, CrossNorm, EFDMix, MomentNorm, SelfNorm
from shiftnorm.ops import passes

MOMENT_CASES = [case for case in CASES if isinstance(case.build(8), MomentNorm)]
PAIRS = [pytest.param(first, second, id=f"{first}+{second}") for first in MOMENT_CASES for second in MOMENT_CASES]


def gradients(y: Tensor, x: Tensor, modules: list[nn.Module], g: Tensor) -> list[Tensor]:
    inputs = [x, *(parameter for module in modules for parameter in module.parameters())]
    found = torch.autograd.grad(y, inputs, g, allow_unused=True)
    return [torch.zeros_like(i) if one is None else one for i, one in zip(inputs, found, strict=True)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_ordered_pair_equals_the_sequence(first: Case, second: Case) -> None:
    norms = [build(first), build(second)]
    if any(norm.is_identity for norm in norms):
        pytest.skip("nothing acts")
    alone = copy.deepcopy(norms)
    chain = Chain(*norms)
    x = (torch.randn(4, 8, 5, 3, dtype=torch.float64) + 1).requires_grad_()
    draw = chain.draw(x)
    y = chain(x, draw=draw)
    want = alone[1](alone[0](x, draw=draw[0]), draw=draw[1])
    torch.testing.assert_close(y, want, rtol=1e-9, atol=1e-9)
    g = torch.randn_like(y)
    for got, expected in zip(gradients(y, x, norms, g), gradients(want, x, alone, g), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)
    for ours, theirs in zip(norms, alone, strict=True):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False])
def test_a_run_of_moment_norms_is_two_passes(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    calls: list[str] = []
    backend = ops.choose(torch.zeros(2, 8, 4, 4))

    class Counting:
        def __getattr__(self, name: str):
            if name in ("moments", "apply", "reduce", "combine"):
                calls.append(name)
            return getattr(backend, name)

    monkeypatch.setattr(passes, "choose", lambda x: Counting())
    chain = Chain(BatchNorm(8), CNSN(8), IBN(8)).train(training)
    y = chain(torch.randn(4, 8, 6, 6, requires_grad=True))
    y.sum().backward()
    assert calls == ["moments", "apply", "reduce", "combine"]


def test_other_modules_end_a_run() -> None:
    chain = Chain(BatchNorm(8), CrossNorm(crop="content"), nn.ReLU(), EFDMix(p=1.0), SelfNorm(8), BatchNorm(8))
    x = torch.randn(4, 8, 6, 6)
    draw = chain.draw(x)
    want = x
    for norm, own in zip(copy.deepcopy(chain).children(), draw, strict=True):
        want = norm(want) if isinstance(norm, nn.ReLU) else norm(want, draw=own)
    torch.testing.assert_close(chain(x, draw=draw), want, rtol=1e-4, atol=1e-5)


def test_nested_chains_are_unpacked() -> None:
    chain = Chain(BatchNorm(4), Chain(SelfNorm(4), Chain(IBN(4))))
    assert [type(norm) for norm in chain.children()] == [BatchNorm, SelfNorm, IBN]
    assert len(chain) == 3
    assert isinstance(chain[1], SelfNorm)


def test_in_evaluation_only_what_acts_is_run() -> None:
    chain = Chain(CrossNorm(), BatchNorm(4)).eval()
    x = torch.randn(2, 4, 5, 5)
    assert chain.draw(x) == (None, None)
    torch.testing.assert_close(chain(x), chain[1](x))
    assert Chain(CrossNorm()).eval()(x) is x


def test_a_module_may_stand_twice() -> None:
    relu = nn.ReLU()
    chain = Chain(BatchNorm(3), relu, IBN(3), relu)
    x = torch.randn(4, 3, 6, 6)
    alone = copy.deepcopy(chain)
    assert len(list(chain)) == len(chain) == 4
    torch.testing.assert_close(chain(x), alone[3](alone[2](alone[1](alone[0](x)))))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"expected MaxPool2d to keep the shape"):
        Chain(BatchNorm(3), nn.MaxPool2d(2), CrossNorm())(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one norm"):
        Chain()
    with pytest.raises(ValueError, match=r"one channel count, got \[4, 8\]"):
        Chain(BatchNorm(4), BatchNorm(8))
    with pytest.raises(TypeError, match="expected modules"):
        Chain(BatchNorm)
    with pytest.raises(KeyError, match="nothing"):
        CNSN(4).from_official({**CNSN(4).to_official(), "nothing": torch.zeros(1)})


def test_hooks_of_a_member_see_its_own_input_and_output() -> None:
    torch.manual_seed(0)
    x, seen = torch.randn(4, 6, 5, 5), {}
    chain = Chain(BatchNorm(6), SelfNorm(6)).eval()
    fused = chain(x)
    handle = chain[0].register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    torch.testing.assert_close(chain(x), fused)
    assert seen["x"] is x
    torch.testing.assert_close(seen["y"], chain[0](x))
    handle.remove()
    seen.clear()
    chain(x)
    assert not seen
