"""Putting norms into a model, and taking them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from shiftnorm.surgery.carry import NormSpec
from shiftnorm.surgery.edit import Edit, check_undo, make, undo
from shiftnorm.surgery.kinds import refuse_model
from shiftnorm.surgery.placements import Plan, plan
from shiftnorm.surgery.regroup import check_optimizer, regroup
from shiftnorm.surgery.report import Report, movement_between, outputs_of, rounding_of
from shiftnorm.surgery.sites import Selector, find_modules, select

__all__ = ["convert", "edits_of", "insert", "replace", "revert"]

_EDITS = "_shiftnorm_edits"
FOLDED = "_shiftnorm_folded"


def convert(
    model: nn.Module,
    placement: str | Callable[..., nn.Module],
    where: Selector = None,
    *,
    slot: str | None = None,
    preserve: bool = True,
    example_input: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    **arguments: Any,
) -> tuple[nn.Module, Report]:
    """Put a method's norms into a model where its authors put them, or where you say.

    Weights, running statistics, train or eval mode, dtype, device, ``requires_grad``, hooks, parametrizations and ties
    are kept: tensors that fit are shared with the modules they replace, not copied.

    Example:
        >>> from shiftnorm.models import create_model
        >>> model, report = convert(create_model("resnet18", num_classes=10), "ibn_a", where="stages:1-2")
        >>> len(report), model.layer1[0].bn1
        (4, IBN(64, ...))
        >>> model, report = convert(model, "selfnorm@residual")
        >>> model.layer4[1].residual
        SelfNorm(
          512, ...
        )

    Args:
        model: a model of torchvision, timm, this package or your own; it is changed in place.
        placement: a name from ``list_placements()``, such as "ibn_a", "cnsn@post", "rbn"; or a norm by name or class,
            or a function from a channel count to a module, which takes the place of every BatchNorm.
        where: restricts it to some sites, see :func:`select`; a function from a Site to a bool will do.
        slot: puts the norm into this slot of every block: "pre", "residual", "identity" or "post".
        preserve: start norms such that the function of a trained model is kept, where the method allows it; False
            starts them as published.
        example_input: an input (or tuple, or dict of keywords) on which the change of the outputs is measured.
        optimizer: its parameter groups are kept in step: new parameters join the group of those they stand beside.
        **arguments: keyword arguments of the norm.

    Returns:
        The model (another object only if the model itself was a norm) and the report, which :func:`revert` takes.

    Raises:
        ValueError: for an unknown name, if nothing matches or nothing would change (unless it is there already), or
            for the optimizer of another model. The model is unchanged.
        TypeError: for a model that cannot be changed (scripted, quantized, compiled, wrapped).
    """
    refuse_model(model)
    chosen = plan(model, placement, where, slot=slot, preserve=preserve, arguments=arguments)
    model, report = _carry_out(model, chosen, example_input, optimizer)
    if chosen.what == "IBN" and where is None:
        report.notes.append(
            "IBN is in the place of every BatchNorm now. The networks of its paper are 'ibn_a', with it in the first "
            "norm of blocks, and 'ibn_b', after the sums of some."
        )
    return model, report


def replace(
    model: nn.Module,
    norm: str | Callable[..., nn.Module],
    where: Selector = None,
    *,
    example_input: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    **arguments: Any,
) -> tuple[nn.Module, Report]:
    """Put one norm in the place of others.

    Example:
        >>> model, report = replace(nn.Sequential(nn.GroupNorm(2, 8)), "InstanceNorm", where="type:GroupNorm")
        >>> model[0]
        InstanceNorm(8, eps=1e-05, affine=True)

    Args:
        model: changed in place.
        norm: a name of ``shiftnorm.norms``, a class, or a function from a channel count to a module.
        where: which norms, see :func:`select`; None means every BatchNorm.
        example_input: as in :func:`convert`.
        optimizer: as in :func:`convert`.
        **arguments: keyword arguments of the norm.

    Returns:
        The model and the report.

    Raises:
        ValueError: if nothing matches or nothing that matches can be replaced.
        TypeError: as in :func:`convert`.
    """
    refuse_model(model)
    chosen = plan(model, norm, where, preserve=False, arguments=arguments, only_replace=True)
    return _carry_out(model, chosen, example_input, optimizer)


def insert(
    model: nn.Module,
    norm: str | Callable[..., nn.Module],
    *,
    after: Selector = None,
    before: Selector = None,
    channels: int | None = None,
    example_input: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    **arguments: Any,
) -> tuple[nn.Module, Report]:
    """Run a norm after (or before) modules of a model.

    Behind a BatchNorm the two become one fused Chain. Elsewhere the norm becomes a child of the module, called by a
    hook, so that all names stay as they are.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        >>> model, report = insert(model, "MixStyle", after="0", p=0.1)
        >>> model[0].after_norm
        MixStyle(p=0.1, ...)

    Args:
        model: changed in place.
        norm: as in :func:`replace`.
        after: the modules, see :func:`select`; any module can be named, not only norms.
        before: as ``after``; exactly one of the two is given.
        channels: of the tensor there, where the modules do not say.
        example_input: as in :func:`convert`.
        optimizer: as in :func:`convert`.
        **arguments: keyword arguments of the norm.

    Returns:
        The model and the report.

    Raises:
        ValueError: if nothing matches, or the channels are not known.
        TypeError: as in :func:`convert`.
    """
    refuse_model(model)
    if (after is None) == (before is None):
        raise ValueError("insert: expected exactly one of after= and before=.")
    spec = NormSpec.of(norm, arguments)
    how = "after" if after is not None else "before"
    sites = select(find_modules(model), after if after is not None else before, what="module")
    edits = [Edit(site.path, how, spec, channels) for site in sites]
    return _carry_out(model, Plan(f"{spec.short} {how}", edits, []), example_input, optimizer)


def _carry_out(
    model: nn.Module, chosen: Plan, example_input: Any, optimizer: torch.optim.Optimizer | None
) -> tuple[nn.Module, Report]:
    report = Report(chosen.what, skipped=list(chosen.skipped))
    old_parameters = list(model.named_parameters())
    if optimizer is not None:
        check_optimizer(optimizer, old_parameters)
    before = None if example_input is None else outputs_of(model, example_input)
    count = _count(model)
    earlier = list(edits_of(model))
    root = model
    try:
        for edit in chosen.edits:
            root, change = make(root, edit)
            report.changes.append(change)
        if before is not None:
            report.movement = movement_between(before, outputs_of(root, example_input), rounding_of(root))
    except BaseException:  # an interrupt, too, leaves the model as it was
        for change in reversed(report.changes):
            root = undo(root, change)
        raise
    report.parameters = (count, _count(root))
    remember(root, [*earlier, *report.edits])
    if optimizer is not None:
        report.notes.append(regroup(optimizer, old_parameters, list(root.named_parameters())))
    return root, report


def revert(model: nn.Module, report: Report, *, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """Undo a conversion exactly: the modules that were there before come back, with shared tensors as they are now.

    A norm that shared its parameters with the one it replaced (IBN, RepresentativeBatchNorm and others with
    BatchNorm's keys) gives back what training made of them; what only the new norm had is dropped.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        >>> model, report = convert(model, "rbn")
        >>> revert(model, report)[1]
        BatchNorm2d(8, ...)

    Args:
        model: the model that was converted (not a copy).
        report: what the conversion returned; of several, the latest first.
        optimizer: as in :func:`convert`.

    Returns:
        The model.

    Raises:
        ValueError: if what the conversion put in is no longer there; the model is unchanged.
    """
    left = list(edits_of(model))
    edits = report.edits
    if edits and left[-len(edits) :] != edits:
        if getattr(model, FOLDED, False):
            raise ValueError("revert: the model is folded: its norms are part of its weights. Revert before fold.")
        raise ValueError(
            "revert: this report is not of the latest conversion of this model. Revert later conversions first, and "
            "revert the model that was converted, not a copy of it."
        )
    old_parameters = list(model.named_parameters())
    if optimizer is not None:
        check_optimizer(optimizer, old_parameters)
    check_undo(model, report.changes)
    for change in reversed(report.changes):
        model = undo(model, change)
    remember(model, left[: len(left) - len(edits)])
    if optimizer is not None:
        regroup(optimizer, old_parameters, list(model.named_parameters()))
    return model


def edits_of(model: nn.Module) -> Sequence[Edit]:
    """The edits made to a model so far, in order.

    Example:
        >>> edits_of(nn.Sequential())
        ()
    """
    return tuple(getattr(model, _EDITS, ()))


def remember(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Note on a model which edits were made to it; copies of the model carry the note along.

    Example:
        >>> model = nn.Sequential()
        >>> remember(model, [Edit("0", "replace", NormSpec("IBN"))])
        >>> len(edits_of(model))
        1
    """
    edits = tuple(edits)
    if edits:
        setattr(model, _EDITS, edits)
    elif hasattr(model, _EDITS):
        delattr(model, _EDITS)


def _count(model: nn.Module) -> int:
    # a lazy parameter has no size yet
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in model.parameters())
