"""Domain/class/file folders: PACS, VLCS, Office-31, Office-Home, DomainNet and any other, with their split lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shiftnorm.data.dataset import Dataset
from shiftnorm.data.labelled_files import (
    LabelledFile,
    Reading,
    class_files,
    dataset_of_files,
    refuse_duplicates,
    subfolders,
)
from shiftnorm.data.locate import locate
from shiftnorm.data.provenance import Skipped

# How the published lists call the parts, beside their own names.
LIST_WORDS = {"train": ("train",), "val": ("val", "crossval"), "test": ("test",)}
LIST_FOLDERS = ("", "splits", "datalists", "image_list")
# VLCS is also distributed with these folders inside each domain.
PART_FOLDERS = {"train": "train", "val": "crossval", "test": "test", "all": "full"}


@dataclass(frozen=True)
class DomainLayout:
    """The names of a published set's domains, each with the other spellings in use."""

    domains: dict[str, tuple[str, ...]]
    archives: tuple[str, ...]
    test_is_everything: bool = True


PUBLISHED = {
    "pacs": DomainLayout(
        {"art_painting": ("art",), "cartoon": (), "photo": (), "sketch": ()}, ("pacs*.tar*", "pacs*.zip")
    ),
    "vlcs": DomainLayout(
        {
            "Caltech101": ("CALTECH",),
            "LabelMe": (),
            "SUN09": ("SUN",),
            "VOC2007": ("PASCAL", "VOC"),
        },
        ("vlcs*.tar*", "vlcs*.zip"),
    ),
    "office31": DomainLayout({"amazon": (), "dslr": (), "webcam": ()}, ("office*31*.tar*", "office*31*.zip")),
    "officehome": DomainLayout(
        {"Art": (), "Clipart": (), "Product": (), "Real World": ("Real_World", "RealWorld", "Real")},
        ("office*home*.tar*", "office*home*.zip"),
    ),
    "domainnet": DomainLayout(
        dict.fromkeys(("clipart", "infograph", "painting", "quickdraw", "real", "sketch"), ()),
        ("domain*net*.tar*", "domain*net*.zip"),
        # Its lists split every domain, and what is tested on is the test part.
        test_is_everything=False,
    ),
    "office_caltech10": DomainLayout(
        {"amazon": (), "caltech10": ("caltech",), "dslr": (), "webcam": ()}, ("office_caltech10*.tar*",)
    ),
}


def _key(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "").replace("-", "")


def _found(layout: DomainLayout, folder: Path) -> dict[str, Path]:
    """Return the domains' folders inside a folder, by the name the set is known by."""
    entries = {_key(entry.name): entry for entry in subfolders(folder)}
    found: dict[str, Path] = {}
    # In the layout's order, so that a domain has the same number however its folder is spelt.
    for name, others in layout.domains.items():
        if present := [_key(spelling) for spelling in (name, *others) if _key(spelling) in entries]:
            found[name] = entries[present[0]]
    return found


def published_domains(
    root: Path, split: str, reading: Reading, *, name: str, domain: str | Sequence[str] | None = None
) -> Dataset | None:
    """Read a published set of domains; None if its domain folders are not below ``root``."""
    layout = PUBLISHED[name]
    folder = locate(
        root, lambda folder: len(_found(layout, folder)) == len(layout.domains), reading, archives=layout.archives
    )
    if folder is None:
        return None
    test_is_everything = layout.test_is_everything
    return _read(folder, _found(layout, folder), split, reading, name, domain, test_is_everything=test_is_everything)


def domain_set(
    root: Path, split: str, reading: Reading, *, name: str, domain: str | Sequence[str] | None = None
) -> Dataset:
    """Read any ROOT/DOMAIN/CLASS/FILE, where the domains are the folders that hold folders."""
    found = {entry.name: entry for entry in subfolders(root) if subfolders(entry)}
    if not found:
        raise ValueError(f"open_dataset: no domains in {root}; it must hold DOMAIN/CLASS/FILE")
    return _read(root, found, split, reading, name, domain, test_is_everything=True)


