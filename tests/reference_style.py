"""The plain formulas that give planes the style of others: no parameters, all draws passed in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference_planes import mean_std, mean_var, planes


def adaptive_instance_norm(content: Tensor, style: Tensor, *, eps: float = 1e-5) -> Tensor:
    """AdaIN: the content's planes with the mean and the unbiased deviation of the style's; the sizes may differ."""
    mean, std = mean_std(planes(content), eps)
    style_mean, style_std = mean_std(planes(style), eps)
    return ((planes(content) - mean) / std * style_std + style_mean).reshape(content.shape)


def adaptive_mean(content: Tensor, style: Tensor) -> Tensor:
    p, s = planes(content), planes(style)
    return (p - p.mean(-1, keepdim=True) + s.mean(-1, keepdim=True)).reshape(content.shape)


def adaptive_std(content: Tensor, style: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The whole value is scaled, so the mean moves with the deviation."""
    std, style_std = mean_std(planes(content), eps)[1], mean_std(planes(style), eps)[1]
    return (planes(content) / std * style_std).reshape(content.shape)


def crop(x: Tensor, box: Sequence[int]) -> Tensor:
    """The box (first corner, then last corner, exclusive) of every plane."""
    rank = x.ndim - 2
    starts, stops = [int(v) for v in box[:rank]], [int(v) for v in box[rank:]]
    return x[(..., *(slice(a, b) for a, b in zip(starts, stops, strict=True)))]


def cross_norm(
    x: Tensor,
    *,
    permutation: Tensor | None = None,
    channel_permutation: Tensor | None = None,
    style_box: Sequence[int] | None = None,
    content_box: Sequence[int] | None = None,
    lam: float | Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    style = x if permutation is None else x[permutation]
    if style_box is not None:
        style = crop(style, style_box)
    if channel_permutation is not None:
        style = style[:, channel_permutation]
    if content_box is None:
        restyled = adaptive_instance_norm(x, style, eps=eps)
    else:
        restyled = x.clone()
        crop(restyled, content_box).copy_(adaptive_instance_norm(crop(x, content_box), style, eps=eps))
    return restyled if lam is None else lam * x + (1 - lam) * restyled


def mix_style(x: Tensor, *, lam: Tensor, permutation: Tensor, eps: float = 1e-6) -> Tensor:
    """All statistics are constants; ``1 - lam`` is taken in ``lam``'s own precision."""
    p, lam = planes(x), lam.reshape(-1, 1, 1)
    mean, std = (t.detach() for t in mean_std(p, eps))
    mixed_mean = lam * mean + (1 - lam) * mean[permutation]
    mixed_std = lam * std + (1 - lam) * std[permutation]
    return ((p - mean) / std * mixed_std + mixed_mean).reshape(x.shape)


def permuted_adain(x: Tensor, *, permutation: Tensor, eps: float = 1e-5) -> Tensor:
    """eps enters the content deviation twice, the style's once; the style is a constant."""
    p = planes(x)
    mean, std = mean_std(p, eps)
    style_mean, style_std = mean.detach()[permutation], std.detach()[permutation]
    return ((p - mean) / (std + eps) * style_std + style_mean).reshape(x.shape)


def dsu(x: Tensor, *, mean_noise: Tensor, std_noise: Tensor, eps: float = 1e-6) -> Tensor:
    p = planes(x)
    mean, std = mean_std(p, eps)
    mean_spread = (mean_var(mean, 0, correction=1)[1] + eps).sqrt()
    std_spread = (mean_var(std, 0, correction=1)[1] + eps).sqrt()
    new_mean = mean + mean_noise.unsqueeze(-1) * mean_spread
    new_std = std + std_noise.unsqueeze(-1) * std_spread
    return ((p - mean) / std * new_std + new_mean).reshape(x.shape)


def match_order_statistics(content: Tensor, style: Tensor, order: Tensor | None, style_order: Tensor | None) -> Tensor:
    """(N, C, L): the style's values, each put where the content has the value of that rank."""
    order = content.argsort(dim=-1, stable=True) if order is None else order
    style_order = style.argsort(dim=-1, stable=True) if style_order is None else style_order
    return torch.empty_like(content).scatter(-1, order, style.gather(-1, style_order))


def exact_feature_distribution_matching(
    content: Tensor, style: Tensor, *, order: Tensor | None = None, style_order: Tensor | None = None
) -> Tensor:
    """EFDM: the style's values in the content's order; the content gets the gradient unchanged."""
    p = planes(content)
    matched = match_order_statistics(p, planes(style), order, style_order)
    return (p + matched - p.detach()).reshape(content.shape)


def efd_mix(x: Tensor, *, lam: Tensor, permutation: Tensor, order: Tensor | None = None) -> Tensor:
    p, other = planes(x), 1 - lam.reshape(-1, 1, 1)
    style_order = None if order is None else order[permutation]
    matched = match_order_statistics(p, p[permutation], order, style_order)
    return (p + (matched - p.detach()) * other).reshape(x.shape)
