"""The verb that puts norms into a model and writes it to a file."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shiftnorm.surgery import LoadReport, Report

__all__ = ["SUFFIX", "TRAINED", "convert_model", "is_file", "model_file", "open_model", "where_of"]

SUFFIX = ".safetensors"
# What `shiftnorm train` leaves in its folder.
TRAINED = f"model{SUFFIX}"


def model_file(model: str) -> str:
    """MODEL, or the network in it where it is the folder of a run of a recipe.

    Example:
        >>> model_file("timm/resnet50")
        'timm/resnet50'
    """
    inside = Path(model, TRAINED)
    return str(inside) if inside.is_file() else model


def is_file(model: str) -> bool:
    """Whether MODEL names a file rather than a model of a library.

    Example:
        >>> is_file("timm/resnet50"), is_file("mine.safetensors")
        (False, True)
    """
    return model.endswith(SUFFIX) or Path(model_file(model)).is_file()


def where_of(options: argparse.Namespace) -> str | list[str] | None:
    """The selector of ``--where``, given once, several times or not at all.

    Example:
        >>> where_of(argparse.Namespace(where=["stages:1"]))
        'stages:1'
    """
    return options.where[0] if options.where and len(options.where) == 1 else options.where


def open_model(options: argparse.Namespace) -> nn.Module:
    """Build MODEL by its name, or read it from a file.

    Example:
        >>> model = open_model(argparse.Namespace(model="shiftnorm/wide_resnet16_4", allow_code=False))
        >>> model.fc.out_features
        10

    Args:
        options: with ``model`` and ``allow_code``; ``pretrained`` and ``num_classes`` where the verb has them.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if it is a file that is not there.
        ValueError: for an unknown name, a folder without a model, or a file that ``save`` did not write.
    """
    from shiftnorm.result_folder import name_below
    from shiftnorm.surgery import build_model, load, read_recipe
    from shiftnorm.surgery.source import LIBRARIES, rebuild

    name = model_file(options.model)
    if not is_file(name):
        if Path(name).is_dir() and name.partition("/")[0] not in LIBRARIES:
            advice = name_below(Path(name), TRAINED) or f"expected such a folder, a {SUFFIX} file or LIBRARY/NAME"
            raise ValueError(f"{name} is a folder without {TRAINED}, which a run of `shiftnorm train` has; {advice}.")
        classes = getattr(options, "num_classes", None)
        arguments = {} if classes is None else {"num_classes": classes}
        if options.allow_code and ":" in name:
            return build_model(name, allow_code=True, **arguments)
        if ":" in name:
            raise _untrusted(name)
        return build_model(name, pretrained=getattr(options, "pretrained", False), **arguments)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}; `shiftnorm models` lists the models of libraries.")
    try:
        source = read_recipe(name)["source"]
    except ValueError as fault:
        raise ValueError(
            f"{fault} Weights alone are given as --weights {name}, beside the name of their model, LIBRARY/NAME."
        ) from fault
    if source is None or ":" not in str(source.get("name")):
        return load(name)[0]
    if not options.allow_code:
        raise _untrusted(source["name"])
    return load(name, rebuild(source, allow_code=True))[0]


def _untrusted(name: str) -> ValueError:
    return ValueError(f"{name!r} would import and run code. If you trust it, add --allow-code.")


def convert_model(options: argparse.Namespace) -> int:
    """Convert MODEL, print what changed, and write it.

    Example:
        >>> convert_model(argparse.Namespace(model="timm/resnet50", placements=[]))
        Traceback (most recent call last):
        ...
        ValueError: convert: expected --with PLACEMENT, such as --with ibn_a; ...

    Args:
        options: of the verb convert.

    Returns:
        0.

    Raises:
        ValueError: for a mistake in the options, or if nothing changed; no file is written then.
        OSError: if a file exists already or cannot be written.
    """
    import torch

    from shiftnorm.surgery import convert, save, source_of
    from shiftnorm.surgery.report import movement_between, outputs_of

    settings = _checked_call(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = open_model(options)
        weights = _fill(model, options)
        example = None if options.no_example else _example(model, options.input)
        start = None if example is None else _outputs(model, example)
        reports: list[Report] = []
        for placement, own in zip(options.placements, settings, strict=True):
            try:
                model, report = convert(
                    model,
                    placement,
                    where_of(options),
                    slot=None if "@" in placement else options.slot,
                    preserve=not options.as_published,
                    example_input=example,
                    **own,
                )
            except TypeError as fault:
                if not own:
                    raise
                raise TypeError(
                    f"convert: {placement} with {json.dumps(own)}: {fault}. Values of --set are read as JSON."
                ) from fault
            reports.append(report)
        total = None if start is None else movement_between(start, outputs_of(model, example))
    # only now, so that of a mistake in the words nothing but the error is seen
    print(f"{options.model}: {reports[0].parameters[0]:,} parameters, {_origin(options)}")
    for part in (weights, *reports):
        if part is not None:
            print(part)
    if total is not None and len(reports) > 1:
        print(f"All together: {str(total)[0].lower()}{str(total)[1:]}")
    if total is not None and total.kept and _origin(options).startswith("random"):
        print("Random weights say little of it: many networks start with the norms of their branches switched off.")
    if not any(reports):
        raise ValueError("convert: nothing changed, see above, so that no file was written.")
    save(model, options.out)
    print(f"Wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")
    if source_of(model) is None:
        print("It does not say how its model is built: read it with shiftnorm.surgery.load(path, model=...).")
    if options.report is not None:
        record = {
            "model": options.model,
            "source": source_of(model),
            "out": str(options.out),
            "weights": _origin(options) if weights is None else weights.to_json(),
            "conversions": [report.to_json() for report in reports],
            "movement": None if total is None else {**total._asdict(), "kept": total.kept},
        }
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {options.report}")
    return 0


def _checked_call(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Find what is wrong with the words alone, before a model is built; the norms' arguments by placement."""
    if not options.placements:
        raise ValueError("convert: expected --with PLACEMENT, such as --with ibn_a; `shiftnorm placements` lists them.")
    if options.out is None:
        raise ValueError(f"convert: expected --out FILE{SUFFIX}, where the model is written.")
    for placement in options.placements:
        _norm_of(placement)
    _check_target("--out", options.out, SUFFIX, options.force)
    if options.report is not None:
        _check_target("--report", options.report, ".json", options.force)
    if options.pretrained and options.weights:
        raise ValueError("convert: expected --pretrained or --weights, got both.")
    if is_file(options.model):
        for name in ("pretrained", "num_classes"):
            if getattr(options, name):
                raise ValueError(
                    f"convert: --{name.replace('_', '-')} is for a model of a library; {options.model} is a file, "
                    "which has it settled."
                )
    elif options.pretrained and options.num_classes and options.model.startswith("torchvision/"):
        raise ValueError(
            "convert: torchvision's weights are for its own number of classes. Leave out --num-classes, or use "
            "--weights FILE --head skip."
        )
    return _settings(options.placements, options.settings)


