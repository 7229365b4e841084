"""Recipes as files: those that come with the package, those of a user, and what they extend.

A file may say ``extends: NAME``, a recipe of the package by name or a file beside it (``extends: base.yaml``), and then
states what differs: mappings merge, everything else replaces. A base is a recipe too, complete by itself.

    from shiftnorm.recipe_tree import difference, override, to_yaml
    from shiftnorm.train_recipe import load_train_recipe

    recipe = override(load_train_recipe("cifar10/wrn40_2/cnsn"), ["loop.epochs=2"])
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

from shiftnorm.near_names import suggest
from shiftnorm.recipe_tree import build
from shiftnorm.recipe_yaml import parse

__all__ = ["COMMANDS", "Level", "list_recipes", "load_as", "merge", "resolve", "text_of"]


class _Recipe(Protocol):
    kind: ClassVar[str]


Recipe = TypeVar("Recipe", bound=_Recipe)

COMMANDS: Final = {"compare": "shiftnorm compare --recipe {}", "train": "shiftnorm train {}"}


class Level(NamedTuple):
    """A recipe or one that it extends.

    Example:
        >>> [level.name for level in resolve("cifar10/wrn40_2/cn")]
        ['cifar10/wrn40_2/base', 'cifar10/wrn40_2/cn']

    Args:
        name: the recipe's name or its file.
        kind: "compare" or "train".
        mapping: its values, with those of the levels before it.
    """

    name: str
    kind: str
    mapping: dict[str, Any]


def list_recipes() -> dict[str, str]:
    """The recipes that come with the package.

    Example:
        >>> "compare-digits" in list_recipes(), "cifar10/wrn40_2/cnsn" in list_recipes()
        (True, True)

    Returns:
        Name to YAML text, sorted by name.
    """
    return dict(_packaged())


@cache
def _packaged() -> Mapping[str, str]:
    found: dict[str, str] = {}

    def walk(folder: Any, prefix: str) -> None:
        for item in folder.iterdir():
            if item.is_dir():
                walk(item, f"{prefix}{item.name}/")
            elif item.name.endswith(".yaml"):
                found[prefix + item.name.removesuffix(".yaml")] = item.read_text(encoding="utf-8")

    walk(files("shiftnorm") / "recipes", "")
    return dict(sorted(found.items()))


def text_of(name: str | Path) -> str:
    """The text of a recipe as written.

    Example:
        >>> text_of("compare-digits").splitlines()[0]
        '# shiftnorm compare --recipe compare-digits'

    Args:
        name: a name from `list_recipes`, or the path of a YAML file.

    Returns:
        The YAML.

    Raises:
        FileNotFoundError: if there is neither such a recipe nor such a file.
    """
    packaged = _packaged()
    if str(name) in packaged:
        return packaged[str(name)]
    if not Path(name).is_file():
        raise FileNotFoundError(f"no recipe {str(name)!r}; {_near(str(name))}")
    return Path(name).read_text(encoding="utf-8")


def _near(name: str) -> str:
    names = [*_packaged()]
    wanted = name.casefold().removesuffix(".yaml")
    near = [each for each in names if each.rpartition("/")[2] == wanted][:5]
    near = near or difflib.get_close_matches(wanted, names, n=5, cutoff=0.7)
    near = near or difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    return (
        f"did you mean {', '.join(near)}?"
        if near
        else "expected a YAML file, or a name that `shiftnorm recipes` lists."
    )


def resolve(name: str | Path, text: str | None = None) -> list[Level]:
    """A recipe with everything it extends, from the outermost base to itself.

    Example:
        >>> resolve("cifar10/wrn40_2/cn")[-1].mapping["data"]["name"]
        'cifar10'

    Args:
        name: a name from `list_recipes`, or the path of a YAML file.
        text: its YAML, where it is at hand.

    Returns:
        The levels; the last one is the recipe.

    Raises:
        FileNotFoundError: if it, or what it extends, is not there.
        ValueError: for text that is no YAML mapping, repeated keys, a circle, or an unknown kind.
    """
    place = str(name)
    written: dict[str, dict[str, Any]] = {}
    while True:
        content = parse(text_of(place) if text is None else text, place)
        base = content.pop("extends", None)
        written[place] = content
        if base is None:
            break
        if not isinstance(base, str):
            raise ValueError(f"{place}: extends: expected the name of one recipe, got {base!r}.")
        below, text = _base(place, base), None
        if any(_same(below, each) for each in written):
            raise ValueError(f"{name}: extends goes in a circle: {' -> '.join([*written, below])}.")
        place = below
    return _merged([*reversed(written.items())])


def _same(one: str, other: str) -> bool:
    packaged = _packaged()
    return one == other or (not {one, other} & packaged.keys() and Path(one).resolve() == Path(other).resolve())


def _base(place: str, base: str) -> str:
    """What a recipe means by the one it extends."""
    packaged = _packaged()
    if base in packaged:
        return base
    beside = Path(place).parent / base
    if place not in packaged and beside.is_file():
        return str(beside)
    looked = "" if place in packaged else f" There is no file {beside} either."
    raise FileNotFoundError(f"{place}: extends: no recipe {base!r}; {_near(base)}{looked}")


def _merged(written: list[tuple[str, dict[str, Any]]]) -> list[Level]:
    levels: list[Level] = []
    for place, content in written:
        before = levels[-1].kind if levels else "compare"  # recipes of earlier versions name no kind
        kind = content.pop("kind", before)
        if kind not in COMMANDS:
            raise ValueError(f"{place}: kind: unknown kind {kind!r}; {suggest(str(kind), COMMANDS)}")
        if levels and kind != before:
            raise ValueError(f"{place}: kind: expected {before!r} as in what it extends, got {kind!r}.")
        levels.append(Level(place, kind, merge(levels[-1].mapping, content) if levels else content))
    return levels


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the values of another one put over it: mappings merge, everything else replaces.

    Example:
        >>> merge({"loop": {"epochs": 3, "seed": 1}, "list": [1, 2]}, {"loop": {"epochs": 4}, "list": [3]})
        {'loop': {'epochs': 4, 'seed': 1}, 'list': [3]}

    Args:
        base: the mapping.
        over: what counts more.

    Returns:
        A new mapping.
    """
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def load_as(tree: type[Recipe], name: str | Path, text: str | None = None) -> Recipe:
    """Read a recipe of one kind, and check it and everything it extends.

    Example:
        >>> from shiftnorm.train_recipe import TrainRecipe
        >>> load_as(TrainRecipe, "compare-digits")
        Traceback (most recent call last):
        ...
        ValueError: compare-digits: expected a recipe of kind 'train', got 'compare'; run it with: shiftnorm compare ...

    Args:
        tree: the dataclass of its kind.
        name: a name from `list_recipes`, or the path of a YAML file.
        text: its YAML, where it is at hand.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: if it, or what it extends, is not there.
        ValueError: for another kind, unknown, repeated or missing keys, or bad values.
        TypeError: for values of the wrong type.
    """
    levels = resolve(name, text)
    if levels[-1].kind != tree.kind:
        command = COMMANDS[levels[-1].kind].format(name)
        raise ValueError(
            f"{name}: expected a recipe of kind {tree.kind!r}, got {levels[-1].kind!r}; run it with: {command}"
        )
    # from the base on, so that an error names the file it is in
    return [build(tree, level.mapping, level.name) for level in levels][-1]
