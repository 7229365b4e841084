"""Opening folders and archives of any layout, and what is said when nothing is there."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pictures import pixels_of, tree
from shiftnorm.data import DATASETS, open_dataset
from shiftnorm.data.archive import unpack_archive
from shiftnorm.data.catalogue import default_root
from shiftnorm.data.sequences import SEQUENCE_SETS
from shiftnorm.data.sources import SOURCES

NAMES = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(2)]


def test_class_folders(tmp_path: Path) -> None:
    tree(tmp_path / "pets", [*NAMES, "dog/deeper/2.png", "readme.png", ".hidden/1.png"])
    pets = open_dataset(tmp_path / "pets")
    assert (pets.name, pets.classes, pets.domains) == ("pets", ("cat", "dog"), None)
    assert pets.labels.tolist() == [0, 0, 1, 1, 1] and pets.images().shape == (5, 3, 32, 40)
    assert np.array_equal(pets[4][0].numpy(), pixels_of(tmp_path / "pets" / "dog" / "deeper" / "2.png"))
    assert pets.provenance.path == tmp_path / "pets"


def test_a_split(tmp_path: Path) -> None:
    tree(tmp_path, [f"{part}/{name}" for part in ("train", "val") for name in NAMES])
    tree(tmp_path, ["train/cat/9.png"])
    parts = {split: open_dataset(tmp_path, split=split) for split in ("train", "val", "test", "all")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 5, "val": 4, "test": 4, "all": 9}
    assert parts["all"].labels.bincount().tolist() == [5, 4] and "split val" in parts["test"].provenance.notes
    tree(tmp_path / "only", [f"train/{name}" for name in NAMES])
    with pytest.raises(ValueError, match=r"has no 'test' part, only train; pass another split"):
        open_dataset(tmp_path / "only")


def test_domains_are_recognised_and_may_be_named(tmp_path: Path) -> None:
    tree(tmp_path, [f"{domain}/{name}" for domain in ("photo", "sketch") for name in NAMES])
    assert open_dataset(tmp_path).domains == ("photo", "sketch")
    classes = open_dataset(tmp_path, layout="classes")
    assert classes.classes == ("photo", "sketch") and classes.domains is None and len(classes) == 8
    with pytest.raises(ValueError, match=r"layout must be one of auto, classes, domains, got 'flat'"):
        open_dataset(tmp_path, layout="flat")
    with pytest.raises(ValueError, match=r"no domains, so domain='photo' has no meaning"):
        open_dataset(tmp_path, layout="classes", domain="photo")
    # Folders inside class folders are no domains unless they share their names.
    tree(tmp_path / "b", ["cat/day/1.png", "cat/night/1.png", "dog/park/1.png", "dog/home/1.png"])
    assert open_dataset(tmp_path / "b").classes == ("cat", "dog")


def test_published_arrays_are_recognised_by_their_place(tmp_path: Path) -> None:
    for name, label in (("tens", 9), ("hundreds", 42)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "fog.npy", np.zeros((10, 32, 32, 3), dtype=np.uint8))
        np.save(tmp_path / name / "labels.npy", np.full(10, label))
    found = {name: open_dataset(tmp_path / name, corruption="fog", severity=2).name for name in ("tens", "hundreds")}
    assert found == {"tens": "cifar10-c/fog/2", "hundreds": "cifar100-c/fog/2"}
    with pytest.raises(ValueError, match=r"cifar10-c needs corruption="):
        open_dataset(tmp_path / "tens")
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((2, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.array([1, 2]))
    assert open_dataset(tmp_path).name == "cifar10.1"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "usps-test-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 9, 8, 7, 6])
    )
    (tmp_path / "digits" / "usps-test-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]))
    assert open_dataset(tmp_path / "digits").images()[0, 2].tolist() == [[9, 8], [7, 6]]
    (tmp_path / "cifar-100").mkdir()
    for name in ("train", "meta"):
        (tmp_path / "cifar-100" / name).write_bytes(b"")
    (tmp_path / "cifar-100" / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"looks like cifar100, but holds no 'test' part"):
        open_dataset(tmp_path / "cifar-100")


def test_a_path_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "mnist", NAMES)
    monkeypatch.chdir(tmp_path)
    assert open_dataset(Path("mnist")).classes == open_dataset("./mnist").classes == ("cat", "dog")
    with pytest.raises(FileNotFoundError, match=r"no mnist, split='test'"):
        open_dataset("mnist", tmp_path)


@pytest.mark.parametrize("ending", [".tar", ".tar.xz", ".zip"])
def test_archives(tmp_path: Path, ending: str) -> None:
    tree(tmp_path / "pets", NAMES)
    archive = tmp_path / f"packed{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in NAMES:
                file.write(tmp_path / "pets" / name, f"top/{name}")
    else:
        with tarfile.open(archive, "w" if ending == ".tar" else "w:xz") as tar:
            tar.add(tmp_path / "pets", "top")
    pets = open_dataset(archive, cache=tmp_path / "cache")
    assert (pets.name, pets.classes, len(pets)) == ("packed", ("cat", "dog"), 4)
    assert (pets.images() == open_dataset(tmp_path / "pets").images()).all()
    assert pets.provenance.path == archive and pets.provenance.checksum.startswith("sha256:")


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png", "a\\..\\..\\outside.png"])
def test_a_zip_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr(name, b"evil")
    with pytest.raises(ValueError, match=r"evil.zip is not safe to unpack"):
        open_dataset(tmp_path / "evil.zip", cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("outside*")) and not list((tmp_path / "cache").iterdir())


def test_a_zip_of_a_link_a_bomb_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"leads outside it or is a link"):
        unpack_archive(tmp_path / "link.zip", tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("cat/1.png", b"\0" * 10_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(OSError, match=r"bomb.zip unpacks to 9.5 MiB and .* has 1.0 MiB left; free some space"):
        unpack_archive(tmp_path / "bomb.zip", tmp_path / "cache")
    monkeypatch.undo()
    content = (tmp_path / "bomb.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half.zip is damaged, encrypted or not a zip archive"):
        unpack_archive(tmp_path / "half.zip", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_set_says_where_to_put_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"corruption": "fog", "severity": 1} if name.endswith("-c") else {}
    monkeypatch.setenv("SHIFTNORM_DATA", str(tmp_path / "my data"))
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(name, **options)
    message = str(caught.value)
    assert f"no {name}, split='test'" in message and str(tmp_path / "my data") in message
    assert SOURCES[name].layout in message and SOURCES[name].instructions in message and "$SHIFTNORM_DATA" in message
    source = SOURCES[name]
    assert ("download=True" in message) == bool(source.files or source.torchvision)
    assert not (tmp_path / "my data").exists()


def test_every_name_has_a_source() -> None:
    assert {*DATASETS, *SEQUENCE_SETS} == set(SOURCES)


@pytest.mark.parametrize("name", SEQUENCE_SETS)
def test_sequences_are_pointed_to_their_reader(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} holds sequences without labels.*open_sequences.'{name}'"):
        open_dataset(name)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHIFTNORM_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "shiftnorm" / "data"


def test_download_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fake(name: str, root: Path, *, only: str | None = None) -> list[Path]:
        asked.append((name, only))
        tree(root, ["fog/1/n01000000/1.png"], (224, 224))
        return []

    monkeypatch.setattr("shiftnorm.data.catalogue.download_dataset", fake)
    options = {"corruption": "fog", "severity": 1, "wnids": ["n01000000"]}
    for _ in range(2):
        assert len(open_dataset("imagenet-c", tmp_path, download=True, **options)) == 1
    assert asked == [("imagenet-c", "weather.tar")]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda root: open_dataset(root / "nowhere"), FileNotFoundError, "there is nothing at .*nowhere"),
        (lambda root: open_dataset("CIFAR-10"), FileNotFoundError, "did you mean the data set 'cifar10"),
        (
            lambda root: open_dataset(root / "a.txt"),
            NotADirectoryError,
            "a.txt is a file; pass a folder, or an archive",
        ),
        (lambda root: open_dataset(root, root=root), TypeError, "root= belongs to a named data set"),
        (
            lambda root: open_dataset("pacs", root, severity=1),
            TypeError,
            "pacs has no option 'severity'; its options are",
        ),
        (lambda root: open_dataset("mnist", root, domain="a"), TypeError, "mnist has no option 'domain'; it has no"),
        (lambda root: open_dataset(root, split="dev"), ValueError, "split must be one of train, val, test, all"),
        (lambda root: open_dataset("cifar10", root, "val"), ValueError, "cifar10 has no split 'val', only train, test"),
        (
            lambda root: open_dataset(root, on_error="warn"),
            ValueError,
            "on_error must be 'raise' or 'skip', got 'warn'",
        ),
        (lambda root: open_dataset(root, check="deep"), ValueError, "check must be one of none, quick, full"),
        (lambda root: open_dataset(root, check="none"), ValueError, "'auto' looks at the size of every image"),
        (lambda root: open_dataset(root, preprocess="big"), ValueError, "preprocess must look like"),
        (
            lambda root: open_dataset(root),
            ValueError,
            "no class folders in .*; put the images into one folder per class",
        ),
    ],
)
def test_wrong_calls(tmp_path: Path, call: object, error: type[Exception], message: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(error, match=message):
        call(tmp_path)
