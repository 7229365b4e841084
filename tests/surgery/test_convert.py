"""Conversions keep what a user has, change what they say, and can be undone."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shiftnorm import norms
from shiftnorm.norms import CNSN, IBN, BatchNorm, Chain, RepresentativeBatchNorm, SelfNorm
from shiftnorm.surgery import convert, edits_of, insert, replace, revert
from tied_net import TiedNet, X


def trained(model: nn.Module) -> nn.Module:
    """Running statistics and parameters that no initialisation has."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            with torch.no_grad():
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.2)
    return model.eval()


@pytest.fixture
def net() -> nn.Module:
    return trained(TiedNet())


# Replacements that keep the function of a trained network, and those that cannot.
KEEPS = ["rbn", "bin", "batch"]
MOVES = ["ibn", "group", "instance", "layer", "attentive"]


@pytest.mark.parametrize("name", KEEPS)
def test_replacements_that_keep_the_function(net: nn.Module, name: str) -> None:
    before = net(X)
    net, report = convert(net, name, example_input=X)
    torch.testing.assert_close(net(X), before, rtol=1e-5, atol=1e-5)
    assert report.movement is not None and report.movement.kept
    assert "The function is kept" in str(report)
    assert len(report) == 2 and net.again is net.bn1  # the tied one once, at both places


def test_switch_norm_is_weighted_to_batch_norm(net: nn.Module) -> None:
    net, report = convert(net, "switch", example_input=X)
    assert report.movement is not None and report.movement.max < 0.01 * report.movement.spread
    net, report = convert(trained(TiedNet()), "switch", preserve=False, example_input=X)
    assert report.movement is not None and report.movement.max > 0.01 * report.movement.spread


@pytest.mark.parametrize("name", MOVES)
def test_others_say_that_the_function_moved(net: nn.Module, name: str) -> None:
    before = net(X)
    net, report = convert(net, name, example_input=X, **({"num_groups": 2} if name == "group" else {}))
    assert report.movement is not None and not report.movement.kept
    assert report.movement.max == pytest.approx((net(X) - before).abs().max().item(), rel=1e-6)
    assert "The function moved" in str(report)


@pytest.mark.parametrize("name", [*KEEPS, *MOVES, "switch"])
@pytest.mark.parametrize("training", [True, False])
def test_revert_is_bit_equal(net: nn.Module, name: str, training: bool) -> None:
    net.train(training)
    expected, types = copy.deepcopy(net)(X), [type(module) for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    net, report = convert(net, name, **({"num_groups": 2} if name == "group" else {}))
    net = revert(net, report)
    assert [type(module) for module in net.modules()] == types and not edits_of(net)
    assert torch.equal(net(X), expected) and net.again is net.bn1
    if not training:
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_what_training_made_of_shared_tensors_survives_a_revert(net: nn.Module) -> None:
    net, report = convert(net, "ibn")
    with torch.no_grad():
        net.bn2.weight.fill_(3.0)
    net.train()(X)
    moved = net.bn2.running_mean.clone()
    net = revert(net, report)
    assert torch.equal(net.bn2.weight, torch.full((8,), 3.0)) and torch.equal(net.bn2.running_mean, moved)
    assert net.bn2.training and int(net.bn2.num_batches_tracked) == 1


def test_everything_a_user_has_is_kept(net: nn.Module) -> None:
    net = net.double()
    weight, bias = net.bn1.weight, net.bn1.bias
    net.bn1.bias.requires_grad_(False)
    seen: list[Tensor] = []
    handle = net.bn1.register_forward_hook(lambda _, __, out: seen.append(out))
    net, report = replace(net, RepresentativeBatchNorm, "bn1")
    new = net.bn1
    assert isinstance(new, RepresentativeBatchNorm) and net.again is new
    assert new.weight is weight and new.bias is bias and not new.bias.requires_grad and new.center_weight.requires_grad
    assert not new.training and new.scale_bias.dtype == torch.float64 and (new.eps, new.momentum) == (1e-3, 0.2)
    net(X.double())
    assert len(seen) == 2
    handle.remove()
    net(X.double())
    assert len(seen) == 2
    assert report.changes[0].kept == ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_hooks_behind_a_fused_batch_norm_see_the_batch_norm(net: nn.Module) -> None:
    plain = copy.deepcopy(net)
    seen: list[Tensor] = []
    net.bn2.register_forward_hook(lambda _, __, out: seen.append(out))
    net, _ = insert(net, "SelfNorm", after="bn2")
    assert isinstance(net.bn2, Chain)
    net(X)
    expected: list[Tensor] = []
    plain.bn2.register_forward_hook(lambda _, __, out: expected.append(out))
    plain(X)
    torch.testing.assert_close(seen[0], expected[0])


class Double(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrizations_are_kept(net: nn.Module) -> None:
    parametrize.register_parametrization(net.bn2, "weight", Double())
    original, before = net.bn2.parametrizations.weight.original, net(X)
    net, report = convert(net, "bin", example_input=X)
    assert parametrize.is_parametrized(net.bn2, "weight") and net.bn2.parametrizations.weight.original is original
    torch.testing.assert_close(net(X), before, rtol=1e-5, atol=1e-5)
    net = revert(net, report)
    assert torch.equal(net(X), before) and net.bn2.parametrizations.weight.original is original


def test_the_root_may_be_a_norm() -> None:
    norm, report = convert(nn.BatchNorm1d(5).eval(), "ibn")
    assert isinstance(norm, IBN) and not norm.training and edits_of(norm)
    assert isinstance(revert(norm, report), nn.BatchNorm1d)
    model, report = insert(nn.Conv2d(3, 8, 1), "SelfNorm", after="")
    assert isinstance(model, nn.Conv2d) and isinstance(model.after_norm, SelfNorm)
    model, report = insert(nn.BatchNorm2d(8), "SelfNorm", after="")
    assert isinstance(model, Chain) and isinstance(revert(model, report), nn.BatchNorm2d)


@pytest.mark.parametrize("how", ["after", "before"])
def test_inserting_beside_a_convolution_keeps_all_names(net: nn.Module, how: str) -> None:
    names, before = list(net.state_dict()), net(X)
    net, report = insert(net, lambda channels: nn.Conv2d(channels, channels, 1), **{how: "conv2"})
    assert set(names) < set(net.state_dict())
    inner = getattr(net.conv2, f"{how}_norm")
    assert inner.in_channels == 8
    with torch.no_grad():
        inner.weight.copy_(2 * torch.eye(8)[..., None, None])
        inner.bias.zero_()
        hidden = torch.relu(net.bn1(net.conv1(X)))
        plain = nn.functional.conv2d(2 * hidden, net.conv2._parameters["weight"], net.conv2.bias, padding=1)
        if how == "after":
            plain = 2 * nn.functional.conv2d(hidden, net.conv2._parameters["weight"], net.conv2.bias, padding=1)
        torch.testing.assert_close(net.conv2(hidden), plain)
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(trained(TiedNet())))):
        assert clone(X).shape == before.shape
    clone = copy.deepcopy(net)
    with torch.no_grad():
        getattr(clone.conv2, f"{how}_norm").weight.zero_()
    assert not torch.equal(clone(X), net(X))  # the copy runs its own norm
    assert torch.equal(revert(net, report)(X), before) and list(net.state_dict()) == names


