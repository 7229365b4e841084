"""Every norm as its paper writes it: plain torch, one function each, no attention to speed.

A function takes ``x`` of shape (N, C, *), the norm's ``state`` under the authors' names (``to_official()`` of ours;
what belongs to channels may have any shape that holds C values) and, for a random norm, its draws as plain tensors.
It returns ``y``, or ``(y, buffers)`` where the norm keeps running statistics; ``buffers`` holds their values after
this forward. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_mixture import mixture_norm
from reference_planes import Buffers, State, mean_std, mean_var, part, per_channel, planes, scale_shift, under
from reference_style import (
    adaptive_instance_norm,
    adaptive_mean,
    adaptive_std,
    cross_norm,
    dsu,
    efd_mix,
    exact_feature_distribution_matching,
    mix_style,
    permuted_adain,
)

__all__ = [
    "adaptive_instance_norm",
    "adaptive_mean",
    "adaptive_std",
    "attention_over_experts",
    "attentive_norm",
    "batch_instance_norm",
    "batch_norm",
    "blended_batch_norm",
    "cross_norm",
    "domain_norm",
    "dsu",
    "efd_mix",
    "exact_feature_distribution_matching",
    "group_norm",
    "hard_sigmoid",
    "ibn",
    "instance_norm",
    "layer_norm",
    "mix_style",
    "mixture_norm",
    "part",
    "permuted_adain",
    "representative_batch_norm",
    "self_norm",
    "squeeze_excite",
    "standardize_by_batch",
    "standardize_by_group",
    "switch_norm",
    "under",
]


def standardize_by_batch(
    x: Tensor, state: State, *, training: bool, eps: float, momentum: float | None
) -> tuple[Tensor, Buffers]:
    """BatchNorm without weight and bias on (N, C, L): biased variance to normalise, unbiased variance to store."""
    tracked = state.get("running_mean") is not None
    if tracked and not training:
        mean, var = per_channel(state["running_mean"]), per_channel(state["running_var"])
        buffers = {
            name: state[name] for name in ("running_mean", "running_var", "num_batches_tracked") if name in state
        }
        return (x - mean) / (var + eps).sqrt(), buffers
    mean, var = mean_var(x, (0, 2), correction=0)
    buffers: Buffers = {}
    if tracked:
        seen = state["num_batches_tracked"] + 1
        step = 1.0 / float(seen) if momentum is None else momentum
        unbiased = mean_var(x, (0, 2), correction=1)[1]
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            old = state[name]
            buffers[name] = (1 - step) * old + step * new.detach().reshape(old.shape)
        buffers["num_batches_tracked"] = seen
    return (x - mean) / (var + eps).sqrt(), buffers


def batch_norm(
    x: Tensor, state: State, *, training: bool, eps: float = 1e-5, momentum: float | None = 0.1
) -> tuple[Tensor, Buffers]:
    standard, buffers = standardize_by_batch(planes(x), state, training=training, eps=eps, momentum=momentum)
    return scale_shift(standard, state).reshape(x.shape), buffers


def blended_batch_norm(x: Tensor, state: State, *, source_weight: float, eps: float = 1e-5) -> Tensor:
    """alpha-BN: source moments blended with the batch's (unbiased variance), all of them constants."""
    p = planes(x)
    mean, var = (t.detach() for t in mean_var(p, (0, 2), correction=1))
    mean = source_weight * per_channel(state["running_mean"]) + (1 - source_weight) * mean
    var = source_weight * per_channel(state["running_var"]) + (1 - source_weight) * var
    return scale_shift((p - mean) / (var + eps).sqrt(), state).reshape(x.shape)


def instance_norm(x: Tensor, state: State, *, eps: float = 1e-5) -> Tensor:
    mean, var = mean_var(planes(x), 2, correction=0)
    return scale_shift((planes(x) - mean) / (var + eps).sqrt(), state).reshape(x.shape)


def standardize_by_group(x: Tensor, num_groups: int, eps: float) -> Tensor:
    grouped = x.reshape(x.shape[0], num_groups, -1)
    mean, var = mean_var(grouped, 2, correction=0)
    return ((grouped - mean) / (var + eps).sqrt()).reshape(x.shape)


def group_norm(x: Tensor, state: State, *, num_groups: int, eps: float = 1e-5) -> Tensor:
    return scale_shift(standardize_by_group(planes(x), num_groups, eps), state).reshape(x.shape)


def layer_norm(x: Tensor, state: State, *, eps: float = 1e-5) -> Tensor:
    """Over channels and space together."""
    return group_norm(x, state, num_groups=1, eps=eps)


