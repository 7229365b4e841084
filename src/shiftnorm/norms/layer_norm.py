"""Layer Normalization over channels and space."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.group_norm import native_group_norm
from shiftnorm.ops import Affine, Moments
from shiftnorm.ops.single import normalize_at_once

__all__ = ["LayerNorm"]


@final
class LayerNorm(MomentNorm):
    """Normalise every sample by its moments over channels and space together.

        mean_n, var_n = moments over (C, *)                                 # biased
        y = weight_c * (x - mean_n) / sqrt(var_n + eps) + bias_c

    Example:
        >>> LayerNorm(16)(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of x.
        affine: learn ``weight`` and ``bias``, one of each per channel.
        device: of the parameters.
        dtype: of the parameters.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,), if affine; no buffers.
    Modes: the same in training and evaluation.
    Raises: ValueError for another channel count.
    Cost: two reads and one write of x; 2C parameters if affine.
    Source: Ba et al., "Layer Normalization", arXiv:1607.06450; over space as well, as Wu and He, "Group Normalization",
        ECCV 2018, use it for images.
    Differences: torch.nn.LayerNorm normalises the last dimensions and has a weight per element of them; this is
        torch.nn.GroupNorm with one group. For (N, C) the two agree. The norm over channels of each pixel that ConvNeXt
        calls LayerNorm2d is another one.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features)
        self.eps = eps
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean of every plane from the moments of its sample.

        Example:
            >>> LayerNorm(2).affine(Moments(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), 9)).mean.round()
            tensor([[-1.,  1.]], grad_fn=...)
        """
        sample = m.pooled(over="channels")
        gain = torch.rsqrt(sample.var + self.eps)
        if self.weight is not None:
            gain = self.weight * gain
        mean = gain * (m.mean - sample.mean)
        return Affine(gain, mean if self.bias is None else mean + self.bias)

    def at_once(self, x: Tensor) -> Tensor | None:
        """One Triton kernel each way, on a GPU, where a sample fits on chip.

        Example:
            >>> LayerNorm(4).at_once(torch.randn(2, 4, 3, 3)) is None  # on a CPU
            True
        """
        return normalize_at_once(x, x.shape[1], self.weight, self.bias, self.eps)

    def native(self, x: Tensor) -> Tensor | None:
        """GroupNorm with one group, torch's fastest kernel for contiguous planes on a CPU.

        Example:
            >>> LayerNorm(3).native(torch.randn(2, 3, 4, 4)).shape
            torch.Size([2, 3, 4, 4])
        """
        return native_group_norm(x, 1, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> LayerNorm(3)
            LayerNorm(3, eps=1e-05, affine=True)
        """
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"
