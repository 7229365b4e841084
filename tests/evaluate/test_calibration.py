from __future__ import annotations

import math

import pytest
import torch

from shiftnorm.evaluate.calibration import (
    adaptive_reliability,
    expected_calibration_error,
    mad_calibration_error,
    reliability,
    rms_calibration_error,
)


@pytest.fixture
def measured() -> tuple[torch.Tensor, torch.Tensor]:
    """1,050 images of a network that is too sure."""
    confidence = torch.rand(1050) * 0.9 + 0.1
    return confidence, torch.rand(1050) < confidence**1.5


def by_bins(confidence, correct, *, skip_last=False, size=100) -> tuple[float, float]:
    """RMS and MAD as loops over sorted bins, in percent."""
    order = confidence.argsort()
    pairs = list(zip(confidence[order].tolist(), correct[order].tolist(), strict=True))
    count = max(len(pairs) // size, 1)
    bins = [pairs[i * size : (i + 1) * size if i < count - 1 else None] for i in range(count)]
    square = absolute = 0.0
    for found in bins[:-1] if skip_last else bins:
        gap = sum(c for c, _ in found) / len(found) - sum(r for _, r in found) / len(found)
        square += len(found) / len(pairs) * gap**2
        absolute += len(found) / len(pairs) * abs(gap)
    return 100 * math.sqrt(square), 100 * absolute


def test_ece_by_hand():
    # bins (0, .5] and (.5, 1]: 2 of 5 images, gap |.4 - .5|; 3 of 5, gap |.8 - 2/3|
    confidence = torch.tensor([0.3, 0.5, 0.7, 0.8, 0.9])
    correct = torch.tensor([True, False, True, True, False])
    expected = 100 * (2 / 5 * 0.1 + 3 / 5 * (0.8 - 2 / 3))
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_that_of_torchmetrics(bins):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = 2 * torch.randn(2000, 6), torch.randint(6, (2000,))
    confidence, predicted = logits.softmax(1).max(1)
    expected = functional.multiclass_calibration_error(logits, labels, 6, n_bins=bins, norm="l1").item()
    found = expected_calibration_error(confidence, predicted == labels, bins)
    assert found == pytest.approx(100 * expected, abs=1e-3)


def test_rms_and_mad_by_bins(measured):
    rms, mad = by_bins(*measured)
    assert rms_calibration_error(*measured) == pytest.approx(rms, abs=1e-5)
    assert mad_calibration_error(*measured) == pytest.approx(mad, abs=1e-5)


def test_compat_leaves_the_surest_bin_out(measured):
    rms, mad = by_bins(*measured, skip_last=True)
    assert rms_calibration_error(*measured, compat="hendrycks") == pytest.approx(rms, abs=1e-5)
    assert mad_calibration_error(*measured, compat="hendrycks") == pytest.approx(mad, abs=1e-5)
    assert rms < rms_calibration_error(*measured)


def test_compat_of_a_single_bin_is_zero_and_of_fewer_images_an_error():
    confidence, correct = torch.full((150,), 0.9), torch.zeros(150, dtype=torch.bool)
    assert rms_calibration_error(confidence, correct) == pytest.approx(90.0)
    assert rms_calibration_error(confidence, correct, compat="hendrycks") == 0.0
    with pytest.raises(ValueError, match="at least bin_size=100 images, got 99"):
        mad_calibration_error(confidence[:99], correct[:99], compat="hendrycks")
    assert mad_calibration_error(confidence[:99], correct[:99]) == pytest.approx(90.0)
    with pytest.raises(ValueError, match="'hendrycks', got 'guo'"):
        rms_calibration_error(confidence, correct, compat="guo")


def test_the_last_adaptive_bin_takes_the_rest(measured):
    bins = adaptive_reliability(*measured)
    assert bins.count.tolist() == [100] * 9 + [150]
    assert bool((bins.upper[:-1] <= bins.lower[1:]).all())
    assert bool(((bins.lower <= bins.confidence) & (bins.confidence <= bins.upper)).all())


def test_equal_width_bins_hold_every_image_once():
    confidence = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 1.0 + 1e-6], dtype=torch.float64)
    bins = reliability(confidence, torch.ones(5).bool(), bins=3)
    assert bins.count.tolist() == [2, 1, 2]  # (0, 1/3], (1/3, 2/3], (2/3, 1], and 0 in the first
    assert bins.share.sum().item() == pytest.approx(1.0)
    empty = reliability(torch.tensor([0.9]), torch.tensor([True]), bins=3)
    assert empty.gap.tolist() == pytest.approx([0.0, 0.0, -0.1]) and empty.accuracy[0].isnan()


def test_a_calibrated_network_has_no_error():
    confidence = torch.full((400,), 0.75)
    correct = torch.arange(400) % 4 > 0
    assert expected_calibration_error(confidence, correct) == 0.0
    assert rms_calibration_error(confidence, correct) == 0.0


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (torch.tensor([3.5]), torch.tensor([True]), "not the logit"),
        (torch.tensor([math.nan]), torch.tensor([True]), "from 0 to 1"),
        (torch.tensor([]), torch.tensor([]).bool(), "N >= 1"),
        (torch.tensor([0.5]), torch.tensor([True, False]), "same shape"),
    ],
)
def test_what_is_no_confidence_is_refused(confidence, correct, message):
    for metric in (expected_calibration_error, rms_calibration_error):
        with pytest.raises(ValueError, match=message):
            metric(confidence, correct)


def test_bins_and_sizes_are_checked():
    with pytest.raises(ValueError, match="at least 1 bin"):
        reliability(torch.tensor([0.5]), torch.tensor([True]), bins=0)
    with pytest.raises(ValueError, match="bin size of at least 1"):
        adaptive_reliability(torch.tensor([0.5]), torch.tensor([True]), 0)
