"""What every norm must do under torch's tools: checkpointing, torch.func, export, and every source of moments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cases import CASES, Case, build
from shiftnorm.norms import NormLayer, RunningMoments

all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def gradients(norm: NormLayer, x: Tensor, y: Tensor, g: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(y, [x, *norm.parameters()], g, allow_unused=True))


def start(case: Case, *, training: bool) -> tuple[NormLayer, Tensor, Any]:
    torch.manual_seed(0)
    norm = build(case).train(training)
    x = torch.randn(6, 8, 5, 7, dtype=torch.float64).requires_grad_()
    return norm, x, norm.draw(x) if training else None


def same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@all_cases
def test_activation_checkpointing(case: Case) -> None:
    # In evaluation, because a second forward in training updates running moments twice, in torch's norms as well.
    norm, x, draw = start(case, training=False)
    g = torch.randn_like(x)
    y = norm(x, draw=draw)
    if not y.requires_grad:
        pytest.skip("is the identity and has no gradient of its own")
    again = checkpoint(lambda x: norm(x, draw=draw), x, use_reentrant=False)
    assert isinstance(again, Tensor)
    torch.testing.assert_close(again, y, rtol=0, atol=0)
    same(gradients(norm, x, again, g), gradients(norm, x, y, g))


@all_cases
def test_checkpointing_in_training_replays_the_draw(case: Case) -> None:
    norm, x, draw = start(case, training=True)
    g, twin = torch.randn_like(x), copy.deepcopy(norm)
    y = twin(x, draw=draw)
    again = checkpoint(lambda x: norm(x, draw=draw), x, use_reentrant=False)
    assert isinstance(again, Tensor)
    torch.testing.assert_close(again, y, rtol=1e-12, atol=1e-12)
    same(gradients(norm, x, again, g), gradients(twin, x, y, g))


@all_cases
def test_func_grad_is_autograd(case: Case) -> None:
    norm, x, _ = start(case, training=False)
    parameters = {name: parameter.detach() for name, parameter in norm.named_parameters()}
    g = torch.randn_like(x)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return (g * torch.func.functional_call(norm, parameters, (x,))).sum()

    by_name, into_x = torch.func.grad(loss, argnums=(0, 1))(parameters, x.detach())
    y = norm(x)
    if not y.requires_grad:
        pytest.skip("is the identity and has no gradient of its own")
    wanted = gradients(norm, x, y, g)
    zeros = [torch.zeros_like(value) for value in (x, *norm.parameters())]
    same([into_x, *by_name.values()], [zero if w is None else w for w, zero in zip(wanted, zeros, strict=True)])


@all_cases
def test_per_sample_gradients_by_vmap(case: Case) -> None:
    norm, x, _ = start(case, training=False)

    def loss(sample: Tensor) -> Tensor:
        return norm(sample.unsqueeze(0)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss))(x.detach())
    one_by_one = torch.stack([torch.func.grad(loss)(sample) for sample in x.detach()])
    torch.testing.assert_close(each, one_by_one, rtol=1e-9, atol=1e-9)


@all_cases
def test_export_takes_any_batch_size(case: Case) -> None:
    norm, x, _ = start(case, training=False)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(norm, (x.detach(),), dynamic_shapes=({0: batch},), strict=False)
    for count in (2, 6, 9):
        other = torch.randn(count, 8, 5, 7, dtype=torch.float64)
        torch.testing.assert_close(program.module()(other), norm(other), rtol=1e-9, atol=1e-9)


def pooling(norm: NormLayer) -> list[RunningMoments]:
    return [part for part in norm.modules() if isinstance(part, RunningMoments) and part.pools_batch]


POOLING = [
    case
    for case in CASES
    if pooling(build(case)) and all(part.running_mean is not None for part in pooling(build(case)))
]


def switched(case: Case, source: str, weight: float = 0.5) -> tuple[NormLayer, Tensor]:
    torch.manual_seed(1)
    norm = build(case)
    for _ in range(3):  # running moments worth the name
        norm.train()(1 + 2 * torch.randn(6, 8, 5, 7, dtype=torch.float64))
    norm.eval()
    for part in pooling(norm):
        part.source, part.source_weight = source, weight
    return norm, torch.randn(6, 8, 5, 7, dtype=torch.float64)


def buffers(norm: NormLayer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in norm.named_buffers()}


@pytest.mark.parametrize("case", POOLING, ids=str)
def test_blend_lies_between_its_ends_and_touches_no_buffer(case: Case) -> None:
    outputs: dict[float, Tensor] = {}
    for weight in (0.0, 0.5, 1.0):
        norm, x = switched(case, "blend", weight)
        before = buffers(norm)
        outputs[weight] = norm(x)
        assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    running, x = switched(case, "running")
    torch.testing.assert_close(outputs[1.0], running(x), rtol=1e-9, atol=1e-9)
    assert (outputs[0.0] - outputs[1.0]).abs().max() > 1e-3
    assert (outputs[0.5] - outputs[1.0]).abs().max() > 1e-4 and (outputs[0.5] - outputs[0.0]).abs().max() > 1e-4


@pytest.mark.parametrize("case", POOLING, ids=str)
def test_ema_updates_first_and_uses_what_it_updated(case: Case) -> None:
    norm, x = switched(case, "ema")
    before = buffers(norm)
    y = norm(x)
    moved = [name for name, value in norm.named_buffers() if not torch.equal(value, before[name])]
    assert any(name.endswith("running_mean") for name in moved)
    for part in pooling(norm):
        part.source = "running"
    torch.testing.assert_close(norm(x), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", POOLING, ids=str)
def test_source_batch_is_training_without_updates(case: Case) -> None:
    norm, x = switched(case, "batch")
    before = buffers(norm)
    y = norm(x)
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    if case.random:
        return  # training would draw as well
    twin, _ = switched(case, "auto")
    torch.testing.assert_close(y, twin.train()(x), rtol=1e-9, atol=1e-9)
