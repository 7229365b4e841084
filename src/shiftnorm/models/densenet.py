"""Densely connected networks for ImageNet-sized images, with places for norms left open."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models.convolution import check_map
from shiftnorm.models.places import Places
from shiftnorm.models.published import Constructor, published
from shiftnorm.models.slots import NormFactory, check_images, check_positive

__all__ = ["DenseNet", "densenet121", "densenet161", "densenet169", "densenet201"]

SLOTS = ("pre", "post")
STAGES = (1, 2, 3, 4)
SMALLEST = 29  # a 2x2 map is left for the last of five halvings
_NAME = "DenseNet"


class _Layer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution, concatenated to the input."""

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        bn_size: int,
        inner: int | None,
        places: Places,
    ) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = places.norm(in_channels, inner=inner)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = places.norm(width)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.dropout = places.dropout()
        self.pre = places.slot("pre", in_channels)
        self.post = places.slot("post", growth_rate)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(self.pre(x))))
        new = self.post(self.conv2(F.relu(self.norm2(new))))
        return torch.cat((x, self.dropout(new)), 1)


class _Transition(nn.Module):
    """Norm, ReLU, a 1x1 convolution that halves the channels, and a mean that halves the map."""

    def __init__(self, in_channels: int, places: Places) -> None:
        super().__init__()
        self.norm = places.norm(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, 2, owner=_NAME, image=SMALLEST)
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


