"""Results as JSON, and two of them compared image by image."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
import torch
from torch import nn

from shiftnorm.evaluate.assemble import measure_baseline, summarize_cells
from shiftnorm.evaluate.baselines import ALEXNET
from shiftnorm.evaluate.cell_folder import CellFolder, read_cells
from shiftnorm.evaluate.cells import CLEAN
from shiftnorm.evaluate.comparison import compare, compare_cells
from shiftnorm.evaluate.outcome import CellOutcome
from shiftnorm.evaluate.paired_results import find_comparisons, find_cost
from shiftnorm.evaluate.result import CellResult, Estimate, Example, Result
from shiftnorm.evaluate.robustness import robustness

IMAGENET = {"constants": "imagenet224", "storage": "jpeg85", "seed": 0, "frost": "photos"}


def cell(wrong, n=40, classes=4):
    """An outcome with the first images wrong, of labels 0, 1, 2, 3, 0, ..."""
    labels = torch.arange(n) % classes
    shown = torch.where(torch.arange(n) < wrong, (labels + 1) % classes, labels)
    return CellOutcome.from_logits(3 * torch.eye(classes)[shown], labels)


def result(**changes):
    clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 1.0, 0.2, 0.1)
    cells = [CellResult("fog", s, Estimate(10.0 * s), 1.0, None, 0.1) for s in (1, 2)]
    return Result("net", 100, clean, cells, Estimate(15.0), **changes)


def test_json_goes_there_and_back():
    image = torch.arange(3 * 5 * 7, dtype=torch.uint8).view(3, 5, 7)
    whole = result(
        classes=["<script>", "é"],
        class_errors={"clean": [1.0, None]},
        examples=[Example("fog", 2, 9, image)],
        calibration=summarize_cells({CLEAN: cell(4)}, 4)["calibration"],
    )
    text = json.dumps(whole.to_json(), allow_nan=False)
    again = Result.from_json(text)
    assert again.to_json() == whole.to_json() and torch.equal(again.examples[0].image, image)
    assert again.cells == whole.cells and again.worst_class == ("<script>", 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "shiftnorm.run/1"}, "expected format 'shiftnorm.robustness/1', got 'shiftnorm.run/1'"),
        ({"surprise": 1}, r"unknown fields \['surprise'\]"),
        ({"clean": {"corruption": "clean"}}, "not of the expected form"),
        ({"cells": [3]}, "not of the expected form"),
        ({"calibration": {"clean": {"ece": 1}}}, "not of the expected form"),
    ],
)
def test_damaged_json_is_refused(change, message, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({**result().to_json(), **change}))
    with pytest.raises(ValueError, match=f"result.json: Result: .*{message}"):
        Result.load(tmp_path)
    with pytest.raises(ValueError, match=r"missing fields \['cells'"):
        Result.from_json({"format": "shiftnorm.robustness/1", "name": "a", "images": 1, "clean": {}})
    with pytest.raises(ValueError, match="got None"):
        Result.from_json("[1]")


def test_an_example_that_unpacks_into_too_much_is_refused():
    bomb = base64.b64encode(zlib.compress(bytes(10**7))).decode()
    content = Example("fog", 1, 0, torch.zeros(3, 8, 8, dtype=torch.uint8)).to_json()
    with pytest.raises(ValueError, match="expected 8x8x3 bytes"):
        Example.from_json({**content, "pixels": bomb})
    with pytest.raises(ValueError, match="expected 9x8x3 bytes"):
        Example.from_json({**content, "height": 9})


def test_numbers_by_hand():
    found = summarize_cells({CLEAN: cell(4), ("fog", 1): cell(8), ("fog", 5): cell(24)}, 4, resamples=200)
    assert found["clean"].error.value == 10.0 and found["clean"].error.low < 10 < found["clean"].error.high
    assert [row.error.value for row in found["cells"]] == [20.0, 60.0]
    mean = found["mean_corruption_error"]
    assert mean.value == pytest.approx(40.0) and 25 < mean.low < 40 < mean.high < 55
    assert found["class_errors"] == {"clean": [10.0] * 4, "corrupted": pytest.approx([40.0] * 4)}
    sure = torch.tensor([3.0, 0, 0, 0]).softmax(0)[0].item()
    assert found["calibration"]["clean"].ece == pytest.approx(100 * abs(sure - 0.9), abs=1e-3)
    assert found["calibration"]["corrupted"].ece == pytest.approx(100 * abs(sure - 0.6), abs=1e-3)
    counts = [row["count"] for row in found["calibration"]["corrupted"].bins]
    assert len(counts) == 15 and sum(counts) == 80
    assert summarize_cells({CLEAN: cell(4)}, 4)["mean_corruption_error"] is None
    assert summarize_cells({CLEAN: cell(4)}, 4, resamples=0)["clean"].error == Estimate(10.0)


def test_mce_against_alexnet():
    names = list(ALEXNET.errors)
    baseline, entry, notes = measure_baseline("AlexNet", names, [1, 2, 3, 4, 5], classes=1000, settings=IMAGENET)
    assert baseline is ALEXNET and entry["called"] == "mCE" and "corrupted anew" in notes[0]
    cells = {CLEAN: cell(10)} | {(name, s): cell(20) for name in names for s in range(1, 6)}
    found = summarize_cells(cells, 4, resamples=0, baseline=baseline)
    expected = sum(100 * 250 / sum(ALEXNET.errors[name]) for name in names) / 15
    assert found["mce"].value == pytest.approx(expected)
    relative = sum(100 * (250 - 125) / (sum(ALEXNET.errors[name]) - 5 * 43.478) for name in names) / 15
    assert found["relative_mce"].value == pytest.approx(relative)
    # procedural frost changes what the number may be called
    procedural = ["frost_procedural" if name == "frost" else name for name in names]
    baseline, entry, notes = measure_baseline(
        "AlexNet", procedural, [1, 2, 3, 4, 5], classes=1000, settings={**IMAGENET, "frost": "procedural"}
    )
    assert entry["called"] == "mCE with procedural frost" and "photographs" in notes[0]
    assert baseline.errors["frost_procedural"] == ALEXNET.errors["frost"]


@pytest.mark.parametrize(
    ("names", "severities", "classes", "settings", "why"),
    [
        (["fog"], [1, 2, 3, 4, 5], 1000, IMAGENET, "also has gaussian_noise"),
        ([*ALEXNET.errors, "spatter"], [1, 2, 3, 4, 5], 1000, IMAGENET, "lacks spatter"),
        (list(ALEXNET.errors), [1, 3], 1000, IMAGENET, r"measured were \[1, 3\]"),
        (list(ALEXNET.errors), [1, 2, 3, 4, 5], 10, IMAGENET, "the data have 10"),
        (list(ALEXNET.errors), [1, 2, 3, 4, 5], 1000, {**IMAGENET, "storage": "none"}, "storage jpeg85"),
        (list(ALEXNET.errors), [1, 2, 3, 4, 5], 1000, {**IMAGENET, "constants": "cifar32"}, "imagenet224"),
    ],
)
def test_no_mce_where_the_baseline_does_not_cover(names, severities, classes, settings, why):
    import re

    baseline, entry, notes = measure_baseline("AlexNet", names, severities, classes=classes, settings=settings)
    assert baseline is None and entry is None and re.search(f"No mCE: .*{why}", notes[0])


def test_a_result_as_baseline_must_be_of_the_same_settings():
    reference = result(settings=IMAGENET)
    baseline, entry, _ = measure_baseline(reference, ["fog"], [1, 2], classes=3, settings=IMAGENET)
    assert baseline.errors == {"fog": [10.0, 20.0]} and entry["called"] == "mCE" and entry["name"] == "net"
    _, _, notes = measure_baseline(reference, ["fog"], [1, 2], classes=3, settings={**IMAGENET, "seed": 1})
    assert "another seed" in notes[0]


def test_differences_by_hand():
    good, bad = cell(4), cell(20)
    found = compare_cells(
        {CLEAN: good, ("fog", 1): good, ("fog", 2): good, ("snow", 1): good, ("snow", 2): bad},
        {CLEAN: good, ("fog", 1): bad, ("fog", 2): bad, ("snow", 1): good, ("snow", 2): bad, ("frost", 1): bad},
        names=("a", "b"),
    )
    assert found.clean_error.difference == 0 and found.clean_error.p_value == 1
    fog, snow = found.corruptions["fog"], found.corruptions["snow"]
    assert fog.difference == pytest.approx(-40.0) and fog.low < -40 < fog.high < 0 and fog.p_value < 0.01
    assert (fog.first, fog.second) == (pytest.approx(10.0), pytest.approx(50.0))
    assert snow.difference == 0 and snow.p_value == 1
    assert found.mean_corruption_error.difference == pytest.approx(-20.0)
    assert found.notes == ["Only b has frost 1; not compared."] and found.images == 40
    assert "a minus b" in str(found) and json.dumps(found.to_json())


def test_compare_reads_the_cells_and_refuses_other_images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=generator, dtype=torch.uint8)

    def run(seed, **options):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
        options = {
            "out": tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}",
            "labels": torch.arange(30) % 3,
            **options,
        }
        data = (images, options.pop("labels"))
        return robustness(model, data, ["fog"], [1, 3], normalize="half", bootstrap=0, progress=False, **options)

    first, second = run(1, name="one"), run(2, name="two")
    found = compare(first, Result.load(second.folder))
    assert (found.first, found.second) == ("one", "two")
    assert found.mean_corruption_error.difference == pytest.approx(
        first.mean_corruption_error.value - second.mean_corruption_error.value
    )
    with pytest.raises(ValueError, match=r"has no cells; .* Pass out="):
        compare(first, run(2, out=None))
    with pytest.raises(ValueError, match="measured with another storage"):
        compare(first, run(2, storage="jpeg85"))
    with pytest.raises(ValueError, match="measured with another data"):
        compare(first, run(2, labels=torch.arange(30) % 2))
    (first.folder / "cells" / "fog-3.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the cells \[\('fog', 3\)\]"):
        compare(first, second)


def small_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))


def measured(seed, images, **options):
    data = (images, torch.arange(len(images)) % 3)
    return robustness(small_net(seed), data, ["fog"], [1, 3], normalize="half", bootstrap=50, progress=False, **options)


def test_a_network_measured_on_other_images_is_no_baseline():
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    reference = measured(1, images)
    assert measured(2, images, baseline=reference).mce is not None
    other = measured(2, images.flip(0), baseline=reference)
    assert other.mce is None and other.relative_mce is None and other.baseline is None
    assert "No mCE: it was measured on other images or classes (images)." in other.notes


def test_cells_that_a_result_is_not_of_change_nothing(tmp_path):
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first, second = (measured(seed, images, out=tmp_path / str(seed), name=str(seed)) for seed in (1, 2))
    before, cost = find_comparisons([first, second], resamples=50)[1], find_cost(first, resamples=50)
    # another evaluation of the same network left a cell that lacks ten images
    folder = CellFolder(first.folder, json.loads((first.folder / "identity.json").read_text())["identity"])
    some = torch.arange(10, 30)
    outcome = CellOutcome.from_logits(torch.eye(3)[some % 3], some % 3, index=some)
    folder.write(("snow", 1), outcome, {})
    assert find_comparisons([first, second], resamples=50)[1].to_json() == before.to_json() and before.images == 30
    assert find_cost(first, resamples=50) == cost
    assert len(read_cells(first.folder)[CLEAN]) == 20 and len(read_cells(first.folder, [CLEAN])[CLEAN]) == 30
    with pytest.raises(FileNotFoundError, match=r"none of the cells \[\('frost', 1\)\] in"):
        read_cells(first.folder, [("frost", 1)])
