"""Calibration: how far confidence is from accuracy, in bins of equal width or of equal size.

Of an image its confidence is kept and whether it was right, not the probabilities of all classes that torchmetrics'
functions take; tests hold the errors to theirs, and the diagram comes from the same bins.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ReliabilityBins",
    "adaptive_reliability",
    "expected_calibration_error",
    "mad_calibration_error",
    "reliability",
    "rms_calibration_error",
]

BIN_SIZE = 100


class ReliabilityBins(NamedTuple):
    """A reliability diagram: per bin, its bounds, images, mean confidence and accuracy.

    Means are fractions from 0 to 1, in float64, and NaN for a bin without images.

    Example:
        >>> bins = reliability(torch.tensor([0.6, 0.9, 1.0]), torch.tensor([True, False, True]), bins=2)
        >>> bins.count, bins.accuracy
        (tensor([0, 3]), tensor([   nan, 0.6667], dtype=torch.float64))
    """

    lower: Tensor
    upper: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def gap(self) -> Tensor:
        """Confidence minus accuracy per bin, above 0 where the network is too sure; 0 for a bin without images.

        Example:
            >>> reliability(torch.tensor([0.75, 0.75]), torch.tensor([True, False]), bins=1).gap
            tensor([0.2500], dtype=torch.float64)
        """
        return (self.confidence - self.accuracy).nan_to_num(nan=0.0)

    @property
    def share(self) -> Tensor:
        """Share of the images in each bin.

        Example:
            >>> reliability(torch.tensor([0.25, 0.75]), torch.tensor([True, False]), bins=2).share
            tensor([0.5000, 0.5000], dtype=torch.float64)
        """
        return self.count.double() / self.count.sum()


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> ReliabilityBins:
    """The reliability diagram over bins (lower, upper] of equal width; a confidence of 0 is in the first.

    Example:
        >>> reliability(torch.tensor([0.5, 0.75]), torch.tensor([True, True]), bins=2).count
        tensor([1, 1])

    Args:
        confidence: (N,) largest probabilities.
        correct: (N,) bool.
        bins: how many.

    Returns:
        The bins in rising order.

    Raises:
        ValueError: if shapes differ, there is no image, a confidence is outside [0, 1], or bins is below 1.
    """
    confidence, correct = _checked("reliability", confidence, correct)
    if bins < 1:
        raise ValueError(f"reliability: expected at least 1 bin, got {bins}.")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])
    return _summed(place, confidence, correct, edges[:-1], edges[1:])


def adaptive_reliability(confidence: Tensor, correct: Tensor, bin_size: int = BIN_SIZE) -> ReliabilityBins:
    """The reliability diagram over bins of equally many images, sorted by confidence.

    The last bin also takes the rest, so it has up to 2 * bin_size - 1 images. Equal confidences keep their order.

    Example:
        >>> bins = adaptive_reliability(torch.tensor([0.9, 0.5, 0.7, 0.8, 0.6]), torch.ones(5).bool(), bin_size=2)
        >>> bins.count, bins.lower
        (tensor([2, 3]), tensor([0.5000, 0.7000], dtype=torch.float64))

    Args:
        confidence: (N,) largest probabilities.
        correct: (N,) bool.
        bin_size: images in a bin; fewer images in all make one bin.

    Returns:
        The bins in rising order; their bounds are the lowest and highest confidence in them.

    Raises:
        ValueError: if shapes differ, there is no image, a confidence is outside [0, 1], or bin_size is below 1.
    """
    confidence, correct = _checked("adaptive_reliability", confidence, correct)
    if bin_size < 1:
        raise ValueError(f"adaptive_reliability: expected a bin size of at least 1, got {bin_size}.")
    order = confidence.argsort(stable=True)
    confidence, correct = confidence[order], correct[order]
    bins = max(len(confidence) // bin_size, 1)
    place = (torch.arange(len(confidence)) // bin_size).clamp_(max=bins - 1)
    first = torch.arange(bins) * bin_size
    last = torch.cat([first[1:], torch.tensor([len(confidence)])]) - 1
    return _summed(place, confidence, correct, confidence[first], confidence[last])


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error (ECE) over bins of equal width, in percent.

        ECE = 100 * sum_b n_b / N * |accuracy_b - confidence_b|

    Example:
        >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        25.0

    Args:
        confidence: (N,) largest probabilities.
        correct: (N,) bool.
        bins: how many.

    Returns:
        The error in percent.

    Raises:
        ValueError: as `reliability` does.
    """
    diagram = reliability(confidence, correct, bins)
    return 100.0 * (diagram.share * diagram.gap.abs()).sum().item()


