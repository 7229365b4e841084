"""An optimizer goes on with a model whose modules changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.surgery import convert, insert, replace, revert
from tied_net import TiedNet, X


def groups(net: nn.Module) -> list[dict]:
    """Weight decay for the weights, none for norms and biases, a slow rate for the head."""
    head = [("head." + name, parameter) for name, parameter in net.head.named_parameters()]
    rest = [(name, parameter) for name, parameter in net.named_parameters() if not name.startswith("head")]
    return [
        {"params": [p for _, p in rest if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for _, p in rest if p.dim() <= 1], "weight_decay": 0.0},
        {"params": [p for _, p in head], "lr": 1e-4, "weight_decay": 0.0},
    ]


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net.train()(X).square().sum().backward()
    optimizer.step()


def group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> int:
    found = [i for i, group in enumerate(optimizer.param_groups) if any(p is parameter for p in group["params"])]
    assert len(found) == 1, "in no group or in several"
    return found[0]


def held(optimizer: torch.optim.Optimizer) -> list[int]:
    return sorted(id(parameter) for group in optimizer.param_groups for parameter in group["params"])


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_state_and_groups_through_a_conversion_and_back(kind: type[torch.optim.Optimizer]) -> None:
    net = TiedNet()
    optimizer = kind(groups(net), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(net, optimizer)
    scheduler.step()
    kept = {id(p): copy.deepcopy(optimizer.state[p]) for p in net.parameters()}
    rates = [group["lr"] for group in optimizer.param_groups]
    old = list(net.parameters())
    net, report = convert(net, "rbn", optimizer=optimizer)
    assert report.notes == ["Optimizer: 6 parameters added, 0 removed."]
    for parameter in old:
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(kept[id(parameter)][k]))
            for k, v in optimizer.state[parameter].items()
        )
    assert held(optimizer) == sorted(map(id, net.parameters()))
    assert {group_of(optimizer, p) for p in (*net.bn1.parameters(), *net.bn2.parameters())} == {1}
    before = net.bn2.center_weight.clone()
    step(net, optimizer)
    scheduler.step()
    assert not torch.equal(before, net.bn2.center_weight)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 2 for rate in rates])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    net = revert(net, report, optimizer=optimizer)
    assert held(optimizer) == sorted(map(id, old)) and {id(p) for p in optimizer.state} <= set(map(id, old))
    step(net, optimizer)


def test_a_norm_beside_a_convolution_joins_the_norms_group() -> None:
    net = TiedNet()
    optimizer = torch.optim.SGD(groups(net), lr=0.1)
    net, report = insert(net, "SelfNorm", after="conv2", optimizer=optimizer)
    assert len(report.notes) == 1
    assert {group_of(optimizer, p) for p in net.conv2.after_norm.parameters()} == {1}  # no weight decay
    assert group_of(optimizer, net.conv2.weight) == 0


def test_a_fused_norm_joins_its_batch_norms_group() -> None:
    net = TiedNet()
    optimizer = torch.optim.SGD(groups(net), lr=0.1)
    net, _ = insert(net, "SelfNorm", after="bn2", optimizer=optimizer, two_branches=True)
    assert {group_of(optimizer, p) for p in net.bn2.parameters()} == {1}
    net, _ = insert(net, "SqueezeExcite", after="bn1", optimizer=optimizer, reduction=2)  # deeper names, 2-d weights
    assert {group_of(optimizer, p) for p in net.bn1.parameters()} == {1}


def test_what_is_gone_leaves_no_trace() -> None:
    net = TiedNet()
    optimizer = torch.optim.Adam(groups(net), lr=0.1)
    step(net, optimizer)
    gone = list(net.bn2.parameters())
    net, report = replace(net, lambda channels: nn.Identity(), "bn2", optimizer=optimizer)
    assert report.notes == ["Optimizer: 0 parameters added, 2 removed."]
    assert not {id(p) for p in gone} & ({id(p) for p in optimizer.state} | set(held(optimizer)))
    step(net, optimizer)


def test_frozen_parameters_outside_the_optimizer_stay_outside() -> None:
    net = TiedNet()
    for parameter in (*net.conv1.parameters(), *net.bn1.parameters()):
        parameter.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    pattern = {name: p.requires_grad for name, p in net.named_parameters()}
    net, _ = convert(net, "rbn", optimizer=optimizer)
    assert {name: p.requires_grad for name, p in net.named_parameters() if name in pattern} == pattern
    new = {id(p) for p in net.parameters()} - {id(p) for p in trained} - {id(net.bn1.weight), id(net.bn1.bias)}
    new -= {id(p) for p in net.conv1.parameters()}
    assert set(held(optimizer)) == {id(p) for p in trained} | new
    frozen = net.bn1.weight.clone()
    step(net, optimizer)
    assert torch.equal(frozen, net.bn1.weight)


def test_tied_weights_are_held_once() -> None:
    net = TiedNet()
    net.bn2.weight = net.bn1.weight
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net, report = convert(net, "rbn", optimizer=optimizer)
    assert net.bn2.weight is net.bn1.weight and held(optimizer) == sorted(map(id, net.parameters()))
    net = revert(net, report, optimizer=optimizer)
    assert held(optimizer) == sorted(map(id, net.parameters()))
    net, report = replace(net, lambda channels: nn.Identity(), "bn2", optimizer=optimizer)
    assert report.notes == ["Optimizer: 0 parameters added, 1 removed."]  # the weight is bn1's still


def test_named_parameters_keep_their_names() -> None:
    net = TiedNet()
    optimizer = torch.optim.AdamW(net.named_parameters(), lr=0.1)
    net, report = insert(net, "SelfNorm", after="bn2", optimizer=optimizer)
    names = dict(net.named_parameters())
    group = optimizer.param_groups[0]
    assert len(group["param_names"]) == len(group["params"]) == len(names)
    assert all(names[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))
    revert(net, report, optimizer=optimizer)
    assert sorted(group["param_names"]) == sorted(name for name, _ in net.named_parameters())


def test_lbfgs_sees_the_new_parameters() -> None:
    net = TiedNet().eval()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=2)
    net, _ = convert(net, "rbn", optimizer=optimizer)
    before = net.bn2.center_weight.clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(X).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(before, net.bn2.center_weight)


def test_an_optimizer_of_another_model_is_refused() -> None:
    net, other = TiedNet(), TiedNet()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"expected one that holds parameters of this model, got SGD"):
        convert(net, "rbn", optimizer=optimizer)
    assert type(net.bn1) is nn.BatchNorm2d and held(optimizer) == sorted(map(id, other.parameters()))
    net, report = convert(net, "rbn")
    with pytest.raises(ValueError, match="this model"):
        revert(net, report, optimizer=optimizer)
    assert type(net.bn1) is not nn.BatchNorm2d
