"""ImageNet and its relatives: C, V2, R, A and Sketch, with the outputs their classes belong to."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shiftnorm.data.dataset import Dataset
from shiftnorm.data.labelled_files import LabelledFile, Reading, class_files, dataset_of_files, peek, subfolders
from shiftnorm.data.locate import find_file, locate, unpacked
from shiftnorm.data.preprocess import STANDARD
from shiftnorm.data.provenance import Skipped

CLASSES = 1000
WNID = re.compile(r"n\d{8}")
Wnids = str | os.PathLike[str] | Sequence[str] | None
RELATIVES = {
    "imagenet-r": ("imagenet-r", "imagenet_r", "imagenetr"),
    "imagenet-a": ("imagenet-a", "imagenet_a", "imageneta"),
    "imagenet-sketch": ("imagenet-sketch", "imagenet_sketch", "sketch"),
}
_ARCHIVES = {
    "noise.tar": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur.tar": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather.tar": ("snow", "frost", "fog", "brightness"),
    "digital.tar": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra.tar": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
CORRUPTIONS = {each: archive for archive, members in _ARCHIVES.items() for each in members}
V2_VARIANTS = ("matched-frequency", "threshold-0.7", "top-images")


def archive_of(corruption: str | None) -> str:
    """Return the published archive that holds a corruption of ImageNet-C.

    Raises:
        ValueError: it is not one of the 19.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(
            f"open_dataset: imagenet-c needs corruption=, one of {', '.join(CORRUPTIONS)}, got {corruption!r}"
        )
    return CORRUPTIONS[corruption]


def wnid_list(wnids: Wnids) -> dict[str, str]:
    """Return the WordNet numbers of a classifier's outputs in the order of the outputs, each with a readable name.

    The rule is ImageNet's: the sorted numbers are the outputs, whatever order a file lists them in.

    Args:
        wnids: a folder with one folder per class, such as ImageNet's val; a text file with a number at the start of
            every line, maybe followed by names; ``imagenet_class_index.json``; ``"timm"`` for the list that timm has;
            or the numbers.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: something else than WordNet numbers, or one of them twice.
    """
    if isinstance(wnids, str) and wnids == "timm":
        try:
            from timm.data.imagenet_info import ImageNetInfo
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "open_dataset: wnids='timm' needs timm; install it with: pip install 'shiftnorm[timm]'"
            ) from error
        info = ImageNetInfo()
        pairs = [(each, info.label_name_to_description(each, detailed=False)) for each in info.label_names()]
    elif isinstance(wnids, str | os.PathLike):
        path = Path(wnids)
        if path.is_dir():
            pairs = [(entry.name, "") for entry in subfolders(path) if WNID.fullmatch(entry.name)]
        elif not path.is_file():
            raise FileNotFoundError(f"open_dataset: there is nothing at wnids={str(wnids)!r}")
        elif path.suffix == ".json":
            pairs = [(str(entry[0]), str(entry[1])) for entry in json.loads(path.read_text()).values()]
        else:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            pairs = [(line[:9], line[9:].strip(" \t,:")) for line in lines if line]
    else:
        pairs = [(each, "") for each in wnids or ()]
    strangers = [each for each, _ in pairs if not WNID.fullmatch(each)]
    if strangers or not pairs:
        raise ValueError(
            f"open_dataset: wnids must give WordNet numbers such as n01440764, got {(strangers or ['none'])[0]!r}"
        )
    if twice := [each for each, count in Counter(each for each, _ in pairs).items() if count > 1]:
        raise ValueError(f"open_dataset: wnids gives {twice[0]} more than once")
    return {each: name.split(",")[0].strip() for each, name in sorted(pairs)}


def readable(wnids: Sequence[str], outputs: dict[str, str]) -> tuple[str, ...]:
    """Return class names, with the number behind those that two classes share; the number where there is no name."""
    shared = Counter(outputs.values())
    names = [(outputs.get(each, ""), each) for each in wnids]
    return tuple(each if not name else f"{name} ({each})" if shared[name] > 1 else name for name, each in names)


