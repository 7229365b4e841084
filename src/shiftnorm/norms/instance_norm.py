"""Instance Normalization."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.group_norm import native_group_norm
from shiftnorm.ops import Affine, Moments
from shiftnorm.ops.single import normalize_at_once

__all__ = ["InstanceNorm"]


@final
class InstanceNorm(MomentNorm):
    """Normalise every plane by its own moments.

        y = weight_c * (x - m) / sqrt(v + eps) + bias_c        # v biased

    Removes contrast and brightness of each image, and with them what they say about its class.

    Example:
        >>> InstanceNorm(16)(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of x.
        affine: learn ``weight`` and ``bias``; False by default, as in torch.
        device: of the parameters.
        dtype: of the parameters.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,), if affine; no buffers.
    Modes: the same in training and evaluation.
    Raises: ValueError for another channel count.
    Cost: two reads and one write of x; 2C parameters if affine.
    Source: Ulyanov et al., "Instance Normalization", arXiv:1607.08022.
    Differences: planes of one element give ``bias`` where torch raises; no running statistics, which torch offers and
        nobody should use; channels-last stays channels-last.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features)
        self.eps = eps
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)

    def affine(self, m: Moments) -> Affine:
        """Unit variance and zero mean for every plane, then weight and bias.

        Example:
            >>> InstanceNorm(2).affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).mean.abs().sum()
            tensor(0.)
        """
        gain = torch.rsqrt(m.var + self.eps)
        if self.weight is None or self.bias is None:
            return Affine(gain, torch.zeros_like(m.mean))
        return Affine(self.weight * gain, self.bias.to(gain.dtype).expand_as(gain))

    def at_once(self, x: Tensor) -> Tensor | None:
        """One Triton kernel each way, on a GPU, where a plane fits on chip.

        Example:
            >>> InstanceNorm(4).at_once(torch.randn(2, 4, 3, 3)) is None  # on a CPU
            True
        """
        return normalize_at_once(x, 1, self.weight, self.bias, self.eps)

    def native(self, x: Tensor) -> Tensor | None:
        """GroupNorm with one channel per group, torch's fastest kernel for contiguous planes on a CPU.

        Example:
            >>> InstanceNorm(3).native(torch.randn(2, 3, 4, 4)).shape
            torch.Size([2, 3, 4, 4])
        """
        return native_group_norm(x, x.shape[1], self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> InstanceNorm(3)
            InstanceNorm(3, eps=1e-05, affine=False)
        """
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"
