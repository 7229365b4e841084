"""Domains: the published layouts, their split lists, and labels that mean the same in every domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import pixels_of, tree
from shiftnorm.data import open_dataset
from shiftnorm.data.domains import PUBLISHED

PACS = ("art_painting", "cartoon", "photo", "sketch")


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    names = [f"{domain}/{label}/{n}.png" for domain in PACS for label in ("dog", "elephant") for n in range(3)]
    root = tree(tmp_path / "pacs", names)
    for domain in PACS:
        for part, numbers in (("train", (2, 0)), ("val", (1,)), ("test", (0, 1, 2))):
            lines = [f"{domain}/{c}/{n}.png {i}" for i, c in enumerate(("dog", "elephant")) for n in numbers]
            (root / "splits").mkdir(exist_ok=True)
            (root / "splits" / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_pacs_with_lists(pacs: Path) -> None:
    whole = open_dataset("pacs", pacs.parent)
    assert whole.domains == PACS and whole.classes == ("dog", "elephant") and len(whole) == 24
    assert whole.domain_labels is not None and whole.domain_labels.bincount().tolist() == [6] * 4
    train = open_dataset("pacs", pacs, "train", domain=("sketch", "photo"))
    assert train.domains == ("photo", "sketch") and train.labels.tolist() == [0, 0, 1, 1] * 2
    # In the order of the list.
    assert np.array_equal(train[0][0].numpy(), pixels_of(pacs / "photo" / "dog" / "2.png"))
    assert len(open_dataset("pacs", pacs, "val")) == 8 and len(open_dataset("pacs", pacs, "all")) == 24
    assert "list photo_train.txt" in train.provenance.notes


def test_lists_of_the_release_count_from_one(pacs: Path) -> None:
    for part in ("train", "val"):
        path = pacs / "splits" / f"photo_{part}.txt"
        lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
        path.unlink()
        name = {"train": "photo_train_kfold.txt", "val": "photo_crossval_kfold.txt"}[part]
        (pacs / name).write_text("\n".join(f"kfold/{file} {int(label) + 1}" for file, label in lines))
    train, val = (open_dataset("pacs", pacs, part, domain="photo") for part in ("train", "val"))
    assert train.labels.tolist() == [0, 0, 1, 1] and val.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo/dog/0.png 0\nphoto/dog/77.png 0\n", "line 2 of .*photo_val.txt names 'photo/dog/77.png', which is not"),
        ("photo/dog/0.png 0\nphoto/elephant/0.png 0\n", "do not follow the sorted class folders"),
        ("photo/dog/0.png 5\n", "do not follow the sorted class folders"),
        ("photo/dog/0.png\n", "line 1 of .* must be 'DOMAIN/CLASS/FILE LABEL'"),
        ("photo/dog/0.png dog\n", "line 1 of .* must be"),
        ("\n", "photo_val.txt is empty"),
    ],
)
def test_damaged_lists(pacs: Path, text: str, message: str) -> None:
    (pacs / "splits" / "photo_val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("pacs", pacs, "val", domain="photo")


def test_a_missing_list_and_a_missing_set(pacs: Path, tmp_path: Path) -> None:
    (pacs / "splits" / "sketch_val.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no list of the 'val' part of sketch; put sketch_val.txt .* into .*splits"
    ):
        open_dataset("pacs", pacs, "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pacs, split='test' in .*empty; expected there: \{art_painting"):
        open_dataset("pacs", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"pacs has the domains art_painting, .* got domain='clipart'"):
        open_dataset("pacs", pacs, domain="clipart")


def test_vlcs_with_part_folders(tmp_path: Path) -> None:
    names = [
        f"{domain}/{part}/{label}/{n}.png"
        for domain in ("CALTECH", "LABELME", "PASCAL", "SUN")
        for part, count in (("train", 3), ("crossval", 1), ("test", 2), ("full", 6))
        for label in range(2)
        for n in range(count)
    ]
    tree(tmp_path / "VLCS", names, (8, 8))
    sizes = {part: len(open_dataset("vlcs", tmp_path, part)) for part in ("train", "val", "test", "all")}
    assert sizes == {"train": 24, "val": 8, "test": 16, "all": 48}
    part = open_dataset("vlcs", tmp_path, domain="pascal")
    assert open_dataset("vlcs", tmp_path).domains == ("Caltech101", "LabelMe", "SUN09", "VOC2007")
    assert part.domains == ("VOC2007",) and part.provenance.notes[0] == "VOC2007: its folder test"


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        ("office31", ["amazon/images", "dslr/images", "webcam/images"]),
        ("officehome", ["Art", "Clipart", "Product", "Real_World"]),
        ("officehome", ["Art", "Clipart", "Product", "Real World"]),
        ("office_caltech10", ["amazon", "caltech10", "dslr", "webcam"]),
        ("vlcs", ["Caltech101", "LabelMe", "SUN09", "VOC2007"]),
    ],
)
def test_published_layouts(tmp_path: Path, name: str, spelt: list[str]) -> None:
    tree(tmp_path / "release", [f"{domain}/{label}/1.png" for domain in spelt for label in ("bike", "mug")])
    whole = open_dataset(name, tmp_path)
    assert whole.domains == tuple(PUBLISHED[name].domains) and whole.classes == ("bike", "mug")
    assert whole.labels.tolist() == [0, 1] * len(spelt)
    with pytest.raises(FileNotFoundError, match=r"no list of the 'train' part"):
        open_dataset(name, tmp_path, "train")


def test_domainnet_is_tested_on_its_lists(tmp_path: Path) -> None:
    domains = list(PUBLISHED["domainnet"].domains)
    tree(
        tmp_path,
        [f"{domain}/{label}/{n}.png" for domain in domains for label in ("axe", "zoo") for n in range(2)],
        (8, 8),
    )
    with pytest.raises(FileNotFoundError, match=r"no list of the 'test' part of clipart"):
        open_dataset("domainnet", tmp_path)
    for domain in domains:
        (tmp_path / f"{domain}_test.txt").write_text(f"{domain}/axe/1.png 0\n{domain}/zoo/1.png 1\n")
    assert len(open_dataset("domainnet", tmp_path)) == 12 and len(open_dataset("domainnet", tmp_path, "all")) == 24


def test_labels_do_not_depend_on_the_domains_read(tmp_path: Path) -> None:
    tree(tmp_path, ["a/bee/1.png", "a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/dog/1.png"])
    part = open_dataset(tmp_path, domain="b")
    assert part.classes == ("bee", "cat", "dog") and part.labels.tolist() == [1, 2]
    assert "b has no bee" in part.provenance.notes
    tree(tmp_path, ["b/Cat/2.png"])
    with pytest.raises(ValueError, match=r"'Cat' and 'cat' .*differ only in spelling"):
        open_dataset(tmp_path, layout="domains")


def test_the_real_archives(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "pacs" / "pacs96.tar.xz").exists():
        pytest.skip("no PACS archive among the real data")
    whole = open_dataset("pacs", real_data, cache=tmp_path, check="none", preprocess="none")
    assert whole.domain_labels is not None and whole.domain_labels.bincount().tolist() == [2048, 2344, 1670, 3929]
    assert whole.of_domain("sketch").labels.bincount().tolist() == [772, 740, 753, 608, 816, 80, 160]
    counts = [len(open_dataset("pacs", real_data, "val", cache=tmp_path, domain=each)) for each in ("photo", "sketch")]
    assert counts == [171, 398]
    assert whole.images(torch.arange(0, 9991, 3000)).shape == (4, 3, 96, 96)
    office = open_dataset("office_caltech10", real_data, cache=tmp_path)
    assert office.domain_labels is not None and office.domain_labels.bincount().tolist() == [958, 1123, 157, 295]
    assert office.images([1500]).shape == (1, 3, 224, 224)