@final
class DenseNet(nn.Module):
    """A densely connected network of four dense blocks, with places for norms left open.

    Each layer of a dense block adds ``growth_rate`` channels to what it got::

        new = post(conv2(relu(norm2(conv1(relu(norm1(pre(x))))))))
        x   = concatenate(x, new)

    Between the blocks stand a norm, ReLU, a 1x1 convolution that halves the channels, and a 2x2 mean.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from shiftnorm.models import DenseNet
        >>> model = DenseNet(8, (1, 1, 1, 1), 16, num_classes=10)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> normed = DenseNet(8, (4, 1, 1, 1), 16, inner_norm=[nn.InstanceNorm2d, None, None, None])
        >>> [type(layer.norm1).__name__ for layer in normed.features.denseblock1]
        ['InstanceNorm2d', 'BatchNorm2d', 'BatchNorm2d', 'InstanceNorm2d']

    Args:
        growth_rate: channels each layer adds.
        block_config: how many layers each of the four dense blocks has.
        num_init_features: channels of the first convolution.
        bn_size: the 1x1 convolution of a layer makes ``bn_size * growth_rate`` channels.
        num_classes: number of outputs.
        in_channels: channels of the input images.
        norm: builds every norm from its channel count.
        inner_norm: one entry per dense block; builds ``norm1`` of every layer with an index divisible by
            ``inner_every`` instead of ``norm`` (None: use ``norm``). IBN-a stands here in blocks 1 to 3, with a ratio
            of 0.4 and the batch channels first.
        inner_every: distance of the layers that ``inner_norm`` is for, 3 in IBN-Net.
        slots: builds a module for a place in every layer. ``"pre"``: start of the branch, on all channels so far, while
            what is concatenated stays raw; ``"post"``: on the new channels.
        stage_slots: builds a module that follows the stem (0) or a whole dense block (1 to 4), where MixStyle goes.
        dropout: probability of dropping a value of the new channels.
        include_top: False leaves out the mean and ``classifier``: the output is the feature map after the last ReLU.

    Shape:
        (N, in_channels, H, W) → (N, num_classes), or (N, C, h, w) without the top, for H and W from 29.

    State:
        Names, shapes and order of torchvision's ``state_dict``. Modules in slots appear under the slot's name, modules
        between stages as ``features.after_stem`` and ``features.after_denseblock1`` to ``features.after_denseblock4``;
        empty places leave no trace. Convolutions start from N(0, √(2 / (k² C_in))) and the classifier's bias from 0,
        which is torchvision's start, number by number from the same seed. Modules from factories keep their own start.

    Modes:
        Dropout and whatever modules were passed in follow train and eval; nothing else does.

    Raises:
        ValueError: an unknown slot or stage, ``inner_norm`` without four entries, or a number out of range; from the
            call, images smaller than 29x29.
        TypeError: a factory is a module instead of a function, or returns something else than a module.

    Cost:
        2.8 billion multiply-adds and 8.0 million parameters for DenseNet-121 on a 224x224 image.

    Source:
        Huang et al., Densely Connected Convolutional Networks, 2017; places of IBN-a as in Pan et al., Two at Once,
        2018.

    Differences from torchvision:
        The slots; a ReLU does not overwrite its input; each layer returns all channels so far, not a list; no option to
        recompute activations in the backward pass; an input that does not fit is refused with a reason.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        norm: NormFactory = nn.BatchNorm2d,
        inner_norm: Sequence[NormFactory | None] | None = None,
        inner_every: int = 3,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        dropout: float = 0.0,
        include_top: bool = True,
    ) -> None:
        super().__init__()
        check_positive(
            _NAME,
            growth_rate=growth_rate,
            num_init_features=num_init_features,
            bn_size=bn_size,
            num_classes=num_classes,
            in_channels=in_channels,
            inner_every=inner_every,
        )
        if len(block_config) != len(STAGES) or min(block_config) < 1:
            raise ValueError(
                f"{_NAME}: block_config must be four layer counts from 1, one for each dense block, "
                f"got {block_config!r}"
            )
        places = Places(
            _NAME,
            (0, *STAGES),
            SLOTS,
            norm=norm,
            inner_norm=inner_norm,
            slots=slots,
            stage_slots=stage_slots,
            dropout=dropout,
        )

        def dense(number: int, channels: int) -> nn.Sequential:
            return nn.Sequential(
                OrderedDict(
                    (
                        f"denselayer{index + 1}",
                        _Layer(
                            channels + index * growth_rate,
                            growth_rate,
                            bn_size,
                            None if index % inner_every else number,
                            places,
                        ),
                    )
                    for index in range(block_config[number - 1])
                )
            )

        width = num_init_features
        features: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
            "norm0": places.norm(width),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
            "after_stem": places.after(0, width),
        }
        for number in STAGES:
            features[f"denseblock{number}"] = dense(number, width)
            width += block_config[number - 1] * growth_rate
            features[f"after_denseblock{number}"] = places.after(number, width)
            if number != STAGES[-1]:
                features[f"transition{number}"] = _Transition(width, places)
                width //= 2
        features["norm5"] = places.norm(width)
        self.features = nn.Sequential(OrderedDict(features))
        self.include_top = include_top
        if include_top:
            self.classifier = nn.Linear(width, num_classes)
            nn.init.zeros_(self.classifier.bias)
        self._initialise()

    def _initialise(self) -> None:
        for name, part in self.features.named_children():
            if isinstance(part, nn.Sequential):
                own = [conv for layer in part if isinstance(layer, _Layer) for conv in (layer.conv1, layer.conv2)]
            elif isinstance(part, _Transition):
                own = [part.conv]
            else:
                own = [part] if name == "conv0" and isinstance(part, nn.Conv2d) else []
            for conv in own:
                nn.init.kaiming_normal_(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``, or the last feature map without the top.

        Example:
            >>> import torch
            >>> DenseNet(8, (1, 1, 1, 1), 16, include_top=False)(torch.zeros(2, 3, 64, 64)).shape
            torch.Size([2, 17, 2, 2])

        Raises:
            ValueError: ``x`` is not (N, in_channels, H, W), or H or W is below 29.
        """
        check_images(x, self.features.conv0, owner=_NAME)
        x = F.relu(self.features(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1)) if self.include_top else x


def _constructor(
    depth: int, parameters: int, growth_rate: int, block_config: tuple[int, int, int, int], num_init_features: int
) -> Constructor[DenseNet]:
    @published(f"densenet{depth}", f"DenseNet-{depth}", network="DenseNet", parameters=parameters)
    def construct(num_classes: int = 1000, **options: Any) -> DenseNet:
        return DenseNet(growth_rate, block_config, num_init_features, num_classes=num_classes, **options)

    return construct


densenet121 = _constructor(121, 7_978_856, 32, (6, 12, 24, 16), 64)
densenet161 = _constructor(161, 28_681_000, 48, (6, 12, 36, 24), 96)
densenet169 = _constructor(169, 14_149_480, 32, (6, 12, 32, 32), 64)
densenet201 = _constructor(201, 20_013_928, 32, (6, 12, 48, 32), 64)
