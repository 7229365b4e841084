"""The Triton kernel between the passes: the formulas' numbers and gradients, and what it does with bad partners."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import (
    CNSN,
    IBN,
    BatchInstanceNorm,
    BatchNorm,
    Chain,
    CrossNorm,
    InstanceNorm,
    LayerNorm,
    RepresentativeBatchNorm,
    SelfNorm,
    base,
    cross_norm,
)
from shiftnorm.ops import Affine, Exchange, Gate, Moments, Pool, retarget, use_backend
from shiftnorm.ops import retargeting as module
from triton_device import DEVICE, runs_kernels

pytestmark = runs_kernels

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "SelfNorm": SelfNorm,
    "SelfNorm with two branches": lambda channels: SelfNorm(channels, two_branches=True, start="identity"),
    "CrossNorm": CrossNorm,
    "CNSN": CNSN,
    "behind BatchNorm": lambda channels: Chain(BatchNorm(channels), *CNSN(channels)),
    "behind a bare BatchNorm": lambda channels: Chain(
        BatchNorm(channels, affine=False, track_running_stats=False), SelfNorm(channels)
    ),
    "behind means of channels": lambda channels: Chain(InstanceNorm(channels, affine=True), CrossNorm()),
    "behind gains of samples": lambda channels: Chain(LayerNorm(channels), CrossNorm()),
    "BatchNorm twice": lambda channels: Chain(BatchNorm(channels), BatchNorm(channels, affine=False)),
    "IBN": IBN,
    "BatchInstanceNorm": BatchInstanceNorm,
    "RepresentativeBatchNorm": RepresentativeBatchNorm,
}
SHAPES = [(2, 1, 3, 2), (7, 5, 4, 3), (33, 40, 2, 3)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for every call of the kernel forward."""
    seen: list[bool] = []
    kernels = module._triton()
    plain = kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *each, **more: (seen.append(True), plain(*each, **more))[1])
    return seen


def spread_planes(shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape) * (0.5 + torch.rand(*shape[:2], 1, 1)) + torch.randn(*shape[:2], 1, 1)
    return x.to(DEVICE)


