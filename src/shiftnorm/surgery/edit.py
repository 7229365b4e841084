"""The five ways to change a model, each with its inverse."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from shiftnorm.norms import Chain, NormLayer
from shiftnorm.surgery.blocks import close_block, is_open, open_block
from shiftnorm.surgery.carry import (
    NormSpec,
    around,
    batch_norm_from,
    give_back_state,
    like_dtype_and_device,
    norm_in_place_of,
)
from shiftnorm.surgery.families import is_empty
from shiftnorm.surgery.kinds import fuses, is_batch, kind_of
from shiftnorm.surgery.norm_act import NormAct
from shiftnorm.surgery.own_blocks import SLOTS

__all__ = ["AFTER", "BEFORE", "Change", "Edit", "How"]

How = Literal["replace", "before", "after", "fill", "open"]

BEFORE, AFTER = "before_norm", "after_norm"


@dataclass(frozen=True)
class Edit:
    """One change of a model, as it is written to files.

    ========= ==================================================================================================
    how       what happens at ``path``
    ========= ==================================================================================================
    "replace" the norm there gives its place to another one
    "after"   a norm runs on the module's output: fused into a Chain behind a BatchNorm, else as its child
              ``after_norm``, called by a forward hook, so that no name of the model changes
    "before"  the same on the module's input: ``before_norm``
    "fill"    the norm is put where the block has None or an empty slot
    "open"    as "fill", in a block of torchvision whose class is exchanged for one with slots
    ========= ==================================================================================================

    Example:
        >>> Edit("bn1", "replace", NormSpec("IBN")).to_json()
        {'path': 'bn1', 'how': 'replace', 'norm': 'IBN', 'arguments': {}}

    Args:
        path: dotted name of the module (or of the place to fill).
        how: see above.
        norm: what is built.
        channels: what the norm is built for, where the module at ``path`` does not say.
    """

    path: str
    how: How
    norm: NormSpec
    channels: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The edit as plain data.

        Example:
            >>> Edit("layer1", "after", NormSpec("MixStyle", {"p": 0.1}), 64).to_json()["channels"]
            64
        """
        data: dict[str, Any] = {"path": self.path, "how": self.how, "norm": self.norm.name}
        data["arguments"] = dict(self.norm.arguments)
        return data if self.channels is None else {**data, "channels": self.channels}

    @staticmethod
    def from_json(data: Mapping[str, Any], norms: Mapping[str, Any] | None = None) -> Edit:
        """The edit that :meth:`to_json` wrote; nothing in it is evaluated.

        Example:
            >>> Edit.from_json({"path": "bn1", "how": "replace", "norm": "IBN", "arguments": {}}).norm.name
            'IBN'

        Args:
            data: plain data, possibly from a stranger's file.
            norms: the user's own norms by the names in the file.

        Raises:
            ValueError: if the data are not of this form.
        """
        expected = {"path": str, "how": str, "norm": str, "arguments": dict}
        channels = data.get("channels")
        wrong = [key for key, kind in expected.items() if not isinstance(data.get(key), kind)]
        if wrong or set(data) - {*expected, "channels"} or data["how"] not in get_args(How):
            raise ValueError(f"surgery: expected an edit with path, how, norm and arguments, got {dict(data)}.")
        if channels is not None and (type(channels) is not int or channels < 1):
            raise ValueError(f"surgery: expected channels to be a whole number from 1 in {dict(data)}.")
        own = (norms or {}).get(data["norm"])
        return Edit(data["path"], data["how"], NormSpec(data["norm"], dict(data["arguments"]), own), channels)


@dataclass
class Change:
    """What an edit did to a model, with what is needed to undo it.

    Example:
        >>> make(nn.BatchNorm2d(3), Edit("", "replace", NormSpec("IBN")))[1].kept[:2]
        ('weight', 'bias')

    Args:
        edit: the edit.
        old: what stood there; None in an empty place.
        new: what stands there now.
        norm: the norm that was built.
        kept: names of the tensors it shares with ``old``.
        fused: whether it became part of a Chain.
        opened: the block whose class was exchanged, for "open".
        handle: of the hook that runs an attached norm.
    """

    edit: Edit
    old: nn.Module | None
    new: nn.Module
    norm: nn.Module
    kept: tuple[str, ...] = ()
    fused: bool = False
    opened: nn.Module | None = field(default=None, repr=False)
    handle: Any = field(default=None, repr=False)


