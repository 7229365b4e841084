"""CrossNorm: planes exchange their means and deviations during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.boxes import draw_box, inside_box
from shiftnorm.norms.draws import check_partners, draw_permutation, is_known
from shiftnorm.ops import Affine, Exchange, Moments, normalize

__all__ = ["CrossNorm", "CrossNormDraw", "restyle"]


class CrossNormDraw(NamedTuple):
    """The random numbers of one CrossNorm call.

    Example:
        >>> CrossNorm(3).draw(torch.randn(4, 3, 8, 8)).partner.shape
        torch.Size([4])

    Args:
        acts: 0-d bool, whether the layer acts in this call.
        partner: (N,) int64, the sample (or the entry of the pool) that lends its style to sample n.
        channels: (C,) int64, which channel of the partner lends its style to channel c; None keeps them in place.
        style_box: (2d,) int64, the part of the partner whose moments are the style: d lower corners, then d upper ones.
        content_box: (2d,) int64, the part of x that is restyled.
    """

    acts: Tensor
    partner: Tensor
    channels: Tensor | None = None
    style_box: Tensor | None = None
    content_box: Tensor | None = None


@final
class CrossNorm(MomentNorm):
    """Give every plane the mean and deviation of another one, in training only.

    With s = sqrt(v_u + eps) the unbiased deviation of a plane and (k, j) the partner of plane (n, c):

        y[n, c] = s[k, j] / s[n, c] * (x[n, c] - m[n, c]) + m[k, j]
        y = blend * x + (1 - blend) * y                        # if blend is given

    It shows the network every image in the style of others, and thereby what style does not say about the class.

    Example:
        >>> norm = CrossNorm()
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C to insist on; None takes any.
        eps: added to the unbiased variance under the root.
        mode: where the style comes from: "2-instance", another sample's same channel; "1-instance", another channel of
            the same sample; "both", another channel of another sample.
        crop: "neither"; "style" takes the partner's moments from a random box; "content" restyles a random box of x
            only; "both" draws a box for each. One pair of boxes serves the whole batch.
        beta: the boxes' area is drawn from Beta(beta, beta).
        min_area: boxes of at most this share of the plane are drawn again, 64 times at most; then the whole plane is
            the box. Boxes are cut at the border, so that a share above 0.6 is often the whole plane.
        blend: share of the input that stays, in [0, 1]; None is 0.
        p: probability that the layer acts in a training call, while its ``active`` flag is on.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: none in the state_dict. ``active`` is a 0-d bool buffer that CrossNormController switches. ``pool`` holds
        given Moments (K, C) to draw styles from, instead of the batch.
    Modes: training acts with probability ``p`` if active; evaluation is the identity and returns x itself.
    Raises: ValueError for unknown modes and crops, values out of range, or another channel count.
    Cost: two reads and one write of x; nothing more behind a BatchNorm in a Chain (without crops). Crops read the box
        too. Nothing on a CPU, uncompiled, in the steps in which it does not act.
    Source: Tang et al., "CrossNorm and SelfNorm for Generalization under Distribution Shifts", ICCV 2021.
    Differences: any rank; the 1-instance mode of the paper, which the released code cannot reach; planes of 1 element
        exchange means where the authors get NaN; planes with a side of 1 or 2 use the whole plane where their box
        search never ends; draws are device tensors, so nothing synchronises and torch.compile sees no branch.
    """

    active: Tensor
    pool_mean: Tensor | None
    pool_var: Tensor | None
    official_prefix: ClassVar[str] = "crossnorm."

    def __init__(
        self,
        num_features: int | None = None,
        eps: float = 1e-5,
        *,
        mode: Literal["2-instance", "1-instance", "both"] = "2-instance",
        crop: Literal["neither", "style", "content", "both"] = "neither",
        beta: float = 1.0,
        min_area: float = 0.1,
        blend: float | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(num_features)
        if mode not in ("2-instance", "1-instance", "both"):
            raise ValueError(f"CrossNorm: expected mode '2-instance', '1-instance' or 'both', got {mode!r}.")
        if crop not in ("neither", "style", "content", "both"):
            raise ValueError(f"CrossNorm: expected crop 'neither', 'style', 'content' or 'both', got {crop!r}.")
        if not beta > 0:
            raise ValueError(f"CrossNorm: expected beta above 0, got {beta}.")
        if not 0 <= min_area < 1:
            raise ValueError(f"CrossNorm: expected min_area in [0, 1), got {min_area}.")
        if blend is not None and not 0 <= blend <= 1:
            raise ValueError(f"CrossNorm: expected blend in [0, 1] or None, got {blend}.")
        if not 0 <= p <= 1:
            raise ValueError(f"CrossNorm: expected p in [0, 1], got {p}.")
        self.eps, self.mode, self.crop, self.beta = eps, mode, crop, beta
        self.min_area, self.blend, self.p = min_area, blend, p
        # No buffer: DistributedDataParallel would overwrite it by rank 0's in every forward.
        self.active = torch.tensor(True)
        self._pool_count: int | Tensor = 1
        self.register_buffer("pool_mean", None, persistent=False)
        self.register_buffer("pool_var", None, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossNorm:
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        self.active = fn(self.active)
        if isinstance(self._pool_count, Tensor):
            self._pool_count = fn(self._pool_count)
        return self

    @property
    def pool(self) -> Moments | None:
        """Given Moments (K, C) to draw styles from; None draws them from the batch.

        Example:
            >>> norm = CrossNorm(3)
            >>> norm.pool = Moments(torch.zeros(5, 3), torch.ones(5, 3), 64)
            >>> norm.draw(torch.randn(2, 3, 8, 8)).partner.max() < 5
            tensor(True)

        Raises:
            ValueError: on setting moments that are not (K, C) with K of at least 1.
        """
        if self.pool_mean is None or self.pool_var is None:
            return None
        return Moments(self.pool_mean, self.pool_var, self._pool_count)

    @pool.setter
    def pool(self, pool: Moments | None) -> None:
        if pool is None:
            self.pool_mean = self.pool_var = None
            return
        if self.crop in ("style", "both"):
            raise ValueError(
                f"CrossNorm: crop={self.crop!r} takes styles from boxes of the batch, so a pool has no use."
            )
        shape = tuple(pool.mean.shape)
        if (
            len(shape) != 2
            or shape[0] < 1
            or shape[1] != (self.num_features or shape[1])
            or pool.var.shape != pool.mean.shape
        ):
            raise ValueError(f"CrossNorm.pool: expected moments of shape (K, {self.num_features or 'C'}), got {shape}.")
        self.pool_mean, self.pool_var, self._pool_count = pool.mean, pool.var, pool.count

    @property
    def is_identity(self) -> bool:
        """True outside training.

        Example:
            >>> CrossNorm().eval().is_identity
            True
        """
        return not self.training

    @property
    def is_regional(self) -> bool:
        """True with any crop.

        Example:
            >>> CrossNorm().is_regional, CrossNorm(crop="both").is_regional
            (False, True)
        """
        return self.crop != "neither"

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> CrossNormDraw:
        """Who takes whose style, where, and whether at all.

        Example:
            >>> norm = CrossNorm(mode="1-instance", crop="both")
            >>> draw = norm.draw(torch.randn(2, 3, 8, 8))
            >>> draw.partner, draw.content_box.shape
            (tensor([0, 1]), torch.Size([4]))

        Args:
            x: (N, C, *); only its shape and device are looked at.
            generator: a generator on x's device.
        """
        device, samples = x.device, x.shape[0]
        # copied, as a controller changes the flag between a draw and its replay
        acts = self.active.clone() if self.active.device == device else self.active.to(device)
        if self.p < 1:
            acts = acts & (torch.rand((), device=device, generator=generator) < self.p)
        if self.pool_mean is not None:
            partner = torch.randint(self.pool_mean.shape[0], (samples,), device=device, generator=generator)
        elif self.mode == "1-instance":
            partner = torch.arange(samples, device=device)
        else:
            partner = draw_permutation(samples, device, generator)
        channels = None
        if self.mode != "2-instance":
            channels = draw_permutation(x.shape[1], device, generator)

        if not self.is_regional:
            return CrossNormDraw(acts, partner, channels)

        def box(wanted: bool) -> Tensor | None:
            return draw_box(x, self.beta, self.min_area, generator) if wanted else None

        return CrossNormDraw(acts, partner, channels, box(self.crop != "content"), box(self.crop != "style"))

    def step(self, m: Moments, draw: CrossNormDraw) -> Exchange | None:
        """The exchange, in the 2-instance mode without a crop, a blend or a pool.

        Example:
            >>> m, draw = Moments(torch.zeros(2, 3), torch.ones(2, 3), 9), torch.tensor([1, 0])
            >>> CrossNorm().step(m, CrossNormDraw(torch.tensor(True), draw)).eps
            1e-05
        """
        check_partners("CrossNorm", draw.partner, m.mean.shape[0])
        if self.pool_mean is not None or self.blend is not None or self.is_regional or draw.channels is not None:
            return None
        return Exchange(draw.partner, self.eps, None if is_known(draw.acts) else draw.acts)

    def regions(self, x: Tensor, draw: CrossNormDraw) -> tuple[Tensor, ...]:
        """The boxes of the draw, as masks: first the style's, then the content's.

        Example:
            >>> norm, x = CrossNorm(crop="both"), torch.randn(2, 3, 8, 8)
            >>> [mask.shape for mask in norm.regions(x, norm.draw(x))]
            [torch.Size([1, 1, 8, 8]), torch.Size([1, 1, 8, 8])]
        """
        return tuple(inside_box(box, x) for box in (draw.style_box, draw.content_box) if box is not None)

    def acting_region(self, x: Tensor, draw: CrossNormDraw) -> Tensor | None:
        """The content's box as a mask; None with crops that restyle whole planes.

        Example:
            >>> norm, x = CrossNorm(crop="style"), torch.randn(2, 3, 8, 8)
            >>> norm.acting_region(x, norm.draw(x)) is None
            True
        """
        return None if draw.content_box is None else inside_box(draw.content_box, x)

    def affine(self, m: Moments, draw: CrossNormDraw, *regions: Moments) -> Affine:
        """Another plane's moments for every plane.

        Example:
            >>> norm = CrossNorm()
            >>> draw = CrossNormDraw(torch.tensor(True), torch.tensor([1, 0]))
            >>> m = Moments(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1), 9)
            >>> norm.affine(m, draw).mean
            tensor([[2.],
                    [1.]])
        """
        check_partners("CrossNorm", draw.partner, m.mean.shape[0])
        boxes = list(regions)
        style = self.pool or (m if draw.style_box is None else boxes.pop(0))
        content = m if draw.content_box is None else boxes.pop(0)
        partner, channels = draw.partner, draw.channels
        exchanges = style is content  # within one set of planes, resting is being one's own partner
        if exchanges and not (is_known(draw.acts) and bool(draw.acts)):
            partner = torch.where(draw.acts, partner, torch.arange(partner.shape[0], device=partner.device))
            if channels is not None:
                channels = torch.where(draw.acts, channels, torch.arange(channels.shape[0], device=channels.device))
        own_std = content.deviation(self.eps)
        std = own_std if exchanges else style.deviation(self.eps)
        mean, std = _rows(style.mean, partner), _rows(std, partner)
        if channels is not None:
            mean, std = mean.index_select(1, channels), std.index_select(1, channels)
        gain = std / own_std
        if content is not m:  # the affine is centred on m, the exchange on the content's mean
            mean = mean + gain * (m.mean - content.mean)
        if self.blend is not None:
            gain = self.blend + (1 - self.blend) * gain
            mean = self.blend * m.mean + (1 - self.blend) * mean
        if exchanges:
            return Affine(gain, mean)
        return Affine(torch.where(draw.acts, gain, 1.0), torch.where(draw.acts, mean, m.mean))

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> CrossNorm(crop="style")
            CrossNorm(mode='2-instance', crop='style', p=1.0)
        """
        head = "" if self.num_features is None else f"{self.num_features}, "
        return f"{head}mode={self.mode!r}, crop={self.crop!r}, p={self.p}"


