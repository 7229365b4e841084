"""The densely connected network for small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models.convolution import check_map, convolution
from shiftnorm.models.depth import blocks_per_stage
from shiftnorm.models.places import Places
from shiftnorm.models.slots import NormFactory, check_images, check_positive

__all__ = ["DenseNetCifar"]

SLOTS = ("conv1_pre", "conv1_post", "conv2_post")
STAGES = (1, 2, 3)
SMALLEST = 4  # two halvings
_NAME = "DenseNetCifar"


class _Layer(nn.Module):
    """Norm, ReLU, convolution, once or (with a bottleneck) twice, concatenated to the input."""

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        bottleneck: bool,
        inner: int | None,
        places: Places,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        width = 4 * growth_rate if bottleneck else growth_rate
        self.bn1 = places.norm(in_channels, inner=inner)
        self.conv1 = convolution(in_channels, width, 1) if bottleneck else convolution(in_channels, width, 3, padding=1)
        if bottleneck:
            self.bn2 = places.norm(width)
            self.conv2 = convolution(width, growth_rate, 3, padding=1)
            self.conv2_post = places.slot("conv2_post", growth_rate)
        self.conv1_pre = places.slot("conv1_pre", in_channels)
        self.conv1_post = places.slot("conv1_post", width)
        self.dropout = places.dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1_pre(x)
        new = self.conv1_post(self.conv1(F.relu(self.bn1(x))))
        if self.bottleneck:
            new = self.conv2_post(self.conv2(F.relu(self.bn2(new))))
        return torch.cat((x, self.dropout(new)), 1)


class _Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution, and a mean that halves the map."""

    def __init__(self, in_channels: int, out_channels: int, places: Places) -> None:
        super().__init__()
        self.bn1 = places.norm(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, 2, owner=_NAME, image=SMALLEST)
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