def rms_calibration_error(
    confidence: Tensor,
    correct: Tensor,
    bin_size: int = BIN_SIZE,
    *,
    compat: Literal["hendrycks"] | None = None,
) -> float:
    """Root of the mean squared calibration error over bins of equally many images, in percent.

        RMS = 100 * sqrt(sum_b n_b / N * (accuracy_b - confidence_b)^2)

    Example:
        >>> rms_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        25.0

    Args:
        confidence: (N,) largest probabilities.
        correct: (N,) bool.
        bin_size: images in a bin; the last one also takes the rest.
        compat: "hendrycks" leaves out the most confident bin but still divides by all images, as the published code
            (hendrycks/outlier-exposure, also behind AugMix' and PixMix' tables) does; to compare with such tables.

    Returns:
        The error in percent.

    Raises:
        ValueError: as `adaptive_reliability` does; with compat, if there are fewer images than bin_size, where that
            code fails; or if compat is unknown.
    """
    diagram = adaptive_reliability(confidence, correct, bin_size)
    return 100.0 * (_counted("rms_calibration_error", diagram, compat, bin_size) * diagram.gap**2).sum().sqrt().item()


def mad_calibration_error(
    confidence: Tensor,
    correct: Tensor,
    bin_size: int = BIN_SIZE,
    *,
    compat: Literal["hendrycks"] | None = None,
) -> float:
    """Mean absolute calibration error over bins of equally many images, in percent.

        MAD = 100 * sum_b n_b / N * |accuracy_b - confidence_b|

    Example:
        >>> mad_calibration_error(torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([True, True, True, False]), 2)
        50.0

    Args:
        confidence: (N,) largest probabilities.
        correct: (N,) bool.
        bin_size: images in a bin; the last one also takes the rest.
        compat: as for `rms_calibration_error`.

    Returns:
        The error in percent.

    Raises:
        ValueError: as `rms_calibration_error` does.
    """
    diagram = adaptive_reliability(confidence, correct, bin_size)
    return 100.0 * (_counted("mad_calibration_error", diagram, compat, bin_size) * diagram.gap.abs()).sum().item()


def _counted(who: str, diagram: ReliabilityBins, compat: str | None, bin_size: int) -> Tensor:
    if compat is None:
        return diagram.share
    if compat != "hendrycks":
        raise ValueError(f"{who}: expected compat None or 'hendrycks', got {compat!r}.")
    images = int(diagram.count.sum())
    if images < bin_size:
        raise ValueError(f"{who}: compat='hendrycks' needs at least bin_size={bin_size} images, got {images}.")
    share = diagram.share.clone()
    share[-1] = 0.0
    return share


def _summed(place: Tensor, confidence: Tensor, correct: Tensor, lower: Tensor, upper: Tensor) -> ReliabilityBins:
    count = torch.bincount(place, minlength=len(lower))
    mean_confidence = torch.bincount(place, confidence, minlength=len(lower)) / count
    accuracy = torch.bincount(place, correct.double(), minlength=len(lower)) / count
    return ReliabilityBins(lower, upper, count, mean_confidence, accuracy)


def _checked(who: str, confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    if confidence.shape != correct.shape or confidence.ndim != 1 or len(confidence) == 0:
        raise ValueError(
            f"{who}: expected confidence and correct of the same shape (N,) with N >= 1, "
            f"got {tuple(confidence.shape)} and {tuple(correct.shape)}."
        )
    confidence = confidence.detach().cpu().double()
    # a softmax in float32 may exceed 1 by a rounding
    if not bool(((confidence >= 0) & (confidence <= 1 + 1e-5)).all()):
        raise ValueError(
            f"{who}: expected confidences from 0 to 1, got {confidence.min().item():.4g} to "
            f"{confidence.max().item():.4g}. Take the largest probability of each image, not the logit."
        )
    return confidence.clamp(max=1.0), correct.detach().cpu().bool()
