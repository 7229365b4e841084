from __future__ import annotations

import math

import pytest
import torch

from shiftnorm.evaluate.paired import adjust_holm, compare_images, compare_seeds, mcnemar


def split(only_first: int, only_second: int, both: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    first = torch.tensor([True] * only_first + [False] * only_second + [True] * both)
    return first, torch.tensor([False] * only_first + [True] * only_second + [True] * both)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (7, 2), (2, 7), (40, 40), (900, 1100), (5200, 4900)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    result = mcnemar(*split(b, c))
    assert result[:2] == (b, c)
    assert result.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    # 1 of 6: 2 * (1 + 6) / 64
    assert mcnemar(*split(1, 5)).p_value == 14 / 64


def test_mcnemar_refuses():
    with pytest.raises(ValueError, match="two bool tensors"):
        mcnemar(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="N >= 1"):
        mcnemar(*split(0, 0, both=0))


def networks(gain: float, cells: int = 6, images: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of two networks that find the same images hard, the second with `gain` less error."""
    hardness = torch.rand(images)
    first = torch.rand(cells, images) < hardness
    second = torch.rand(cells, images) < (hardness - gain).clamp_min(0)
    return 100.0 * first.float(), 100.0 * second.float()


def test_a_clear_difference_is_found():
    first, second = networks(gain=0.1)
    result = compare_images(first, second)
    assert result.difference == pytest.approx(first.mean().item() - second.mean().item(), abs=1e-4)
    assert result.difference == pytest.approx(result.first - result.second)
    assert 0 < result.low < result.difference < result.high
    assert result.p_value < 0.01
    mirrored = compare_images(second, first)
    assert (mirrored.difference, mirrored.p_value) == pytest.approx((-result.difference, result.p_value), abs=0.01)


def test_pairing_narrows_the_interval():
    from shiftnorm.evaluate.bootstrap import bootstrap

    first, second = networks(gain=0.1)
    unpaired = math.hypot(bootstrap(first).width, bootstrap(second).width)
    paired = compare_images(first, second)
    assert paired.high - paired.low < 0.7 * unpaired


def test_equal_networks_are_seldom_called_different():
    found = sum(compare_images(*networks(gain=0.0, images=100), resamples=199).p_value <= 0.1 for _ in range(150))
    assert 4 <= found <= 27  # 15 expected; binomial bounds at about 0.1 %


def test_the_p_value_of_one_cell_is_about_mcnemars():
    first, second = split(60, 85, both=300)
    expected = mcnemar(first, second).p_value
    result = compare_images(100.0 * (~first).float(), 100.0 * (~second).float(), resamples=20_000)
    assert result.p_value == pytest.approx(expected, abs=0.01)


def test_no_difference_at_all():
    first, _ = networks(gain=0.0)
    result = compare_images(first, first, resamples=100)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_weights_functions_and_seeds():
    first, second = networks(gain=0.1)
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    assert compare_images(first, second, weights, resamples=99) == pytest.approx(
        compare_images(first, second, resamples=99)
    )
    worst = compare_images(first, second, lambda means: means.amax(-1), resamples=99)
    assert worst.difference == pytest.approx((first.mean(1).max() - second.mean(1).max()).item(), abs=1e-3)
    several = compare_images(torch.stack([first] * 3), torch.stack([second] * 3), resamples=500)
    assert several.difference == pytest.approx(compare_images(first, second, resamples=9).difference)


def test_compare_images_refuses():
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
        compare_images(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="compare_images: expected finite"):
        compare_images(torch.zeros(3), torch.full((3,), math.inf))


@pytest.mark.parametrize("n", [2, 3, 4, 7, 10, 35])
def test_t_test_is_that_of_scipy(n):
    stats = pytest.importorskip("scipy.stats")
    first = torch.randn(n, dtype=torch.float64) + 0.5
    second = torch.randn(n, dtype=torch.float64)
    ours = compare_seeds(dict(enumerate(first.tolist())), dict(enumerate(second.tolist())), level=0.9)
    theirs = stats.ttest_rel(first.numpy(), second.numpy())
    bounds = theirs.confidence_interval(0.9)
    assert ours.p_t == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)


def test_sign_flips_by_hand():
    # |±1 ±2 ±3| >= 4 for +++, -++, ---, +--: 4 of 8
    result = compare_seeds({0: -1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert (result.p_flip, result.smallest_p_flip) == (0.5, 0.25)


@pytest.mark.parametrize("n", [5, 12])
def test_sign_flips_are_those_of_scipy(n):
    stats = pytest.importorskip("scipy.stats")
    gap = torch.randn(n, dtype=torch.float64) + 0.4
    theirs = stats.permutation_test(
        (gap.numpy(),), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=math.inf, vectorized=True
    )
    assert compare_seeds(dict(enumerate(gap.tolist())), dict.fromkeys(range(n), 0.0)).p_flip == pytest.approx(
        theirs.pvalue
    )


def test_many_seeds_draw_their_sign_patterns():
    gap = dict.fromkeys(range(20), 1.0)
    result = compare_seeds(gap, dict.fromkeys(range(20), 0.0))
    assert result.p_flip is not None and result.smallest_p_flip is not None
    assert result.smallest_p_flip <= result.p_flip < 1e-3
    assert result.p_t == 0.0  # no spread at all


def test_only_common_seeds_count():
    result = compare_seeds({0: 1.0, 1: 5.0}, {1: 2.0, 7: 0.0})
    assert result == (3.0, None, None, 0.95, None, None, None, 1)
    with pytest.raises(ValueError, match="common seeds"):
        compare_seeds({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="level between 0 and 1"):
        compare_seeds({0: 1.0, 1: 2.0}, {0: 1.0, 1: 3.0}, level=95)


def test_equal_seeds_differ_in_nothing():
    result = compare_seeds({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (result.p_t, result.p_flip, result.low, result.high) == (1.0, 1.0, 0.0, 0.0)


def test_holm_by_hand():
    # 4 * .005, 3 * .01, 2 * .03, 1 * .04 raised to .06
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]
    assert adjust_holm([]) == []
    with pytest.raises(ValueError, match="probabilities"):
        adjust_holm([1.5])