def make(model: nn.Module, edit: Edit) -> tuple[nn.Module, Change]:
    """Apply an edit.

    Example:
        >>> model, change = make(nn.Sequential(nn.BatchNorm2d(3)), Edit("0", "replace", NormSpec("IBN")))
        >>> model[0]
        IBN(3, ...)

    Returns:
        The model, which is another object if the edit replaced its root, and what was done.

    Raises:
        ValueError: if there is no such module, or the edit does not suit it.
    """
    if edit.how in ("fill", "open"):
        return model, _fill(model, edit)
    old = module_at(model, edit.path)
    if edit.how == "replace":
        return _replace(model, edit, old)
    if fuses(old):
        return _fuse(model, edit, old, edit.channels)
    host = _inmost(old, edit)
    channels = edit.channels or (_out_channels(host) if edit.how == "after" else _in_channels(host))
    present = getattr(host, AFTER if edit.how == "after" else BEFORE, None)
    if present is not None:
        return _fuse(model, edit, present, channels)
    return model, _attach(model, edit, old, host, channels)


def undo(model: nn.Module, change: Change) -> nn.Module:
    """Take a change back.

    Example:
        >>> model, change = make(nn.Sequential(nn.BatchNorm2d(3)), Edit("0", "replace", NormSpec("IBN")))
        >>> undo(model, change)[0]
        BatchNorm2d(3, ...)

    Returns:
        The model, which is another object if its root comes back.

    Raises:
        ValueError: if what the change put there is no longer there.
    """
    edit = change.edit
    if edit.how in ("fill", "open"):
        parent, name = parent_of(model, edit.path)
        if getattr(parent, name, None) is not change.new:
            raise _moved(edit)
        if change.old is None:  # None belongs among the plain attributes again
            delattr(parent, name)
        setattr(parent, name, change.old)
        if change.opened is not None:
            close_block(change.opened)
        return model
    if change.handle is not None:
        host, name = change.new, AFTER if edit.how == "after" else BEFORE
        if getattr(host, name, None) is not change.norm:
            raise _moved(edit)
        change.handle.remove()
        delattr(host, name)
        return model
    assert change.old is not None
    if not spots_of(model, change.new) and model is not change.new:
        raise _moved(edit)
    if type(change.old) is Chain:
        assert isinstance(change.new, Chain)
        change.old.training = change.new.training  # its parts are those of the new one
        return swap(model, change.new, change.old)
    shares = change.norm if edit.how == "replace" else _first_batch(change.new, change.old)
    if shares is not change.old:
        give_back_state(shares, change.old, change.kept)
    return swap(model, change.new, change.old)


def check_undo(model: nn.Module, changes: Sequence[Change]) -> None:
    """Refuse to take changes back if one of them is not there any more, before any is taken back.

    Example:
        >>> model, change = make(nn.Sequential(nn.BatchNorm2d(3)), Edit("0", "replace", NormSpec("IBN")))
        >>> check_undo(model, [change])

    Raises:
        ValueError: if what a change put there is no longer there.
    """
    present = {id(module) for module in model.modules()}
    for change in reversed(changes):
        # a Chain within a Chain, such as CNSN behind a BatchNorm, was unpacked into it
        parts = list(change.norm) if isinstance(change.norm, Chain) else [change.norm]
        if any(id(module) not in present for module in (change.new, *parts)):
            raise _moved(change.edit)
        # what comes back with it, for the changes before
        present |= {id(module) for module in (change.old.modules() if change.old is not None else ())}


def _moved(edit: Edit) -> ValueError:
    return ValueError(
        f"revert: what was put at {edit.path!r} is no longer there. Revert later conversions first, and revert the "
        "model that was converted, not a copy of it."
    )


def _replace(model: nn.Module, edit: Edit, old: nn.Module) -> tuple[nn.Module, Change]:
    kind = kind_of(old)
    if kind is None:
        raise ValueError(f"surgery: expected a norm at {edit.path!r}, got {type(old).__name__}; use insert.")
    if kind.refusal is not None:
        raise ValueError(f"surgery: {type(old).__name__} at {edit.path!r} cannot be replaced: {kind.refusal}.")
    if hasattr(old, BEFORE) or hasattr(old, AFTER):
        raise ValueError(f"surgery: {type(old).__name__} at {edit.path!r} has a norm attached; revert that first.")
    norm, kept = norm_in_place_of(old, edit.norm)
    new = around(norm, old)
    return swap(model, old, new), Change(edit, old, new, norm, kept)


def _fuse(model: nn.Module, edit: Edit, old: nn.Module, channels: int | None) -> tuple[nn.Module, Change]:
    kind = kind_of(old)
    channels = kind.channels if kind is not None and kind.channels is not None else channels
    if channels is None:
        raise ValueError(f"surgery: {type(old).__name__} at {edit.path!r} does not say its channels; pass channels=.")
    norm = edit.norm.build(channels, {})
    like_dtype_and_device(old, norm)
    norm.train(old.training)
    if type(old) is Chain or not fuses(old):
        parts, kept = list(old) if type(old) is Chain else [old], ()
    else:
        first = batch_norm_from(old)
        kept = tuple(dict(first.named_parameters(recurse=False))) + tuple(dict(first.named_buffers(recurse=False)))
        parts = [around(first, old)]
    new = Chain(norm, *parts) if edit.how == "before" else Chain(*parts, norm)
    new.training = old.training  # and not that of its parts: one of them may be frozen
    return swap(model, old, new), Change(edit, old, new, norm, kept, fused=isinstance(norm, NormLayer))


