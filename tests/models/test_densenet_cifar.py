"""DenseNetCifar: slots, bottleneck, compression, norms per block, and start."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import Factory, by, group_norm, small
from shiftnorm.models import DenseNetCifar


def test_slots_stand_where_they_say() -> None:
    x = torch.randn(2, 8, 8, 8)

    def layer(**slots: Factory) -> nn.Module:
        return small(DenseNetCifar, slots=slots).dense1[0]

    plain = layer()

    def new(start: Tensor) -> Tensor:
        return plain.conv1(F.relu(plain.bn1(start)))

    same = torch.testing.assert_close
    same(plain(x), torch.cat([x, new(x)], 1))
    # What is concatenated has passed through conv1_pre; conv1_post sees the new features only.
    same(layer(conv1_pre=by(2))(x), torch.cat([2 * x, new(2 * x)], 1))
    same(layer(conv1_post=by(3))(x), torch.cat([x, 3 * new(x)], 1))
    same(layer(conv1_pre=by(1), conv1_post=by(1))(x), plain(x))
    assert [block.conv1_pre.channels for block in small(DenseNetCifar, slots={"conv1_pre": by(1)}).dense2] == [
        24,
        28,
        32,
        36,
    ]


def test_slots_stand_where_they_say_with_a_bottleneck() -> None:
    x = torch.randn(2, 8, 8, 8)

    def layer(**slots: Factory) -> nn.Module:
        return small(DenseNetCifar, bottleneck=True, slots=slots).dense1[0]

    plain = layer()

    def new(start: Tensor, factor: float = 1.0) -> Tensor:
        return plain.conv2(F.relu(plain.bn2(factor * plain.conv1(F.relu(plain.bn1(start))))))

    same = torch.testing.assert_close
    assert plain.conv1.weight.shape == (16, 8, 1, 1) and plain.conv2.weight.shape == (4, 16, 3, 3)
    same(plain(x), torch.cat([x, new(x)], 1))
    same(layer(conv1_pre=by(2))(x), torch.cat([2 * x, new(2 * x)], 1))
    same(layer(conv1_post=by(3))(x), torch.cat([x, new(x, 3.0)], 1))
    same(layer(conv2_post=by(3))(x), torch.cat([x, 3 * new(x)], 1))
    assert layer(conv1_post=by(1)).conv1_post.channels == 16
    assert layer(conv2_post=by(1)).conv2_post.channels == 4


def test_compression_keeps_a_share_of_the_channels() -> None:
    model = small(DenseNetCifar, compression=0.5)
    assert [model.trans1.conv1.out_channels, model.trans2.conv1.out_channels, model.fc.in_features] == [12, 14, 30]
    x = torch.randn(1, 24, 6, 6)
    expected = F.avg_pool2d(model.trans1.conv1(F.relu(model.trans1.bn1(x))), 2)
    torch.testing.assert_close(model.trans1(x), expected)


def test_norms_per_block() -> None:
    model = small(DenseNetCifar, norm=group_norm, inner_norm=[nn.InstanceNorm2d, None, nn.InstanceNorm2d])
    kinds = [[type(layer.bn1) for layer in block] for block in (model.dense1, model.dense2, model.dense3)]
    every_third = [nn.InstanceNorm2d, nn.GroupNorm, nn.GroupNorm, nn.InstanceNorm2d]
    assert kinds == [every_third, [nn.GroupNorm] * 4, every_third]
    everywhere = small(DenseNetCifar, inner_norm=[group_norm] * 3, inner_every=1)
    assert [type(layer.bn1) for layer in everywhere.dense1] == [nn.GroupNorm] * 4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_initialisation_is_the_authors() -> None:
    model = DenseNetCifar(slots={"conv1_post": lambda channels: nn.Conv2d(channels, channels, 1)})
    for conv, fan_out in ((model.dense3[11].conv1, 9 * 12), (model.trans2.conv1, 312)):
        assert abs(conv.weight.std().item() / np.sqrt(2 / fan_out) - 1) < 0.02
    assert not model.fc.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in).
    assert model.dense1[0].conv1_post.weight.abs().max() <= 1 / np.sqrt(12)
