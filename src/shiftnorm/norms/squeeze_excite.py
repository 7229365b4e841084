"""Squeeze-and-excitation: every plane scaled by what all channel means say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import nn
from torch.nn import functional as F

from shiftnorm.norms.base import MomentNorm, OfficialTensor
from shiftnorm.ops import Affine, Moments

__all__ = ["SqueezeExcite"]


@final
class SqueezeExcite(MomentNorm):
    """Scale every plane by a gate that a two-layer bottleneck computes from the means of all channels.

        y = a * x,   a = sigmoid(W2 relu(W1 m))        # m (C,): the means of one sample; W1, W2 without bias

    Not a normalization by itself, but a rewrite of the moments like the others: in a Chain behind a BatchNorm it costs
    no pass over x.

    Example:
        >>> norm = SqueezeExcite(32)
        >>> norm(torch.randn(4, 32, 8, 8)).shape
        torch.Size([4, 32, 8, 8])

    Args:
        num_features: channels C.
        device: of the parameters.
        dtype: of the parameters.
        reduction: how much narrower the bottleneck is; it keeps one unit at least.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``squeeze.weight`` (C/r, C) and ``excite.weight`` (C, C/r), as torch.nn.Linear starts them.
    Modes: the same in training and evaluation.
    Raises: ValueError for another channel count, or a reduction below 1.
    Cost: two reads and one write of x; 2 C^2 / r parameters.
    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, in the form of SE-ResNet-IBN.
    Differences: any rank instead of 4-D; a reduction above C gives one unit instead of none.
    """

    official_keys: ClassVar[Mapping[str, OfficialTensor]] = {
        "squeeze.weight": OfficialTensor("fc.0.weight"),
        "excite.weight": OfficialTensor("fc.2.weight"),
    }

    def __init__(
        self,
        num_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reduction: int = 16,
    ) -> None:
        super().__init__(num_features)
        if reduction < 1:
            raise ValueError(f"SqueezeExcite: expected reduction to be at least 1, got {reduction}.")
        self.reduction = reduction
        bottleneck = max(1, num_features // reduction)
        self.squeeze = nn.Linear(num_features, bottleneck, bias=False, device=device, dtype=dtype)
        self.excite = nn.Linear(bottleneck, num_features, bias=False, device=device, dtype=dtype)

    def affine(self, m: Moments) -> Affine:
        """One gate for contrast and mean alike.

        Example:
            >>> SqueezeExcite(2).affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).gain[0]
            tensor([0.5000, 0.5000], grad_fn=...)
        """
        hidden = torch.relu(F.linear(m.mean, self.squeeze.weight.to(m.mean.dtype)))
        gate = torch.sigmoid(F.linear(hidden, self.excite.weight.to(m.mean.dtype)))
        return Affine(gate, gate * m.mean)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> SqueezeExcite(32).extra_repr()
            '32, reduction=16'
        """
        return f"{self.num_features}, reduction={self.reduction}"
