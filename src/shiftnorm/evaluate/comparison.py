"""Whether two networks differ in robustness, judged on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from shiftnorm.evaluate.cell_folder import read_cells
from shiftnorm.evaluate.cells import CLEAN, Cells, stack
from shiftnorm.evaluate.corruption_error import cell_weights
from shiftnorm.evaluate.fingerprint import other_contents
from shiftnorm.evaluate.paired import adjust_holm, compare_images
from shiftnorm.evaluate.progress import plural
from shiftnorm.evaluate.result import Result

__all__ = ["Comparison", "Difference", "compare", "compare_cells"]

# What must be alike, or the networks saw other pixels.
_ALIKE = ("source", "seed", "constants", "storage", "frost", "preprocess")
_ALIKE_FILES = ("data", "frost photographs", "corrupted files")


class Difference(NamedTuple):
    """A quantity of two networks, in percent; the difference is first minus second, so below 0 the first is better.

    Example:
        >>> print(Difference(30.0, 32.0, -2.0, -3.0, -1.0, 0.001))
        -2.00 [-3.00, -1.00], p = 0.001

    Args:
        first: of the first network.
        second: of the second.
        difference: first minus second.
        low: lower bound of its 95 % interval.
        high: upper bound.
        p_value: of a permutation test over images; for single corruptions after Holm's correction.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p = {self.p_value:.2g}"