@final
class DenseNetCifar(nn.Module):
    """A densely connected network for small images, with places for norms left open.

    Each of the three dense blocks has ``(depth - 4) / 3`` layers, or half as many with a bottleneck::

        x   = conv1_pre(x)
        new = conv1_post(conv1(relu(bn1(x))))
        new = conv2_post(conv2(relu(bn2(new))))     with a bottleneck only
        x   = concatenate(x, new)

    Between the blocks stand a norm, ReLU, a 1x1 convolution and a 2x2 mean.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from shiftnorm.models import DenseNetCifar
        >>> model = DenseNetCifar(depth=10, growth_rate=4)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> DenseNetCifar(10, 4, slots={"conv1_post": nn.InstanceNorm2d}).dense1[0].conv1_post
        InstanceNorm2d(4, ...)

    Args:
        depth: number of layers, 3n + 4 (40, 100), or 6n + 4 with a bottleneck (100, 190, 250), n ≥ 1.
        growth_rate: channels each layer adds; the first convolution makes twice as many.
        num_classes: number of outputs.
        bottleneck: put a 1x1 convolution to ``4 · growth_rate`` channels before each 3x3 convolution.
        compression: share of the channels that stay after each dense block, in (0, 1]; 0.5 in DenseNet-BC.
        in_channels: channels of the input images.
        norm: builds every norm from its channel count.
        inner_norm: one entry per dense block; builds ``bn1`` of every layer with an index divisible by ``inner_every``
            instead of ``norm`` (None: use ``norm``).
        inner_every: distance of the layers that ``inner_norm`` is for; 3 is IBN-Net's rule for the ImageNet networks.
        slots: builds a module for a place in every layer. ``"conv1_pre"``: on the input, so that what is concatenated
            and seen by all later layers of the block has passed through it; ``"conv1_post"``: after the first
            convolution, without a bottleneck on the new features only; ``"conv2_post"``: on the new features, with a
            bottleneck only.
        stage_slots: builds a module that follows a whole dense block, by number 1, 2 or 3 (where MixStyle goes).
        dropout: probability of dropping a value of the new features.

    Shape:
        (N, in_channels, H, W) → (N, num_classes), for H and W from 4, also for N = 1.

    State:
        Names and shapes of the authors' ``state_dict`` (``conv1``, ``dense1.0.bn1``, …, ``trans1.bn1``, …, ``bn1``,
        ``fc``). Modules in slots appear under the slot's name, modules after a dense block as ``after_dense1`` to
        ``after_dense3``; empty places leave no trace.

    Modes:
        Dropout and whatever modules were passed in follow train and eval; nothing else does.

    Raises:
        ValueError: a depth that does not fit, an unknown slot or stage, ``"conv2_post"`` without a bottleneck,
            ``inner_norm`` without three entries, or a number out of range; from the call, images smaller than 4x4.
        TypeError: a factory is a module instead of a function, or returns something else than a module.

    Cost:
        283 million multiply-adds and 1.06 million parameters for depth 40 and growth rate 12 on a 32x32 image.

    Source:
        Huang et al., Densely Connected Convolutional Networks, 2017, in the form that AugMix and CrossNorm/SelfNorm
        train (depth 40, growth rate 12, no bottleneck, no compression); slots as in Tang et al., CrossNorm and SelfNorm
        for Generalization under Distribution Shifts, 2021. Convolutions start from N(0, 2 / (k² · channels out)).

    Differences from the authors' code:
        Any input size; a batch of one image keeps its batch axis; two different modules can stand in two places at
        once; modules that are passed in keep their own initialisation.
    """

    def __init__(
        self,
        depth: int = 40,
        growth_rate: int = 12,
        num_classes: int = 10,
        *,
        bottleneck: bool = False,
        compression: float = 1.0,
        in_channels: int = 3,
        norm: NormFactory = nn.BatchNorm2d,
        inner_norm: Sequence[NormFactory | None] | None = None,
        inner_every: int = 3,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers = blocks_per_stage(depth, 6 if bottleneck else 3, 4, owner=_NAME, where=f" for bottleneck={bottleneck}")
        check_positive(
            _NAME, growth_rate=growth_rate, num_classes=num_classes, in_channels=in_channels, inner_every=inner_every
        )
        if not 0 < compression <= 1:
            raise ValueError(f"{_NAME}: compression must be in (0, 1], got {compression}")
        places = Places(
            _NAME,
            STAGES,
            SLOTS,
            norm=norm,
            inner_norm=inner_norm,
            slots=slots,
            stage_slots=stage_slots,
            dropout=dropout,
        )
        if "conv2_post" in (slots or {}) and not bottleneck:
            raise ValueError(
                f"{_NAME}: the slot 'conv2_post' needs bottleneck=True; without it a layer has one convolution, "
                f"and its new features pass through 'conv1_post'"
            )

        def dense(number: int, channels: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    _Layer(
                        channels + index * growth_rate,
                        growth_rate,
                        bottleneck,
                        None if index % inner_every else number,
                        places,
                    )
                    for index in range(layers)
                )
            )

        def widths(channels: int) -> tuple[int, int]:
            grown = channels + layers * growth_rate
            return grown, int(grown * compression)

        width = 2 * growth_rate
        self.conv1 = convolution(in_channels, width, 3, padding=1)
        grown, kept = widths(width)
        self.dense1, self.after_dense1 = dense(1, width), places.after(1, grown)
        self.trans1 = _Transition(grown, kept, places)
        width, (grown, kept) = kept, widths(kept)
        self.dense2, self.after_dense2 = dense(2, width), places.after(2, grown)
        self.trans2 = _Transition(grown, kept, places)
        width, (grown, _) = kept, widths(kept)
        self.dense3, self.after_dense3 = dense(3, width), places.after(3, grown)
        self.bn1 = places.norm(grown)
        self.fc = nn.Linear(grown, num_classes)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``.

        Example:
            >>> import torch
            >>> DenseNetCifar(depth=10, growth_rate=4, num_classes=5)(torch.zeros(1, 3, 32, 32)).shape
            torch.Size([1, 5])

        Raises:
            ValueError: ``x`` is not (N, in_channels, H, W), or H or W is below 4.
        """
        check_images(x, self.conv1, owner=_NAME)
        x = self.trans1(self.after_dense1(self.dense1(self.conv1(x))))
        x = self.trans2(self.after_dense2(self.dense2(x)))
        x = self.after_dense3(self.dense3(x))
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1)
        return self.fc(x.flatten(1))
