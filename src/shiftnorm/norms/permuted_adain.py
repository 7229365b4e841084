"""Permuted adaptive instance normalization (pAdaIN)."""

from __future__ import annotations

from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.draws import check_partners, draw_partners
from shiftnorm.ops import Affine, Moments

__all__ = ["PermutedAdaIN", "PermutedAdaINDraw"]


class PermutedAdaINDraw(NamedTuple):
    """The random numbers of one call of PermutedAdaIN.

    Example:
        >>> PermutedAdaIN().draw(torch.randn(4, 3, 8, 8)).permutation.shape
        torch.Size([4])

    Args:
        acts: 0-d bool, whether the layer acts in this step.
        permutation: (N,) int64, the sample that gives each sample its style; not looked at with style "second_half".
    """

    acts: Tensor
    permutation: Tensor


@final
class PermutedAdaIN(MomentNorm):
    """Now and then, swap the moments of all samples within the batch.

    With s = sqrt(v_u + eps), pi a permutation of the batch and sg() a constant (no gradient into the style):

        y = sg(s_pi) * (x - m) / (s + eps) + sg(m_pi)

    Meant for every convolution of a network, before its BatchNorm, each with a coin of its own.

    Example:
        >>> norm = PermutedAdaIN(p=1.0)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C, checked if given.
        p: probability that the layer acts in a training step.
        eps: added to the unbiased variance under the root, and once more to the deviation it divides by.
        style: "permuted" as above; "second_half" gives sample n of the first half of the batch the style of sample
            n + N // 2 and leaves the second half (and the last sample of an odd batch) alone: FADA's adversarial
            training, whose batches are source images followed by target images. A plain attribute that may change
            between steps.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: no parameters, no buffers.
    Modes: acts in training; in evaluation, and with p = 0, it returns x itself.
    Raises: ValueError for p outside [0, 1], eps not positive, an unknown style, or another channel count.
    Cost: two reads and one write of x forward, four and one backward. In the steps in which it does not act nothing on
        a CPU, which returns x itself; on a GPU, or compiled, the same, and x up to rounding.
    Source: Nuriel et al., "Permuted AdaIN: Reducing the Bias Towards Global Statistics in Image Classification",
        CVPR 2021, arXiv:2010.05785.
    Differences: torch's generator on x's device instead of Python's ``random``; any rank; "second_half" with an odd
        batch. Batches of one and planes of a single element pass unchanged, as in the authors' code, but silently.
    """

    def __init__(
        self,
        num_features: int | None = None,
        *,
        p: float = 0.01,
        eps: float = 1e-5,
        style: Literal["permuted", "second_half"] = "permuted",
    ) -> None:
        super().__init__(num_features)
        if not 0 <= p <= 1:
            raise ValueError(f"PermutedAdaIN: expected p in [0, 1], got {p}.")
        if not eps > 0:
            raise ValueError(f"PermutedAdaIN: expected eps above 0, got {eps}.")
        if style not in ("permuted", "second_half"):
            raise ValueError(f"PermutedAdaIN: expected style 'permuted' or 'second_half', got {style!r}.")
        self.p = p
        self.eps = eps
        self.style: Literal["permuted", "second_half"] = style

    @property
    def is_identity(self) -> bool:
        """Whether x passes untouched: in evaluation, or when p is 0.

        Example:
            >>> PermutedAdaIN().is_identity, PermutedAdaIN().eval().is_identity
            (False, True)
        """
        return not (self.training and self.p > 0)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> PermutedAdaINDraw:
        """Whether to act, and who gives each sample its style.

        Example:
            >>> PermutedAdaIN(p=1.0).draw(torch.randn(4, 3, 8)).acts
            tensor(True)
        """
        acts = torch.rand((), device=x.device, generator=generator) < self.p
        return PermutedAdaINDraw(acts, draw_partners(x, "random", generator))

    def affine(self, m: Moments, draw: PermutedAdaINDraw) -> Affine:
        """Style deviation over own deviation, and the style's mean.

        Example:
            >>> m = Moments(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), 9)
            >>> PermutedAdaIN().affine(m, PermutedAdaINDraw(torch.tensor(True), torch.tensor([1, 0]))).mean
            tensor([[2.],
                    [0.]])
        """
        size = m.mean.shape[0]
        if size < 2 or (isinstance(m.count, int) and m.count < 2):
            return Affine(torch.ones_like(m.mean), m.mean)
        check_partners("PermutedAdaIN", draw.permutation, m.mean.shape[0])
        acts, source = draw.acts, draw.permutation
        if isinstance(m.count, Tensor):
            acts = acts & (m.count > 1)
        if self.style == "second_half":
            sample = torch.arange(size, device=m.mean.device)
            in_first_half = sample < size // 2
            acts = acts & in_first_half.unsqueeze(1)
            source = torch.where(in_first_half, sample + size // 2, sample)
        std = m.deviation(self.eps)
        style_mean, style_std = m.mean.detach().index_select(0, source), std.detach().index_select(0, source)
        gain = torch.where(acts, style_std / (std + self.eps), 1.0)
        return Affine(gain, torch.where(acts, style_mean, m.mean))

    def extra_repr(self) -> str:
        """The arguments.

        Example:
            >>> PermutedAdaIN()
            PermutedAdaIN(p=0.01, eps=1e-05, style='permuted')
        """
        return f"p={self.p}, eps={self.eps}, style={self.style!r}"
