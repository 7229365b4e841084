"""AllConv: slots, the authors' mean, places around the poolings, and start."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from networks import Factory, Scale, by, small
from shiftnorm.models import AllConv


def test_slots_stand_where_they_say() -> None:
    x = torch.randn(2, 3, 8, 8)

    def unit(**slots: Factory) -> nn.Module:
        return small(AllConv, slots=slots).stage1[0]

    plain = unit()

    def activation(value: Tensor) -> Tensor:
        return value / (1 + torch.exp(-1.702 * value))

    same = torch.testing.assert_close
    same(plain(x), activation(plain.norm(plain.conv(x))))
    same(unit(conv=by(2))(x), activation(plain.norm(2 * plain.conv(x))))
    same(unit(norm=by(2))(x), activation(2 * plain.norm(plain.conv(x))))
    same(unit(activation=by(2))(x), 2 * plain(x))
    same(unit(conv=by(1), norm=by(1), activation=by(1))(x), plain(x))


def test_names_do_not_depend_on_the_slots() -> None:
    plain = small(AllConv).state_dict()
    slotted = small(AllConv, slots={"conv": nn.BatchNorm2d})
    assert {name for name in slotted.state_dict() if "after_conv" not in name} == plain.keys()
    assert sum("after_conv.weight" in name for name in slotted.state_dict()) == 9


def test_the_mean_is_the_authors_on_their_size() -> None:
    model, x = small(AllConv), torch.randn(2, 3, 32, 32)
    maps: list[Tensor] = []
    model.stage3.register_forward_hook(lambda _, __, out: maps.append(out))
    logits = model(x)
    assert logits.std() > 0.1
    assert maps[0].shape == (2, 16, 10, 10)
    torch.testing.assert_close(logits, model.classifier(nn.AvgPool2d(8)(maps[0]).flatten(1)))


def test_initialisation_is_the_authors() -> None:
    model = AllConv(slots={"norm": lambda channels: nn.Conv2d(channels, channels, 1)})
    for unit, fan_out in ((model.stage2[1], 9 * 192), (model.stage3[2], 192)):
        assert abs(unit.conv.weight.std().item() / np.sqrt(2 / fan_out) - 1) < 0.02
        assert unit.conv.bias.any()
    assert not model.classifier.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in).
    assert model.stage2[1].after_norm.weight.abs().max() <= 1 / np.sqrt(192)


def test_dropout_follows_both_poolings() -> None:
    model, calls = small(AllConv), []
    model.dropout.register_forward_hook(lambda _, inputs, __: calls.append(tuple(inputs[0].shape)))
    model(torch.zeros(1, 3, 16, 16))
    assert calls == [(1, 8, 8, 8), (1, 16, 4, 4)]


def test_stage_slots_stand_before_the_poolings() -> None:
    model, shapes = small(AllConv, stage_slots={1: Scale, 2: Scale}), []
    for slot in (model.after_stage1, model.after_stage2):
        slot.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model(torch.zeros(1, 3, 16, 16))
    assert shapes == [(1, 8, 16, 16), (1, 16, 8, 8)]