def _rows(x: Tensor, index: Tensor) -> Tensor:
    # The gradient of an embedding is one kernel on a CPU; on a GPU it may wait for the device, that of a selection not.
    return F.embedding(index, x) if x.device.type == "cpu" else x.index_select(0, index)


def restyle(
    content: Tensor, style: Moments, *, eps: float = 1e-5, what: Literal["both", "mean", "std"] = "both"
) -> Tensor:
    """Give the planes of one tensor the moments of another's: AdaIN, CrossNorm without a draw.

    Example:
        >>> from shiftnorm.ops import moments
        >>> content, photo = torch.randn(2, 3, 8, 8), 5 + torch.randn(2, 3, 6, 9)
        >>> torch.allclose(moments(restyle(content, moments(photo))).mean, moments(photo).mean, atol=1e-5)
        True

    Args:
        content: (N, C, *), floating point.
        style: moments that broadcast to (N, C); gradients flow into them.
        eps: added to both unbiased variances under the root.
        what: take over "both", the "mean" alone, or the "std" alone (then the values are scaled, mean and all).

    Raises:
        ValueError: if ``what`` is unknown.
    """
    if what not in ("both", "mean", "std"):
        raise ValueError(f"restyle: expected what to be 'both', 'mean' or 'std', got {what!r}.")

    def affine(m: Moments) -> Affine:
        gain = style.deviation(eps) / m.deviation(eps)
        return Affine(torch.ones_like(gain) if what == "mean" else gain, gain * m.mean if what == "std" else style.mean)

    return normalize(content, affine)