@final
@dataclass(frozen=True)
class Comparison:
    """Two networks on the same corrupted images.

    Example:
        >>> same = Difference(30.0, 30.0, 0.0, -1.0, 1.0, 1.0)
        >>> Comparison("a", "b", 100, same, same, {"fog": same}).to_json()["corruptions"]["fog"]["difference"]
        0.0

    Args:
        first: name of the first network.
        second: name of the second.
        images: how many.
        clean_error: difference of the clean errors.
        mean_corruption_error: of the mean errors over the common cells; None without common corruptions.
        corruptions: by corruption, of the mean errors over its severities.
        notes: remarks, such as which cells only one network has.
    """

    first: str
    second: str
    images: int
    clean_error: Difference
    mean_corruption_error: Difference | None
    corruptions: dict[str, Difference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data, by the fields' names.

        Example:
            >>> same = Difference(30.0, 30.0, 0.0, -1.0, 1.0, 1.0)
            >>> Comparison("a", "b", 100, same, None).to_json()["clean_error"]["p_value"]
            1.0
        """
        named: dict[str, Any] = {
            "clean_error": self.clean_error._asdict(),
            "mean_corruption_error": self.mean_corruption_error and self.mean_corruption_error._asdict(),
            "corruptions": {name: row._asdict() for name, row in self.corruptions.items()},
        }
        return {**asdict(self), **named}

    def __str__(self) -> str:
        rows = {"clean": self.clean_error}
        if self.mean_corruption_error is not None:
            rows["mean over corruptions"] = self.mean_corruption_error
        rows |= self.corruptions
        width = max(map(len, rows))
        counted = f"{self.images} {plural('image', self.images)}"
        lines = [f"{self.first} minus {self.second}, errors in percent on {counted}"]
        return "\n".join([*lines, *(f"  {name:{width}}  {row}" for name, row in rows.items()), *self.notes])


def compare(first: Result, second: Result, *, resamples: int = 2000) -> Comparison:
    """Compare two results image by image; both must have been written to a folder (``out``).

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from shiftnorm.evaluate.robustness import robustness
        >>> images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
        >>> data, folder = (images, torch.arange(20) % 2), Path(tempfile.mkdtemp())
        >>> nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)) for name in ("a", "b")}
        >>> a, b = (
        ...     robustness(net, data, ["fog"], [1], normalize="half", out=folder / name, name=name, progress=False)
        ...     for name, net in nets.items()
        ... )
        >>> compare(a, b).first, list(compare(a, b).corruptions)
        ('a', ['fog'])

    Args:
        first: a result.
        second: another network's, on the same images with the same seed, strengths and storage.
        resamples: of the intervals and tests.

    Returns:
        The differences.

    Raises:
        ValueError: if the two were not measured on the same corrupted images, or have no folder.
        FileNotFoundError: if the cells are gone.
    """
    different = [key for key in _ALIKE if first.settings.get(key) != second.settings.get(key)]
    different += [key for key in _ALIKE_FILES if first.fingerprint.get(key) != second.fingerprint.get(key)]
    if other_contents(first.fingerprint, second.fingerprint):
        different.append("contents of the images' files")
    if different:
        raise ValueError(
            f"compare: {first.name!r} and {second.name!r} were measured with another {', '.join(different)}, so they "
            "saw other images. Measure both with the same data, seed and settings."
        )
    notes: list[str] = []
    code = "corruption code"
    if first.fingerprint.get(code) != second.fingerprint.get(code):
        notes.append("The corruptions' code changed between the two; their pixels may differ.")
    return compare_cells(
        _cells_of(first), _cells_of(second), names=(first.name, second.name), resamples=resamples, notes=notes
    )


def compare_cells(
    first: Cells,
    second: Cells,
    *,
    names: tuple[str, str] = ("first", "second"),
    resamples: int = 2000,
    notes: list[str] | None = None,
) -> Comparison:
    """Compare two networks' outcomes over the cells that both have.

    Example:
        >>> import torch
        >>> from shiftnorm.evaluate.outcome import CellOutcome
        >>> labels = torch.zeros(100).long()
        >>> good, bad = (CellOutcome.from_logits(torch.eye(2)[labels + wrong], labels) for wrong in (0, 1))
        >>> compare_cells({CLEAN: good, ("fog", 1): good}, {CLEAN: good, ("fog", 1): bad}).corruptions["fog"].difference
        -100.0

    Args:
        first: outcomes by cell, with the clean one.
        second: the other network's.
        names: of the networks.
        resamples: of the intervals and tests.
        notes: remarks to keep.

    Returns:
        The differences.

    Raises:
        ValueError: if a network lacks the clean cell, or the images are not the same.
    """
    common = [key for key in first if key in second]
    if CLEAN not in common:
        raise ValueError("compare: expected both networks to have the clean cell.")
    notes = list(notes or [])
    for name, cells in zip(names, (first, second), strict=True):
        if lone := [f"{key[0]} {key[1]}" for key in cells if key not in common]:
            notes.append(f"Only {name} has {', '.join(lone)}; not compared.")
    rows: dict[str, list[int]] = {}
    for name, severity in common:
        if (name, severity) != CLEAN:
            rows.setdefault(name, []).append(severity)

    def differ(keys: list[tuple[str, int]], metric: Any) -> Difference:
        ours = stack({key: first[key] for key in keys})
        theirs = stack({key: second[key] for key in keys}, like=ours)
        found = compare_images(ours.values, theirs.values, cell_weights(ours.keys, metric), resamples=resamples)
        return Difference(found.first, found.second, found.difference, found.low, found.high, found.p_value)

    overall = None
    if rows:
        whole = {severity for row in rows.values() for severity in row}
        even = [(name, severity) for name, row in rows.items() if set(row) == whole for severity in row]
        if dropped := [name for name, row in rows.items() if set(row) != whole]:
            notes.append(f"Not every severity is common for {', '.join(dropped)}; left out of the mean.")
        overall = differ(even, "mean_corruption_error") if even else None
    each = {name: differ([(name, severity) for severity in row], "mean_corruption_error") for name, row in rows.items()}
    adjusted = adjust_holm([row.p_value for row in each.values()])
    each = {name: row._replace(p_value=p) for (name, row), p in zip(each.items(), adjusted, strict=True)}
    return Comparison(*names, len(first[CLEAN]), differ([CLEAN], "clean_error"), overall, each, notes)


def _cells_of(result: Result) -> Mapping[tuple[str, int], Any]:
    if result.folder is None:
        raise ValueError(
            f"compare: {result.name!r} has no cells; paired tests need every image's outcome. Pass out= to robustness, "
            "and read the result with Result.load from that folder."
        )
    wanted = [CLEAN, *((cell.corruption, cell.severity) for cell in result.cells)]
    found = read_cells(Path(result.folder), wanted)
    if missing := [key for key in wanted if key not in found]:
        raise FileNotFoundError(f"compare: {result.folder} lacks the cells {missing} of {result.name!r}.")
    return {key: found[key] for key in wanted}
