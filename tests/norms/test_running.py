"""Sources of batch moments, against torch's own BatchNorm where it has them."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from shiftnorm.norms import AttentiveNorm, BatchNorm, MixtureNorm, RunningMoments, SelfNorm, SwitchNorm
from shiftnorm.ops import choose, use_backend

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("momentum", [0.1, 0.7, None, 0.0])
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("own", [True, False], ids=["own", "best"])
def test_a_training_run_is_torchs(
    momentum: float | None, memory_format: torch.memory_format, affine: bool, track: bool, own: bool
) -> None:
    arguments = dict(momentum=momentum, affine=affine, track_running_stats=track)
    ours, theirs = BatchNorm(6, **arguments), nn.BatchNorm2d(6, **arguments)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(4):
        x = (torch.randn(5, 6, 4, 7) * 2 + 1).contiguous(memory_format=memory_format)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        g = torch.randn_like(x)
        with use_backend(choose(x).name) if own else nullcontext():
            got, want = ours(mine), theirs(other)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            torch.autograd.grad(got, mine, g), torch.autograd.grad(want, other, g), rtol=1e-3, atol=1e-4
        )
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def trained() -> BatchNorm:
    norm = BatchNorm(4).double()
    for _ in range(3):
        norm(torch.randn(8, 4, 5, 5, dtype=torch.float64) * 3 + 2)
    return norm.eval()


def test_sources() -> None:
    norm = trained()
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    before = copy.deepcopy(norm.state_dict())
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))

    def by(mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return (x - mean[:, None, None]) / (var + norm.eps).sqrt()[:, None, None]

    norm.source = "batch"
    torch.testing.assert_close(norm(x), by(mean, x.var((0, 2, 3), correction=0)))
    norm.source, norm.source_weight = "blend", 0.25
    r_mean, r_var = norm.running_mean, norm.running_var
    torch.testing.assert_close(norm(x), by(0.25 * r_mean + 0.75 * mean, 0.25 * r_var + 0.75 * var))
    norm.source = "running"
    torch.testing.assert_close(norm.train()(x), by(r_mean, r_var))
    for name, value in before.items():
        assert torch.equal(norm.state_dict()[name], value), name
    norm.eval().source = "ema"
    moved_mean, moved_var = 0.9 * r_mean + 0.1 * mean, 0.9 * r_var + 0.1 * var
    torch.testing.assert_close(norm(x), by(moved_mean, moved_var))
    torch.testing.assert_close(norm.running_var, moved_var)
    assert norm.num_batches_tracked == 4


def test_every_pooling_norm_can_be_switched_without_naming_it() -> None:
    model = nn.Sequential(BatchNorm(4), SelfNorm(4)).eval()
    x = torch.randn(6, 4, 5, 5) * 4
    source = model(x)
    for module in model.modules():
        if isinstance(module, RunningMoments):
            module.source = "batch"
    assert not torch.allclose(model(x), source)


def test_source_survives_eval_copies_and_mode_changes() -> None:
    norm = trained()
    norm.source = "blend"
    assert copy.deepcopy(norm).source == "blend"
    assert norm.train().eval().source == "blend"


def test_evaluation_then_training_then_backward() -> None:
    for norm in (BatchNorm(4), SelfNorm(4, momentum=None), BatchNorm(4, momentum=None)):
        x = torch.randn(6, 4, 5, 5, requires_grad=True)
        total = norm.eval()(x).square().sum() + norm.train()(x).square().sum()
        total.backward()
        assert torch.isfinite(x.grad).all()


def test_a_mask_that_leaves_nothing_says_nothing() -> None:
    for momentum in (0.1, None):
        norm = BatchNorm(3, momentum=momentum)
        norm(torch.randn(2, 3, 5), mask=torch.zeros(2, 1, 5))
        assert torch.equal(norm.running_mean, torch.zeros(3))
        assert torch.equal(norm.running_var, torch.ones(3))
        assert norm.num_batches_tracked == 0


def test_norms_that_never_pool_take_every_source() -> None:
    for norm in (SwitchNorm(4, using_bn=False), AttentiveNorm(4, num_pairs=2, base="group", num_groups=2)):
        x = torch.randn(3, 4, 5, 5)
        before = norm.eval()(x)
        norm.source = "running"
        torch.testing.assert_close(norm(x), before)


def test_errors() -> None:
    norm = BatchNorm(4, track_running_stats=False)
    with pytest.raises(ValueError, match="needs running moments"):
        norm.source = "blend"
    with pytest.raises(ValueError, match="got 'bach'"):
        norm.source = "bach"
    with pytest.raises(ValueError, match=r"value in \[0, 1\], got 1.5"):
        BatchNorm(4).source_weight = 1.5
    with pytest.raises(ValueError, match="expected momentum"):
        BatchNorm(4, momentum=2.0)
    for memory_format in FORMATS:
        with pytest.raises(ValueError, match=r"more than (one|1) value per channel"):
            BatchNorm(4)(torch.zeros(1, 4, 1, 1).contiguous(memory_format=memory_format))


def test_checkpoints_without_a_counter_load() -> None:
    state = dict(nn.BatchNorm2d(4).state_dict())  # a plain dict has lost the version, as the oldest files have
    del state["num_batches_tracked"]
    norm = BatchNorm(4)
    norm.load_state_dict(state)
    assert norm.num_batches_tracked == 0
    new = norm.state_dict()
    del new["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        norm.load_state_dict(new)


def test_empty_batches_do_not_count() -> None:
    norm = BatchNorm(4)
    y = norm(torch.zeros(0, 4, 3, 3, requires_grad=True))
    y.sum().backward()
    assert norm.num_batches_tracked == 0
    assert torch.isfinite(norm.weight.grad).all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_torchs_kernel_is_not_given_a_single_value_per_channel(momentum: float | None) -> None:
    for shape in ((1, 4), (1, 4, 1, 1)):
        norm = BatchNorm(4, momentum=momentum)
        assert norm.native_batch_norm(torch.randn(shape), norm.weight, norm.bias, norm.eps) is None
        with pytest.raises(ValueError, match="more than one value per channel"):
            norm(torch.randn(shape))
        assert norm.num_batches_tracked == 0
        assert torch.equal(norm.running_var, torch.ones(4))


def test_cumulative_averages_have_the_buffers_precision() -> None:
    norms = BatchNorm(3, momentum=None).double(), MixtureNorm(3, momentum=None, num_components=1).double()
    batches = torch.randn(7, 5, 3, 4, dtype=torch.float64) * 3 + 2
    for batch in batches:
        for norm in norms:
            norm(batch)
    for norm in norms:
        want = batches.mean((0, 1, 3)), batches.var((1, 3)).mean(0)
        for got, value in zip((norm.running_mean, norm.running_var), want, strict=True):
            torch.testing.assert_close(got.reshape(3), value, rtol=1e-13, atol=1e-13)


def test_self_norm_trains_on_a_single_sample_by_running_moments() -> None:
    norm = SelfNorm(4)
    before = copy.deepcopy(norm.state_dict())
    y = norm(torch.randn(1, 4, 5, 5))
    assert torch.isfinite(y).all()
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("attention", ["channel", "mixing"])
@pytest.mark.parametrize("two_branches", [False, True])
def test_self_norm_may_start_at_the_identity(attention: str, two_branches: bool) -> None:
    x = torch.randn(6, 32, 5, 5)
    norm = SelfNorm(32, attention=attention, two_branches=two_branches, start="identity")
    torch.testing.assert_close(norm(x), x)
    norm(x).square().sum().backward()
    assert norm.gate.weight.grad.abs().max() > 0
    halved = SelfNorm(32, attention=attention)(x)
    assert 0.3 < (halved.std() / x.std()) < 0.7


def test_self_norm_mixing_lets_channels_talk() -> None:
    x = torch.randn(6, 8, 5, 5, dtype=torch.float64)
    louder = x.clone()
    louder[:3, 0] *= 5
    for attention, talks in (("channel", False), ("mixing", True)):
        norm = SelfNorm(8, attention=attention, reduction=2).double()
        difference = (norm(louder) - norm(x)).abs().amax((0, 2, 3))
        assert (difference[1:].max() > 1e-9) == talks
    with pytest.raises(ValueError, match="is ours"):
        SelfNorm(8, attention="mixing").to_official()
    with pytest.raises(ValueError, match="expected attention"):
        SelfNorm(8, attention="none")
