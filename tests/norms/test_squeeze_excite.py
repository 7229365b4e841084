from __future__ import annotations

import pytest
import torch

from shiftnorm.norms import BatchNorm, Chain, SqueezeExcite


@pytest.mark.parametrize(("channels", "reduction", "bottleneck"), [(32, 16, 2), (8, 16, 1), (10, 4, 2)])
def test_bottleneck(channels, reduction, bottleneck):
    norm = SqueezeExcite(channels, reduction=reduction)
    assert norm.squeeze.weight.shape == (bottleneck, channels)
    assert sorted(norm.to_official()) == ["fc.0.weight", "fc.2.weight"]


def test_gates_samples_independently_of_each_other():
    norm, x = SqueezeExcite(8, reduction=2), torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(norm(x)[1:2], norm(x[1:2]))
    ratio = (norm(x) / x).flatten(2)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4, atol=1e-4)


def test_behind_a_batch_norm_in_a_chain():
    bn, se, x = BatchNorm(8), SqueezeExcite(8, reduction=2), torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(Chain(bn, se)(x), se(bn(x)))


def test_refuses_a_reduction_below_one():
    with pytest.raises(ValueError, match="reduction to be at least 1, got 0"):
        SqueezeExcite(8, reduction=0)
