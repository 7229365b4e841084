from __future__ import annotations

import math

import pytest
import torch

from shiftnorm.evaluate.bootstrap import bootstrap, wilson_interval
from shiftnorm.evaluate.cells import CLEAN
from shiftnorm.evaluate.corruption_error import cell_weights


@pytest.fixture
def correlated() -> torch.Tensor:
    """Errors of 600 images in 20 cells; a hard image is hard in all of them."""
    hardness = torch.rand(600)
    return 100.0 * (torch.rand(20, 600) < hardness).float()


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("skewed", [False, True])
def test_interval_is_that_of_scipy(method, skewed):
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(80, dtype=torch.float64)
    values = values.exp() if skewed else values
    theirs = stats.bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis), n_resamples=20000, method=method, rng=0, batch=1000
    ).confidence_interval
    ours = bootstrap(values, resamples=20000, method=method)
    assert ours.estimate == pytest.approx(values.mean().item())
    tolerance = 0.03 * (theirs.high - theirs.low)
    assert ours.low == pytest.approx(theirs.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.high, abs=tolerance)


def test_interval_of_one_cell_is_about_the_normal_one():
    errors = 100.0 * (torch.arange(10_000) % 5 == 0).float()
    half = 1.96 * 100 * math.sqrt(0.2 * 0.8 / 10_000)
    for strata in ("images", "cells"):
        interval = bootstrap(errors, strata=strata, resamples=4000)
        assert interval.low == pytest.approx(20 - half, abs=0.06)
        assert interval.high == pytest.approx(20 + half, abs=0.06)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(method):
    held = 0
    for trial in range(200):
        errors = 100.0 * (torch.rand(120) < 0.25).float()
        interval = bootstrap(errors, resamples=400, level=0.9, method=method, seed=trial)
        held += interval.low <= 25.0 <= interval.high
    assert 0.83 <= held / 200 <= 0.96


def test_images_are_drawn_with_all_their_cells(correlated):
    # the truth for the mean over cells: the spread of the images' own means
    half = 1.96 * correlated.mean(0).std().item() / math.sqrt(600)
    joint = bootstrap(correlated)
    assert joint.width == pytest.approx(2 * half, rel=0.08)
    assert bootstrap(correlated, strata="cells").width < 0.5 * joint.width


def test_cells_of_graded_values_are_drawn_one_by_one_too():
    values = torch.rand(2, 300)
    interval = bootstrap(values, strata="cells", resamples=3000)
    half = 1.96 * math.sqrt(values.var(1).sum().item() / 300) / 2
    assert interval.width == pytest.approx(2 * half, rel=0.1)


def test_weights_and_functions_say_the_same(correlated):
    weights = cell_weights([CLEAN, *(("fog", s) for s in range(1, 20))], "mean_corruption_error")
    one = bootstrap(correlated, weights, resamples=300)
    other = bootstrap(correlated, lambda means: means[..., 1:].mean(-1), resamples=300)
    assert one == pytest.approx(other)


def test_a_statistic_that_is_not_linear():
    values = torch.stack([100.0 * (torch.rand(400) < p).float() for p in (0.1, 0.2, 0.6)])
    interval = bootstrap(values, lambda means: means.amax(-1))
    assert interval.estimate == pytest.approx(values[2].mean().item())
    assert interval.low < interval.estimate < interval.high


def test_seeds_are_drawn_as_well():
    images = 100.0 * (torch.rand(1, 3, 500) < 0.3).float()
    alike = images.expand(10, 3, 500)
    unlike = alike + 8 * torch.randn(10, 1, 1)
    assert bootstrap(alike).width == pytest.approx(bootstrap(images).width, rel=0.1)
    expected = 2 * 1.96 * unlike.mean((1, 2)).std().item() * math.sqrt(0.9 / 10)
    assert bootstrap(unlike).width == pytest.approx(math.hypot(expected, bootstrap(images).width), rel=0.15)


def test_the_seed_decides_the_draws(correlated):
    assert bootstrap(correlated, resamples=200) == bootstrap(correlated, resamples=200)
    assert bootstrap(correlated, resamples=200) != bootstrap(correlated, resamples=200, seed=1)
    before = torch.get_rng_state()
    bootstrap(correlated, resamples=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_error_at_all_has_no_width_but_wilsons_interval_has():
    assert bootstrap(torch.zeros(3, 50)) == (0.0, 0.0, 0.0, 0.95)
    assert bootstrap(torch.zeros(3, 50), strata="cells").width == 0.0
    assert wilson_interval(0, 50).high > 5 and wilson_interval(50, 50).low < 95


@pytest.mark.parametrize(("wrong", "count"), [(0, 10), (1, 10), (37, 100), (10, 10), (2500, 10_000)])
def test_wilson_is_that_of_scipy(wrong, count):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(wrong, count).proportion_ci(method="wilson")
    ours = wilson_interval(wrong, count)
    assert (ours.low, ours.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-6)


def test_wilson_refuses():
    with pytest.raises(ValueError, match="0 <= wrong <= count"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        (torch.zeros(1), {}, "at least 2 images"),
        (torch.zeros(0, 5), {}, "at least 2 images"),
        (torch.zeros(1, 1, 1, 5), {}, "expected \\(N,\\)"),
        (torch.tensor([math.nan, 1.0]), {}, "finite values"),
        (torch.zeros(5), {"resamples": 0}, "at least 1 resample"),
        (torch.zeros(5), {"level": 1.0}, "level between 0 and 1"),
        (torch.zeros(5), {"method": "basic"}, "'bca' or 'percentile'"),
        (torch.zeros(2, 3, 5), {"strata": "cells"}, "one seed"),
        (torch.zeros(3, 5), {"statistic": torch.ones(2)}, "one weight per cell, 3, got \\(2,\\)"),
        (torch.zeros(3, 5), {"statistic": lambda means: means.mean()}, "Reduce the last axis only"),
    ],
)
def test_bootstrap_refuses(values, arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(values, **arguments)
