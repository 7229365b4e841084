"""Flip probabilities along sequences: the numbers by hand, resuming, and what is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pictures import tree
from shiftnorm.data.sequences import SequenceSet, open_sequences
from shiftnorm.evaluate.sequence_stability import measure_stability
from shiftnorm.evaluate.stability import CIFAR10_P
from shiftnorm.evaluate.stability_result import StabilityResult


class Levels(nn.Module):
    """The grey level of the first pixel, times 10, is the class."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes, self.frames = classes, 0
        self.register_buffer("weight", torch.eye(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.frames += len(x)
        level = (x[:, 0, 0, 0] * 255).round().long()
        return (torch.arange(self.classes) - level[:, None]).abs().neg().float() - torch.arange(self.classes) * 1e-3


class Coarse(Levels):
    """Two levels are one class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x * 255).round().div(2, rounding_mode="floor") / 255)


def write(folder: Path, levels: dict[str, list[list[int]]]) -> SequenceSet:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in levels.items():
        array = np.asarray(rows, dtype=np.uint8)[..., None, None, None]
        np.save(folder / f"{name}.npy", np.broadcast_to(array, (*array.shape[:2], 8, 8, 3)))
    return open_sequences(folder)


def run(model: nn.Module, data: Any, *args: Any, **options: Any) -> StabilityResult:
    return measure_stability(model, data, *args, **{"normalize": "none", "progress": False, "resamples": 50, **options})


LEVELS = {
    "tilt": [[7, 7, 3, 3, 7], [1, 1, 1, 1, 1]],
    "gaussian_noise": [[7, 7, 3, 3, 7], [1, 2, 3, 4, 5]],
    "gaussian_noise_2": [[7, 7, 7, 7, 7], [1, 1, 1, 1, 2]],
}


def test_the_numbers_by_hand(tmp_path: Path) -> None:
    data = write(tmp_path / "p", LEVELS)
    result = run(Levels(), data, ["tilt", "gaussian_noise"])
    assert result.flips == {"tilt": 25.0, "gaussian_noise": 75.0}  # 2 and 0 of 4; 2 and 4 of 4
    assert result.mean_flips.value == 50.0 and result.mean_flips.low is not None
    # level 7: 7 6 8 5 9; level 3: 3 2 4 1 5; they share 5, at rank 4 and at rank 5: 5 + 4 + 3 + 1 + 1
    there = sum(abs(rank - later) for rank, later in ((1, 6), (2, 6), (3, 6), (4, 5), (5, 6)))
    back = sum(abs(rank - later) for rank, later in ((1, 6), (2, 6), (3, 6), (4, 6), (5, 4)))
    assert result.top5_distances["tilt"] == pytest.approx((there + back) / 4 / 2)
    assert [row.frames for row in result.rows] == [5, 5]
    for size in (1, 3, 7):
        assert run(Levels(), data, ["tilt", "gaussian_noise"], batch_size=size).rows == result.rows


def test_difficulties(tmp_path: Path) -> None:
    data = write(tmp_path / "p", LEVELS)
    result = run(Levels(), data, ["tilt", "gaussian_noise"], difficulty=2)
    assert result.flips == {"tilt": 50.0, "gaussian_noise": 12.5}  # 3 and 0 of 3; 0 and 1 of 4
    with pytest.raises(ValueError, match="has no gaussian_noise_3; it has"):
        run(Levels(), data, ["gaussian_noise"], difficulty=3)


def test_the_published_ten_and_a_named_part_of_them(tmp_path: Path) -> None:
    data = write(tmp_path / "p", LEVELS)
    with pytest.raises(ValueError, match=r"has no shot_noise, motion_blur, .*on_missing='skip', which names the rest"):
        run(Levels(), data)
    part = run(Levels(), data, on_missing="skip")
    assert list(part.flips) == ["gaussian_noise", "tilt"]
    assert part.notes[0].startswith("Not in the files, and left out: shot_noise, ")
    whole = run(Levels(), write(tmp_path / "q", dict.fromkeys(CIFAR10_P, LEVELS["tilt"])), limit=1)
    assert whole.mean_flips.value == 50.0 and whole.rows[0].sequences == 1
    assert "No mFR and mT5D" in whole.notes[0]


def test_against_a_baseline(tmp_path: Path) -> None:
    data = write(tmp_path / "p", {"tilt": LEVELS["tilt"], "scale": [[1, 2, 3, 4, 5]] * 2})
    base = run(Levels(), data, ["tilt", "scale"], name="AlexNet")
    result = run(Coarse(), data, ["tilt", "scale"], baseline=base)
    # tilt: 3 3 1 1 3 and no change; scale: 0 1 1 2 2
    assert result.mfr == pytest.approx((25 / 25 + 50 / 100) / 2 * 100) and result.baseline == "AlexNet"
    distances, theirs = result.top5_distances, base.top5_distances
    assert result.mt5d == pytest.approx(50 * sum(distances[name] / theirs[name] for name in distances))
    assert "mean flip rate (mFR)" in str(result) and "of AlexNet" in str(result)
    alone = run(Levels(), data, ["tilt"], baseline=base)
    assert (
        alone.mfr is None and "No mFR and mT5D: the baseline 'AlexNet' has other perturbations (scale)." in alone.notes
    )


def test_a_baseline_of_other_sequences(tmp_path: Path) -> None:
    base = run(Levels(), write(tmp_path / "p", {"tilt": LEVELS["tilt"]}), ["tilt"], name="AlexNet")
    other = write(tmp_path / "q", {"tilt": [[1, 1, 1, 1, 2], [1, 1, 1, 1, 1]]})
    result = run(Levels(), other, ["tilt"], baseline=base)
    assert result.mfr is None and result.mt5d is None
    assert result.notes[-1] == "No mFR and mT5D: the baseline 'AlexNet' has other sequences of tilt."


def test_frames_that_are_preprocessed_otherwise_are_other_frames(tmp_path: Path) -> None:
    root = tree(tmp_path / "p", [f"tilt/{clip}/{n}.png" for clip in "ab" for n in range(3)], size=(16, 16))
    ours, theirs = (open_sequences(root, preprocess=steps) for steps in ("crop8", "resize8x8"))
    first = run(Levels(256), ours, ["tilt"], out=tmp_path / "out", name="AlexNet")
    assert first.settings["preprocess"] == "crop8"
    with pytest.raises(ValueError, match=r"holds another evaluation, with another preprocess\."):
        run(Levels(256), theirs, ["tilt"], out=tmp_path / "out")
    assert run(Levels(256), ours, ["tilt"], baseline=first).mfr == 100.0
    older = replace(first, settings={key: each for key, each in first.settings.items() if key != "preprocess"})
    for baseline in (first, older):
        result = run(Levels(256), theirs, ["tilt"], baseline=baseline)
        assert result.mfr is None and "another preprocess (crop8, not resize8x8)" in result.notes[-1]


def test_few_classes_have_no_top_five(tmp_path: Path) -> None:
    result = run(Levels(3), write(tmp_path / "p", {"tilt": [[0, 1, 2, 2, 2]]}), ["tilt"])
    assert result.mean_top5 is None and result.flips == {"tilt": 50.0} and "mean top-5" not in str(result)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    data = write(tmp_path / "p", LEVELS)
    out, model = tmp_path / "out", Levels()
    first = run(model, data, ["tilt"], out=out)
    assert model.frames == 10
    whole = run(model, data, ["tilt", "gaussian_noise"], out=out)
    assert model.frames == 20 and whole.rows[0] == first.rows[0]
    again = StabilityResult.load(out)
    assert again.to_json() == whole.to_json() and again.folder == out.resolve()
    table = (out / "stability.md").read_text()
    assert "| tilt | 2 | 25.00 [" in table and "* difficulty: 1" in table and "No mFR and mT5D" in table
    assert again.data["checksums"]["tilt"].startswith("sha256:") and again.settings["difficulty"] == 1
    with pytest.raises(ValueError, match=r"out holds another evaluation, with another std\. Choose another folder"):
        run(model, data, ["tilt"], out=out, normalize=([0.0] * 3, [0.5] * 3))
    data = write(tmp_path / "p", {"tilt": [[1, 2, 3, 4, 5]] * 2})
    with pytest.raises(ValueError, match="another checksum"):
        run(model, data, ["tilt"], out=out)


def test_videos_of_several_lengths_and_damaged_ones(tmp_path: Path) -> None:
    names = [f"tilt/n01440764/{clip}/{n}.png" for clip, frames in (("a", 3), ("b", 4), ("c", 2)) for n in range(frames)]
    root = tree(tmp_path / "ImageNet-P", names, size=(16, 16))
    (root / "tilt/n01440764/c/0.png").write_bytes(b"")
    data = open_sequences(root, on_error="skip")
    result = run(Levels(), data, ["tilt"], batch_size=5)
    assert result.rows[0].sequences == 2 and result.rows[0].frames == 4
    assert "1 sequence could not be read." in result.notes and result.data["skipped"] == 1


def test_the_model_is_left_as_it_was_and_its_normalization_is_used(tmp_path: Path) -> None:
    data = write(tmp_path / "p", {"tilt": LEVELS["tilt"]})
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    with pytest.warns(UserWarning, match="does not say how its inputs are normalized.* the numbers mean nothing"):
        assert run(model, data, ["tilt"], normalize="model").warnings
    model.input_normalization = ((0.5,) * 3, (0.25,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(model, data, ["tilt"], normalize="model", amp=True, channels_last=True).settings["amp"] == "bfloat16"
    assert model.training and model[0].weight.is_contiguous()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"limit": 0}, "limit must be a whole number"),
        ({"difficulty": 4}, "difficulty must be 1, 2 or 3, got 4"),
        ({"perturbations": ["tilt", "tilt"]}, "each once"),
        ({"on_missing": "x"}, "on_missing must be"),
        ({"amp": "float8"}, "amp must be"),
    ],
)
def test_impossible_settings(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    data = write(tmp_path / "p", {"tilt": LEVELS["tilt"]})
    with pytest.raises(ValueError, match=message):
        run(Levels(), data, **{"perturbations": ["tilt"], **options})


def test_impossible_data(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected what open_sequences returns as data, got list"):
        run(Levels(), [])
    write(tmp_path / "CIFAR-10-P", {"tilt": LEVELS["tilt"]})
    with pytest.raises(ValueError, match="the model has 3 outputs, but cifar10-p is for 10 classes"):
        run(Levels(3), open_sequences("cifar10-p", tmp_path), ["tilt"])
