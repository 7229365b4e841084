from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.norms import AttentionWeights, AttentiveNorm, BatchNorm
from shiftnorm.ops import moments

ATTENTIONS = {
    "sigmoid": ["0.weight", "0.bias"],
    "hsigmoid": ["0.weight", "0.bias"],
    "mlp": ["0.weight", "0.bias", "2.weight", "2.bias"],
    "bn_hsigmoid": ["0.weight", *(f"1.{name}" for name in BatchNorm(1).state_dict())],
    "bn_sigmoid": ["0.weight", *(f"1.{name}" for name in BatchNorm(1).state_dict())],
    "bn_softmax": ["0.weight", *(f"1.{name}" for name in BatchNorm(1).state_dict())],
    "mlp_bn": ["0.weight", "3.weight", *(f"{i}.{name}" for i in (1, 4) for name in BatchNorm(1).state_dict())],
}


@pytest.mark.parametrize("base", [{}, {"base": "group", "num_groups": 2}], ids=["batch", "group"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_on_both_bases(attention, base):
    norm = AttentiveNorm(6, num_pairs=3, attention=attention, **base).double()
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    state = norm.to_official()
    keys = {f"attention_weights.attention.{key}" for key in ATTENTIONS[attention]} | {"weight_", "bias_"}
    assert set(state) == keys | ({"running_mean", "running_var", "num_batches_tracked"} if not base else set())
    norm.load_state_dict(norm.from_official(state))

    # The layer written out with torch's modules on the authors' tensors.
    standard = nn.BatchNorm2d(6, affine=False) if not base else nn.GroupNorm(2, 6, affine=False)
    var, mean = torch.var_mean(x, (2, 3))
    z, rest = (
        mean / (var + 1e-3).sqrt(),
        {key.split("attention.")[1]: v for key, v in state.items() if "attention." in key},
    )
    hidden = attention.startswith("mlp")
    for linear in (0, 2 if attention == "mlp" else 3)[: 1 + hidden]:
        z = nn.functional.linear(z, rest[f"{linear}.weight"].flatten(1), rest.get(f"{linear}.bias"))
        z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() if "bn" in attention else z
        z = z.relu() if hidden and linear == 0 else z
    hard, soft = nn.functional.hardsigmoid, lambda z: z.softmax(1)
    share = {"hsigmoid": hard, "bn_hsigmoid": hard, "mlp_bn": hard, "bn_softmax": soft}.get(attention, torch.sigmoid)(z)
    gain, shift = (share @ state["weight_"])[..., None, None], (share @ state["bias_"])[..., None, None]
    torch.testing.assert_close(norm(x), gain * standard.double()(x) + shift)


def test_attention_alone_gives_the_shares_and_translates_its_keys():
    weights = AttentionWeights(6, 3, "hsigmoid", bias=False)
    share = weights(moments(torch.randn(4, 6, 5, 5)))
    assert share.shape == (4, 3)
    assert share.min() >= 0 and share.max() <= 1
    state = weights.to_official()
    assert {key: tuple(value.shape) for key, value in state.items()} == {"attention.0.weight": (3, 6, 1, 1)}
    assert weights.from_official(state).keys() == weights.state_dict().keys()
    with pytest.raises(KeyError, match=r"missing \['attention.0.weight'\], unknown \['fc.weight'\]"):
        weights.from_official({"fc.weight": torch.zeros(3, 6)})


def test_a_batch_of_one_trains_the_attention_by_its_running_moments():
    norm, x = AttentiveNorm(6, num_pairs=3, base="group", num_groups=3), torch.randn(1, 6, 5, 5)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    torch.testing.assert_close(norm(x), norm.eval()(x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_planes_of_one_element_are_finite():
    norm, x = AttentiveNorm(6, num_pairs=3), torch.randn(4, 6, 1, 1, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


def test_running_moments_of_a_batch_norm_load():
    source, norm = BatchNorm(6), AttentiveNorm(6, num_pairs=3)
    source(torch.randn(4, 6, 5, 5) + 3)
    norm.load_state_dict(source.state_dict(), strict=False)
    assert torch.equal(norm.running_mean, source.running_mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "layer"}, "base 'batch' or 'group', got 'layer'"),
        ({"base": "group", "num_groups": 4}, "num_groups to divide 6 channels, got 4"),
        ({"base": "group"}, "num_groups to divide 6 channels, got None"),
        ({"num_groups": 2}, "num_groups=2 needs base='group'"),
        ({"attention": "tanh"}, "attention to be one of .* got 'tanh'"),
        ({"num_pairs": 0}, "num_pairs to be at least 1, got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentiveNorm(6, **arguments)
