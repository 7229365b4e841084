"""The golden layers by the plain formulas of ``reference.py``: what each of the authors' layers computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import reference
from golden_cases import Case, Layer, Outcome

State = dict[str, Tensor]


def leaves(case: Case) -> State:
    """The case's state with parameters that collect gradients."""
    parameters = {name: value.requires_grad_() for name, value in case.parameters.items()}
    return {**parameters, **case.buffers}


def stateless(function: Callable[[Case], Tensor]) -> Layer:
    return lambda case: Outcome(function(case))


def with_buffers(function: Callable[[Case, State], tuple[Tensor, State]]) -> Layer:
    """A layer with parameters, that returns y and the buffers it changed."""

    def layer(case: Case) -> Outcome:
        y, after = function(case, leaves(case))

        def collect() -> State:
            found = {f"grad_{name}": p.grad for name, p in case.parameters.items() if p.grad is not None}
            return found | {f"buffer_after.{name}": value for name, value in {**case.buffers, **after}.items()}

        return Outcome(y, collect)

    return layer


def with_state(function: Callable[[Case, State], Tensor]) -> Layer:
    """A layer with parameters, that changes no buffers."""
    return with_buffers(lambda case, state: (function(case, state), {}))


def chosen(case: Case, *names: str) -> dict[str, Any]:
    """The constructor arguments among ``names`` that the case sets; the others keep the reference's default."""
    return {name: case.kw[name] for name in names if name in case.kw}


def cross_norm(case: Case) -> Tensor:
    if not case.active:
        return case.x * 1
    return reference.cross_norm(
        case.x,
        permutation=case.draws["ins_idxs"],
        channel_permutation=case.draws.get("chan_idxs"),
        style_box=case.draws["style_box"].tolist() if "style_box" in case.draws else None,
        content_box=case.draws["content_box"].tolist() if "content_box" in case.draws else None,
        lam=case.kw.get("lam"),
    )


def self_norm(case: Case, state: State) -> tuple[Tensor, State]:
    return reference.self_norm(case.x, state, training=case.training)


def cnsn(case: Case, state: State) -> tuple[Tensor, State]:
    kind = case.kw["cnsn_type"]
    x = cross_norm(case) if "cn" in kind else case.x
    if "sn" not in kind:
        return x, {}
    y, after = reference.self_norm(x, reference.part(state, "selfnorm"), training=case.training)
    return y, reference.under("selfnorm", after)


def ibn(instance_first: bool) -> Layer:
    return with_buffers(
        lambda case, state: reference.ibn(case.x, state, training=case.training, instance_first=instance_first)
    )


def batch_instance_norm(case: Case, state: State) -> tuple[Tensor, State]:
    return reference.batch_instance_norm(
        case.x, state, training=case.training, count=False, **chosen(case, "eps", "momentum")
    )


def representative_batch_norm(case: Case, state: State) -> tuple[Tensor, State]:
    return reference.representative_batch_norm(case.x, state, training=case.training, **chosen(case, "eps", "momentum"))


def domain_norm(form: str, prefix: str = "") -> Layer:
    def function(case: Case, state: State) -> Tensor:
        own = reference.part(state, prefix) if prefix else state
        if not case.kw.get("l2", True):
            return reference.instance_norm(case.x, own)
        return reference.domain_norm(case.x, own, form=form)

    return with_state(function)


def domain_norm_2(case: Case, state: State) -> Tensor:
    if case.kw.get("l2", True):
        return torch.nn.functional.normalize(case.x, dim=1)
    return reference.instance_norm(case.x, reference.part(state, "normalize"))


def switch_norm_momentum(case: Case) -> float | None:
    """The weight of the new batch; the authors' momentum is what is kept, and without moving average sums are kept."""
    if not case.kw.get("using_moving_average", True):
        return None
    return 1 - case.kw.get("momentum", 0.9 if case.layer == "SwitchNorm2d" else 0.997)


