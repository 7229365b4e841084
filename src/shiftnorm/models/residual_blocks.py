"""The blocks of residual networks: a branch, a shortcut, and named slots around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, final, get_args

from torch import Tensor, nn

from shiftnorm.models.slots import NormFactory, build, build_norm, build_slots, check_positive

__all__ = ["BasicBlock", "BlockStyle", "Bottleneck", "SqueezeExcitation", "StrideIn"]

StrideIn: TypeAlias = Literal["3x3", "1x1"]

_NAME = "ResNet"


@final
class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate that two linear layers compute from the means of all channels.

        y = a * x,   a = sigmoid(W2 relu(W1 mean(x)))        # W1 (C/16, C), W2 (C, C/16), without bias

    Example:
        >>> import torch
        >>> SqueezeExcitation(32)(torch.ones(2, 32, 4, 4)).shape
        torch.Size([2, 32, 4, 4])

    Args:
        channels: channels C.
        reduction: how much narrower the bottleneck is; it keeps one unit at least.

    Shape: (N, C, H, W) → (N, C, H, W).
    State: ``fc.0.weight`` and ``fc.2.weight``, the names of SE-ResNet-IBN.
    Cost: two reads and one write of x.
    Source: Hu et al., Squeeze-and-Excitation Networks, 2018.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        bottleneck = max(1, channels // reduction)
        self.fc = nn.Sequential(
            nn.Linear(channels, bottleneck, bias=False),
            nn.ReLU(),
            nn.Linear(bottleneck, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its channels scaled.

        Example:
            >>> import torch
            >>> SqueezeExcitation(16)(torch.zeros(1, 16, 1, 1)).sum()
            tensor(0., grad_fn=...)
        """
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of a stage have in common; the arguments are those of ``ResNet``.

    Example:
        >>> BlockStyle(groups=32, width_per_group=4).width(64)
        128

    Raises:
        ValueError: an unknown ``stride_in``, or a count below 1.
    """

    norm: NormFactory = nn.BatchNorm2d
    inner_norm: NormFactory | None = None
    slots: Mapping[str, NormFactory] = field(default_factory=dict)
    squeeze: NormFactory | None = None
    groups: int = 1
    width_per_group: int = 64
    stride_in: StrideIn = "3x3"
    pre_feeds_downsample: bool = False

    def __post_init__(self) -> None:
        check_positive(_NAME, groups=self.groups, width_per_group=self.width_per_group)
        if self.stride_in not in get_args(StrideIn):
            raise ValueError(f"{_NAME}: stride_in must be '3x3' or '1x1', got {self.stride_in!r}")

    def width(self, planes: int) -> int:
        """Return the channels of a bottleneck's 3x3 convolution.

        Example:
            >>> BlockStyle(width_per_group=128).width(64)
            128

        Args:
            planes: channels the convolution has in a plain ResNet.

        Returns:
            Its channels for these groups and this width per group.
        """
        return int(planes * (self.width_per_group / 64)) * self.groups


def _conv(
    in_channels: int, out_channels: int, size: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(in_channels, out_channels, size, stride, padding, dilation, groups, bias=False)


class _Residual(nn.Module, ABC):
    """A residual branch, a shortcut, and the four slots around them."""

    expansion: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.downsample: nn.Sequential | None = None

    def _complete(self, in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> None:
        # Called after the branch is built: the order of registration is that of published state_dicts.
        self.relu = nn.ReLU()
        self.se = (
            nn.Identity()
            if style.squeeze is None
            else build(style.squeeze, out_channels, owner=_NAME, argument="squeeze")
        )
        self.pre_feeds_downsample = style.pre_feeds_downsample
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                _conv(in_channels, out_channels, 1, stride), self._norm(out_channels, style)
            )
        slots = build_slots(style.slots, in_channels, out_channels, owner=_NAME)
        self.pre, self.residual, self.identity, self.post = slots

    @staticmethod
    def _norm(channels: int, style: BlockStyle, instead: NormFactory | None = None) -> nn.Module:
        return build_norm(style.norm, instead, channels, owner=_NAME)

    def convolutions(self) -> list[nn.Conv2d]:
        """Return the block's own convolutions, without those of modules passed in."""
        own = [module for name, module in self.named_children() if name.startswith("conv")]
        own += [] if self.downsample is None else [self.downsample[0]]
        return [module for module in own if isinstance(module, nn.Conv2d)]

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch up to its last norm."""

    def forward(self, x: Tensor) -> Tensor:
        start = self.pre(x)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(start if self.pre_feeds_downsample else x)
        residual = self.residual(self.se(self.branch(start)))
        return self.relu(self.post(self.identity(shortcut) + residual))


@final
class BasicBlock(_Residual):
    """Two 3x3 convolutions, added to a shortcut.

        branch = se(bn2(conv2(relu(bn1(conv1(pre(x)))))))
        y      = relu(post(identity(downsample(x)) + residual(branch)))

    Example:
        >>> import torch
        >>> BasicBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])

    Args:
        in_channels: channels of the input.
        planes: channels of both convolutions and of the output.
        stride: of the first convolution and of the shortcut.
        dilation: of the first convolution and of the second.
        style: norms, slots, and what else the blocks of a network share.

    Shape: (N, in_channels, H, W) → (N, planes, H / stride, W / stride).
    Raises: ValueError for groups or another width per group, which this block does not have.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        dilation: tuple[int, int] = (1, 1),
        style: BlockStyle = BlockStyle(),
    ) -> None:
        super().__init__()
        if style.groups != 1 or style.width_per_group != 64:
            raise ValueError(
                f"{_NAME}: a BasicBlock has groups=1 and width_per_group=64, got {style.groups} and "
                f"{style.width_per_group}; a Bottleneck has both"
            )
        self.conv1 = _conv(in_channels, planes, 3, stride, dilation[0])
        self.bn1 = self._norm(planes, style, style.inner_norm)
        self.conv2 = _conv(planes, planes, 3, 1, dilation[1])
        self.bn2 = self._norm(planes, style)
        self._complete(in_channels, planes, stride, style)

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch up to ``bn2``, without the modules in the slots.

        Example:
            >>> import torch
            >>> BasicBlock(4, 4).branch(torch.zeros(1, 4, 2, 2)).shape
            torch.Size([1, 4, 2, 2])
        """
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


@final
class Bottleneck(_Residual):
    """A 1x1, a 3x3 and a widening 1x1 convolution, added to a shortcut.

        branch = se(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(pre(x)))))))))
        y      = relu(post(identity(downsample(x)) + residual(branch)))

    Example:
        >>> import torch
        >>> Bottleneck(64, 32, stride=2)(torch.zeros(1, 64, 8, 8)).shape
        torch.Size([1, 128, 4, 4])

    Args:
        in_channels: channels of the input.
        planes: a quarter of the output's channels.
        stride: of the 3x3 convolution (or, by ``style.stride_in``, of the first 1x1) and of the shortcut.
        dilation: what the 3x3 convolution has where it stands before the stride, and where it stands after.
        style: norms, slots, and what else the blocks of a network share.

    Shape: (N, in_channels, H, W) → (N, 4 planes, H / stride, W / stride).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        dilation: tuple[int, int] = (1, 1),
        style: BlockStyle = BlockStyle(),
    ) -> None:
        super().__init__()
        width, out_channels = style.width(planes), planes * self.expansion
        early = style.stride_in == "1x1"
        self.conv1 = _conv(in_channels, width, 1, stride if early else 1)
        self.bn1 = self._norm(width, style, style.inner_norm)
        self.conv2 = _conv(width, width, 3, 1 if early else stride, dilation[early], style.groups)
        self.bn2 = self._norm(width, style)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = self._norm(out_channels, style)
        self._complete(in_channels, out_channels, stride, style)

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch up to ``bn3``, without the modules in the slots.

        Example:
            >>> import torch
            >>> Bottleneck(4, 1).branch(torch.zeros(1, 4, 2, 2)).shape
            torch.Size([1, 4, 2, 2])
        """
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))
