"""Attentive Normalization: an affine mixed for every instance from K learnt ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftnorm.norms.base import MomentNorm, OfficialTensor, has_hooks
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Attention, Moments, attend

__all__ = ["AttentionWeights", "AttentiveNorm"]

AttentionName = Literal["sigmoid", "hsigmoid", "mlp", "bn_hsigmoid", "bn_sigmoid", "bn_softmax", "mlp_bn"]


_NORM_EPS = 1e-5  # of the BatchNorm in the attention


class _HardSigmoid(nn.Module):
    """torch.nn.Hardsigmoid, whose gradient in float64 is only as exact as a float32 1/6."""

    def forward(self, z: Tensor) -> Tensor:
        return F.hardtanh(torch.rsub(z, 0.5, alpha=-1 / 6), 0.0, 1.0)


class _Recipe(NamedTuple):
    hidden: bool
    norm: bool
    activation: type[nn.Module]


_RECIPES: dict[str, _Recipe] = {
    "sigmoid": _Recipe(False, False, nn.Sigmoid),
    "hsigmoid": _Recipe(False, False, _HardSigmoid),
    "mlp": _Recipe(True, False, nn.Sigmoid),
    "bn_hsigmoid": _Recipe(False, True, _HardSigmoid),
    "bn_sigmoid": _Recipe(False, True, nn.Sigmoid),
    "bn_softmax": _Recipe(False, True, nn.Softmax),
    "mlp_bn": _Recipe(True, True, _HardSigmoid),
}


@final
class AttentiveNorm(RunningMoments, MomentNorm):
    """BatchNorm or GroupNorm whose affine is, for every instance, a mixture of K learnt pairs.

        share_nk = attention(m / sqrt(v_u + attention_eps))            # from all C planes of sample n; v_u unbiased
        y = sum_k share_nk * (pair_weight_kc * z + pair_bias_kc),   z = (x - mean) / sqrt(var + eps)

    with mean and biased var over the batch or over the channel's group.

    The authors' code is under a research-only licence and says that a patent is pending. This is written from the
    paper's formulas and contains none of it; whether the patent concerns your use is for you to find out.

    Example:
        >>> norm = AttentiveNorm(16, num_pairs=5)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of x.
        momentum: weight of the newest batch in all running moments; None averages all batches equally.
        track_running_stats: keep running moments of the base "batch"; without them evaluation uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        num_pairs: K; the authors take 10 in the first two stages of a ResNet and 20 in the last two.
        base: "batch" normalises over the batch, "group" over ``num_groups`` runs of channels.
        num_groups: of the base "group"; it must divide C.
        attention: how shares are computed, see :class:`AttentionWeights`.
        attention_eps: added to the unbiased variance in the attention's input.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``pair_weight`` (K, C) from N(1, 0.1) and ``pair_bias`` (K, C) from N(0, 0.1), the second number being the
        deviation; ``attention_weights.layers.*``; with the base "batch" the buffers of RunningMoments. A BatchNorm's
        running moments load with ``strict=False``.
    Modes: training pools the batch and updates running moments, in the base and in the attention; evaluation uses them.
        The attention looks at the planes in both. A batch of one trains the attention by its running moments.
    Raises: ValueError for another channel count, an unknown base or attention, groups that do not divide C, or in
        training with the base "batch" for a single value per channel.
    Cost: two reads and one write of x; 2KC parameters and those of the attention.
    Source: Li et al., "Attentive Normalization", ECCV 2020.
    Differences: planes of one element have variance 0 in the attention's input instead of NaN; any rank instead of 4-D;
        modes have names instead of numbers; groups work with every attention; training with a batch of one works.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_pairs: int = 10,
        base: Literal["batch", "group"] = "batch",
        num_groups: int | None = None,
        attention: AttentionName = "bn_hsigmoid",
        attention_eps: float = 1e-3,
    ) -> None:
        MomentNorm.__init__(self, num_features)
        if base not in ("batch", "group"):
            raise ValueError(f"AttentiveNorm: expected base 'batch' or 'group', got {base!r}.")
        if base == "batch" and num_groups is not None:
            raise ValueError(f"AttentiveNorm: num_groups={num_groups} needs base='group', got base='batch'.")
        if base == "group" and (num_groups is None or num_groups < 1 or num_features % num_groups):
            raise ValueError(f"AttentiveNorm: expected num_groups to divide {num_features} channels, got {num_groups}.")
        self.eps = eps
        self.base = base
        self.num_groups = num_groups
        self.attention_weights = AttentionWeights(
            num_features, num_pairs, attention, eps=attention_eps, momentum=momentum, device=device, dtype=dtype
        )
        self.init_running(
            num_features,
            momentum=momentum,
            track_running_stats=track_running_stats,
            pools_batch=base == "batch",
            device=device,
            dtype=dtype,
        )
        # ``weight`` and ``bias`` stay free: (K, C) under these names would refuse every BatchNorm checkpoint.
        self.init_affine(num_features, affine=False)
        self.pair_weight = nn.Parameter(
            torch.empty(num_pairs, num_features, device=device, dtype=dtype).normal_(1.0, 0.1)
        )
        self.pair_bias = nn.Parameter(
            torch.empty(num_pairs, num_features, device=device, dtype=dtype).normal_(0.0, 0.1)
        )

    def affine(self, m: Moments) -> Affine:
        """The base's gain and mean under the mixed affine of each instance.

        Example:
            >>> norm = AttentiveNorm(2, num_pairs=3)
            >>> norm.affine(Moments(torch.randn(4, 2), torch.ones(4, 2), 9)).gain.shape
            torch.Size([4, 2])
        """
        weight, bias = self.attention_weights.mixed(m, self.pair_weight, self.pair_bias)
        affine = self.by_kernel(m, self.eps, weight, bias)
        if affine is not None:
            return affine
        seen = self.seen(m) if self.base == "batch" else m.pooled(over="groups", groups=self.num_groups)
        gain = weight * torch.rsqrt(seen.var + self.eps)
        return Affine(gain, torch.addcmul(bias, gain, m.mean - seen.mean))

    def _official(self, state: Mapping[str, Tensor]) -> dict[str, OfficialTensor]:
        table = {name: OfficialTensor(name) for name in state}
        table["pair_weight"], table["pair_bias"] = OfficialTensor("weight_"), OfficialTensor("bias_")
        prefix = "attention_weights."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for name, official in _official_layers(own).items():
            table[prefix + name] = OfficialTensor(prefix + official.key, official.shape)
        return {name: table[name] for name in state}

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> AttentiveNorm(4, base="group", num_groups=2).extra_repr()
            "4, eps=1e-05, num_pairs=10, base='group', num_groups=2"
        """
        groups = f", num_groups={self.num_groups}" if self.base == "group" else f", momentum={self.momentum}"
        return f"{self.num_features}, eps={self.eps}, num_pairs={len(self.pair_weight)}, base={self.base!r}{groups}"


@final
class AttentionWeights(nn.Module):
    """The share (N, K) that each of K affine pairs has in each sample, from the moments of its planes.

        share = attention(m / sqrt(v_u + eps))

    ============= ====== ==================================================================
    attention     theirs from the C means over deviations
    ============= ====== ==================================================================
    "sigmoid"     0      linear, sigmoid
    "hsigmoid"    4      linear, hard sigmoid min(max(z + 3, 0), 6) / 6
    "mlp"         1      linear to 2K, ReLU, linear, sigmoid
    "bn_hsigmoid" 2      linear without bias, BatchNorm over the batch, hard sigmoid
    "bn_sigmoid"  5      linear without bias, BatchNorm, sigmoid
    "bn_softmax"  6      linear without bias, BatchNorm, softmax over the K pairs
    "mlp_bn"      3      linear to 2K, BatchNorm, ReLU, linear, BatchNorm, hard sigmoid
    ============= ====== ==================================================================

    Example:
        >>> from shiftnorm.ops import moments
        >>> AttentionWeights(16, 5)(moments(torch.randn(4, 16, 8, 8))).shape
        torch.Size([4, 5])

    Args:
        num_features: channels C.
        num_pairs: K.
        attention: one of the names above.
        eps: added to the unbiased variance under the root.
        momentum: weight of the newest batch in the running moments; None averages all batches equally.
        bias: of linear layers that no BatchNorm follows.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises: ValueError for an unknown attention or less than one pair.
    """

    def __init__(
        self,
        num_features: int,
        num_pairs: int,
        attention: AttentionName = "bn_hsigmoid",
        *,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if attention not in get_args(AttentionName):
            raise ValueError(
                f"AttentionWeights: expected attention to be one of {get_args(AttentionName)}, got {attention!r}."
            )
        if num_pairs < 1:
            raise ValueError(f"AttentionWeights: expected num_pairs to be at least 1, got {num_pairs}.")
        self.attention = attention
        self.eps = eps
        recipe = _RECIPES[attention]

        def linear(inputs: int, outputs: int) -> list[nn.Module]:
            layer = nn.Linear(inputs, outputs, bias=bias and not recipe.norm, device=device, dtype=dtype)
            return [layer, _BatchNorm(outputs, momentum, device, dtype)] if recipe.norm else [layer]

        width = 2 * num_pairs if recipe.hidden else num_features
        layers = [*linear(num_features, width), nn.ReLU()] if recipe.hidden else []
        activation = nn.Softmax(dim=1) if recipe.activation is nn.Softmax else recipe.activation()
        self.layers = nn.Sequential(*layers, *linear(width, num_pairs), activation)

    def forward(self, m: Moments) -> Tensor:
        """The shares.

        Example:
            >>> share = AttentionWeights(2, 3, "bn_softmax")(Moments(torch.randn(4, 2), torch.ones(4, 2), 9))
            >>> torch.allclose(share.sum(1), torch.ones(4))
            True

        Args:
            m: (N, C) moments.
        """
        z = m.mean / m.deviation(self.eps)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                bias = None if layer.bias is None else layer.bias.to(z.dtype)  # pyright: ignore[reportUnnecessaryComparison]
                z = F.linear(z, layer.weight.to(z.dtype), bias)
            else:
                z = layer(z)
        return z

    def mixed(self, m: Moments, *pairs: Tensor) -> tuple[Tensor, ...]:
        """Several (K, C) parameters mixed by the shares, (N, C) each; two by one C++ kernel each way where that can be.

        Example:
            >>> m = Moments(torch.randn(4, 2), torch.ones(4, 2), 9)
            >>> [each.shape for each in AttentionWeights(2, 3).mixed(m, torch.ones(3, 2), torch.zeros(3, 2))]
            [torch.Size([4, 2]), torch.Size([4, 2])]

        Args:
            m: (N, C) moments.
            pairs: what to mix.
        """
        found = self._by_kernel(m, *pairs) if len(pairs) == 2 else None
        if found is not None:
            return found
        share = self(m)
        return tuple(share @ each.to(share.dtype) for each in pairs)

    def _by_kernel(self, m: Moments, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor] | None:
        linear, norm, *_ = layers = tuple(self.layers)
        if tuple(map(type, layers)) != (nn.Linear, _BatchNorm, _HardSigmoid) or any(map(has_hooks, self.modules())):
            return None
        linear, norm = cast("nn.Linear", linear), cast("_BatchNorm", norm)
        if not norm.has_kernel(m):
            return None
        pace = cast("float", norm.momentum)
        own = (linear.weight, norm.weight, norm.bias, weight, bias)
        return attend(m, Attention(*own, *norm.updated(), pace, self.eps, _NORM_EPS))

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the authors' state_dict of this part into ours; their linear layers are 1x1 convolutions.

        Example:
            >>> weights = AttentionWeights(2, 3, "sigmoid")
            >>> weights.from_official(weights.to_official())["layers.0.weight"].shape
            torch.Size([3, 2])

        Args:
            state: the part's own entries, without a prefix.

        Raises:
            KeyError: if a key is missing or unknown; the text names both.
        """
        own = self.state_dict()
        names = {official.key: name for name, official in _official_layers(own).items()}
        if names.keys() != state.keys():
            missing, unknown = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
            raise KeyError(
                f"AttentionWeights.from_official: expected the keys {sorted(names)}; "
                f"missing {missing}, unknown {unknown}."
            )
        return {names[key]: tensor.reshape(own[names[key]].shape) for key, tensor in state.items()}

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Translate our state_dict, or tensors under the same names such as gradients, into the authors'.

        Example:
            >>> AttentionWeights(2, 3, "sigmoid").to_official()["attention.0.weight"].shape
            torch.Size([3, 2, 1, 1])
        """
        state = self.state_dict() if state is None else state
        table = _official_layers(state)
        return {table[name].key: tensor.reshape(table[name].shape or tensor.shape) for name, tensor in state.items()}

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> AttentionWeights(2, 3).extra_repr()
            "attention='bn_hsigmoid', eps=0.001"
        """
        return f"attention={self.attention!r}, eps={self.eps}"


class _BatchNorm(RunningMoments):
    """BatchNorm of (N, K) features that are no planes of anything; a batch of one uses the running moments."""

    def __init__(
        self, num_features: int, momentum: float | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.init_running(num_features, momentum=momentum, device=device, dtype=dtype)

    def forward(self, z: Tensor) -> Tensor:
        return self.normalise_features(z, self.weight, self.bias, _NORM_EPS)


def _official_layers(state: Mapping[str, Tensor]) -> dict[str, OfficialTensor]:
    return {
        name: OfficialTensor(
            name.replace("layers.", "attention.", 1), (*tensor.shape, 1, 1) if tensor.dim() == 2 else None
        )
        for name, tensor in state.items()
    }
