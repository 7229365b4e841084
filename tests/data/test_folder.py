"""load_folder: layouts, splits, limits, archives, and an error for everything a folder can have wrong."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from shiftnorm.data import load_folder, open_dataset
from shiftnorm.data.archive import default_cache, unpack_archive

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def fill(folder: Path, count: int = 5, size: tuple[int, int] = (8, 8), first: int = 0) -> Path:
    """Write PNGs whose grey value is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        Image.new("RGB", size, (index, index, index)).save(folder / f"{index:03}.png")
    return folder


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    fill(root / "cat", 10)
    fill(root / "dog", 5, first=100)
    return root


def test_class_folders(pets: Path) -> None:
    (pets / "README.txt").write_text("a file beside the classes")
    (pets / ".git").mkdir()
    (pets / "cat" / ".DS_Store").write_text("x")
    (pets / "cat" / "Thumbs.db").write_text("x")
    train, test, skipped = load_folder(pets)
    assert (train.classes, train.name, skipped) == (("cat", "dog"), "pets", ())
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([8, 4], [2, 1])
    assert sorted(values(train.images) + values(test.images)) == [*range(10), *range(100, 105)]
    for part in (train, test):
        assert [int(value >= 100) for value in values(part.images)] == part.labels.tolist()
    assert train.images.shape[2:] == (8, 8)


def test_the_split_follows_the_seed(pets: Path) -> None:
    assert torch.equal(load_folder(pets)[1].images, load_folder(str(pets))[1].images)
    assert any(not torch.equal(load_folder(pets)[1].images, load_folder(pets, seed=s)[1].images) for s in (1, 2, 3))
    assert len(load_folder(pets, test_fraction=0.4)[1]) == 6


@pytest.mark.parametrize(("train_name", "test_name"), [("train", "test"), ("Train", "val"), ("training", "validation")])
def test_a_split_of_its_own_is_used(tmp_path: Path, train_name: str, test_name: str) -> None:
    for part, first in ((train_name, 0), (test_name, 50)):
        fill(tmp_path / part / "cat", 4, first=first)
        fill(tmp_path / part / "dog", 3, first=first + 20)
    train, test, _ = load_folder(tmp_path)
    assert values(train.images) == [0, 1, 2, 3, 20, 21, 22]
    assert values(test.images) == [50, 51, 52, 53, 70, 71, 72]
    assert test.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert [len(part) for part in load_folder(tmp_path, limit=2)[:2]] == [4, 4]


def test_classes_called_train_and_test_among_others_are_classes(tmp_path: Path) -> None:
    for name in ("train", "test", "tram"):
        fill(tmp_path / name, 2)
    assert load_folder(tmp_path)[0].classes == ("test", "train", "tram")


TWINS = [("Cat", "cat"), ("cat", "cat "), ("\u00e9pagneul", "e\u0301pagneul")]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_two_spellings_of_one_class_are_refused_as_by_open_dataset(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other, "dog"):
        fill(tmp_path / name, 2)
    if len(list(tmp_path.iterdir())) < 3:  # as on macOS and Windows, where there can be no such folders to refuse
        pytest.skip("this file system does not tell the two apart")
    said = r"the class folders '.*' and '.*' of .* differ only in spelling; merge or rename them"
    for read, who in ((load_folder, "load_folder"), (open_dataset, "open_dataset")):
        with pytest.raises(ValueError, match=f"^{who}: {said}"):
            read(tmp_path)


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_parts_of_a_split_that_spell_a_class_in_two_ways(tmp_path: Path, one: str, other: str) -> None:
    for part, name in (("train", one), ("test", other)):
        fill(tmp_path / part / name, 2)
        fill(tmp_path / part / "dog", 2)
    said = "load_folder: the class folders '.*' of .*train and '.*' of .*test differ only in spelling; give both one"
    with pytest.raises(ValueError, match=said):
        load_folder(tmp_path)


def test_nested_files_belong_to_the_class(pets: Path) -> None:
    fill(pets / "dog" / "big" / "very", 5, first=110)
    train, test, _ = load_folder(pets)
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [10, 10]


