"""Scores of a classifier against labels: top-k error, likelihood, Brier score and errors by class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "brier_per_image",
    "brier_score",
    "label_ranks",
    "log_probabilities",
    "negative_log_likelihood",
    "nll_per_image",
    "per_class_error",
    "top_k_error",
    "worst_class",
]


def log_probabilities(scores: Tensor, *, probabilities: bool = False) -> Tensor:
    """Logarithms of the class probabilities, in float32 at least.

    Example:
        >>> log_probabilities(torch.tensor([[0.0, 0.0]])).exp()
        tensor([[0.5000, 0.5000]])
        >>> log_probabilities(torch.tensor([[0.25, 0.75]]), probabilities=True).exp()
        tensor([[0.2500, 0.7500]])

    Args:
        scores: (N, classes) logits, or probabilities.
        probabilities: whether the scores are probabilities; rows are divided by their sum.

    Returns:
        (N, classes), float64 for float64 scores and float32 otherwise.

    Raises:
        ValueError: if the scores are not (N, classes), contain NaN or infinity, or should be probabilities and are
            not.
    """
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"log_probabilities: expected scores (N, classes), got {tuple(scores.shape)}.")
    scores = scores.detach()
    scores = scores if scores.dtype == torch.float64 else scores.float()
    total = scores.sum(1)
    log = (scores / total[:, None]).log() if probabilities else scores.log_softmax(1)
    if bool(scores.isnan().any()) or (not probabilities and bool(log.isnan().any())):
        raise ValueError(
            "log_probabilities: the scores contain NaN or infinity; the network has diverged, so it has no error to "
            "report."
        )
    # half precision rounds a row of probabilities to within about a hundredth of 1
    if probabilities and (bool((scores < 0).any()) or bool(((total - 1).abs() > 1e-2).any())):
        raise ValueError(
            "log_probabilities: expected probabilities, at least 0 and with rows that add up to 1, got a smallest "
            f"value of {scores.min().item():.4g} and sums from {total.min().item():.4g} to {total.max().item():.4g}. "
            "Pass logits with probabilities=False."
        )
    return log


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes are ahead of the label; among equal scores the class with the lower index is ahead.

    Example:
        >>> label_ranks(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1]))
        tensor([0, 2])

    Args:
        scores: (N, classes) logits or probabilities.
        labels: (N,) class indices.

    Returns:
        (N,) ranks from 0 on.

    Raises:
        ValueError: if shapes do not belong together, or a label is no class index.
    """
    _check("label_ranks", scores, labels)
    own = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & lower)).sum(1)


def top_k_error(scores: Tensor, labels: Tensor, k: int = 5) -> float:
    """Share of images whose label is not among the k largest scores, in percent.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
        >>> top_k_error(scores, torch.tensor([0, 1]), k=2)
        50.0

    Args:
        scores: (N, classes) logits or probabilities.
        labels: (N,) class indices.
        k: how many guesses the network has, at most the number of classes.

    Returns:
        The error in percent.

    Raises:
        ValueError: if shapes do not belong together, there is no image, a score is NaN, or k is out of range.
    """
    _check("top_k_error", scores, labels)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"top_k_error: expected k from 1 to the number of classes {scores.shape[1]}, got {k}.")
    if len(labels) == 0 or bool(scores.isnan().any()):
        raise ValueError(f"top_k_error: expected at least one image and no NaN, got {len(labels)} images.")
    return 100.0 * (label_ranks(scores, labels) >= k).double().mean().item()


def nll_per_image(scores: Tensor, labels: Tensor, *, probabilities: bool = False) -> Tensor:
    """Negative log-likelihood of every image's label, in nats.

    Example:
        >>> nll_per_image(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 1]), probabilities=True)
        tensor([0.6931, 0.0000])

    Args:
        scores: (N, classes) logits, or probabilities.
        labels: (N,) class indices.
        probabilities: whether the scores are probabilities; a label with probability 0 then costs infinity.

    Returns:
        (N,) values of at least 0.

    Raises:
        ValueError: as `log_probabilities` and `label_ranks` do.
    """
    _check("nll_per_image", scores, labels)
    log = log_probabilities(scores, probabilities=probabilities)
    return log.gather(1, labels[:, None]).squeeze(1).abs()  # not -log: a sure label costs 0, not -0