def _outputs(
    folders: Sequence[str], wnids: Wnids, name: str, root: Path
) -> tuple[tuple[str, ...], Tensor | None, int | None]:
    """Return the class names of some sorted folders, which outputs of the classifier they are, and of how many."""
    if wnids is None:
        if len(folders) == CLASSES:
            return tuple(folders), None, None
        raise ValueError(
            f"open_dataset: {name} in {root} has {len(folders)} class folders, so the outputs of a {CLASSES}-class "
            "model that they belong to must be known: pass wnids= (ImageNet's val folder, a text file with the "
            "WordNet number of every class, imagenet_class_index.json, or 'timm' if timm is installed)"
        )
    outputs = wnid_list(wnids)
    position = {each: index for index, each in enumerate(outputs)}
    if missing := [each for each in folders if each not in position]:
        raise ValueError(
            f"open_dataset: {len(missing)} class folders of {root} are not among the {len(outputs)} of wnids=, for "
            f"instance {missing[0]}"
        )
    subset = torch.tensor([position[each] for each in folders])
    complete = len(folders) == len(outputs)
    return readable(folders, outputs), None if complete else subset, len(outputs)


def _holds_wnids(folder: Path) -> bool:
    return any(WNID.fullmatch(entry.name) for entry in peek(folder))


def _classes_of(name: str, folder: Path, reading: Reading, wnids: Wnids, notes: Sequence[str] = ()) -> Dataset:
    skipped: list[Skipped] = []
    found = class_files(folder, reading, skipped)
    if strangers := [each for each in found if not WNID.fullmatch(each)]:
        raise ValueError(
            f"open_dataset: {folder} holds folders that are no WordNet numbers, for instance {strangers[0]!r}; "
            "move them elsewhere"
        )
    classes, subset, outputs = _outputs(sorted(found), wnids, name, folder)
    files = [LabelledFile(path, label) for label, each in enumerate(sorted(found)) for path in found[each]]
    dataset = dataset_of_files(name, folder, files, classes, reading, class_subset=subset, skipped=skipped, notes=notes)
    return replace(dataset, outputs=outputs)


def imagenet(root: Path, split: str, reading: Reading, *, name: str, wnids: Wnids = None) -> Dataset | None:
    """Read ImageNet's val (for split ``test`` too) or train folder."""
    part = "train" if split == "train" else "val"
    places = (part, f"ILSVRC/Data/CLS-LOC/{part}", f"imagenet/{part}", f"ILSVRC2012/{part}", "")
    for place in places:
        folder = root / place
        if folder.is_dir() and _holds_wnids(folder):
            return _classes_of(name, folder, reading.unless_given(STANDARD), wnids, (f"split {part}",))
        if place and folder.is_dir() and not subfolders(folder) and any(folder.glob("ILSVRC2012_val_*")):
            raise ValueError(
                f"open_dataset: {folder} holds the pictures without class folders; sort them into one folder per "
                "WordNet number first, for instance with torchvision.datasets.ImageNet and the devkit"
            )
    return None


def imagenet_corrupted(
    root: Path,
    split: str,
    reading: Reading,
    *,
    name: str,
    corruption: str | None = None,
    severity: int | None = None,
    wnids: Wnids = None,
) -> Dataset | None:
    """Read one cell of ImageNet-C, CORRUPTION/SEVERITY/WNID/FILE; not resized, since its files are 224 x 224."""
    del split

    def holds(folder: Path) -> bool:
        return any(inside.name in ("1", "5") for entry in peek(folder) for inside in peek(entry))

    # The archives unpack beside each other, or each into a folder of its own group.
    level = [root] if root.is_dir() else []
    for _ in range(3):
        if any(holds(folder) for folder in level):
            break
        level = [inside for folder in level for inside in peek(folder)]
    if (
        corruption is not None
        and corruption in CORRUPTIONS
        and not any((folder / corruption).is_dir() for folder in level)
    ):
        archive = find_file(root, (archive_of(corruption),))
        level = level if archive is None else [unpacked(archive, reading)]
    cells = {entry.name: entry for folder in level if holds(folder) for entry in subfolders(folder)}
    if not cells:
        return None
    if corruption in CORRUPTIONS and corruption not in cells:
        return None
    if corruption is None or corruption not in cells:
        raise ValueError(
            f"open_dataset: {name} needs corruption=, one of those in {root} ({', '.join(sorted(cells))}), "
            f"got {corruption!r}"
        )
    present = sorted(entry.name for entry in subfolders(cells[corruption]))
    if str(severity) not in present:
        raise ValueError(
            f"open_dataset: {name} needs severity=, one of those in {cells[corruption]} ({', '.join(present)}), "
            f"got {severity!r}"
        )
    folder = cells[corruption] / str(severity)
    full_name = f"{name}/{corruption}/{severity}"
    return _classes_of(full_name, folder, reading.unless_given("none"), wnids, (f"{corruption}, severity {severity}",))


