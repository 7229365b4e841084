"""Folded models compute what the unfolded ones do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftnorm import models
from shiftnorm.norms import CNSN, IBN, BatchNorm, Chain, CrossNorm, InstanceNorm, MixStyle, SelfNorm, SwitchNorm
from shiftnorm.surgery.constant import InstanceChannels
from shiftnorm.surgery.fold import FoldReport, fold

OURS = ["resnet18", "resnet50", "se_resnet18", "all_conv", "densenet121", "densenet40_12", "resnext29_4x32"]
OURS += ["wide_resnet16_4"]
TORCHVISION = ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x1_0"]
TORCHVISION += ["googlenet"]
TIMM = ["resnet18", "efficientnet_b0", "densenet121"]
# Their norms stand in front of the convolutions: those with a concatenation or a sum in front stay.
NOT_ALL = ("densenet", "wide_resnet", "googlenet")


def shaken(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with random statistics and parameters in every norm."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def change(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected, got = one(x), other(x)
    assert got.dtype == expected.dtype
    return float((got - expected).abs().max() / expected.abs().max())


def count(model: nn.Module) -> int:
    return sum(1 for module in model.modules() if type(module) is not nn.Identity)


def build(name: str) -> nn.Module:
    library, _, model = name.partition("/")
    if library == "ours":
        return models.create_model(model)
    if library == "torchvision":
        torchvision = pytest.importorskip("torchvision")
        arguments = {"init_weights": False} if model == "googlenet" else {}
        return getattr(torchvision.models, model)(**arguments)
    return pytest.importorskip("timm").create_model(model)


@pytest.mark.parametrize(
    "name",
    [
        *(f"ours/{name}" for name in OURS),
        *(f"torchvision/{name}" for name in TORCHVISION),
        *(f"timm/{n}" for n in TIMM),
    ],
)
def test_backbones(name: str) -> None:
    model = shaken(build(name))
    x = torch.randn(2, 3, 32, 32)
    folded, report = fold(model)
    assert change(model, folded, x) < 1e-4
    assert count(model) - count(folded) == report.folded
    assert (report.left == 0) == (not any(each in name for each in NOT_ALL))
    assert report.folded or "densenet40" in name
    model = model.double()
    assert change(model, fold(model)[0], x.double()) < 1e-9


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": BatchNorm,
    "BatchNorm without parameters": lambda c: BatchNorm(c, affine=False),
    "torch without parameters": lambda c: nn.BatchNorm2d(c, affine=False),
    "SyncBatchNorm": nn.SyncBatchNorm,
    "InstanceNorm with running statistics": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
    "IBN": IBN,
    "IBN, odd, batch first": lambda c: IBN(c, ratio=0.3, order="batch_first"),
    "IBN, all batch": lambda c: IBN(c, ratio=0.0),
    "IBN without parameters": lambda c: IBN(c, affine=False),
    "chain of BatchNorm and SelfNorm": lambda c: Chain(BatchNorm(c), SelfNorm(c)),
    "chain of BatchNorm and CNSN": lambda c: Chain(BatchNorm(c), CNSN(c)),
    "chain of torch's BatchNorm and SelfNorm": lambda c: Chain(nn.BatchNorm2d(c), SelfNorm(c)),
    "chain of IBN and SelfNorm": lambda c: Chain(IBN(c), SelfNorm(c)),
    "chain of two BatchNorms": lambda c: Chain(BatchNorm(c), BatchNorm(c, eps=0.1)),
    "chain with an activation": lambda c: Chain(CrossNorm(c), BatchNorm(c), nn.ReLU(), BatchNorm(c)),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str
)
def test_norms_behind_a_convolution(norm: Callable[[int], nn.Module], dtype: torch.dtype, tolerance: float) -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 7, 3), norm(7), nn.ReLU(), nn.Conv2d(7, 5, 1))).to(dtype)
    x = torch.randn(4, 3, 9, 9).to(dtype)
    folded, report = fold(model, x)
    assert report.folded == 1 and report.rows[0].into == "0"
    assert change(model, folded, x) < tolerance
    assert folded[0].weight.dtype == dtype


def test_what_stays_of_a_norm() -> None:
    norms = {
        "BatchNorm": (BatchNorm(8), nn.Identity, ""),
        "IBN": (IBN(8), InstanceChannels, "the instance channels stay"),
        "one": (Chain(BatchNorm(8), CrossNorm(8), SelfNorm(8)), SelfNorm, "SelfNorm stays"),
        "two": (Chain(BatchNorm(8), InstanceNorm(8), SelfNorm(8)), Chain, "InstanceNorm and SelfNorm stay"),
        "none": (Chain(BatchNorm(8), CrossNorm(8)), nn.Identity, ""),
    }
    for name, (norm, left, reason) in norms.items():
        folded, report = fold(nn.Sequential(nn.Conv2d(3, 8, 1), norm).eval())
        assert type(folded[1]) is left, name
        assert report.rows[0].reason == reason, name
        assert not any(module.training for module in folded.modules()), name


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_layers(rank: int, bias: bool, groups: int, transposed: bool) -> None:
    conv = getattr(nn, f"Conv{'Transpose' if transposed else ''}{rank}d")
    layer = conv(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    model = shaken(nn.Sequential(layer, getattr(nn, f"BatchNorm{rank}d")(6))).double()
    x = torch.randn(2, 4, *[7] * rank, dtype=torch.float64)
    folded, report = fold(model)
    assert report.folded == 1
    assert change(model, folded, x) < 1e-12


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm])
def test_linear(norm: Callable[[int], nn.Module]) -> None:
    model = shaken(nn.Sequential(nn.Linear(4, 6, bias=False), norm(6))).double()
    folded, report = fold(model)
    assert report.folded == 1
    assert change(model, folded, torch.randn(5, 4, dtype=torch.float64)) < 1e-12


def test_linear_over_tokens_is_undone_with_an_example() -> None:
    model = shaken(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    tokens = torch.randn(2, 6, 4)  # the norm's channels are the tokens, not the features
    folded, report = fold(model, tokens)
    assert report.folded == 0 and "changes the output on the example by" in report.rows[0].reason
    assert change(model, folded, tokens) == 0


def test_several_norms_in_a_row_go_into_one_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Dropout(), nn.BatchNorm2d(6), MixStyle(), nn.Identity(), BatchNorm(6), SwitchNorm(6)
    )
    model = shaken(model).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded, report = fold(model)
    rows = {row.norm: row for row in report.rows}
    assert rows["2"].into == rows["5"].into == "0"
    assert rows["3"].reason == "MixStyle is the identity in evaluation"
    assert rows["6"].reason == "SwitchNorm normalizes every input by its own moments"
    assert change(model, folded, x) < 1e-12


def test_norm_behind_what_stays_is_left() -> None:
    timm = pytest.importorskip("timm")
    norm = timm.layers.BatchNormAct2d(6)
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.BatchNorm2d(6))).double()
    folded, report = fold(model)
    assert [str(row) for row in report.rows] == [
        "1 -> 0 (ReLU stays)",
        "2: left, its input comes from 1 (BatchNormAct2d), which stays",
    ]
    assert change(model, folded, torch.randn(2, 3, 8, 8, dtype=torch.float64)) < 1e-12


def test_frozen_batch_norms() -> None:
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    for norm in (torchvision.ops.FrozenBatchNorm2d(6), timm.layers.FrozenBatchNormAct2d(6)):
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
        norm.running_mean.normal_()
        model = nn.Sequential(nn.Conv2d(3, 6, 3), norm).eval().double()
        folded, report = fold(model)
        assert report.folded == 1
        assert change(model, folded, torch.randn(2, 3, 8, 8, dtype=torch.float64)) < 1e-12


def test_adapted_statistics_fold_and_batch_sources_do_not() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3), BatchNorm(6)))
    for source, folds in (("auto", 1), ("running", 1), ("batch", 0), ("blend", 0), ("ema", 0)):
        model[1].source = source
        report = fold(model)[1]
        assert report.folded == folds
        if not folds:
            assert report.rows[0].reason == f"it looks at the batch in evaluation too (source {source!r})"
    for norm in (BatchNorm(6, track_running_stats=False), nn.BatchNorm2d(6, track_running_stats=False)):
        report = fold(nn.Sequential(nn.Conv2d(3, 6, 3), norm).eval())[1]
        assert "it keeps no running statistics (track_running_stats=False)" in report.rows[0].reason


def test_the_model_itself_is_changed_only_if_asked() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    folded, _ = fold(model, inplace=True)
    assert folded is model and type(model[1]) is nn.Identity


def test_requires_grad_and_memory_format_are_the_convolutions() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), IBN(6)))
    model = model.to(memory_format=torch.channels_last)
    model[0].requires_grad_(False)
    folded, _ = fold(model)
    assert not folded[0].weight.requires_grad and not folded[0].bias.requires_grad
    assert folded[2].weight.requires_grad and folded[2].bias.requires_grad
    assert folded[2].weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert folded(x).is_contiguous(memory_format=torch.channels_last)


def test_tied_weights_keep_their_values_where_nothing_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model[3].weight = model[0].weight
    model = shaken(model).double()
    folded, report = fold(model)
    assert report.folded == 1
    assert change(model, folded, torch.randn(2, 4, 5, 5, dtype=torch.float64)) < 1e-12


class Controlled(nn.Module):
    """Control flow on values, which fx cannot trace; the first convolution's output is also added when ``leaks``."""

    def __init__(self, leaks: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.leaks = leaks

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        if x.sum() > 1e9:
            raise ValueError("too bright")
        first = self.conv1(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(first))))
        return {"out": (y + first if self.leaks else y) * scale}


