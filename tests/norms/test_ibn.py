"""IBN: which channels are whose, the authors' two modules in one, and what their split could not do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.norms import IBN, BatchNorm, Chain, InstanceNorm, SelfNorm

ORDERS = ("instance_first", "batch_first")


class TwoModules(nn.Module):
    """The authors' structure with an honest split: instance norm and batch norm, each on its own channels."""

    def __init__(self, instance: int, batch: int, order: str) -> None:
        super().__init__()
        self.order, self.sizes = order, (instance, batch) if order == "instance_first" else (batch, instance)
        self.IN = nn.InstanceNorm2d(instance, affine=True, dtype=torch.float64)
        self.BN = nn.BatchNorm2d(batch, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [part.contiguous() for part in x.split(self.sizes, dim=1)]
        norms = (self.IN, self.BN) if self.order == "instance_first" else (self.BN, self.IN)
        return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True) if part.shape[1]], dim=1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("channels", "ratio"), [(6, 0.5), (7, 0.5), (8, 0.25), (8, 0.75), (10, 0.4), (5, 0.0), (5, 1.0)]
)
def test_is_the_two_modules_joined(order, channels, ratio):
    norm = IBN(channels, ratio=ratio, order=order, dtype=torch.float64)
    two = TwoModules(norm.num_instance, channels - norm.num_instance, order)
    norm.load_state_dict(norm.from_official(two.state_dict()))
    for training in (True, False):
        norm.train(training), two.train(training)
        x = torch.randn(3, channels, 4, 5, dtype=torch.float64) * 2 + 1
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [module(leaf) for module, leaf in zip((norm, two), leaves, strict=True)]
        torch.testing.assert_close(*outputs, atol=1e-12, rtol=1e-12)
        for output in outputs:
            (output**3).sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, atol=1e-10, rtol=1e-10)
    ours, theirs = norm.to_official(), two.state_dict()
    if ratio == 1.0:  # no batch channel: nothing is counted
        ours.pop("BN.num_batches_tracked"), theirs.pop("BN.num_batches_tracked")
    torch.testing.assert_close(ours, dict(theirs), atol=1e-12, rtol=1e-12)
    gradients = norm.to_official({name: p.grad for name, p in norm.named_parameters()})
    torch.testing.assert_close(
        {name: gradients[name] for name, p in two.named_parameters() if p.numel()},
        {name: p.grad for name, p in two.named_parameters() if p.numel()},
        atol=1e-10,
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("channels", "ratio", "order", "instance"),
    [
        (64, 0.5, "instance_first", 32),
        (64, 0.4, "batch_first", 26),
        (96, 0.4, "batch_first", 39),
        (7, 0.4, "batch_first", 3),
    ],
)
def test_roundings_are_the_authors(channels, ratio, order, instance):
    assert IBN(channels, ratio=ratio, order=order).num_instance == instance


def test_batch_norm_checkpoint_loads_and_the_batch_channels_use_it():
    source, norm = nn.BatchNorm2d(5), IBN(5)
    nn.init.normal_(source.running_mean), nn.init.uniform_(source.running_var, 1, 2)
    norm.load_state_dict(source.state_dict())
    x = torch.randn(3, 5, 4, 4)
    torch.testing.assert_close(norm.eval()(x)[:, 2:], source.eval()(x)[:, 2:])
    torch.testing.assert_close(norm(x)[:, :2], InstanceNorm(2)(x[:, :2]))


@pytest.mark.parametrize("order", ORDERS)
def test_instance_channels_of_single_element_planes_give_the_bias(order):
    norm = IBN(5, order=order, dtype=torch.float64)
    nn.init.normal_(norm.bias)
    x = torch.randn(4, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    y.square().sum().backward()
    instance = slice(0, 2) if order == "instance_first" else slice(2, 5)
    torch.testing.assert_close(y[:, instance, 0, 0], norm.bias[instance].expand(4, -1), atol=1e-12, rtol=0)
    assert x.grad is not None and x.grad.isfinite().all()
    torch.testing.assert_close(x.grad[:, instance], torch.zeros_like(x[:, instance]), atol=1e-10, rtol=0)


def test_single_value_is_refused_only_where_a_batch_channel_would_see_it():
    x = torch.randn(1, 4, 1, 1)
    with pytest.raises(ValueError, match="IBN: expected more than one value per channel"):
        IBN(4)(x)
    torch.testing.assert_close(IBN(4, ratio=1.0)(x), torch.zeros_like(x), atol=1e-4, rtol=0)
    assert IBN(4).eval()(x).isfinite().all()


def test_masked_elements_do_not_count():
    norm, x = IBN(4, track_running_stats=False), torch.randn(3, 4, 9)
    mask = torch.ones(1, 1, 9)
    mask[..., 6:] = 0
    torch.testing.assert_close(norm(x, mask=mask)[..., :6], norm(x[..., :6]))


def test_source_of_moments_moves_the_batch_channels_only():
    norm, x = IBN(4).eval(), torch.randn(8, 4, 5, 5) * 3 + 1
    before = norm(x)
    norm.source = "batch"
    assert torch.equal(norm(x)[:, :2], before[:, :2])
    torch.testing.assert_close(norm(x)[:, 2:], BatchNorm(2)(x[:, 2:]))


def test_chains_in_one_pass_and_keeps_channels_last():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    first, second = IBN(6, dtype=torch.float64), SelfNorm(6, dtype=torch.float64)
    y = Chain(first, second)(x)
    torch.testing.assert_close(y, second(first(x)), atol=1e-12, rtol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "text"), [({"ratio": 1.5}, r"ratio in \[0, 1\], got 1.5"), ({"order": "first"}, "got 'first'")]
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        IBN(4, **arguments)


def test_foreign_state_is_refused_by_name():
    norm = IBN(6)
    state = norm.to_official()
    old = {key: value for key, value in state.items() if key != "BN.num_batches_tracked"}
    norm.load_state_dict(norm.from_official(old))  # files older than torch 0.4.1
    with pytest.raises(KeyError, match=r"missing \['IN.bias'\]"):
        norm.from_official({key: value for key, value in state.items() if key != "IN.bias"})
    with pytest.raises(KeyError, match=r"unknown \['gate'\]"):
        norm.from_official({**state, "gate": torch.ones(6)})
    with pytest.raises(ValueError, match=r"IN\.weight of shape \(3,\), got \(4,\).*ratio=0.5"):
        norm.from_official({**state, "IN.weight": torch.ones(4)})