def _attach(model: nn.Module, edit: Edit, old: nn.Module, host: nn.Module, channels: int | None) -> Change:
    name = AFTER if edit.how == "after" else BEFORE
    if channels is None:
        raise ValueError(f"surgery: the channels {edit.how} {edit.path!r} ({type(host).__name__}) are not known.")
    norm = edit.norm.build(channels, {})
    like_dtype_and_device(host if next(host.parameters(), None) is not None else model, norm)
    norm.train(host.training)
    host.add_module(name, norm)
    after = edit.how == "after"
    handle = host.register_forward_hook(_run_after) if after else host.register_forward_pre_hook(_run_before)
    return Change(edit, old, host, norm, handle=handle)


def _run_before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(module, BEFORE)(args[0]), *args[1:])


def _run_after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return getattr(module, AFTER)(output)


def _inmost(module: nn.Module, edit: Edit) -> nn.Module:
    """The module that can hold a child: a container would run it as one of its steps."""
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module):
        module = module[-1 if edit.how == "after" else 0]
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f"surgery: {type(module).__name__} at {edit.path!r} runs its children itself, so that none can be "
            "added; name one of the modules in it or behind it."
        )
    return module


def _fill(model: nn.Module, edit: Edit) -> Change:
    parent, name = parent_of(model, edit.path)
    opens = edit.how == "open" and not is_open(parent)
    if opens and name not in SLOTS:
        raise ValueError(
            f"surgery: expected one of {', '.join(SLOTS)} to open in {type(parent).__name__}, got {name!r}."
        )
    if not opens and not (hasattr(parent, name) and is_empty(getattr(parent, name))):
        found = type(getattr(parent, name)).__name__ if hasattr(parent, name) else "no such place"
        raise ValueError(f"surgery: expected an empty place at {edit.path!r}, got {found}.")
    if edit.channels is None:
        raise ValueError(f"surgery: expected the channels at {edit.path!r} to be given.")
    norm = edit.norm.build(edit.channels, {})  # it may fail, so before the block is changed
    if opens:
        open_block(parent)
    old = getattr(parent, name)
    like_dtype_and_device(parent, norm)
    norm.train(parent.training)
    setattr(parent, name, norm)
    return Change(edit, old, norm, norm, opened=parent if opens else None)


def _first_batch(chain: nn.Module, old: nn.Module) -> nn.Module:
    """The BatchNorm of ours in a Chain that shares its tensors with the old module, or that module itself."""
    for part in chain if isinstance(chain, Chain) else (chain,):
        inner = part.norm if isinstance(part, NormAct) else part
        if inner is old or is_batch(inner):
            return inner
    raise ValueError("revert: the BatchNorm of a Chain is no longer in it; revert later conversions first.")


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module of a dotted name, with near matches in the error if there is none.

    Example:
        >>> module_at(nn.Sequential(nn.ReLU()), "0")
        ReLU()

    Raises:
        ValueError: if there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        near = difflib.get_close_matches(path, [name for name, _ in model.named_modules()], n=3, cutoff=0.5)
        hint = f"near matches: {', '.join(near)}." if near else "no name is like it."
        raise ValueError(f"surgery: the model has no module {path!r}; {hint}") from None


def parent_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a place, and the place's name in it.

    Example:
        >>> parent_of(nn.Sequential(nn.ReLU()), "0")[1]
        '0'
    """
    parent, _, name = path.rpartition(".")
    return module_at(model, parent), name


def spots_of(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every (parent, name) under which a module is registered: several for a tied one, none for the root.

    Example:
        >>> relu = nn.ReLU()
        >>> [name for _, name in spots_of(nn.Sequential(relu, relu), relu)]
        ['0', '1']
    """
    return [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is module]


def swap(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another one, at every parent, or as the root.

    Example:
        >>> swap(nn.Sequential(nn.ReLU()), nn.ReLU(), nn.GELU())[0]
        ReLU()

    Returns:
        The model, or ``new`` if the model was ``old``.
    """
    if model is old:
        return new
    for parent, name in spots_of(model, old):
        setattr(parent, name, new)
    return model


def _out_channels(module: nn.Module) -> int | None:
    return next((n for part in reversed(list(module.modules())) if (n := _width(part, "out")) is not None), None)


def _in_channels(module: nn.Module) -> int | None:
    return next((n for part in module.modules() if (n := _width(part, "in")) is not None), None)


def _width(module: nn.Module, side: str) -> int | None:
    kind = kind_of(module)
    if kind is not None and kind.channels is not None:
        return kind.channels
    if isinstance(module, nn.modules.conv._ConvNd):
        return getattr(module, f"{side}_channels")
    return getattr(module, f"{side}_features") if isinstance(module, nn.Linear) else None
