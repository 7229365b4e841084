"""What the backbones refuse, and what they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from networks import FACTS, Scale
from shiftnorm.models import AllConv, DenseNet, DenseNetCifar, ResNet, ResNeXtCifar, WideResNet

Network = type[nn.Module]
Mistake = tuple[dict[str, object], type[Exception], str]


def wrong_numbers(network: Network) -> Iterator[Mistake]:
    """Counts, names and stages that every network of ours refuses."""
    facts = FACTS[network]
    for count in ("num_classes", "in_channels"):
        yield {count: 0}, ValueError, f"{count} must be at least 1, got 0$"
    for dropout in (-0.1, 1, 1.0) if facts.dropout else ():
        yield {"dropout": dropout}, ValueError, rf"dropout must be in \[0, 1\), got {dropout}$"
    known = rf"a block has {', '.join(facts.slots)}$"
    yield {"slots": {"after": Scale}}, ValueError, rf"unknown slots \['after'\]; {known}"
    *before, last = facts.numbers
    for number in (facts.numbers[0] - 1, last + 1):
        known = f"the stages are {', '.join(map(str, before))} and {last}$"
        yield {"stage_slots": {number: Scale}}, ValueError, rf"unknown stages \[{number}\] in stage_slots; {known}"
    for entries in {1, facts.inner - 1, facts.inner + 1} if facts.inner else ():
        needed = rf"one entry for each of the {facts.inner} stages \(None: use norm\), got {entries}$"
        yield {"inner_norm": [None] * entries}, ValueError, f"inner_norm needs {needed}"


def no_module(channels: int) -> None:
    return None


def wrong_factories(network: Network) -> Iterator[Mistake]:
    """A module, and a function that makes none, at every place that takes a factory."""
    facts = FACTS[network]
    for given, refused in (
        (nn.BatchNorm2d(16), r"must be a function from a channel count .* got BatchNorm2d\(16, "),
        (no_module, r"must return an nn\.Module, returned None for {channels} channels$"),
    ):
        yield {"norm": given}, TypeError, "norm " + refused.format(channels=facts.first)
        anywhere = refused.format(channels=r"\d+")
        for slot in facts.slots:
            options = {"bottleneck": True} if slot == "conv2_post" else {}
            yield {"slots": {slot: given}, **options}, TypeError, rf"slots\['{slot}'\] {anywhere}"
        for number, channels in zip(facts.numbers, facts.stages.values(), strict=True):
            there = refused.format(channels=channels)
            yield {"stage_slots": {number: given}}, TypeError, rf"stage_slots\[{number}\] {there}"
        for stage in range(facts.inner):
            entries = [given if stage == place else None for place in range(facts.inner)]
            yield {"inner_norm": entries}, TypeError, f"inner_norm {anywhere}"


OWN: dict[Network, list[Mistake]] = {
    AllConv: [
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"slots": {"pre": nn.BatchNorm2d}}, ValueError, r"unknown slots \['pre'\]; .* conv, norm, activation"),
    ],
    DenseNet: [
        ({"growth_rate": 0}, ValueError, "growth_rate must be at least 1"),
        ({"num_init_features": 0}, ValueError, "num_init_features must be at least 1"),
        ({"bn_size": 0}, ValueError, "bn_size must be at least 1"),
        ({"inner_every": 0}, ValueError, "inner_every must be at least 1"),
        ({"block_config": (1, 1, 1)}, ValueError, r"block_config must be four layer counts from 1, .* got \(1, 1, 1\)"),
        ({"block_config": (1, 0, 1, 1)}, ValueError, "block_config must be four layer counts from 1"),
        ({"slots": {"identity": Scale}}, ValueError, r"unknown slots \['identity'\]; a block has pre, post"),
    ],
    DenseNetCifar: [
        (
            {"depth": 41},
            ValueError,
            r"depth must be 3n \+ 4 with n ≥ 1 for bottleneck=False, got 41; the nearest are 40 and 43",
        ),
        (
            {"depth": 43, "bottleneck": True},
            ValueError,
            r"depth must be 6n \+ 4 with n ≥ 1 for bottleneck=True, got 43; the nearest are 40 and 46",
        ),
        ({"depth": 4}, ValueError, "depth must be .* nearest are 7 and 10"),
        ({"growth_rate": 0}, ValueError, "growth_rate must be at least 1"),
        ({"inner_every": 0}, ValueError, "inner_every must be at least 1"),
        ({"compression": 0.0}, ValueError, r"compression must be in \(0, 1\], got 0.0"),
        ({"compression": 1.5}, ValueError, r"compression must be in \(0, 1\], got 1.5"),
        ({"slots": {"pre": Scale}}, ValueError, r"unknown slots \['pre'\]; a block has conv1_pre, conv1_post"),
        ({"slots": {"conv2_post": Scale}}, ValueError, "the slot 'conv2_post' needs bottleneck=True"),
    ],
    ResNeXtCifar: [
        ({"depth": 30}, ValueError, r"depth must be 9n \+ 2 with n ≥ 1, got 30; the nearest are 29 and 38"),
        ({"depth": 2}, ValueError, "depth must be .* nearest are 11 and 20"),
        ({"cardinality": 0}, ValueError, "cardinality must be at least 1, got 0"),
        ({"base_width": 0}, ValueError, "base_width must be at least 1"),
    ],
    ResNet: [
        ({"block": nn.Identity}, TypeError, "block must be BasicBlock or Bottleneck, got .*Identity"),
        ({"layers": (1, 1, 1)}, ValueError, r"layers must be four block counts from 1, .* got \(1, 1, 1\)"),
        ({"layers": (1, 0, 1, 1)}, ValueError, r"layers must be .* got \(1, 0, 1, 1\)"),
        ({"groups": 0}, ValueError, "groups must be at least 1"),
        ({"width_per_group": 0}, ValueError, "width_per_group must be at least 1"),
        ({"groups": 2}, ValueError, "a BasicBlock has groups=1 and width_per_group=64, got 2 and 64; a Bottleneck"),
        ({"stem": "tiny"}, ValueError, "stem must be 'imagenet' or 'cifar', got 'tiny'"),
        ({"stride_in": "5x5"}, ValueError, "stride_in must be '3x3' or '1x1', got '5x5'"),
        (
            {"replace_stride_with_dilation": [True]},
            ValueError,
            r"replace_stride_with_dilation needs one entry .* stages 2, 3 and 4, got \[True\]",
        ),
        ({"stage_end": [None] * 5}, ValueError, "stage_end needs one entry for each of the 4 stages .* got 5"),
        ({"stem_norm": 3}, TypeError, "stem_norm must be a function .* got 3"),
        ({"squeeze": no_module}, TypeError, "squeeze must return an nn.Module, returned None for 64"),
        (
            {"stage_end": [None, no_module, None, None]},
            TypeError,
            r"stage_end\[1\] must return .* returned None for 128",
        ),
    ],
    WideResNet: [
        ({"depth": 18}, ValueError, r"depth must be 6n \+ 4 with n ≥ 1, got 18; the nearest are 16 and 22"),
        ({"depth": 4}, ValueError, "depth must be .* nearest are 10 and 16"),
        ({"widen_factor": 0}, ValueError, "widen_factor must be at least 1"),
    ],
}
MISTAKES = [
    pytest.param(network, *mistake, id=f"{network.__name__}-{mistake[2]}")
    for network in FACTS
    for mistake in (*wrong_numbers(network), *wrong_factories(network), *OWN[network])
]


@pytest.mark.parametrize(("network", "arguments", "error", "message"), MISTAKES)
def test_errors(network: Network, arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with torch.device("meta"), pytest.raises(error, match=f"^{network.__name__}: {message}"):
        network(**(FACTS[network].arguments | arguments))
