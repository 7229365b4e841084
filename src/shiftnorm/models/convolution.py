"""Convolutions as the networks for small images start them, and the error for maps that get too small for one."""

from __future__ import annotations

import math

import torch.fx
from torch import Tensor, nn

__all__ = ["check_map", "convolution"]


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    *,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """Make a convolution with weights from N(0, 2 / (kernel_size² · out_channels)); a bias keeps torch's start.

    Example:
        >>> convolution(3, 16, 3, padding=1)
        Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
        stride: step in both directions.
        padding: zeros around the input.
        groups: number of groups; the spread of the weights takes no account of it, as in the authors' networks.
        bias: add a learned number to each channel.

    Returns:
        The new module.
    """
    module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
    nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (kernel_size**2 * out_channels)))
    return module


def check_map(x: Tensor, smallest: int, *, owner: str, image: int) -> None:
    """Refuse a map that is too small for the layer that comes next.

    Example:
        >>> import torch
        >>> check_map(torch.zeros(2, 8, 1, 4), 2, owner="DenseNetCifar", image=4)
        Traceback (most recent call last):
        ValueError: DenseNetCifar: images must be at least 4x4 pixels; a map of 1x4 is left of these where the next ...

    Args:
        x: the map.
        smallest: height and width the next layer needs.
        owner: the network, for the error.
        image: height and width of the smallest image that is large enough, for the error.

    Raises:
        ValueError: the map is smaller.
    """
    # torch.fx runs the network on stand-ins that have no shape.
    if isinstance(x, torch.fx.Proxy):
        return
    height, width = x.shape[-2:]
    if height < smallest or width < smallest:
        raise ValueError(
            f"{owner}: images must be at least {image}x{image} pixels; a map of {height}x{width} is left of these "
            f"where the next layer needs {smallest}x{smallest}. Enlarge the images"
        )
