"""Which batch moments a norm sees: the batch's, the running ones, or a blend."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftnorm.ops import Affine, Moments, Pool, has_retargeting, is_traced, retarget

__all__ = ["RunningMoments", "Source"]

Source = Literal["auto", "batch", "running", "blend", "ema"]


class RunningMoments(nn.Module):
    """Running moments under torch's buffer names, and the switch that says which moments the norm uses.

    Every norm that pools over the batch has these, so changing where their moments come from needs no list of classes:

        for module in model.modules():
            if isinstance(module, RunningMoments):
                module.source = "batch"

    ========== =================================================== ============================
    source     moments used                                        running buffers
    ========== =================================================== ============================
    "auto"     training: the batch's; evaluation: the running ones training: updated
    "batch"    the batch's, always                                 untouched
    "running"  the running ones, always                            untouched
    "blend"    ``source_weight`` * running + rest * batch          untouched
    "ema"      the running ones, after this batch's update         updated, always
    ========== =================================================== ============================

    A layer that normalises one value per sample (the gates of SelfNorm and AttentiveNorm) uses the running moments for
    a batch of one, whatever the source. To pool over the ranks of a distributed job, set ``module.process_group`` to
    their torch.distributed group, for instance ``torch.distributed.group.WORLD``.

    "blend" and "ema" hold their moments constant (no gradient), and use the unbiased batch variance, which is what
    the running buffers hold: the conventions of the published test-time methods.

    Example:
        >>> from shiftnorm.norms import BatchNorm
        >>> norm = BatchNorm(3).eval()
        >>> norm.source = "blend"
        >>> norm.source_weight = 0.9
        >>> norm(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 3, 8, 8])

    State: buffers ``running_mean`` (C,) from 0, ``running_var`` (C,) from 1 (unbiased) and ``num_batches_tracked``.
    """

    _version = 2  # as torch's BatchNorm since it has a counter
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def init_running(
        self,
        num_features: int,
        *,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        pools_batch: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Register the buffers; called once by the norm's constructor.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> sorted(name for name, _ in BatchNorm(3).named_buffers())
            ['num_batches_tracked', 'running_mean', 'running_var']

        Args:
            num_features: channels C.
            momentum: weight of the newest batch, in [0, 1]; None averages all batches with equal weight.
            track_running_stats: False keeps no buffers and uses the batch's moments in evaluation too.
            pools_batch: False for a norm that in its configuration never pools the batch (SwitchNorm without its batch
                part); it keeps no buffers and takes every source without effect.
            device: of the buffers.
            dtype: of the running moments.

        Raises:
            ValueError: if momentum is outside [0, 1].
        """
        if momentum is not None and not 0.0 <= momentum <= 1.0:
            raise ValueError(f"{type(self).__name__}: expected momentum in [0, 1] or None, got {momentum}.")
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.pools_batch = pools_batch
        self.process_group: object | None = None
        self._source: Source = "auto"
        self._source_weight = 0.5
        if track_running_stats and pools_batch:
            self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
            self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        else:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                self.register_buffer(name, None)

    @property
    def source(self) -> Source:
        """Where the batch moments come from.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).source
            'auto'

        Raises:
            ValueError: on setting an unknown source, or one that needs running moments on a norm that keeps none.
        """
        return self._source

    @source.setter
    def source(self, source: Source) -> None:
        if source not in get_args(Source):
            raise ValueError(f"{type(self).__name__}.source: expected one of {get_args(Source)}, got {source!r}.")
        if self.pools_batch and source in ("running", "blend", "ema") and self.running_mean is None:
            raise ValueError(
                f"{type(self).__name__}.source: {source!r} needs running moments, and track_running_stats is False."
            )
        self._source = source

    @property
    def source_weight(self) -> float:
        """The share of the running (source) moments under ``source = "blend"``, in [0, 1].

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).source_weight
            0.5

        Raises:
            ValueError: on setting a value outside [0, 1].
        """
        return self._source_weight

    @source_weight.setter
    def source_weight(self, weight: float) -> None:
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"{type(self).__name__}.source_weight: expected a value in [0, 1], got {weight}.")
        self._source_weight = float(weight)

    @property
    def uses_batch(self) -> bool:
        """Whether the moments of the current batch are looked at now.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).uses_batch, BatchNorm(3).eval().uses_batch
            (True, False)
        """
        if self._source == "auto":
            return self.training or self.running_mean is None
        return self._source != "running"

    @property
    def is_plain(self) -> bool:
        """Whether this batch is normalised by its own moments, on this rank, at a fixed momentum: the usual training.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).is_plain, BatchNorm(3, momentum=None).is_plain, BatchNorm(3).eval().is_plain
            (True, False, False)
        """
        plain = self.momentum is not None and self.process_group is None and self._source in ("auto", "batch")
        return plain and self.uses_batch

    def updated(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The buffers that a batch normalised now updates, None where it does not.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(1).updated()
            (tensor([0.]), tensor([1.]), tensor(0))
        """
        if self._source != "auto" or not self.training:
            return None, None, None
        return self.running_mean, self.running_var, self.num_batches_tracked

    def has_kernel(self, m: Moments) -> bool:
        """Whether it is worth asking :meth:`by_kernel`.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).has_kernel(Moments(*torch.ones(2, 2, 3, device="meta"), 4))
            False
        """
        return self.pools_batch and self.is_plain and has_retargeting(m.var)

    def by_kernel(
        self, m: Moments, eps: float, weight: Tensor | None, bias: Tensor | None, share: Tensor | None = None
    ) -> Affine | None:
        """``ops.Pool`` of this norm by one C++ kernel each way, running moments updated; None where it does not apply.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> m = Moments(torch.ones(2, 3), torch.ones(2, 3), 4)
            >>> BatchNorm(3).eval().by_kernel(m, 1e-5, None, None) is None
            True

        Args:
            m: (N, C) moments.
            eps: added to the variance.
            weight: (C,) or (N, C), or None.
            bias: (C,) or (N, C), or None.
            share: (C,), of the batch; None for ones.
        """
        if not self.has_kernel(m):
            return None
        return retarget(m, Pool(weight, bias, *self.updated(), cast("float", self.momentum), eps, share), None, None)

    def seen(self, m: Moments) -> Moments:
        """The (1, C) batch moments the norm uses, from the planes' moments; updates the running ones where due.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).seen(Moments(torch.ones(2, 3), torch.ones(2, 3), 4)).mean
            tensor([[1., 1., 1.]])

        Args:
            m: (N, C) moments.

        Raises:
            ValueError: if a batch is to be normalised by its own moments and has a single value per channel.
        """
        if not self.uses_batch:
            return self.running(m)
        pooled = m.pooled(over="batch", process_group=self.process_group)
        if self._source in ("auto", "batch"):
            self._refuse_single_value(m)
            if self._source == "auto" and self.training:
                self._update(pooled)
            return pooled
        if self._source == "ema":
            self._update(pooled)
            return self.running(m)
        running, share = self.running(m), self._source_weight
        mean = share * running.mean + (1 - share) * pooled.mean.detach()
        return Moments(mean, share * running.var + (1 - share) * pooled.unbiased.detach(), pooled.count)

    def native_batch_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
        """torch's BatchNorm kernel on x by the moments this norm sees, running ones updated where due.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).native_batch_norm(torch.randn(4, 3), None, None, 1e-5).shape
            torch.Size([4, 3])

        Args:
            x: (N, C, *).
            weight: (C,) or None.
            bias: (C,) or None.
            eps: added to the variance.

        Returns:
            The output, or None where torch's kernel does not do what is asked: another source, cumulative averages,
            moments of several ranks, an empty batch, a single value per channel, or dtypes it does not mix.
        """
        batch = self.uses_batch
        if batch and (self._source != "auto" or self.momentum is None or self.process_group is not None):
            return None
        if batch and (x.shape[0] == 0 or (x.shape[0] == 1 and x.numel() == x.shape[1])):
            return None  # nothing, or a single value per channel: the formulas pass over the one and refuse the other
        own = next((tensor.dtype for tensor in (weight, self.running_mean) if tensor is not None), x.dtype)
        if own != x.dtype and (own != torch.float32 or x.dtype == torch.float64):
            return None  # the kernel wants equal dtypes, or 16-bit x with float32 parameters
        updates = batch and self.training and self.num_batches_tracked is not None
        if updates and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if batch and not updates:
            mean, var = None, None
        elif batch:
            mean, var = self.running_mean, self.running_var
        else:
            # Autograd keeps what evaluation normalises by, and a training pass before the backward moves the buffers.
            mean, var = (None if t is None else t.clone() for t in (self.running_mean, self.running_var))
        pace = self.momentum or 0.0
        # Small, as a gate's inputs are: F.batch_norm comes to this too, by three more calls; one of them keeps an empty
        # batch from the kernel, whose backward divides by its size.
        if x.dim() == 2 and not is_traced(x) and x.shape[0] > 0:
            return torch.native_batch_norm(x, weight, bias, mean, var, batch, pace, eps)[0]
        return F.batch_norm(x, mean, var, weight, bias, batch, pace, eps)

    def normalise_features(self, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        """BatchNorm of (N, K) features that are no planes of anything, such as the inputs of a gate.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).normalise_features(torch.randn(4, 3), torch.ones(3), torch.zeros(3)).shape
            torch.Size([4, 3])

        Args:
            z: (N, K). A batch of one has no variance to normalise by, and uses the running moments.
            weight: (K,).
            bias: (K,).
            eps: added to the variance.
        """
        single = self.uses_batch and z.shape[0] == 1 and self.process_group is None
        y = None if single else self.native_batch_norm(z, weight, bias, eps)
        if y is not None:
            return y
        features = Moments(z, torch.zeros_like(z), 1)
        batch = self.running(features) if single else self.seen(features)
        return (z - batch.mean) * torch.rsqrt(batch.var + eps) * weight + bias

    def _refuse_single_value(self, m: Moments) -> None:
        if self.process_group is None and isinstance(m.count, int) and m.count * m.mean.shape[0] == 1:
            raise ValueError(
                f"{type(self).__name__}: expected more than one value per channel to normalise a batch by its own "
                "moments, got a batch of 1 with planes of 1 element. Use a larger batch, or evaluation mode."
            )

    def running(self, m: Moments) -> Moments:
        """The running moments, (1, C), in the dtype of ``m``.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(2).running(Moments(torch.zeros(1, 2), torch.ones(1, 2), 9)).var
            tensor([[1., 1.]])

        Raises:
            ValueError: if the norm keeps none.
        """
        if self.running_mean is None or self.running_var is None:
            raise ValueError(f"{type(self).__name__}: expected running moments, and track_running_stats is False.")
        dtype = m.mean.dtype
        mean, var = (t.to(dtype, copy=True).unsqueeze(0) for t in (self.running_mean, self.running_var))
        return Moments(mean, var, m.count)

    def _update(self, pooled: Moments) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        if isinstance(pooled.count, int) and pooled.count == 0:
            return  # an empty batch says nothing
        with torch.no_grad():
            # A batch whose mask leaves nothing says nothing either; its count is on the device, so no branch.
            counts = (pooled.count > 0).reshape(()) if isinstance(pooled.count, Tensor) else 1
            self.num_batches_tracked.add_(counts)
            if self.momentum is None:
                # In the buffers' dtype before dividing: 1 / an integer tensor is float32, too coarse for float64 ones.
                wide = torch.promote_types(self.running_mean.dtype, torch.float32)
                weight = counts / self.num_batches_tracked.clamp(min=1).to(wide)
            else:
                weight = self.momentum * counts
            if isinstance(weight, Tensor):
                weight = weight.to(self.running_mean.dtype)
            for buffer, new in ((self.running_mean, pooled.mean), (self.running_var, pooled.unbiased)):
                buffer.lerp_(new.squeeze(0).to(buffer.dtype), weight)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # Checkpoints from before torch 0.4.1 have no counter, as torch's own BatchNorm still accepts.
        key, version = prefix + "num_batches_tracked", local_metadata.get("version")
        if (version is None or version < 2) and key not in state_dict and self.num_batches_tracked is not None:
            state_dict[key] = self.num_batches_tracked
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)  # pyright: ignore
