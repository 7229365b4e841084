"""The algebra of moments and affines against torch on the data itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, distributed

from ranks import on_ranks
from shiftnorm.ops import Affine, Moments, apply, moments


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 6, 5, 7, dtype=torch.float64) * 3 + 2


def close(m: Moments, data: Tensor, dims: tuple[int, ...]) -> None:
    torch.testing.assert_close(m.mean.squeeze(), data.mean(dims))
    torch.testing.assert_close(m.var.squeeze(), data.var(dims, correction=0))
    torch.testing.assert_close(m.unbiased.squeeze(), data.var(dims))


def test_planes(x: Tensor) -> None:
    close(moments(x), x, (2, 3))


def test_pooled_over_the_batch_and_over_channels(x: Tensor) -> None:
    close(moments(x).pooled(over="batch"), x, (0, 2, 3))
    close(moments(x).pooled(over="channels"), x, (1, 2, 3))


def test_pooled_over_groups(x: Tensor) -> None:
    m = moments(x).pooled(over="groups", groups=3)
    grouped = x.reshape(4, 3, 2, 5, 7)
    assert m.mean.shape == (4, 6)
    torch.testing.assert_close(m.mean[:, ::2], grouped.mean((2, 3, 4)))
    torch.testing.assert_close(m.unbiased[:, 1::2], grouped.var((2, 3, 4)))
    assert m.count == 70


def test_permuted_through_then(x: Tensor) -> None:
    index = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(moments(x).permuted(index).mean, moments(x[index]).mean)
    first = Affine(torch.rand(4, 6, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64))
    second = Affine(torch.rand(1, 6, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64))
    m = moments(x)
    y = apply(x, m, first)
    close(m.through(first), y, (2, 3))
    torch.testing.assert_close(apply(y, moments(y), second), apply(x, m, first.then(second)))


def test_counts_that_differ_between_samples(x: Tensor) -> None:
    mask = torch.rand(4, 1, 5, 7) > 0.4
    m = moments(x, mask)
    groups = m.pooled(over="groups", groups=2)
    inside = mask.expand_as(x)
    torch.testing.assert_close(groups.mean[1, 0], x[1, :3][inside[1, :3]].mean())
    torch.testing.assert_close(groups.unbiased[1, 0], x[1, :3][inside[1, :3]].var())
    layer = m.pooled(over="channels")
    torch.testing.assert_close(layer.var[2, 0], x[2][inside[2]].var(correction=0))
    permuted = m.permuted(torch.tensor([1, 0, 2, 3]))
    torch.testing.assert_close(permuted.count[0], m.count[1])


def test_single_elements_have_no_spread() -> None:
    m = moments(torch.randn(3, 2, 1, 1))
    assert torch.equal(m.unbiased, torch.zeros(3, 2))
    close(m.pooled(over="batch"), m.mean, (0,))


def test_errors() -> None:
    m = moments(torch.randn(2, 6, 3))
    with pytest.raises(ValueError, match="divide the 6 channels, got 4"):
        m.pooled(over="groups", groups=4)
    with pytest.raises(ValueError, match="'batch', 'channels' or 'groups', got 'batches'"):
        m.pooled(over="batches")


def _pool(rank: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    pooled = moments(x.requires_grad_()).pooled(over="batch", process_group=distributed.group.WORLD)
    weight = torch.arange(1.0, 4.0, dtype=torch.float64)
    # Every rank's loss is a part of the total, as in distributed training.
    ((rank + 1) * ((pooled.mean * weight).sum() + (pooled.unbiased * weight).sum())).backward()
    return pooled.mean.detach(), pooled.unbiased.detach(), x.grad


def test_pooled_over_ranks_equals_one_batch() -> None:
    shards = [torch.randn(3, 3, 4, dtype=torch.float64), torch.randn(1, 3, 4, dtype=torch.float64) + 2]
    got = on_ranks(_pool, shards)
    x = torch.cat(shards).requires_grad_()
    weight = torch.arange(1.0, 4.0, dtype=torch.float64)
    (3 * ((x.mean((0, 2)) * weight).sum() + (x.var((0, 2)) * weight).sum())).backward()
    for rank in (0, 1):
        torch.testing.assert_close(got[rank][0][0], x.mean((0, 2)).detach())
        torch.testing.assert_close(got[rank][1][0], x.var((0, 2)).detach())
    torch.testing.assert_close(torch.cat([got[0][2], got[1][2]]), x.grad)
