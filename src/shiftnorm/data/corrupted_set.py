"""Corrupted images that lie in files: CIFAR-10-C, CIFAR-100-C, ImageNet-C, and whatever has their layouts."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from shiftnorm.data.corruptions import COMMON, EXTRA, SEVERITIES
from shiftnorm.data.dataset import Dataset

__all__ = ["CorruptedSet", "align"]

ON_MISSING: Final = ("raise", "skip")
# Up to so many images every file's header is looked at before anything is measured; of more it would take minutes.
CHECKED: Final = 200_000


@final
@dataclass(frozen=True, eq=False)
class CorruptedSet:
    """A data set for every corruption and severity, all of the same images, and the images as they were.

    `open_corrupted` makes one; `robustness` measures it cell by cell.

    Example:
        >>> clean = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.arange(4) % 2, ("cat", "dog"))
        >>> made = CorruptedSet("pets-c", Path("pets-c"), {"fog": (1, 2)}, lambda name, severity, check: clean, clean)
        >>> made.select(["fog", "snow"], [1])
        Traceback (most recent call last):
        ...
        ValueError: robustness: pets-c in pets-c has no snow. It has fog (1, 2). Get what is missing, ...
        >>> made.select(["fog"], [1, 2])[0], len(made.cell("fog", 2))
        (['fog'], 4)

    Args:
        name: what tables and reports call it.
        path: where it lies.
        present: the severities of every corruption that is there.
        read: opens the cell of a corruption and a severity; its third argument is how its files are looked at first.
        clean: the images before corruption, in the same order and with the same labels.
        on_missing: ``"raise"``, or ``"skip"``: leave out, and name, corruptions that are not there.
        published: the name of the published set that it is; None for one that was made otherwise.
        made: what `shiftnorm corrupt` noted of how it made it, if it did.
        notes: what a reader of the numbers has to know.
        chosen: (n,) int64, which of the images of a cell; None for all of them.
        on_error: ``"raise"``, or ``"skip"`` with files that cannot be read.
        preprocess: what is done with the pictures of a cell when they are read, as `parse_preprocess` names it.
        keys: domain, class and file of every image of a cell, where these are not those of the clean image.
    """

    name: str
    path: Path
    present: Mapping[str, tuple[int, ...]]
    read: Callable[[str, int, str], Dataset]
    clean: Dataset
    on_missing: str = "raise"
    published: str | None = None
    made: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    chosen: Tensor | None = None
    on_error: str = "raise"
    preprocess: str = "none"
    keys: tuple[tuple[str, ...], ...] | None = None
    _sums: dict[tuple[Path, ...], str] = field(default_factory=dict[tuple[Path, ...], str])

    def __post_init__(self) -> None:
        if self.on_missing not in ON_MISSING:
            raise ValueError(f"open_corrupted: on_missing must be 'raise' or 'skip', got {self.on_missing!r}")

    def __len__(self) -> int:
        return len(self.clean)

    def select(
        self, corruptions: str | Iterable[str] = "common", severities: Iterable[int] = SEVERITIES
    ) -> tuple[list[str], list[str]]:
        """The corruptions that are asked for and there, and sentences on those that are not.

        Example:
            >>> clean = Dataset.of_images("pets", torch.zeros(1, 3, 8, 8).byte(), torch.tensor([0]), ("cat",))
            >>> present = {"fog": (1, 2), "snow": (1,)}
            >>> made = CorruptedSet("c", Path("c"), present, lambda *_: clean, clean, on_missing="skip")
            >>> made.select(["fog", "snow"], [1, 2])
            (['fog'], ['Not in the files, and left out: snow (lacks severity 2).'])

        Args:
            corruptions: ``"common"``, ``"extra"``, ``"all"``, or names, also such as are not among the 19.
            severities: which ones each must have.

        Returns:
            Names, each with all these severities; and one sentence if any is left out.

        Raises:
            ValueError: one is missing and ``on_missing`` is ``"raise"``, all are, or a name is unknown.
        """
        groups = {"common": COMMON, "extra": EXTRA, "all": COMMON + EXTRA}
        given = groups.get(corruptions, (corruptions,)) if isinstance(corruptions, str) else tuple(corruptions)
        if isinstance(corruptions, str) and corruptions in groups and "frost" not in self.present:
            # Its stand-in, where the set was made without photographs.
            stand_in = "frost_procedural" if "frost_procedural" in self.present else "frost"
            given = tuple(stand_in if name == "frost" else name for name in given)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"robustness: expected names of corruptions, each once, got {list(given)}.")
        for name in given:
            if name not in self.present and name not in groups["all"]:
                near = difflib.get_close_matches(str(name), (*self.present, *groups["all"]), n=3, cutoff=0.5)
                raise ValueError(
                    f"robustness: unknown corruption {name!r}; {self.name} in {self.path} has "
                    f"{', '.join(self.present)}" + (f"; did you mean {' or '.join(near)}?" if near else ".")
                )
        wanted = list(severities)
        lacking = {name: [s for s in wanted if s not in self.present.get(name, ())] for name in given}
        kept = [name for name in given if not lacking[name]]
        if len(kept) == len(given):
            return kept, []
        absent = [
            name if len(gone) == len(wanted) else f"{name} (lacks severity {', '.join(map(str, gone))})"
            for name, gone in lacking.items()
            if gone
        ]
        if self.on_missing == "raise" or not kept:
            part = "or measure the part that is there with on_missing='skip', which names the rest."
            if self.on_missing == "skip":
                part = "as none of them has every severity that is asked for."
            raise ValueError(
                f"robustness: {self.name} in {self.path} has no {', '.join(absent)}. It has "
                f"{', '.join(self._spelled())}. Get what is missing, name what is there with corruptions= and "
                f"severities=, {part}"
            )
        return kept, [f"Not in the files, and left out: {', '.join(absent)}."]

    def _spelled(self) -> list[str]:
        whole = tuple(SEVERITIES)
        return [
            name if levels == whole else f"{name} ({', '.join(map(str, levels))})"
            for name, levels in self.present.items()
        ]

    def check(self, keys: Sequence[tuple[str, int]]) -> None:
        """Open the cells as far as that is quick, so that what is wrong shows before anything is measured.

        Example:
            >>> clean = Dataset.of_images("pets", torch.zeros(1, 3, 8, 8).byte(), torch.tensor([0]), ("cat",))
            >>> CorruptedSet("c", Path("c"), {"fog": (1,)}, lambda *_: clean, clean).check([("fog", 1)])

        Args:
            keys: corruptions and severities.

        Raises:
            ValueError: a file is damaged, or the images are not those of the clean set.
        """
        few = len(self.clean) * len(keys) <= CHECKED
        # Files that are to be skipped are told apart by being read, so that all cells keep their order.
        look = "quick" if few and self.on_error == "raise" else "none"
        for key in keys if few else keys[:1]:
            self._open(*key, look)

    def cell(self, corruption: str, severity: int) -> Dataset:
        """The images of one cell, in the order of the clean ones and with their labels.

        Example:
            >>> clean = Dataset.of_images("pets", torch.zeros(1, 3, 8, 8).byte(), torch.tensor([0]), ("cat",))
            >>> CorruptedSet("c", Path("c"), {"fog": (1,)}, lambda *_: clean, clean).cell("fog", 1).labels
            tensor([0])

        Args:
            corruption: its name.
            severity: 1 to 5.

        Raises:
            ValueError: a file is damaged, or the images are not those of the clean set.
        """
        return self._open(corruption, severity, "none")

    def _open(self, corruption: str, severity: int, look: str) -> Dataset:
        found = self.read(corruption, severity, look)
        where = f"{self.name}, {corruption} {severity}"
        if self.chosen is not None:
            if int(self.chosen.max()) >= len(found):
                raise ValueError(f"robustness: {where} has {len(found)} images, other cells have more.")
            found = found.subset(self.chosen)
        if self.keys is None:
            ours, theirs = image_keys(self.clean), image_keys(found)
        else:
            ours, theirs = list(self.keys), image_keys(found, found.files())
        if ours is not None and theirs is not None:
            if self.keys is None:
                _refuse_doubles(ours, self.clean, "robustness")
            if ours != theirs:
                raise ValueError(
                    f"robustness: {where} has not the images of the other cells: {_differing(ours, theirs)}"
                )
        elif len(found) != len(self.clean) or _names(found) != _names(self.clean):
            raise ValueError(f"robustness: {where} has not the labels of {self.clean.name}, image by image.")
        return replace(
            found, labels=self.clean.labels, classes=self.clean.classes, class_subset=self.clean.class_subset
        )

    def checksum(self, corruption: str, severity: int) -> str:
        """The checksum of a cell's files: of their contents if they are few, else of their names and sizes.

        Example:
            >>> clean = Dataset.of_images("pets", torch.zeros(1, 3, 8, 8).byte(), torch.tensor([0]), ("cat",))
            >>> CorruptedSet("c", Path("c"), {"fog": (1,)}, lambda *_: clean, clean).checksum("fog", 1)
            'names-and-sizes-sha256:e3b0c44298fc1c14...'
        """
        source = self.read(corruption, severity, "none").provenance
        # The five severities of CIFAR-10-C are one file.
        if source.files not in self._sums:
            self._sums[source.files] = source.checksum
        return self._sums[source.files]

    def limit(self, per_class: int, *, seed: int = 0) -> CorruptedSet:
        """At most ``per_class`` images of every class, the same in every cell.

        Example:
            >>> clean = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> len(CorruptedSet("c", Path("c"), {"fog": (1,)}, lambda *_: clean, clean).limit(3))
            3

        Args:
            per_class: how many.
            seed: of the choice.

        Raises:
            ValueError: ``per_class`` below 1.
        """
        places = torch.arange(len(self.clean))
        few = replace(self.clean, numbers=places).limit(per_class, seed=seed).numbers
        before = places if self.chosen is None else self.chosen
        keys = None if self.keys is None else tuple(self.keys[place] for place in few.tolist())
        return replace(self, clean=self.clean.subset(few), chosen=before[few], keys=keys)

    def describe(self) -> dict[str, Any]:
        """Name, place and notes, as records keep them beside what the clean set says of itself.

        Example:
            >>> clean = Dataset.of_images("pets", torch.zeros(1, 3, 8, 8).byte(), torch.tensor([0]), ("cat",))
            >>> CorruptedSet("c", Path("c"), {"fog": (1,)}, lambda *_: clean, clean).describe()["corrupted path"]
            'c'
        """
        return {
            **self.clean.describe(),
            "name": self.name,
            "clean": self.clean.name,
            "corrupted path": str(self.path),
            "corrupted notes": list(self.notes),
        }


def align(
    clean: Dataset, cell: Dataset, where: str, *, names: Sequence[str] | None = None
) -> tuple[Dataset, Tensor | None]:
    """The clean images that a cell was made of, in its order.

    Images in files are found by the names of their class and file, whatever its ending; those in arrays by their order.

    Example:
        >>> clean = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.arange(4) % 2, ("cat", "dog"))
        >>> align(clean, clean.subset([0, 2]), "pets-c")
        Traceback (most recent call last):
        ...
        ValueError: open_corrupted: pets-c has 2 images a cell, but the clean set pets has 4, and ...

    Args:
        clean: the clean set.
        cell: any cell.
        where: what to call it in errors.
        names: the files that were made of the clean images, one each, where that was noted.

    Returns:
        The clean set, or those of its images that the cell has; and which images of the cell these are, None for all:
        those whose clean image could not be read, and was to be skipped, are left out.

    Raises:
        ValueError: the cell has images or classes that the clean set does not have, or it cannot be told which is
            which.
    """
    remedy = "pass the very images it was made from: clean=..."
    if strangers := [name for name in cell.classes if name not in clean.classes]:
        raise ValueError(
            f"open_corrupted: {where} has {len(cell.classes)} classes, and {strangers[0]!r} is not among the "
            f"{len(clean.classes)} of the clean set {clean.name}; {remedy}"
        )
    ours, theirs = image_keys(clean, names), image_keys(cell, None if names is None else cell.files())
    chosen: Tensor | None = None
    if theirs is not None:
        if ours is None:
            raise ValueError(
                f"open_corrupted: {where} has its images in files, but those of the clean set {clean.name} have no "
                "names, so nothing tells which is which; pass the folder of the images it was made from: clean=..."
            )
        _refuse_doubles(ours, clean, "open_corrupted")
        _refuse_doubles(theirs, cell, "open_corrupted")
        places = {key: place for place, key in enumerate(ours)}
        lost = [key for key in theirs if key not in places]
        if lost and (clean.on_error == "raise" or not _were_skipped(lost, clean)):
            raise ValueError(
                f"open_corrupted: {len(lost)} of the {len(theirs)} images of {where} are not in the clean set "
                f"{clean.name}, for instance {'/'.join(lost[0])}; {remedy}"
            )
        if lost:
            chosen = torch.tensor([place for place, key in enumerate(theirs) if key in places], dtype=torch.int64)
        found = clean.subset([places[key] for key in theirs if key in places])
    else:
        if len(clean) != len(cell):
            raise ValueError(
                f"open_corrupted: {where} has {len(cell)} images a cell, but the clean set {clean.name} has "
                f"{len(clean)}, and their order is all that tells which is which; {remedy}"
            )
        found = clean
        pairs = zip(_names(clean), _names(cell), strict=True)
        if different := [place for place, (before, after) in enumerate(pairs) if before != after]:
            raise ValueError(
                f"open_corrupted: the clean set {clean.name} is in another order than {where}, or other images: "
                f"{len(different)} of {len(cell)} labels differ, first that of image {different[0]}; {remedy} (of "
                "CIFAR the python version, not pictures in folders, has the order of the published files)"
            )
    if cell.class_subset is not None:
        # The outputs that the cell's classes belong to are known; those of the clean set may be more.
        labels = torch.tensor([cell.classes.index(name) for name in _names(found)], dtype=torch.int64)
        found = replace(found, labels=labels, classes=cell.classes, class_subset=cell.class_subset)
    return found, chosen


def image_keys(dataset: Dataset, names: Sequence[str] | None = None) -> list[tuple[str, ...]] | None:
    """Domain, class and name of every image's file, without its ending, or as ``names`` has it; None without files."""
    if names is None:
        files = dataset.files()
        names = None if files is None else [os.path.splitext(os.path.basename(file))[0] for file in files]
    if names is None:
        return None
    keys: list[tuple[str, ...]] = list(zip(_names(dataset), map(os.path.basename, names), strict=True))
    if dataset.domains is not None and dataset.domain_labels is not None:
        keys = [(dataset.domains[d], *key) for d, key in zip(dataset.domain_labels.tolist(), keys, strict=True)]
    return keys


