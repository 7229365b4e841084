"""IBN: Instance Normalization on some channels, Batch Normalization on the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Moments

__all__ = ["IBN"]

_BATCH_ONLY = ("running_mean", "running_var", "num_batches_tracked")


@final
class IBN(RunningMoments, MomentNorm):
    """Normalise a share of the channels by the moments of their plane, and the others by those of the batch.

        mean, var = m_nc, v_nc                      on the instance channels       # biased
        mean, var = moments over (N, *)             on the batch channels          # biased
        y = weight_c * (x - mean) / sqrt(var + eps) + bias_c

    This is the block of IBN-a: the instance channels drop appearance (contrast, tint), the batch channels keep content.
    IBN-b is no layer of its own but an affine InstanceNorm after the residual sum.

    Example:
        >>> norm = IBN(16)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])
        >>> norm.num_instance
        8

    Args:
        num_features: channels C, also odd.
        eps: added to the variance, in squared units of x.
        momentum: weight of the newest batch in the running moments; None averages all batches equally.
        affine: learn ``weight`` and ``bias``.
        track_running_stats: keep running moments; without them evaluation uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        ratio: share of instance channels, in [0, 1]; 0 is BatchNorm, 1 is InstanceNorm. The published nets use 0.5 in
            ResNet, ResNeXt and SE-ResNet and 0.4 in DenseNet.
        order: "instance_first" (ResNet, ResNeXt, SE-ResNet): the first int(C * ratio) channels are instance channels;
            "batch_first" (DenseNet): the first int(C * (1 - ratio)) channels are batch channels.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,); the buffers of RunningMoments, (C,), of which only the part of
        the batch channels is used. The keys and shapes are BatchNorm's, so a BatchNorm checkpoint loads.
    Modes: the batch channels use the batch in training and running moments in evaluation; the instance channels are the
        same in both.
    Raises: ValueError for another channel count, a ratio outside [0, 1], an unknown order, or in training for a single
        value per batch channel.
    Cost: two reads and one write of x, and no copy of the two parts; 2C parameters.
    Source: Pan et al., "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018.
    Differences: any channel count and ratio, where the authors' split fails for odd C and for ratio below 0.5; instance
        channels of 1x1 planes give ``bias`` instead of raising; channels-last stays channels-last; one weight, bias and
        pair of running moments instead of two modules (``from_official`` joins them).
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
        ratio: float = 0.5,
        order: Literal["instance_first", "batch_first"] = "instance_first",
    ) -> None:
        MomentNorm.__init__(self, num_features)
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"IBN: expected ratio in [0, 1], got {ratio}.")
        if order not in ("instance_first", "batch_first"):
            raise ValueError(f"IBN: expected order 'instance_first' or 'batch_first', got {order!r}.")
        self.eps = eps
        self.ratio = ratio
        self.order = order
        self.init_running(
            num_features, momentum=momentum, track_running_stats=track_running_stats, device=device, dtype=dtype
        )
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)
        # The authors' roundings: checkpoints depend on them.
        self._first = int(num_features * (ratio if order == "instance_first" else 1 - ratio))
        self.num_instance = self._first if order == "instance_first" else num_features - self._first

    @property
    def needs_moments(self) -> bool:
        """Whether x is looked at: always for an instance channel, for batch channels in training.

        Example:
            >>> IBN(4).eval().needs_moments, IBN(4, ratio=0).eval().needs_moments
            (True, False)
        """
        return self.num_instance > 0 or self.uses_batch

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean, each channel from the moments of its kind.

        Example:
            >>> norm = IBN(2)
            >>> norm.affine(Moments(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.zeros(2, 2), 9)).mean.round()
            tensor([[ 0., -1.],
                    [ 0.,  1.]], grad_fn=...)
        """
        channels = m.var.shape[1]
        if self.num_instance < channels and self.has_kernel(m):
            of_batch = m.var.new_ones(channels)
            (of_batch[: self._first] if self.order == "instance_first" else of_batch[self._first :]).zero_()
            affine = self.by_kernel(m, self.eps, self.weight, self.bias, of_batch)
            if affine is not None:
                return affine
        batch = m if self.num_instance == channels else self.seen(m)
        mean, var = self._joined(m.mean, batch.mean), self._joined(m.var, batch.var)
        gain = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            gain = self.weight * gain
        new = gain * (m.mean - mean)
        return Affine(gain, new if self.bias is None else new + self.bias)

    def _joined(self, instance: Tensor, batch: Tensor) -> Tensor:
        first, second = (instance, batch) if self.order == "instance_first" else (batch, instance)
        rows = instance.shape[0]
        return torch.cat([first[:, : self._first].expand(rows, -1), second[:, self._first :].expand(rows, -1)], dim=1)

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join the authors' ``IN.*`` and ``BN.*``; the instance channels get running mean 0 and variance 1.

        Example:
            >>> norm = IBN(5)
            >>> official = {key: torch.full((2,), 3.0) for key in ("IN.weight", "IN.bias")} | {
            ...     key: torch.full((3,), 4.0) for key in ("BN.weight", "BN.bias", "BN.running_mean", "BN.running_var")
            ... }
            >>> norm.from_official(official)["running_mean"]
            tensor([0., 0., 4., 4., 4.])

        Args:
            state: the layer's own entries, without a prefix. ``BN.num_batches_tracked`` may be absent, as it is from
                files older than torch 0.4.1.

        Raises:
            KeyError: if a key is missing or unknown.
            ValueError: if a part has another number of channels than ratio and order give.
        """
        own = self.state_dict()
        expected = self._split(own)
        missing = sorted(expected.keys() - state.keys() - {"BN.num_batches_tracked"})
        if missing or state.keys() - expected.keys():
            raise KeyError(
                f"IBN.from_official: expected the keys {sorted(expected)}; missing {missing}, "
                f"unknown {sorted(state.keys() - expected.keys())}."
            )
        for key, tensor in state.items():
            if tensor.shape != expected[key].shape:
                raise ValueError(
                    f"IBN.from_official: expected {key} of shape {tuple(expected[key].shape)}, "
                    f"got {tuple(tensor.shape)}. This layer has {self.num_instance} instance channels of "
                    f"{self.num_features}, from ratio={self.ratio} and order={self.order!r}."
                )
        ours: dict[str, Tensor] = {}
        for name in own:
            batch = state.get(f"BN.{name}")
            if name == "num_batches_tracked" or batch is None:
                ours.update({} if batch is None else {name: batch})
                continue
            neutral = batch.new_full((self.num_instance,), 1.0 if name == "running_var" else 0.0)
            parts = (state.get(f"IN.{name}", neutral), batch)
            ours[name] = torch.cat(parts if self.order == "instance_first" else parts[::-1])
        return ours

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Split into the authors' ``IN.*`` and ``BN.*``; running moments of the instance channels are left out.

        Example:
            >>> sorted(IBN(4, track_running_stats=False).to_official())
            ['BN.bias', 'BN.weight', 'IN.bias', 'IN.weight']
        """
        return self._split(self.state_dict() if state is None else state)

    def _split(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        theirs: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name == "num_batches_tracked":
                theirs[f"BN.{name}"] = tensor
                continue
            parts = (tensor[: self._first], tensor[self._first :])
            instance, batch = parts if self.order == "instance_first" else parts[::-1]
            theirs[f"BN.{name}"] = batch
            if name not in _BATCH_ONLY:
                theirs[f"IN.{name}"] = instance
        return theirs

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> IBN(4).extra_repr()
            "4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, ratio=0.5, order='instance_first'"
        """
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.track_running_stats}, ratio={self.ratio}, order={self.order!r}"
        )
