"""Residual networks for ImageNet-sized images, with places for norms left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, final, get_args

from torch import Tensor, nn

from shiftnorm.models.residual_blocks import BasicBlock, BlockStyle, Bottleneck, StrideIn
from shiftnorm.models.slots import (
    NormFactory,
    build,
    build_norm,
    build_slot,
    check_images,
    check_positive,
    known_slots,
    known_stages,
    one_per_stage,
)

__all__ = ["ResNet"]

Stem: TypeAlias = Literal["imagenet", "cifar"]

STAGES = (1, 2, 3, 4)
_NAME = "ResNet"


@final
class ResNet(nn.Module):
    """A residual network of four stages, with places for norms left open.

    Stem, stages, mean over the plane, linear layer::

        x      = after_stem(maxpool(relu(bn1(conv1(x)))))
        x      = after_layer4(layer4(... after_layer1(layer1(x))))
        logits = fc(avgpool(x))

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from shiftnorm.models import BasicBlock, Bottleneck, ResNet
        >>> model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> normed = ResNet(Bottleneck, (1, 1, 1, 1), slots={"post": nn.InstanceNorm2d})
        >>> normed.layer1[0].post
        InstanceNorm2d(256, ...)

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        layers: how many blocks each of the four stages has.
        num_classes: number of outputs.
        in_channels: channels of the input images.
        groups: groups of a bottleneck's 3x3 convolution (ResNeXt: 32).
        width_per_group: channels of each group in stage 1, doubled from stage to stage (wide ResNet: 128).
        norm: builds every norm from its channel count.
        stem_norm: builds the stem's norm instead of ``norm``. IBN-b has an instance normalization here.
        inner_norm: one entry per stage; builds ``bn1`` of each block, the norm after its first convolution, instead of
            ``norm`` (None: use ``norm``). IBN-a stands here in stages 1 to 3.
        stage_end: one entry per stage; builds what fills ``post`` of the last block of the stage, instead of
            ``slots["post"]`` (None: as the other blocks). IBN-b has instance normalizations here in stages 1 and 2.
        slots: builds a module for a place in every block. ``"pre"``: start of the branch; ``"residual"``: end of the
            branch; ``"identity"``: the shortcut, after its convolution; ``"post"``: after the addition, before the
            ReLU.
        stage_slots: builds a module that follows the stem (0) or a whole stage (1 to 4), where MixStyle goes.
        squeeze: builds ``se``, which follows the last norm of the branch and precedes ``residual``.
        pre_feeds_downsample: whether a shortcut with a convolution starts from the output of ``pre`` too, as in
            CNSN's ResNet-50-IBN; a shortcut without one always gets the block's input.
        stride_in: which convolution of a bottleneck has the stride: "3x3" (the published weights) or "1x1" (the paper).
        stem: "imagenet" (7x7 with stride 2, then max-pooling) or "cifar" (3x3, neither stride nor pooling).
        include_top: False leaves out ``avgpool`` and ``fc``: the output is the feature map of the last stage.
        zero_init_last: start with the weight of each block's last norm at 0, so that each branch starts at 0.
        replace_stride_with_dilation: for stages 2, 3 and 4, whether a dilation of the convolutions behind it takes the
            place of the stride, for dense prediction; the weights stay right.

    Shape:
        (N, in_channels, H, W) → (N, num_classes), or (N, C, H/32, W/32) without the top, for any H and W from 1.

    State:
        Names, shapes and order of torchvision's ``state_dict``. Modules in slots appear under the slot's name, ``se``
        under its own, modules between stages as ``after_stem`` and ``after_layer1`` to ``after_layer4``; empty places
        leave no trace. Convolutions start from N(0, √(2 / (k² C_out))), which is torchvision's start, number by number
        from the same seed, and IBN-Net's; the linear layer starts as torch's does. Modules from factories keep
        their own start.

    Modes:
        Whatever modules were passed in follow train and eval; nothing else does.

    Raises:
        ValueError: an unknown slot, stage or choice, an argument per stage with another number of entries, a count
            below 1, or ``zero_init_last`` where the last norm has no weight.
        TypeError: a factory is a module instead of a function, or returns something else than a module.

    Cost:
        4.1 billion multiply-adds and 25.6 million parameters for ResNet-50 on a 224x224 image.

    Source:
        He et al., Deep Residual Learning for Image Recognition, 2016; Xie et al., Aggregated Residual Transformations,
        2017; places of IBN-a and IBN-b as in Pan et al., Two at Once, 2018; slots as in Tang et al., CrossNorm and
        SelfNorm for Generalization under Distribution Shifts, 2021.

    Differences from torchvision:
        The slots; a ReLU does not overwrite its input; a BasicBlock can be dilated; an input that does not fit is
        refused with a reason.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        groups: int = 1,
        width_per_group: int = 64,
        norm: NormFactory = nn.BatchNorm2d,
        stem_norm: NormFactory | None = None,
        inner_norm: Sequence[NormFactory | None] | None = None,
        stage_end: Sequence[NormFactory | None] | None = None,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        squeeze: NormFactory | None = None,
        pre_feeds_downsample: bool = False,
        stride_in: StrideIn = "3x3",
        stem: Stem = "imagenet",
        include_top: bool = True,
        zero_init_last: bool = False,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
    ) -> None:
        super().__init__()
        check_positive(_NAME, num_classes=num_classes, in_channels=in_channels)
        if block not in (BasicBlock, Bottleneck):
            raise TypeError(f"{_NAME}: block must be BasicBlock or Bottleneck, got {block!r}")
        if len(layers) != len(STAGES) or min(layers) < 1:
            raise ValueError(f"{_NAME}: layers must be four block counts from 1, one for each stage, got {layers!r}")
        if stem not in get_args(Stem):
            raise ValueError(f"{_NAME}: stem must be 'imagenet' or 'cifar', got {stem!r}")
        if len(replace_stride_with_dilation) != len(STAGES) - 1:
            raise ValueError(
                f"{_NAME}: replace_stride_with_dilation needs one entry for each of the stages 2, 3 and 4, "
                f"got {replace_stride_with_dilation!r}"
            )
        style = BlockStyle(
            norm=norm,
            slots=known_slots(slots, owner=_NAME),
            squeeze=squeeze,
            groups=groups,
            width_per_group=width_per_group,
            stride_in=stride_in,
            pre_feeds_downsample=pre_feeds_downsample,
        )
        stage_slots = known_stages(stage_slots, (0, *STAGES), owner=_NAME)
        inner = one_per_stage(inner_norm, len(STAGES), owner=_NAME, argument="inner_norm", otherwise="use norm")
        ends = one_per_stage(stage_end, len(STAGES), owner=_NAME, argument="stage_end", otherwise="as other blocks")

        self.conv1 = nn.Conv2d(in_channels, 64, *((7, 2, 3) if stem == "imagenet" else (3, 1, 1)), bias=False)
        self.bn1 = build_norm(norm, stem_norm, 64, owner=_NAME, argument="stem_norm")
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()

        def stage(number: int, stride: int, dilation: tuple[int, int]) -> nn.Sequential:
            planes, end = 64 * 2 ** (number - 1), ends[number - 1]
            width_in, width = (64 if number == 1 else planes // 2 * block.expansion), planes * block.expansion
            of_stage = replace(style, inner_norm=inner[number - 1])
            blocks = [block(width_in, planes, stride, dilation, of_stage)]
            after = (dilation[1], dilation[1])
            blocks += [block(width, planes, 1, after, of_stage) for _ in range(layers[number - 1] - 1)]
            if end is not None:
                blocks[-1].post = build(end, width, owner=_NAME, argument=f"stage_end[{number - 1}]")
            return nn.Sequential(*blocks)

        def follow(number: int) -> nn.Module:
            channels = 64 * 2 ** (number - 1) * block.expansion if number else 64
            return build_slot(stage_slots, number, channels, owner=_NAME, argument="stage_slots")

        strides, dilations, before = [1], [(1, 1)], 1
        for dilated in replace_stride_with_dilation:
            strides.append(1 if dilated else 2)
            dilations.append((before, before * 2 if dilated else before))
            before = dilations[-1][1]
        self.after_stem = follow(0)
        self.layer1, self.after_layer1 = stage(1, strides[0], dilations[0]), follow(1)
        self.layer2, self.after_layer2 = stage(2, strides[1], dilations[1]), follow(2)
        self.layer3, self.after_layer3 = stage(3, strides[2], dilations[2]), follow(3)
        self.layer4, self.after_layer4 = stage(4, strides[3], dilations[3]), follow(4)
        self.include_top = include_top
        if include_top:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(512 * block.expansion, num_classes)
        self._initialise(zero_init_last)

    def _initialise(self, zero_init_last: bool) -> None:
        blocks = [
            block
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4)
            for block in stage
            if isinstance(block, BasicBlock | Bottleneck)
        ]
        for conv in [self.conv1, *(conv for block in blocks for conv in block.convolutions())]:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        for block in blocks if zero_init_last else ():
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            if not isinstance(weight := getattr(last, "weight", None), Tensor):
                raise ValueError(
                    f"{_NAME}: zero_init_last needs a last norm with a weight in every block, got {last!r}; "
                    f"leave zero_init_last off or pass a norm that is affine"
                )
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``, or the last feature map without the top.

        Example:
            >>> import torch
            >>> from shiftnorm.models import BasicBlock
            >>> ResNet(BasicBlock, (1, 1, 1, 1), include_top=False)(torch.zeros(2, 3, 64, 64)).shape
            torch.Size([2, 512, 2, 2])

        Raises:
            ValueError: ``x`` is not (N, in_channels, H, W).
        """
        check_images(x, self.conv1, owner=_NAME)
        x = self.after_stem(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        x = self.after_layer1(self.layer1(x))
        x = self.after_layer2(self.layer2(x))
        x = self.after_layer3(self.layer3(x))
        x = self.after_layer4(self.layer4(x))
        return self.fc(self.avgpool(x).flatten(1)) if self.include_top else x
