"""Writing a converted model to one file, and building it again from that file alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from shiftnorm.norms import RunningMoments
from shiftnorm.norms.running import Source
from shiftnorm.surgery.convert import FOLDED, edits_of, remember
from shiftnorm.surgery.edit import Edit, make, undo
from shiftnorm.surgery.report import Report
from shiftnorm.surgery.settings import are_settings, put_settings, settings_of
from shiftnorm.surgery.source import rebuild, source_of
from shiftnorm.tensor_file import safetensors_for, write_tensors

__all__ = ["load", "read_recipe", "save"]

_KEY = "shiftnorm"
_FORMAT = 1
_WHO = "save and load"
_NORMALIZATION = "input_normalization"


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model with its conversions to a safetensors file.

    The file holds every parameter and buffer, and in its metadata, as JSON, where the model came from
    (``build_model``), the edits made to it, the source of every norm's moments, every norm's numbers (eps, momentum, p
    and such, which may have been changed since), and, if the model has it, its ``input_normalization``: the (mean, std)
    that its inputs are normalized by. It holds no code.

    Example:
        >>> import tempfile
        >>> from shiftnorm.surgery import build_model, convert
        >>> model, _ = convert(build_model("shiftnorm/resnet18", num_classes=3), "ibn_a")
        >>> path = save(model, Path(tempfile.mkdtemp()) / "model.safetensors")
        >>> again, report = load(path)
        >>> len(report), again.layer1[0].bn1
        (6, IBN(64, ...))

    Args:
        model: a model, converted or not.
        path: the file; it appears whole or not at all.

    Returns:
        The path.

    Raises:
        ValueError: if an argument of an edit, or an entry of the state_dict, cannot be written without pickling, if
            ``input_normalization`` is no (mean, std), or if the model is folded.
        ModuleNotFoundError: if safetensors is not installed.
    """
    if getattr(model, FOLDED, False):
        raise ValueError("save: the model is folded: it has other weights than its recipe says. Save before fold.")
    safetensors_for(_WHO)  # before anything is copied
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"save: expected a state_dict of tensors, got {type(tensor).__name__} at {key!r}.")
        if tensor.is_meta:
            raise ValueError(f"save: {key!r} is on the meta device and has no values.")
        same = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in first:  # tied: one copy in the file
            aliases[key] = first[same]
            continue
        first[same] = key
        tensors[key] = tensor.detach().cpu().contiguous().clone()
    recipe = {
        "format": _FORMAT,
        "model": type(model).__name__,
        "source": source_of(model),
        "edits": [_checked(edit) for edit in edits_of(model)],
        "aliases": aliases,
        "moments": _moment_sources(model),
        "settings": settings_of(model),
        _NORMALIZATION: _normalization_of(model),
    }
    return write_tensors(Path(path), tensors, {_KEY: json.dumps(recipe), "format": "pt"}, who=_WHO)


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    norms: Mapping[str, Callable[..., nn.Module]] | None = None,
) -> tuple[nn.Module, Report]:
    """Build the model of a file that :func:`save` wrote: first as it was, then edited, then its weights.

    Nothing in the file is executed: norms are looked up by name, and the model is built by ``build_model``.

    Example:
        >>> load("no-such-file.safetensors")
        Traceback (most recent call last):
        ...
        FileNotFoundError: load: no file no-such-file.safetensors.

    Args:
        path: the file.
        model: the unconverted model, where the file does not say how to build it (it was not made by
            ``build_model``).
        norms: the user's own norms, by the names in the file.

    Returns:
        The model in evaluation mode, with its ``input_normalization`` if it had one, and a report that :func:`revert`
        takes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of :func:`save`, needs a model or norms that were not passed, or does not fit.
    """
    path = Path(path)
    recipe = read_recipe(path)
    if model is None:
        if recipe["source"] is None:
            raise ValueError(
                f"load: {path.name} holds a {recipe['model']} that was not made by build_model; build it as it was "
                "before conversion and pass it as model=."
            )
        model = rebuild(recipe["source"])
    elif edits_of(model):
        raise ValueError("load: expected model= as it was before conversion, got one that is converted; revert first.")
    tensors = safetensors_for(_WHO).load_file(path)
    elements = sum(tensor.numel() for tensor in tensors.values())
    if dangling := [kept for kept in recipe["aliases"].values() if kept not in tensors]:
        raise ValueError(f"load: {path.name} is damaged: its recipe names tensors that are not in it: {dangling[:5]}.")
    tensors.update({key: tensors[kept] for key, kept in recipe["aliases"].items()})
    report = Report(f"load of {path.name}")
    count = sum(parameter.numel() for parameter in model.parameters())
    root = model
    try:
        for number, data in enumerate(recipe["edits"], 1):
            edit = Edit.from_json(data, norms)
            _refuse_too_large(edit, elements)
            try:
                root, change = make(root, edit)
            except (TypeError, RuntimeError, ArithmeticError) as fault:
                raise ValueError(f"load: edit {number} of {path.name}, {data}, cannot be made: {fault}") from fault
            report.changes.append(change)
        _fill(root, tensors, path)
        _switch_sources(root, recipe["moments"], path)
        put_settings(root, recipe.get("settings", {}), f"load: {path.name}")
    except BaseException:  # a model that was passed stays as it was
        for change in reversed(report.changes):
            root = undo(root, change)
        raise
    remember(root, report.edits)
    if (pair := recipe.get(_NORMALIZATION)) is not None:
        setattr(root, _NORMALIZATION, (tuple(pair[0]), tuple(pair[1])))
    report.parameters = (count, sum(parameter.numel() for parameter in root.parameters()))
    return root.eval(), report


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON part of a file that :func:`save` wrote.

    Example:
        >>> read_recipe("no-such-file.safetensors")
        Traceback (most recent call last):
        ...
        FileNotFoundError: load: no file no-such-file.safetensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, or of a later format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load: no file {path}.")
    safetensors_for(_WHO)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except SafetensorError as fault:
        raise ValueError(f"load: expected a safetensors file, {path.name} is none or is damaged ({fault}).") from None
    if text is None:
        raise ValueError(f"load: {path.name} was not written by shiftnorm's save; use load_weights(model, path).")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as fault:  # also a number of thousands of digits, or brackets of thousands
        raise ValueError(f"load: the recipe in {path.name} is damaged ({fault}).") from None
    expected = {"format": int, "edits": list, "aliases": dict, "moments": dict, "model": str}
    if not isinstance(recipe, dict) or any(not isinstance(recipe.get(key), kind) for key, kind in expected.items()):
        raise ValueError(f"load: the recipe in {path.name} is not of the form that save writes.")
    source = recipe.get("source")
    pairs = recipe["moments"].values()
    if (
        not (source is None or isinstance(source, dict))
        or not all(isinstance(edit, dict) for edit in recipe["edits"])
        or not all(isinstance(kept, str) for kept in recipe["aliases"].values())
        or not all(isinstance(pair, list) and [type(part) for part in pair] == [str, float] for pair in pairs)
        or not are_settings(recipe.get("settings", {}))
        or (recipe.get(_NORMALIZATION) is not None and _read_normalization(recipe[_NORMALIZATION]) is None)
    ):
        raise ValueError(f"load: the recipe in {path.name} is not of the form that save writes.")
    if recipe["format"] > _FORMAT:
        raise ValueError(f"load: {path.name} was written by a later version (format {recipe['format']}).")
    return recipe


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in tensors and own[key].shape != tensors[key].shape
    ]
    misshapen += [
        f"{key} {tensors[key].dtype} for {own[key].dtype}"
        for key in own
        if key in tensors and own[key].is_floating_point() != tensors[key].is_floating_point()
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"load: {path.name} does not fit the model; missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape or kind {misshapen[:5]}."
        )
    for key, tensor in model.state_dict(keep_vars=True).items():
        if tensor.dtype != tensors[key].dtype:
            tensor.data = tensor.data.to(tensors[key].dtype)
    # Into the model's own state_dict: some modules (torchvision's MNASNet) ask which version of themselves wrote it.
    own.update(tensors)
    model.load_state_dict(own)


