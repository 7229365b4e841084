"""The published residual networks by name; every option of ``ResNet`` can be passed on."""

from __future__ import annotations

from typing import Any

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


def resnet18(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-18.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnet18().parameters())
        11689512

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)


def resnet34(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-34.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnet34().parameters())
        21797672

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)


def resnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-50.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnet50().parameters())
        25557032

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)


def resnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-101.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnet101().parameters())
        44549160

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, **options)


def resnet152(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-152.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnet152().parameters())
        60192808

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, **options)


def resnext50_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNeXt-50, 32 groups of 4 channels.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnext50_32x4d().parameters())
        25028904

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, groups=32, width_per_group=4, **options)


def resnext101_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNeXt-101, 32 groups of 4 channels.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnext101_32x4d().parameters())
        44177704

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, groups=32, width_per_group=4, **options)


def resnext101_32x8d(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNeXt-101, 32 groups of 8 channels.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnext101_32x8d().parameters())
        88791336

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, groups=32, width_per_group=8, **options)


def resnext101_64x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNeXt-101, 64 groups of 4 channels.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnext101_64x4d().parameters())
        83455272

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, groups=64, width_per_group=4, **options)


def resnext152_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNeXt-152, 32 groups of 4 channels.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in resnext152_32x4d().parameters())
        59951400

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, groups=32, width_per_group=4, **options)


def wide_resnet50_2(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-50 with twice the width inside its bottlenecks.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in wide_resnet50_2().parameters())
        68883240

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, width_per_group=128, **options)


def wide_resnet101_2(num_classes: int = 1000, **options: Any) -> ResNet:
    """Build ResNet-101 with twice the width inside its bottlenecks.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in wide_resnet101_2().parameters())
        126886696

    Args:
        num_classes: number of outputs.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, width_per_group=128, **options)


def se_resnet18(num_classes: int = 1000, *, squeeze: NormFactory = SqueezeExcitation, **options: Any) -> ResNet:
    """Build ResNet-18 with squeeze-and-excitation.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in se_resnet18().parameters())
        11776552

    Args:
        num_classes: number of outputs.
        squeeze: builds the squeeze-and-excitation of each block from its channel count.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, squeeze=squeeze, **options)


def se_resnet34(num_classes: int = 1000, *, squeeze: NormFactory = SqueezeExcitation, **options: Any) -> ResNet:
    """Build ResNet-34 with squeeze-and-excitation.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in se_resnet34().parameters())
        21954856

    Args:
        num_classes: number of outputs.
        squeeze: builds the squeeze-and-excitation of each block from its channel count.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, squeeze=squeeze, **options)


def se_resnet50(num_classes: int = 1000, *, squeeze: NormFactory = SqueezeExcitation, **options: Any) -> ResNet:
    """Build ResNet-50 with squeeze-and-excitation.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in se_resnet50().parameters())
        28071976

    Args:
        num_classes: number of outputs.
        squeeze: builds the squeeze-and-excitation of each block from its channel count.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, squeeze=squeeze, **options)


def se_resnet101(num_classes: int = 1000, *, squeeze: NormFactory = SqueezeExcitation, **options: Any) -> ResNet:
    """Build ResNet-101 with squeeze-and-excitation.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in se_resnet101().parameters())
        49292328

    Args:
        num_classes: number of outputs.
        squeeze: builds the squeeze-and-excitation of each block from its channel count.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, squeeze=squeeze, **options)


def se_resnet152(num_classes: int = 1000, *, squeeze: NormFactory = SqueezeExcitation, **options: Any) -> ResNet:
    """Build ResNet-152 with squeeze-and-excitation.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in se_resnet152().parameters())
        66770984

    Args:
        num_classes: number of outputs.
        squeeze: builds the squeeze-and-excitation of each block from its channel count.
        options: further arguments of ``ResNet``.

    Returns:
        The network with random weights.
    """
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, squeeze=squeeze, **options)
