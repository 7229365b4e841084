"""The Jensen-Shannon divergence against values worked out by hand and the authors' loop written plainly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shiftnorm.tasks.consistency import jensen_shannon


def plain(*logits: Tensor) -> Tensor:
    """As the AugMix and CrossNorm scripts write it, in whatever dtype comes."""
    shares = [torch.softmax(each, dim=1) for each in logits]
    mixture = torch.clamp(sum(shares[1:], shares[0]) / len(shares), 1e-7, 1).log()
    terms = [torch.nn.functional.kl_div(mixture, share, reduction="batchmean") for share in shares]
    return sum(terms[1:], terms[0]) / len(terms)


def test_by_hand() -> None:
    # p = (1/2, 1/2), (3/4, 1/4), (1/4, 3/4), whose mean is (1/2, 1/2)
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]).log()
    uneven = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(jensen_shannon(*p[:, None]), torch.tensor(2 * uneven / 3))
    # predictions that share no class: the mean is 1/3 for each, and every term log 3
    apart = torch.eye(3) * 1000
    torch.testing.assert_close(jensen_shannon(*apart[:, None]), torch.tensor(math.log(3)))
    # two samples, one of which agrees: batchmean
    first, second = torch.tensor([[0.0, 0.0], [1000.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1000.0]])
    torch.testing.assert_close(jensen_shannon(first, second), torch.tensor(math.log(2) / 2))


@pytest.mark.parametrize("scale", [3, 8])  # with 8 some classes of the mixture are clamped
@pytest.mark.parametrize("count", [2, 3, 4])
def test_value_and_gradient_equal_the_plain_formula(count: int, scale: float) -> None:
    logits = [torch.randn(5, 7, dtype=torch.float64) * scale for _ in range(count)]
    clamped = torch.stack(logits).softmax(-1).mean(0) < 1e-7
    assert bool(clamped.any()) == (scale == 8)
    ours, theirs = ([each.clone().requires_grad_() for each in logits] for _ in range(2))
    found, wanted = jensen_shannon(*ours), plain(*theirs)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for own, other in zip(ours, theirs, strict=True):
        assert own.grad is not None and own.grad.abs().max() > 1e-4  # every prediction is pulled, the clean one too
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(jensen_shannon(*(each.float() for each in logits)).double(), found, rtol=1e-5, atol=1e-7)


def test_half_precision_is_computed_in_float32() -> None:
    logits = [torch.randn(4, 5).to(torch.bfloat16) for _ in range(3)]
    found = jensen_shannon(*logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(*(each.float() for each in logits)))


def test_certainty_has_finite_gradients() -> None:
    logits = [torch.tensor([[400.0, -400.0, 0.0]], requires_grad=True), torch.zeros(1, 3, requires_grad=True)]
    jensen_shannon(*logits).backward()
    assert all(each.grad.isfinite().all() for each in logits if each.grad is not None)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (3, 3)], [(3,), (3,)]])
def test_refusals(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(
        ValueError, match=r"jensen_shannon: expected two or more logits of one shape \(N, classes\), got"
    ):
        jensen_shannon(*(torch.zeros(shape) for shape in shapes))