def negative_log_likelihood(scores: Tensor, labels: Tensor, *, probabilities: bool = False) -> float:
    """Mean negative log-likelihood of the labels, in nats.

    Example:
        >>> negative_log_likelihood(torch.zeros(3, 4), torch.tensor([0, 1, 2])) == torch.log(torch.tensor(4.0)).item()
        True

    Args:
        scores: as for `nll_per_image`, and so those that follow.
        labels: see there.
        probabilities: see there.

    Returns:
        The mean over images.

    Raises:
        ValueError: as `nll_per_image` does, or if there is no image.
    """
    return _mean("negative_log_likelihood", nll_per_image(scores, labels, probabilities=probabilities))


def brier_per_image(scores: Tensor, labels: Tensor, *, probabilities: bool = False) -> Tensor:
    """Squared distance of every image's probabilities to its label, summed over the classes.

        brier_n = sum_k (p_nk - [k = label_n])^2

    The range is 0 to 2. Other versions in use divide by the number of classes, or look at one class only.

    Example:
        >>> brier_per_image(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 1]), probabilities=True)
        tensor([0.5000, 2.0000])

    Args:
        scores: (N, classes) logits, or probabilities.
        labels: (N,) class indices.
        probabilities: whether the scores are probabilities.

    Returns:
        (N,) values from 0 to 2.

    Raises:
        ValueError: as `log_probabilities` and `label_ranks` do.
    """
    _check("brier_per_image", scores, labels)
    # the difference is taken before squaring: 1 - 2 p + sum p^2 cancels for confident networks
    distance = log_probabilities(scores, probabilities=probabilities).exp()
    distance.scatter_add_(1, labels[:, None], distance.new_full((len(labels), 1), -1.0))
    return distance.square_().sum(1)


def brier_score(scores: Tensor, labels: Tensor, *, probabilities: bool = False) -> float:
    """Mean Brier score with the range 0 to 2: squared distance to the label, summed over classes.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 1]), probabilities=True)
        1.25

    Args:
        scores: as for `brier_per_image`, and so those that follow.
        labels: see there.
        probabilities: see there.

    Returns:
        The mean over images.

    Raises:
        ValueError: as `brier_per_image` does, or if there is no image.
    """
    return _mean("brier_score", brier_per_image(scores, labels, probabilities=probabilities))


def per_class_error(predicted: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Error of each class, in percent.

    Example:
        >>> per_class_error(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 3)
        tensor([50., 50., nan], dtype=torch.float64)

    Args:
        predicted: (N,) class indices.
        labels: (N,) class indices.
        num_classes: how many classes there are; default: up to the largest label.

    Returns:
        (num_classes,) errors in float64, NaN for a class without images.

    Raises:
        ValueError: if the two differ in shape, there is no image, or a label is not below num_classes.
    """
    if predicted.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            "per_class_error: expected predicted and labels of the same shape (N,) with N >= 1, "
            f"got {tuple(predicted.shape)} and {tuple(labels.shape)}."
        )
    lowest, highest = int(labels.min()), int(labels.max())
    num_classes = highest + 1 if num_classes is None else num_classes
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"per_class_error: expected labels from 0 to {num_classes - 1}, got labels from {lowest} to {highest}."
        )
    labels = labels.long()
    count = torch.bincount(labels, minlength=num_classes).double()
    wrong = torch.bincount(labels, (predicted != labels).double(), minlength=num_classes)
    return 100.0 * wrong / count


def worst_class(predicted: Tensor, labels: Tensor, num_classes: int | None = None) -> tuple[int, float]:
    """The class with the highest error, and that error in percent; the lowest index among equals.

    Example:
        >>> worst_class(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1]))
        (1, 100.0)

    Args:
        predicted: (N,) class indices.
        labels: (N,) class indices.
        num_classes: how many classes there are.

    Returns:
        Class index and error; classes without images are left out.

    Raises:
        ValueError: as `per_class_error` does.
    """
    errors = per_class_error(predicted, labels, num_classes).nan_to_num(nan=-1.0).tolist()
    worst = max(range(len(errors)), key=errors.__getitem__)
    return worst, errors[worst]


def _check(who: str, scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"{who}: expected scores (N, classes) and labels (N,), got {tuple(scores.shape)} and {tuple(labels.shape)}."
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{who}: expected labels of dtype torch.int64, got {labels.dtype}.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(
            f"{who}: expected labels from 0 to {scores.shape[1] - 1}, as there are {scores.shape[1]} scores, "
            f"got labels from {int(labels.min())} to {int(labels.max())}."
        )


def _mean(who: str, values: Tensor) -> float:
    if len(values) == 0:
        raise ValueError(f"{who}: expected at least one image, got none.")
    return values.double().mean().item()