def ibn(
    x: Tensor,
    state: State,
    *,
    training: bool,
    instance_first: bool = True,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
) -> tuple[Tensor, Buffers]:
    """IBN-a: state ``IN.*`` for the instance channels, ``BN.*`` for the batch channels."""
    half = state["IN.weight" if instance_first else "BN.weight"].numel()
    first, second = x[:, :half], x[:, half:]
    by_instance, by_batch = (first, second) if instance_first else (second, first)
    y_in = instance_norm(by_instance, part(state, "IN"), eps=eps)
    y_bn, buffers = batch_norm(by_batch, part(state, "BN"), training=training, eps=eps, momentum=momentum)
    return torch.cat((y_in, y_bn) if instance_first else (y_bn, y_in), dim=1), under("BN", buffers)


def batch_instance_norm(
    x: Tensor, state: State, *, training: bool, eps: float = 1e-5, momentum: float | None = 0.1, count: bool = True
) -> tuple[Tensor, Buffers]:
    """``count=False`` leaves num_batches_tracked alone, as the authors' code does."""
    p, gate = planes(x), per_channel(state["gate"])
    by_batch, buffers = standardize_by_batch(p, state, training=training, eps=eps, momentum=momentum)
    by_instance = instance_norm(p, {}, eps=eps)
    if not count and "num_batches_tracked" in buffers:
        buffers["num_batches_tracked"] = state["num_batches_tracked"]
    return scale_shift(gate * by_batch + (1 - gate) * by_instance, state).reshape(x.shape), buffers


def self_norm(
    x: Tensor, state: State, *, training: bool, eps: float = 1e-12, gate_eps: float = 1e-5, momentum: float | None = 0.1
) -> tuple[Tensor, Buffers]:
    """State ``g_fc.weight``, ``g_bn.*``; a second branch where ``f_fc.weight`` is there too."""
    p = planes(x)
    mean, std = mean_std(p, eps)
    buffers: Buffers = {}

    def gate(branch: str) -> Tensor:
        weight = state[f"{branch}_fc.weight"].reshape(-1, 2)
        z = mean * per_channel(weight[:, 0]) + std * per_channel(weight[:, 1])
        bn = part(state, f"{branch}_bn")
        z, after = batch_norm(z, bn, training=training, eps=gate_eps, momentum=momentum)
        buffers.update(under(f"{branch}_bn", after))
        return z.sigmoid()

    g = gate("g")
    if "f_fc.weight" not in state:
        return (g * p).reshape(x.shape), buffers
    standard = (p - mean) / std
    return (standard * (g * std) + gate("f") * mean).reshape(x.shape), buffers


def representative_batch_norm(
    x: Tensor, state: State, *, training: bool, eps: float = 1e-5, momentum: float | None = 0.1
) -> tuple[Tensor, Buffers]:
    p = planes(x)
    centred = p + per_channel(state["center_weight"]) * p.mean(-1, keepdim=True)
    standard, buffers = standardize_by_batch(centred, state, training=training, eps=eps, momentum=momentum)
    strength = per_channel(state["scale_weight"]) * standard.mean(-1, keepdim=True) + per_channel(state["scale_bias"])
    return scale_shift(standard * strength.sigmoid(), state).reshape(x.shape), buffers


def domain_norm(x: Tensor, state: State, *, form: str, eps: float = 1e-5, l2_eps: float = 1e-12) -> Tensor:
    """The three published forms: ``in_l2`` (no affine), ``in_l2_affine``, ``l2_in`` (affine instance norm)."""

    def unit(t: Tensor) -> Tensor:
        return t / t.square().sum(1, keepdim=True).sqrt().clamp_min(l2_eps)

    if form == "in_l2":
        return unit(instance_norm(x, {}, eps=eps))
    if form == "in_l2_affine":
        return scale_shift(planes(unit(instance_norm(x, {}, eps=eps))), state).reshape(x.shape)
    if form == "l2_in":
        return instance_norm(unit(x), state, eps=eps)
    raise ValueError(f"domain_norm: form is one of 'in_l2', 'in_l2_affine', 'l2_in', got {form!r}")


