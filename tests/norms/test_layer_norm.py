"""LayerNorm: over channels and space together, with a weight per channel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.norms import LayerNorm


def test_vectors_get_torch_layer_norm():
    x = torch.randn(5, 8)
    torch.testing.assert_close(LayerNorm(8)(x), nn.LayerNorm(8)(x))


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 4, 5, 3), (2, 4, 2, 3, 4)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_equals_torch_group_norm_of_one_group(shape, channels_last):
    ours, theirs = LayerNorm(4, dtype=torch.float64), nn.GroupNorm(1, 4, dtype=torch.float64)
    nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=torch.float64) + 1
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    gradients = [torch.autograd.grad((norm(x) ** 3).sum(), x)[0] for norm in (ours, theirs)]
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=1e-11)
    assert ours(x).stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_keeps_its_dtype_and_float32_moments(dtype):
    x = (torch.randn(2, 4, 16, 16) + 20).to(dtype)
    y = LayerNorm(4)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, LayerNorm(4)(x.float()).to(dtype))


def test_without_affine_there_is_no_state():
    norm = LayerNorm(4, affine=False)
    y = norm(torch.randn(3, 4, 5) * 7 - 2)
    assert not norm.state_dict()
    torch.testing.assert_close(y.mean((1, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var((1, 2), correction=0), torch.ones(3), atol=1e-5, rtol=0)