def switch_norm(case: Case, state: State) -> tuple[Tensor, State]:
    return reference.switch_norm(
        case.x, state, training=case.training, momentum=switch_norm_momentum(case), **chosen(case, "eps")
    )


def partner(case: Case) -> Tensor:
    """Whose style each instance gets: drawn, or derived from the draws of the two halves."""
    if "perm" in case.draws:
        return case.draws["perm"]
    halves = torch.arange(case.x.shape[0] - 1, -1, -1).chunk(2)
    return torch.cat([half[case.draws[name]] for half, name in zip(halves, ("perm_b", "perm_a"), strict=True)])


def mix_style(case: Case) -> Tensor:
    if not case.active:
        return case.x * 1
    return reference.mix_style(case.x, lam=case.draws["lmda"], permutation=partner(case), **chosen(case, "eps")).to(
        case.x.dtype
    )


def efd_mix(case: Case) -> Tensor:
    if not case.active:
        return case.x * 1
    order = case.derived.get("sort_index")
    return reference.efd_mix(case.x, lam=case.draws["lmda"], permutation=partner(case), order=order).to(case.x.dtype)


def efdm(case: Case) -> Tensor:
    return reference.exact_feature_distribution_matching(
        *case.inputs, order=case.derived.get("sort_index_x0"), style_order=case.derived.get("sort_index_x1")
    )


def dsu(case: Case) -> Tensor:
    if not case.active:
        return case.x * 1
    return reference.dsu(
        case.x, mean_noise=case.draws["eps_mu"], std_noise=case.draws["eps_std"], **chosen(case, "eps")
    )


def permuted_adain_acts(case: Case) -> bool:
    return case.training and float(case.draws["gate"]) < case.kw.get("p", 0.01)


def permuted_adain(case: Case) -> Tensor:
    if not permuted_adain_acts(case):
        return case.x * 1
    if not case.kw.get("adv", False):
        return reference.permuted_adain(case.x, permutation=case.draws["perm"], **chosen(case, "eps"))
    half = case.x.shape[0] // 2
    towards = torch.arange(case.x.shape[0]).roll(-half)
    restyled = reference.permuted_adain(case.x, permutation=towards, **chosen(case, "eps"))
    return torch.cat((restyled[:half], case.x[half:]))


def softmax_over_experts(z: Tensor) -> Tensor:
    return z.softmax(1)


# One repository numbers the activations, the other one always takes the hard sigmoid.
ATTENTION_MODES: dict[int, Callable[[Tensor], Tensor]] = {
    0: torch.sigmoid,
    1: torch.sigmoid,
    2: reference.hard_sigmoid,
    4: reference.hard_sigmoid,
    5: torch.sigmoid,
    6: softmax_over_experts,
}


def attentive_norm(case: Case, state: State) -> tuple[Tensor, State]:
    numbered = case.layer.startswith("Mixture")
    return reference.attentive_norm(
        case.x,
        state,
        training=case.training,
        activation=ATTENTION_MODES[case.kw.get("attention_mode", 0)] if numbered else reference.hard_sigmoid,
        **chosen(case, "num_groups", "eps", "momentum"),
    )


def attention_weights(case: Case, state: State) -> tuple[Tensor, State]:
    return reference.attention_over_experts(case.x, state, training=case.training)


def batch_norm(prefix: str) -> Layer:
    """A BatchNorm that the authors have put into train mode, so it sees the batch whatever mode the case names."""

    def function(case: Case, state: State) -> tuple[Tensor, State]:
        own = reference.part(state, prefix)
        y, after = reference.batch_norm(case.x, own, training=True, **chosen(case, "eps", "momentum"))
        return y, reference.under(prefix, after)

    return with_buffers(function)