def _check_target(option: str, path: Path, suffix: str, force: bool) -> None:
    if path.suffix != suffix:
        raise ValueError(f"convert: expected {option} to end in {suffix}, got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"convert: {option} {path} is a directory.")
    if path.exists() and not force:
        raise FileExistsError(f"convert: {option} {path} exists already; --force overwrites it.")
    parent = next(each for each in path.absolute().parents if each.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"convert: {option} {path} cannot be written: {parent} is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"convert: {option} {path} cannot be written: no permission to write in {parent}.")


def _settings(placements: Sequence[str], given: Sequence[str]) -> list[dict[str, Any]]:
    """The arguments of each placement's norm, by name."""
    settings: list[dict[str, Any]] = [{} for _ in placements]
    names = [placement.partition("@")[0] for placement in placements]
    for text in given:
        key, equals, written = text.partition("=")
        if not equals or not key:
            raise ValueError(f"convert: expected --set KEY=VALUE, such as --set ratio=0.25, got {text!r}.")
        try:
            value = json.loads(written)
        except json.JSONDecodeError:
            value = written
        meant, dot, argument = key.rpartition(".")
        if dot and meant not in names and meant not in placements:
            raise ValueError(f"convert: --set {key} is for {meant!r}; expected one of {', '.join(placements)}.")
        for index, placement in enumerate(placements):
            if not dot or meant in (names[index], placement):
                _check_argument(placement, argument, several=len(placements) > 1 and not dot)
                settings[index][argument] = value
    return settings


def _norm_of(placement: str) -> str:
    from shiftnorm.near_names import suggest
    from shiftnorm.surgery.carry import plain, roster_name
    from shiftnorm.surgery.placements import PLACEMENTS

    name = plain(placement.partition("@")[0])
    entry = next((PLACEMENTS[key] for key in PLACEMENTS if plain(key) == name), None)
    try:
        return roster_name(name) if entry is None else entry.norm
    except ValueError as fault:
        raise ValueError(f"convert: unknown placement {placement!r}; {suggest(name, PLACEMENTS)}") from fault


def _check_argument(placement: str, argument: str, *, several: bool) -> None:
    from shiftnorm import norms
    from shiftnorm.near_names import suggest

    norm = _norm_of(placement)
    # the first is the number of channels, which the place decides
    known = [key for key in inspect.signature(getattr(norms, norm)).parameters if key != "num_features"]
    if argument not in known:
        hint = " For one of several placements write --set PLACEMENT.KEY=VALUE." if several else ""
        raise ValueError(f"convert: {norm} has no argument {argument!r}; {suggest(argument, known)}{hint}")


def _origin(options: argparse.Namespace) -> str:
    if options.weights:
        return f"weights of {options.weights}"
    if options.pretrained:
        return "pretrained weights"
    if is_file(options.model):
        return "weights of the file"
    return "random weights: neither --pretrained nor --weights was given"


def _fill(model: nn.Module, options: argparse.Namespace) -> LoadReport | None:
    from shiftnorm.surgery import load_weights

    if not options.weights:
        return None
    try:
        return load_weights(model, options.weights, strict=not options.no_strict, head=options.head)
    except ValueError as fault:
        text = str(fault).replace("head='skip'", "--head skip").replace("strict=False", "--no-strict")
        raise ValueError(text) from fault


def _example(model: nn.Module, given: str | None) -> Tensor:
    import torch

    if given is None:
        size = _input_size(model)
        if size is None:
            raise ValueError(
                f"convert: the input size of {type(model).__name__} is not known. Give it by --input 3x224x224, or "
                "leave the measurement out by --no-example."
            )
    elif re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", given):
        size = tuple(int(number) for number in given.split("x"))
    else:
        raise ValueError(f"convert: expected --input as numbers with x between, such as 3x224x224, got {given!r}.")
    return torch.randn(2, *size)


def _input_size(model: nn.Module) -> tuple[int, ...] | None:
    from shiftnorm.surgery import source_of

    library, _, name = (source_of(model) or {"name": ""})["name"].partition("/")
    if library == "timm":
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        return None if size is None else tuple(size)
    if library == "shiftnorm":
        weight = next(model.parameters())  # a stem of 3x3 is one for CIFAR's images
        return (weight.shape[1], 32, 32) if weight.shape[-1] == 3 else (weight.shape[1], 224, 224)
    if library == "torchvision":
        import torchvision

        transforms = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
        transforms = getattr(transforms, "transforms", None)
        keywords = getattr(transforms, "keywords", {})
        kind = getattr(getattr(transforms, "func", None), "__name__", "")
        size = keywords.get("crop_size") if kind == "ImageClassification" else keywords.get("resize_size")
        if isinstance(size, int) and kind in ("ImageClassification", "SemanticSegmentation"):
            return (3, size, size)
    return None


def _outputs(model: nn.Module, example: Tensor) -> Tensor:
    from shiftnorm.surgery.report import outputs_of

    try:
        return outputs_of(model, example)
    except Exception as fault:  # of a model of anyone's, on an input it may not take
        size = "x".join(str(number) for number in example.shape[1:])
        raise ValueError(
            f"convert: {type(model).__name__} does not take inputs of {size}: {str(fault).rstrip('.')}. Give their "
            "size by --input, or leave the measurement out by --no-example."
        ) from fault
