"""One row per configuration of a norm: how to build it and what its paper says it computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import reference
from shiftnorm import norms
from shiftnorm.norms import NormLayer

State = Mapping[str, Tensor]
Reference = Callable[[Tensor, State, bool, Any], Tensor]


@dataclass(frozen=True)
class Case:
    """How to build a norm, and its plain formula: (x, state under the authors' names, training, draw) -> y."""

    name: str
    build: Callable[[int], NormLayer]
    reference: Reference
    random: bool = False
    """Draws random numbers in training."""
    couples: bool = True
    """Samples of a batch influence each other in training."""
    constant: bool = False
    """Holds statistics constant, so that its gradient is not the derivative of its output."""
    masks: bool = True
    """Honours ``mask``."""
    not_on_2d: str = ""
    """Why the reference says nothing about (N, C) input."""
    rests: bool = True
    """If random: is the identity in evaluation."""

    def __str__(self) -> str:
        return self.name


def _value(result: Tensor | tuple[Tensor, Any]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def modal(function: Callable[..., Any], **options: Any) -> Reference:
    """A reference with a training mode."""
    return lambda x, state, training, draw: _value(function(x, state, training=training, **options))


def fixed(function: Callable[..., Any], **options: Any) -> Reference:
    """A reference that is the same in training and evaluation."""
    return lambda x, state, training, draw: _value(function(x, state, **options))


def styled(function: Callable[..., Tensor], arguments: Callable[[Any], dict[str, Any]]) -> Reference:
    """A reference that acts in training, if its draw says so."""
    return lambda x, state, training, draw: function(x, **arguments(draw)) if training and draw.acts else x


def _cross(draw: Any) -> dict[str, Any]:
    boxes = {
        name: getattr(draw, name).tolist() for name in ("style_box", "content_box") if getattr(draw, name) is not None
    }
    return {"permutation": draw.partner, "channel_permutation": draw.channels, **boxes}


def _cross_then_self(x: Tensor, state: State, training: bool, draw: Any) -> Tensor:
    x = reference.cross_norm(x, **_cross(draw[0])) if training and draw[0].acts else x
    return _value(reference.self_norm(x, reference.part(state, "selfnorm"), training=training))


def _batch_cross_self(x: Tensor, state: State, training: bool, draw: Any) -> Tensor:
    x = _value(reference.batch_norm(x, reference.part(state, "0"), training=training))
    return _cross_then_self(x, state, training, draw and draw[1:])


def _domain(x: Tensor, state: State, *, form: str) -> Tensor:
    return reference.domain_norm(
        x, {name.removeprefix("normalize."): value for name, value in state.items()}, form=form
    )


def _style_rows() -> list[Case]:
    rows = [
        Case(
            f"CrossNorm-{mode}-{crop}",
            lambda c, mode=mode, crop=crop: norms.CrossNorm(c, mode=mode, crop=crop),
            styled(reference.cross_norm, _cross),
            random=True,
            masks=crop == "neither",
        )
        for mode, crop in [
            ("2-instance", "neither"),
            ("1-instance", "neither"),
            ("both", "both"),
            ("2-instance", "content"),
            ("2-instance", "style"),
        ]
    ]
    mixed = lambda draw: {"lam": draw.weight, "permutation": draw.permutation}
    noise = lambda draw: {"mean_noise": draw.mean_noise, "std_noise": draw.std_noise}
    return [
        *rows,
        Case(
            "CrossNorm-blend",
            lambda c: norms.CrossNorm(blend=0.3),
            styled(reference.cross_norm, lambda draw: {**_cross(draw), "lam": 0.3}),
            random=True,
        ),
        Case(
            "MixStyle",
            lambda c: norms.MixStyle(c, p=1.0),
            styled(reference.mix_style, mixed),
            random=True,
            constant=True,
        ),
        Case(
            "MixStyle-crossdomain",
            lambda c: norms.MixStyle(c, p=1.0, mix="crossdomain"),
            styled(reference.mix_style, mixed),
            random=True,
            constant=True,
        ),
        Case(
            "PermutedAdaIN",
            lambda c: norms.PermutedAdaIN(c, p=1.0),
            styled(reference.permuted_adain, lambda draw: {"permutation": draw.permutation}),
            random=True,
            constant=True,
            not_on_2d="planes of one element pass, and the formula has no word on them",
        ),
        Case("DSU", lambda c: norms.DSU(c, p=1.0), styled(reference.dsu, noise), random=True),
        Case("EFDMix", lambda c: norms.EFDMix(c, p=1.0), styled(reference.efd_mix, mixed), random=True, masks=False),
    ]


OTHER_LAYER = "on (N, C) the published layer mixes other norms; test_switch_norm has it"

CASES = [
    Case("BatchNorm", norms.BatchNorm, modal(reference.batch_norm)),
    Case(
        "BatchNorm-plain",
        lambda c: norms.BatchNorm(c, affine=False, track_running_stats=False),
        modal(reference.batch_norm),
    ),
    Case("InstanceNorm", lambda c: norms.InstanceNorm(c, affine=True), fixed(reference.instance_norm), couples=False),
    Case("GroupNorm", lambda c: norms.GroupNorm(c, 4), fixed(reference.group_norm, num_groups=4), couples=False),
    Case("LayerNorm", norms.LayerNorm, fixed(reference.layer_norm), couples=False),
    Case("IBN", norms.IBN, modal(reference.ibn)),
    Case(
        "IBN-batch-first",
        lambda c: norms.IBN(c, ratio=0.4, order="batch_first"),
        modal(reference.ibn, instance_first=False),
    ),
    Case("IBN-quarter", lambda c: norms.IBN(c, ratio=0.3), modal(reference.ibn)),
    Case("BatchInstanceNorm", norms.BatchInstanceNorm, modal(reference.batch_instance_norm)),
    Case("RepresentativeBatchNorm", norms.RepresentativeBatchNorm, modal(reference.representative_batch_norm)),
    Case("SwitchNorm", norms.SwitchNorm, modal(reference.switch_norm), not_on_2d=OTHER_LAYER),
    Case(
        "SwitchNorm-without-batch",
        lambda c: norms.SwitchNorm(c, using_bn=False),
        modal(reference.switch_norm),
        couples=False,
        not_on_2d=OTHER_LAYER,
    ),
    Case("AttentiveNorm", lambda c: norms.AttentiveNorm(c, num_pairs=5), modal(reference.attentive_norm)),
    Case(
        "AttentiveNorm-group",
        lambda c: norms.AttentiveNorm(c, num_pairs=3, base="group", num_groups=2, attention="sigmoid"),
        modal(reference.attentive_norm, num_groups=2, activation=torch.sigmoid),
        couples=False,
    ),
    Case("SelfNorm", norms.SelfNorm, modal(reference.self_norm)),
    Case("SelfNorm-two", lambda c: norms.SelfNorm(c, two_branches=True), modal(reference.self_norm)),
    Case(
        "SqueezeExcite", lambda c: norms.SqueezeExcite(c, reduction=4), fixed(reference.squeeze_excite), couples=False
    ),
    Case("CNSN", norms.CNSN, _cross_then_self, random=True, rests=False),
    Case("CNSN-crop", lambda c: norms.CNSN(c, crop="both"), _cross_then_self, random=True, masks=False, rests=False),
    Case(
        "Chain", lambda c: norms.Chain(norms.BatchNorm(c), norms.CNSN(c)), _batch_cross_self, random=True, rests=False
    ),
    *(
        Case(
            f"DomainNorm-{form}",
            lambda c, form=form: norms.DomainNorm(c, form=form),
            fixed(_domain, form=form),
            couples=False,
            not_on_2d="single elements normalise to 0, and 0/0 is all the formula has",
        )
        for form in ("in_l2", "in_l2_affine", "l2_in")
    ),
    Case(
        "MixtureNorm",
        norms.MixtureNorm,
        lambda x, state, training, draw: _value(
            reference.mixture_norm(x, state, training=training, races=None if draw is None else draw.races)
        ),
        masks=False,
        constant=True,
        rests=False,
    ),
    *_style_rows(),
]


def build(case: Case, *, dtype: torch.dtype = torch.float64, channels: int = 8) -> NormLayer:
    """The norm of a row with parameters and buffers away from their starting values."""
    norm = case.build(channels).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) - 0.2)
        for name, buffer in norm.named_buffers():
            if "running" in name:
                buffer.add_(0.4 * torch.rand(buffer.shape, generator=generator, dtype=torch.float64).to(dtype))
    return norm


def roster() -> dict[str, Any]:
    """Every layer of the public list: the final classes, and CNSN, which builds a chain."""
    layers = {
        name: thing
        for name, thing in vars(norms).items()
        if name in norms.__all__
        and inspect.isclass(thing)
        and issubclass(thing, nn.Module)
        and not inspect.isabstract(thing)
    }
    for base in ("NormLayer", "RunningMoments", "AttentionWeights"):
        layers.pop(base, None)
    return {**layers, "CNSN": norms.CNSN}


def call(norm: NormLayer, x: Tensor, draw: Any) -> Tensor:
    """Run a norm with a draw of its own, as a function of x."""
    return partial(norm, draw=draw)(x)