def test_domains_are_not_taken_for_classes(tmp_path: Path) -> None:
    for domain in ("amazon", "webcam"):
        for name in ("bike", "mug"):
            fill(tmp_path / "office" / domain / name)
    with pytest.raises(
        ValueError, match=r"hold the folders bike, mug, .*domains, not classes; pass one of them, such as"
    ):
        load_folder(tmp_path / "office")
    assert load_folder(tmp_path / "office" / "amazon")[0].classes == ("bike", "mug")
    fill(tmp_path / "office" / "dslr")  # a folder of images of its own: then all are classes
    assert load_folder(tmp_path / "office")[0].classes == ("amazon", "dslr", "webcam")


def test_different_sizes_become_32_and_a_given_size_wins(pets: Path) -> None:
    fill(pets / "dog", 1, (20, 40), first=104)
    train, test, _ = load_folder(pets)
    assert train.images.shape[2:] == test.images.shape[2:] == (32, 32)
    assert sorted(values(train.images) + values(test.images)) == [*range(10), *range(100, 105)]
    assert load_folder(pets, 12)[0].images.shape[2:] == (12, 12)


def test_one_common_size_is_kept_though_not_square(tmp_path: Path) -> None:
    fill(tmp_path / "a", 2, (10, 6))
    fill(tmp_path / "b", 2, (10, 6))
    assert load_folder(tmp_path)[0].images.shape[2:] == (6, 10)


def test_limit_takes_a_repeatable_random_part_of_each_class(pets: Path) -> None:
    fill(pets / "cat", 60)
    train, test, _ = load_folder(pets, limit=10)
    chosen = sorted(values(train.images) + values(test.images))
    assert len(chosen) == 15 and chosen[:10] != list(range(10)) and chosen[10:] == list(range(100, 105))
    again = load_folder(pets, limit=10)
    assert torch.equal(train.images, again[0].images) and torch.equal(test.images, again[1].images)


def test_bad_files_are_named_or_skipped(pets: Path) -> None:
    bad = [pets / "cat" / "003.png", pets / "dog" / "note.txt"]
    bad[0].write_bytes(bad[0].read_bytes()[:40])
    bad[1].write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read .*cat/003.png: .*repair or remove it.*on_error='skip'"):
        load_folder(pets)
    train, test, skipped = load_folder(pets, on_error="skip")
    assert skipped == tuple(str(path) for path in bad)
    assert len(train) + len(test) == 14


def test_skipped_files_are_replaced_within_the_limit(pets: Path) -> None:
    for index in range(6):
        (pets / "cat" / f"{index:03}.png").write_text("broken")
    train, test, skipped = load_folder(pets, limit=4, on_error="skip")
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [4, 4]
    assert len(skipped) <= 6


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at .*nowhere; expected a folder of class folders"):
        load_folder(tmp_path / "nowhere")


def test_path_to_a_file(pets: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"000.png is a file; pass the folder that holds the class folders"):
        load_folder(pets / "cat" / "000.png")


