from __future__ import annotations

import math

import pytest
import torch

from shiftnorm.evaluate.metrics import compare_paired, error, mean_corruption_error, summarize


def test_error_counts_wrong_rows():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 5.0], [9.0, 1.0, 2.0]])
    assert error(logits, torch.tensor([0, 1, 2, 0])) == 0.0
    assert error(logits, torch.tensor([0, 1, 0, 1])) == 50.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "expected logits"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "N >= 1"),
        (torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]), "NaN"),
    ],
    ids=["lengths", "empty", "nan"],
)
def test_error_refuses(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        error(logits, labels)


def test_mean_corruption_error_is_the_plain_mean():
    # (10 + 20 + 30) / 3 = 20 and (40 + 50 + 60) / 3 = 50; their mean is 35
    assert mean_corruption_error({"fog": [10, 20, 30], "noise": [40, 50, 60]}) == 35.0


@pytest.mark.parametrize("errors", [{}, {"fog": []}, {"fog": [1.0], "noise": [1.0, 2.0]}])
def test_mean_corruption_error_refuses_an_uneven_grid(errors):
    with pytest.raises(ValueError, match="same severities"):
        mean_corruption_error(errors)


def test_summarize_by_hand():
    summary = summarize([2.0, 4.0, 9.0])
    assert summary.mean == 5.0
    assert summary.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert (summary.low, summary.high, summary.range, summary.count) == (2.0, 9.0, 7.0, 3)
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_paired_difference_by_hand():
    # differences -10, -12: mean -11, standard deviation sqrt(2), half-width 12.70620474 · sqrt(2) / sqrt(2)
    difference = compare_paired({0: 30.0, 1: 31.0, 7: 99.0}, {0: 40.0, 1: 43.0, 5: 0.0})
    assert difference is not None and difference.interval is not None
    assert (difference.mean, difference.count) == (-11.0, 2)
    assert difference.interval == pytest.approx((-11 - 12.70620474, -11 + 12.70620474), rel=1e-8)
    assert difference.exceeds_spread is True  # 11 > max(31 - 30, 43 - 40)


@pytest.mark.parametrize(
    ("values", "reference", "expected"),
    [
        ({0: 39.0, 1: 36.0}, {0: 40.0, 1: 40.0}, False),  # mean difference -2.5, range 3
        ({0: 36.0, 1: 36.0}, {0: 40.0, 1: 45.0}, True),  # mean difference -6.5, range 5
        ({0: 36.0, 1: 36.0}, {0: 36.0, 1: 36.0}, False),
        ({0: 36.0}, {0: 40.0}, None),
    ],
)
def test_exceeds_spread(values, reference, expected):
    difference = compare_paired(values, reference)
    assert difference is not None
    assert difference.exceeds_spread is expected


def test_no_common_seed():
    assert compare_paired({0: 1.0}, {1: 1.0}) is None