def everything(norm: nn.Module, x: Tensor, g: Tensor, draw: Any) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one step."""
    x = x.detach().clone().requires_grad_()
    y = norm(x, draw=draw)
    y.backward(g)
    found = {"output": y.detach(), "gradient of x": x.grad}
    found |= {f"gradient of {name}": each.grad for name, each in norm.named_parameters() if each.grad is not None}
    return {**found, **{name: each.clone() for name, each in norm.named_buffers()}}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_outputs_gradients_and_buffers_are_the_formulas(name: str, shape: tuple[int, ...], calls: list[bool]) -> None:
    norm = NORMS[name](shape[1]).to(DEVICE).train()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = spread_planes(shape)
    g, draw = torch.randn_like(x), norm.draw(x)
    with use_backend("triton"):
        found = everything(copy.deepcopy(norm), x, g, draw)
    assert calls
    calls.clear()
    with use_backend("eager"):
        plain = everything(copy.deepcopy(norm), x, g, draw)
        truth = everything(copy.deepcopy(norm).double(), x.double(), g.double(), draw)
    assert not calls and found.keys() == plain.keys()
    for key, value in truth.items():
        size = max(float(value.double().abs().max()), 1.0)
        theirs, own = (float((each[key].double() - value.double()).abs().max()) for each in (plain, found))
        assert own <= max(2e-4 * size, 4 * theirs), f"{key}: off by {own}, not {theirs}"


@pytest.mark.parametrize("acts", [True, False])
def test_a_flag_that_nobody_may_look_at(acts: bool, calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (base, cross_norm):
        monkeypatch.setattr(each, "is_known", lambda flag: False)
    norm, x = Chain(BatchNorm(5), *CNSN(5)).to(DEVICE), spread_planes((6, 5, 3, 2))
    g, draw = torch.randn_like(x), norm.draw(x)
    draw = (None, draw[1]._replace(acts=torch.tensor(acts, device=DEVICE)), None)
    with use_backend("triton"):
        found = everything(copy.deepcopy(norm), x, g, draw)
    assert calls
    with use_backend("eager"):
        expected = everything(copy.deepcopy(norm), x, g, draw)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=2e-4, atol=2e-5)


def test_partners_that_are_no_permutation() -> None:
    m = Moments(torch.randn(5, 3, device=DEVICE), torch.rand(5, 3, device=DEVICE), 9)
    partner = torch.tensor([1, 1, 1, 4, 0], device=DEVICE)
    rows = [torch.randn(3, 2, device=DEVICE), *torch.randn(2, 3, device=DEVICE).unbind()]
    weights = torch.randn(2, 5, 3, device=DEVICE).unbind()
    share = torch.tensor([0.0, 1.0, 0.3], device=DEVICE)
    inputs = [m.mean, m.var, *rows, *weights, share]
    results = []
    for dtype in (torch.float32, torch.float64):  # the formulas, where Triton does not take numbers
        given = [each.to(dtype).detach().requires_grad_() for each in inputs]
        mean, var, linear, weight, bias, of_pool, bias_of_pool, share = given
        pool = Pool(of_pool, bias_of_pool, None, None, None, pace=0.0, eps=1e-5, share=share)
        gate = Gate(linear, weight, bias, None, None, None, pace=0.0, eps=1e-12, norm_eps=1e-5, height=2.0)
        exchange = Exchange(partner, 1e-5)
        if dtype == torch.float32:
            with use_backend("triton"):
                affine = retarget(Moments(mean, var, 9), pool, exchange, gate)
            assert affine is not None
        else:
            setting = module.Setting(9, pool, exchange, gate, on_cpu=False)
            affine = Affine(*module._plain([var, mean, None, *given[2:]], setting))
        total = (affine.gain * torch.arange(15, device=DEVICE).view(5, 3)).sum() + affine.mean.square().sum()
        results.append([*affine, *torch.autograd.grad(total, given)])
    for ours, formula in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), formula.double(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("beyond", [-1, 4, 2**40])
def test_a_partner_that_is_no_sample_gives_nan(beyond: int) -> None:
    m = Moments(torch.randn(4, 3, device=DEVICE), torch.rand(4, 3, device=DEVICE), 9)
    with use_backend("triton"):
        affine = retarget(m, None, Exchange(torch.tensor([1, beyond, 3, 2], device=DEVICE), 1e-5), None)
    assert affine is not None
    for part in affine:
        assert part[1].isnan().all() and not part[[0, 2, 3]].isnan().any()


def test_nan_stays_in_its_sample_and_its_partner() -> None:
    x = spread_planes((6, 5, 3, 2))
    x[2, 1] = float("nan")
    norm = CrossNorm(5)
    draw = norm.draw(x)._replace(partner=torch.tensor([1, 2, 3, 4, 5, 0], device=DEVICE))
    with use_backend("triton"):
        found = everything(norm, x, torch.ones_like(x), draw)
    touched = torch.zeros(6, 5, dtype=torch.bool, device=DEVICE)
    touched[1:3, 1] = True
    assert torch.equal(found["output"].isnan().flatten(2).any(2), touched)
    assert not found["gradient of x"][:, [0, 2, 3, 4]].isnan().any()


def test_the_same_bits_every_time() -> None:
    norm, x = Chain(BatchNorm(40), *CNSN(40)).to(DEVICE), spread_planes((33, 40, 2, 3))
    draw = norm.draw(x)
    with use_backend("triton"):
        first, second = (everything(copy.deepcopy(norm), x, x.flip(0), draw) for _ in range(2))
    assert all(torch.equal(second[key], value) for key, value in first.items())


def test_gradients_of_gradients_go_through_formulas(calls: list[bool]) -> None:
    norm, x = Chain(BatchNorm(3), *CNSN(3)).to(DEVICE), spread_planes((4, 3, 2, 2)).requires_grad_()
    draw = norm.draw(x)
    found = []
    for name in ("triton", "eager"):
        with use_backend(name):
            y = copy.deepcopy(norm)(x, draw=draw)
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(dx.square().sum(), x)[0])
    assert len(calls) == 1
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3 * float(found[1].abs().max()))


def test_left_to_the_formulas(calls: list[bool]) -> None:
    m = Moments(torch.randn(4, 3, device=DEVICE), torch.rand(4, 3, device=DEVICE), 9)
    partner = torch.tensor([1, 0, 3, 2], device=DEVICE)
    with use_backend("triton"):
        assert retarget(Moments(m.mean.double(), m.var.double(), 9), None, Exchange(partner, 1e-5), None) is None
        assert retarget(Moments(m.mean[:1], m.var[:1], 9), None, Exchange(partner[:1], 1e-5), None) is None
        assert retarget(m, None, Exchange(partner, 1e-5, torch.ones(2, dtype=torch.bool, device=DEVICE)), None) is None
        assert retarget(m, None, Exchange(partner, 1e-5, torch.ones((), device=DEVICE)), None) is None
        many = Moments(torch.zeros(1025, 1, device=DEVICE), torch.ones(1025, 1, device=DEVICE), 9)
        assert retarget(many, None, Exchange(torch.arange(1025, device=DEVICE), 1e-5), None) is None
        CrossNorm(3, crop="both").to(DEVICE)(spread_planes((4, 3, 6, 6)))
    with use_backend("eager"):
        CNSN(3).to(DEVICE)(spread_planes((4, 3, 6, 6)))
    assert not calls