def switch_norm(
    x: Tensor, state: State, *, training: bool, eps: float = 1e-5, momentum: float | None = 0.1
) -> tuple[Tensor, Buffers]:
    """IN, LN and BN; BN drops out without running buffers, IN on (N, C) input.

    LN and BN are pooled from the unbiased variance of each plane; on (N, C) their own variances are unbiased.
    With ``momentum=None`` the buffers add up sums over batches, for whoever divides them in the end.
    """
    p, tracked = planes(x), "running_mean" in state
    if x.ndim > 2:
        mean_in, var_in = mean_var(p, 2, correction=1)
        power = var_in + mean_in**2
        mean_ln, mean_bn = mean_in.mean(1, keepdim=True), mean_in.mean(0, keepdim=True)
        var_ln, var_bn = power.mean(1, keepdim=True) - mean_ln**2, power.mean(0, keepdim=True) - mean_bn**2
        means, variances = [mean_in, mean_ln], [var_in, var_ln]
    else:
        mean_ln, var_ln = mean_var(p, (1, 2), correction=1)
        mean_bn, var_bn = mean_var(p, (0, 2), correction=1)
        means, variances = [mean_ln], [var_ln]
    buffers: Buffers = {}
    if tracked:
        old_mean, old_var = state["running_mean"], state["running_var"]
        if training:
            new_mean, new_var = (t.detach().reshape(old_mean.shape) for t in (mean_bn, var_bn))
            if momentum is None:
                buffers = {"running_mean": old_mean + new_mean, "running_var": old_var + new_mean**2 + new_var}
            else:
                buffers = {
                    "running_mean": (1 - momentum) * old_mean + momentum * new_mean,
                    "running_var": (1 - momentum) * old_var + momentum * new_var,
                }
        else:
            mean_bn, var_bn = per_channel(old_mean), per_channel(old_var)
            buffers = {"running_mean": old_mean, "running_var": old_var}
        means.append(mean_bn)
        variances.append(var_bn)
    mean_share, var_share = state["mean_weight"].softmax(0), state["var_weight"].softmax(0)
    mean = sum(share * value for share, value in zip(mean_share, means, strict=True))
    var = sum(share * value for share, value in zip(var_share, variances, strict=True))
    return scale_shift((p - mean) / (var + eps).sqrt(), state).reshape(x.shape), buffers


def hard_sigmoid(z: Tensor) -> Tensor:
    return (z + 3).clamp(0, 6) / 6


def attention_over_experts(
    x: Tensor,
    state: State,
    *,
    training: bool,
    activation: Callable[[Tensor], Tensor] = hard_sigmoid,
    eps: float = 1e-3,
    momentum: float | None = 0.1,
) -> tuple[Tensor, Buffers]:
    """AttentiveNorm's weights (N, K) from each plane's mean over its deviation.

    A linear layer, then what the state holds: a BatchNorm (``attention.1``), or ReLU and a second linear layer
    (``attention.2``); then the activation.
    """
    mean, var = mean_var(planes(x), -1, correction=1)
    z = (mean / (var + eps).sqrt()).squeeze(-1)

    def linear(t: Tensor, layer: int) -> Tensor:
        weight = state[f"attention.{layer}.weight"]
        return F.linear(t, weight.reshape(weight.shape[0], -1), state.get(f"attention.{layer}.bias"))

    buffers: Buffers = {}
    z = linear(z, 0)
    if "attention.1.weight" in state:
        z, after = batch_norm(z, part(state, "attention.1"), training=training, momentum=momentum)
        buffers = under("attention.1", after)
    if "attention.2.weight" in state:
        z = linear(z.relu(), 2)
    return activation(z), buffers


def attentive_norm(
    x: Tensor,
    state: State,
    *,
    training: bool,
    activation: Callable[[Tensor], Tensor] = hard_sigmoid,
    num_groups: int | None = None,
    eps: float = 1e-5,
    attention_eps: float = 1e-3,
    momentum: float | None = 0.1,
) -> tuple[Tensor, Buffers]:
    """BatchNorm, or GroupNorm with ``num_groups``, whose affine is mixed per instance from K pairs (K, C)."""
    if num_groups is None:
        standard, buffers = standardize_by_batch(planes(x), state, training=training, eps=eps, momentum=momentum)
    else:
        standard, buffers = standardize_by_group(planes(x), num_groups, eps), {}
    attention = part(state, "attention_weights")
    share, after = attention_over_experts(
        x, attention, training=training, activation=activation, eps=attention_eps, momentum=momentum
    )
    gain, shift = (share @ state["weight_"]).unsqueeze(-1), (share @ state["bias_"]).unsqueeze(-1)
    return (gain * standard + shift).reshape(x.shape), buffers | under("attention_weights", after)


def squeeze_excite(x: Tensor, state: State) -> Tensor:
    p = planes(x)
    z = F.linear(F.linear(p.mean(-1), state["fc.0.weight"]).relu(), state["fc.2.weight"])
    return (p * z.sigmoid().unsqueeze(-1)).reshape(x.shape)
