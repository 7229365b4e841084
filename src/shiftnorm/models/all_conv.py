"""The all-convolutional network for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from shiftnorm.models.convolution import check_map, convolution
from shiftnorm.models.places import Places
from shiftnorm.models.slots import NormFactory, check_images, check_positive

__all__ = ["AllConv"]

SLOTS = ("conv", "norm", "activation")
STAGES = (1, 2, 3)
SMALLEST = 12  # two poolings leave a 3x3 map for the convolution without padding
_NAME = "AllConv"


class _SigmoidLinear(nn.Module):
    """x · sigmoid(1.702 x), which is close to the Gaussian error linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Unit(nn.Module):
    """Convolution, norm, activation, and a place after each."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int,
        places: Places,
    ) -> None:
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel_size, padding=padding, bias=True)
        self.after_conv = places.slot("conv", out_channels)
        self.norm = places.norm(out_channels)
        self.after_norm = places.slot("norm", out_channels)
        self.activation = _SigmoidLinear()
        self.after_activation = places.slot("activation", out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after_norm(self.norm(self.after_conv(self.conv(x))))
        return self.after_activation(self.activation(x))


@final
class AllConv(nn.Module):
    """A network of nine convolutions for small images, without shortcuts, with places for norms left open.

    Each convolution is a unit ``activation(norm(conv(x)))`` with ``activation(x) = x · sigmoid(1.702 x)``, and there
    are three stages of three units::

        stage1   3x3, 3x3, 3x3                         width
        pool     2x2 maximum, dropout
        stage2   3x3, 3x3, 3x3                         2 · width
        pool     2x2 maximum, dropout
        stage3   3x3 without padding, 1x1, 1x1         2 · width
        mean over the map, linear classifier

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from shiftnorm.models import AllConv
        >>> model = AllConv(num_classes=10, width=8)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> AllConv(width=8, slots={"conv": lambda channels: nn.GroupNorm(4, channels)}).stage2[0].after_conv
        GroupNorm(4, 16, ...)

    Args:
        num_classes: number of outputs.
        width: channels of the first stage; the other two have twice as many.
        in_channels: channels of the input images.
        norm: builds every norm from its channel count.
        slots: builds a module for a place in every unit. ``"conv"``, ``"norm"``, ``"activation"``: after the layer of
            that name; the authors number them 1, 2 and 3.
        stage_slots: builds a module that follows a whole stage, before its pooling, by stage number 1, 2 or 3 (where
            MixStyle goes).
        dropout: probability of dropping a value after each of the two poolings.

    Shape:
        (N, in_channels, H, W) → (N, num_classes), for H and W from 12.

    State:
        ``stage1.0.conv``, ``stage1.0.norm``, …, ``stage3.2.norm``, ``classifier``. Modules in slots appear as
        ``after_conv``, ``after_norm`` and ``after_activation`` of their unit, modules after a stage as ``after_stage1``
        to ``after_stage3``; empty places leave no trace. Names do not depend on which places are filled.

    Modes:
        Dropout and whatever modules were passed in follow train and eval; nothing else does.

    Raises:
        ValueError: an unknown slot or stage, or a number out of range; from the call, images smaller than 12x12.
        TypeError: a factory is a module instead of a function, or returns something else than a module.

    Cost:
        403 million multiply-adds and 1.4 million parameters on a 32x32 image.

    Source:
        Springenberg et al., Striving for Simplicity: The All Convolutional Net, 2015, in the form that AugMix and
        CrossNorm/SelfNorm train; slots as in Tang et al., CrossNorm and SelfNorm for Generalization under Distribution
        Shifts, 2021. Convolutions start from N(0, 2 / (k² · channels out)), the classifier's bias from 0.

    Differences from the authors' code:
        They number all layers in one list, so that a module in a slot renames what follows; unit u (from 0) starts
        there at ``4u + 2⌊u / 3⌋`` with a slot filled and at ``3u + 2⌊u / 3⌋`` without. Their two 1x1 convolutions pad
        the map, and their mean leaves out the last two rows and columns of a 10x10 map, for 32x32 images; here it
        leaves out the last two for any size. Places in two positions can be filled at once; modules that are passed in
        keep their own initialisation.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 96,
        *,
        in_channels: int = 3,
        norm: NormFactory = nn.BatchNorm2d,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(_NAME, num_classes=num_classes, width=width, in_channels=in_channels)
        places = Places(_NAME, STAGES, SLOTS, norm=norm, slots=slots, stage_slots=stage_slots, dropout=dropout)

        def stage(channels: int, out_channels: int, *shapes: tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(
                *(
                    _Unit(out_channels if index else channels, out_channels, kernel_size, padding, places)
                    for index, (kernel_size, padding) in enumerate(shapes)
                )
            )

        self.stage1 = stage(in_channels, width, (3, 1), (3, 1), (3, 1))
        self.after_stage1 = places.after(1, width)
        self.stage2 = stage(width, 2 * width, (3, 1), (3, 1), (3, 1))
        self.after_stage2 = places.after(2, 2 * width)
        self.stage3 = stage(2 * width, 2 * width, (3, 0), (1, 1), (1, 1))
        self.after_stage3 = places.after(3, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.dropout = places.dropout()
        self.classifier = nn.Linear(2 * width, num_classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``.

        Example:
            >>> import torch
            >>> AllConv(num_classes=5, width=8)(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 5])

        Raises:
            ValueError: ``x`` is not (N, in_channels, H, W), or H or W is below 12.
        """
        check_images(x, self.stage1[0].conv, owner=_NAME)
        x = self._pooled(self.after_stage1(self.stage1(x)))
        x = self._pooled(self.after_stage2(self.stage2(x)))
        check_map(x, 3, owner=_NAME, image=SMALLEST)
        x = self.after_stage3(self.stage3(x))
        # Of the 10x10 map that a 32x32 image leaves, the authors average rows and columns 0 to 7.
        return self.classifier(x[:, :, :-2, :-2].mean((2, 3)))

    def _pooled(self, x: Tensor) -> Tensor:
        check_map(x, 2, owner=_NAME, image=SMALLEST)
        return self.dropout(self.pool(x))