def test_images_without_class_folders(pets: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no classes in .*cat: it holds 10 files and no folders; put the images into one"
    ):
        load_folder(pets / "cat")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no classes in .*: it is empty"):
        load_folder(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    fill(tmp_path / "cat")
    with pytest.raises(ValueError, match=r"at least two classes, .* holds only the folder 'cat'; .* pass .*cat"):
        load_folder(tmp_path)


def test_empty_class(pets: Path) -> None:
    (pets / "emu").mkdir()
    with pytest.raises(ValueError, match=r"no files in the class folders \['emu'\]"):
        load_folder(pets, on_error="skip")


def test_class_without_a_readable_image(pets: Path) -> None:
    (pets / "emu").mkdir()
    (pets / "emu" / "a.png").write_text("broken")
    with pytest.raises(ValueError, match=r"class 'emu' has no file that can be read \(1 tried, such as .*a.png\)"):
        load_folder(pets, on_error="skip")


def test_class_with_one_image(pets: Path) -> None:
    fill(pets / "emu", 1)
    with pytest.raises(ValueError, match=r"classes \['emu'\] have one readable image each; a class needs two"):
        load_folder(pets)


def test_parts_with_different_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        fill(tmp_path / part / "cat", 2)
        fill(tmp_path / part / f"dog_{part}", 2)
    with pytest.raises(ValueError, match="must hold the same classes; only one of them has dog_test, dog_train"):
        load_folder(tmp_path)


def test_unreadable_folder(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterdir = Path.iterdir

    def refuse(path: Path) -> object:
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read the folder .*dog"):
        load_folder(pets)


def test_more_than_memory(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftnorm.data.folder.MEMORY_LIMIT", 10 * 8 * 8 * 3)
    with pytest.raises(ValueError, match=r"need more than .* at 8x8; pass a smaller size"):
        load_folder(pets)
    assert len(load_folder(pets, 4)[0]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"limit": 1}, "limit must be at least 2, .* got 1"),
        ({"test_fraction": 1.0}, r"test_fraction must be in \(0, 1\), got 1.0"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_arguments(pets: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_folder(pets, **arguments)


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else f"w:{archive.suffix[1:]}") as tar:
        tar.add(folder, arcname=f"data-1.0/{folder.name}")
    return archive


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_archive(pets: Path, tmp_path: Path, ending: str) -> None:
    archive, cache = pack(pets, tmp_path / f"pets{ending}"), tmp_path / "cache"
    from_archive, from_folder = load_folder(archive, cache=cache), load_folder(pets)
    for ours, expected in zip(from_archive[:2], from_folder[:2], strict=True):
        assert torch.equal(ours.images, expected.images) and torch.equal(ours.labels, expected.labels)
        assert (ours.name, ours.classes) == (expected.name, expected.classes)
    (unpacked,) = cache.iterdir()
    changed = unpacked.stat().st_mtime_ns
    load_folder(archive, cache=cache)
    assert [(entry, entry.stat().st_mtime_ns) for entry in cache.iterdir()] == [(unpacked, changed)]


def test_a_changed_archive_is_unpacked_again(pets: Path, tmp_path: Path) -> None:
    archive = pack(pets, tmp_path / "pets.tar")
    first = unpack_archive(archive, tmp_path / "cache")
    fill(pets / "emu", 2)
    assert unpack_archive(pack(pets, archive), tmp_path / "cache") != first


@pytest.mark.parametrize("name", ["../outside.png", "data/../../outside.png", "/../outside.png"])
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match=r"evil.tar is not safe to unpack"):
        load_folder(tmp_path / "evil.tar", cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("outside.png")) and not list((tmp_path / "cache").iterdir())


def test_an_archive_cannot_link_elsewhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("cat/a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"not safe to unpack"):
        load_folder(tmp_path / "evil.tar", cache=tmp_path / "cache")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_damaged_archive(pets: Path, tmp_path: Path, ending: str, keep: float) -> None:
    # Random pixels, or half of the archive would still hold all of the compressed data.
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(pets / "cat" / "0.png")
    archive = pack(pets, tmp_path / f"pets{ending}")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)] if keep else b"not an archive at all" * 50)
    with pytest.raises(ValueError, match=r"pets.* is damaged or not a tar archive"):
        load_folder(archive, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_losing_the_race_to_another_process(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, cache = pack(pets, tmp_path / "pets.tar"), tmp_path / "cache"
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        fill(target / "pets" / "winner", 1)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert (unpack_archive(archive, cache) / "pets" / "winner").is_dir()
    assert len(list(cache.iterdir())) == 1


def test_default_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "shiftnorm"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert default_cache() == tmp_path / "home" / ".cache" / "shiftnorm"


def test_real_archive(real_data: Path, tmp_path: Path) -> None:
    archive = real_data / "cifar10" / "cifar10_test.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive} is not there")
    train, test, skipped = load_folder(archive, limit=20, cache=tmp_path)
    assert (len(train), len(test), skipped) == (160, 40, ())
    assert train.classes[0] == "airplane" and train.images.shape[2:] == (32, 32)
    assert os.listdir(tmp_path)