def batch_norm_test(case: Case, state: State) -> tuple[Tensor, State]:
    """Weight and bias are frozen; a single (N, C) vector has no batch to see, so the source statistics stay."""
    own = {name: value.detach() for name, value in reference.part(state, "0").items()}
    y, after = reference.batch_norm(case.x, own, training=case.x.ndim > 2 or case.x.shape[0] > 1)
    return y, reference.under("0", after)


def ema_batch_norm(case: Case, state: State) -> tuple[Tensor, State]:
    """The running statistics take in the batch first and then normalise it, as constants."""
    own = reference.part(state, "model.0")
    after = reference.batch_norm(case.x.detach(), own, training=True)[1]
    y, _ = reference.batch_norm(case.x, {**own, **after}, training=False)
    return y, reference.under("model.0", after)


def alpha_batch_norm(case: Case, state: State) -> tuple[Tensor, State]:
    """``layer`` is the source, ``norm`` a BatchNorm that stores the batch's moments as they are, in train mode only."""
    source, target, weight = reference.part(state, "layer"), reference.part(state, "norm"), case.kw["alpha"]
    _, after = reference.batch_norm(case.x.detach(), target, training=case.training, momentum=1.0)
    if case.training:
        y = reference.blended_batch_norm(case.x, source, source_weight=1 - weight)
    else:
        blended = {name: (1 - weight) * source[name] + weight * after[name] for name in ("running_mean", "running_var")}
        y, _ = reference.batch_norm(case.x, {**source, **blended}, training=False)
    return y, reference.under("norm", after)


def two_inputs(function: Callable[[Tensor, Tensor], Tensor]) -> Layer:
    return stateless(lambda case: function(*case.inputs))


LAYERS: dict[str, Layer] = {
    "SelfNorm": with_buffers(self_norm),
    "instance_norm_mix": two_inputs(reference.adaptive_instance_norm),
    "cn_op": stateless(cross_norm),
    "CrossNorm": stateless(cross_norm),
    "CNSN": with_buffers(cnsn),
    "IBN": ibn(instance_first=True),
    "IBN_tllib": ibn(instance_first=True),
    "IBN_densenet": ibn(instance_first=False),
    "SELayer": with_state(lambda case, state: reference.squeeze_excite(case.x, state)),
    "BatchInstanceNorm2d": with_buffers(batch_instance_norm),
    "RBN": with_buffers(representative_batch_norm),
    "DomainNorm": domain_norm("in_l2_affine"),
    "DomainNorm_2x2": domain_norm("l2_in", "normalize"),
    "DomainNorm2": with_state(domain_norm_2),
    "SwitchNorm1d": with_buffers(switch_norm),
    "SwitchNorm2d": with_buffers(switch_norm),
    "SwitchNorm3d": with_buffers(switch_norm),
    "MixStyle_dassl": stateless(mix_style),
    "MixStyle_release": stateless(mix_style),
    "MixStyle_tllib": stateless(mix_style),
    "EFDMix_dassl": stateless(efd_mix),
    "EFDMix_efdm": stateless(efd_mix),
    "EFDM_fn": stateless(efdm),
    "AdaIN_fn": two_inputs(reference.adaptive_instance_norm),
    "AdaMean_fn": two_inputs(reference.adaptive_mean),
    "AdaStd_fn": two_inputs(reference.adaptive_std),
    "DSU": stateless(dsu),
    "AttentiveGroupNorm": with_buffers(attentive_norm),
    "AttentionWeights": with_buffers(attention_weights),
    "AlphaBN": with_buffers(alpha_batch_norm),
    "EMABN": with_buffers(ema_batch_norm),
    "BNTest": with_buffers(batch_norm_test),
    "TentNorm": batch_norm("0"),
    "TentConfigured": batch_norm("0"),
    "pAdaIN": stateless(permuted_adain),
    "pAdaIN_FADA": stateless(permuted_adain),
    "MixtureBatchNorm2d": with_buffers(attentive_norm),
    "MixtureGroupNorm": with_buffers(attentive_norm),
}
