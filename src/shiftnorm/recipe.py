"""Recipes: everything that decides a comparison, as a frozen dataclass with a strict YAML form."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, cast, final

from shiftnorm.near_names import suggest
from shiftnorm.recipe_files import list_recipes, load_as
from shiftnorm.recipe_tree import check_ranges, check_types, refuse, to_mapping
from shiftnorm.variants import check_names

__all__ = ["CompareRecipe", "list_recipes", "load_recipe", "parse_recipe"]

# Fields that say which runs are made, or how the work is spread, and change nothing inside a run.
_OUTSIDE_A_RUN: Final = frozenset({"norms", "seeds", "workers", "threads"})


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

    kind: ClassVar[str] = "compare"

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
        check_types(self)
        from shiftnorm.data.corruptions import CORRUPTIONS

        object.__setattr__(self, "norms", check_names(self.norms))
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise ValueError(f"unknown corruption {name!r}; {suggest(name, CORRUPTIONS)}")
            if name == "frost":
                raise ValueError(
                    "corruption 'frost' needs photographs that a recipe cannot name; use frost_procedural."
                )
        check_ranges(self, depth="[10, inf)", widen_factor="[1, inf)", epochs="[1, inf)", batch_size="[2, inf)")
        check_ranges(self, weight_decay="[0, inf)", shift="[0, inf)", size="[8, inf)", limit="[2, inf)")
        check_ranges(self, workers="[0, inf)", threads="[1, inf)", dropout="[0, 1)")
        check_ranges(self, momentum="(0, 1)", test_fraction="(0, 1)", learning_rate="(0, inf)")
        if (self.depth - 4) % 6:
            refuse(self, "depth", "6n + 4 (10, 16, 22, 28, 40 ...)")
        if set(self.severities) - {1, 2, 3, 4, 5}:
            refuse(self, "severities", "numbers from 1 to 5")
        for name in ("seeds", "corruptions", "severities"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                refuse(self, name, "one or more different values")

    def changed(self, **values: object) -> CompareRecipe:
        """A copy with other values, checked again.

        Example:
            >>> CompareRecipe(norms=("SelfNorm",), corruptions=("fog",)).changed(seeds=[3]).seeds
            (3,)
        """
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                raise ValueError(f"recipe: unknown key {name!r}; {suggest(name, known)}")
        return replace(self, **cast("dict[str, Any]", values))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists, numbers and strings.

        Example:
            >>> CompareRecipe(norms=("SelfNorm",), corruptions=("fog",)).to_dict()["norms"]
            ['BatchNorm', 'SelfNorm']
        """
        return to_mapping(self)

    def run_key(self, norm: str, seed: int, data_sha256: str, version: str) -> str:
        """Digest of all that decides the numbers of one run.

        Norms, seeds, workers and threads are left out: a comparison with more norms reuses the runs it already has.

        Example:
            >>> recipe = CompareRecipe(norms=("SelfNorm",), corruptions=("contrast",))
            >>> recipe.run_key("SelfNorm", 0, "ff", "1")
            '3c4ea853f2e77993'
        """
        inside = {name: value for name, value in self.to_dict().items() if name not in _OUTSIDE_A_RUN}
        content = {"recipe": inside, "norm": norm, "seed": seed, "data": data_sha256, "version": version}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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
    return load_as(CompareRecipe, name)


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
    return load_as(CompareRecipe, source, text)
