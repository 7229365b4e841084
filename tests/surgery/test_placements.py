"""Every placement goes where its name says, twice changes nothing, and what cannot be done is explained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.models import DenseNet, ResNeXtCifar, WideResNet, resnet18
from shiftnorm.norms import CNSN, DSU, IBN, BatchNorm, Chain, GroupNorm, InstanceNorm, PermutedAdaIN, SelfNorm
from shiftnorm.surgery import PLACEMENTS, convert, edits_of, insert, list_placements, replace, revert
from shiftnorm.surgery.kinds import kind_of
from shiftnorm.surgery.placements import plan

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ARGUMENTS = {"group": {"num_groups": 4}}
# Kept at least in evaluation, where what draws is the identity.
KEEP = ("cnsn", "selfnorm", "crossnorm", "rbn", "bin", "batch", "mixstyle", "efdmix", "dsu", "padain")


def small() -> nn.Module:
    return resnet18(num_classes=3, stem="cifar")


def trained(model: nn.Module) -> nn.Module:
    model.train()
    with torch.no_grad():
        model(X)
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 and "fc" not in name:
                parameter.normal_(0.5, 0.2)
    return model.eval()


def types(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", list_placements())
@pytest.mark.parametrize("build", [small, lambda: WideResNet(10, 1, num_classes=3)], ids=["resnet18", "wide_resnet"])
def test_every_placement(name: str, build) -> None:
    model = trained(build())
    before, kinds, keys = model(X), types(model), list(model.state_dict())
    model, report = convert(model, name, example_input=X, **ARGUMENTS.get(name, {}))
    assert len(report) and PLACEMENTS[name].summary and report.movement is not None
    assert name == "switch" or report.movement.kept == (name in KEEP), (name, report.movement)  # switch: nearly
    if name in KEEP:
        torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-4)
    state = list(model.state_dict())
    again, second = convert(model, name, **ARGUMENTS.get(name, {}))
    assert len(second) == 0 and second.skipped and list(again.state_dict()) == state, "a second time changes nothing"
    model.train()(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters()) or name == "domain"
    model = revert(model.eval(), report)
    assert types(model) == kinds and list(model.state_dict()) == keys


def test_where_they_go() -> None:
    def changed(model: nn.Module, name: str, **options) -> list[str]:
        return [edit.path for edit in plan(model, name, **options).edits]

    resnet, wide = small(), WideResNet(10, 1)
    assert changed(resnet, "ibn_a") == [f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)]
    assert changed(resnet, "ibn_b") == ["bn1", "layer1.1.post", "layer2.1.post"]
    assert changed(resnet, "mixstyle") == ["after_layer1", "after_layer2"]
    assert changed(resnet, "dsu") == ["bn1", *(f"after_layer{stage}" for stage in (1, 2, 3, 4))]
    assert len(changed(resnet, "padain")) == 17 and not any("downsample" in path for path in changed(resnet, "padain"))
    assert len(changed(resnet, "rbn")) == 20
    assert changed(resnet, "selfnorm", where="stages:3") == ["layer3.0.residual", "layer3.1.residual"]
    assert changed(resnet, "selfnorm", where="blocks:last channels:64-128", slot="post") == [
        "layer1.1.post",
        "layer2.1.post",
    ]
    assert changed(resnet, "IBN", where="layer1.*") == [
        f"layer1.{block}.bn{norm}" for block in (0, 1) for norm in (1, 2)
    ]
    assert changed(resnet, "rbn", where="*downsample*") == [f"layer{stage}.0.downsample.1" for stage in (2, 3, 4)]
    assert changed(wide, "ibn_a") == ["block1.layer.0.bn2", "block2.layer.0.bn2"]
    assert changed(wide, "selfnorm") == [f"block{stage}.layer.0.residual" for stage in (1, 2, 3)]
    dense = DenseNet(8, (4, 2, 4, 1), 16)
    assert changed(dense, "ibn_a") == [
        f"features.denseblock{block}.denselayer{layer}.norm1"
        for block, layer in ((1, 1), (1, 4), (2, 1), (3, 1), (3, 4))
    ]
    assert changed(ResNeXtCifar(11, 2, 8), "ibn_a") == ["stage_1.0.bn_reduce", "stage_2.0.bn_reduce"]


def test_dense_form_of_ibn_can_be_overruled() -> None:
    model, _ = convert(DenseNet(8, (1, 1, 1, 1), 16), "ibn_a")
    assert (model.features.denseblock1[0].norm1.ratio, model.features.denseblock1[0].norm1.order) == (
        0.4,
        "batch_first",
    )
    model, _ = convert(DenseNet(8, (1, 1, 1, 1), 16), "ibn_a", ratio=0.5, order="instance_first")
    assert (model.features.denseblock1[0].norm1.ratio, model.features.denseblock1[0].norm1.num_instance) == (0.5, 8)


def test_names_in_any_spelling() -> None:
    for name in ("IBN-a", "ibn_A", "SelfNorm", "self_norm", "CNSN@post", "permuted_adain", "mix-style", SelfNorm, CNSN):
        assert plan(small(), name).edits
    assert list_placements("ibn*") == ["ibn_a", "ibn_b"] and list_placements("nothing") == []
    assert set(list_placements()) == set(PLACEMENTS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: convert(m, "ibn_c"), "unknown placement 'ibn_c'; did you mean ibn_"),
        (lambda m: convert(m, "xyzzy"), "unknown norm 'xyzzy'; known: "),
        (lambda m: convert(m, "chain"), "unknown placement 'chain'"),
        (lambda m: convert(m, "NormLayer"), "unknown"),
        (lambda m: convert(m, "moment_norm"), "unknown"),
        (lambda m: convert(m, "selfnorm@"), "unknown slot ''"),
        (lambda m: convert(m, "selfnorm", slot="res"), "unknown slot 'res'"),
        (lambda m: convert(m, "ibn_b", slot="post"), "takes no slot"),
        (lambda m: replace(m, "selfnorm@post"), r"replace: it takes no slot, got 'post'; use convert"),
        (lambda m: convert(m, "selfnorm", where="layer1.0.bn1"), r"matches no block. Near: layer1"),
        (lambda m: convert(m, "ibn_a", where="type:GroupNorm"), "matches no block"),
        (lambda m: convert(m, "rbn", where="conv1"), "matches no norm"),
        (lambda m: convert(m, "group", num_groups=7), "divisible|num_groups|groups"),
        (lambda m: convert(m, "selfnorm", colour="red"), "colour"),
        (lambda m: convert(m, 3), "expected a norm's name"),
        (lambda m: convert(m, lambda channels: None), "to return a module, got None"),
    ],
)
def test_mistakes(call, message: str) -> None:
    model = small()
    kinds, keys = types(model), list(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)
    assert types(model) == kinds and list(model.state_dict()) == keys and not edits_of(model)


def test_a_conversion_that_changes_nothing_is_an_error() -> None:
    model = small()
    model.layer4[0].residual = nn.Conv2d(512, 512, 1)
    dense = DenseNet(8, (4, 1, 1, 1), 16)
    with pytest.raises(ValueError, match=r"nothing would change: ibn_a has no place in what where="):
        convert(dense, "ibn_a", where="features.denseblock1.denselayer2")
    convert(model, "selfnorm", where="layer4.0")  # behind what is in the slot
    with pytest.raises(ValueError, match=r"convert: nothing would change. layer1.0.bn1: it is a Repres"):
        convert(convert(model, "rbn")[0], "ibn_a")
    convnext = pytest.importorskip("torchvision.models").convnext_tiny()
    with pytest.raises(ValueError, match=r"nothing would change.*no norm of its own in front.*and \d+ more"):
        convert(convnext, "ibn_a")
    with pytest.raises(ValueError, match=r"no BatchNorm to put RepresentativeBatchNorm in the place of.*LayerNorm"):
        convert(convnext, "rbn")


def test_norms_of_ours_are_replaced_if_they_are_named() -> None:
    model, _ = convert(small(), "ibn_a", where="stages:1")
    with pytest.raises(ValueError, match="revert that, or name it"):
        convert(convert(small(), "rbn")[0], "ibn_a", where="layer1.0")
    model, report = replace(model, "rbn", where="layer1.0.bn1")
    assert len(report) == 1
    model = revert(model, report)
    assert isinstance(model.layer1[0].bn1, IBN)
    torch_norm = nn.Sequential(nn.GroupNorm(2, 8), nn.LayerNorm(8))
    model, report = replace(torch_norm, "GroupNorm", where="type:GroupNorm", num_groups=2)
    assert type(model[0]) is GroupNorm  # torch's has the same name
    with pytest.raises(ValueError, match="last axis"):
        replace(torch_norm, "LayerNorm", where="1")


def test_one_conversion_upon_another() -> None:
    model = trained(pytest.importorskip("torchvision.models").resnet18(num_classes=3))
    before = model(X)
    reports = []
    for name in ("selfnorm@residual", "padain", "crossnorm@residual", "rbn", "mixstyle", "selfnorm@post", "dsu"):
        model, report = convert(model, name)
        reports.append(report)
        assert len(report)
        torch.testing.assert_close(model(X), before, rtol=1e-3, atol=1e-3)
    inner = [type(part).__name__ for part in model.layer1[0].bn2]
    assert inner == ["PermutedAdaIN", "RepresentativeBatchNorm", "SelfNorm", "CrossNorm"]
    assert [type(part) for part in model.bn1][:2] == [DSU, PermutedAdaIN]
    for report in reversed(reports):
        model = revert(model, report)
    assert torch.equal(model(X), before)


class Frozen(nn.Module):
    """A network with one norm in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)))

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.bn.eval()
        return self


