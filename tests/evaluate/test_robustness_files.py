"""An evaluation of image files: decoded once, damaged ones left out alike in every cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.data import open_dataset
from shiftnorm.data.pixels import FilePixels
from shiftnorm.evaluate import measure
from shiftnorm.evaluate.robustness import robustness

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            image = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(image.numpy()).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))


def run(data, **options):
    return robustness(
        net(), data, ["fog"], [1, 5], normalize="half", batch_size=3, bootstrap=0, progress=False, **options
    )


def opened(folder, **options):
    return open_dataset(folder, **options)


@pytest.mark.parametrize(("kept", "reads"), [(2**31, 1), (0, 3)])
def test_files_are_decoded_once_if_they_fit(folder, kept, reads, monkeypatch):
    read, counted = FilePixels.read, []

    def counting(self, indices):
        counted.extend(indices.tolist())
        return read(self, indices)

    monkeypatch.setattr(FilePixels, "read", counting)
    monkeypatch.setattr(measure, "_KEPT_BYTES", kept)
    result = run(opened(folder), examples=False)
    # besides the cells: one image for the size, and all of them for the check of the inputs
    assert len(counted) == 10 * reads + 1 + 10
    assert result.images == 10 and result.classes == ["cat", "dog"]


def test_files_and_tensors_give_the_same(folder):
    data = opened(folder)
    assert run(data).errors == run((data.images(), data.labels)).errors


def test_results_do_not_go_between_the_images(folder):
    before = sorted(folder.rglob("*"))
    for out in (folder, folder / "runs"):
        with pytest.raises(ValueError, match=r"is inside .*, where the images come from, .* Choose another folder"):
            run(opened(folder), out=out)
    assert sorted(folder.rglob("*")) == before


def test_a_file_damaged_after_opening(folder, tmp_path):
    data = opened(folder, on_error="skip")
    (folder / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    result = run(data, out=tmp_path / "out")
    assert result.images == 9 and len(result.cells) == 2
    assert any("1 file or class was left out: " in note and "3.png" in note for note in result.notes)
    strict = opened(folder, on_error="skip")
    assert run(strict).images == 9