def test_a_chain_grows_and_shrinks(net: nn.Module) -> None:
    before = net(X)
    net, first = insert(net, "SelfNorm", after="bn2")
    net, second = insert(net, "CrossNorm", before="bn2")
    assert [type(part).__name__ for part in net.bn2] == ["CrossNorm", "BatchNorm", "SelfNorm"]
    with pytest.raises(ValueError, match="latest conversion"):
        revert(net, first)
    net = revert(net, second)
    assert [type(part).__name__ for part in net.bn2] == ["BatchNorm", "SelfNorm"]
    assert torch.equal(revert(net, first)(X), before)


def test_a_copy_is_not_reverted(net: nn.Module) -> None:
    net, report = convert(net, "rbn")
    with pytest.raises(ValueError, match="not a copy"):
        revert(copy.deepcopy(net), report)


def test_own_norms_and_partials(net: nn.Module) -> None:
    class Mine(nn.BatchNorm2d):
        pass

    net, report = convert(net, Mine)
    assert type(net.bn1) is Mine and net.bn1 is net.again and report.changes[0].kept[0] == "weight"
    net, report = replace(trained(TiedNet()), functools.partial(IBN, ratio=0.25), "bn*")
    assert net.bn2.num_instance == 2 and edits_of(net)[0].norm.arguments == {"ratio": 0.25}
    net, report = convert(trained(TiedNet()), "IBN", ratio=0.75)
    assert net.bn2.num_instance == 6
    assert any("'ibn_a'" in note for note in report.notes)  # who names the layer may mean the paper's network


def test_optimizer_groups_follow() -> None:
    net = trained(TiedNet())
    decay = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    flat = [parameter for parameter in net.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}], lr=0.1, momentum=0.9
    )
    net.train()(X).sum().backward()
    optimizer.step()
    momentum = optimizer.state[net.bn1.weight]["momentum_buffer"].clone()
    net, report = convert(net, "rbn", optimizer=optimizer)
    assert "6 parameters added, 0 removed" in str(report)
    held = {id(parameter) for parameter in optimizer.param_groups[1]["params"]}
    assert {id(net.bn1.center_weight), id(net.bn2.scale_bias), id(net.bn1.weight)} <= held
    assert torch.equal(optimizer.state[net.bn1.weight]["momentum_buffer"], momentum)
    net = revert(net, report, optimizer=optimizer)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters())
    net, report = replace(net, lambda channels: nn.Identity(), "bn2", optimizer=optimizer)
    assert "0 parameters added, 2 removed" in str(report) and len(optimizer.state) == len(held) - 2


