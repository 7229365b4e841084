"""What is compared: for every norm, our layer, its plain formula, and the layer people use now."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_type_hints

import torch
from torch import Tensor, nn

from shiftnorm import norms
from shiftnorm.norms import NormLayer

# The plain formulas and the authors' cost models are the ones the tests hold our layers against.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import authors
import reference

State = dict[str, Tensor]


class Draws(NamedTuple):
    """Random numbers made before the clock starts; our layers and the authors' make theirs while it runs."""

    permutation: Tensor
    lam: Tensor
    mean_noise: Tensor
    std_noise: Tensor
    races: Tensor


class Row(NamedTuple):
    """One line of the table.

    ours: our layer for a number of channels, such that it acts in every training forward.
    plain: the unfused formula, with our layer's initial state under the authors' keys.
    authors: the layer people use now, None where there is no cost model of it.
    speedup: how many times faster than `authors` the eager layer has to be, None where nothing is promised.
    moment: whether it is a moment norm; the others are reported without targets and are not compiled.
    limit: the most it may take, in times of our BatchNorm.
    """

    ours: Callable[[int], nn.Module]
    plain: Callable[[Tensor, State, Draws], Tensor]
    authors: Callable[[int], nn.Module] | None = None
    speedup: float | None = None
    moment: bool = True
    limit: float = 1.15


def groups(channels: int) -> int:
    return min(32, channels // 2)


def plain_cnsn(x: Tensor, state: State, draws: Draws) -> Tensor:
    styled = reference.cross_norm(x, permutation=draws.permutation)
    return reference.self_norm(styled, reference.part(state, "selfnorm"), training=True)[0]


def plain_chain(x: Tensor, state: State, draws: Draws) -> Tensor:
    y = reference.batch_norm(x, reference.part(state, "0"), training=True)[0]
    return plain_cnsn(y, state, draws)


ROWS: dict[str, Row] = {
    "BatchNorm": Row(
        norms.BatchNorm, lambda x, state, _: reference.batch_norm(x, state, training=True)[0], nn.BatchNorm2d
    ),
    "InstanceNorm": Row(
        lambda c: norms.InstanceNorm(c, affine=True),
        lambda x, state, _: reference.instance_norm(x, state),
        lambda c: nn.InstanceNorm2d(c, affine=True),
    ),
    "GroupNorm": Row(
        lambda c: norms.GroupNorm(c, groups(c)),
        lambda x, state, _: reference.group_norm(x, state, num_groups=groups(x.shape[1])),
        lambda c: nn.GroupNorm(groups(c), c),
    ),
    "LayerNorm": Row(norms.LayerNorm, lambda x, state, _: reference.layer_norm(x, state), lambda c: nn.GroupNorm(1, c)),
    "IBN": Row(norms.IBN, lambda x, state, _: reference.ibn(x, state, training=True)[0], authors.IBN),
    "BatchInstanceNorm": Row(
        norms.BatchInstanceNorm,
        lambda x, state, _: reference.batch_instance_norm(x, state, training=True)[0],
        authors.BatchInstanceNorm,
        speedup=4.0,
    ),
    "RepresentativeBatchNorm": Row(
        norms.RepresentativeBatchNorm,
        lambda x, state, _: reference.representative_batch_norm(x, state, training=True)[0],
        authors.RepresentativeBatchNorm,
        speedup=2.5,
    ),
    "SwitchNorm": Row(
        norms.SwitchNorm,
        lambda x, state, _: reference.switch_norm(x, state, training=True)[0],
        authors.SwitchNorm,
        speedup=4.0,
    ),
    "AttentiveNorm": Row(norms.AttentiveNorm, lambda x, state, _: reference.attentive_norm(x, state, training=True)[0]),
    "SelfNorm": Row(
        norms.SelfNorm,
        lambda x, state, _: reference.self_norm(x, state, training=True)[0],
        authors.SelfNorm,
        speedup=3.0,
    ),
    "SelfNorm (two branches)": Row(
        lambda c: norms.SelfNorm(c, two_branches=True),
        lambda x, state, _: reference.self_norm(x, state, training=True)[0],
    ),
    "SqueezeExcite": Row(norms.SqueezeExcite, lambda x, state, _: reference.squeeze_excite(x, state)),
    "CrossNorm": Row(
        norms.CrossNorm,
        lambda x, _, draws: reference.cross_norm(x, permutation=draws.permutation),
        authors.CrossNorm,
        speedup=8.0,
    ),
    "CNSN": Row(norms.CNSN, plain_cnsn, authors.CNSN, speedup=10.0),
    "Chain (BatchNorm, CNSN)": Row(
        lambda c: norms.Chain(norms.BatchNorm(c), norms.CNSN(c)),
        plain_chain,
        lambda c: nn.Sequential(nn.BatchNorm2d(c), authors.CNSN(c)),
        limit=1.1,
    ),
    "MixStyle": Row(
        lambda c: norms.MixStyle(c, p=1.0),
        lambda x, _, draws: reference.mix_style(x, lam=draws.lam, permutation=draws.permutation),
        authors.MixStyle,
    ),
    "DSU": Row(
        lambda c: norms.DSU(c, p=1.0),
        lambda x, _, draws: reference.dsu(x, mean_noise=draws.mean_noise, std_noise=draws.std_noise),
        authors.DSU,
    ),
    "PermutedAdaIN": Row(
        lambda c: norms.PermutedAdaIN(c, p=1.0),
        lambda x, _, draws: reference.permuted_adain(x, permutation=draws.permutation),
    ),
    "EFDMix": Row(
        lambda c: norms.EFDMix(c, p=1.0),
        lambda x, _, draws: reference.efd_mix(x, lam=draws.lam, permutation=draws.permutation),
        moment=False,
    ),
    "DomainNorm": Row(
        norms.DomainNorm,
        lambda x, state, _: reference.domain_norm(x, state, form="in_l2_affine"),
        moment=False,
    ),
    "MixtureNorm": Row(
        norms.MixtureNorm,
        lambda x, state, draws: reference.mixture_norm(x, state, training=True, races=draws.races)[0],
        moment=False,
    ),
}


def norm_of(name: str) -> str:
    """The norm a row is about: its name up to the variant in brackets."""
    return name.partition(" (")[0]


def roster() -> list[str]:
    """Every concrete layer, and every function that makes one, among the public names of `shiftnorm.norms`."""
    found: list[str] = []
    for name in norms.__all__:
        public = getattr(norms, name)
        made = public if isinstance(public, type) else get_type_hints(public).get("return")
        if isinstance(made, type) and issubclass(made, NormLayer) and made not in (NormLayer, norms.MomentNorm):
            found.append(name)
    return found


def draws_for(x: Tensor) -> Draws:
    n, c = x.shape[:2]
    return Draws(
        permutation=torch.randperm(n),
        lam=torch.rand(n),
        mean_noise=torch.randn(n, c),
        std_noise=torch.randn(n, c),
        races=torch.empty(3, n, x.numel() // (n * c)).exponential_(),
    )


def plain_state(norm: nn.Module) -> State:
    """Our layer's initial state under the authors' keys, parameters with gradients."""
    if not isinstance(norm, NormLayer):
        raise TypeError(f"plain_state: expected a NormLayer, got {type(norm).__name__}.")
    learned = set(norm.to_official({name: value.detach() for name, value in norm.named_parameters()}))
    whole = norm.to_official()
    return {key: value.detach().clone().requires_grad_(key in learned) for key, value in whole.items()}