@pytest.mark.parametrize("how", ["rbn", "selfnorm after", "twice"])
def test_modes_are_each_modules_own(how: str) -> None:
    model = Frozen().train()
    if how == "rbn":
        model, report = convert(model, "rbn")
    else:
        model, report = insert(model, "SelfNorm", after="bn,head")
    if how == "twice":
        model.bn.training = True  # the Chain, not the norm in it
        model, report = insert(model, "SelfNorm", after="bn")
        assert model.bn.training and [part.training for part in model.bn] == [False, False, True]
        revert(model, report)
        assert model.bn.training and [part.training for part in model.bn] == [False, False]
        return
    assert model.training and model.head.training and not model.bn.training
    assert not any(part.training for part in model.bn.modules())
    model = revert(model, report)
    assert model.training and model.head.training and not model.bn.training


def test_batch_norms_of_every_kind() -> None:
    for rank, (norm, conv) in enumerate([(nn.BatchNorm1d, nn.Conv1d), (nn.BatchNorm3d, nn.Conv3d)]):
        x = torch.randn(3, 4, *[5] * (1, 3)[rank])
        for options in ({}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"bias": False}):
            model = nn.Sequential(conv(4, 8, 1), norm(8, **options))
            model(x)
            expected = model.eval()(x)
            model, report = convert(model, "rbn", example_input=x)
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
            assert model[1].momentum == options.get("momentum", 0.1)
            assert (model[1].weight is None) == ("affine" in options)
            assert (model[1].running_mean is None) == ("track_running_stats" in options)
            model.train()(x).sum().backward()
            assert torch.equal(revert(model, report).eval()(x), expected) or "track_running_stats" not in options
    features = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    expected = features(torch.ones(2, 4))
    features, _ = insert(features, "SelfNorm", after="1", start="identity")
    torch.testing.assert_close(features(torch.ones(2, 4)), expected)


