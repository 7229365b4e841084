from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from shiftnorm.norms import BatchNorm, SwitchNorm


def only(norm: SwitchNorm, part: int) -> SwitchNorm:
    for weight in (norm.mean_weight, norm.var_weight):
        nn.init.constant_(weight, -1e4)
        weight.data[part] = 1e4
    return norm


def unbiased_planes(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over ``dim`` of (N, C) planes as SwitchNorm defines them."""
    var, mean = torch.var_mean(x.flatten(2), 2)
    pooled = mean.mean(dim, keepdim=True)
    return pooled, (var + mean.square()).mean(dim, keepdim=True) - pooled.square()


@pytest.mark.parametrize("part", [0, 1, 2], ids=["in", "ln", "bn"])
def test_each_part_alone(part):
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 2 + 1
    mean, var = (x.mean((2, 3)), x.var((2, 3))) if part == 0 else unbiased_planes(x, 2 - part)
    expected = (x - mean[..., None, None]) / (var[..., None, None] + 1e-5).sqrt()
    torch.testing.assert_close(only(SwitchNorm(3).double(), part)(x), expected)


def test_1d_form_mixes_unbiased_layer_and_batch_moments():
    norm, x = SwitchNorm(6, using_in=False, momentum=1.0).double(), torch.randn(4, 6, dtype=torch.float64)
    assert norm.mean_weight.shape == norm.var_weight.shape == (2,)
    mean = (x.mean(1, keepdim=True) + x.mean(0)) / 2
    var = (x.var(1, keepdim=True) + x.var(0)) / 2
    torch.testing.assert_close(norm(x), (x - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(norm.running_var, x.var(0))


def test_running_moments_keep_the_mixed_variance_with_torchs_momentum():
    norm, x = SwitchNorm(3, momentum=0.25).double(), torch.randn(4, 3, 5, dtype=torch.float64) + 2
    norm(x)
    mean, var = unbiased_planes(x, 0)
    torch.testing.assert_close(norm.running_mean, 0.25 * mean[0])
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * var[0])


def test_sources():
    norm = SwitchNorm(3).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(1, 2)
    x = torch.randn(4, 3, 5, 5)
    by_running = norm(x)
    norm.source, norm.source_weight = "blend", 1.0
    torch.testing.assert_close(norm(x), by_running)
    norm.source_weight = 0.0
    by_batch = norm(x)
    norm.source = "batch"
    torch.testing.assert_close(norm(x), by_batch)
    torch.testing.assert_close(copy.deepcopy(norm).train()(x), by_batch)
    norm.source, norm.momentum = "ema", 1.0
    torch.testing.assert_close(norm(x), by_batch)


@pytest.mark.parametrize("using_in", [True, False])
def test_average_over_batches_is_right_before_and_after_it_is_finished(using_in):
    norm = SwitchNorm(3, using_moving_average=False, using_in=using_in).double()
    batches = [torch.randn(8, 3, dtype=torch.float64) * (k + 1) + k for k in range(4)]
    batches = [x[..., None].expand(-1, -1, 5) + torch.randn(8, 3, 5) for x in batches] if using_in else batches
    for x in batches:
        norm(x)
    if using_in:
        means, variances = (torch.cat(parts) for parts in zip(*(unbiased_planes(x, 0) for x in batches), strict=True))
    else:
        means, variances = torch.stack([x.mean(0) for x in batches]), torch.stack([x.var(0) for x in batches])
    mean = means.mean(0)
    var = (variances + means.square()).mean(0) - mean.square()
    unfinished = norm.eval()(batches[0])

    by_hand = SwitchNorm(3, using_in=using_in).double().eval()
    by_hand.running_mean.copy_(mean)
    by_hand.running_var.copy_(var)
    torch.testing.assert_close(unfinished, by_hand(batches[0]))

    norm.finish_average()
    torch.testing.assert_close(norm.running_var, var)
    torch.testing.assert_close(norm(batches[0]), unfinished)
    resumed = SwitchNorm(3, using_moving_average=False, using_in=using_in).double().eval()
    resumed.load_state_dict(norm.state_dict())
    torch.testing.assert_close(resumed(batches[0]), unfinished)

    norm.train()(batches[1])
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * means[1])


def test_average_of_an_already_trained_norm():
    norm, x = SwitchNorm(3), torch.randn(4, 3, 5) + 7
    norm(x - 20)
    norm.start_average()
    for _ in range(2):
        norm(x)
    norm.finish_average()
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2)))


def test_average_refuses_what_would_be_wrong():
    norm, x = SwitchNorm(3, using_moving_average=False), torch.randn(4, 3, 5)
    with pytest.raises(ValueError, match="expected a training batch since start_average"):
        norm.finish_average()
    norm.source = "blend"
    with pytest.raises(ValueError, match=r"'blend' needs running moments.*finish_average first"):
        norm(x)
    with pytest.raises(ValueError, match="call start_average first"):
        SwitchNorm(3).finish_average()
    with pytest.raises(ValueError, match="this norm keeps none"):
        SwitchNorm(3, using_bn=False).start_average()


def test_without_batch_norm_samples_are_independent_and_nothing_is_kept():
    norm, x = SwitchNorm(3, using_bn=False), torch.randn(4, 3, 5, 5)
    assert not list(norm.buffers())
    torch.testing.assert_close(norm(x)[1:2], norm.eval()(x[1:2]))
    with pytest.raises(ValueError, match="got neither"):
        SwitchNorm(3, using_bn=False, using_in=False)


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (1, 3, 1, 1), (1, 3, 4, 4), (4, 3)])
def test_degenerate_planes_are_finite(shape):
    norm, x = SwitchNorm(3), torch.randn(shape, requires_grad=True)
    norm(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in [*norm.buffers(), *(p.grad for p in norm.parameters())])


def test_last_gamma_starts_at_zero():
    assert not SwitchNorm(3, last_gamma=True)(torch.randn(4, 3, 5)).any()


@pytest.mark.parametrize(
    ("using_in", "rank", "running"), [(True, 4, (1, 3, 1)), (True, 5, (1, 3, 1)), (False, 2, (1, 3))]
)
def test_official_shapes_of_every_rank(using_in, rank, running):
    parts = 3 if using_in else 2
    affine = (1, 3, *[1] * (rank - 2))
    shapes = {"weight": affine, "bias": affine, "running_mean": running, "running_var": running}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    state |= {"mean_weight": torch.randn(parts), "var_weight": torch.randn(parts)}
    norm = SwitchNorm(3, using_in=using_in)
    norm.load_state_dict(norm.from_official(state))
    back = norm.to_official()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_batch_norm_checkpoint_loads():
    source, norm = BatchNorm(3), SwitchNorm(3)
    source(torch.randn(4, 3, 5) + 3)
    assert norm.load_state_dict(source.state_dict(), strict=False).missing_keys == ["mean_weight", "var_weight"]
    assert torch.equal(norm.running_mean, source.running_mean)


def test_start_batch_is_close_to_batch_norm() -> None:
    torch.manual_seed(0)
    x = 2 + torch.randn(8, 6, 9, 9)
    batch = torch.nn.BatchNorm2d(6).eval()
    batch.running_mean.normal_()
    batch.running_var.uniform_(0.5, 2.0)
    norm = SwitchNorm(6, start="batch").eval()
    missing, unexpected = norm.load_state_dict(batch.state_dict(), strict=False)
    assert set(missing) == {"mean_weight", "var_weight"} and not unexpected
    assert (norm(x) - batch(x)).abs().max() < 1e-3
    with pytest.raises(ValueError, match="using_bn=True"):
        SwitchNorm(6, using_bn=False, start="batch")
