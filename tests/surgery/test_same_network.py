"""A network built with a norm and a plain network given it by surgery are the same network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.models import AllConv, DenseNet, DenseNetCifar, ResNeXtCifar, WideResNet, resnet18, resnet50
from shiftnorm.norms import CNSN, DSU, IBN, InstanceNorm, MixStyle, SelfNorm, SqueezeExcite
from shiftnorm.surgery import convert, revert

SLOTS = ("pre", "residual", "identity", "post")
AFFINE = partial(InstanceNorm, affine=True)
DENSE_IBN = partial(IBN, ratio=0.4, order="batch_first")
SMALL: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(resnet18, num_classes=4, stem="cifar"),
    "resnet50": partial(resnet50, num_classes=4),
    "wide_resnet": partial(WideResNet, 16, 1, num_classes=4),
    "densenet": partial(DenseNet, 8, (4, 2, 4, 1), 16, num_classes=4),
    "resnext": partial(ResNeXtCifar, 11, 2, 8, num_classes=4),
    "densenet_cifar": partial(DenseNetCifar, 10, 4, num_classes=4),
    "densenet_bc": partial(DenseNetCifar, 16, 4, num_classes=4, bottleneck=True, compression=0.5),
    "all_conv": partial(AllConv, 4, 8, dropout=0.0),
}
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("resnet18", {"inner_norm": [IBN, IBN, IBN, None]}, "ibn_a", {}),
    ("resnet50", {"inner_norm": [IBN, IBN, IBN, None]}, "ibn_a", {}),
    ("resnet18", {"inner_norm": [IBN] * 4}, "ibn_a", {"where": "stages:1-4"}),
    ("resnet18", {"stem_norm": AFFINE, "stage_end": [AFFINE, AFFINE, None, None]}, "ibn_b", {}),
    ("resnet50", {"stem_norm": AFFINE, "stage_end": [AFFINE, AFFINE, None, None]}, "ibn_b", {}),
    *(("resnet18", {"slots": {slot: SelfNorm}}, f"selfnorm@{slot}", {}) for slot in SLOTS),
    ("resnet18", {"slots": {"residual": CNSN}}, "cnsn", {}),
    ("resnet18", {"slots": {"post": SqueezeExcite}}, "se", {"slot": "post"}),
    ("resnet18", {"stage_slots": {1: MixStyle, 2: MixStyle}}, "mixstyle", {}),
    ("wide_resnet", {"inner_norm": [IBN, IBN, None]}, "ibn_a", {}),
    *(("wide_resnet", {"slots": {slot: SelfNorm}}, "selfnorm", {"slot": slot}) for slot in SLOTS),
    ("wide_resnet", {"stage_slots": {1: DSU, 2: DSU, 3: DSU}}, "dsu", {}),
    ("densenet", {"inner_norm": [DENSE_IBN, DENSE_IBN, DENSE_IBN, None]}, "ibn_a", {}),
    ("densenet", {"slots": {"post": SelfNorm}}, "selfnorm@post", {}),
    ("densenet", {"slots": {"pre": SelfNorm}}, "selfnorm@pre", {}),
    ("densenet", {"stage_slots": {1: MixStyle, 2: MixStyle}}, "mixstyle", {}),
    ("resnext", {"inner_norm": [IBN, IBN, None]}, "ibn_a", {}),
    *(("resnext", {"slots": {slot: SelfNorm}}, f"selfnorm@{slot}", {}) for slot in SLOTS),
    *(("densenet_cifar", {"slots": {slot: CNSN}}, f"cnsn@{slot}", {}) for slot in ("conv1_pre", "conv1_post")),
    *(
        ("densenet_bc", {"slots": {slot: CNSN}}, f"cnsn@{slot}", {})
        for slot in ("conv1_pre", "conv1_post", "conv2_post")
    ),
    *(("all_conv", {"slots": {slot: CNSN}}, f"cnsn@{slot}", {}) for slot in ("conv", "norm", "activation")),
    ("all_conv", {"slots": {"activation": SelfNorm}}, "selfnorm@post", {}),
    ("all_conv", {"stage_slots": {1: MixStyle, 2: MixStyle}}, "mixstyle", {}),
]


def shaken(model: nn.Module) -> nn.Module:
    """Values that no initialisation has."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point() and tensor.dim() < 2:
                tensor.normal_(0.5, 0.2)
    return model


def output(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)  # for the norms that draw
    return model(x)


@pytest.mark.parametrize(("name", "built_with", "placement", "options"), CASES)
def test_surgery_builds_what_the_constructor_builds(name: str, built_with: Any, placement: str, options: Any) -> None:
    built, plain = shaken(SMALL[name](**built_with)), SMALL[name]()
    before = {key: tensor.shape for key, tensor in plain.state_dict().items()}
    given, report = convert(plain, placement, preserve=False, **options)
    assert len(report)
    shapes = {key: tensor.shape for key, tensor in built.state_dict().items()}
    assert {key: tensor.shape for key, tensor in given.state_dict().items()} == shapes
    assert sum(map(torch.numel, built.parameters())) == report.parameters[1]
    given.load_state_dict(built.state_dict())
    x = torch.randn(3, 3, 64 if name in ("densenet", "resnet50") else 16, 64 if name == "densenet" else 16)
    for training in (True, False):
        assert torch.equal(output(built.train(training), x), output(given.train(training), x))
    for mine, theirs in zip(given.buffers(), built.buffers(), strict=True):
        assert torch.equal(mine, theirs)  # training moved the running moments alike
    plain = revert(given, report)
    assert {key: tensor.shape for key, tensor in plain.state_dict().items()} == before


def test_start_as_published_or_as_the_identity() -> None:
    torch.manual_seed(5)
    plain = shaken(SMALL["resnet18"]()).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = plain(x)
    for name in ("selfnorm", "cnsn"):
        model, report = convert(plain, f"{name}@residual", example_input=x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        plain = revert(model, report)
        model, published = convert(plain, f"{name}@residual", preserve=False, example_input=x)
        assert report.movement is not None and report.movement.kept
        assert published.movement is not None and not published.movement.kept
        plain = revert(model, published)
    assert torch.equal(plain(x), expected)


def test_a_partial_is_taken_at_its_word() -> None:
    model, _ = convert(SMALL["resnet18"](), partial(SelfNorm, start="half"), where="blocks:last")
    published = SelfNorm(64)
    assert torch.equal(model.layer1[1].residual.gate.weight, published.gate.weight)
    model, _ = convert(SMALL["resnet18"](), SelfNorm, where="blocks:last")
    assert not torch.equal(model.layer1[1].residual.gate.weight, published.gate.weight)
    model, _ = convert(SMALL["resnet18"](), partial(SelfNorm, start="identity"), start="half")
    assert torch.equal(model.layer1[1].residual.gate.weight, published.gate.weight)
