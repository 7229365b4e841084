"""Files that changed under the same name and size are noticed; a folder that was copied is the same."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from torch import nn

from pictures import tree
from shiftnorm.data import Dataset, open_corrupted, open_dataset
from shiftnorm.data.contents import contents_of
from shiftnorm.data.made_folder import CONTENTS, MANIFEST
from shiftnorm.data.materialise import corrupt_folder
from shiftnorm.evaluate.comparison import compare
from shiftnorm.evaluate.measure import Measurer
from shiftnorm.evaluate.outcome import read_metadata
from shiftnorm.evaluate.paired_results import find_comparisons
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness

NAMES = [f"{name}/{number}.bmp" for name in ("cat", "dog") for number in range(4)]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return tree(tmp_path / "pets", NAMES, size=(32, 32))


class Linear(nn.Module):
    """Of the same weights in every test."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3072, 2, bias=False)
        nn.init.eye_(self.scores.weight)

    def forward(self, x):
        return self.scores(x.flatten(1))


def run(data: Dataset, out: Path) -> Result:
    return robustness(Linear(), data, ["fog"], [1], normalize="half", bootstrap=20, progress=False, out=out)


def change(file: Path) -> None:
    """Another picture with the name, the size and the time of change of this one."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[1000] ^= 255
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_changed_file_is_another_evaluation(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(open_dataset(pets), tmp_path / "a")
    copied = open_dataset(shutil.copytree(pets, tmp_path / "copy" / "pets", copy_function=shutil.copyfile))
    with monkeypatch.context() as patch:  # the times of change are others, the contents are not
        patch.setattr(Measurer, "measure", lambda *_: pytest.fail("nothing is to be measured"))
        assert run(copied, tmp_path / "a").clean == before.clean
    change(pets / "cat" / "1.bmp")
    assert open_dataset(pets).provenance.checksum == copied.provenance.checksum
    with pytest.raises(ValueError, match="images have other contents in files of the same names and sizes"):
        run(open_dataset(pets), tmp_path / "a")
    after = run(open_dataset(pets), tmp_path / "b")
    assert find_comparisons([before, after]) == {}
    with pytest.raises(ValueError, match="another contents of the images' files"):
        compare(before, after)
    with_baseline = robustness(
        Linear(), open_dataset(pets), ["fog"], [1], normalize="half", bootstrap=0, progress=False, baseline=before
    )
    assert with_baseline.mce is None and any("same names with other contents" in note for note in with_baseline.notes)
    # of other images the contents are not mentioned
    with pytest.raises(ValueError, match=r"another evaluation; data are other images \(8 were measured, now 4: [^;]*$"):
        run(copied.subset([2, 3, 4, 5]), tmp_path / "a")
    # only the files of the images that are measured count
    part, whole = open_dataset(pets).subset([2, 3, 4, 5]), copied.subset([2, 3, 4, 5])
    assert contents_of(part) == contents_of(whole) != contents_of(open_dataset(pets))


def test_an_evaluation_of_before_goes_on(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shiftnorm.evaluate.plan.contents_of", lambda _: None)
        before = run(open_dataset(pets), tmp_path / "a")
    assert "contents" not in json.loads((tmp_path / "a" / "identity.json").read_text())["identity"]
    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", lambda *_: pytest.fail("nothing is to be measured"))
        assert run(open_dataset(pets), tmp_path / "a").clean == before.clean
    assert not list((tmp_path / "a" / "cells").glob("*.damaged"))


def test_corrupted_copies_of_changed_files_are_not_mixed(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    corrupt_folder(open_dataset(pets), out, corruptions=["fog"], severities=[1])
    manifest = json.loads((out / MANIFEST).read_text())
    del manifest["identity"][CONTENTS]  # as earlier versions wrote it
    (out / MANIFEST).write_text(json.dumps(manifest))
    assert corrupt_folder(open_dataset(pets), out, corruptions=["fog"], severities=[1, 2]).found == 8
    change(pets / "cat" / "1.bmp")
    with pytest.raises(ValueError, match=r"contents of the images' files was [0-9a-f]{8}…, now"):
        corrupt_folder(open_dataset(pets), out, corruptions=["fog"], severities=[1, 2])


def test_a_changed_file_of_a_corrupted_cell(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = open_dataset(pets)
    made = corrupt_folder(clean, tmp_path / "c", corruptions=["fog"], severities=[1, 2], storage="none").folder

    def again(folder: Path, severities: list[int]) -> Result:
        return robustness(
            Linear(), open_corrupted(folder, clean=clean), ["fog"], severities, normalize="half", bootstrap=0,
            progress=False, out=tmp_path / "r",
        )  # fmt: skip

    before = again(made, [1, 2])
    metadata = read_metadata(tmp_path / "r" / "cells" / "fog-1.safetensors")
    assert {"files", "stamp", "contents"} <= metadata.keys()
    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", lambda *_: pytest.fail("nothing is to be measured"))
        copied = shutil.copytree(made, tmp_path / "copy" / "c", copy_function=shutil.copyfile)
        assert again(copied, [1, 2]).cells == before.cells
        # untouched files are not even read
        patch.setattr("shiftnorm.evaluate.file_cells.digest_contents", lambda _: pytest.fail("no file is to be read"))
        assert again(made, [1, 2]).cells == before.cells
    file = next((made / "fog" / "2" / "dog").iterdir())
    content = bytearray(file.read_bytes())
    content[-20] ^= 255
    file.write_bytes(content)
    assert again(made, [1]).cells == before.cells[:1]
    with pytest.raises(ValueError, match="fog 2 of files with the same names and sizes, but other contents"):
        again(made, [1, 2])


def test_a_file_that_cannot_be_read_counts_as_such(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(pets)
    whole = contents_of(data)
    (pets / "cat" / "1.bmp").unlink()
    gone = contents_of(data)
    assert gone is not None and gone != whole and gone == contents_of(data)
