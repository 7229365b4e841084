"""Small networks to test, modules that show where they stand, and weights that no network starts with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.models import AllConv, BasicBlock, DenseNet, DenseNetCifar, ResNet, ResNeXtCifar, WideResNet

Factory = Callable[[int], nn.Module]

RESIDUAL = ("pre", "residual", "identity", "post")


class Facts(NamedTuple):
    """How to make a small network of a class, and what it is made of."""

    arguments: dict[str, object]
    slots: tuple[str, ...]
    stages: dict[str, int]  # names of the modules behind its stages (from 0 where the stem counts), and their channels
    first: int  # channels of the first norm that is built
    inner: int = 3  # how many entries `inner_norm` has; 0 where there is no such argument
    smallest: int = 1  # height and width of an image
    dropout: bool = True

    @property
    def numbers(self) -> list[int]:
        """The numbers of the stages."""
        first = 0 if any("stem" in name for name in self.stages) else 1
        return list(range(first, first + len(self.stages)))


FACTS: dict[type[nn.Module], Facts] = {
    AllConv: Facts(
        {"width": 8},
        ("conv", "norm", "activation"),
        {"after_stage1": 8, "after_stage2": 16, "after_stage3": 16},
        first=8,
        inner=0,
        smallest=12,
    ),
    DenseNet: Facts(
        {"growth_rate": 4, "block_config": (4, 2, 2, 1), "num_init_features": 8, "bn_size": 2, "num_classes": 10},
        ("pre", "post"),
        {
            "features.after_stem": 8,
            "features.after_denseblock1": 24,
            "features.after_denseblock2": 20,
            "features.after_denseblock3": 18,
            "features.after_denseblock4": 13,
        },
        first=8,
        inner=4,
        smallest=29,
    ),
    DenseNetCifar: Facts(
        {"depth": 16, "growth_rate": 4},
        ("conv1_pre", "conv1_post", "conv2_post"),
        {"after_dense1": 24, "after_dense2": 40, "after_dense3": 56},
        first=8,
        smallest=4,
    ),
    ResNeXtCifar: Facts(
        {"depth": 20, "cardinality": 2, "base_width": 4},
        RESIDUAL,
        {"after_stage_1": 256, "after_stage_2": 512, "after_stage_3": 1024},
        first=64,
        dropout=False,
    ),
    ResNet: Facts(
        {"block": BasicBlock, "layers": (1, 1, 1, 1), "num_classes": 10},
        RESIDUAL,
        {"after_stem": 64, "after_layer1": 64, "after_layer2": 128, "after_layer3": 256, "after_layer4": 512},
        first=64,
        inner=4,
        dropout=False,
    ),
    WideResNet: Facts(
        {"depth": 10, "widen_factor": 1},
        RESIDUAL,
        {"after_block1": 16, "after_block2": 32, "after_block3": 64},
        first=16,
    ),
}


class Scale(nn.Module):
    """A slot filler that multiplies by a parameter: the place it stands in shows in the output and in the gradient."""

    def __init__(self, channels: int, factor: float = 0.0) -> None:
        super().__init__()
        self.channels, self.factor = channels, nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.factor * x


def by(factor: float) -> Factory:
    return lambda channels: Scale(channels, factor)


def scales(model: nn.Module) -> dict[str, int]:
    """Where a model has a Scale, and for how many channels."""
    return {name: module.channels for name, module in model.named_modules() if isinstance(module, Scale)}


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def small(network: type[nn.Module], **arguments: object) -> nn.Module:
    """A network of few channels, the same at every call, in evaluation and with moments as after training."""
    torch.manual_seed(1)
    return with_moments(network(**(FACTS[network].arguments | arguments)))


def with_moments(model: nn.Module) -> nn.Module:
    """Running moments as after training: with mean 0 and variance 1 it would not matter what stands before a norm."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.2, 0.6)
    return model.eval()


def shuffled(model: nn.Module) -> nn.Module:
    """Give every vector of a network values that no network starts with."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.uniform_(0.5, 1.5) if name.endswith("weight") else value.normal_(0, 0.2)
    return model


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every entry of a model's state, in its order."""
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def size(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def authors_facts(golden: Path, name: str) -> dict:
    """What a JSON file in the folder of the authors' networks says."""
    file = golden / "models" / f"{name}.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    return json.loads(file.read_text())