def _switch_sources(model: nn.Module, sources: Mapping[str, tuple[str, float]], path: Path) -> None:
    modules = dict(model.named_modules())
    for name, (source, weight) in sources.items():
        norm = modules.get(name)
        if not isinstance(norm, RunningMoments):
            found = "not there" if norm is None else type(norm).__name__
            raise ValueError(f"load: {path.name} names moments of {name!r}, which is {found} here.")
        norm.source, norm.source_weight = cast("Source", source), weight  # the setter refuses any other


def _refuse_too_large(edit: Edit, elements: int) -> None:
    """A norm cannot have more channels than the file has numbers: the tensors it would make are not in the file."""
    numbers = [edit.channels or 0, *(n for n in edit.norm.arguments.values() if isinstance(n, int))]
    if max(numbers) > elements or min(numbers) < 0:
        raise ValueError(f"load: {edit.norm.short} at {edit.path!r} has a size that does not fit the file: {numbers}.")


def _moment_sources(model: nn.Module) -> dict[str, tuple[str, float]]:
    norms = [(name, part) for name, part in model.named_modules() if isinstance(part, RunningMoments)]
    return {name: (norm.source, norm.source_weight) for name, norm in norms if norm.source != "auto"}


def _normalization_of(model: nn.Module) -> list[list[float]] | None:
    """What the model says of its inputs; a part of the network may have the same name, and is no such thing."""
    own = getattr(model, _NORMALIZATION, None)
    if own is None or isinstance(own, nn.Module):
        return None
    pair = _read_normalization(own)
    if pair is None:
        raise ValueError(
            f"save: expected {_NORMALIZATION} to be (mean, std), equally many finite numbers each with std > 0, got "
            f"{own!r}. Correct or delete the attribute."
        )
    return pair


def _read_normalization(pair: Any) -> list[list[float]] | None:
    try:
        mean, std = ([float(value) for value in part] for part in pair)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = len(mean) == len(std) > 0 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    return [mean, std] if fits else None


def _checked(edit: Edit) -> dict[str, Any]:
    data = edit.to_json()
    try:
        if json.loads(json.dumps(data["arguments"])) == data["arguments"]:
            return data
    except (TypeError, ValueError, RecursionError):  # of other types, or in a circle
        pass
    raise ValueError(
        f"save: the arguments of {edit.norm.short} at {edit.path!r} cannot be written as JSON: {data['arguments']}. "
        "Use numbers, strings and lists."
    )
