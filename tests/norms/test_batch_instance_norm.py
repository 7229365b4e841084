from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shiftnorm.norms import BatchInstanceNorm, BatchNorm, InstanceNorm


def in_bounds(gate: torch.Tensor) -> bool:
    return bool(((gate >= 0) & (gate <= 1)).all())


@pytest.mark.parametrize(("gate", "other"), [(1.0, BatchNorm), (0.0, InstanceNorm)])
def test_at_its_ends_the_gate_gives_the_pure_norms(gate, other):
    norm, x = BatchInstanceNorm(3), torch.randn(4, 3, 5, 5)
    nn.init.constant_(norm.gate, gate)
    torch.testing.assert_close(norm(x), other(3)(x))


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, lr=100.0), lambda p: torch.optim.Adam(p, lr=10.0)],
    ids=["sgd", "adam"],
)
def test_no_optimizer_gets_the_gate_out_of_bounds(optimizer):
    norm = BatchInstanceNorm(6)
    ema = AveragedModel(norm, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    step = optimizer(norm.parameters())
    overshot = False
    for _ in range(5):
        step.zero_grad()
        (norm(torch.randn(4, 6, 5, 5)) * torch.randn(4, 6, 5, 5)).sum().backward()
        step.step()
        overshot |= not in_bounds(dict(norm.named_parameters())["gate"])
        ema.update_parameters(norm)
        copies = [norm, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), ema.module]
        for each in copies:
            x = torch.randn(4, 6, 5, 5)
            clamped = copy.deepcopy(each).eval()
            clamped.gate.data.clamp_(0, 1)
            torch.testing.assert_close(copy.deepcopy(each).eval()(x), clamped(x), rtol=0, atol=0)
            assert in_bounds(copy.deepcopy(each).state_dict()["gate"])
            assert in_bounds(copy.deepcopy(each).gate)
    assert overshot, "the optimizer must have tried"
    norm(torch.randn(4, 6, 5, 5))
    assert in_bounds(norm.gate)
    assert norm.state_dict()["gate"].data_ptr() == norm.gate.data_ptr()


def test_two_forwards_before_one_backward():
    norm, a, b = BatchInstanceNorm(3), torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    nn.init.constant_(norm.gate, 2.0)
    (norm(a).pow(3).sum() + norm(b).pow(3).sum()).backward()
    both = norm.gate.grad.clone()
    norm.gate.grad = None
    for x in (a, b):
        norm(x).pow(3).sum().backward()
    torch.testing.assert_close(norm.gate.grad, both)


@pytest.mark.parametrize(
    ("gate", "sign", "passes"),
    [(1.5, 1, True), (1.5, -1, False), (-0.5, -1, True), (-0.5, 1, False)]
    + [(edge, sign, True) for edge in (0.0, 0.5, 1.0) for sign in (1, -1)],
)
def test_gradient_reaches_a_gate_outside_only_if_it_leads_back(gate, sign, passes):
    # In evaluation, as in a compiled step, the parameter is not written back.
    norm, x = BatchInstanceNorm(3).eval(), torch.randn(4, 3, 5, 5)
    norm.source = "batch"

    def gradient(start: float) -> torch.Tensor:
        norm.gate.grad = None
        nn.init.constant_(norm.gate, start)  # last: reading the gate once more would bound it
        # Its derivative for the gate is sign * sum((BN - IN)^2) > 0 or < 0.
        direction = (BatchNorm(3)(x) - InstanceNorm(3)(x)).detach()
        (sign * direction * norm(x)).sum().backward()
        return norm.gate.grad

    expected = gradient(min(max(gate, 0.25), 0.75)) if passes else torch.zeros(3)
    assert (expected.abs() > 1e-3).all() or not passes
    torch.testing.assert_close(gradient(gate), expected, rtol=1e-4, atol=1e-4)


def test_loading_a_gate_out_of_range_leaves_the_checkpoint_alone():
    norm = BatchInstanceNorm(3)
    state = {**norm.state_dict(), "gate": torch.tensor([-1.0, 0.5, 3.0])}
    norm.load_state_dict(state)
    assert norm.state_dict()["gate"].tolist() == [0.0, 0.5, 1.0]
    assert state["gate"].tolist() == [-1.0, 0.5, 3.0]


def test_compiles_in_one_graph_and_does_not_write_the_gate():
    norm = BatchInstanceNorm(3)
    norm.gate.data.copy_(torch.tensor([-0.5, 0.5, 1.5]))
    compiled = torch.compile(copy.deepcopy(norm), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(compiled(x), norm(x))
    assert norm.gate.tolist() == [0.0, 0.5, 1.0]


def test_keeps_the_count_that_the_authors_never_move():
    norm = BatchInstanceNorm(3)
    norm.load_state_dict(norm.from_official({**norm.to_official(), "num_batches_tracked": torch.tensor(7)}))
    norm(torch.randn(4, 3, 5))
    assert (int(norm.num_batches_tracked), int(norm.to_official()["num_batches_tracked"])) == (8, 7)
