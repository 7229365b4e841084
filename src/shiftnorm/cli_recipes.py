"""The verb recipes: list them, show one, copy one to change it."""

from __future__ import annotations

import argparse
import fnmatch
import shlex
from pathlib import Path
from typing import Any

from shiftnorm.cli_verb import add_pattern, add_plain, add_verb

__all__ = ["add_recipes_verb"]

_EXAMPLES = ("compare-digits", "small/cnsn")


def add_recipes_verb(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb recipes with its actions list, show and copy.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_recipes_verb(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        >>> parser.parse_args(["recipes", "show", "small/cnsn", "--short"]).short
        True

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
    """
    recipes = add_verb(
        verbs,
        common,
        "recipes",
        help="list the recipes, show one, or copy one",
        description="Recipes are YAML files that say everything about a comparison or a training run. Without an "
        "action they are listed.",
        examples=[
            "recipes list 'cifar10/*'",
            "recipes show small/cnsn",
            "recipes copy small/cnsn mine.yaml",
        ],
    )
    recipes.set_defaults(run=_list, pattern="*", plain=False)
    actions = recipes.add_subparsers(dest="action", metavar="ACTION")
    listing = add_verb(
        actions,
        common,
        "list",
        help="list the recipes by what runs them",
        examples=["recipes list", "recipes list '*/wrn40_2/*'", "recipes list --plain"],
    )
    add_pattern(listing, "small/*")
    add_plain(listing)
    listing.set_defaults(run=_list)
    show = add_verb(
        actions,
        common,
        "show",
        help="print a recipe with every value it has",
        description="Print a recipe with every value it has, as a run keeps it: what it states, what it takes from the "
        "recipes it extends, and the defaults.",
        examples=[
            "recipes show cifar10/wrn40_2/cnsn",
            "recipes show cifar10/wrn40_2/cnsn --short",
            "recipes show mine.yaml",
        ],
    )
    show.add_argument("name", nargs="?", metavar="NAME", help="a recipe by name, or a YAML file")
    show.add_argument("--short", action="store_true", help="as written: only what differs from what it extends")
    show.set_defaults(run=_show)
    copy = add_verb(
        actions,
        common,
        "copy",
        help="write a recipe to a new file, to change it there",
        description="Write a recipe to a new file, to change it there. The copy goes on extending the recipe's base by "
        "name, unless every value is asked for.",
        examples=[
            "recipes copy small/cnsn mine.yaml",
            "recipes copy cifar10/wrn40_2/cnsn mine.yaml --resolved",
        ],
    )
    copy.add_argument("name", nargs="?", metavar="NAME", help="a recipe by name, or a YAML file")
    copy.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the file to write; it must not exist")
    copy.add_argument("--resolved", action="store_true", help="write every value, and extend nothing")
    copy.set_defaults(run=_copy)


def _list(options: argparse.Namespace) -> int:
    from shiftnorm.near_names import suggest
    from shiftnorm.recipe_files import COMMANDS, list_recipes, resolve

    recipes = list_recipes()
    names = [name for name in recipes if fnmatch.fnmatchcase(name, options.pattern)]
    if not names:
        raise ValueError(f"recipes: none matches {options.pattern!r}; {suggest(options.pattern, _folders(recipes))}")
    if options.plain:
        print("\n".join(names))
        return 0
    width = max(map(len, names)) + 4
    last = {name: resolve(name)[-1] for name in names}
    for kind, command in COMMANDS.items():
        of_kind = [name for name in names if last[name].kind == kind]
        if not of_kind:
            continue
        print(f"{command.format('NAME')}")
        folder = of_kind[0].rpartition("/")[0]
        for name in of_kind:
            if name.rpartition("/")[0] != folder:
                folder = name.rpartition("/")[0]
                print()
            print(f"  {name:<{width}}{last[name].mapping.get('summary') or _comment(recipes[name])}")
        print()
    examples = ", ".join(COMMANDS[resolve(name)[-1].kind].format(name) for name in _EXAMPLES)
    print(f"Run one: {examples}. See one: shiftnorm recipes show NAME")
    return 0


def _folders(names: Any) -> list[str]:
    return [*dict.fromkeys(f"{name.rpartition('/')[0]}/*" if "/" in name else name for name in names)]


def _comment(text: str) -> str:
    """What a recipe without a summary says of itself, in the comment under its command."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines()[1:] if line.startswith("#")]
    return next((line for line in lines if line), "")


def _load(name: str) -> Any:
    from shiftnorm.recipe import load_recipe
    from shiftnorm.recipe_files import resolve
    from shiftnorm.train_recipe import load_train_recipe

    return (load_recipe if resolve(name)[-1].kind == "compare" else load_train_recipe)(name)


def _resolved(name: str) -> str:
    """A recipe with all its values, under a comment that says where they come from."""
    from shiftnorm.recipe_files import COMMANDS, resolve
    from shiftnorm.recipe_tree import to_yaml

    recipe, (*bases, level) = _load(name), resolve(name)
    origin = f"# Every value of {level.name}" + "".join(f", which extends {base.name}" for base in reversed(bases))
    return f"{_header(name) or f'# {COMMANDS[level.kind].format(name)}'}\n{origin}.\n{to_yaml(recipe)}"


def _header(name: str) -> str | None:
    from shiftnorm.recipe_files import text_of

    first = text_of(name).partition("\n")[0]
    return first if first.startswith("# shiftnorm ") else None


def _show(options: argparse.Namespace) -> int:
    from shiftnorm.recipe_files import text_of

    if options.name is None:
        raise ValueError("recipes show: expected a name, got none; `shiftnorm recipes` lists them.")
    _load(options.name)  # so that one with a mistake is not shown as if it had none
    print(text_of(options.name) if options.short else _resolved(options.name), end="")
    return 0


def _copy(options: argparse.Namespace) -> int:
    from shiftnorm.recipe_files import list_recipes, resolve, text_of

    if options.name is None or options.file is None:
        raise ValueError("recipes copy: expected NAME FILE, such as: shiftnorm recipes copy small/cnsn mine.yaml")
    name, file = str(options.name), options.file
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"recipes copy: expected a file that ends in .yaml, got {str(file)!r}.")
    levels = resolve(name)
    # a base beside a file is not found from elsewhere
    apart = any(level.name not in list_recipes() for level in levels[:-1])
    text = _resolved(name) if options.resolved or apart else text_of(name)
    header, _, rest = text.partition("\n")
    if header.startswith("# shiftnorm "):
        text = f"{header.replace(name, shlex.quote(str(file)))}\n{rest}"
    _load(name)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise FileExistsError(f"recipes copy: {file} is there already, and is kept; name another file.") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"recipes copy: there is no folder {file.parent}; make it, or name another.") from None
    print(f"{file}: a copy of {name}; run it with: {text.partition(chr(10))[0].removeprefix('# ')}")
    return 0
