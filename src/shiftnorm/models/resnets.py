"""The published residual networks by name; every option of ``ResNet`` can be passed on."""

from __future__ import annotations

from typing import Any

from shiftnorm.models.published import Constructor, published
from shiftnorm.models.residual_blocks import BasicBlock, Bottleneck, SqueezeExcitation
from shiftnorm.models.resnet import ResNet
from shiftnorm.models.slots import NormFactory

__all__ = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152_32x4d",
    "se_resnet18",
    "se_resnet34",
    "se_resnet50",
    "se_resnet101",
    "se_resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

# The block and the layers of each stage, by depth.
_NETWORKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def _constructor(name: str, title: str, depth: int, parameters: int, **fixed: int) -> Constructor[ResNet]:
    @published(name, title, network="ResNet", parameters=parameters)
    def construct(num_classes: int = 1000, **options: Any) -> ResNet:
        return ResNet(*_NETWORKS[depth], num_classes, **fixed, **options)

    return construct


def _resnet(depth: int, parameters: int) -> Constructor[ResNet]:
    return _constructor(f"resnet{depth}", f"ResNet-{depth}", depth, parameters)


def _resnext(depth: int, groups: int, width: int, parameters: int) -> Constructor[ResNet]:
    title = f"ResNeXt-{depth}, {groups} groups of {width} channels"
    name = f"resnext{depth}_{groups}x{width}d"
    return _constructor(name, title, depth, parameters, groups=groups, width_per_group=width)


def _wide_resnet(depth: int, parameters: int) -> Constructor[ResNet]:
    title = f"ResNet-{depth} with twice the width inside its bottlenecks"
    return _constructor(f"wide_resnet{depth}_2", title, depth, parameters, width_per_group=128)


def _se_resnet(depth: int, parameters: int) -> Constructor[ResNet]:
    @published(
        f"se_resnet{depth}",
        f"ResNet-{depth} with squeeze-and-excitation",
        network="ResNet",
        parameters=parameters,
        squeeze="builds the squeeze-and-excitation of each block from its channel count.",
    )
    def construct(num_classes: int = 1000, *, squeeze: NormFactory = SqueezeExcitation, **options: Any) -> ResNet:
        return ResNet(*_NETWORKS[depth], num_classes, squeeze=squeeze, **options)

    return construct


resnet18 = _resnet(18, 11_689_512)
resnet34 = _resnet(34, 21_797_672)
resnet50 = _resnet(50, 25_557_032)
resnet101 = _resnet(101, 44_549_160)
resnet152 = _resnet(152, 60_192_808)

resnext50_32x4d = _resnext(50, 32, 4, 25_028_904)
resnext101_32x4d = _resnext(101, 32, 4, 44_177_704)
resnext101_32x8d = _resnext(101, 32, 8, 88_791_336)
resnext101_64x4d = _resnext(101, 64, 4, 83_455_272)
resnext152_32x4d = _resnext(152, 32, 4, 59_951_400)

se_resnet18 = _se_resnet(18, 11_776_552)
se_resnet34 = _se_resnet(34, 21_954_856)
se_resnet50 = _se_resnet(50, 28_071_976)
se_resnet101 = _se_resnet(101, 49_292_328)
se_resnet152 = _se_resnet(152, 66_770_984)

wide_resnet50_2 = _wide_resnet(50, 68_883_240)
wide_resnet101_2 = _wide_resnet(101, 126_886_696)
