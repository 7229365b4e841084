"""Batch Normalization, the norm the others build on."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Moments, Pool, choose

__all__ = ["BatchNorm"]


@final
class BatchNorm(RunningMoments, MomentNorm):
    """Normalise every channel by the moments of the batch, or by running moments of earlier batches.

        mean_c, var_c = moments over (N, *)            # biased
        y = weight_c * (x - mean_c) / sqrt(var_c + eps) + bias_c

    AdaBN and its relatives are not layers here but sources of moments: set ``norm.source`` (see
    :class:`~shiftnorm.norms.RunningMoments`).

    Example:
        >>> norm = BatchNorm(16)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of x.
        momentum: weight of the newest batch in the running moments; None averages all batches equally.
        affine: learn ``weight`` and ``bias``.
        track_running_stats: keep running moments; without them evaluation uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,); the buffers of RunningMoments. The keys are torch's.
    Modes: training pools the batch and updates the running moments; evaluation uses the running ones.
    Raises: ValueError for another channel count, or in training for a single value per channel.
    Cost: two reads and one write of x in training, one and one in evaluation; 2C parameters.
    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015; AdaBN: Li et al., arXiv:1603.04779.
    Differences: none from torch.nn.BatchNorm1d/2d/3d, of which this is one class for every rank.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        MomentNorm.__init__(self, num_features)
        self.eps = eps
        self.init_running(
            num_features, momentum=momentum, track_running_stats=track_running_stats, device=device, dtype=dtype
        )
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)

    @property
    def needs_moments(self) -> bool:
        """Whether the batch is looked at; evaluation by running moments reads x once.

        Example:
            >>> BatchNorm(3).eval().needs_moments
            False
        """
        return self.uses_batch

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean from the batch moments seen now.

        Example:
            >>> norm = BatchNorm(2)
            >>> norm.affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).mean.shape
            torch.Size([4, 2])
        """
        affine = self.by_kernel(m, self.eps, self.weight, self.bias)
        if affine is not None:
            return affine
        batch = self.seen(m)
        gain = torch.rsqrt(batch.var + self.eps)
        if self.weight is not None:
            gain = self.weight * gain
        distance = m.mean - batch.mean
        return Affine(gain, gain * distance if self.bias is None else torch.addcmul(self.bias, gain, distance))

    def step(self, m: Moments, draw: Any) -> Pool | None:
        """The whole norm, in training with a fixed momentum; a Chain joins it with CrossNorm and SelfNorm.

        Example:
            >>> norm, m = BatchNorm(3), Moments(torch.zeros(4, 3), torch.ones(4, 3), 9)
            >>> norm.step(m, None).eps, norm.eval().step(m, None)
            (1e-05, None)
        """
        del m, draw
        if not self.is_plain:
            return None
        return Pool(self.weight, self.bias, *self.updated(), cast("float", self.momentum), self.eps)

    def native(self, x: Tensor) -> Tensor | None:
        """torch's kernel where it is the better one: in evaluation, on a GPU, and for x that is small or channels-last.

        Example:
            >>> BatchNorm(3).eval().native(torch.randn(2, 3, 4, 4)).shape
            torch.Size([2, 3, 4, 4])
        """
        if self.uses_batch and not (x.is_cuda or _is_torchs_on_cpu(x)):
            return None
        return self.native_batch_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> BatchNorm(3)
            BatchNorm(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
        """
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


# Of small inputs ours is the time its operations take to start; on small planes torch's walk over memory is better.
_SMALL = 2**18
_SMALL_PLANE = 16
# On smaller planes torch's channels-last kernel is faster; on larger ones ours are level and need a third less memory.
_LARGE_PLANE = 256


def _is_torchs_on_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    size = x.shape[2:].numel()
    if x.numel() <= _SMALL or size <= _SMALL_PLANE:
        return True
    if x.dim() < 4 or x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return False
    return size < _LARGE_PLANE or choose(x).name != "cpp"
