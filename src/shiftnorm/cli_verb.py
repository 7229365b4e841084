"""How a verb of the command line is added, arguments that several verbs take, and the packages they need."""

from __future__ import annotations

import argparse
import importlib.util
import textwrap
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["TRAINING", "add_pattern", "add_plain", "add_verb", "require"]

# What verbs that train need beyond the core install, all of the extra [train].
TRAINING: Final = ("lightning", "torchvision", "jinja2", "yaml", "tqdm", "safetensors")
# Packages that are imported by another name than they are installed by.
_DISTRIBUTIONS: Final = {"yaml": "pyyaml", "sklearn": "scikit-learn"}


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
