"""The ResNeXt for small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models.convolution import convolution
from shiftnorm.models.depth import blocks_per_stage
from shiftnorm.models.places import Places
from shiftnorm.models.slots import NormFactory, check_images, check_positive

__all__ = ["ResNeXtCifar"]

STAGES = (1, 2, 3)
EXPANSION = 4
_NAME = "ResNeXtCifar"


class _Bottleneck(nn.Module):
    """A 1x1, a grouped 3x3 and a 1x1 convolution, each with its norm, added to a shortcut."""

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        cardinality: int,
        base_width: int,
        stage: int,
        places: Places,
        identity_in_downsample: bool,
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * planes
        width = cardinality * (planes * base_width // 64)

        self.conv_reduce = convolution(in_channels, width, 1)
        self.bn_reduce = places.norm(width, inner=stage)
        self.conv_conv = convolution(width, width, 3, stride, 1, groups=cardinality)
        self.bn = places.norm(width)
        self.conv_expand = convolution(width, out_channels, 1)
        self.bn_expand = places.norm(out_channels)
        self.keeps_shape = stride == 1 and in_channels == out_channels
        self.downsample = (
            nn.Identity()
            if self.keeps_shape
            else nn.Sequential(convolution(in_channels, out_channels, 1, stride), places.norm(out_channels))
        )
        self.pre, self.residual, self.identity, self.post = places.around(
            in_channels, out_channels, identity=self.keeps_shape or identity_in_downsample
        )

    def forward(self, x: Tensor) -> Tensor:
        start = self.pre(x)
        branch = F.relu(self.bn_reduce(self.conv_reduce(start)))
        branch = F.relu(self.bn(self.conv_conv(branch)))
        branch = self.residual(self.bn_expand(self.conv_expand(branch)))
        shortcut = self.identity(x if self.keeps_shape else self.downsample(start))
        return self.post(F.relu(shortcut + branch))


@final
class ResNeXtCifar(nn.Module):
    """A residual network of grouped bottlenecks for small images, with places for norms left open.

    Each of the three stages has ``(depth - 2) / 9`` blocks::

        start    = pre(x)
        branch   = bn_expand(conv_expand(relu(bn(conv_conv(relu(bn_reduce(conv_reduce(start))))))))
        shortcut = x where the shape stays, downsample(start) where it changes
        x        = post(relu(identity(shortcut) + residual(branch)))

    Unlike in the ImageNet networks, ``post`` comes after the last ReLU, and ``pre`` is seen by ``downsample`` too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from shiftnorm.models import ResNeXtCifar
        >>> model = ResNeXtCifar(depth=11, cardinality=2, base_width=8)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> normed = ResNeXtCifar(11, 2, 8, slots={"post": lambda channels: nn.GroupNorm(4, channels)})
        >>> normed.stage_1[0].post
        GroupNorm(4, 256, ...)

    Args:
        depth: number of layers, 9n + 2 with n ≥ 1 (11, 20, 29, 38).
        cardinality: number of groups of the 3x3 convolutions.
        base_width: channels of one group in the first stage; they double from stage to stage.
        num_classes: number of outputs.
        in_channels: channels of the input images.
        norm: builds every norm from its channel count.
        inner_norm: one entry per stage; builds ``bn_reduce``, the first norm of each branch, instead of ``norm`` (None:
            use ``norm``). This is where IBN-a stands in a ResNeXt.
        slots: builds a module for a place in every block. ``"pre"``: start of the branch and of ``downsample``, while a
            shortcut without ``downsample`` keeps the raw x; ``"residual"``: end of the branch; ``"identity"``: the
            shortcut, after ``downsample``; ``"post"``: after the addition and its ReLU.
        stage_slots: builds a module that follows a whole stage, by stage number 1, 2 or 3 (where MixStyle goes).
        identity_in_downsample: fill ``"identity"`` in the blocks with ``downsample`` too. The authors' network has a
            module there whose output nobody reads; False computes the same as theirs.

    Shape:
        (N, in_channels, H, W) → (N, num_classes), for any H and W.

    State:
        Names and shapes of the authors' ``state_dict`` (``conv_1_3x3``, ``bn_1``, ``stage_1.0.conv_reduce``, …,
        ``classifier``). Modules in slots appear under the slot's name, modules after a stage as ``after_stage_1`` to
        ``after_stage_3``; empty places leave no trace.

    Modes:
        Whatever modules were passed in follow train and eval; nothing else does.

    Raises:
        ValueError: the depth is not 9n + 2, an unknown slot or stage, ``inner_norm`` without three entries, or a number
            out of range.
        TypeError: a factory is a module instead of a function, or returns something else than a module.

    Cost:
        1.07 billion multiply-adds and 6.8 million parameters for depth 29 and 4 groups of 32 on a 32x32 image.

    Source:
        Xie et al., Aggregated Residual Transformations for Deep Neural Networks, 2017, in the form that AugMix and
        CrossNorm/SelfNorm train; slots as in Tang et al., CrossNorm and SelfNorm for Generalization under Distribution
        Shifts, 2021. Convolutions start from N(0, 2 / (k² · channels out)), the classifier from N(0, 2 / channels in).

    Differences from the authors' code:
        Any input size; ``identity`` acts in the blocks with ``downsample`` too, by default; two different modules can
        stand in two places at once; modules that are passed in keep their own initialisation.
    """

    def __init__(
        self,
        depth: int = 29,
        cardinality: int = 4,
        base_width: int = 32,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        norm: NormFactory = nn.BatchNorm2d,
        inner_norm: Sequence[NormFactory | None] | None = None,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        identity_in_downsample: bool = True,
    ) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, 9, 2, owner=_NAME)
        check_positive(
            _NAME, cardinality=cardinality, base_width=base_width, num_classes=num_classes, in_channels=in_channels
        )
        places = Places(_NAME, STAGES, norm=norm, inner_norm=inner_norm, slots=slots, stage_slots=stage_slots)

        self.conv_1_3x3 = convolution(in_channels, 64, 3, padding=1)
        self.bn_1 = places.norm(64)

        def stage(number: int) -> nn.Sequential:
            planes = 64 * 2 ** (number - 1)
            return nn.Sequential(
                *(
                    _Bottleneck(
                        EXPANSION * planes if index else 64 if number == 1 else EXPANSION * planes // 2,
                        planes,
                        2 if index == 0 and number > 1 else 1,
                        cardinality,
                        base_width,
                        number,
                        places,
                        identity_in_downsample,
                    )
                    for index in range(blocks)
                )
            )

        self.stage_1, self.after_stage_1 = stage(1), places.after(1, EXPANSION * 64)
        self.stage_2, self.after_stage_2 = stage(2), places.after(2, EXPANSION * 128)
        self.stage_3, self.after_stage_3 = stage(3), places.after(3, EXPANSION * 256)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(EXPANSION * 256, num_classes)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``.

        Example:
            >>> import torch
            >>> ResNeXtCifar(11, 2, 8, num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 5])

        Raises:
            ValueError: ``x`` is not (N, in_channels, H, W).
        """
        check_images(x, self.conv_1_3x3, owner=_NAME)
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.after_stage_1(self.stage_1(x))
        x = self.after_stage_2(self.stage_2(x))
        x = self.after_stage_3(self.stage_3(x))
        return self.classifier(self.avgpool(x).flatten(1))
