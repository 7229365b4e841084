"""Norms switched to pool over ranks: the same network over two ranks and in one process, and what is kept."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrizations

from cases import CASES, Case, build
from shiftnorm import norms
from shiftnorm.norms import BatchNorm, Chain, RunningMoments
from shiftnorm.surgery.norm_act import NormAct
from shiftnorm.surgery.recalibrate import recalibrate
from shiftnorm.surgery.sync import sync, unsync

HAS_TIMM = importlib.util.find_spec("timm") is not None


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        norms.SelfNorm(4, two_branches=True),
        norms.IBN(4),
        Chain(norms.RepresentativeBatchNorm(4), norms.SelfNorm(4)),
        norms.AttentiveNorm(4, num_pairs=3),
        nn.Conv2d(4, 5, 1),
        nn.SyncBatchNorm(5),
        norms.BatchInstanceNorm(5),
        norms.SwitchNorm(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(5, momentum=None),
    ]
    if HAS_TIMM:
        from timm.layers import BatchNormAct2d

        layers.insert(7, BatchNormAct2d(5, act_layer=nn.SiLU))
    return nn.Sequential(*layers).double()


def step(model: nn.Module, x: Tensor) -> dict[str, Any]:
    x = x.clone().requires_grad_()
    y = model(x)
    (y.square() * torch.arange(1.0, 6)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in zip(model.state_dict(), model.parameters(), strict=False)}
    return {"y": y.detach(), "x": x.grad, "gradients": list(gradients.values()), "state": dict(model.state_dict())}


def _rank(rank: int, port: int, shards: list[Tensor], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=len(shards))
    groups = [distributed.new_group([0]), distributed.new_group([1])]
    model = network()
    types = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    try:
        sync(model, groups[1 - rank])
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    single = copy.deepcopy(model)
    alone = sync(single, groups[rank])[0](shards[rank]).detach()  # a group of one rank is this rank's batch
    model, rows = sync(model)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    found = step(model, shards[rank])
    results[rank] = {
        **found,
        "rows": rows,
        "refusal": refusal,
        "alone": alone,
        "same keys": list(model.state_dict()) == keys,
        "copies": [step(copied, shards[rank])["y"], step(pickled, shards[rank])["y"]],
        "evaluated": model.eval()(shards[rank]).detach(),
        "same types": [type(module) for module in unsync(model)[0].modules()] == types,
        "evaluated after": model(shards[rank]).detach(),
        "recalibrated": _recalibrated(shards[rank]),
    }
    distributed.destroy_process_group()


def _recalibrated(shard: Tensor) -> list[Tensor]:
    model = sync(network())[0]
    recalibrate(model, shard.tensor_split(2))
    return [model[1].running_mean, model[1].running_var]


def test_two_ranks_equal_one_batch() -> None:
    shards = [torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randn(3, 3, 6, 6, dtype=torch.float64) * 3 + 2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_rank, args=(port, shards, results), nprocs=2)
        first, second = results[0], results[1]
    whole = step(network(), torch.cat(shards))
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), whole["y"])
    torch.testing.assert_close(torch.cat([first["x"], second["x"]]), whole["x"])
    for one, other, want in zip(first["gradients"], second["gradients"], whole["gradients"], strict=True):
        torch.testing.assert_close(one + other, want)
    evaluated = network().eval()
    evaluated.load_state_dict(whole["state"])
    for rank, shard in zip((first, second), shards, strict=True):
        assert rank["same keys"]
        assert rank["same types"]
        assert "expected a group that this rank is in" in rank["refusal"]
        torch.testing.assert_close(rank["alone"], network()(shard).detach())
        assert not torch.allclose(rank["alone"], rank["y"])
        for name, value in whole["state"].items():
            torch.testing.assert_close(rank["state"][name], value, msg=lambda text, name=name: f"{name}: {text}")
        for y in rank["copies"]:
            torch.testing.assert_close(y, rank["y"])
        torch.testing.assert_close(rank["evaluated"], evaluated(shard).detach())
        torch.testing.assert_close(rank["evaluated after"], rank["evaluated"])
        convolved = network()[0](torch.cat(shards)).movedim(1, 0).flatten(1).detach()
        torch.testing.assert_close(rank["recalibrated"], [convolved.mean(1), convolved.var(1)])
    reasons = [row for row in first["rows"] if row.reason]
    assert not reasons
    assert [row.was for row in first["rows"]][:3] == ["BatchNorm2d", "Gate", "Gate"]


@pytest.fixture
def group() -> Iterator[Any]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


FOREIGN = [
    lambda: nn.BatchNorm1d(4, eps=1e-3, momentum=0.3),
    lambda: nn.BatchNorm2d(4, momentum=None),
    lambda: nn.BatchNorm3d(4, affine=False),
    lambda: nn.BatchNorm2d(4, track_running_stats=False),
    lambda: nn.SyncBatchNorm(4),
    lambda: type("Tagged", (nn.BatchNorm2d,), {"_check_input_dim": lambda self, x: None})(4),
]
SHAPES = {"BatchNorm1d": (5, 4, 6), "BatchNorm3d": (5, 4, 2, 2, 2)}


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("training", [True, False])
def test_a_single_norm_keeps_everything(group: Any, make: Any, training: bool) -> None:
    norm = make().double().train(training)
    if norm.weight is not None:
        nn.init.uniform_(norm.weight)
        norm.bias.requires_grad_(False)
    calls: list[str] = []
    handle = norm.register_forward_hook(lambda *_: calls.append("forward"))
    norm.register_state_dict_post_hook(lambda *_: calls.append("state"))
    norm.tag = "mine"
    attributes = set(vars(norm))
    plain, original = copy.deepcopy(norm), type(norm)
    if original is nn.SyncBatchNorm:
        plain.__class__ = nn.BatchNorm2d  # torch's own does not run on a CPU in a distributed job
    tensors = {name: id(tensor) for name, tensor in norm.state_dict(keep_vars=True).items()}
    same, rows = sync(norm)
    assert same is norm
    assert type(norm) is BatchNorm
    assert [(row.path, row.was, row.now) for row in rows] == [("", original.__name__, "BatchNorm")]
    assert norm.process_group is group
    assert {name: id(tensor) for name, tensor in norm.state_dict(keep_vars=True).items()} == tensors
    assert (norm.training, norm.tag) == (training, "mine")
    x = torch.randn(SHAPES.get(original.__name__, (5, 4, 3, 3)), dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(norm(x), plain(x))
    assert norm.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()))
    assert calls.count("forward") == 4  # two of the copy's
    handle.remove()
    norm(x)
    assert calls.count("forward") == 4
    norm.float()
    norm.momentum = 0.7
    _, rows = unsync(norm)
    assert (rows[0].was, rows[0].now) == ("BatchNorm", original.__name__)
    assert type(norm) is original
    assert set(vars(norm)) == attributes
    assert norm.momentum == 0.7
    assert all(tensor.dtype != torch.float64 for tensor in norm.state_dict().values())
    if original is not nn.SyncBatchNorm:
        plain.momentum = 0.7
        torch.testing.assert_close(norm(x.float()), plain.float()(x.float()), rtol=1e-4, atol=1e-5)


def test_own_groups_are_kept_unless_another_is_asked_for(group: Any) -> None:
    own, other = distributed.new_group([0]), distributed.new_group([0])
    model = nn.Sequential(nn.SyncBatchNorm(3, process_group=own), BatchNorm(3), nn.BatchNorm1d(3), norms.SelfNorm(3))
    model[1].process_group = own
    sync(model)
    groups = [model[0].process_group, model[1].process_group, model[2].process_group, model[3].gate.process_group]
    assert groups == [own, own, group, group]
    sync(model, other)
    parts = [module for module in model.modules() if isinstance(module, RunningMoments)]
    assert [part.process_group for part in parts] == [other] * 4
    copied = copy.deepcopy(model)
    assert copied[0].process_group is other
    for each in (model, copied):
        _, rows = unsync(each)
        assert len(rows) == 4
        assert type(each[0]) is nn.SyncBatchNorm
        assert each[0].process_group is own
        assert each[1].process_group is own
        assert each[3].gate.process_group is None
        with pytest.raises(ValueError, match="expected a model that sync has changed"):
            unsync(each)


def test_a_pickle_without_its_group_pools_over_its_own_rank(group: Any) -> None:
    data = pickle.dumps(sync(nn.BatchNorm1d(3))[0])
    distributed.destroy_process_group()
    try:
        loaded = pickle.loads(data)
    finally:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    assert loaded.process_group is None
    assert loaded(torch.randn(4, 3)).shape == (4, 3)
    assert type(unsync(loaded)[0]) is nn.BatchNorm1d


def test_ties_and_foreign_references_hold(group: Any) -> None:
    norm = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.ReLU(), nn.BatchNorm1d(3))})
    model["b"][2].weight = norm.weight
    kept = [norm]
    _, rows = sync(model)
    assert [row.path for row in rows] == ["a", "b.2"]
    assert model["a"] is model["b"][0] is kept[0]
    assert model["b"][2].weight is norm.weight
    unsync(model)
    assert model["a"] is model["b"][0]
    assert model["b"][2].weight is norm.weight


@pytest.mark.parametrize("converted", [False, True], ids=["BatchNormAct2d", "SyncBatchNormAct"])
def test_timms_norm_keeps_its_drop_its_activation_and_its_keys(group: Any, converted: bool) -> None:
    layers = pytest.importorskip("timm.layers")
    norm = layers.BatchNormAct2d(4, act_layer=nn.PReLU, drop_layer=lambda: nn.Threshold(-0.5, 0.0))
    plain, x = copy.deepcopy(norm), torch.randn(4, 4, 3, 3)
    if converted:
        norm = layers.convert_sync_batchnorm(norm)
    drop, act, weight, original, keys = norm.drop, norm.act, norm.weight, type(norm), list(norm.state_dict())
    for training in (True, False):
        sync(norm.train(training))
        sync(norm)
        assert type(norm) is NormAct
        assert (norm.drop, norm.act, norm.norm.weight) == (drop, act, weight)
        assert norm.norm.process_group is group
        torch.testing.assert_close(norm(x), plain.train(training)(x))
        assert set(norm.state_dict()) == set(keys)
        norm.load_state_dict(plain.state_dict())
        _, rows = unsync(norm)
        assert len(rows) == 1
        assert type(norm) is original
        assert [name for name, _ in norm.named_parameters()] == [name for name, _ in plain.named_parameters()]
        assert list(norm.state_dict()) == keys
        torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(norm(x), plain(x))


class _Own(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_what_cannot_be_switched_is_named(group: Any) -> None:
    half_frozen = nn.BatchNorm2d(3)
    half_frozen.track_running_stats = False
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        norms.MixtureNorm(3),
        norms.DSU(3),
        _Own(3),
        nn.LazyBatchNorm2d(),
        parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None),
        half_frozen,
        nn.GroupNorm(1, 3),
        norms.InstanceNorm(3),
        norms.SwitchNorm(3, using_bn=False),
    )
    _, rows = sync(model)
    reasons = {row.path: row.reason for row in rows}
    assert list(reasons) == ["0", "1", "2", "3", "4", "5", "6"]
    assert reasons["0"] == ""
    words = [
        "mixture",
        "this rank",
        "_Own has a forward of its own",
        "lazy",
        "parametrized",
        "track_running_stats is off",
    ]
    for word, reason in zip(words, list(reasons.values())[1:], strict=True):
        assert word in reason
    assert str(rows[1]) == "1: MixtureNorm left alone, it fits its mixture to the pixels of this rank's batch"
    assert [type(model[index]) for index in (3, 6)] == [_Own, nn.BatchNorm2d]
    assert model[5](torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_nothing_to_do_is_an_error(group: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("found none. Its norms are GroupNorm, InstanceNorm.")):
        sync(nn.Sequential(nn.GroupNorm(1, 3), norms.InstanceNorm(3)))
    with pytest.raises(ValueError, match=r"found none\. It has no norms"):
        sync(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="left alone, it fits its mixture"):
        sync(norms.MixtureNorm(3))
    with pytest.raises(TypeError, match=r"expected the model itself, got it wrapped in DataParallel"):
        sync(nn.DataParallel(nn.BatchNorm1d(3)))


def test_without_a_process_group_it_is_refused() -> None:
    model = nn.BatchNorm1d(3)
    with pytest.raises(RuntimeError, match=r"Call torch\.distributed\.init_process_group first"):
        sync(model)
    assert type(model) is nn.BatchNorm1d


def _torchs(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _lightnings(model: nn.Module) -> nn.Module:
    return pytest.importorskip("lightning.pytorch.plugins.layer_sync").TorchSyncBatchNorm().apply(model)


@pytest.mark.parametrize("convert", [_torchs, _lightnings])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_converting_to_torchs_sync_batch_norm_leaves_ours_alone(case: Case, convert: Any) -> None:
    ours = nn.Sequential(build(case), Chain(norms.BatchNorm(8), build(case))).double()
    plain, modules, x = copy.deepcopy(ours), list(ours.modules()), torch.randn(6, 8, 5, 5, dtype=torch.float64)
    model = convert(nn.Sequential(ours, nn.BatchNorm2d(8)))
    assert type(model[1]) is nn.SyncBatchNorm
    assert [id(module) for module in model[0].modules()] == [id(module) for module in modules]
    torch.manual_seed(5)
    y = ours(x)
    torch.manual_seed(5)
    assert torch.equal(y, plain(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    if convert is _lightnings:
        plugin = pytest.importorskip("lightning.pytorch.plugins.layer_sync").TorchSyncBatchNorm()
        assert [id(module) for module in plugin.revert(model)[0].modules()] == [id(module) for module in modules]
