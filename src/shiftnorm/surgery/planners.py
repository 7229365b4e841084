"""What a placement means in a given model: the edits that carry it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from shiftnorm.norms import Chain
from shiftnorm.surgery.carry import NormSpec
from shiftnorm.surgery.edit import AFTER, BEFORE, Edit
from shiftnorm.surgery.families import Block, channels_at, find_blocks, place_of
from shiftnorm.surgery.kinds import NormKind, has_own_forward, is_batch, kind_of
from shiftnorm.surgery.report import Skipped
from shiftnorm.surgery.sites import Selector, Site, find_norms, select
from shiftnorm.surgery.stages import stage_outputs, stem_norm

__all__ = ["ALL_BUT_LAST", "PLANNERS", "Placement", "Plan"]

ALL_BUT_LAST = (-1,)

# DenseNet's own form of IBN-a: every third dense layer, BatchNorm first, a share of 0.4.
_EVERY = 3
_DENSE = {"ratio": 0.4, "order": "batch_first"}


class Placement(NamedTuple):
    """Where a method goes.

    Example:
        >>> Placement("IBN in place of every norm", "IBN", "norms").stages is None
        True

    Args:
        summary: one sentence.
        norm: a norm of ``shiftnorm.norms``.
        at: "norms" (in place of every BatchNorm), "inner" (in place of the first norm of each residual branch), "slot"
            (in every block), "stages" (behind whole stages), "branch" (in front of every BatchNorm that is not on a
            shortcut) or "ibn_b".
        slot: the usual slot, for "slot".
        stages: the usual stages; -1 stands for all but the last; None for all.
        arguments: of the norm, as published.
        preserving: of the norm, such that a trained model keeps its function.
    """

    summary: str
    norm: str
    at: str
    slot: str | None = None
    stages: tuple[int, ...] | None = None
    arguments: Mapping[str, Any] = {}
    preserving: Mapping[str, Any] = {}


class Plan(NamedTuple):
    """What a conversion will do.

    Example:
        >>> Plan("ibn_a", [], []).edits
        []

    Args:
        what: the name of the placement in full.
        edits: the changes, in order.
        skipped: sites that were meant and cannot be changed.
    """

    what: str
    edits: list[Edit]
    skipped: list[Skipped]


Planned = Iterator["Edit | Skipped"]


def _on_norms(model: nn.Module, placement: Placement, spec: NormSpec, where: Selector) -> Planned:
    sites = find_norms(model)
    if where is None:
        wanted = [site for site in sites if _is_meant(site, spec)]
    else:
        wanted = select(sites, where)
        if not _names_norms(where):  # stages, depths, channels: of what would be replaced anyway
            wanted = [site for site in wanted if _is_meant(site, spec)]
    if not wanted:
        raise ValueError(
            f"convert: the model has no BatchNorm to put {spec.short} in the place of. {_what_norms(sites)}"
        )
    for site in wanted:
        yield _replacement(site, spec, named=where is not None)


def _replacement(site: Site, spec: NormSpec, *, named: bool = False) -> Edit | Skipped:
    """The edit that puts a norm in the place of another, or why there is none."""
    reason = _objection(site, spec, named=named)
    return Edit(site.path, "replace", _fitted(spec, site)) if reason is None else Skipped(site.path, reason)


def _site(model: nn.Module, path: str) -> Site:
    module = model.get_submodule(path)
    return Site(path, module, kind_of(module), 0)


def _fitted(spec: NormSpec, site: Site) -> NormSpec:
    """GroupNorm with as many of its 32 groups as divide the channels, where the user names no number."""
    if spec.name != "GroupNorm" or "num_groups" in spec.arguments or site.channels is None:
        return spec
    return spec._replace(arguments={**spec.arguments, "num_groups": math.gcd(32, site.channels)})


def _names_norms(where: Selector) -> bool:
    """Whether a selector says itself which norms it means, by path, type or function."""
    if where is None or callable(where):
        return where is not None
    terms = [term for text in ([where] if isinstance(where, str) else where) for term in text.split()]
    return any(":" not in term or term.startswith(("path:", "type:")) for term in terms) or not terms


def _is_meant(site: Site, spec: NormSpec) -> bool:
    if is_batch(site.module) or spec.makes(site.module):
        return True
    # also what cannot be replaced, so that the report says why
    return site.kind is not None and site.kind.name in ("batch", "sync batch", "frozen batch")


def _objection(site: Site, spec: NormSpec, *, named: bool = False) -> str | None:
    if isinstance(site.module, Chain):
        return "it is a Chain already; revert that first"
    if site.kind is None:
        return f"{type(site.module).__name__} is no norm"
    if spec.makes(site.module):  # by class, not by name: torch has a LayerNorm too
        return f"it is {spec.short} already"
    if site.kind.refusal is not None:
        return f"{type(site.module).__name__}: {site.kind.refusal}"
    if site.kind.name == "ours" and not is_batch(site.module) and not named:
        return f"it is a {type(site.module).__name__}; revert that, or name it: replace(model, ..., {site.path!r})"
    if is_batch(site.module) and has_own_forward(site.module) and not named:
        return (
            f"{type(site.module).__name__} has a forward of its own that would be lost; to replace it all the same, "
            f"name it: replace(model, ..., {site.path!r})"
        )
    if site.kind.channels is None:
        return f"{type(site.module).__name__} does not say its channels"
    return None


def _what_norms(sites: Sequence[Site]) -> str:
    if not sites:
        return "It has no norm at all; use insert(model, norm, after=...)."
    counts: dict[str, int] = {}
    for site in sites:
        key = f"{type(site.module).__name__} ({site.kind.name if site.kind else ''})"
        counts[key] = counts.get(key, 0) + 1
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"It has {found}; name some by where=, such as where='type:...'."


def _blocks(model: nn.Module, placement: Placement, where: Selector) -> list[Block]:
    blocks = find_blocks(model)
    if not blocks:
        raise ValueError(
            f"convert: no residual blocks that are known were found in {type(model).__name__}, and this placement goes "
            "by blocks. Put the norm where you want it with insert(model, norm, after='path of a module')."
        )
    if where is not None:
        kinds = [NormKind("block", b.channels_out) for b in blocks]  # for channels: in a selector
        sites = [
            Site(b.path, b.module, k, b.depth, b.stage, b.path, b.last) for b, k in zip(blocks, kinds, strict=True)
        ]
        chosen = {site.path for site in select(sites, where, what="block")}
        return [block for block in blocks if block.path in chosen]
    count = max(block.stage for block in blocks)
    stages = set(range(1, count + 1)) if placement.stages is None else set(placement.stages)
    if placement.stages == ALL_BUT_LAST:
        stages = set(range(1, count)) or {1}
    return [block for block in blocks if block.stage in stages]


def _on_inner(model: nn.Module, placement: Placement, spec: NormSpec, where: Selector) -> Planned:
    for block in _blocks(model, placement, where):
        path = next((f"{block.path}.{child}" for child in block.family.inner if _has(block.module, child)), None)
        own = spec
        if block.family.dense:
            if block.index % _EVERY:
                continue
            own = spec._replace(arguments={**_DENSE, **spec.arguments})
        if path is None:
            yield Skipped(block.path, "its branch has no norm of its own in front")
        else:
            yield _replacement(_site(model, path), own)


def _has(module: nn.Module, child: str) -> bool:
    try:
        module.get_submodule(child)
    except AttributeError:
        return False
    return True


def _on_slots(model: nn.Module, placement: Placement, spec: NormSpec, where: Selector) -> Planned:
    assert placement.slot is not None
    for block in _blocks(model, placement, where):
        yield slot_edit(block, placement.slot, spec)


def slot_edit(block: Block, slot: str, spec: NormSpec) -> Edit | Skipped:
    """The edit that puts a norm into a slot of a block, or why there is none.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> block = find_blocks(WideResNet(10, 1))[0]
        >>> slot_edit(block, "post", NormSpec("SelfNorm")).path
        'block1.layer.0.post'
    """
    place = place_of(block, slot)
    if place is None:
        return Skipped(block.path, f"{type(block.module).__name__} has no place for {slot!r}")
    path = ".".join(part for part in (block.path, place.child) if part)
    present = block.module.get_submodule(place.child) if _has(block.module, place.child) else None
    if _holds(present, place.how, spec):
        return Skipped(path, f"it holds {spec.short} already")
    channels = channels_at(block, place)
    if place.how == "slot":
        return Edit(path, "open", spec, channels)
    return Edit(path, place.how, spec, channels)


def _holds(present: nn.Module | None, how: str, spec: NormSpec) -> bool:
    name = {"after": AFTER, "before": BEFORE}.get(how)
    beside = getattr(present, name, None) if name else present
    found = [part for part in (present, beside) if part is not None]  # a slot that is filled is the place itself
    parts = [part for each in found if isinstance(each, Chain) for part in each]
    wanted = [NormSpec("CrossNorm"), NormSpec("SelfNorm")] if spec.name == "CNSN" else [spec]
    return all(any(each.makes(part) for part in (*found, *parts)) for each in wanted)


def _on_stages(model: nn.Module, placement: Placement, spec: NormSpec, where: Selector) -> Planned:
    chosen = {block.stage for block in _blocks(model, placement, where)}
    stem = stem_norm(model) if placement.norm == "DSU" and where is None else None
    if stem is not None:
        yield _beside(model, Edit(stem, "before", spec))
    places = {place.stage: place for place in stage_outputs(model)}
    for stage in sorted(chosen):
        if stage in places:
            yield _beside(model, Edit(places[stage].path, places[stage].how, spec, places[stage].channels))
        else:
            yield Skipped(f"stage {stage}", "its output is not one tensor that passes one module")


def _beside(model: nn.Module, edit: Edit) -> Edit | Skipped:
    """The edit, unless its norm stands there already."""
    if _holds(model.get_submodule(edit.path), edit.how, edit.norm):
        return Skipped(edit.path, f"it holds {edit.norm.short} already")
    return edit


def _on_branch(model: nn.Module, placement: Placement, spec: NormSpec, where: Selector) -> Planned:
    shortcuts = tuple(
        f"{block.path}.{name}."
        for block in find_blocks(model)
        for name in {"downsample", "shortcut", "proj", *(p.child for p in block.family.slots.get("identity", ()))}
    )
    sites = find_norms(model)
    wanted = [
        site for site in select(sites, where) if is_batch(site.module) and not f"{site.path}.".startswith(shortcuts)
    ]
    if not wanted:
        raise ValueError(f"convert: the model has no BatchNorm to put {spec.short} in front of. {_what_norms(sites)}")
    for site in wanted:
        outer = site.path.rpartition(".")[0]
        parent = model.get_submodule(outer)
        if _holds(parent if isinstance(parent, Chain) else site.module, "before", spec):
            yield Skipped(site.path, f"it has {spec.short} in front already")
        else:
            heads = isinstance(parent, Chain) and parent[0] is site.module  # then it joins the Chain
            yield Edit(outer if heads else site.path, "before", spec)


def _on_ibn_b(model: nn.Module, placement: Placement, spec: NormSpec, where: Selector) -> Planned:
    if where is None:  # a selector names blocks, and the stem is in none
        stem = stem_norm(model)
        if stem is None:
            yield Skipped("", "no norm behind the first convolution was found")
        else:
            yield _replacement(_site(model, stem), spec)
    for block in _blocks(model, placement, where):
        if block.last:
            yield slot_edit(block, "post", spec)


PLANNERS: dict[str, Callable[[nn.Module, Placement, NormSpec, Selector], Planned]] = {
    "norms": _on_norms,
    "inner": _on_inner,
    "slot": _on_slots,
    "stages": _on_stages,
    "branch": _on_branch,
    "ibn_b": _on_ibn_b,
}
