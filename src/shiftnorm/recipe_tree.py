"""Strict trees of frozen dataclasses: made from plain data, checked, changed by one value, printed back.

``build`` makes a mapping a tree and refuses whatever it does not know, ``override`` changes values by dotted path,
``to_yaml`` prints a tree so that it can be read again, and ``difference`` says by which values two trees differ. YAML
text is the matter of ``shiftnorm.recipe_yaml``, files and ``extends`` that of ``shiftnorm.recipe_files``.

A dataclass of a tree calls ``check_types(self)`` in its ``__post_init__`` and raises ``ValueError`` with texts
such as ``"CLASS: FIELD: expected ..., got ..."``, by way of ``refuse``; ``build`` puts file and path in front.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NoReturn, TypeVar, cast

from shiftnorm.near_names import suggest
from shiftnorm.recipe_yaml import PLAIN, parse_value, write

__all__ = ["build", "check_ranges", "check_types", "difference", "override", "refuse", "to_mapping", "to_yaml"]

Tree = TypeVar("Tree")


def build(tree: type[Tree], mapping: Mapping[str, Any], source: str) -> Tree:
    """Make a tree of dataclasses from plain data, refusing whatever it does not know.

    Example:
        >>> from shiftnorm.train_recipe import TrainRecipe
        >>> build(TrainRecipe, {"summary": "mine", "optimizer": {"learning_rat": 0.1}}, "mine.yaml")
        Traceback (most recent call last):
        ...
        ValueError: mine.yaml: unknown key 'optimizer.learning_rat'; did you mean optimizer.learning_rate, ...?

    Args:
        tree: the dataclass.
        mapping: its fields; those of nested dataclasses as mappings.
        source: what errors call it.

    Returns:
        The tree.

    Raises:
        ValueError: for unknown or missing keys, or values out of range.
        TypeError: for values of the wrong type.
    """
    return _build(tree, mapping, source, "", tree)


def check_types(tree: Any) -> None:
    """Convert the fields of a frozen dataclass to their types where that loses nothing; for ``__post_init__``.

    A list becomes a tuple, a whole number a float, a mapping a nested dataclass.

    Example:
        >>> from shiftnorm.train_recipe import LoopRecipe
        >>> LoopRecipe(epochs=2.5)
        Traceback (most recent call last):
        ...
        TypeError: LoopRecipe: epochs: expected int, got 2.5.

    Args:
        tree: a dataclass instance, which is changed.

    Raises:
        TypeError: for a value of another type.
        ValueError: for one that is none of the choices.
    """
    for name, hint in _hints(type(tree)).items():
        value = _convert(getattr(tree, name), hint, type(tree).__name__, name, type(tree))
        object.__setattr__(tree, name, value)


def check_ranges(tree: Any, **intervals: str) -> None:
    """Refuse numbers outside an interval; for ``__post_init__``. None lies inside.

    Example:
        >>> from shiftnorm.train_recipe import LoopRecipe
        >>> check_ranges(LoopRecipe(), epochs="[200, inf)")
        Traceback (most recent call last):
        ...
        ValueError: LoopRecipe: epochs: expected at least 200, got 100.

    Args:
        tree: the dataclass instance.
        intervals: for fields by name, such as "[0, 1)".

    Raises:
        ValueError: for the first value that lies outside.
    """
    for field, interval in intervals.items():
        value = getattr(tree, field)
        low, high = (float(end) for end in interval[1:-1].split(","))
        if (
            value is None
            or low < value < high
            or (value, interval[0]) == (low, "[")
            or (value, interval[-1]) == (high, "]")
        ):
            continue
        open_end = interval[0] == "[" and interval.endswith(" inf)")
        refuse(tree, field, f"at least {low:g}" if open_end else f"a value in {interval}")


def refuse(tree: Any, field: str, expected: str, advice: str = "") -> NoReturn:
    """Raise the error for a field whose value is out of range.

    Example:
        >>> from shiftnorm.train_recipe import LoopRecipe
        >>> refuse(LoopRecipe(), "epochs", "at least 200")
        Traceback (most recent call last):
        ...
        ValueError: LoopRecipe: epochs: expected at least 200, got 100.

    Args:
        tree: the dataclass instance.
        field: the name of the field.
        expected: what would be right.
        advice: a sentence on what to do.

    Raises:
        ValueError: always.
    """
    value = to_plain(getattr(tree, field))
    raise ValueError(f"{type(tree).__name__}: {field}: expected {expected}, got {value!r}.{advice and ' '}{advice}")


def to_mapping(tree: Any) -> dict[str, Any]:
    """A tree as plain data, which ``build`` reads.

    Example:
        >>> from shiftnorm.train_recipe import LossRecipe
        >>> to_mapping(LossRecipe(mixup=0.2))
        {'label_smoothing': 0.0, 'mixup': 0.2, 'cutmix': 0.0}

    Args:
        tree: a dataclass instance.

    Returns:
        Fields by name: mappings, lists, numbers, text.
    """
    return {name: to_plain(getattr(tree, name)) for name in _hints(type(tree))}


def to_plain(value: Any) -> Any:
    """A value of a tree as plain data.

    Example:
        >>> to_plain((1, 2))
        [1, 2]
    """
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def to_yaml(tree: Any) -> str:
    """A whole tree as YAML that can be read again; a class with a ``kind`` states it first.

    Example:
        >>> from shiftnorm.train_recipe import LossRecipe
        >>> print(to_yaml(LossRecipe(label_smoothing=0.1)))
        label_smoothing: 0.1
        mixup: 0.0
        cutmix: 0.0

    Args:
        tree: a dataclass instance.

    Returns:
        The text.
    """
    kind = {"kind": tree.kind} if hasattr(type(tree), "kind") else {}
    return write({**kind, **to_mapping(tree)})


def override(tree: Tree, settings: Iterable[str], source: str = "--set") -> Tree:
    """A tree with other values, given as ``a.b=c`` with c in YAML.

    Example:
        >>> from shiftnorm.train_recipe import TrainRecipe
        >>> recipe = override(TrainRecipe(summary="mine"), ["loop.epochs=2", "evaluate.severities=[3, 5]"])
        >>> recipe.loop.epochs, recipe.evaluate.severities
        (2, (3, 5))

    Args:
        tree: a dataclass instance.
        settings: of keys and values; a list or a mapping of arguments is replaced as a whole.
        source: what errors call them.

    Returns:
        A new tree, checked again.

    Raises:
        ValueError: for a setting without "=", unknown keys, a group of keys, a key given twice, or bad values.
        TypeError: for values of the wrong type.
    """
    mapping = to_mapping(tree)
    done: set[str] = set()
    for setting in settings:
        path, equals, text = setting.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ValueError(f"{source}: expected KEY=VALUE such as loop.epochs=3, got {setting!r}.")
        if path in done:
            raise ValueError(f"{source}: the key {path!r} appears more than once; keep one.")
        done.add(path)
        value = parse_value(text, f"{source} {path}")
        *outer, last = path.split(".")
        place: Any = mapping
        for name in outer:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        paths = [*_paths(type(tree))]
        if not isinstance(place, dict):
            whole = next((each for each in paths if path.startswith(f"{each}.")), outer[0])
            raise ValueError(f"{source}: {path}: {whole} has no keys to set; give its whole value.")
        if group := [each for each in paths if each.startswith(f"{path}.")]:
            raise ValueError(f"{source}: {path} is a group of keys; set them one by one, such as {group[0]}=...")
        place[last] = value
    return build(cast("type[Tree]", type(tree)), mapping, source)


def difference(tree: Any, base: Any) -> dict[str, Any]:
    """The values by which a tree differs from another one of its class.

    Example:
        >>> from shiftnorm.train_recipe import TrainRecipe
        >>> base = TrainRecipe(summary="mine")
        >>> difference(override(base, ["loop.epochs=2"]), base)
        {'loop.epochs': 2}

    Args:
        tree: a dataclass instance.
        base: what it is compared with.

    Returns:
        Plain values by dotted path: ``override(base, [f"{path}={value in YAML}", ...])`` is the tree.

    Raises:
        TypeError: if they are of different classes.
    """
    if type(tree) is not type(base):
        raise TypeError(f"difference: expected two of a class, got {type(tree).__name__} and {type(base).__name__}.")
    found: dict[str, Any] = {}
    for name in _hints(type(tree)):
        mine, theirs = getattr(tree, name), getattr(base, name)
        if dataclasses.is_dataclass(mine) and dataclasses.is_dataclass(theirs):
            found.update({f"{name}.{path}": value for path, value in difference(mine, theirs).items()})
        elif mine != theirs:
            found[name] = to_plain(mine)
    return found


@functools.cache
def _hints(tree: type) -> dict[str, Any]:
    hints = typing.get_type_hints(tree)
    return {field.name: hints[field.name] for field in dataclasses.fields(tree)}


def _paths(tree: type) -> Iterator[str]:
    """Every key of a tree by its dotted path, those of nested dataclasses in place of them."""
    for name, hint in _hints(tree).items():
        if dataclasses.is_dataclass(hint):
            yield from (f"{name}.{path}" for path in _paths(cast(type, hint)))
        else:
            yield name


def _build(tree: type[Tree], mapping: Any, source: str, path: str, root: type) -> Tree:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{source}: {path.removesuffix('.')}: expected a mapping, got {mapping!r}.")
    hints = _hints(tree)
    for key in mapping:
        if key not in hints:
            raise ValueError(f"{source}: unknown key {f'{path}{key}'!r}; {_suggest(str(key), hints, path, root)}")
    missing = [
        f"{path}{field.name}"
        for field in dataclasses.fields(cast(Any, tree))
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in mapping
    ]
    if missing:
        raise ValueError(f"{source}: the keys {', '.join(missing)} are missing.")
    values = {key: _convert(value, hints[key], source, f"{path}{key}", root) for key, value in mapping.items()}
    try:
        return tree(**values)
    except (TypeError, ValueError) as fault:
        raise type(fault)(f"{source}: {path}{str(fault).removeprefix(f'{tree.__name__}: ')}") from fault


def _suggest(key: str, hints: Mapping[str, Any], path: str, root: type) -> str:
    elsewhere = [each for each in _paths(root) if each.rpartition(".")[2] == key]
    if elsewhere:  # the right key in the wrong group
        return f"did you mean {', '.join(elsewhere[:3])}?"
    advice = suggest(key, hints)
    if not path:
        return advice
    start, names = ("known: ", advice[7:-1]) if advice.startswith("known: ") else ("did you mean ", advice[13:-1])
    return f"{start}{', '.join(f'{path}{name}' for name in names.split(', '))}{advice[-1]}"


def _convert(value: Any, hint: Any, source: str, path: str, root: type) -> Any:
    """The value as the hinted type where that loses nothing, else an error."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_to_one_of(value, inner, source, path, root)
    expected = f"{source}: {path}: expected {_describe(hint)}, got {value!r}."
    if origin is Literal:
        # YAML reads the word 16 as a number
        text = str(value) if type(value) is int else value
        if not isinstance(text, str) or text not in inner:
            raise ValueError(expected)
        return text
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(expected)
        return tuple(_convert(item, inner[0], source, f"{path}[{index}]", root) for index, item in enumerate(value))
    if origin is dict:
        return _free(value, expected, source, path)
    if dataclasses.is_dataclass(hint):
        nested = cast(type, hint)
        return value if isinstance(value, nested) else _build(nested, value, source, f"{path}.", root)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise TypeError(expected + (_advise_on_text(value) if hint is float and isinstance(value, str) else ""))
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{source}: {path}: expected a finite number, got {value}.")
    return value


