"""Recipes: everything that decides a comparison, as a frozen dataclass with a strict YAML form."""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, final

from shiftnorm.variants import check_names, suggest

# Fields that say which runs are made, or how the work is spread, and change nothing inside a run.
_OUTSIDE_A_RUN: Final = frozenset({"norms", "seeds", "workers", "threads"})

_LOWEST: Final = {
    "depth": 10, "widen_factor": 1, "epochs": 1, "batch_size": 2, "weight_decay": 0, "shift": 0, "size": 8, "limit": 2,
    "workers": 0, "threads": 1,
}  # fmt: skip


@final
@dataclass(frozen=True)
class CompareRecipe:
    """What `compare` trains and measures.

    Example:
        >>> recipe = CompareRecipe(norms=("BatchNorm", "SelfNorm"), corruptions=("contrast",), epochs=2)
        >>> recipe.changed(epochs=3).epochs
        3

    Args:
        norms: variants to compare, see `shiftnorm.variants.VARIANTS`; BatchNorm is always among them.
        seeds: one run per norm and seed.
        corruptions: names from `shiftnorm.data.CORRUPTIONS`.
        severities: 1 to 5.
        corruption_seed: the same for all runs, so that all see the same pixels.
        depth: layers of the wide residual net, 6n + 4.
        widen_factor: multiplies its width.
        dropout: inside its blocks.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: at the first step; falls to 0 along a cosine.
        momentum: of SGD.
        weight_decay: of SGD.
        shift: largest random shift in pixels.
        flip: whether half of the training images are mirrored; leave it off where left and right mean something.
        size: side of the square images in pixels.
        test_fraction: share held out for testing where a folder has no train and test parts.
        limit: use at most so many images per class, and per part where train and test are apart; None for all.
        device: "cpu" or "cuda".
        channels_last: memory format of network and batches.
        workers: processes that train at the same time; 0 to train in this one; None for one per core, one on cuda.
        threads: torch threads per process.

    Raises:
        ValueError: for a value outside its range, an unknown norm or corruption.
        TypeError: for a value of the wrong type.
    """

    norms: tuple[str, ...]
    corruptions: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1)
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    corruption_seed: int = 0
    depth: int = 10
    widen_factor: int = 1
    dropout: float = 0.0
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 4
    flip: bool = False
    size: int = 32
    test_fraction: float = 0.2
    limit: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    channels_last: bool = True
    workers: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            object.__setattr__(self, name, _convert(f"recipe field {name}", getattr(self, name), hint))
        from shiftnorm.data.corruptions import CORRUPTIONS

        object.__setattr__(self, "norms", check_names(self.norms))
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise ValueError(f"unknown corruption {name!r}; {suggest(name, CORRUPTIONS)}")
            if name == "frost":
                raise ValueError(
                    "corruption 'frost' needs photographs that a recipe cannot name; use frost_procedural."
                )
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"recipe field {name}: expected at least {low}, got {value}.")
        for name, low, high in (("momentum", 0, 1), ("test_fraction", 0, 1), ("learning_rate", 0, math.inf)):
            if not low < getattr(self, name) < high:
                raise ValueError(
                    f"recipe field {name}: expected a value in ({low}, {high}), got {getattr(self, name)}."
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recipe field dropout: expected a value in [0, 1), got {self.dropout}.")
        if (self.depth - 4) % 6:
            raise ValueError(f"recipe field depth: expected 6n + 4 (10, 16, 22, 28, 40 ...), got {self.depth}.")
        if set(self.severities) - {1, 2, 3, 4, 5}:
            raise ValueError(f"recipe field severities: expected numbers from 1 to 5, got {list(self.severities)}.")
        for name in ("seeds", "corruptions", "severities"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"recipe field {name}: expected one or more different values, got {list(values)}.")

    def changed(self, **values: object) -> CompareRecipe:
        """A copy with other values, checked again."""
        _check_fields(values, "recipe")
        return replace(self, **typing.cast("dict[str, Any]", values))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists, numbers and strings."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def run_key(self, norm: str, seed: int, data_sha256: str, version: str) -> str:
        """Digest of all that decides the numbers of one run.

        Norms, seeds, workers and threads are left out: a comparison with more norms reuses the runs it already has.
        """
        inside = {name: value for name, value in self.to_dict().items() if name not in _OUTSIDE_A_RUN}
        content = {"recipe": inside, "norm": norm, "seed": seed, "data": data_sha256, "version": version}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def list_recipes() -> dict[str, str]:
    """The recipes that come with the package.

    Example:
        >>> "compare-digits" in list_recipes()
        True

    Returns:
        Name to YAML text.
    """
    folder = files("shiftnorm") / "recipes"
    return {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".yaml")
    }


def load_recipe(name: str | Path) -> CompareRecipe:
    """Read a recipe: one that comes with the package by its name, any other by its file.

    Example:
        >>> load_recipe("compare-digits").norms[0]
        'BatchNorm'

    Args:
        name: a name from `list_recipes`, or the path of a YAML file.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: if there is neither such a recipe nor such a file.
        ValueError: for text that is no YAML mapping, unknown or repeated keys, or bad values.
        TypeError: for values of the wrong type.
    """
    packaged = list_recipes()
    if str(name) in packaged:
        return parse_recipe(packaged[str(name)], str(name))
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {str(name)!r}: expected a file or one of {', '.join(packaged)}.")
    return parse_recipe(path.read_text(encoding="utf-8"), path.name)


def parse_recipe(text: str, source: str) -> CompareRecipe:
    """Read a recipe from YAML text, refusing whatever it does not know.

    Example:
        >>> parse_recipe("norms: [SelfNorm]\\ncorruptions: [contrast]\\nepoch: 3", "mine.yaml")
        Traceback (most recent call last):
            ...
        ValueError: mine.yaml: unknown key 'epoch'; did you mean epochs, depth?

    Args:
        text: the YAML.
        source: what errors call it.

    Returns:
        The recipe.

    Raises:
        ValueError: for text that is no YAML mapping, unknown, repeated or missing keys, or bad values.
        TypeError: for values of the wrong type.
    """
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise ValueError(f"{source}: expected YAML, got text that is not: {' '.join(str(fault).split())}") from fault
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{source}: expected 'key: value' lines, got {type(content).__name__}.")
    keys = [key.value for key, _ in node.value]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{source}: the key {repeated[0]!r} appears more than once; keep one.")
    _check_fields(content, source)
    if missing := [name for name in ("norms", "corruptions") if name not in content]:
        raise ValueError(f"{source}: the keys {', '.join(missing)} are missing.")
    try:
        return CompareRecipe(**content)
    except (TypeError, ValueError) as fault:
        raise type(fault)(f"{source}: {fault}") from fault


def _check_fields(values: Iterable[Any], source: str) -> None:
    known = [item.name for item in fields(CompareRecipe)]
    for name in values:
        if name not in known:
            raise ValueError(f"{source}: unknown key {name!r}; {suggest(str(name), known)}")


def _convert(what: str, value: Any, hint: Any) -> Any:
    """The value as the hinted type where that loses nothing, else a TypeError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(what, value, inner[0])
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{what}: expected a list, got {value!r}.")
        return tuple(_convert(what, item, inner[0]) for item in value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{what}: expected one of {', '.join(map(repr, inner))}, got {value!r}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        advice = " YAML reads 1e-3 as text: write 1.0e-3." if hint is float and isinstance(value, str) else ""
        raise TypeError(f"{what}: expected {hint.__name__}, got {value!r}.{advice}")
    return value
