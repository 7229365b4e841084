"""Norms are found where they are, once, and the selectors choose what they say."""

from __future__ import annotations

import pytest
from torch import nn

from shiftnorm.models import WideResNet, resnet18
from shiftnorm.norms import CNSN, IBN, BatchNorm, Chain, SelfNorm
from shiftnorm.surgery import Site, find_norms, select
from shiftnorm.surgery.sites import find_modules


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    return find_norms(resnet18(num_classes=3))


def paths(sites: list[Site]) -> list[str]:
    return [site.path for site in sites]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("bn1", ["bn1"]),
        ("layer1.*.bn1", ["layer1.0.bn1", "layer1.1.bn1"]),
        ("path:layer1.0.bn1,layer2.0.bn2", ["layer1.0.bn1", "layer2.0.bn2"]),
        ("bn1,layer4.1.bn?", ["bn1", "layer4.1.bn1", "layer4.1.bn2"]),
        ("*downsample*", ["layer2.0.downsample.1", "layer3.0.downsample.1", "layer4.0.downsample.1"]),
        ("stages:1", ["layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"]),
        ("stage:1,4 *.1.bn2", ["layer1.1.bn2", "layer4.1.bn2"]),
        ("stages:3- *.1.bn1", ["layer3.1.bn1", "layer4.1.bn1"]),
        ("stages:2-3 blocks:last path:*bn1", ["layer2.1.bn1", "layer3.1.bn1"]),
        ("depth:0-1", ["bn1", "layer1.0.bn1"]),
        ("depth:0,19", ["bn1", "layer4.1.bn2"]),
        ("channels:100-200 *.0.bn1", ["layer2.0.bn1"]),
        ("channels:512 type:Batch* *.1.*", ["layer4.1.bn1", "layer4.1.bn2"]),
        ("type:GroupNorm,BatchNorm2d depth:2", ["layer1.0.bn2"]),
        (["bn1", "stages:4 *.1.bn1"], ["bn1", "layer4.1.bn1"]),
        (("layer4.1.bn1", "bn1", "bn1"), ["bn1", "layer4.1.bn1"]),  # in the model's order, each once
        (lambda site: site.last and site.stage == 2, ["layer2.1.bn1", "layer2.1.bn2"]),
        ("  bn1  ", ["bn1"]),
    ],
)
def test_selectors(sites: list[Site], where, expected: list[str]) -> None:
    assert paths(select(sites, where)) == expected


def test_none_means_all_and_an_empty_string_the_model(sites: list[Site]) -> None:
    assert select(sites, None) == sites and len(sites) == 20
    modules = find_modules(nn.Sequential(nn.ReLU()))
    assert paths(select(modules, "")) == [""]


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("layer1.0.bn3", ValueError, r"matches no norm\. Near: layer1\.0\.bn"),
        ("stages:9", ValueError, r"matches no norm.*types: BatchNorm2d; stages: 1, 2, 3, 4"),
        ("stages:3-1", ValueError, r"'3-1'.*from 1 to 3"),
        ("stages:one", ValueError, "expected numbers such as 3, 1-3 or 5-"),
        ("stages:", ValueError, "expected numbers"),
        ("stages:-2", ValueError, "expected numbers"),
        ("depth:1.5", ValueError, "expected numbers"),
        ("blocks:first", ValueError, "expected 'blocks:last'"),
        ("chanels:3", ValueError, "did you mean 'channels'"),
        ("zzz:3", ValueError, "known: path, type, stages, blocks, depth, channels"),
        ([], ValueError, "at least one selector"),
        (lambda site: False, ValueError, "matches no norm. There are 20"),
        (3, TypeError, "expected a string, a sequence of strings, a function or None, got 3"),
        ([1, 2], TypeError, "sequence of strings"),
        (b"bn1", TypeError, "sequence of strings"),
        (["bn1", None], TypeError, "sequence of strings"),
    ],
)
def test_wrong_selectors_are_explained(sites: list[Site], where, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select(sites, where)


def test_nothing_to_choose_from_is_said() -> None:
    with pytest.raises(ValueError, match=r"matches no norm\. There is none in this model\."):
        select(find_norms(nn.Sequential(nn.ReLU())), "bn1")
    with pytest.raises(ValueError, match="stages: not known"):
        select(find_norms(nn.Sequential(nn.BatchNorm2d(3))), "stages:1")


def test_containers_of_every_kind() -> None:
    shared = nn.BatchNorm1d(4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.ModuleList([nn.BatchNorm2d(4), nn.ModuleDict({"a": nn.BatchNorm3d(4), "b": shared})])
            self.tied = nn.Sequential(nn.ReLU(), shared, nn.Sequential(nn.InstanceNorm1d(4)))
            self.none = None
            self.chain = Chain(BatchNorm(4), SelfNorm(4))
            self.cnsn = nn.Sequential(CNSN(4))
            self.plain = [nn.BatchNorm2d(4)]  # not registered: no part of the model

    found = find_norms(Net())
    expected = ["row.0", "row.1.a", "row.1.b", "tied.2.0", "chain.0", "chain.1", "cnsn.0.0", "cnsn.0.1"]
    assert paths(found) == expected and [site.depth for site in found] == list(range(8))
    assert found[2].module is shared and found[0].stage is None and not found[0].last


def test_the_model_itself_and_parts_of_norms() -> None:
    assert paths(find_norms(nn.BatchNorm2d(3))) == [""]
    assert paths(find_norms(IBN(4))) == [""]
    assert paths(find_norms(nn.Sequential(SelfNorm(4), nn.BatchNorm2d(4)))) == ["0", "1"]  # not the gate's own


def test_stage_and_block_of_a_norm() -> None:
    found = {site.path: site for site in find_norms(WideResNet(16, 1))}
    site = found["block2.layer.1.bn1"]
    assert (site.stage, site.block, site.last, site.channels) == (2, "block2.layer.1", True, 32)
    assert found["bn1"].stage is None and found["bn1"].block is None


def test_the_same_block_twice_is_one_block() -> None:
    model = resnet18(num_classes=3)
    model.layer1[1] = model.layer1[0]
    found = [site for site in find_norms(model) if site.stage == 1]
    assert paths(found) == ["layer1.0.bn1", "layer1.0.bn2"] and all(site.last for site in found)
