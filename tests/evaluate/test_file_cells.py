"""What results of corruptions from files may be called, and what they may be compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustness_results import make_result
from shiftnorm.data import Dataset, open_corrupted
from shiftnorm.data.corruptions import COMMON
from shiftnorm.data.materialise import corrupt_cifar
from shiftnorm.evaluate.assemble import measure_baseline
from shiftnorm.evaluate.comparison import compare
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.robustness_table import find_mismatches

PUBLISHED = {"source": "files", "published": "imagenet-c", "constants": "imagenet224", "storage": "jpeg85"}


@pytest.mark.parametrize(
    ("settings", "images", "called", "note"),
    [
        ({}, 50_000, "mCE", None),
        ({}, 5_000, "mCE of a part", "of 50,000 images, these of 5,000: not comparable"),
        ({"published": None}, 50_000, "mCE", "these files were made otherwise"),
    ],
)
def test_what_mce_is_called(settings: dict[str, Any], images: int, called: str, note: str | None) -> None:
    baseline, entry, notes = measure_baseline(
        "AlexNet", list(COMMON), [1, 2, 3, 4, 5], classes=1000, settings={**PUBLISHED, **settings}, images=images
    )
    assert baseline is not None and entry is not None and entry["called"] == called
    assert (notes == []) if note is None else (note in notes[0])


def test_other_files_have_no_mce_of_alexnet() -> None:
    cifar = {**PUBLISHED, "published": "cifar10-c", "constants": "cifar32", "storage": "none"}
    baseline, _, notes = measure_baseline("AlexNet", list(COMMON), [1, 2, 3, 4, 5], classes=10, settings=cifar)
    assert baseline is None and "strengths imagenet224 and storage jpeg85" in notes[0] and "1000 classes" in notes[0]
    made = make_result("net")
    _, _, notes = measure_baseline(made, made.corruptions, made.severities, classes=10, settings=cifar)
    assert notes[0].startswith("No mCE: it was measured with another source, ")


def test_what_may_be_compared() -> None:
    made = make_result("a")
    files = replace(made, settings={**made.settings, "source": "files"}, fingerprint={"data": "d" * 16})
    one, two = (replace(files, fingerprint={**files.fingerprint, "corrupted files": each}) for each in ("1", "2"))
    assert find_mismatches(one, replace(one, name="b")) == []
    assert find_mismatches(made, one) == ["corruptions made here and read from files"]
    assert find_mismatches(one, two) == ["different files of corrupted images"]
    with pytest.raises(ValueError, match="measured with another corrupted files"):
        compare(one, two)
    with pytest.raises(ValueError, match="measured with another source"):
        compare(made, one)


def toy() -> Dataset:
    images = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Dataset.of_images("toy", images, torch.arange(20) % 2, ("cat", "dog"))


def measured(files: Any, out: Path | None = None, **options: Any) -> Result:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    options = {"normalize": "half", "progress": False, "bootstrap": 20, **options}
    return robustness(model, files, options.pop("names", ["fog"]), [1, 5], out=out, **options)


def test_it_goes_on_with_the_same_files_only(tmp_path: Path) -> None:
    made = corrupt_cifar(toy(), tmp_path / "toy-c", corruptions=["fog", "contrast"]).folder
    files = open_corrupted(made, clean=toy())
    first = measured(files, tmp_path / "out")
    assert [example.corruption for example in first.examples] == ["clean", "fog", "fog"]
    assert torch.equal(first.examples[2].image, files.cell("fog", 5).images([0])[0])
    more = measured(files, tmp_path / "out", names=["fog", "contrast"])
    assert more.cells[:2] == first.cells
    assert compare(more, more).corruptions["contrast"].difference == 0.0
    with pytest.raises(ValueError, match=r"holds another evaluation; .*source was 'files'"):
        measured(toy(), tmp_path / "out")
    for wrong in ({"constants": "cifar32"}, {"storage": "jpeg85"}, {"frost_dir": tmp_path}):
        with pytest.raises(ValueError, match=r"toy-c has (them|it) in its files"):
            measured(files, **wrong)