def _advise_on_text(text: str) -> str:
    """What to write for a number that YAML takes for text because it has an exponent and no point."""
    match = re.fullmatch(r"([+-]?\d+)\.?[eE]([+-]?)(\d+)", text)
    if match is None:
        return ""
    return f" YAML reads {text} as text: write {match[1]}.0e{match[2] or '+'}{match[3]}."


def _convert_to_one_of(value: Any, hints: tuple[Any, ...], source: str, path: str, root: type) -> Any:
    if value is None and type(None) in hints:
        return None
    others = [hint for hint in hints if hint is not type(None)]
    lists = [hint for hint in others if typing.get_origin(hint) is tuple]
    if len(others) == 1 or (lists and isinstance(value, list | tuple)):
        return _convert(value, (lists or others)[0], source, path, root)
    for hint in others:
        try:
            return _convert(value, hint, source, path, root)
        except (TypeError, ValueError):
            continue
    names = " or ".join(map(_describe, others))
    raise TypeError(f"{source}: {path}: expected {names}, got {value!r}.")


def _free(value: Any, expected: str, source: str, path: str) -> dict[str, Any]:
    """A copy of a mapping without a schema, of plain data at every depth."""
    if not isinstance(value, Mapping):
        raise TypeError(expected)
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{source}: {path}: expected names as keys, got {key!r}.")
        for leaf in _leaves(item):
            if type(leaf) not in PLAIN:
                raise TypeError(f"{source}: {path}.{key}: expected numbers, text, lists or mappings, got {leaf!r}.")
    return to_plain(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _describe(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(repr, inner))
    if origin is tuple:
        return f"a list of {_describe(inner[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return hint.__name__