def _read(
    root: Path,
    found: dict[str, Path],
    split: str,
    reading: Reading,
    name: str,
    domain: str | Sequence[str] | None,
    *,
    test_is_everything: bool,
) -> Dataset:
    chosen = list(found) if domain is None else [domain] if isinstance(domain, str) else list(domain)
    # By the name of its folder, too, which may be another spelling.
    by_key = {_key(spelling): each for each, folder in found.items() for spelling in (folder.name, each)}
    if strangers := [each for each in chosen if _key(each) not in by_key]:
        raise ValueError(f"open_dataset: {name} has the domains {', '.join(found)}, got domain={strangers[0]!r}")
    # In the order of the set whatever the order asked for, so that names and numbers are always the same.
    chosen = [each for each in found if each in {by_key[_key(each)] for each in chosen}]
    skipped: list[Skipped] = []
    by_domain: dict[str, dict[str, list[Path]]] = {}
    notes: list[str] = []
    for each in found:
        folder, part_folder = _class_level(found[each], split)
        by_domain[each] = class_files(folder, reading, skipped if each in chosen else [])
        if part_folder and each in chosen:
            notes.append(f"{each}: its folder {part_folder}")
    # Labels count the classes of all domains, so that they mean the same whichever domains are read.
    classes = sorted(set().union(*by_domain.values()))
    refuse_duplicates((c, found[each]) for each, members in by_domain.items() for c in members)
    labels = {each: label for label, each in enumerate(classes)}
    files: list[LabelledFile] = []
    lists: list[Path] = []
    for number, each in enumerate(chosen):
        members = [LabelledFile(path, labels[c], number) for c in classes for path in by_domain[each].get(c, [])]
        if lacking := [c for c in classes if c not in by_domain[each]]:
            notes.append(f"{each} has no {', '.join(lacking)}")
        list_file = None if split == "all" else _list_file(root, found[each].name, split)
        if any(note.startswith(f"{each}: its folder") for note in notes):
            pass
        elif list_file is not None:
            members = _listed(list_file, root, members, {c: labels[c] for c in classes})
            lists.append(list_file)
        elif split in ("train", "val") or (split == "test" and not test_is_everything):
            where = ", ".join(str(root / at) for at in LIST_FOLDERS[:2])
            raise FileNotFoundError(
                f"open_dataset: {name} has no list of the {split!r} part of {each}; put "
                f"{found[each].name}_{split}.txt (lines 'DOMAIN/CLASS/FILE LABEL') into {where}, or read everything "
                "with split='all'"
            )
        elif split == "test":
            notes.append(f"{each}: all images, the usual test part when a domain is left out of training")
        files += members
    notes += [f"list {path.name}" for path in lists]
    return dataset_of_files(name, root, files, classes, reading, domains=chosen, skipped=skipped, notes=notes)


def _class_level(folder: Path, split: str) -> tuple[Path, str]:
    """Return where a domain's class folders are, and which of the parts it is divided into, if any."""
    inside = {entry.name: entry for entry in subfolders(folder)}
    if list(inside) == ["images"]:
        return inside["images"], ""
    if set(inside) >= {"train", "test"} and set(inside) <= set(PART_FOLDERS.values()):
        part = PART_FOLDERS[split]
        if part not in inside:
            raise ValueError(f"open_dataset: {folder} has no folder {part!r} for split={split!r}, only {list(inside)}")
        return inside[part], part
    return folder, ""


def _list_file(root: Path, domain: str, split: str) -> Path | None:
    for at in LIST_FOLDERS:
        for word in LIST_WORDS[split]:
            for ending in ("", "_kfold"):
                if (path := root / at / f"{domain}_{word}{ending}.txt").is_file():
                    return path
    return None


def _listed(path: Path, root: Path, members: list[LabelledFile], labels: dict[str, int]) -> list[LabelledFile]:
    """Return the members that a list names, in the list's order, having compared its labels with the folders."""
    # By the last three parts of the path, DOMAIN/CLASS/FILE, since lists differ in what they put before.
    by_name = {"/".join(member.path.parts[-3:]): member for member in members}
    domain_of_files = {"/".join(member.path.parts[-2:]): member for member in members}
    chosen: list[LabelledFile] = []
    offsets: set[int] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.lstrip("-").isdigit():
            raise ValueError(f"open_dataset: line {number} of {path} must be 'DOMAIN/CLASS/FILE LABEL', got {line!r}")
        parts = name.split("/")
        member = by_name.get("/".join(parts[-3:])) or domain_of_files.get("/".join(parts[-2:]))
        if member is None:
            raise ValueError(
                f"open_dataset: line {number} of {path} names {name!r}, which is not below {root}; the list belongs to "
                "other files"
            )
        offsets.add(int(label) - member.label)
        chosen.append(member)
    if not chosen:
        raise ValueError(f"open_dataset: the list {path} is empty")
    # Published lists count from 0 or from 1; anything else means that their classes are not these folders.
    if len(offsets) > 1 or not offsets <= {0, 1}:
        raise ValueError(
            f"open_dataset: the labels of {path} do not follow the sorted class folders "
            f"({', '.join(list(labels)[:3])}, ...); the list belongs to other files"
        )
    return chosen
