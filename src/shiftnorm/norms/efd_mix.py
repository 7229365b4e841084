"""EFDMix and exact feature distribution matching: styles exchanged as whole distributions, by sorting."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from shiftnorm.norms.base import NormLayer, check_input
from shiftnorm.norms.draws import check_partners, draw_beta, draw_partners
from shiftnorm.norms.mix_style import check_mixing
from shiftnorm.ops import is_traced
from shiftnorm.ops.dispatch import is_batched
from shiftnorm.ops.on_chip import planes_to_sort

__all__ = ["EFDMix", "EFDMixDraw", "match_distribution"]


class EFDMixDraw(NamedTuple):
    """The random numbers of one call of EFDMix.

    Example:
        >>> EFDMix().draw(torch.randn(4, 3, 8, 8)).weight.shape
        torch.Size([4, 1])

    Args:
        acts: 0-d bool, whether the layer acts in this step.
        permutation: (N,) int64, the partner of each sample.
        weight: (N, 1) float32, lambda: how much of its own values a sample keeps.
        order: (N, C, L) int64, the indices that sort each flattened plane; None sorts x stably. Only to repeat another
            implementation's choice among equal values.
    """

    acts: Tensor
    permutation: Tensor
    weight: Tensor
    order: Tensor | None = None


@final
class EFDMix(NormLayer):
    """Move every plane's values towards those of the same rank in another sample (outside the moment family).

    With lambda_n ~ Beta(alpha, alpha), pi a permutation of the batch, and rank(x) the position of each element in its
    sorted plane, where equal values rank in memory order (a stable sort: dead ReLUs have many):

        t = sorted(x_pi)[rank(x)]
        y = lambda * x + (1 - lambda) * t

    The gradient is the authors' choice and not the derivative: x receives g whole, not lambda * g, and the element of
    x_pi that became t receives (1 - lambda) * g. A sample that is its own partner, as in a batch of one, gets both.

    Example:
        >>> norm = EFDMix()
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C, checked if given.
        p: probability that the layer acts in a training step.
        alpha: of Beta(alpha, alpha); small values keep lambda near 0 and 1.
        mix: "random" or "crossdomain", as in MixStyle.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: no parameters, no buffers. ``active`` and ``mix`` are plain attributes, as in MixStyle.
    Modes: acts in training; in evaluation, with ``active = False`` and with p = 0 it returns x itself.
    Raises: ValueError for p outside [0, 1], alpha not positive, an unknown mix, another channel count, or a mask:
        planes of different lengths have no ranks in common.
    Cost: one sort with indices, a gather of the batch and a scatter forward; a gather and a scatter backward. Keeps two
        bytes per element for backward (four for planes beyond 32768 elements; eight when traced) and not x. In the
        steps in which it does not act nothing on a CPU, which returns x itself; on a GPU, or compiled, the same.
    Source: Zhang et al., "Exact Feature Distribution Matching for Arbitrary Style Transfer and Domain Generalization",
        CVPR 2022, arXiv:2203.07740.
    Differences: one sort where the authors make two; the stable order makes results the same on every device; torch's
        generator on x's device instead of Python's ``random``; mixed in float32, half precision stays half; odd batches
        work with "crossdomain"; no eps, which theirs has and never uses.
    """

    def __init__(
        self,
        num_features: int | None = None,
        *,
        p: float = 0.5,
        alpha: float = 0.1,
        mix: Literal["random", "crossdomain"] = "random",
    ) -> None:
        super().__init__(num_features)
        check_mixing("EFDMix", p, alpha, mix)
        self.p = p
        self.alpha = alpha
        self.mix: Literal["random", "crossdomain"] = mix
        self.active = True

    @property
    def is_identity(self) -> bool:
        """Whether x passes untouched: in evaluation, when not ``active``, or when p is 0.

        Example:
            >>> EFDMix().is_identity, EFDMix().eval().is_identity
            (False, True)
        """
        return not (self.training and self.active and self.p > 0)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> EFDMixDraw:
        """Whether to act, each sample's partner, and each sample's weight.

        Example:
            >>> EFDMix(p=1.0).draw(torch.randn(4, 3, 8)).acts
            tensor(True)
        """
        acts = torch.rand((), device=x.device, generator=generator) <= self.p
        weight = draw_beta((x.shape[0], 1), self.alpha, x.device, generator)
        return EFDMixDraw(acts, draw_partners(x, self.mix, generator), weight)

    def forward(self, x: Tensor, *, draw: EFDMixDraw | None = None, mask: Tensor | None = None) -> Tensor:
        """Mix the distributions of x.

        Example:
            >>> x = torch.tensor([[[3.0, 1.0, 2.0]], [[40.0, 50.0, 60.0]]])
            >>> EFDMix()(x, draw=EFDMixDraw(torch.tensor(True), torch.tensor([1, 0]), torch.zeros(2, 1)))
            tensor([[[60., 40., 50.]],
            <BLANKLINE>
                    [[ 1.,  2.,  3.]]])

        Args:
            x: (N, C, *), floating point.
            draw: what :meth:`draw` returned, to replay it; None draws anew.
            mask: must be None.

        Returns:
            Tensor of x's shape, dtype and memory format.
        """
        check_input(self, x)
        if mask is not None:
            raise ValueError(
                "EFDMix: expected mask to be None, got a tensor. Planes of different lengths have no ranks in common."
            )
        if self.is_identity or x.shape[0] == 0:
            return x
        draw = self.draw(x) if draw is None else draw
        check_partners("EFDMix", draw.permutation, x.shape[0])
        if self.rests(draw):
            return x
        planes = _planes(x)
        share = torch.where(draw.acts, 1 - draw.weight, 0.0).unsqueeze(-1)
        if is_traced(x):
            return _mixed(planes, share, draw.permutation, draw.order)[0].view_as(x)
        return _Mix.apply(planes, share, draw.permutation, draw.order).view_as(x)  # pyright: ignore

    def extra_repr(self) -> str:
        """The arguments.

        Example:
            >>> EFDMix()
            EFDMix(p=0.5, alpha=0.1, mix='random')
        """
        return f"p={self.p}, alpha={self.alpha}, mix={self.mix!r}"


def match_distribution(
    content: Tensor, style: Tensor, *, order: Tensor | None = None, style_order: Tensor | None = None
) -> Tensor:
    """Give every plane of ``content`` exactly the values of the same plane of ``style``, in content's ranking.

    The gradient is the authors': content receives g unchanged, and every element of style that of the place it went to.

    Example:
        >>> content, style = torch.tensor([[[3.0, 1.0, 2.0]]]), torch.tensor([[[40.0, 60.0, 50.0]]])
        >>> match_distribution(content, style)
        tensor([[[60., 40., 50.]]])

    Args:
        content: (N, C, *), floating point.
        style: of the same N, C, dtype and number of elements per plane.
        order: (N, C, L) int64, the indices that sort content's flattened planes; None sorts stably.
        style_order: the same for style.

    Returns:
        Tensor of content's shape, dtype and memory format.

    Raises:
        ValueError: if the shapes or dtypes do not match.
    """
    planes, style_planes = (_planes(x) if x.dim() > 1 else x for x in (content, style))
    if planes.dim() != 3 or planes.shape != style_planes.shape or planes.dtype != style_planes.dtype:
        raise ValueError(
            "match_distribution: expected content and style of shape (N, C, *) with equally many elements per plane "
            f"and of one dtype, got {tuple(content.shape)} {content.dtype} and {tuple(style.shape)} {style.dtype}. "
            "Resize the style to the content."
        )
    _, ranking = _sorted(planes.detach(), order)
    values, _ = _sorted(style_planes, style_order)
    # The difference is zero in value, so the result is the style's values to the bit, and carries g to the content.
    return (_placed(values, ranking, planes) + (planes - planes.detach())).view_as(content)


def _planes(x: Tensor) -> Tensor:
    # channels-last planes have strides that merge too, so this is a view for either memory format
    return x.unsqueeze(-1) if x.dim() == 2 else x.flatten(2)


def _sorted(planes: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    if order is None:
        return torch.sort(planes, dim=-1, stable=True)
    return planes.gather(-1, order), order


def _placed(values: Tensor, order: Tensor, planes: Tensor) -> Tensor:
    # One scatter is gather(argsort(argsort)): element order[r] has rank r.
    return torch.zeros_like(planes).scatter(-1, order, values)


def _mixed(planes: Tensor, share: Tensor, permutation: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    values, order = _sorted(planes, order)
    matched = _placed(values.index_select(0, permutation), order, planes)
    wide = planes if planes.dtype == torch.float64 else planes.float()
    return (wide + (matched - wide.detach()) * share).to(planes.dtype), order


class _Mix(torch.autograd.Function):
    """Autograd would keep the order in int64, twice the size of a float32 x; the shortest dtype does."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, planes: Tensor, share: Tensor, permutation: Tensor, order: Tensor | None
    ) -> Tensor:
        ctx.launch = planes_to_sort(planes, share, permutation) if order is None else None
        if ctx.launch is not None:
            from shiftnorm.ops import triton_sort

            y, short = triton_sort.mix(planes, ctx.launch, share, permutation)
            ctx.save_for_backward(short, share, permutation)
            return y
        y, order = _mixed(planes, share, permutation, order)
        ctx.save_for_backward(order.to(torch.int16 if planes.shape[-1] <= 1 << 15 else torch.int32), share, permutation)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore
        short, share, permutation = ctx.saved_tensors
        if ctx.launch is not None and not torch.is_grad_enabled() and not is_batched(g):
            from shiftnorm.ops import triton_sort

            return triton_sort.mix_gradient(g, ctx.launch, short, share, permutation), None, None, None
        order = short.long()
        wide = g if g.dtype == torch.float64 else g.float()
        by_rank = (wide * share).gather(-1, order)
        to_style = torch.zeros_like(by_rank).index_add(0, permutation, by_rank)
        return (wide + _placed(to_style, order, wide)).to(g.dtype), None, None, None
