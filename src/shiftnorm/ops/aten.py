"""The four passes on CPU from the fastest ATen kernel for each memory format.

Several of these kernels are used for something else than their name says. They were chosen by measurement:
``torch.var_mean`` runs ten times below memory speed on a CPU, while the sums inside GroupNorm's backward and the
statistics of BatchNorm (one sample at a time) run at it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shiftnorm.ops.eager import EagerBackend, elements_per_plane

__all__ = ["AtenBackend"]

_aten = torch.ops.aten

# Raw sums lose about log2(mean^2 / var) bits of the variance. Planes beyond this ratio get a second, shifted pass.
_SHIFT_RATIO = 16.0
# Beyond this ratio the folded form slope * x - slope * mean loses the gradient, and the centred one is used.
_CENTRE_RATIO = 1e4
# Longer planes are summed in pieces where they can be halved, so that float32 accumulators stay accurate.
_GOOD_SUM = 1 << 12
_LONGEST_SUM = 1 << 16
# Channels-last samples below this size share a call; above it, a call per sample runs at memory speed.
_SMALL_SAMPLE_BYTES = 1 << 18
# Temporaries of a chunk stay inside a core's second-level cache.
_CHUNK_BYTES = 1 << 19

_eager = EagerBackend()


class AtenBackend:
    """ATen kernels for float32 and float64 on CPU, contiguous or channels-last.

    Example:
        >>> AtenBackend().unsupported(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16))
        'takes float32 and float64, x is bfloat16'
    """

    name = "aten"

    def unsupported(self, x: Tensor) -> str | None:
        """Why this backend declines x, or None.

        Example:
            >>> AtenBackend().unsupported(torch.zeros(2, 3))
            'takes x with spatial dimensions and at least one element, x has shape (2, 3)'
        """
        if x.device.type != "cpu":
            return f"takes CPU tensors, x is on {x.device}"
        if x.dtype not in (torch.float32, torch.float64):
            return f"takes float32 and float64, x is {str(x.dtype).removeprefix('torch.')}"
        if x.dim() < 3 or x.numel() == 0:
            return f"takes x with spatial dimensions and at least one element, x has shape {tuple(x.shape)}"
        if not (x.is_contiguous() or _is_channels_last(x)):
            return f"takes contiguous or channels-last tensors, x has strides {x.stride()}"
        if x.is_contiguous() and _pieces(elements_per_plane(x)) is None:
            return f"takes planes that split into equal pieces, x has {elements_per_plane(x)} elements per plane"
        return None

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per plane, (N, C) each.

        Example:
            >>> AtenBackend().moments(torch.tensor([[[1.0, 3.0]]]))
            (tensor([[2.]]), tensor([[1.]]))
        """
        if x.is_contiguous():
            return _moments_of_rows(x)
        if _sample_bytes(x) >= _SMALL_SAMPLE_BYTES:
            rows = [torch.batch_norm_update_stats(x[n : n + 1], None, None, 0.0) for n in range(x.shape[0])]
            means, variances = zip(*rows, strict=True)
            return torch.stack(means), torch.stack(variances)
        return _moments_of_small_samples(x)

    def apply(self, x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
        """``gain * (x - center) + mean``.

        Example:
            >>> one = torch.ones(1, 1)
            >>> AtenBackend().apply(torch.tensor([[[1.0, 3.0]]]), 2 * one, 2 * one, 5 * one)
            tensor([[[3., 7.]]])
        """
        if x.is_contiguous():
            return _scale_rows(x, gain, center, mean)
        y = torch.addcmul((mean - gain * center).unsqueeze(1), _samples(x), gain.unsqueeze(1))
        return _unsamples(y, x)

    def reduce(self, g: Tensor, x: Tensor, center: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over each plane of g and of ``g * (x - center)``, (N, C) each.

        Example:
            >>> m = AtenBackend().moments(x := torch.tensor([[[1.0, 3.0]]]))
            >>> AtenBackend().reduce(torch.tensor([[[1.0, 2.0]]]), x, *m)
            (tensor([[3.]]), tensor([[1.]]))
        """
        g = _like(g, x)
        if x.is_contiguous():
            return _sums_of_rows(g, x, center)
        if _sample_bytes(x) < _SMALL_SAMPLE_BYTES:
            return _sums_of_small_samples(_samples(g), _samples(x), center)
        ones = torch.ones_like(center[0])
        sums = [
            _aten.native_batch_norm_backward(
                g[n : n + 1], x[n : n + 1], None, None, None, center[n], ones, True, 0.0, [False, True, True]
            )
            for n in range(x.shape[0])
        ]
        return torch.stack([row[2] for row in sums]), torch.stack([row[1] for row in sums])

    def combine(
        self, g: Tensor, x: Tensor, gain: Tensor, center: Tensor, var: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """``gain * g + slope * (x - center) + offset``.

        Example:
            >>> m = AtenBackend().moments(x := torch.tensor([[[1.0, 3.0]]]))
            >>> one = torch.ones(1, 1)
            >>> AtenBackend().combine(torch.tensor([[[1.0, 2.0]]]), x, one, *m, one, 0 * one)
            tensor([[[0., 3.]]])
        """
        g = _like(g, x)
        if _is_offset(center, var):
            return _eager.combine(g, x, gain, center, var, slope, offset)
        shift = offset - slope * center
        if x.is_contiguous():
            dx = _scale_rows(g, gain, torch.zeros_like(center), shift)
            return dx.addcmul_(x, slope.reshape(*slope.shape, *(1 for _ in x.shape[2:])))
        dx = torch.addcmul(shift.unsqueeze(1), _samples(x), slope.unsqueeze(1))
        return _unsamples(dx.addcmul_(_samples(g), gain.unsqueeze(1)), x)


def _is_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _sample_bytes(x: Tensor) -> int:
    return x[0].numel() * x.element_size()


def _samples(x: Tensor) -> Tensor:
    # channels-last x as a contiguous (N, S, C) view
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1])


def _unsamples(y: Tensor, x: Tensor) -> Tensor:
    return y.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def _like(g: Tensor, x: Tensor) -> Tensor:
    # Gradients of expanded or sliced outputs come in any layout; the kernels want x's.
    if x.is_contiguous():
        return g.contiguous()
    return g if _is_channels_last(g) else _unsamples(g.movedim(1, -1).contiguous(), x)


def _is_offset(center: Tensor, var: Tensor) -> bool:
    return bool((center.square() > _CENTRE_RATIO * var).any())


def _pieces(length: int) -> int | None:
    pieces = 1
    while length > _GOOD_SUM and length % 2 == 0:
        length, pieces = length // 2, pieces * 2
    return pieces if length <= _LONGEST_SUM else None


def _raw_sums(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    # Sums of g and g*x over the rows of two contiguous (R, S) tensors, from the two sums inside GroupNorm's backward.
    rows, length = x.shape
    pieces = _pieces(length) or 1
    rows, length = rows * pieces, length // pieces
    zero, one = torch.zeros(1, rows, dtype=x.dtype), torch.ones(1, rows, dtype=x.dtype)
    _, product, plain = _aten.native_group_norm_backward(
        g.view(1, rows, length), x.view(1, rows, length), zero, one, None, 1, rows, length, rows, [False, True, True]
    )
    if pieces > 1:
        product, plain = product.view(-1, pieces).sum(1), plain.view(-1, pieces).sum(1)
    return plain, product


def _moments_of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    shape, rows = x.shape[:2], x.view(-1, elements_per_plane(x))
    length = rows.shape[1]
    plain, square = _raw_sums(rows, rows)
    mean = plain / length
    var = (square / length - mean * mean).clamp_(min=0)
    for index in _chunks((mean * mean > _SHIFT_RATIO * var).nonzero().squeeze(1), rows):
        centred = rows[index] - mean[index].unsqueeze(1)
        plain, square = _raw_sums(centred, centred)
        rest = plain / length
        mean[index] += rest
        var[index] = (square / length - rest * rest).clamp_(min=0)
    return mean.view(shape), var.view(shape)


def _chunks(index: Tensor, rows: Tensor) -> Iterator[Tensor]:
    if index.numel():
        yield from torch.split(index, max(1, _CHUNK_BYTES // (rows.shape[1] * rows.element_size())))


def _sums_of_rows(g: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    # The sums inside BatchNorm's backward, every plane a channel: they are centred, so a large mean does no harm.
    pieces = _pieces(elements_per_plane(x)) or 1
    flat = center.reshape(-1) if pieces == 1 else center.reshape(-1).repeat_interleave(pieces)
    shape = (1, flat.numel(), -1)
    _, product, plain = _aten.native_batch_norm_backward(
        g.view(shape), x.view(shape), None, None, None, flat, torch.ones_like(flat), True, 0.0, [False, True, True]
    )
    if pieces > 1:
        product, plain = product.view(-1, pieces).sum(1), plain.view(-1, pieces).sum(1)
    return plain.view_as(center), product.view_as(center)


def _scale_rows(x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
    # BatchNorm's evaluation kernel with every plane as a channel and unit variance.
    ones = torch.ones(gain.numel(), dtype=x.dtype)
    rows = x.view(1, gain.numel(), -1)
    weight, bias, origin = gain.reshape(-1), mean.reshape(-1), center.reshape(-1)
    return torch.native_batch_norm(rows, weight, bias, origin, ones, False, 0.0, 0.0)[0].view_as(x)


def _moments_of_small_samples(x: Tensor) -> tuple[Tensor, Tensor]:
    samples = _samples(x)
    first = samples[:, 0]
    mean, var = _moments_around(first, samples)
    if ((mean - first).square() > _SHIFT_RATIO * var).any():  # the first element was an odd one to shift by
        mean, var = _moments_around(mean, samples)
    return mean, var


def _moments_around(center: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    length = samples.shape[1]
    plain, square = _sums_of_small_samples(samples, samples, center, shift_both=True)
    rest = plain / length
    return center + rest, (square / length - rest * rest).clamp_(min=0)


def _sums_of_small_samples(g: Tensor, x: Tensor, center: Tensor, *, shift_both: bool = False) -> tuple[Tensor, Tensor]:
    # Sums over S of g and g * (x - center) for (N, S, C); with shift_both, g is shifted by center as well.
    count = max(1, _CHUNK_BYTES // (x[0].numel() * x.element_size()))
    plain, product = torch.empty_like(center), torch.empty_like(center)
    buffer = torch.empty_like(x[:count])
    for start in range(0, x.shape[0], count):
        part = slice(start, min(start + count, x.shape[0]))
        shifted = torch.sub(x[part], center[part].unsqueeze(1), out=buffer[: part.stop - start])
        torch.sum(shifted if shift_both else g[part], 1, out=plain[part])
        torch.sum(shifted.mul_(shifted if shift_both else g[part]), 1, out=product[part])
    return plain, product
