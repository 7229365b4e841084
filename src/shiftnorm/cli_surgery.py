"""The verbs of the command line that look at models and put norms into them."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

from shiftnorm.cli_convert import SUFFIX, TRAINED, convert_model, is_file, open_model, where_of
from shiftnorm.cli_verb import add_pattern, add_plain, add_verb

__all__ = ["add_surgery_verbs"]

_LIBRARIES = ("shiftnorm", "torchvision", "timm")


def add_surgery_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verbs models, placements, convert and describe.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_surgery_verbs(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        >>> parser.parse_args(["convert", "timm/resnet50", "--with", "ibn_a", "--set", "ratio=0.25"]).settings
        ['ratio=0.25']

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
    """
    models = add_verb(
        verbs,
        common,
        "models",
        help="list the models that convert and describe can build",
        examples=["models", "models '*resnet50*'", "models --library timm --plain 'resnext*'"],
    )
    add_pattern(models, "resnet*")
    models.add_argument("--library", choices=_LIBRARIES, help="only its models")
    add_plain(models)
    models.set_defaults(run=_list_models)

    placements = add_verb(
        verbs,
        common,
        "placements",
        help="list where each method's authors put it, by the names that convert takes",
        examples=["placements", "placements 'ibn*'", "placements --plain"],
    )
    add_pattern(placements, "ibn*")
    add_plain(placements)
    placements.set_defaults(run=_list_placements)

    model_help = (
        f"LIBRARY/NAME as `shiftnorm models` lists it, a {SUFFIX} file that `shiftnorm convert` wrote, or the folder "
        f"of a run, with {TRAINED} in it"
    )
    convert = add_verb(
        verbs,
        common,
        "convert",
        help="put norms into a model and write it to a file",
        description="Put norms into a model, say what changed and how far its outputs moved, and write it to one file "
        f"that shiftnorm.surgery.load, `shiftnorm describe` and `shiftnorm convert` read. MODEL is {model_help}.",
        examples=[
            "convert timm/resnet50 --pretrained --with ibn_a --out resnet50_ibn_a.safetensors",
            "convert torchvision/resnet18 --weights mine.pth --num-classes 10 \\\n"
            "      --with cnsn@post --where stages:1-3 --out cnsn.safetensors --report cnsn.json",
            "convert cnsn.safetensors --with ibn_a --set ratio=0.25 --out both.safetensors",
        ],
    )
    convert.usage = f"shiftnorm convert MODEL --with PLACEMENT [--with ...] --out FILE{SUFFIX} [options]"
    convert.add_argument("model", metavar="MODEL", help=model_help)
    convert.add_argument(
        "--with", dest="placements", action="append", metavar="PLACEMENT", default=[],
        help="a placement, see `shiftnorm placements`, or a norm, see `shiftnorm norms`; several are made in turn",
    )  # fmt: skip
    convert.add_argument("--out", type=Path, metavar="FILE", help=f"the {SUFFIX} file to write")
    convert.add_argument(
        "--report", nargs="?", type=Path, metavar="FILE.json",
        help="write the report as JSON too; without a file it is only printed, as it always is",
    )  # fmt: skip
    convert.add_argument(
        "--where", action="append", metavar="SELECTOR",
        help="only there: stages:1-3, blocks:last, layer1.*, type:BatchNorm2d, channels:64-256; given twice: either",
    )  # fmt: skip
    convert.add_argument("--slot", metavar="SLOT", help="pre, residual, identity or post; same as PLACEMENT@SLOT")
    convert.add_argument(
        "--set", dest="settings", action="append", metavar="KEY=VALUE", default=[],
        help="an argument of the norm; PLACEMENT.KEY=VALUE for one of several placements",
    )  # fmt: skip
    convert.add_argument(
        "--as-published", action="store_true", help="start norms as their authors do, even if the function moves"
    )
    convert.add_argument("--weights", type=Path, metavar="FILE", help="fill the model from a checkpoint before")
    convert.add_argument(
        "--head", choices=("error", "skip"), default="error",
        help="skip: leave the last layer out where --weights has another number of classes",
    )  # fmt: skip
    convert.add_argument("--no-strict", action="store_true", help="take what fits of --weights")
    convert.add_argument("--pretrained", action="store_true", help="the library's own weights, which it downloads")
    convert.add_argument("--num-classes", type=int, metavar="N", help="outputs of the model")
    convert.add_argument("--input", metavar="3x224x224", help="size of one input (default: the model's)")
    convert.add_argument("--no-example", action="store_true", help="do not measure how far the outputs move")
    convert.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default: 0)")
    convert.add_argument("--force", action="store_true", help="overwrite files that exist")
    convert.set_defaults(run=convert_model)

    describe = add_verb(
        verbs,
        common,
        "describe",
        help="list the norms of a model: which, where, normalizing by what",
        examples=[
            "describe torchvision/resnet18",
            "describe timm/resnet50 --where stages:1-2",
            "describe cnsn.safetensors --where 'type:SelfNorm,CrossNorm' --json",
        ],
    )
    describe.add_argument("model", metavar="MODEL", help=model_help)
    describe.add_argument("--where", action="append", metavar="SELECTOR", help="only these norms, as in convert")
    describe.add_argument("--json", action="store_true", help="print JSON")
    describe.set_defaults(run=_describe)

    for verb in (convert, describe):
        verb.add_argument(
            "--allow-code", action="store_true",
            help="let MODEL be package.module:function, which is imported and run (never for a stranger's file)",
        )  # fmt: skip


