from __future__ import annotations

import math

import pytest
import torch

from shiftnorm.evaluate.classification import (
    brier_per_image,
    brier_score,
    label_ranks,
    log_probabilities,
    negative_log_likelihood,
    nll_per_image,
    per_class_error,
    top_k_error,
    worst_class,
)


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(500, 12), torch.randint(12, (500,))


def test_ranks_break_ties_by_index():
    scores = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0]])
    assert label_ranks(scores, torch.tensor([2, 2])).tolist() == [2, 1]
    assert label_ranks(scores, torch.tensor([0, 0])).tolist() == [0, 2]


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_error_is_that_of_torchmetrics(scored, k):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores, labels = scored
    accuracy = functional.multiclass_accuracy(scores, labels, 12, average="micro", top_k=k).item()
    assert top_k_error(scores, labels, k) == pytest.approx(100 * (1 - accuracy), abs=1e-4)


def test_top_k_error_refuses_k_and_nan():
    with pytest.raises(ValueError, match=r"k from 1 to the number of classes 3, got 5"):
        top_k_error(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no NaN"):
        top_k_error(torch.full((2, 3), math.nan), torch.tensor([0, 1]), 1)


def test_nll_by_hand_and_as_torch(scored):
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    expected = (-math.log(0.25) - math.log(0.8)) / 2
    assert negative_log_likelihood(probabilities, torch.tensor([1, 1]), probabilities=True) == pytest.approx(expected)
    scores, labels = scored
    assert torch.allclose(
        nll_per_image(scores, labels), torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    )


def test_brier_by_hand():
    # (0.5 - 1)^2 + 0.3^2 + 0.2^2 = 0.38; a sure mistake costs 2, a sure hit 0
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    values = brier_per_image(probabilities, torch.tensor([0, 0, 2]), probabilities=True)
    assert values.tolist() == pytest.approx([0.38, 2.0, 0.0])


def test_brier_is_that_of_scikit_learn(scored):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = scored
    expected = metrics.brier_score_loss(
        labels.numpy(), scores.double().softmax(1).numpy(), labels=list(range(12)), scale_by_half=False
    )
    assert brier_score(scores, labels) == pytest.approx(expected, abs=1e-6)


def test_a_sure_network_keeps_its_digits():
    # p = 1 - 1e-7 on the label and 1e-7 elsewhere: 2e-14, which 1 - 2 p + sum p^2 would lose
    logits = torch.tensor([[math.log(1e7), 0.0]])
    assert brier_score(logits, torch.tensor([0])) == pytest.approx(2e-14, rel=0.3)


def test_half_precision_is_computed_in_float32():
    assert log_probabilities(torch.zeros(1, 2, dtype=torch.float16)).dtype == torch.float32
    assert log_probabilities(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("scores", [[[math.nan, 0.0]], [[math.inf, 0.0]]])
def test_diverged_scores_are_refused(scores):
    with pytest.raises(ValueError, match="diverged"):
        log_probabilities(torch.tensor(scores))


def test_masked_classes_have_probability_zero():
    assert log_probabilities(torch.tensor([[-math.inf, 0.0]])).exp().tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("scores", [[[2.0, -1.0]], [[0.5, 0.6]]])
def test_logits_are_not_probabilities(scores):
    with pytest.raises(ValueError, match="Pass logits with probabilities=False"):
        log_probabilities(torch.tensor(scores), probabilities=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "labels from 0 to 3"),
        (torch.tensor([0, -1]), "labels from -1 to 0"),
        (torch.tensor([0]), "labels \\(N,\\)"),
        (torch.tensor([0.0, 1.0]), "torch.int64"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        nll_per_image(torch.zeros(2, 3), labels)


def test_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        brier_score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_class_errors_are_those_of_torchmetrics(scored):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores, labels = scored
    accuracy = functional.multiclass_accuracy(scores, labels, 12, average="none")
    assert torch.allclose(per_class_error(scores.argmax(1), labels, 12), 100 * (1 - accuracy.double()), atol=1e-4)


def test_worst_class_leaves_empty_classes_out():
    predicted, labels = torch.tensor([0, 0, 3, 3]), torch.tensor([0, 3, 3, 3])
    assert worst_class(predicted, labels, 6) == (3, pytest.approx(100 / 3))
    assert worst_class(labels, labels, 6) == (0, 0.0)


def test_per_class_error_refuses():
    with pytest.raises(ValueError, match="labels from 0 to 1, got labels from 0 to 2"):
        per_class_error(torch.tensor([0, 1]), torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="same shape"):
        per_class_error(torch.tensor([0, 1]), torch.tensor([0]))
