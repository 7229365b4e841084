"""ResNeXtCifar: slots, norms per stage, and start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import RESIDUAL, Factory, by, group_norm, small
from shiftnorm.models import ResNeXtCifar


@pytest.mark.parametrize("index", [0, 1])
def test_slots_stand_where_they_say(index: int) -> None:
    channels = (256, 512)[index]
    x = torch.randn(2, channels, 8, 8)

    def block(**slots: Factory) -> nn.Module:
        return small(ResNeXtCifar, slots=slots).stage_2[index]

    plain = block()

    def branch(start: Tensor) -> Tensor:
        start = F.relu(plain.bn(plain.conv_conv(F.relu(plain.bn_reduce(plain.conv_reduce(start))))))
        return plain.bn_expand(plain.conv_expand(start))

    shortcut = x if index else plain.downsample[1](plain.downsample[0](x))
    assert isinstance(plain.downsample, nn.Identity) == (index == 1)
    same = torch.testing.assert_close
    same(plain(x), F.relu(shortcut + branch(x)))
    same(block(residual=by(0))(x), F.relu(shortcut))
    same(block(identity=by(0))(x), F.relu(branch(x)))
    # After the last ReLU: a negative factor gives negative values.
    same(block(post=by(-3))(x), -3 * F.relu(shortcut + branch(x)))
    # Where there is a downsample it sees the output of pre; a raw shortcut does not.
    start = 2 * x
    same(block(pre=by(2))(x), F.relu((x if index else plain.downsample[1](plain.downsample[0](start))) + branch(start)))
    same(block(**dict.fromkeys(RESIDUAL, by(1)))(x), plain(x))


def test_identity_can_be_left_out_of_the_downsample_blocks() -> None:
    whole, without = (
        small(ResNeXtCifar, slots={"identity": by(0.5)}, identity_in_downsample=flag) for flag in (True, False)
    )
    places = {name.removesuffix(".factor") for name in without.state_dict() if name.endswith("factor")}
    assert places == {f"stage_{stage}.1.identity" for stage in (1, 2, 3)}
    assert [whole.stage_2[0].identity.channels, whole.stage_2[1].identity.channels] == [512, 512]
    # The same network otherwise, and no module whose output nobody reads.
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for stage in (whole.stage_1, whole.stage_2, whole.stage_3):
            stage[0].identity.factor.fill_(1.0)
    torch.testing.assert_close(whole(x), without(x))
    for model in (whole, without):
        model(x).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_norms_per_stage() -> None:
    model = small(ResNeXtCifar, norm=group_norm, inner_norm=[nn.InstanceNorm2d, None, nn.InstanceNorm2d])
    for number, inner in ((1, nn.InstanceNorm2d), (2, nn.GroupNorm), (3, nn.InstanceNorm2d)):
        for block in getattr(model, f"stage_{number}"):
            assert type(block.bn_reduce) is inner
            assert isinstance(block.bn, nn.GroupNorm) and isinstance(block.bn_expand, nn.GroupNorm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_initialisation_is_the_authors() -> None:
    model = ResNeXtCifar(slots={"post": lambda channels: nn.Conv2d(channels, channels, 1, groups=channels)})
    block = model.stage_3[1]
    for conv, fan_out in ((block.conv_conv, 9 * 512), (block.conv_expand, 1024)):
        assert abs(conv.weight.std().item() / np.sqrt(2 / fan_out) - 1) < 0.01
    assert abs(model.classifier.weight.std().item() / np.sqrt(2 / 1024) - 1) < 0.05
    assert not model.classifier.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in).
    assert block.post.weight.abs().max() <= 1


def test_a_narrow_group_has_at_least_one_channel() -> None:
    assert ResNeXtCifar(11, 2, 1).stage_1[0].conv_conv.weight.shape == (2, 1, 3, 3)