def _list_models(options: argparse.Namespace) -> int:
    from shiftnorm.surgery.source import EXTRAS, list_sources

    absent = [library for library in EXTRAS if importlib.util.find_spec(library) is None]
    hints = {library: f'{library} is not installed: pip install "shiftnorm[{EXTRAS[library]}]"' for library in absent}
    if options.library in hints:
        raise ModuleNotFoundError(f"models: {hints[options.library]}.")
    pattern: str = options.pattern
    found = list_sources(pattern)
    if options.library:
        found = {library: names for library, names in found.items() if library == options.library}
    if not found:
        raise ValueError(f"models: no model matches {pattern!r}; {_near_models(pattern, options.library)}")
    for library, names in found.items():
        if not options.plain:
            print(f"{library}: {len(names)} model{'s' if len(names) > 1 else ''}")
        for name in names:
            full = f"{library}/{name}"
            counted = library == "shiftnorm" and not options.plain
            print(f"  {full:<32}{_count(name):>12,} parameters" if counted else full if options.plain else f"  {full}")
    if not options.plain and not options.library:
        for hint in hints.values():
            print(hint)
    return 0


def _near_models(pattern: str, library: str | None) -> str:
    from shiftnorm.surgery import list_sources

    wanted = pattern.strip("*").rpartition("/")[2]
    near: list[str] = []
    for each, names in list_sources().items():
        if library in (None, each):
            near += [f"{each}/{name}" for name in difflib.get_close_matches(wanted, names, n=3)]
    return f"did you mean {', '.join(near)}?" if near else f"a star stands for any text, as in '*{wanted}*'."


def _count(name: str) -> int:
    import torch

    from shiftnorm.models import create_model

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def _list_placements(options: argparse.Namespace) -> int:
    from shiftnorm.near_names import suggest
    from shiftnorm.surgery.placements import PLACEMENTS, SLOTS, list_placements

    names = list_placements(options.pattern)
    if not names:
        raise ValueError(f"placements: none matches {options.pattern!r}; {suggest(options.pattern, PLACEMENTS)}")
    if options.plain:
        print("\n".join(names))
        return 0
    places = {"norms": "every norm", "inner": "branches", "stages": "stages", "branch": "branches", "ibn_b": "stages"}
    for name in names:
        chosen = PLACEMENTS[name]
        place = f"@{chosen.slot}" if chosen.slot else places[chosen.at]
        print(f"{name:<12}{place:<13}{chosen.summary}")
    print(f"A slot may follow a name: {', '.join(f'cnsn@{slot}' for slot in SLOTS)}. `shiftnorm norms` go as well.")
    return 0


def _describe(options: argparse.Namespace) -> int:
    from shiftnorm.surgery import describe, source_of

    model = open_model(options)
    description = describe(model, where_of(options))
    if options.json:
        print(json.dumps({"source": source_of(model), **description.to_json()}, indent=2))
        return 0
    if is_file(options.model):
        source = source_of(model)
        made = "a model of your own" if source is None else source["name"]
        count = len(description.edits)
        print(f"{options.model}: {made} with {count} change{'' if count == 1 else 's'}")
    print(description)
    return 0