def test_twice_is_said_and_changes_nothing(net: nn.Module) -> None:
    net, _ = convert(net, "rbn")
    state = list(net.state_dict())
    net, report = convert(net, "rbn")
    assert (
        len(report) == 0
        and all("already" in reason for _, reason in report.skipped)
        and list(net.state_dict()) == state
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: convert(net, "ibna_"), "no residual blocks"),
        (lambda net: convert(net, "ibn_c"), "did you mean"),
        (lambda net: convert(net, "selfnorm@psot"), "did you mean post"),
        (lambda net: convert(net, "ibn_a@post"), "takes no slot"),
        (lambda net: convert(net, "rbn", where="bn9"), "Near: bn"),
        (lambda net: convert(net, "rbn", where="stage:1"), "stages: not known"),
        (lambda net: convert(net, "rbn", where="chanels:3"), "did you mean 'channels'"),
        (lambda net: convert(net, "rbn", where="channels:x"), "expected numbers"),
        (lambda net: convert(nn.Sequential(nn.LayerNorm(4)), "rbn"), "1 LayerNorm"),
        (lambda net: convert(nn.Sequential(nn.ReLU()), "rbn"), "no norm at all"),
        (lambda net: replace(nn.Sequential(nn.LayerNorm(4)), "rbn", where="0"), "last axis"),
        (lambda net: insert(net, "SelfNorm"), "exactly one"),
        (lambda net: insert(nn.Sequential(nn.ReLU()), "SelfNorm", after="0"), "not known"),
        (lambda net: insert(net, "SelfNorm", after="conv9"), "Near: conv"),
        (lambda net: convert(net, "rbn", momentun=0.1), "momentun"),
    ],
)
def test_mistakes_are_explained_and_change_nothing(net: nn.Module, call, message: str) -> None:
    before, types = net(X), [type(module) for module in net.modules()]
    with pytest.raises((ValueError, TypeError), match=message):
        call(net)
    assert [type(module) for module in net.modules()] == types and torch.equal(net(X), before)


def test_a_failure_half_way_changes_nothing(net: nn.Module) -> None:
    before = net(X)
    made: list[int] = []

    def second_fails(channels: int) -> nn.Module:
        made.append(channels)
        if len(made) == 2:
            raise RuntimeError("no")
        return nn.BatchNorm2d(channels)

    with pytest.raises(RuntimeError, match="no"):
        convert(net, second_fails)
    assert torch.equal(net(X), before) and type(net.bn1) is nn.BatchNorm2d and not edits_of(net)
    with pytest.raises(TypeError, match="One module cannot stand"):
        convert(net, nn.BatchNorm2d(8))


def test_models_that_cannot_be_changed_are_refused_by_name(net: nn.Module) -> None:
    with pytest.raises(TypeError, match="OptimizedModule"):
        convert(torch.compile(net), "rbn")
    with pytest.raises(TypeError, match="DataParallel"):
        convert(nn.DataParallel(net), "rbn")
    with pytest.warns(FutureWarning):
        scripted = torch.jit.trace(net, X)
    with pytest.raises(TypeError, match="scripted"):
        convert(scripted, "rbn")
    with pytest.raises(TypeError, match="expected a torch"):
        convert("resnet50", "rbn")


def test_frozen_batch_norm_is_named() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(3, 8, 1), FrozenBatchNorm2d(8), nn.BatchNorm2d(8))
    model, report = convert(model, "rbn")
    assert len(report) == 1 and "frozen" in report.skipped[0].reason and isinstance(model[1], FrozenBatchNorm2d)
    model, report = insert(model, "SelfNorm", after="1")
    assert isinstance(model[1], FrozenBatchNorm2d) and isinstance(model[1].after_norm, SelfNorm)
    model(torch.randn(2, 3, 4, 4))


def test_sync_batch_norm_becomes_ours() -> None:
    model, report = convert(nn.Sequential(nn.SyncBatchNorm(8)), "ibn")
    assert isinstance(model[0], IBN) and model[0].process_group is None
    assert isinstance(revert(model, report)[0], nn.SyncBatchNorm)


def test_report_as_json(net: nn.Module) -> None:
    _, report = insert(net, CNSN, after="bn2", example_input=X, start="identity")
    data = report.to_json()
    assert data["changes"] == [
        {
            "path": "bn2",
            "how": "after",
            "norm": "CNSN",
            "arguments": {"start": "identity"},
            "was": "BatchNorm2d",
            "is": "Chain(BatchNorm, CrossNorm, SelfNorm)",
            "kept": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"],
            "fused": True,
        }
    ]
    assert data["parameters"][1] - data["parameters"][0] == 8 * 4 and data["movement"]["kept"]


def test_every_norm_of_the_package_can_be_named() -> None:
    for name in norms.__all__:
        layer = getattr(norms, name)
        if not (isinstance(layer, type) and issubclass(layer, norms.NormLayer)) or name in (
            "NormLayer",
            "MomentNorm",
            "Chain",
        ):
            continue
        model, report = replace(
            nn.Sequential(nn.BatchNorm2d(8)), name, **({"num_groups": 2} if name == "GroupNorm" else {})
        )
        assert type(model[0]) is layer or type(model[0]) is BatchNorm, name
        assert model(torch.randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)
        assert type(revert(model, report)[0]) is nn.BatchNorm2d
