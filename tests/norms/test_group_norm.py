"""GroupNorm: torch's numbers in every layout, and clear errors for torch's argument order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.norms import GroupNorm, InstanceNorm, LayerNorm


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "shape", [(4, 6), (3, 6, 7), (3, 6, 5, 4), (2, 6, 3, 4, 2)], ids=lambda shape: f"{len(shape)}d"
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_equals_torch_and_loads_its_state(groups, shape, channels_last):
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    theirs = nn.GroupNorm(groups, 6, dtype=torch.float64)
    nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours = GroupNorm(6, groups, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for norm in (theirs, ours):
        leaf = x.detach().requires_grad_()
        y = norm(leaf)
        (y**3).sum().backward()
        results.append([y, leaf.grad, norm.weight.grad, norm.bias.grad])
    torch.testing.assert_close(results[1], results[0], atol=1e-11, rtol=1e-11)
    assert results[1][0].stride() == x.stride()


@pytest.mark.parametrize(("groups", "other"), [(1, LayerNorm(6)), (6, InstanceNorm(6, affine=True))])
def test_one_group_and_one_channel_per_group(groups, other):
    x = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(GroupNorm(6, groups)(x), other(x))


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (1, 4), (0, 4, 3, 3)])
def test_groups_without_spread_give_the_bias(shape):
    norm = GroupNorm(4, 4, dtype=torch.float64)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    expected = norm.bias.detach().reshape(1, 4, *(1 for _ in shape[2:])).expand(shape)
    torch.testing.assert_close(y.detach(), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-12, rtol=0)


def test_masked_elements_do_not_count():
    norm, x = GroupNorm(4, 2), torch.randn(2, 4, 9)
    mask = torch.ones(2, 1, 9)
    mask[0, :, 5:] = 0
    torch.testing.assert_close(norm(x, mask=mask)[:1, :, :5], norm(x[:1, :, :5]))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((32, 64), ValueError, r"GroupNorm\(64, 32\)"),
        ((1, 64), ValueError, r"GroupNorm\(64, 1\)"),
        ((16,), ValueError, r"one of 1, 2, 4, 8, 16\), got 32"),
        ((6, 4), ValueError, r"one of 1, 2, 3, 6\), got 4"),
        ((6, 0), ValueError, "got 0"),
        ((6, 2.0), TypeError, "num_groups to be an int, got 2.0"),
    ],
)
def test_wrong_groups_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        GroupNorm(*arguments)
