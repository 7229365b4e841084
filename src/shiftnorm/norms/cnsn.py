"""CNSN: CrossNorm, then SelfNorm."""

from __future__ import annotations

from typing import Literal

import torch

from shiftnorm.norms.chain import Chain
from shiftnorm.norms.cross_norm import CrossNorm
from shiftnorm.norms.self_norm import SelfNorm

__all__ = ["CNSN"]


def CNSN(
    num_features: int,
    eps: float = 1e-12,
    momentum: float | None = 0.1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    mode: Literal["2-instance", "1-instance", "both"] = "2-instance",
    crop: Literal["neither", "style", "content", "both"] = "neither",
    beta: float = 1.0,
    min_area: float = 0.1,
    p: float = 1.0,
    two_branches: bool = False,
    start: Literal["half", "identity"] = "half",
) -> Chain:
    """``Chain(CrossNorm, SelfNorm)``, the pair the paper puts at one place of the network.

    Example:
        >>> norm = CNSN(16)
        >>> norm
        Chain(
          (0): CrossNorm(16, mode='2-instance', crop='neither', p=1.0)
          (1): SelfNorm(...)
        )
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: SelfNorm's.
        momentum: SelfNorm's.
        device: of SelfNorm's parameters and buffers.
        dtype: of SelfNorm's parameters and buffers.
        mode: CrossNorm's.
        crop: CrossNorm's.
        beta: CrossNorm's.
        min_area: CrossNorm's.
        p: CrossNorm's.
        two_branches: SelfNorm's.
        start: SelfNorm's.

    Returns:
        The chain; ``chain[0]`` is the CrossNorm, ``chain[1]`` the SelfNorm.

    Source: Tang et al., "CrossNorm and SelfNorm for Generalization under Distribution Shifts", ICCV 2021.
    """
    return Chain(
        CrossNorm(num_features, mode=mode, crop=crop, beta=beta, min_area=min_area, p=p),
        SelfNorm(num_features, eps, momentum, device, dtype, two_branches=two_branches, start=start),
    )
