"""MixStyle: moments mixed with those of another sample, and the draws it shares with EFDMix."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.draws import check_partners, draw_beta, draw_partners
from shiftnorm.ops import Affine, Moments

__all__ = ["MixStyle", "MixStyleDraw", "check_mixing"]


class MixStyleDraw(NamedTuple):
    """The random numbers of one call of MixStyle.

    Example:
        >>> MixStyle().draw(torch.randn(4, 3, 8, 8)).weight.shape
        torch.Size([4, 1])

    Args:
        acts: 0-d bool, whether the layer acts in this step.
        permutation: (N,) int64, the partner of each sample.
        weight: (N, 1) float32, lambda: how much of its own moments a sample keeps.
    """

    acts: Tensor
    permutation: Tensor
    weight: Tensor


@final
class MixStyle(MomentNorm):
    """Give every sample a style between its own and that of a random other sample.

    With s = sqrt(v_u + eps), lambda_n ~ Beta(alpha, alpha), pi a permutation of the batch, and all moments constants:

        s_mix = lambda * s + (1 - lambda) * s_pi        m_mix = lambda * m + (1 - lambda) * m_pi
        y = s_mix * (x - m) / s + m_mix

    Meant for the early and middle stages of a network; the last one should keep its styles.

    Example:
        >>> norm = MixStyle()
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C, checked if given.
        p: probability that the layer acts in a training step.
        alpha: of Beta(alpha, alpha); small values keep lambda near 0 and 1.
        eps: added to the unbiased variance under the root, in squared units of x.
        mix: "random" pairs any two samples; "crossdomain" expects a batch made of two halves, one domain each, and
            takes the partner from the other half. In an odd batch the middle sample goes with both halves: it may be
            the partner of one in the first half, and its own partner is in the second half or itself.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: no parameters, no buffers. ``active`` and ``mix`` are plain attributes that may change between steps: the
        semi-supervised recipe switches the layer off for some batches, or mixes at random within labelled batches and
        across domains with unlabelled ones. A compiled model recompiles once for each value.
    Modes: acts in training; in evaluation, with ``active = False`` and with p = 0 it returns x itself.
    Raises: ValueError for p outside [0, 1], alpha or eps not positive, an unknown mix, or another channel count.
    Cost: two reads and one write of x forward, one and one backward; keeps nothing of x's size for backward. In the
        steps in which it does not act nothing on a CPU, which returns x itself; on a GPU, or compiled, the same, and x
        up to rounding.
    Source: Zhou et al., "Domain Generalization with MixStyle", ICLR 2021, arXiv:2104.02008.
    Differences: torch's generator on x's device instead of Python's ``random``; half precision stays half; odd batches
        work with "crossdomain" as in Dassl (the older copies raise), batches of one too; planes of a single element mix
        their means where the authors' give NaN.
    """

    constant_moments: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int | None = None,
        *,
        p: float = 0.5,
        alpha: float = 0.1,
        eps: float = 1e-6,
        mix: Literal["random", "crossdomain"] = "random",
    ) -> None:
        super().__init__(num_features)
        check_mixing("MixStyle", p, alpha, mix)
        if not eps > 0:
            raise ValueError(f"MixStyle: expected eps above 0, got {eps}.")
        self.p = p
        self.alpha = alpha
        self.eps = eps
        self.mix: Literal["random", "crossdomain"] = mix
        self.active = True

    @property
    def is_identity(self) -> bool:
        """Whether x passes untouched: in evaluation, when not ``active``, or when p is 0.

        Example:
            >>> MixStyle().is_identity, MixStyle().eval().is_identity
            (False, True)
        """
        return not (self.training and self.active and self.p > 0)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> MixStyleDraw:
        """Whether to act, each sample's partner, and each sample's weight.

        Example:
            >>> MixStyle(p=1.0).draw(torch.randn(4, 3, 8)).acts
            tensor(True)
        """
        acts = torch.rand((), device=x.device, generator=generator) <= self.p
        weight = draw_beta((x.shape[0], 1), self.alpha, x.device, generator)
        return MixStyleDraw(acts, draw_partners(x, self.mix, generator), weight)

    def affine(self, m: Moments, draw: MixStyleDraw) -> Affine:
        """Mixed deviation over own deviation, and mixed mean.

        Example:
            >>> m = Moments(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), 9)
            >>> draw = MixStyleDraw(torch.tensor(True), torch.tensor([1, 0]), torch.tensor([[0.75], [1.0]]))
            >>> MixStyle().affine(m, draw).mean
            tensor([[0.5000],
                    [2.0000]])
        """
        check_partners("MixStyle", draw.permutation, m.mean.shape[0])
        own, other = draw.weight, 1 - draw.weight
        std = m.deviation(self.eps)
        mixed_std = own * std + other * std.index_select(0, draw.permutation)
        mixed_mean = own * m.mean + other * m.mean.index_select(0, draw.permutation)
        gain = torch.where(draw.acts, mixed_std / std, 1.0)
        return Affine(gain, torch.where(draw.acts, mixed_mean, m.mean))

    def extra_repr(self) -> str:
        """The arguments.

        Example:
            >>> MixStyle()
            MixStyle(p=0.5, alpha=0.1, eps=1e-06, mix='random')
        """
        return f"p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix!r}"


def check_mixing(who: str, p: float, alpha: float, mix: str) -> None:
    """Refuse a probability, a Beta parameter or a way of pairing that make no sense.

    Example:
        >>> MixStyle(p=2.0)
        Traceback (most recent call last):
        ...
        ValueError: MixStyle: expected p in [0, 1], got 2.0.

    Raises:
        ValueError: if one of them is out of range.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"{who}: expected p in [0, 1], got {p}.")
    if not alpha > 0:
        raise ValueError(f"{who}: expected alpha above 0, got {alpha}.")
    if mix not in ("random", "crossdomain"):
        raise ValueError(f"{who}: expected mix 'random' or 'crossdomain', got {mix!r}.")