def test_weight_norm_beside_and_spectral_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    expected = model(X)
    model, first = convert(model, "rbn")
    model, second = insert(model, "SelfNorm", after="0,2", start="identity")
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    model = revert(revert(model, second), first)
    assert torch.equal(model(X), expected)


def test_a_raising_factory_leaves_the_blocks_of_torchvision_closed() -> None:
    model = pytest.importorskip("torchvision.models").resnet18()
    made: list[int] = []

    def third_fails(channels: int) -> nn.Module:
        made.append(channels)
        if len(made) == 3:
            raise KeyboardInterrupt
        return nn.InstanceNorm2d(channels)

    kinds = types(model)
    with pytest.raises(KeyboardInterrupt):
        convert(model, third_fails, slot="post")
    assert types(model) == kinds and not hasattr(model.layer1[1], "post")


def test_a_revert_that_cannot_be_whole_changes_nothing() -> None:
    model, report = convert(small(), "ibn_a")
    model.layer1[0].bn1 = nn.BatchNorm2d(64)
    kinds = types(model)
    with pytest.raises(ValueError, match=r"what was put at 'layer1.0.bn1' is no longer there"):
        revert(model, report)
    assert types(model) == kinds and len(edits_of(model)) == 6


def test_where_restricts_the_stem_too() -> None:
    model, report = convert(small(), "ibn_b", where="stages:3")
    assert [change.edit.path for change in report.changes] == ["layer3.1.post"] and isinstance(
        model.bn1, nn.BatchNorm2d
    )
    model, report = convert(small(), "dsu", where="stages:3")
    assert [change.edit.path for change in report.changes] == ["after_layer3"]
    with pytest.raises(ValueError, match=r"no place in what where='layer1\.0' selects"):
        convert(small(), "ibn_b", where="layer1.0")  # not the last block of its stage


def test_kinds_of_what_was_put_there() -> None:
    model, _ = convert(small(), "padain")
    assert isinstance(model.bn1, Chain) and isinstance(model.bn1[0], PermutedAdaIN) and type(model.bn1[1]) is BatchNorm
    model, _ = convert(small(), "ibn_b")
    assert type(model.bn1) is InstanceNorm and model.bn1.weight is not None
    assert all(kind_of(module) is None or kind_of(module).name != "batch" for module in [model.bn1])
