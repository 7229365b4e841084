"""Writing a converted model to one file, and building it again from that file alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from shiftnorm.norms import RunningMoments
from shiftnorm.norms.running import Source
from shiftnorm.surgery.convert import FOLDED, edits_of, remember
from shiftnorm.surgery.edit import Edit, make, undo
from shiftnorm.surgery.report import Report
from shiftnorm.surgery.source import rebuild, source_of

__all__ = ["load", "read_recipe", "save"]

_KEY = "shiftnorm"
_FORMAT = 1


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model with its conversions to a safetensors file.

    The file holds every parameter and buffer, and in its metadata, as JSON, where the model came from
    (``build_model``), the edits made to it, and the source of every norm's moments. It holds no code.

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
        ValueError: if an argument of an edit, or an entry of the state_dict, cannot be written without pickling, or if
            the model is folded.
        ModuleNotFoundError: if safetensors is not installed.
    """
    if getattr(model, FOLDED, False):
        raise ValueError("save: the model is folded: it has other weights than its recipe says. Save before fold.")
    safetensors = _safetensors()
    path = Path(path)
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
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        safetensors.save_file(tensors, temporary, metadata={_KEY: json.dumps(recipe), "format": "pt"})
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


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
        The model in evaluation mode, and a report that :func:`revert` takes.

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
    tensors = _safetensors().load_file(path)
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
    except BaseException:  # a model that was passed stays as it was
        for change in reversed(report.changes):
            root = undo(root, change)
        raise
    remember(root, report.edits)
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
    _safetensors()
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError('save and load need safetensors: pip install "shiftnorm[train]"') from None
    return safetensors.torch
