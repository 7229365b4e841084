"""Switchable Normalization: instance, layer and batch moments, mixed by learnt shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from shiftnorm.norms.base import MomentNorm, OfficialTensor
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Moments, Switch, switch

__all__ = ["SwitchNorm"]

# A plane whose variance is already unbiased must not be corrected again when moments are pooled or stored. Counting its
# elements this many times over makes Bessel's factor 1 to 2e-10 / M, and M batch elements still fit an int64.
_UNCORRECTED = 2**32

# Added to the logit of the batch part by start="batch": the other parts begin with a share of 5e-5 each.
_HEAD_START = 10.0


@final
class SwitchNorm(RunningMoments, MomentNorm):
    """Normalise by a mixture of the moments of the plane, the sample and the batch.

        mean = sum_k softmax(mean_weight)_k * mean_k,   var = sum_k softmax(var_weight)_k * var_k      # k: IN, LN, BN
        y = weight_c * (x - mean) / sqrt(var + eps) + bias_c

    var_IN is the plane's unbiased variance, and var_LN, var_BN are mean(var_IN + m^2) - mean(m)^2 over channels and
    over the batch.

    Example:
        >>> norm = SwitchNorm(16)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])
        >>> SwitchNorm(16, using_in=False)(torch.randn(4, 16)).shape
        torch.Size([4, 16])

    Args:
        num_features: channels C.
        eps: added to the mixed variance, in squared units of x.
        momentum: weight of the newest batch in the running moments; None averages all batches equally. The authors
            write the share that is kept: 0.9 in 2-D, this default, but 0.997 in 1-D and 3-D, which is
            ``momentum=0.003`` here.
        affine: learn ``weight`` and ``bias``.
        track_running_stats: keep running moments; without them evaluation uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        using_in: mix in the plane's own moments. False is the authors' 1-D form, for (N, C) where a plane is one value:
            LN and BN only, each with the unbiased variance of its elements.
        using_bn: mix in the batch's moments. False (for one image per GPU) keeps no buffers.
        using_moving_average: False starts an average over batches, see :meth:`start_average`.
        last_gamma: start ``weight`` from 0; for the last norm of a residual branch.
        start: "equal" shares, as published, or "batch": almost all for the batch's moments, so that a BatchNorm that is
            replaced keeps its function.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``mean_weight`` and ``var_weight`` (3,) from 1 (BN's from 11 with ``start="batch"``), in the order IN, LN, BN
        without those not used; ``weight`` from 1 and ``bias`` from 0, (C,); the buffers of RunningMoments, where
        ``running_var`` is var_BN as defined above.
    Modes: training pools the batch and updates the running moments; evaluation uses the running ones in the BN part.
        The IN and LN parts are the same in both.
    Raises: ValueError for another channel count, if neither IN nor BN is used, or for the sources "blend" and "ema"
        while an average over batches is being taken.
    Cost: two reads and one write of x; 2C + 6 parameters.
    Source: Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", ICLR 2019.
    Differences: planes of one element have variance 0 instead of NaN; ``momentum`` is torch's; running_var starts from
        1, so that a fresh norm evaluates like a fresh BatchNorm, where the authors' starts from 0; batches are counted;
        the average over batches can be finished, which the authors' code cannot, and evaluation is right before that
        too.
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
        *,
        using_in: bool = True,
        using_bn: bool = True,
        using_moving_average: bool = True,
        last_gamma: bool = False,
        start: Literal["equal", "batch"] = "equal",
    ) -> None:
        MomentNorm.__init__(self, num_features)
        if start not in ("equal", "batch"):
            raise ValueError(f"SwitchNorm: expected start 'equal' or 'batch', got {start!r}.")
        if start == "batch" and not using_bn:
            raise ValueError("SwitchNorm: expected using_bn=True for start='batch', got False.")
        if not (using_in or using_bn):
            raise ValueError("SwitchNorm: expected using_in or using_bn, got neither; LayerNorm is the norm for that.")
        self.eps = eps
        self.using_in = using_in
        self.using_bn = using_bn
        self.init_running(
            num_features,
            momentum=momentum,
            track_running_stats=track_running_stats,
            pools_batch=using_bn,
            device=device,
            dtype=dtype,
        )
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)
        if last_gamma and self.weight is not None:
            nn.init.zeros_(self.weight)
        parts = 1 + using_in + using_bn
        self.mean_weight = nn.Parameter(torch.ones(parts, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(parts, device=device, dtype=dtype))
        if start == "batch":
            with torch.no_grad():
                self.mean_weight[-1] += _HEAD_START
                self.var_weight[-1] += _HEAD_START
        self.official_rank = 4 if using_in else 2
        self.using_moving_average = True
        if not using_moving_average and self.running_mean is not None:
            self.start_average()

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean from the mixed moments.

        Example:
            >>> SwitchNorm(2).affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).gain.shape
            torch.Size([4, 2])
        """
        if self.using_in and self.using_bn and self.using_moving_average and self.has_kernel(m):
            of_mean, of_var = (torch.softmax(each.to(m.mean.dtype), 0) for each in (self.mean_weight, self.var_weight))
            pace = cast("float", self.momentum)
            affine = switch(m, Switch(of_mean, of_var, self.weight, self.bias, *self.updated(), pace, self.eps))
            if affine is not None:
                return affine
        means: list[Tensor] = []
        variances: list[Tensor] = []
        if self.using_in:
            planes = Moments(m.mean, m.unbiased, m.count * _UNCORRECTED)
            layer = planes.pooled(over="channels")
            means += [m.mean, layer.mean]
            variances += [planes.var, layer.var]
        else:
            planes = self._corrected_for_the_batch(m) if self.using_bn and self.uses_batch else m
            layer = m.pooled(over="channels")
            means.append(layer.mean)
            variances.append(layer.unbiased)
        if self.using_bn:
            batch = self.seen(planes) if self.using_moving_average else self._seen_in_average(planes)
            means.append(batch.mean)
            variances.append(batch.var)
        mean = _mixed(self.mean_weight, means)
        gain = torch.rsqrt(_mixed(self.var_weight, variances) + self.eps)
        if self.weight is not None:
            gain = self.weight * gain
        new = gain * (m.mean - mean)
        return Affine(gain, new if self.bias is None else new + self.bias)

    def _corrected_for_the_batch(self, m: Moments) -> Moments:
        """Planes whose pooled variance is the batch's unbiased one."""
        batch = m.pooled(over="batch", process_group=self.process_group)
        return Moments(m.mean, m.var + (batch.unbiased - batch.var), m.count * _UNCORRECTED)

    def start_average(self) -> None:
        """Forget the running moments and average those of the training batches from now on, all with equal weight.

        The buffers hold sums of means and second moments meanwhile. The authors' way to evaluate: train, then start the
        average, run some batches in training mode without a step, and finish it.
        A checkpoint saved meanwhile holds the sums and belongs into a norm that is averaging too.

        Example:
            >>> norm = SwitchNorm(2)
            >>> norm.start_average()
            >>> for _ in range(3):
            ...     _ = norm(torch.randn(64, 2, 8, 8) + 5)
            >>> norm.finish_average()
            >>> norm.running_mean.round(), norm.num_batches_tracked
            (tensor([5., 5.]), tensor(0))

        Raises:
            ValueError: if the norm keeps no running moments.
        """
        mean, var, count = self._buffers_or_refuse("start_average")
        for buffer in (mean, var, count):
            buffer.zero_()
        self.using_moving_average = False

    def finish_average(self) -> None:
        """Turn the sums of :meth:`start_average` into running moments; training updates them by ``momentum`` again.

        Example:
            >>> norm = SwitchNorm(2, using_moving_average=False)
            >>> norm.finish_average()
            Traceback (most recent call last):
            ...
            ValueError: SwitchNorm.finish_average: expected a training batch since start_average, got none.

        Raises:
            ValueError: if no average was started, or no batch was seen since.
        """
        mean, var, count = self._buffers_or_refuse("finish_average")
        if self.using_moving_average:
            raise ValueError("SwitchNorm.finish_average: expected an average to finish; call start_average first.")
        if int(count) == 0:
            raise ValueError("SwitchNorm.finish_average: expected a training batch since start_average, got none.")
        averaged = self._average(Moments(mean.unsqueeze(0), var.unsqueeze(0), 1))
        mean.copy_(averaged.mean.squeeze(0))
        var.copy_(averaged.var.squeeze(0))
        count.zero_()
        self.using_moving_average = True

    def _buffers_or_refuse(self, method: str) -> tuple[Tensor, Tensor, Tensor]:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            raise ValueError(f"SwitchNorm.{method}: expected running moments, and this norm keeps none.")
        return self.running_mean, self.running_var, self.num_batches_tracked

    def _seen_in_average(self, planes: Moments) -> Moments:
        if self.source in ("blend", "ema"):
            raise ValueError(
                f"SwitchNorm: source {self.source!r} needs running moments, and the buffers hold their sums until the "
                "average over batches is finished. Call finish_average first."
            )
        if not self.uses_batch:
            return self._average(self.running(planes))
        batch = planes.pooled(over="batch", process_group=self.process_group)
        if self.source == "auto" and self.training and planes.mean.shape[0] > 0:
            mean, var, count = self._buffers_or_refuse("forward")
            with torch.no_grad():
                new = batch.mean.detach().squeeze(0)
                mean.add_(new.to(mean.dtype))
                var.add_((new.square() + batch.var.detach().squeeze(0)).to(var.dtype))
                count.add_(1)
        return batch

    def _average(self, sums: Moments) -> Moments:
        """Moments from sums over ``num_batches_tracked`` batches; without any, the buffers are taken for moments."""
        _, _, count = self._buffers_or_refuse("forward")
        batches = count.clamp(min=1)
        mean = sums.mean / batches
        var = torch.where(count > 0, (sums.var / batches - mean.square()).clamp(min=0), sums.var)
        return Moments(mean, var, sums.count)

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the authors' state_dict of SwitchNorm1d, 2d or 3d into ours.

        Example:
            >>> norm = SwitchNorm(3)
            >>> norm.from_official(norm.to_official())["running_mean"].shape
            torch.Size([3])
        """
        if "weight" in state:
            self.official_rank = state["weight"].dim()
        if self.num_batches_tracked is None:
            return super().from_official(state)
        return super().from_official({**state, "num_batches_tracked": torch.zeros_like(self.num_batches_tracked)})

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Translate ours into the authors', in the rank that ``from_official`` read; 2-D's if it read none.

        Example:
            >>> SwitchNorm(3).to_official()["weight"].shape
            torch.Size([1, 3, 1, 1])
        """
        theirs = super().to_official(state)
        theirs.pop("num_batches_tracked", None)
        return theirs

    def _official(self, state: Mapping[str, Tensor]) -> dict[str, OfficialTensor]:
        affine = (1, -1, *[1] * (self.official_rank - 2))
        running = (1, -1, 1) if self.using_in else (1, -1)
        shapes = {"weight": affine, "bias": affine, "running_mean": running, "running_var": running}
        return {name: OfficialTensor(name, shapes.get(name)) for name in state}

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> SwitchNorm(3)
            SwitchNorm(3, eps=1e-05, momentum=0.1, using_in=True, using_bn=True, using_moving_average=True)
        """
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, using_in={self.using_in}, "
            f"using_bn={self.using_bn}, using_moving_average={self.using_moving_average}"
        )


def _mixed(weight: Tensor, parts: list[Tensor]) -> Tensor:
    shares = torch.softmax(weight.to(parts[0].dtype), dim=0)
    total = shares[0] * parts[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        total = total + share * part
    return total
