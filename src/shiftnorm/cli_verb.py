"""What verbs of the command line share: how one is added, arguments, packages, the words of errors, a polite end."""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

__all__ = [
    "TRAINING",
    "add_on_error",
    "add_pattern",
    "add_plain",
    "add_verb",
    "require",
    "speaking_of_options",
    "stopping_politely",
]

# What verbs that train need beyond the core install, all of the extra [train].
TRAINING: Final = ("lightning", "torchvision", "jinja2", "yaml", "tqdm", "safetensors")
# Packages that are imported by another name than they are installed by.
_DISTRIBUTIONS: Final = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}

# What Python callers pass by these names is an option here.
_ARGUMENTS = (
    *(
        "frost_dir",
        "batch_size",
        "constants",
        "storage",
        "severities",
        "corruptions",
        "normalize",
        "preprocess",
        "split",
    ),
    *("on_error", "root", "domain", "wnids", "out", "amp", "seed", "bootstrap", "download", "workers", "baseline"),
    *("clean", "perturbations", "difficulty", "limit"),
)
_FUNCTIONS = (
    "load_folder|robustness|measure_stability|open_dataset|open_corrupted|open_sequences|corrupt|choose_corruptions|"
    "build_model|Result"
)


def add_verb(
    verbs: Any, common: argparse.ArgumentParser, name: str, *, help: str, description: str = "", examples: Sequence[str]
) -> argparse.ArgumentParser:
    """Add a verb whose ``--help`` ends with worked examples.

    Example:
        >>> verbs = argparse.ArgumentParser(prog="shiftnorm").add_subparsers()
        >>> verb = add_verb(verbs, argparse.ArgumentParser(add_help=False), "sing", help="sing", examples=["sing -v"])
        >>> print(verb.epilog)
        examples:
          shiftnorm sing -v

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
        name: of the verb.
        help: one line of the list of verbs.
        description: of the verb's own help; ``help`` without one.
        examples: command lines without the program's name.

    Returns:
        The verb's parser.
    """
    return verbs.add_parser(
        name,
        parents=[common],
        help=help,
        description=textwrap.fill(description or f"{help[0].upper()}{help[1:]}.", 78, break_on_hyphens=False),
        epilog="\n".join(["examples:", *(f"  shiftnorm {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_pattern(verb: argparse.ArgumentParser, such_as: str) -> None:
    """Add the argument by which a verb that lists names lists only some.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_pattern(parser, "ibn*")
        >>> parser.parse_args([]).pattern, parser.parse_args(["ibn*"]).pattern
        ('*', 'ibn*')

    Args:
        verb: the parser of a verb.
        such_as: a pattern, for the help.
    """
    verb.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=f"such as '{such_as}' (default: all)")


def add_plain(verb: argparse.ArgumentParser) -> None:
    """Add the option by which a verb that lists names leaves out everything else.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_plain(parser)
        >>> parser.parse_args(["--plain"]).plain
        True

    Args:
        verb: the parser of a verb.
    """
    verb.add_argument("--plain", action="store_true", help="names only, one per line")


def require(verb: str, *modules: str) -> None:
    """Refuse to begin if a package is not installed.

    Example:
        >>> require("report", "no_such_package")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: report needs no_such_package. Install with: pip install "shiftnorm[train]"

    Args:
        verb: that needs them.
        modules: the packages by the names they are imported by, all of the extra [train].

    Raises:
        ModuleNotFoundError: if one is missing.
    """
    missing = [_DISTRIBUTIONS.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'{verb} needs {", ".join(missing)}. Install with: pip install "shiftnorm[train]"')


def add_on_error(parser: argparse._ActionsContainer) -> None:  # pyright: ignore[reportPrivateUsage]  (no public name)
    """Add the option that says what becomes of files that are no images.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_on_error(parser)
        >>> parser.parse_args(["--on-error", "skip"]).on_error
        'skip'

    Args:
        parser: of a verb, or a group of its options.
    """
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise",
        help="what becomes of unreadable files: an error (default), or left out, counted and named",
    )  # fmt: skip


@contextmanager
def speaking_of_options() -> Iterator[None]:
    """Let errors of functions speak of the options of the command line instead of arguments.

    Example:
        >>> with speaking_of_options():
        ...     raise ValueError("pass frost_dir=, or another normalize='half'")
        Traceback (most recent call last):
        ...
        ValueError: pass --frost-dir, or another --normalize half
    """
    names = "|".join(_ARGUMENTS)
    try:
        yield
    except (ValueError, TypeError, OSError, KeyError) as fault:
        text = str(fault.args[0]) if isinstance(fault, KeyError) and fault.args else str(fault)

        def option(match: re.Match[str]) -> str:
            value = (match[2] or "").strip("'\"")
            return f"--{match[1].replace('_', '-')}" + (f" {value}" if value and value not in ("True", "...") else "")

        text = text.replace("on_missing='skip'", "--partial")
        said = re.sub(rf"\b({names})=('[^']*'|\"[^\"]*\"|True|[.]{{3}})?", option, text)
        said = re.sub(r"(?<=\bpass )(frost_dir|batch_size)()\b", option, said)
        said = re.sub(rf"^(?:{_FUNCTIONS}): ", "", said)
        kind = ValueError if isinstance(fault, KeyError) else type(fault)
        if said == str(fault) and kind is type(fault):
            raise
        try:
            changed = kind(said)
        except TypeError:  # an exception that needs more than a text
            changed = ValueError(said)
        raise changed from fault


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def stopping_politely() -> Iterator[None]:
    """Let being ended, as by a scheduler, be the same as Ctrl-C: what is finished is kept.

    Example:
        >>> with stopping_politely():
        ...     signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        False
    """
    try:
        before = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not in the main thread, where signals do not arrive either
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