@pytest.mark.parametrize("as_input", [lambda x: x, lambda x: (x, 2.0), lambda x: {"x": x, "scale": 2.0}])
def test_models_that_cannot_be_traced_are_run(as_input: Callable[[Tensor], Any]) -> None:
    model, x = shaken(Controlled()).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded, report = fold(model, as_input(x))
    assert report.folded == 2 and report.found_by == "running"
    assert report.change is not None and report.change < 1e-12
    assert torch.allclose(folded(x)["out"], model(x)["out"], rtol=0, atol=1e-10)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


def test_other_users_are_seen_in_a_run() -> None:
    report = fold(shaken(Controlled(leaks=True)), torch.randn(2, 3, 8, 8))[1]
    assert [str(row) for row in report.rows] == [
        "bn1: left, the output of conv1 has other users too",
        "bn2 -> conv2",
    ]


def test_training_mode_and_missing_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fold: expected a model in evaluation mode.*Call model\.eval\(\) first"):
        fold(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    with pytest.raises(ValueError, match=r"torch\.fx can trace, and Controlled cannot be .*Pass example_input"):
        fold(Controlled().eval())
    with pytest.raises(TypeError, match=r"expected example_input to be a tensor, .* got str"):
        fold(Controlled().eval(), "x")
    with pytest.raises(ValueError, match="finite floating-point tensors on example_input"):
        fold(Controlled().eval(), torch.full((1, 3, 8, 8), float("nan")))


class OnTheNormItself(nn.Module):
    """Asks the norm for an attribute, which what is left of it does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head, self.last = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.bn(self.conv(x)) / self.bn.num_features))


@pytest.mark.parametrize("example", [None, torch.randn(1, 3, 8, 8)])
def test_a_norm_the_forward_asks_for_is_put_back(example: Tensor | None) -> None:
    model = shaken(OnTheNormItself())
    folded, report = fold(model, example)
    assert "the model needs the norm itself (AttributeError" in report.rows[0].reason
    assert report.rows[1].into == "head"
    assert change(model, folded, torch.randn(2, 3, 8, 8)) < 1e-5


def test_compiled_and_exported() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 8, 3), IBN(8), nn.ReLU(), nn.Conv2d(8, 4, 1), BatchNorm(4)))
    x = torch.randn(2, 3, 8, 8)
    folded, _ = fold(model)
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    exported = torch.export.export(folded, (x,)).module()
    assert change(model, compiled, x) < 1e-5
    with torch.no_grad():
        assert torch.allclose(exported(x), model(x), atol=1e-5)


def test_report() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)).eval()
    report = fold(model)[1]
    assert str(report).splitlines() == [
        "fold: nothing folded, 1 left; connections found by tracing",
        "  0: left, its input comes from the model's argument 'input'",
    ]
    assert (report.folded, report.left) == (0, 1)
    report = fold(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).eval(), torch.randn(1, 3, 4, 4))[1]
    data = json.loads(json.dumps(report.to_json()))
    assert data["rows"] == [{"norm": "1", "into": "0", "reason": ""}] and data["change"] < 1e-5
    assert str(fold(nn.Sequential(nn.ReLU()).eval())[1]) == "fold: the model has no norms"
    assert fold(nn.BatchNorm2d(3).eval())[1].rows[0].reason.startswith("it is the model itself")
    assert isinstance(report, FoldReport)