def imagenet_v2(
    root: Path, split: str, reading: Reading, *, name: str, variant: str = V2_VARIANTS[0], wnids: Wnids = None
) -> Dataset | None:
    """Read ImageNet-V2, whose folders are called by the number of the output, not by WordNet numbers."""
    del split
    if variant not in V2_VARIANTS:
        raise ValueError(f"open_dataset: variant must be one of {', '.join(V2_VARIANTS)}, got {variant!r}")
    # The archive of threshold-0.7 is spelt without the dash.
    spellings = {f"imagenetv2-{each}-format-val" for each in (variant, variant.replace("d-0", "d0"))}

    def holds(folder: Path) -> bool:
        numbered = any(entry.name.isdecimal() for entry in subfolders(folder))
        return numbered and (folder.name in spellings or folder == root)

    archives = tuple(f"{each.removesuffix('-format-val')}*.tar*" for each in spellings)
    folder = locate(root, holds, reading, archives=archives)
    if folder is None:
        return None
    skipped: list[Skipped] = []
    found = class_files(folder, reading, skipped)
    if strangers := [each for each in found if not each.isdecimal()]:
        raise ValueError(f"open_dataset: {folder} holds folders that are no numbers, for instance {strangers[0]!r}")
    by_number: dict[int, str] = {}
    for each in found:
        if by_number.setdefault(int(each), each) != each:
            raise ValueError(
                f"open_dataset: the class folders {by_number[int(each)]!r} and {each!r} of {folder} are one number; "
                "merge them"
            )
    numbers = sorted(by_number)
    outputs = None if wnids is None else wnid_list(wnids)
    count = CLASSES if outputs is None else len(outputs)
    if numbers[-1] >= count:
        raise ValueError(
            f"open_dataset: {folder} holds the folder {numbers[-1]}, but a model has outputs 0..{count - 1}"
        )
    names = [str(number) for number in numbers]
    if outputs is not None:
        names = list(readable([list(outputs)[number] for number in numbers], outputs))
    files = [LabelledFile(path, label) for label, n in enumerate(numbers) for path in found[by_number[n]]]
    dataset = dataset_of_files(
        name,
        folder,
        files,
        names,
        reading.unless_given(STANDARD),
        skipped=skipped,
        notes=(f"variant {variant}",),
        class_subset=None if len(numbers) == count else torch.tensor(numbers),
    )
    return replace(dataset, outputs=count)


def imagenet_relative(root: Path, split: str, reading: Reading, *, name: str, wnids: Wnids = None) -> Dataset | None:
    """Read ImageNet-R, -A or -Sketch: class folders, 200 of the 1000 in the first two."""
    del split
    spellings = RELATIVES[name]
    # An archive without a folder of its own unpacks into one called after it and its digest.
    named = re.compile(f"(?:{'|'.join(spellings)})(?:-[0-9a-f]{{16}})?")

    def holds(folder: Path) -> bool:
        # Other sets of class folders may lie beside it.
        return (folder == root or named.fullmatch(folder.name.lower()) is not None) and _holds_wnids(folder)

    archives = tuple(f"{each}{ending}" for each in spellings for ending in (".tar*", ".zip"))
    folder = locate(root, holds, reading, archives=archives, depth=2)
    if folder is None and root.is_file():
        folder = locate(root, _holds_wnids, reading)
    return None if folder is None else _classes_of(name, folder, reading.unless_given(STANDARD), wnids)
