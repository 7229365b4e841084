"""A 3-D residual encoder with the stages of nnU-Net's, for whole training steps with instance normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

# Of nnU-Net's residual encoder presets at six stages.
WIDTHS = (32, 64, 128, 256, 320, 320)
BLOCKS = (1, 3, 4, 6, 6, 6)

Norm = Callable[[int], nn.Module]


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm3d(channels, affine=True)


def no_norm(channels: int) -> nn.Module:
    """Nothing in a norm's place: what is left is what the convolutions make of a memory format."""
    return nn.Identity()


class ResidualEncoder(nn.Module):
    """3x3x3 convolutions, each with a norm and a leaky ReLU, in residual blocks; every stage but the first halves.

    Differences from nnU-Net's: a shortcut is narrowed by a strided 1x1x1 convolution, where nnU-Net averages first, as
    torch's 3-D pooling has no channels-last kernel and would hide what the norms do; and a linear classifier stands in
    the decoder's place.

    Args:
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        norm: makes a norm for a number of channels.
        in_channels: of the volumes.
        num_classes: of the classifier.

    Shape: (N, in_channels, D, H, W) to (N, num_classes); D, H and W divisible by 2 for every stage but the first.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        blocks: Sequence[int] = BLOCKS,
        *,
        norm: Norm = instance_norm,
        in_channels: int = 1,
        num_classes: int = 3,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(in_channels, widths[0], 1), norm(widths[0]), _activation())
        stages: list[nn.Module] = []
        width_in = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = _Block(width_in, width, 2 if number else 1, norm)
            stages.append(nn.Sequential(first, *(_Block(width, width, 1, norm) for _ in range(count - 1))))
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3, 4)))


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = _convolution(width_in, width, stride), norm(width), _activation()
        self.conv2, self.norm2, self.act2 = _convolution(width, width, 1), norm(width), _activation()
        changes = stride > 1 or width_in != width
        self.shortcut = (
            nn.Sequential(nn.Conv3d(width_in, width, 1, stride, bias=False), norm(width)) if changes else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


def _convolution(width_in: int, width: int, stride: int) -> nn.Module:
    return nn.Conv3d(width_in, width, 3, stride, padding=1)


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.01, inplace=True)
