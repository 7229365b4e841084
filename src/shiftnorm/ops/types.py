"""The two tuples everything is made of, and their algebra on (N, C) tensors."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Affine", "Moments"]


class Moments(NamedTuple):
    """Mean and biased variance of every (sample, channel) plane, and how many elements each is made of.

    Example:
        >>> from shiftnorm.ops import moments
        >>> m = moments(torch.arange(8.0).reshape(1, 2, 4))
        >>> m.mean, m.var, m.count
        (tensor([[1.5000, 5.5000]]), tensor([[1.2500, 1.2500]]), 4)
        >>> m.pooled(over="channels").mean
        tensor([[3.5000]])

    Args:
        mean: (N, C), or a shape that broadcasts to it after pooling: (1, C) over the batch, (N, 1) over channels.
        var: biased variance (divided by ``count``), same shape as ``mean``.
        count: elements per plane; an int, or an (N, 1) tensor when a mask makes it differ between samples.
    """

    mean: Tensor
    var: Tensor
    count: int | Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.count)

    @property
    def unbiased(self) -> Tensor:
        """The variance divided by ``count - 1``; planes of a single element keep their variance, 0.

        Example:
            >>> Moments(torch.zeros(1, 1), torch.full((1, 1), 3.0), 4).unbiased
            tensor([[4.]])
        """
        if isinstance(self.count, Tensor):
            return self.var * (self.count / (self.count - 1).clamp(min=1))
        return self.var * (self.count / max(self.count - 1, 1))

    def deviation(self, eps: float) -> Tensor:
        """``sqrt(unbiased + eps)``: the standard deviation that norms of style divide and multiply by.

        Example:
            >>> Moments(torch.zeros(1, 1), torch.full((1, 1), 3.0), 4).deviation(eps=5.0)
            tensor([[3.]])

        Args:
            eps: added to the unbiased variance under the root.
        """
        if isinstance(self.count, Tensor) or torch.compiler.is_compiling():  # alpha may be no symbol
            return torch.sqrt(self.unbiased + eps)
        # eps + bessel * var in one kernel
        return torch.rsub(self.var, eps, alpha=-self.count / max(self.count - 1, 1)).sqrt()

    def detach(self) -> Moments:
        """The same moments as constants: no gradient flows into them.

        Example:
            >>> Moments(torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1), 4).detach().mean.requires_grad
            False
        """
        return Moments(self.mean.detach(), self.var.detach(), self.count)

    def permuted(self, index: Tensor) -> Moments:
        """The moments of ``x[index]``: sample n gets the moments of sample ``index[n]``.

        Example:
            >>> Moments(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1), 4).permuted(torch.tensor([1, 0])).mean
            tensor([[2.],
                    [1.]])
        """
        count = self.count.index_select(0, index) if isinstance(self.count, Tensor) else self.count
        return Moments(self.mean.index_select(0, index), self.var.index_select(0, index), count)

    def through(self, affine: Affine) -> Moments:
        """The moments of ``affine`` applied to these planes: exactly ``(affine.mean, gain^2 * var)``.

        Example:
            >>> m = Moments(torch.ones(1, 1), torch.ones(1, 1), 4)
            >>> m.through(Affine(gain=torch.tensor([[3.0]]), mean=torch.tensor([[5.0]])))[:2]
            (tensor([[5.]]), tensor([[9.]]))
        """
        var = affine.gain * affine.gain * self.var
        return Moments(affine.mean.expand_as(var), var, self.count)

    def pooled(
        self,
        over: Literal["batch", "channels", "groups"],
        *,
        groups: int | None = None,
        process_group: object | None = None,
    ) -> Moments:
        """Moments of several planes seen as one, by the law of total variance: no second look at x.

        Example:
            >>> m = Moments(torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1), 1)
            >>> m.pooled(over="batch")
            Moments(mean=tensor([[1.]]), var=tensor([[1.]]), count=2)

        Args:
            over: ``"batch"`` gives (1, C), ``"channels"`` gives (N, 1), ``"groups"`` pools ``groups`` equal runs of
                channels and gives (N, C), each channel carrying its group's moments.
            groups: number of groups; with ``over="groups"`` only.
            process_group: with ``over="batch"``, also pool over the ranks of this torch.distributed group (unequal
                shards are weighted by their counts; gradients flow back to every rank).

        Raises:
            ValueError: if ``over`` is unknown or ``groups`` does not divide the channels.
        """
        if over == "batch":
            local = self._pool(dim=0)
            return local if process_group is None else local._all_ranks(process_group)
        if over == "channels":
            return self._pool(dim=1)
        if over != "groups":
            raise ValueError(f"Moments.pooled: expected over='batch', 'channels' or 'groups', got {over!r}.")
        channels = self.mean.shape[1]
        if not groups or channels % groups:
            raise ValueError(f"Moments.pooled: expected groups to divide the {channels} channels, got {groups}.")
        split = (self.mean.shape[0], groups, channels // groups)
        grouped = Moments(self.mean.reshape(split), self.var.reshape(split), self.count)._pool(dim=2)
        mean, var = (tensor.expand(split).reshape_as(self.mean) for tensor in grouped[:2])
        return Moments(mean, var, grouped.count)

    def _pool(self, dim: int) -> Moments:
        if dim == 0 and isinstance(self.count, Tensor):  # only samples differ in their counts
            total = self.count.sum(0, keepdim=True)
            weight = self.count / total.clamp(min=1)  # 0, not NaN, where a mask leaves nothing
            mean = (weight * self.mean).sum(0, keepdim=True)
            return Moments(mean, (weight * (self.var + (self.mean - mean).square())).sum(0, keepdim=True), total)
        size = self.mean.shape[dim]
        if size == 0:  # 0, not the NaN of an empty mean
            return Moments(self.mean.sum(dim, keepdim=True), self.var.sum(dim, keepdim=True), self.count * size)
        mean = self.mean.mean(dim, keepdim=True)
        deviation = self.mean - mean
        return Moments(mean, torch.addcmul(self.var, deviation, deviation).mean(dim, keepdim=True), self.count * size)

    def _all_ranks(self, process_group: object) -> Moments:
        # Each rank fills its own slot and one differentiable sum fills the rest, so a single collective carries
        # (count, mean, var); the combination is then centred and does not cancel as sums of squares would.
        from torch import distributed

        rank = distributed.get_rank(process_group)  # pyright: ignore[reportArgumentType]
        world = distributed.get_world_size(process_group)  # pyright: ignore[reportArgumentType]
        # filled on the device: a tensor made of a host number would wait for a GPU
        count = self.count if isinstance(self.count, Tensor) else torch.full_like(self.mean, self.count)
        rows = torch.stack([count.to(self.mean).expand_as(self.mean), self.mean, self.var])
        slots = F.pad(rows.unsqueeze(0), (0, 0, 0, 0, 0, 0, rank, world - rank - 1))
        counts, means, variances = _SumOverRanks.apply(slots, process_group).unbind(1)  # pyright: ignore
        total = counts.sum(0)
        weight = counts / total.clamp(min=1)
        mean = (weight * means).sum(0)
        var = (weight * (variances + (means - mean).square())).sum(0)
        return Moments(mean, var, total[:, :1])


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, process_group: object) -> Tensor:  # pyright: ignore
        ctx.process_group = process_group
        total = x.clone()
        torch.distributed.all_reduce(total, group=process_group)  # pyright: ignore
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore
        return _SumOverRanks.apply(g, ctx.process_group), None


class Affine(NamedTuple):
    """What to do with every plane: ``y = gain * (x - m.mean) + mean``, so ``mean`` is the plane's new mean.

    Example:
        >>> Affine(torch.tensor([[2.0]]), torch.tensor([[1.0]])).then(Affine(torch.tensor([[3.0]]), torch.zeros(1, 1)))
        Affine(gain=tensor([[6.]]), mean=tensor([[0.]]))

    Args:
        gain: (N, C) or broadcastable to it.
        mean: (N, C) or broadcastable to it.
    """

    gain: Tensor
    mean: Tensor

    def then(self, following: Affine) -> Affine:
        """This affine, then one computed from ``m.through(self)``: gains multiply, the last mean wins.

        Example:
            >>> first = Affine(torch.tensor([[2.0]]), torch.tensor([[9.0]]))
            >>> first.then(Affine(torch.tensor([[3.0]]), torch.tensor([[4.0]]))).mean
            tensor([[4.]])
        """
        return Affine(self.gain * following.gain, following.mean)
