"""The command line: thin verbs over the package's functions; heavy imports wait until a verb needs them."""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from shiftnorm import __version__
from shiftnorm.cli_corrupt import add_corrupt_verb
from shiftnorm.cli_evaluate import add_evaluate_verbs
from shiftnorm.cli_recipes import add_recipes_verb
from shiftnorm.cli_surgery import add_surgery_verbs
from shiftnorm.cli_train import add_train_verbs
from shiftnorm.cli_verb import (
    TRAINING,
    add_on_error,
    add_pattern,
    add_plain,
    add_verb,
    require,
    speaking_of_options,
    stopping_politely,
)
from shiftnorm.near_names import suggest

_OF_RECIPES = ("train", "compare-recipes")
_OF_DATA = ("compare", "train", "evaluate")
# Keys of recipes that are likely to be given as options.
_RECIPE_KEYS = (
    "loop.device",
    "loop.epochs",
    "loop.batch_size",
    "loop.precision",
    "loop.processes",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "data.size",
    "data.limit",
    "evaluate.limit",
    "evaluate.corruptions",
    "evaluate.severities",
    "model.name",
    "data.name",
)
_KEPT = {
    "compare": "Finished runs are kept",
    "evaluate": "Finished cells are kept",
    "corrupt": "Finished files are kept",
    "train": "Finished steps are kept",
    "compare-recipes": "Finished steps and runs are kept",
}


class _Parser(argparse.ArgumentParser):
    """Reports a mistyped verb with a near one, and unknown options with the usage of the verb they were given to."""

    verbs: Mapping[str, argparse.ArgumentParser] | None = None
    called = ""

    def add_subparsers(self, **settings: Any) -> Any:
        action = super().add_subparsers(**settings)
        self.verbs, self.called = action.choices, str(settings.get("metavar", "verb")).lower()
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        # no option before a verb takes a value
        verb = next((word for word in words if not word.startswith("-")), None)
        if self.verbs is not None and verb is not None and verb not in self.verbs:
            self.error(f"unknown {self.called} {verb!r}; {suggest(verb, self.verbs)}")
        found, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._advise(rest)}")
        return found, rest

    def _advise(self, words: Sequence[str]) -> str:
        """How to give images, and to set what a recipe has, for verbs that take recipes and --set."""
        verb = self.prog.rpartition(" ")[2]
        if verb in _OF_DATA and not words[0].startswith("-") and Path(words[0]).exists():
            return f"; images are given by --data {words[0]}"
        if verb not in _OF_RECIPES:
            return ""
        hints: list[str] = []
        for word in words:
            name = word.removeprefix("--").partition("=")[0].replace("-", "_")
            known = [f"--set {key}=..." for key in _RECIPE_KEYS if key.partition(".")[2] == name]
            if word.startswith("--") and known:
                hints.append(f"--{name.replace('_', '-')} is a key of the recipe: {' or '.join(known)}")
        return "".join(f"; {hint}" for hint in hints)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Example:
        >>> main(["recipes", "show"])  # a mistake: no name
        2

    Args:
        arguments: words after the program's name; None for the process's own.

    Returns:
        Exit status: 0 done, 1 some runs failed, 2 a mistake in the call or its inputs, 130 interrupted.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    # as a reader of a report can repeat it, without the place of the program on this machine
    options.command = shlex.join(["shiftnorm", *(sys.argv[1:] if arguments is None else arguments)])
    if options.verb is None:
        parser.print_help()
        return 2
    try:
        return options.run(options)
    except KeyboardInterrupt:
        kept = f" {_KEPT[options.verb]}: the same command continues from there." if options.verb in _KEPT else ""
        print(f"\nInterrupted.{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return 0
    except Exception as fault:  # any: a user reads one line, not a traceback
        if options.debug:
            raise
        text = " ".join(str(fault).split()) or type(fault).__name__
        known = isinstance(fault, ValueError | TypeError | OSError | ModuleNotFoundError)
        hint = "" if known else f" ({type(fault).__name__}; --debug shows the traceback)"
        print(f"shiftnorm: error: {text}{hint}", file=sys.stderr)
        return 2


def _make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = _Parser(
        prog="shiftnorm",
        description="Normalization layers that hold up when the data shift.",
        epilog="examples:\n"
        "  shiftnorm compare --data DIR\n"
        "  shiftnorm convert timm/resnet50 --pretrained --with ibn_a --out resnet50_ibn_a.safetensors\n"
        "  shiftnorm describe resnet50_ibn_a.safetensors\n"
        "  shiftnorm evaluate torchvision/resnet50 --pretrained --data imagenet --root DIR --split val",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(debug=False)
    parser.add_argument("--version", action="version", version=f"shiftnorm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    compare = add_verb(
        verbs,
        common,
        "compare",
        help="train one small network per norm and compare them under corruption",
        description="Train one small network per norm and seed, measure each on clean and corrupted test images, and "
        "write a table, an HTML report and one JSON record per run. Interrupted, the same command continues.",
        examples=[
            "compare",
            "compare --data DIR --norms BatchNorm CNSN DSU --seeds 0 1 2 --limit 200",
            "compare --recipe compare-digits --epochs 2 --out runs/quick",
        ],
    )
    compare.add_argument(
        "--data", metavar="DIR", help="images in ImageFolder layout, DIR/CLASS/FILE or DIR/train and DIR/test; "
        "default: handwritten digits over photographs, embedded in scikit-learn"
    )  # fmt: skip
    compare.add_argument("--out", metavar="DIR", help="where results go (default: runs/compare-NAME)")
    compare.add_argument("--recipe", metavar="NAME", help="a recipe by name or file, see `shiftnorm recipes`")
    compare.add_argument("--norms", nargs="+", metavar="NORM", help="norms to compare, see `shiftnorm norms`")
    compare.add_argument("--seeds", nargs="+", type=int, metavar="N", help="one run per norm and seed")
    compare.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    compare.add_argument("--batch-size", type=int, metavar="N", help="images per step")
    compare.add_argument("--learning-rate", type=float, metavar="X", help="at the first step")
    compare.add_argument("--depth", type=int, metavar="N", help="layers of the wide residual net, 6n + 4")
    compare.add_argument("--widen-factor", type=int, metavar="N", help="multiplies the net's width")
    compare.add_argument("--corruptions", nargs="+", metavar="NAME", help="corruptions to measure under")
    compare.add_argument("--severities", nargs="+", type=int, metavar="N", help="severities, 1 to 5")
    compare.add_argument("--size", type=int, metavar="N", help="side of the images in pixels")
    compare.add_argument("--limit", type=int, metavar="N", help="use at most so many images per class")
    add_on_error(compare)
    compare.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default: cpu)")
    compare.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that train at the same time; 0: this one (default: one per core)",
    )
    compare.add_argument("--threads", type=int, metavar="N", help="torch threads per process (default: 1)")
    compare.set_defaults(run=_compare)

    examples = ["norms", "norms '*mix*'", "norms --plain"]
    norms = add_verb(verbs, common, "norms", help="list the norms", examples=examples)
    add_pattern(norms, "*mix*")
    add_plain(norms)
    norms.set_defaults(run=_list_norms)

    add_recipes_verb(verbs, common)
    add_train_verbs(verbs, common)
    add_evaluate_verbs(verbs, common)
    add_corrupt_verb(verbs, common)
    add_surgery_verbs(verbs, common)
    return parser


