"""Where each method's authors put it, as data."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from shiftnorm.surgery.carry import NormSpec, plain, roster_name
from shiftnorm.surgery.edit import Edit
from shiftnorm.surgery.own_blocks import MORE_SLOTS
from shiftnorm.surgery.planners import ALL_BUT_LAST, PLANNERS, Placement, Plan
from shiftnorm.surgery.report import Skipped
from shiftnorm.surgery.sites import Selector

__all__ = ["PLACEMENTS", "SLOTS", "list_placements", "plan"]

SLOTS = ("pre", "residual", "identity", "post")

_IDENTITY = {"start": "identity"}
_BATCH = {"start": "batch"}

PLACEMENTS: dict[str, Placement] = {
    "ibn_a": Placement(
        "IBN as the first norm of each branch, in all stages but the last", "IBN", "inner", stages=ALL_BUT_LAST
    ),
    "ibn_b": Placement(
        "InstanceNorm after the stem and at the end of stages 1 and 2",
        "InstanceNorm",
        "ibn_b",
        stages=(1, 2),
        arguments={"affine": True},
    ),
    "cnsn": Placement("CrossNorm, then SelfNorm, in every block", "CNSN", "slot", "residual", preserving=_IDENTITY),
    "selfnorm": Placement("SelfNorm in every block", "SelfNorm", "slot", "residual", preserving=_IDENTITY),
    "crossnorm": Placement("CrossNorm in every block", "CrossNorm", "slot", "residual"),
    "se": Placement("squeeze-and-excitation in every block", "SqueezeExcite", "slot", "residual"),
    "rbn": Placement(
        "RepresentativeBatchNorm for every BatchNorm", "RepresentativeBatchNorm", "norms", preserving=_BATCH
    ),
    "bin": Placement("BatchInstanceNorm for every BatchNorm", "BatchInstanceNorm", "norms"),
    "switch": Placement("SwitchNorm for every BatchNorm", "SwitchNorm", "norms", preserving=_BATCH),
    "attentive": Placement("AttentiveNorm for every BatchNorm", "AttentiveNorm", "norms"),
    "batch": Placement("our BatchNorm for every BatchNorm", "BatchNorm", "norms"),
    "group": Placement("GroupNorm for every BatchNorm, 32 groups or as many as fit", "GroupNorm", "norms"),
    "instance": Placement("InstanceNorm for every BatchNorm", "InstanceNorm", "norms"),
    "layer": Placement("LayerNorm for every BatchNorm", "LayerNorm", "norms"),
    "domain": Placement("DomainNorm for every BatchNorm", "DomainNorm", "norms"),
    "mixture": Placement("MixtureNorm for every BatchNorm", "MixtureNorm", "norms"),
    "mixstyle": Placement("MixStyle behind stages 1 and 2", "MixStyle", "stages", stages=(1, 2)),
    "efdmix": Placement("EFDMix behind stages 1 and 2", "EFDMix", "stages", stages=(1, 2)),
    "dsu": Placement("DSU in front of the stem's norm and behind every stage", "DSU", "stages"),
    "padain": Placement("PermutedAdaIN in front of every BatchNorm but a shortcut's", "PermutedAdaIN", "branch"),
}


def list_placements(pattern: str = "*") -> list[str]:
    """Names of placements.

    Example:
        >>> list_placements("ibn*")
        ['ibn_a', 'ibn_b']
    """
    return [name for name in PLACEMENTS if fnmatch.fnmatch(name, pattern)]


def plan(
    model: nn.Module,
    placement: str | Callable[..., nn.Module],
    where: Selector = None,
    *,
    slot: str | None = None,
    preserve: bool = True,
    only_replace: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Plan:
    """What a placement, or a norm in place of every BatchNorm, means in a model.

    Example:
        >>> plan(nn.Sequential(nn.BatchNorm2d(4)), "rbn").edits[0].norm
        NormSpec(name='RepresentativeBatchNorm', arguments={'start': 'batch'}, factory=None)

    Args:
        model: the model; it is only looked at.
        placement: "ibn_a", "cnsn@post" and so on, the name of a norm, its class, or a function from a channel count.
        where: restricts the sites, see ``select``.
        slot: "pre", "residual", "identity" or "post" of every block, or a slot that only some blocks have by its name
            there, instead of the usual place; as after the @.
        preserve: prefer the start that keeps the function over the published one.
        only_replace: put the norm in the place of others, whatever its usual places are.
        arguments: keyword arguments of the norm.

    Raises:
        ValueError: for an unknown name, a slot the placement does not have, or if nothing matches.
    """
    if isinstance(placement, str):
        placement, at, named = placement.partition("@")
        slot = named if at else slot
    verb = "replace" if only_replace else "convert"
    if only_replace and slot is not None:
        raise ValueError(f"replace: it takes no slot, got {slot!r}; use convert(model, '{placement}@{slot}').")
    what, chosen, spec = _look_up(placement)
    if only_replace:
        chosen = chosen._replace(at="norms", stages=None)
    usual = {**chosen.arguments, **(chosen.preserving if preserve else {})}
    given = {**usual, **spec.arguments, **(arguments or {})}  # what a partial says counts more than what is usual
    spec = spec._replace(arguments=given)
    if slot is not None:
        known = (*SLOTS, *MORE_SLOTS)
        if slot not in known:
            near = difflib.get_close_matches(slot, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
            raise ValueError(f"convert: unknown slot {slot!r}; {hint}")
        if chosen.at in ("inner", "ibn_b"):
            raise ValueError(f"convert: {what} has its own places and takes no slot, got {slot!r}.")
        chosen = chosen._replace(at="slot", slot=slot, stages=None)
    if chosen.at == "slot":
        what = f"{what}@{chosen.slot}"
    planned = list(PLANNERS[chosen.at](model, chosen, spec, where))
    edits = [each for each in planned if isinstance(each, Edit)]
    skipped = [each for each in planned if isinstance(each, Skipped)]
    if skipped and not edits and not any(reason.endswith("already") for _, reason in skipped):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise ValueError(f"{verb}: nothing would change. {reasons}{more}.")
    if not edits and not skipped:
        raise ValueError(f"{verb}: nothing would change: {what} has no place in what where={where!r} selects.")
    return Plan(what, edits, skipped)


def _look_up(placement: str | Callable[..., nn.Module]) -> tuple[str, Placement, NormSpec]:
    if isinstance(placement, str):
        key = next((key for key in PLACEMENTS if plain(key) == plain(placement)), None)
        if key is not None:
            return key, PLACEMENTS[key], NormSpec(PLACEMENTS[key].norm)
        placement = _roster_or_refuse(placement)
    spec = NormSpec.of(placement)
    for key, entry in PLACEMENTS.items():  # a norm by its own name goes where it usually goes
        if entry.norm == spec.name and entry.at not in ("inner", "ibn_b"):
            return key, entry, spec
    return spec.short, Placement("", spec.name, "norms"), spec


def _roster_or_refuse(name: str) -> str:
    try:
        return roster_name(name)
    except ValueError:
        known = {plain(key): key for key in PLACEMENTS}
        near = [known[key] for key in difflib.get_close_matches(plain(name), known, n=3, cutoff=0.5)]
        if not near:
            raise
    raise ValueError(f"convert: unknown placement {name!r}; did you mean {', '.join(near)}?")
