"""Domain shifts with uncertainty (DSU)."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.draws import check_partners
from shiftnorm.ops import Affine, Moments

__all__ = ["DSU", "DSUDraw"]


class DSUDraw(NamedTuple):
    """The random numbers of one call of DSU.

    Example:
        >>> DSU().draw(torch.randn(4, 3, 8, 8)).mean_noise.shape
        torch.Size([4, 3])

    Args:
        acts: 0-d bool, whether the layer acts in this step.
        mean_noise: (N, C) standard normal, for the means.
        std_noise: (N, C) standard normal, for the deviations.
    """

    acts: Tensor
    mean_noise: Tensor
    std_noise: Tensor


@final
class DSU(MomentNorm):
    """Move every plane's mean and deviation at random, as far as they vary within the batch.

    With s = sqrt(v_u + eps), var_n the unbiased variance over the batch, and e_m, e_s ~ N(0, 1) for every plane:

        S_m = sqrt(var_n(m) + eps)                 S_s = sqrt(var_n(s) + eps)
        y = (s + factor * e_s * S_s) * (x - m) / s + (m + factor * e_m * S_m)

    Published after the stem convolution, after the first pooling and after each of the four stages of a ResNet.

    Example:
        >>> norm = DSU()
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C, checked if given.
        p: probability that the layer acts in a training step.
        eps: added under all three roots, in squared units of x.
        factor: strength of the perturbation.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: no parameters, no buffers.
    Modes: acts in training; in evaluation, and with p = 0, it returns x itself.
    Raises: ValueError for p outside [0, 1], eps not positive, a negative factor, or another channel count.
    Cost: two reads and one write of x forward, four and one backward. In the steps in which it does not act nothing on
        a CPU, which returns x itself; on a GPU, or compiled, the same, and x up to rounding.
    Source: Li et al., "Uncertainty Modeling for Out-of-Distribution Generalization", ICLR 2022, arXiv:2202.03958.
    Differences: torch's generator on x's device instead of numpy's; any rank; a batch of one has no spread to draw from
        and passes unchanged, and planes of a single element only move their mean, where the authors' give NaN. The
        spread is that of the local batch on every rank.
    """

    def __init__(
        self, num_features: int | None = None, *, p: float = 0.5, eps: float = 1e-6, factor: float = 1.0
    ) -> None:
        super().__init__(num_features)
        if not 0 <= p <= 1:
            raise ValueError(f"DSU: expected p in [0, 1], got {p}.")
        if not eps > 0:
            raise ValueError(f"DSU: expected eps above 0, got {eps}.")
        if not factor >= 0:
            raise ValueError(f"DSU: expected factor to be at least 0, got {factor}.")
        self.p = p
        self.eps = eps
        self.factor = factor

    @property
    def is_identity(self) -> bool:
        """Whether x passes untouched: in evaluation, or when p is 0.

        Example:
            >>> DSU().is_identity, DSU().eval().is_identity
            (False, True)
        """
        return not (self.training and self.p > 0)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> DSUDraw:
        """Whether to act, the noise for the means, then that for the deviations.

        Example:
            >>> DSU(p=1.0).draw(torch.randn(4, 3, 8)).acts
            tensor(True)
        """
        acts = torch.rand((), device=x.device, generator=generator) <= self.p
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        # torch.randn(shape, generator=None) would not compile for changing batch sizes; the in-place form does.
        mean_noise = torch.empty(x.shape[:2], device=x.device, dtype=dtype).normal_(generator=generator)
        std_noise = torch.empty_like(mean_noise).normal_(generator=generator)
        return DSUDraw(acts, mean_noise, std_noise)

    def affine(self, m: Moments, draw: DSUDraw) -> Affine:
        """Own moments plus noise in units of their spread over the batch.

        Example:
            >>> m = Moments(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), 9)
            >>> draw = DSUDraw(torch.tensor(True), torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1))
            >>> DSU().affine(m, draw).mean
            tensor([[1.4142],
                    [2.0000]])
        """
        check_partners("DSU", draw.mean_noise, m.mean.shape[0])
        if m.mean.shape[0] < 2:
            return Affine(torch.ones_like(m.mean), m.mean)
        std = m.deviation(self.eps)
        mean_spread = torch.sqrt(m.mean.var(0, keepdim=True) + self.eps)
        std_spread = torch.sqrt(std.var(0, keepdim=True) + self.eps)
        new_mean = m.mean + self.factor * draw.mean_noise * mean_spread
        new_std = std + self.factor * draw.std_noise * std_spread
        gain = torch.where(draw.acts, new_std / std, 1.0)
        return Affine(gain, torch.where(draw.acts, new_mean, m.mean))

    def extra_repr(self) -> str:
        """The arguments.

        Example:
            >>> DSU()
            DSU(p=0.5, eps=1e-06, factor=1.0)
        """
        return f"p={self.p}, eps={self.eps}, factor={self.factor}"
