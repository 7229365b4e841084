from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.norms import BatchNorm, RepresentativeBatchNorm


def calibrated(**arguments) -> RepresentativeBatchNorm:
    norm = RepresentativeBatchNorm(3, **arguments)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_x_stays_as_it_is_and_may_be_a_leaf():
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    before = x.detach().clone()
    calibrated()(x).sum().backward()
    assert torch.equal(x, before)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_moments_are_those_of_the_calibrated_input(momentum):
    norm, plain = calibrated(momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5) + 2
        norm(x)
        plain(x + norm.center_weight.detach().view(3, 1, 1) * x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert int(norm.num_batches_tracked) == 3


def test_without_running_stats_evaluation_is_training():
    norm, x = calibrated(track_running_stats=False), torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(norm(x), norm.eval()(x))


def test_starts_as_a_fraction_of_the_batch_norm_whose_checkpoint_it_loads():
    source, norm = BatchNorm(3), RepresentativeBatchNorm(3)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    source(torch.randn(4, 3, 5, 5) * 3)
    nn.init.zeros_(source.bias)
    result = norm.load_state_dict(source.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert sorted(result.missing_keys) == ["center_weight", "scale_bias", "scale_weight"]
    x = torch.randn(4, 3, 5, 5)
    for train in (False, True):
        expected = source.train(train)(x) * torch.sigmoid(torch.tensor(1.0))
        torch.testing.assert_close(norm.train(train)(x), expected)


def test_is_no_batch_norm_that_tools_convert():
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(RepresentativeBatchNorm(3)), RepresentativeBatchNorm)


@pytest.mark.parametrize("training", [True, False])
def test_start_batch_is_batch_norm_with_a_live_gate(training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    norm = RepresentativeBatchNorm(6, dtype=torch.float64, start="batch").train(training)
    batch = torch.nn.BatchNorm2d(6, dtype=torch.float64).train(training)
    torch.testing.assert_close(norm(x), batch(x), rtol=1e-12, atol=1e-12)
    norm(x).square().sum().backward()
    assert norm.scale_bias.grad is not None and norm.scale_bias.grad.abs().min() > 1e-3
    with pytest.raises(ValueError, match="expected start"):
        RepresentativeBatchNorm(6, start="identity")
