"""The golden layers by our norms: for each of the authors' layers the norm, the state and the draw that match it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from golden_cases import Case, Layer, Outcome
from golden_reference import partner, permuted_adain_acts, switch_norm_momentum
from shiftnorm import norms
from shiftnorm.norms import NormLayer
from shiftnorm.norms.attentive_norm import Attention, AttentionWeights
from shiftnorm.norms.cross_norm import CrossNormDraw, restyle
from shiftnorm.norms.domain_norm import Form
from shiftnorm.ops import Affine, Moments, moments, normalize

State = dict[str, Tensor]


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The entries below ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load(norm: NormLayer | AttentionWeights, case: Case) -> None:
    """Put the norm into the case's precision and mode, and give it the authors' state."""
    norm.to(case.x.dtype).train(case.training)
    norm.load_state_dict(norm.from_official(case.state))


def collector(norm: NormLayer | AttentionWeights, case: Case, prefix: str = "") -> Callable[[], State]:
    """Gradients and buffers of the norm under the authors' names; buffers that ours lacks are taken to be untouched."""

    def collect() -> State:
        gradients = {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
        found = {f"grad_{prefix}{name}": value for name, value in norm.to_official(gradients).items()}
        buffers = norm.to_official(dict(norm.named_buffers()))
        kept = {**case.buffers, **{prefix + name: value for name, value in buffers.items()}}
        return found | {f"buffer_after.{name}": value for name, value in kept.items()}

    return collect


def run(norm: NormLayer, case: Case, *, draw: Any = None) -> Outcome:
    load(norm, case)
    return Outcome(norm(case.x, draw=draw), collector(norm, case))


def chosen(case: Case, *names: str) -> dict[str, Any]:
    """The constructor arguments among ``names`` that the case sets; the others keep our default."""
    return {name: case.kw[name] for name in names if name in case.kw}


def self_norm(case: Case) -> Outcome:
    return run(norms.SelfNorm(case.kw["chan_num"], two_branches=case.kw.get("is_two", False) is True), case)


def squeeze_excite(case: Case) -> Outcome:
    return run(norms.SqueezeExcite(case.kw["channel"], **chosen(case, "reduction")), case)


def batch_norm(case: Case, prefix: str, **settings: Any) -> Outcome:
    """A BatchNorm inside the authors' wrapper, put into train mode by it whatever mode the case names."""
    tracked = f"{prefix}running_mean" in case.buffers
    own = {"num_features": case.kw["num_features"], "track_running_stats": tracked, **chosen(case, "eps", "momentum")}
    norm = norms.BatchNorm(**own).to(case.x.dtype)
    state = under(prefix, case.state)
    if not tracked:
        state.pop("num_batches_tracked", None)
    norm.load_state_dict(norm.from_official(state))
    for name, value in settings.items():
        setattr(norm, name, value)
    return Outcome(norm(case.x), collector(norm, case, prefix))


def batch_norm_test(case: Case) -> Outcome:
    """Weight and bias are frozen; a single (N, C) vector has no batch to see, so the running moments stay."""
    norm = norms.BatchNorm(case.kw["num_features"]).to(case.x.dtype)
    norm.load_state_dict(norm.from_official(under("0.", case.state)))
    norm.requires_grad_(False)
    if case.x.ndim == 2 and case.x.shape[0] == 1:
        norm.source = "running"
    return Outcome(norm(case.x), collector(norm, case, "0."))


def alpha_batch_norm(case: Case) -> Outcome:
    """``layer`` is the source. ``norm`` holds the moments of the last batch it saw in train mode, unblended."""
    norm = norms.BatchNorm(case.kw["num_features"]).to(case.x.dtype)
    source, last = under("layer.", case.state), under("norm.", case.buffers)
    norm.load_state_dict(norm.from_official(source))
    target_weight = case.kw["alpha"]
    if case.training:
        seen = moments(case.x.detach()).pooled(over="batch")
        last = {
            "running_mean": seen.mean.squeeze(0),
            "running_var": seen.unbiased.squeeze(0),
            "num_batches_tracked": last["num_batches_tracked"] + 1,
        }
        norm.source, norm.source_weight = "blend", 1 - target_weight
    else:
        for name in ("running_mean", "running_var"):
            norm.get_buffer(name).lerp_(last[name], target_weight)
        norm.source = "running"
    collect = collector(norm, case, "layer.")

    def collect_both() -> State:
        found = collect()
        if not case.training:  # the blend above is this harness's doing
            found |= {f"buffer_after.layer.{name}": value for name, value in under("layer.", case.buffers).items()}
        return found | {f"buffer_after.norm.{name}": value for name, value in last.items()}

    return Outcome(norm(case.x), collect_both)


def cross_norm_layer(case: Case) -> norms.CrossNorm:
    """Our CrossNorm with the authors' crop, channel shuffle and lambda; their flag is our ``active``."""
    norm = norms.CrossNorm(
        mode="both" if case.kw.get("chan") else "2-instance", crop=case.kw["crop"], blend=case.kw.get("lam")
    )
    norm.active.fill_(case.kw.get("_active", True))
    return norm.train(case.training)


def cross_norm_draw(case: Case, norm: norms.CrossNorm) -> CrossNormDraw:
    """The recorded draws; where the authors made none because nothing acts, our own, which must not matter either."""
    if not case.active:
        return norm.draw(case.x)
    return CrossNormDraw(
        torch.tensor(True),
        case.draws["ins_idxs"],
        case.draws.get("chan_idxs"),
        case.draws.get("style_box"),
        case.draws.get("content_box"),
    )


def cross_norm(case: Case) -> Outcome:
    norm = cross_norm_layer(case)
    return run(norm, case, draw=cross_norm_draw(case, norm))


def cnsn(case: Case) -> Outcome:
    members: list[NormLayer] = []
    draws: list[Any] = []
    if "cn" in case.kw["cnsn_type"]:
        crossing = cross_norm_layer(case)
        members.append(crossing)
        draws.append(cross_norm_draw(case, crossing))
    if "sn" in case.kw["cnsn_type"]:
        members.append(norms.SelfNorm(case.kw["chan_num"]))
        draws.append(None)
    return run(norms.Chain(*members), case, draw=tuple(draws))


def ibn(case: Case, *, order: Literal["instance_first", "batch_first"]) -> Outcome:
    return run(norms.IBN(case.kw["planes"], order=order, **chosen(case, "ratio")), case)


def batch_instance_norm(case: Case) -> Outcome:
    """Theirs never counts batches, ours does."""
    outcome = run(norms.BatchInstanceNorm(**chosen(case, "num_features", "eps", "momentum", "affine")), case)
    count = {f"buffer_after.{name}": case.buffers[name] for name in case.buffers if name == "num_batches_tracked"}
    return Outcome(outcome.y, lambda: outcome.collect() | count)


def representative_batch_norm(case: Case) -> Outcome:
    own = chosen(case, "num_features", "eps", "momentum", "affine", "track_running_stats")
    return run(norms.RepresentativeBatchNorm(**own), case)


def domain_norm(case: Case, *, form: Form) -> Outcome:
    return run(norms.DomainNorm(case.kw["channel"], form=form, **chosen(case, "l2")), case)


def switch_norm(case: Case) -> Outcome:
    momentum = switch_norm_momentum(case)
    own = chosen(case, "num_features", "eps", "using_bn", "using_moving_average")
    if momentum is not None:
        own["momentum"] = momentum
    return run(norms.SwitchNorm(using_in=case.layer != "SwitchNorm1d", **own), case)


def mix_style(case: Case) -> Outcome:
    norm = norms.MixStyle(**chosen(case, "p", "alpha", "eps", "mix")).train(case.training)
    norm.active = case.kw.get("_active", True)
    draw = norm.draw(case.x)._replace(acts=torch.tensor(case.active))
    if case.active:
        draw = draw._replace(permutation=partner(case), weight=case.draws["lmda"].reshape(-1, 1))
    return run(norm, case, draw=draw)


def efd_mix(case: Case) -> Outcome:
    norm = norms.EFDMix(**chosen(case, "p", "alpha", "mix")).train(case.training)
    norm.active = case.kw.get("_active", True)
    draw = norm.draw(case.x)._replace(acts=torch.tensor(case.active), order=case.derived.get("sort_index"))
    if case.active:
        draw = draw._replace(permutation=partner(case), weight=case.draws["lmda"].reshape(-1, 1))
    return run(norm, case, draw=draw)


def efdm(case: Case) -> Outcome:
    orders = {"order": case.derived.get("sort_index_x0"), "style_order": case.derived.get("sort_index_x1")}
    return Outcome(norms.match_distribution(*case.inputs, **orders))


def dsu(case: Case) -> Outcome:
    norm = norms.DSU(**chosen(case, "p", "eps"))
    draw = norm.draw(case.x)._replace(acts=torch.tensor(case.active))
    if case.active:
        draw = draw._replace(mean_noise=case.draws["eps_mu"], std_noise=case.draws["eps_std"])
    return run(norm, case, draw=draw)


def permuted_adain(case: Case) -> Outcome:
    """FADA's ``adv`` draws a permutation that it does not use."""
    norm = norms.PermutedAdaIN(style="second_half" if case.kw.get("adv") else "permuted", **chosen(case, "p", "eps"))
    acts = permuted_adain_acts(case)
    draw = norm.draw(case.x)._replace(acts=torch.tensor(acts))
    if acts and norm.style == "permuted":
        draw = draw._replace(permutation=case.draws["perm"])
    return run(norm, case, draw=draw)


# One repository numbers the attentions, in the other one every mode ends in the hard sigmoid.
ATTENTIONS: dict[int, Attention] = {
    0: "sigmoid",
    1: "mlp",
    2: "bn_hsigmoid",
    3: "mlp_bn",
    4: "hsigmoid",
    5: "bn_sigmoid",
    6: "bn_softmax",
}


def attentive_norm(case: Case) -> Outcome:
    groups = case.kw.get("num_groups")
    numbered = case.layer.startswith("Mixture")
    norm = norms.AttentiveNorm(
        case.kw["num_channels"],
        num_pairs=case.parameters["weight_"].shape[0],
        base="batch" if groups is None else "group",
        num_groups=groups,
        attention=ATTENTIONS[case.kw.get("attention_mode", 0)] if numbered else "hsigmoid",
        **chosen(case, "eps", "momentum"),
    )
    return run(norm, case)


def attention_weights(case: Case) -> Outcome:
    """Ours is no norm but the part of one that takes moments."""
    weight = case.parameters["attention.0.weight"]
    biased = "attention.0.bias" in case.parameters
    part = AttentionWeights(weight.shape[1], weight.shape[0], "hsigmoid", bias=biased)
    load(part, case)
    return Outcome(part(moments(case.x)), collector(part, case))


def adaptive_instance_norm(case: Case) -> Outcome:
    content, style = case.inputs
    return Outcome(restyle(content, moments(style)))


def adaptive_mean(case: Case) -> Outcome:
    content, style = case.inputs
    return Outcome(restyle(content, moments(style), what="mean"))


def adaptive_std(case: Case) -> Outcome:
    """Theirs scales the whole value and so moves the mean too, which ``restyle(what="std")`` keeps."""
    content, style = case.inputs
    target = moments(style)

    def scaled(m: Moments) -> Affine:
        gain = torch.sqrt((target.unbiased + 1e-5) / (m.unbiased + 1e-5))
        return Affine(gain, gain * m.mean)

    return Outcome(normalize(content, scaled))


LAYERS: dict[str, Layer] = {
    "SelfNorm": self_norm,
    "instance_norm_mix": adaptive_instance_norm,
    "cn_op": cross_norm,
    "CrossNorm": cross_norm,
    "CNSN": cnsn,
    "IBN": lambda case: ibn(case, order="instance_first"),
    "IBN_tllib": lambda case: ibn(case, order="instance_first"),
    "IBN_densenet": lambda case: ibn(case, order="batch_first"),
    "SELayer": squeeze_excite,
    "BatchInstanceNorm2d": batch_instance_norm,
    "RBN": representative_batch_norm,
    "DomainNorm": lambda case: domain_norm(case, form="in_l2_affine"),
    "DomainNorm_2x2": lambda case: domain_norm(case, form="l2_in"),
    "DomainNorm2": lambda case: domain_norm(case, form="l2_only"),
    "SwitchNorm1d": switch_norm,
    "SwitchNorm2d": switch_norm,
    "SwitchNorm3d": switch_norm,
    "MixStyle_dassl": mix_style,
    "MixStyle_release": mix_style,
    "MixStyle_tllib": mix_style,
    "EFDMix_dassl": efd_mix,
    "EFDMix_efdm": efd_mix,
    "EFDM_fn": efdm,
    "AdaIN_fn": adaptive_instance_norm,
    "AdaMean_fn": adaptive_mean,
    "AdaStd_fn": adaptive_std,
    "DSU": dsu,
    "AttentiveGroupNorm": attentive_norm,
    "AttentionWeights": attention_weights,
    "AlphaBN": alpha_batch_norm,
    "EMABN": lambda case: batch_norm(case, "model.0.", source="ema"),
    "BNTest": batch_norm_test,
    "TentNorm": lambda case: batch_norm(case, "0."),
    "TentConfigured": lambda case: batch_norm(case, "0."),
    "pAdaIN": permuted_adain,
    "pAdaIN_FADA": permuted_adain,
    "MixtureBatchNorm2d": attentive_norm,
    "MixtureGroupNorm": attentive_norm,
}
