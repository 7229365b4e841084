"""WideResNet: slots, norms per stage, and start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import RESIDUAL, Factory, Scale, by, group_norm, small
from shiftnorm.models import WideResNet


@pytest.mark.parametrize("width", [1, 2])
def test_slots_stand_where_they_say(width: int) -> None:
    x = torch.randn(2, 16, 8, 8)

    def block(**slots: Factory) -> nn.Module:
        return small(WideResNet, widen_factor=width, slots=slots).block1.layer[0]

    plain = block()
    activated = F.relu(plain.bn1(x))
    shortcut = x if width == 1 else plain.conv_shortcut(activated)
    branch = plain.conv2(F.relu(plain.bn2(plain.conv1(activated))))
    assert isinstance(plain.conv_shortcut, nn.Identity) == (width == 1)
    same = torch.testing.assert_close
    same(plain(x), shortcut + branch)
    same(block(residual=Scale)(x), shortcut)
    same(block(identity=Scale)(x), branch)
    same(block(post=by(3))(x), 3 * (shortcut + branch))
    # A branch that starts from zeros: before bn1 where the width stays, after bn1 and ReLU where it changes.
    zero = torch.zeros_like(x)
    start = F.relu(plain.bn1(zero)) if width == 1 else zero
    same(block(pre=Scale)(x), shortcut + plain.conv2(F.relu(plain.bn2(plain.conv1(start)))))
    everywhere = block(**dict.fromkeys(RESIDUAL, by(1)))
    same(everywhere(x), plain(x))


def test_norms_per_stage() -> None:
    model = WideResNet(16, 1, norm=group_norm, inner_norm=[nn.InstanceNorm2d, nn.InstanceNorm2d, None])
    for number, inner in ((1, nn.InstanceNorm2d), (2, nn.InstanceNorm2d), (3, nn.GroupNorm)):
        for block in getattr(model, f"block{number}").layer:
            assert isinstance(block.bn1, nn.GroupNorm)
            assert type(block.bn2) is inner
    assert isinstance(model.bn1, nn.GroupNorm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = WideResNet(16, 4, slots={"post": lambda channels: nn.Conv2d(channels, channels, 1)})
    weight = model.block3.layer[1].conv1.weight
    assert abs(weight.std().item() / np.sqrt(2 / (9 * 256)) - 1) < 0.01
    assert not model.fc.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in); a normal one is not.
    assert model.block3.layer[0].post.weight.abs().max() <= 1 / np.sqrt(256)
