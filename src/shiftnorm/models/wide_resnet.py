"""The pre-activation wide residual network for small images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models.depth import blocks_per_stage
from shiftnorm.models.places import Places
from shiftnorm.models.slots import NormFactory, check_images, check_positive

__all__ = ["WideResNet"]

STAGES = (1, 2, 3)
_NAME = "WideResNet"


class _Block(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, added to a shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        stage: int,
        places: Places,
    ) -> None:
        super().__init__()
        self.bn1 = places.norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = places.norm(out_channels, inner=stage)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.keeps_width = in_channels == out_channels
        self.conv_shortcut = (
            nn.Identity() if self.keeps_width else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )
        self.dropout = places.dropout()
        self.pre, self.residual, self.identity, self.post = places.around(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps_width:
            shortcut = x
            branch = F.relu(self.bn1(self.pre(x)))
        else:
            activated = F.relu(self.bn1(x))
            shortcut = self.conv_shortcut(activated)
            branch = self.pre(activated)
        branch = self.dropout(F.relu(self.bn2(self.conv1(branch))))
        return self.post(self.identity(shortcut) + self.residual(self.conv2(branch)))


class _Stage(nn.Module):
    """Blocks of one width; the first one changes width and resolution."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """A pre-activation wide residual network for small images, with places for norms left open.

    Each of the three stages has ``(depth - 4) / 6`` blocks::

        branch = conv2(relu(bn2(conv1(relu(bn1(pre(x)))))))
        x      = post(identity(x) + residual(branch))

    In a block that changes the width the shortcut is a 1x1 convolution of ``relu(bn1(x))``, and ``pre`` comes after
    ``relu(bn1(x))``, on the branch only.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from shiftnorm.models import WideResNet
        >>> model = WideResNet(depth=10, widen_factor=1, num_classes=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> normed = WideResNet(10, 1, slots={"post": lambda channels: nn.GroupNorm(4, channels)})
        >>> normed.block1.layer[0].post
        GroupNorm(4, 16, ...)

    Args:
        depth: number of layers, 6n + 4 with n ≥ 1 (10, 16, 22, 28, 40).
        widen_factor: multiplies the stage widths 16, 32, 64.
        num_classes: number of outputs.
        in_channels: channels of the input images.
        norm: builds every norm from its channel count.
        inner_norm: one entry per stage; builds the norm between the two convolutions of each block instead of ``norm``
            (None: use ``norm``). IBN-a belongs here: IBN-Net puts instance normalization inside the residual branch, so
            that the shortcut keeps appearance, and leaves the last stage alone. ``bn1`` would not do, because in blocks
            that change the width its output is the shortcut.
        slots: builds a module for a place in every block. ``"pre"``: start of the branch; ``"residual"``: end of the
            branch; ``"identity"``: the shortcut, after its convolution; ``"post"``: after the addition.
        stage_slots: builds a module that follows a whole stage, by stage number 1, 2 or 3 (where MixStyle goes).
        dropout: probability of dropping a value before the second convolution of each block.

    Shape:
        (N, in_channels, H, W) → (N, num_classes), for any H and W.

    State:
        Names and shapes of the authors' ``state_dict`` (``conv1``, ``block1.layer.0.bn1``, …, ``bn1``, ``fc``). Modules
        in slots appear under the slot's name, modules after a stage as ``after_block1`` to ``after_block3``; empty
        places leave no trace.

    Modes:
        Dropout and whatever modules were passed in follow train and eval; nothing else does.

    Raises:
        ValueError: the depth is not 6n + 4, an unknown slot or stage, ``inner_norm`` without three entries, or a number
            out of range.
        TypeError: a factory is a module instead of a function, or returns something else than a module.

    Cost:
        328 million multiply-adds and 2.2 million parameters for 40-2 on a 32x32 image.

    Source:
        Zagoruyko and Komodakis, Wide Residual Networks, 2016, in the form that AugMix and CrossNorm/SelfNorm train;
        slots as in Tang et al., CrossNorm and SelfNorm for Generalization under Distribution Shifts, 2021.

    Differences from the authors' code:
        Any input size; two different modules can stand in two places at once; modules that are passed in keep their own
        initialisation.
    """

    def __init__(
        self,
        depth: int = 40,
        widen_factor: int = 2,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        norm: NormFactory = nn.BatchNorm2d,
        inner_norm: Sequence[NormFactory | None] | None = None,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, 6, 4, owner=_NAME)
        check_positive(_NAME, widen_factor=widen_factor, num_classes=num_classes, in_channels=in_channels)
        places = Places(
            _NAME, STAGES, norm=norm, inner_norm=inner_norm, slots=slots, stage_slots=stage_slots, dropout=dropout
        )
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)

        def stage(number: int) -> _Stage:
            width_in, width, stride = widths[number - 1], widths[number], 1 if number == 1 else 2
            first = _Block(width_in, width, stride, number, places)
            return _Stage([first, *(_Block(width, width, 1, number, places) for _ in range(blocks - 1))])

        self.block1, self.after_block1 = stage(1), places.after(1, widths[1])
        self.block2, self.after_block2 = stage(2), places.after(2, widths[2])
        self.block3, self.after_block3 = stage(3), places.after(3, widths[3])
        self.bn1 = places.norm(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        self._initialise()

    def _initialise(self) -> None:
        own = [self.conv1]
        for block in (*self.block1.layer, *self.block2.layer, *self.block3.layer):
            own += [conv for conv in (block.conv1, block.conv2, block.conv_shortcut) if isinstance(conv, nn.Conv2d)]
        for conv in own:
            fan_out = conv.out_channels * math.prod(conv.kernel_size)
            nn.init.normal_(conv.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``.

        Example:
            >>> import torch
            >>> WideResNet(depth=10, widen_factor=1, num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 5])

        Raises:
            ValueError: ``x`` is not (N, in_channels, H, W).
        """
        check_images(x, self.conv1, owner=_NAME)
        x = self.conv1(x)
        x = self.after_block1(self.block1(x))
        x = self.after_block2(self.block2(x))
        x = self.after_block3(self.block3(x))
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1)
        return self.fc(x.flatten(1))
