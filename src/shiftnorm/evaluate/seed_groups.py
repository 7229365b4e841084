"""Runs of one network trained with several seeds, taken together: mean, spread, and tests paired by seed."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import torch

from shiftnorm.evaluate.cell_folder import read_cells
from shiftnorm.evaluate.cells import CLEAN, Stacked, stack
from shiftnorm.evaluate.comparison import Comparison, Difference, compare
from shiftnorm.evaluate.corruption_error import cell_weights
from shiftnorm.evaluate.metrics import Summary, summarize
from shiftnorm.evaluate.paired import SeedComparison, adjust_holm, compare_images, compare_seeds
from shiftnorm.evaluate.paired_results import has_cells
from shiftnorm.evaluate.record import read_json
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness_table import find_mismatches

__all__ = ["GroupRow", "SeedGroup", "compare_groups", "compare_runs", "group_results"]

_SEED: Final = re.compile(r"(?<![a-z])seed[\s_=-]*(\d+)", re.IGNORECASE)
_RECORD: Final = "record.json"


class SeedGroup(NamedTuple):
    """One network with the results of its training seeds.

    Example:
        >>> SeedGroup("CNSN", {}, True).name
        'CNSN'

    Args:
        name: of the group.
        runs: results by training seed, or by place where the seeds are not known.
        known: whether they are.
    """

    name: str
    runs: dict[int, Result]
    known: bool


class GroupRow(NamedTuple):
    """One group over its seeds; errors in percent.

    Example:
        >>> GroupRow("CNSN", [0, 1], True, summarize([5.0, 7.0]), None, None, None, None, None, None).clean.mean
        6.0

    Args:
        name: of the group.
        seeds: of its runs, or their places where the seeds are not known.
        known: whether they are.
        clean: clean error.
        corrupted: mean corruption error; None without corruptions.
        mce: in percent of the baseline's; None unless every run has it.
        ece: expected calibration error on the corrupted images; None unless every run has it.
        clean_difference: of the clean error to the first group, paired by seed; None for the first, or without a common
            seed.
        difference: of the mean corruption error to the first group, paired by seed.
        over_images: the same difference of the means over the common seeds, with an interval and a permutation test
            over images that take these seeds as given; None where the results of single images are not at hand.
        corruptions: by corruption, as `difference`, of the mean error over severities; `p_t` after Holm's correction
            for their number.
        runs: results by seed.
    """

    name: str
    seeds: list[int]
    known: bool
    clean: Summary
    corrupted: Summary | None
    mce: Summary | None
    ece: Summary | None
    clean_difference: SeedComparison | None
    difference: SeedComparison | None
    over_images: Difference | None
    corruptions: Mapping[str, SeedComparison] = MappingProxyType({})
    runs: Mapping[int, Result] = MappingProxyType({})


def group_results(named: Mapping[str, Sequence[tuple[str, Result]]]) -> list[SeedGroup]:
    """Results by group and training seed, which the record, the name or the folder of a run tells.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult, Estimate
        >>> clean = CellResult("clean", 0, Estimate(5.0), 0.0, 1.0, 0.1)
        >>> runs = [(f"runs/cnsn-seed{seed}", Result("cnsn", 9, clean, [], None)) for seed in (0, 1)]
        >>> group = group_results({"CNSN": runs})[0]
        >>> sorted(group.runs), group.known, group.runs[1].name
        ([0, 1], True, 'CNSN, seed 1')

    Args:
        named: by name of the group, where each result was read from, and the result.

    Returns:
        Groups in the same order, the results renamed to "GROUP, seed N". Where the seed of a single run is not known,
        or a group has one twice, the runs of all groups go by their places, "GROUP, run N", from 1 on.

    Raises:
        ValueError: if two runs were not measured alike, a run is given twice, or two of a group are the same network.
    """
    (first_place, first), *_ = next(iter(named.values()))
    given: dict[object, str] = {}
    for group, runs in named.items():
        networks: dict[str, str] = {}
        for place, result in runs:
            itself = id(result) if result.folder is None else result.folder.resolve()
            if (before := given.get(itself)) is not None:
                where = f"twice in the group {group}" if before == group else f"in the groups {before} and {group}"
                raise ValueError(f"report: {place} is given {where}; it would be compared with itself.")
            given[itself] = group
            if reasons := find_mismatches(first, result):
                raise ValueError(
                    f"report: {first_place} and {place} were not measured alike: {', '.join(reasons)}. Runs of groups "
                    "are compared number by number; evaluate all of them on the same images with the same settings."
                )
            digest = result.fingerprint.get("model", place)
            if (other := networks.setdefault(digest, place)) != place:
                raise ValueError(
                    f"report: {other} and {place} of the group {group} are of the same network, not of two seeds."
                )
    seeds = {group: [_find_seed(place, result) for place, result in runs] for group, runs in named.items()}
    known = all(None not in found and len(set(found)) == len(found) for found in seeds.values())
    groups: list[SeedGroup] = []
    for group, runs in named.items():
        keys = [seed for seed in seeds[group] if seed is not None] if known else range(1, len(runs) + 1)
        kind = "seed" if known else "run"
        of_seed = {
            key: replace(result, name=f"{group}, {kind} {key}") for key, (_, result) in zip(keys, runs, strict=True)
        }
        groups.append(SeedGroup(group, dict(sorted(of_seed.items())), known))
    return groups


def _find_seed(place: str, result: Result) -> int | None:
    # Within a run of `shiftnorm train` the result lies two folders down.
    for folder in [] if result.folder is None else [result.folder, *result.folder.parents][:3]:
        if (folder / _RECORD).is_file():
            seed = read_json(folder / _RECORD).get("seed")
            if isinstance(seed, int):
                return seed
    for text in (result.name, *reversed(Path(place).parts)):
        if found := _SEED.findall(text):
            return int(found[-1])
    return None


def compare_groups(groups: Sequence[SeedGroup], *, resamples: int = 1000) -> list[GroupRow]:
    """Each group over its seeds, and its differences to the first one.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult, Estimate
        >>> def net(error):
        ...     return Result("net", 100, CellResult("clean", 0, Estimate(error), 0.0, 1.0, 0.1), [], None)
        >>> groups = [SeedGroup(name, {0: net(error), 1: net(error + 2)}, True) for name, error in (("a", 5), ("b", 3))]
        >>> rows = compare_groups(groups)
        >>> rows[1].clean.mean, rows[1].clean_difference.difference
        (4.0, -2.0)

    Args:
        groups: from `group_results`.
        resamples: of the intervals and tests over images.

    Returns:
        One row for each group.

    Raises:
        ValueError: if a file of a cell is damaged.
    """
    rows: list[GroupRow] = []
    for place, group in enumerate(groups):
        runs = list(group.runs.values())
        clean = {seed: result.clean.error.value for seed, result in group.runs.items()}
        corrupted = _known({seed: result.mean_corruption_error for seed, result in group.runs.items()})
        first = groups[0]
        paired = bool(place and group.runs.keys() & first.runs.keys())
        theirs = _known({seed: result.mean_corruption_error for seed, result in first.runs.items()})
        mce = _known({seed: result.mce for seed, result in group.runs.items()})
        ece = [result.calibration["corrupted"].ece for result in runs if "corrupted" in result.calibration]
        rows.append(
            GroupRow(
                group.name,
                list(group.runs),
                group.known,
                summarize(list(clean.values())),
                summarize(list(corrupted.values())) if corrupted else None,
                summarize(list(mce.values())) if mce else None,
                summarize(ece) if len(ece) == len(runs) else None,
                compare_seeds(clean, {seed: result.clean.error.value for seed, result in first.runs.items()})
                if paired
                else None,
                compare_seeds(corrupted, theirs) if paired and corrupted and theirs else None,
                _over_images(group, first, resamples) if paired and corrupted else None,
                _by_corruption(group, first) if paired else {},
                group.runs,
            )
        )
    return rows


def compare_runs(rows: Sequence[GroupRow], *, resamples: int = 1000) -> dict[int, Comparison]:
    """Each single run compared to the first group's run of the same seed, image by image, where that can be done.

    Example:
        >>> compare_runs([GroupRow("CNSN", [0], True, summarize([5.0]), *(None,) * 6)])
        {}

    Args:
        rows: from `compare_groups`.
        resamples: of the intervals and tests.

    Returns:
        By place among the runs of all groups, one group after the other, differences of that run minus the other one.

    Raises:
        ValueError: if a file of a cell is damaged.
    """
    found: dict[int, Comparison] = {}
    place = 0
    for number, row in enumerate(rows):
        for seed, result in row.runs.items():
            partner = rows[0].runs.get(seed) if number else None
            if partner is not None and has_cells(partner) and has_cells(result):
                found[place] = compare(result, partner, resamples=resamples)
            place += 1
    return found


def _by_corruption(group: SeedGroup, first: SeedGroup) -> dict[str, SeedComparison]:
    def errors(of: SeedGroup, name: str) -> dict[int, float]:
        return {seed: statistics.fmean(run.errors[name]) for seed, run in of.runs.items()}

    names = next(iter(group.runs.values())).corruptions
    found = {name: compare_seeds(errors(group, name), errors(first, name)) for name in names}
    tested = {name: each.p_t for name, each in found.items() if each.p_t is not None}
    adjusted = dict(zip(tested, adjust_holm(list(tested.values())), strict=True))
    return {name: each._replace(p_t=adjusted.get(name)) for name, each in found.items()}


def _known(estimates: Mapping[int, object]) -> dict[int, float]:
    """The values, if every run has one."""
    found = {seed: getattr(each, "value", None) for seed, each in estimates.items()}
    return {seed: value for seed, value in found.items() if value is not None} if None not in found.values() else {}


def _over_images(group: SeedGroup, first: SeedGroup, resamples: int) -> Difference | None:
    common = sorted(group.runs.keys() & first.runs.keys())
    both = [[each.runs[seed] for seed in common] for each in (group, first)]
    if not all(has_cells(result) for results in both for result in results):
        return None
    like: Stacked | None = None
    means: list[torch.Tensor] = []
    for results in both:
        values: list[torch.Tensor] = []
        for result in results:
            keys = [(cell.corruption, cell.severity) for cell in result.cells]
            assert result.folder is not None  # it has cells
            # The clean cell is read too: an image that is missing in it is in none.
            cells = read_cells(result.folder, [CLEAN, *keys])
            stacked = stack({key: cells[key] for key in keys}, like=like)
            like = like or stacked
            values.append(stacked.values)
        means.append(torch.stack(values).double().mean(0))
    assert like is not None
    found = compare_images(means[0], means[1], cell_weights(like.keys, "mean_corruption_error"), resamples=resamples)
    return Difference(found.first, found.second, found.difference, found.low, found.high, found.p_value)
