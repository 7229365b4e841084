"""Archives and the room on the disk: known before where that can be, and nothing half unpacked where it cannot."""

from __future__ import annotations

import errno
import tarfile
import zipfile
from pathlib import Path

import pytest

from pictures import picture, tree
from shiftnorm.data.archive import unpack_archive
from shiftnorm.data.unpacked_size import needed_at_least


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Pictures beside 3 MiB that compress to almost nothing."""
    root = tree(tmp_path / "pets", ["cat/0.png", "dog/0.png"])
    (root / "cat" / "large.bmp").write_bytes(bytes(3 * 2**20))
    return root


def pack(folder: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for each in sorted(folder.rglob("*.*")):
                file.write(each, each.relative_to(folder))
        return archive
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else f"w:{archive.suffix[1:]}") as tar:
        tar.add(folder, folder.name)
    return archive


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz"])
def test_an_archive_larger_than_the_disk(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    archive = pack(pets, tmp_path / f"pets{ending}")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda *_, **__: pytest.fail("it is known before"))
    with pytest.raises(OSError, match=r"pets.* unpacks to (at least )?3\.[0-9] MiB and .*cache has .*XDG_CACHE_HOME"):
        unpack_archive(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_compressed_archive_says_of_its_size(pets: Path, tmp_path: Path) -> None:
    whole = pack(pets, tmp_path / "pets.tar").stat().st_size
    for ending in (".tar.gz", ".tar.xz"):
        archive = pack(pets, tmp_path / f"pets{ending}")
        assert archive.stat().st_size < 2**17 and whole - 2 * 10240 <= needed_at_least(archive) <= whole
        archive.write_bytes(archive.read_bytes()[:-9])  # a damaged end says nothing, or nonsense, but does not fail
        assert needed_at_least(archive) >= 0


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("ending", [".tar", ".tar.bz2", ".zip"])
def test_a_disk_that_fills_up_leaves_nothing_and_says_what_was_needed(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    archive = pack(pets, tmp_path / f"pets{ending}")
    monkeypatch.setattr("shutil.copyfileobj" if ending == ".zip" else "tarfile.copyfileobj", full)
    with pytest.raises(OSError, match=r"pets.* unpacks to 3\.0 MiB and .*cache has .* left; free some space") as fault:
        unpack_archive(archive, tmp_path / "cache")
    assert "Errno" not in str(fault.value) and not list((tmp_path / "cache").iterdir())
    monkeypatch.undo()
    assert unpack_archive(archive, tmp_path / "cache").is_dir()


def test_a_disk_that_others_fill_meanwhile(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(pets / "dog" / "last.bmp", (300, 300))  # behind the large one
    archive = pack(pets, tmp_path / "pets.tar.bz2")
    frees = iter([2**40, *[2**30] * 3])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": next(frees, 2**20)}))
    with pytest.raises(OSError, match=r"unpacks to 3\.3 MiB and .*cache has 1\.0 MiB left"):
        unpack_archive(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_to(pets: Path, tmp_path: Path) -> None:
    archive = pack(pets, tmp_path / "pets.tar")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"pets.tar is unpacked into .*file/cache, which cannot be written to .*cache="):
        unpack_archive(archive, tmp_path / "file" / "cache")
