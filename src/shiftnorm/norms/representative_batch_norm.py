"""Representative Batch Normalization: BatchNorm calibrated by the statistics of each instance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch
from torch import nn

from shiftnorm.norms.base import MomentNorm, OfficialTensor
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Moments

__all__ = ["RepresentativeBatchNorm"]


@final
class RepresentativeBatchNorm(RunningMoments, MomentNorm):
    """BatchNorm that first shifts every plane by its own mean and then gates it by its own normalised mean.

        x'  = x + center_weight_c * m                  # m: mean of plane (n, c)
        z   = (x' - mean_c) / sqrt(var_c + eps)        # mean and biased var of x' over (N, *)
        y   = weight_c * z * sigmoid(scale_weight_c * mean(z over *) + scale_bias_c) + bias_c

    Example:
        >>> norm = RepresentativeBatchNorm(16)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of x.
        momentum: weight of the newest batch in the running moments; None averages all batches equally.
        affine: learn ``weight`` and ``bias``; the three calibration parameters are always there.
        track_running_stats: keep running moments; without them evaluation uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        start: "published" starts at sigmoid(1) = 0.73 times BatchNorm's output; "batch" divides the gate by sigmoid(1)
            for good, so that the layer starts as BatchNorm exactly (for nets that are already trained).

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1, ``bias`` and ``center_weight`` and ``scale_weight`` from 0, ``scale_bias`` from 1, all
        (C,); the buffers of RunningMoments, which are those of x', not of x. A BatchNorm checkpoint loads with
        ``strict=False``.
    Modes: training pools the batch and updates the running moments; evaluation uses the running ones. The plane's own
        mean is used in both.
    Raises: ValueError for another channel count, or in training for a single value per channel.
    Cost: two reads and one write of x, in evaluation too; 5C parameters.
    Source: Gao et al., "Representative Batch Normalization with Feature Calibration", CVPR 2021.
    Differences: x stays as it is, where the authors add to it in place; any rank instead of 4-D; parameters are (C,)
        instead of (1, C, 1, 1); not a subclass of torch's BatchNorm, so converting to SyncBatchNorm does not drop the
        calibration; ``start="batch"`` is ours.
    """

    official_keys: ClassVar[Mapping[str, OfficialTensor]] = {
        name: OfficialTensor(name, (1, -1, 1, 1))
        for name in ("weight", "bias", "center_weight", "scale_weight", "scale_bias")
    }

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        start: Literal["published", "batch"] = "published",
    ) -> None:
        MomentNorm.__init__(self, num_features)
        if start not in ("published", "batch"):
            raise ValueError(f"RepresentativeBatchNorm: expected start 'published' or 'batch', got {start!r}.")
        self.eps = eps
        self.start = start
        self.height = 1.0 if start == "published" else 1.0 + math.exp(-1.0)  # 1 / sigmoid(1)
        self.init_running(
            num_features, momentum=momentum, track_running_stats=track_running_stats, device=device, dtype=dtype
        )
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)
        self.center_weight = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.scale_weight = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.scale_bias = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean from the calibrated moments, which follow from m without another look at x.

        Example:
            >>> norm = RepresentativeBatchNorm(2)
            >>> norm.affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).gain.shape
            torch.Size([4, 2])
        """
        centered = Moments(m.mean * (1 + self.center_weight), m.var, m.count)
        scale, level = self.by_kernel(centered, self.eps, None, None) or self._standardised(centered)
        gate = torch.sigmoid(torch.addcmul(self.scale_bias, self.scale_weight, level))
        if self.height != 1.0:
            gate = self.height * gate
        if self.weight is not None:
            gate = self.weight * gate
        return Affine(gate * scale, gate * level if self.bias is None else torch.addcmul(self.bias, gate, level))

    def _standardised(self, m: Moments) -> Affine:
        batch = self.seen(m)
        scale = torch.rsqrt(batch.var + self.eps)
        return Affine(scale, scale * (m.mean - batch.mean))

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> RepresentativeBatchNorm(3)
            RepresentativeBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, ..., start='published')
        """
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.track_running_stats}, start={self.start!r}"
        )
