"""Mixture Normalization: a Gaussian mixture over pixels, and each pixel normalised by its components."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from shiftnorm.norms.base import NormLayer, check_input
from shiftnorm.norms.draws import check_partners
from shiftnorm.ops.eager import accumulation_dtype

__all__ = ["MixtureDraw", "MixtureNorm"]


class MixtureDraw(NamedTuple):
    """What seeds the mixture of one call.

    Example:
        >>> MixtureNorm(3).draw(torch.randn(2, 3, 4, 4)).races.shape
        torch.Size([3, 2, 16])

    Args:
        races: (K, N, L) exponential variables; the k-th seed is the pixel that maximises its squared distance to the
            nearest earlier seed divided by its variable, which is a draw in proportion to that distance (k-means++).
    """

    races: Tensor


class _Components(NamedTuple):
    """Shares (K,), and means and biased variances (K, C), of the components."""

    share: Tensor
    mean: Tensor
    var: Tensor


@final
class MixtureNorm(NormLayer):
    """Normalise every pixel by the components of a Gaussian mixture it belongs to (outside the moment family).

    The C-vectors x_i of all pixels of the batch are samples of a mixture of K Gaussians with diagonal covariance,
    fitted by k-means++ and a few EM steps. With responsibilities r_ik = p(k | x_i) and shares s_k = mean_i r_ik:

        mean_k, var_k = moments of x under the weights r_ik / sum_j r_jk            # biased
        y_i = weight * sum_k r_ik / sqrt(s_k) * (x_i - mean_k) / sqrt(var_k + eps) + bias

    A BatchNorm for activations of several modes; with one component it is BatchNorm.

    Example:
        >>> MixtureNorm(16)(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the components' variances, in squared units of x.
        momentum: weight of the newest batch in the running mixture; None averages all batches equally.
        affine: learn ``weight`` and ``bias``.
        track_running_stats: keep a running mixture; without it evaluation fits one to the batch too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        num_components: K.
        em_steps: EM steps after the seeds have shared out the pixels; 0 leaves every pixel with its nearest seed.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,); buffers ``running_share`` (K,) from 1/K, ``running_mean`` (K, C)
        from 0, ``running_var`` (K, C) from 1 (unbiased) and ``num_batches_tracked``.
    Modes: training fits the batch (random, see ``draw``) and updates the running mixture; evaluation takes the
        responsibilities from the running mixture. Responsibilities and shares are constants, as in every EM step; the
        gradient flows through x and the components' means and variances.
    Raises: ValueError for another channel count, a mask, or in training for a batch of a single pixel.
    Cost: about 5K reads of x for the seeds and each EM step; two activations kept for the backward pass. 2C parameters.
    Source: Kalayeh and Shah, "Training Faster by Separating Modes of Variation in Batch-normalized Models", TPAMI 2019.
    Differences: no code of the authors is known. Ours are the choices about the gradient above, the number of EM steps,
        and evaluation: the components of a batch are matched to the running ones by nearest means, and each running
        one moves by ``momentum`` times its share of the batch, so that an empty component does not move. The mixture is
        fitted per process, not across ranks.
    """

    running_share: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

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
        num_components: int = 3,
        em_steps: int = 2,
    ) -> None:
        super().__init__(num_features)
        if momentum is not None and not 0.0 <= momentum <= 1.0:
            raise ValueError(f"MixtureNorm: expected momentum in [0, 1] or None, got {momentum}.")
        if num_components < 1:
            raise ValueError(f"MixtureNorm: expected num_components to be at least 1, got {num_components}.")
        if em_steps < 0:
            raise ValueError(f"MixtureNorm: expected em_steps to be at least 0, got {em_steps}.")
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.num_components = num_components
        self.em_steps = em_steps
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)
        shape = (num_components, num_features)
        buffers = {
            "running_share": torch.full(shape[:1], 1 / num_components, device=device, dtype=dtype),
            "running_mean": torch.zeros(shape, device=device, dtype=dtype),
            "running_var": torch.ones(shape, device=device, dtype=dtype),
            "num_batches_tracked": torch.tensor(0, dtype=torch.long, device=device),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer if track_running_stats else None)

    @property
    def uses_batch(self) -> bool:
        """Whether a mixture is fitted to the current batch now.

        Example:
            >>> MixtureNorm(3).uses_batch, MixtureNorm(3).eval().uses_batch
            (True, False)
        """
        return self.training or self.running_mean is None

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> MixtureDraw | None:
        """What chooses the seeds; None if no mixture is fitted now.

        Example:
            >>> norm, x = MixtureNorm(3), torch.randn(2, 3, 4, 4)
            >>> torch.equal(*(norm(x, draw=draw) for draw in [norm.draw(x)] * 2))
            True

        Args:
            x: the input; only its shape, device and dtype are looked at.
            generator: a generator on x's device; None uses torch's default one.
        """
        if not self.uses_batch:
            return None
        shape = (self.num_components, x.shape[0], math.prod(x.shape[2:]))
        races = torch.empty(shape, dtype=accumulation_dtype(x), device=x.device).exponential_(generator=generator)
        return MixtureDraw(races.clamp_(min=torch.finfo(races.dtype).tiny))

    def forward(self, x: Tensor, *, draw: MixtureDraw | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalise x.

        Example:
            >>> MixtureNorm(3)(torch.randn(2, 3, 4, 4)).shape
            torch.Size([2, 3, 4, 4])

        Args:
            x: (N, C, *), floating point.
            draw: what :meth:`draw` returned, to replay it; None draws anew.
            mask: None; the mixture is fitted to all pixels.

        Returns:
            Tensor of x's shape, dtype and memory format.

        Raises:
            ValueError: for a mask, or if a mixture is to be fitted to a single pixel.
        """
        check_input(self, x)
        if mask is not None:
            raise ValueError(
                "MixtureNorm: expected no mask, got one: the mixture is fitted to all pixels. Crop the padding away."
            )
        draw = self.draw(x) if draw is None else draw
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # or the mixture would be fitted in 16 bits
                return self._normalised(x, draw)
        return self._normalised(x, draw)

    def _normalised(self, x: Tensor, draw: MixtureDraw | None) -> Tensor:
        size = math.prod(x.shape[2:])
        pixels = x.reshape(x.shape[0], x.shape[1], size).to(accumulation_dtype(x))
        running = self._running(pixels)
        if draw is None or not self.uses_batch or x.shape[0] == 0:  # an empty batch has no mixture
            centre = (running.share.unsqueeze(1) * running.mean).sum(0)
            centred = pixels - centre.unsqueeze(1)
            parts = running._replace(mean=running.mean - centre)
            shared = _responsibilities(centred.detach(), parts, self.eps)
        else:
            check_partners("MixtureNorm", draw.races.transpose(0, 1), x.shape[0])
            count = x.shape[0] * size
            if count == 1:
                raise ValueError(
                    "MixtureNorm: expected more than one pixel to fit a mixture to, got a batch of 1 with planes of 1 "
                    "element. Use a larger batch, or evaluation mode."
                )
            # Around the mean, as everywhere in this package: squares of large means leave no digits for variances.
            centre = pixels.detach().mean((0, 2))
            centred = pixels - centre.unsqueeze(1)
            fixed = centred.detach()  # and not no_grad, which lets the tangents of forward-mode derivatives through
            shared = _seeded(fixed, draw.races)
            for _ in range(self.em_steps):
                shared = _responsibilities(fixed, _fitted(fixed, shared), self.eps)
            parts = _differentiable(_fitted(fixed, shared), centred, shared)
            if self.training:
                self._update(parts._replace(mean=parts.mean + centre), running, count)
        gain = torch.rsqrt(parts.var + self.eps)
        if self.weight is not None:
            gain = self.weight.to(gain.dtype) * gain
        # A component without pixels has share and responsibilities 0; it must not become 0 / 0.
        tiny = torch.finfo(shared.dtype).tiny
        shared = shared * parts.share.clamp(min=tiny).rsqrt().unsqueeze(1)
        y = centred * _spread(shared, gain, centred) - _spread(shared, gain * parts.mean, centred)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).unsqueeze(1)
        return y.to(x.dtype).reshape(x.shape)

    def _running(self, pixels: Tensor) -> _Components:
        if self.running_share is None or self.running_mean is None or self.running_var is None:
            zeros = pixels.new_zeros(self.num_components, pixels.shape[1])
            return _Components(zeros[:, 0] + 1 / self.num_components, zeros, zeros + 1)
        return _Components(*(t.to(pixels.dtype) for t in (self.running_share, self.running_mean, self.running_var)))

    @torch.no_grad()
    def _update(self, batch: _Components, running: _Components, count: int) -> None:
        tensors = self.running_share, self.running_mean, self.running_var, self.num_batches_tracked
        share, mean, var, tracked = tensors
        if share is None or mean is None or var is None or tracked is None:
            return
        tracked.add_(1)
        order = _matched(batch.mean, running.mean)
        batch = _Components(*(tensor.index_select(0, order) for tensor in batch))
        pace = 1.0 / tracked.to(running.share.dtype) if self.momentum is None else self.momentum
        new = running.share + pace * (batch.share - running.share)
        step = (pace * batch.share / new.clamp(min=torch.finfo(new.dtype).tiny)).unsqueeze(1)
        unbiased = batch.var * (count / (count - 1))
        share.copy_(new)
        mean.add_((step * (batch.mean - running.mean)).to(mean.dtype))
        var.add_((step * (unbiased - running.var)).to(var.dtype))

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> MixtureNorm(3).extra_repr()
            '3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, num_components=3, em_steps=2'
        """
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.track_running_stats}, num_components={self.num_components}, "
            f"em_steps={self.em_steps}"
        )


def _seeded(x: Tensor, races: Tensor) -> Tensor:
    # One-hot (N, K, L): every pixel with its nearest seed, seeds by k-means++.
    length = x.shape[2]
    distances: list[Tensor] = []
    for race in races.unbind(0):
        nearest = torch.stack(distances).amin(0) if distances else torch.ones_like(race)
        winner = (nearest / race).reshape(-1).argmax(0, keepdim=True)
        seed = x.index_select(0, winner // length).index_select(2, winner % length)
        distances.append((x - seed).square_().sum(1))
    owner = torch.stack(distances, 1).argmin(1, keepdim=True)
    return (owner == torch.arange(len(races), device=x.device).unsqueeze(1)).to(x.dtype)


def _responsibilities(x: Tensor, parts: _Components, eps: float) -> Tensor:
    # p(k | pixel), (N, K, L); the constant of the Gaussian is the same for all k.
    spread = (parts.var + eps).unsqueeze(2)
    height = parts.share.log() - 0.5 * spread.log().sum((1, 2))  # -inf for an empty component, which stays empty
    pairs = zip(parts.mean.unsqueeze(2).unbind(0), spread.unbind(0), strict=True)
    distances = torch.stack([((x - mean).square_() / own).sum(1) for mean, own in pairs], 1)
    return (height.unsqueeze(1) - 0.5 * distances).softmax(1)


def _fitted(x: Tensor, shared: Tensor) -> _Components:
    # The components that responsibilities (N, K, L) give.
    total = shared.sum((0, 2))
    weight = _shares_within(shared, total)
    mean = (weight @ x.transpose(1, 2)).sum(0)
    rows = zip(weight.unbind(1), mean.unbind(0), strict=True)
    var = torch.stack([((x - own.unsqueeze(1)).square_() * row.unsqueeze(1)).sum((0, 2)) for row, own in rows])
    return _Components(total / (x.shape[0] * x.shape[2]), mean, var)


def _differentiable(parts: _Components, x: Tensor, shared: Tensor) -> _Components:
    # The same values, with the gradients of E[x] and E[x^2] - E[x]^2: they keep x and nothing else of its size, where
    # the K centred squares whose values these are would keep K activations.
    weight = _shares_within(shared, shared.sum((0, 2)))
    mean = (weight @ x.transpose(1, 2)).sum(0)
    var = (weight @ x.square().transpose(1, 2)).sum(0) - mean.square()
    return parts._replace(mean=mean, var=parts.var + (var - var.detach()))


def _shares_within(shared: Tensor, total: Tensor) -> Tensor:
    return shared / total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(1)


def _spread(shared: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
    # sum_k shared[n, k, l] * coefficients[k, c], laid out in memory as x is.
    if x.stride(1) == 1:
        return (shared.transpose(1, 2) @ coefficients).transpose(1, 2)
    return coefficients.T @ shared


def _matched(new: Tensor, old: Tensor) -> Tensor:
    # For each old component the index of a new one, greedily by distance, as tensors.
    cost = (old.unsqueeze(1) - new).square().sum(2)
    order = torch.zeros(len(old), dtype=torch.long, device=old.device)
    rows, columns = torch.arange(len(old), device=old.device).unsqueeze(1), torch.arange(len(new), device=old.device)
    for _ in range(len(old)):
        best = cost.reshape(-1).argmin(0, keepdim=True)
        row, column = best // len(new), best % len(new)
        order = torch.where(rows.squeeze(1) == row, column, order)
        cost = torch.where((rows == row) | (columns == column), torch.inf, cost)
    return order
