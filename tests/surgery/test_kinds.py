"""What a module is, and which models surgery refuses."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from shiftnorm import norms
from shiftnorm.surgery import convert, insert
from shiftnorm.surgery.kinds import fuses, has_own_forward, is_batch, kind_of

OVER_CHANNELS = "layer over channels"
LAST_AXIS = "layer over the last axis"


@pytest.mark.parametrize(
    ("module", "name", "channels", "replaceable"),
    [
        (nn.BatchNorm1d(8), "batch", 8, True),
        (nn.BatchNorm3d(8, affine=False, track_running_stats=False), "batch", 8, True),
        (nn.SyncBatchNorm(8), "sync batch", 8, True),
        (nn.InstanceNorm2d(8), "instance", 8, True),
        (nn.GroupNorm(2, 8), "group", 8, True),
        (nn.LayerNorm(8), LAST_AXIS, 8, False),
        (nn.LayerNorm((4, 8)), LAST_AXIS, None, False),
        (nn.RMSNorm(8), "rms over the last axis", 8, False),
        (nn.LazyBatchNorm2d(), "batch", 0, False),
        (norms.IBN(8), "ours", 8, True),
        (norms.CrossNorm(), "ours", None, True),
        (norms.CNSN(8), "ours", 8, True),
    ],
)
def test_norms_of_torch_and_ours(module: nn.Module, name: str, channels: int | None, replaceable: bool) -> None:
    kind = kind_of(module)
    assert kind is not None
    assert (kind.name, kind.channels, kind.refusal is None) == (name, channels, replaceable)
    assert is_batch(module) == (replaceable and name in ("batch", "sync batch"))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Conv2d(3, 3, 1), nn.LocalResponseNorm(3), nn.Sequential()])
def test_what_is_no_norm(module: nn.Module) -> None:
    assert kind_of(module) is None and not fuses(module)


def names_in_timm() -> list[str]:
    layers = pytest.importorskip("timm.layers")
    composite = ("Mlp", "Head", "ConvNorm", "ConvBn")
    return [
        name
        for name in dir(layers)
        if isinstance(kind := getattr(layers, name), type)
        and issubclass(kind, nn.Module)
        and ("Norm" in name or "Abn" in name)
        and not any(part in name for part in composite)
    ]


def test_every_norm_of_timm_is_known() -> None:
    layers = pytest.importorskip("timm.layers")
    expected = {
        "BatchNormAct2d": "batch",
        "SplitBatchNorm2d": "batch",
        "SyncBatchNormAct": "sync batch",
        "FrozenBatchNormAct2d": "frozen batch",
        "GroupNorm": "group",
        "GroupNorm1": "group",
        "GroupNormAct": "group",
        "GroupNorm1Act": "group",
    }
    seen = 0
    for name in names_in_timm():
        kind = getattr(layers, name)
        if "ConvNormAct" in name or inspect.isabstract(kind) or name == "SeparableConvNormAct":
            continue
        module = kind(8, num_groups=2) if name in ("GroupNorm", "GroupNormAct") else kind(8)
        found = kind_of(module)
        assert found is not None, f"{name} passes as no norm"
        assert found.channels == 8, name
        if name in expected:
            assert found.name == expected[name], name
        elif "EvoNorm" in name or "FilterResponse" in name or "Abn" in name:
            assert found.name == "other" and found.refusal is not None, name
        else:
            family = "layer" if "Layer" in name else "rms"
            where = "over channels" if "2d" in name else "over the last axis"
            assert found.name == f"{family} {where}", name
            assert (found.refusal is None) == ("2d" in name), name
        assert ("act" in found.fused) == (hasattr(module, "act") and isinstance(module.act, nn.Module)), name
        seen += 1
    assert seen > 25


class Halved(nn.BatchNorm2d):
    """A BatchNorm that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class Renamed(nn.BatchNorm2d):
    """A BatchNorm by another name."""


def test_a_forward_of_its_own_is_not_lost_by_surprise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Halved(8), Renamed(8)).eval()
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    assert has_own_forward(model[1]) and not has_own_forward(model[2]) and not fuses(model[1]) and fuses(model[2])
    model, report = insert(model, "SelfNorm", after="1", start="identity")
    torch.testing.assert_close(model(x), before)
    assert type(model[1]) is Halved  # beside it, not in its place
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Halved(8), Renamed(8)).eval()
    model, report = convert(model, "rbn")
    assert [change.edit.path for change in report.changes] == ["2"]
    assert "Halved has a forward of its own that would be lost" in report.skipped[0].reason
    model, report = convert(model, "rbn", where="1")  # named, it is meant
    assert len(report) == 1 and isinstance(model[1], norms.RepresentativeBatchNorm)
    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x
    assert has_own_forward(patched)


def test_a_parametrized_batch_norm_is_a_batch_norm() -> None:
    norm = nn.BatchNorm2d(3)
    parametrize.register_parametrization(norm, "weight", nn.Identity())
    kind = kind_of(norm)
    assert kind is not None and kind.name == "batch" and kind.channels == 3 and fuses(norm)


def test_lazy_batch_norm_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match=r"LazyBatchNorm2d.*run the model once"):
        convert(model, "rbn")
    assert isinstance(model[1], nn.LazyBatchNorm2d)
    model(torch.randn(2, 3, 4, 4))
    model, report = convert(model, "rbn")
    assert len(report) == 1 and model[1].num_features == 8
    mixed = nn.Sequential(nn.LazyConv2d(8, 1), nn.BatchNorm2d(8))
    mixed, report = convert(mixed, "rbn")
    assert report.parameters == (16, 16 + 3 * 8)  # of the lazy one nothing is known


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_models_are_refused_and_quantizable_ones_are_not() -> None:
    quantized = pytest.importorskip("torch.ao.nn.quantized", reason="this torch has no quantized modules any more")
    model = nn.Sequential(nn.BatchNorm2d(3), quantized.ReLU6())
    with pytest.raises(TypeError, match=r"got a quantized one \(1 is ReLU6\).*before quantizing"):
        convert(model, "rbn")
    assert type(model[0]) is nn.BatchNorm2d
    dynamic = pytest.importorskip("torch.ao.nn.quantized.dynamic", reason="as above")
    with pytest.raises(TypeError, match="quantized"):
        convert(nn.Sequential(nn.BatchNorm1d(3), dynamic.Linear(3, 3)), "rbn")
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.add = quantized.FloatFunctional()
    model.forward = lambda x: model[0](x)
    model, report = convert(model, "rbn")  # in floating point until it is quantized
    assert len(report) == 1
