"""What results of corruptions from files may be called, and what they may be compared with."""

from __future__ import annotations

import re
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
from shiftnorm.evaluate.baselines import ALEXNET_ROBUSTBENCH_5K
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


@pytest.mark.parametrize("given", ["AlexNet, RobustBench 5k", ALEXNET_ROBUSTBENCH_5K])
@pytest.mark.parametrize("source", ["files", "made"])
def test_five_thousand_images_need_not_be_those_of_robustbench(given: Any, source: str) -> None:
    _, entry, notes = measure_baseline(
        given, list(COMMON), [1, 2, 3, 4, 5], classes=1000, settings={**PUBLISHED, "source": source}, images=5_000
    )
    assert entry is not None and entry["called"] == "mCE of unchecked images"
    assert "RobustBench's list of 5,000 images; whether these are the same images is not known" in notes[-1]


def test_five_hundred_images_are_not_those_of_robustbench() -> None:
    _, entry, notes = measure_baseline(
        "AlexNet, RobustBench 5k", list(COMMON), [1, 2, 3, 4, 5], classes=1000, settings=PUBLISHED, images=500
    )
    assert entry is not None and entry["called"] == "mCE of a part" and len(notes) == 1


@pytest.mark.parametrize(
    ("changes", "images", "why"),
    [
        ({"data": "other"}, 10_000, r"it was measured on other images or classes \(cifar10 test\)"),
        ({"corrupted files": "other"}, 10_000, "it was measured on other files of corrupted images"),
        ({"frost photographs": "other"}, 10_000, "its frost is of other photographs"),
        ({}, 9_999, "it was measured on 10,000 of the images, these are 9,999"),
    ],
)
def test_a_network_of_other_images_is_no_baseline(changes: dict[str, str], images: int, why: str) -> None:
    ours = {"data": "d", "corrupted files": "c", "model": "one"}
    given = make_result("net", fingerprint={**ours, "model": "two"})
    options: dict[str, Any] = {"classes": 10, "settings": given.settings}
    arguments = (given, given.corruptions, given.severities)
    found, entry, notes = measure_baseline(*arguments, **options, images=10_000, fingerprint=ours)
    assert found is not None and entry is not None and entry["called"] == "mCE" and notes == []
    found, entry, notes = measure_baseline(*arguments, **options, images=images, fingerprint={**ours, **changes})
    assert found is None and entry is None and len(notes) == 1
    assert re.fullmatch(rf"No mCE: {why}\.", notes[0])


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
    against = measured(files, baseline=first)
    assert against.mce is not None and against.mce.value == pytest.approx(100.0)
    again = corrupt_cifar(toy(), tmp_path / "again-c", corruptions=["fog"], seed=1).folder
    other = measured(open_corrupted(again, clean=toy()), baseline=first)
    assert other.mce is None and any("other files of corrupted images" in note for note in other.notes)
    with pytest.raises(ValueError, match=r"holds another evaluation; .*source was 'files'"):
        measured(toy(), tmp_path / "out")
    for wrong in ({"constants": "cifar32"}, {"storage": "jpeg85"}, {"frost_dir": tmp_path}):
        with pytest.raises(ValueError, match=r"toy-c has (them|it) in its files"):
            measured(files, **wrong)
