"""The norms of a model, where they stand, and the language that selects among them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from torch import nn

from shiftnorm.norms import Chain, NormLayer
from shiftnorm.surgery.families import Block, find_blocks
from shiftnorm.surgery.kinds import NormKind, kind_of

__all__ = ["Selector", "Site", "find_norms", "select"]


class Site(NamedTuple):
    """A module of a model, and where it stands.

    Example:
        >>> [site.path for site in find_norms(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))]
        ['1']

    Args:
        path: dotted name in the model; "" is the model itself.
        module: the module.
        kind: what norm it is; None for a module that is no norm.
        depth: number in order of registration, counted among the sites that were looked for.
        stage: number of its stage, from 1; None outside the blocks or in a model whose blocks are not known.
        block: dotted name of its block, or None.
        last: whether the block is the last of its stage.
    """

    path: str
    module: nn.Module
    kind: NormKind | None
    depth: int
    stage: int | None = None
    block: str | None = None
    last: bool = False

    @property
    def channels(self) -> int | None:
        """Channels of the norm, where known.

        Example:
            >>> find_norms(nn.Sequential(nn.BatchNorm2d(8)))[0].channels
            8
        """
        return self.kind.channels if self.kind else getattr(self.module, "out_channels", None)


Selector: TypeAlias = "str | Sequence[str] | Callable[[Site], bool] | None"


def find_norms(model: nn.Module) -> list[Site]:
    """Every norm of a model, each once, in order of registration; a Chain's members singly.

    Example:
        >>> from shiftnorm.norms import BatchNorm, SelfNorm
        >>> [site.path for site in find_norms(nn.Sequential(Chain(BatchNorm(4), SelfNorm(4)), nn.LayerNorm(4)))]
        ['0.0', '0.1', '1']

    Args:
        model: any model.
    """
    found: list[tuple[str, nn.Module]] = []
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if any(path.startswith(prefix) for prefix in inside) or isinstance(module, Chain):
            continue
        if kind_of(module) is not None:
            found.append((path, module))
            if isinstance(module, NormLayer):  # its parts are its own affair
                inside += (f"{path}." if path else "",)
    return place_all(model, found)


def find_modules(model: nn.Module) -> list[Site]:
    """Every module of a model, each once, in order of registration.

    Example:
        >>> [site.path for site in find_modules(nn.Sequential(nn.ReLU()))]
        ['', '0']
    """
    return place_all(model, list(model.named_modules()))


def place_all(model: nn.Module, found: Iterable[tuple[str, nn.Module]]) -> list[Site]:
    """Say for each (path, module) in which stage and block it stands.

    Example:
        >>> place_all(nn.Sequential(), [("", nn.Sequential())])[0].stage is None
        True
    """
    blocks = {block.path: block for block in find_blocks(model)}
    sites: list[Site] = []
    for depth, (path, module) in enumerate(found):
        block = _block_of(path, blocks)
        where = (None, None, False) if block is None else (block.stage, block.path, block.last)
        sites.append(Site(path, module, kind_of(module), depth, *where))
    return sites


def _block_of(path: str, blocks: dict[str, Block]) -> Block | None:
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        block = blocks.get(".".join(parts[:end]))
        if block is not None:
            return block
    return None


def select(sites: Sequence[Site], where: Selector, *, what: str = "norm") -> list[Site]:
    """The sites that a selector means.

    A string is one or more terms, of which all must hold; a comma separates alternatives within a term; a sequence of
    strings means any of them::

        "layer1.*.bn1"           path, with * and ? (a * also crosses dots); "" is the model itself
        "stages:1-3"             stage of the network, from 1; "stages:1,3"
        "blocks:last"            in the last block of a stage
        "depth:0-9"              number among the sites, from 0; open ends as in "depth:5-"
        "channels:64-256"        channel count
        "type:BatchNorm2d"       class name, or a pattern of it
        "stages:1-3 type:*2d"    both

    Example:
        >>> model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(16), nn.GroupNorm(2, 16))
        >>> [site.path for site in select(find_norms(model), "channels:16 type:Batch*")]
        ['1']

    Args:
        sites: what to choose from.
        where: the selector, or a function from a site to a bool; None means every site.
        what: what the sites are called in an error.

    Returns:
        The chosen sites, in order.

    Raises:
        ValueError: if a term is malformed, or nothing is chosen; the text shows near matches.
        TypeError: if the selector is of another type.
    """
    if where is None:
        return list(sites)
    if callable(where):
        chosen = [site for site in sites if where(site)]
    elif isinstance(where, (str, Sequence)):
        selectors = [where] if isinstance(where, str) else list(where)
        if not selectors:
            raise ValueError("where: expected at least one selector, got none.")
        if not all(isinstance(selector, str) for selector in selectors):
            raise TypeError(f"where: expected a sequence of strings, got {where!r}.")
        tests = [[_term(term) for term in selector.split() or [""]] for selector in selectors]
        chosen = [site for site in sites if any(all(test(site) for test in tested) for tested in tests)]
    else:
        raise TypeError(f"where: expected a string, a sequence of strings, a function or None, got {where!r}.")
    if not chosen:
        raise ValueError(f"where={where!r} matches no {what}. {_nearest(where, sites)}")
    return chosen


def _term(term: str) -> Callable[[Site], bool]:
    key, colon, value = term.partition(":")
    options = value.split(",") if colon else key.split(",")
    if not colon or key == "path":
        return lambda site: any(fnmatch.fnmatchcase(site.path, pattern) for pattern in options)
    if key == "type":
        return lambda site: any(fnmatch.fnmatchcase(type(site.module).__name__, pattern) for pattern in options)
    if key in ("block", "blocks"):
        if value != "last":
            raise ValueError(f"where: expected 'blocks:last', got {term!r}.")
        return lambda site: site.last
    ranges = [_range(option, term) for option in options]
    reads: dict[str, Callable[[Site], int | None]] = {
        "stage": lambda site: site.stage,
        "stages": lambda site: site.stage,
        "depth": lambda site: site.depth,
        "channels": lambda site: site.channels,
    }
    if key not in reads:
        near = difflib.get_close_matches(key, [*reads, "type", "blocks", "path"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "known: path, type, stages, blocks, depth, channels."
        raise ValueError(f"where: unknown key {key!r} in {term!r}; {hint}")
    read = reads[key]

    def test(site: Site) -> bool:
        number = read(site)
        return number is not None and any(low <= number <= high for low, high in ranges)

    return test


def _range(text: str, term: str) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+)(-(\d*))?", text)
    if match is None:
        raise ValueError(f"where: expected numbers such as 3, 1-3 or 5- in {term!r}, got {text!r}.")
    low = int(match[1])
    if match[2] is None:
        return low, low
    high = int(match[3]) if match[3] else float("inf")
    if high < low:
        raise ValueError(f"where: {text!r} in {term!r} is empty; it goes from {match[3]} to {match[1]}.")
    return low, high


def _nearest(where: object, sites: Sequence[Site]) -> str:
    if not sites:
        return "There is none in this model."
    paths = [site.path for site in sites]
    selectors = [where] if isinstance(where, str) else where if isinstance(where, Sequence) else []
    words = [word for selector in selectors for word in str(selector).split()]
    near = list(dict.fromkeys(match for word in words for match in difflib.get_close_matches(word, paths, 3, 0.4)))
    some = paths if len(paths) < 5 else [*paths[:3], "...", paths[-1]]
    stages = sorted({site.stage for site in sites if site.stage is not None})
    types = sorted({type(site.module).__name__ for site in sites})
    shown = f"Near: {', '.join(near)}" if near else f"There are {len(sites)}: {', '.join(some)}"
    return f"{shown}; types: {', '.join(types[:6])}; stages: {', '.join(map(str, stages)) or 'not known'}."
