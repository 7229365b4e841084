"""How far several predictions of the same images are apart."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["jensen_shannon"]


def jensen_shannon(*logits: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of several predictions, as AugMix and CrossNorm train for consistency.

    With p_k the softmax of the k-th logits, K of them, and N samples:

        mixture = clamp(mean_k p_k, 1e-7, 1)
        divergence = 1 / (K N) * sum_k sum_n sum_c p_k * (log p_k - log mixture)

    Example:
        >>> sure, unsure = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> jensen_shannon(unsure, unsure, unsure)
        tensor(0.)
        >>> jensen_shannon(sure, unsure)  # 3/4 log 4/3, between 0 and log 2
        tensor(0.2158)

    Args:
        *logits: two or more, each (N, classes), of the same samples in the same order.

    Returns:
        0-d, float32 at least; gradients flow into all the logits.

    Raises:
        ValueError: for fewer than two logits, or logits that are not (N, classes) of one shape.

    Source: Hendrycks et al., "AugMix", ICLR 2020, where K = 3.
    Differences: log p comes from log_softmax, so that a probability that underflows to 0 adds 0 and not NaN; half
        precision is computed in float32.
    """
    shapes = [tuple(each.shape) for each in logits]
    if len(logits) < 2 or len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"jensen_shannon: expected two or more logits of one shape (N, classes), got {len(logits)} of shapes "
            f"{shapes}."
        )
    stacked = torch.stack(logits)
    stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
    log_p = stacked.log_softmax(-1)
    p = log_p.exp()
    log_mixture = p.mean(0).clamp(1e-7, 1).log()
    return (p * (log_p - log_mixture)).sum() / (stacked.shape[0] * stacked.shape[1])