def _compare(options: argparse.Namespace) -> int:
    require("compare", *TRAINING, *(() if options.data else ("sklearn",)))
    from shiftnorm.recipe import load_recipe
    from shiftnorm.run import compare

    recipe = load_recipe(options.recipe or ("compare-folder" if options.data else "compare-digits"))
    overrides: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "norms", "seeds", "epochs", "batch_size", "learning_rate", "depth", "widen_factor", "corruptions",
            "severities", "size", "limit", "device", "workers", "threads",
        )
        if getattr(options, name) is not None
    }  # fmt: skip
    places = {"data_dir": options.data, "out_dir": options.out}
    with stopping_politely(), speaking_of_options():
        result = compare(recipe.changed(**overrides), **places, on_error=options.on_error, debug=options.debug)
    print(f"\n{result.table}\nReport: {result.report}")
    if result.failed:
        print(f"shiftnorm: {len(result.failed)} of {len(result.records)} runs failed, see above.", file=sys.stderr)
        return 1
    return 0


def _list_norms(options: argparse.Namespace) -> int:
    norms = _describe_norms()
    names = [name for name in sorted(norms) if fnmatch(name.lower(), options.pattern.lower())]
    if not names:
        raise ValueError(f"norms: none matches {options.pattern!r}; {suggest(options.pattern, norms)}")
    for name in names:
        print(name if options.plain else f"{name:<26}{norms[name]}")
    return 0


def _describe_norms() -> dict[str, str]:
    from shiftnorm import norms

    found: dict[str, str] = {}
    for name in norms.__all__:
        item = getattr(norms, name)
        is_norm = isinstance(item, type) and issubclass(item, norms.NormLayer) and not inspect.isabstract(item)
        # CNSN is a function; the base class and Chain are not methods of their own
        if (is_norm and item not in (norms.NormLayer, norms.Chain)) or name == "CNSN":
            found[name] = (inspect.getdoc(item) or "").partition("\n")[0]
    return found