def _refuse_doubles(keys: Sequence[tuple[str, ...]], dataset: Dataset, who: str) -> None:
    """Raise if two images have one key, since they would be matched with each other's corrupted image."""
    seen: dict[tuple[str, ...], int] = {}
    for place, key in enumerate(keys):
        if (first := seen.setdefault(key, place)) != place:
            files = dataset.files() or [f"image {each}" for each in range(len(keys))]
            raise ValueError(
                f"{who}: {files[first]} and {files[place]} of {dataset.name} are both {'/'.join(key)} without folder "
                "and ending, so nothing tells which corrupted image belongs to which; give every file of a class a "
                "name of its own, clean and corrupted, or make the set with shiftnorm corrupt, which notes that"
            )


def _were_skipped(lost: Sequence[tuple[str, ...]], clean: Dataset) -> bool:
    """Whether the clean images that are not there are those left out as unreadable."""
    skipped = [Path(item.path) for item in clean.skipped]
    files = clean.files()
    # The validation images of ImageNet may lie in one folder, whose name is not their class.
    by_class = files is not None and all(
        clean.classes[label] in Path(file).parts for label, file in zip(clean.labels.tolist(), files, strict=True)
    )
    wanted = Counter((key[-2] if by_class else None, os.path.splitext(key[-1])[0]) for key in lost)
    for (name, stem), count in wanted.items():
        if sum(path.stem == stem and (name is None or name in path.parts[:-1]) for path in skipped) < count:
            return False
    return True


def _names(dataset: Dataset) -> list[str]:
    return [dataset.classes[label] for label in dataset.labels.tolist()]


def _differing(ours: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]]) -> str:
    missing, extra = [[key for key in a if key not in b] for a, b in ((ours, set(theirs)), (theirs, set(ours)))]
    parts = [
        f"{'/'.join(keys[0])}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''} {what}"
        for keys, what in ((missing, "missing"), (extra, "more"))
        if keys
    ]
    return f"{'; '.join(parts) or 'they come in another order'}. Get the set again."
