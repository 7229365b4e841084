from __future__ import annotations

import pytest
import torch

from shiftnorm.evaluate.baselines import ALEXNET, ALEXNET_ROBUSTBENCH_5K, Baseline, find_baseline
from shiftnorm.evaluate.cells import CLEAN, stack
from shiftnorm.evaluate.corruption_error import (
    cell_weights,
    corruption_errors,
    error_grid,
    mce,
    mean_class_errors,
    relative_corruption_errors,
    relative_mce,
    worst_corruption,
)
from shiftnorm.evaluate.metrics import mean_corruption_error
from shiftnorm.evaluate.outcome import CellOutcome

OURS = Baseline("ours", {"fog": (20.0, 40.0), "snow": (50.0, 30.0)}, clean_error=10.0, severities=(1, 5))

# the constants that AugMix' and CNSN's code divides by
PUBLISHED = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def cells_of(errors: dict[tuple[str, int], int], count: int = 100) -> dict[tuple[str, int], CellOutcome]:
    """Cells of `count` images whose first so many are wrong."""
    labels = torch.arange(count) % 2
    made = {}
    for key, wrong in errors.items():
        predicted = torch.where(torch.arange(count) < wrong, 1 - labels, labels)
        made[key] = CellOutcome.from_logits(torch.eye(2)[predicted], labels)
    return made


def test_alexnet_is_that_of_the_published_code():
    assert list(ALEXNET.errors) == list(PUBLISHED)
    for name, constant in PUBLISHED.items():
        assert ALEXNET.total(name, range(1, 6)) / 500 == pytest.approx(constant, abs=1e-6)
    assert mean_corruption_error(ALEXNET.errors) == pytest.approx(78.8993, abs=1e-4)
    assert list(ALEXNET_ROBUSTBENCH_5K.errors) == list(PUBLISHED)


def test_ce_is_a_ratio_of_sums():
    # (10 + 20) / (20 + 40) and (40 + 40) / (50 + 30); the mean of ratios of fog would be 50 too, of snow 106.7
    errors = {"fog": [10.0, 20.0], "snow": [40.0, 40.0]}
    assert corruption_errors(errors, OURS, severities=(1, 5)) == {"fog": 50.0, "snow": 100.0}
    assert mce(errors, OURS, severities=(1, 5)) == 75.0


def test_relative_mce_by_hand():
    # fog: (10 - 5 + 20 - 5) / (20 - 10 + 40 - 10) = 20 / 40; snow: (40 - 5 + 40 - 5) / (40 + 20) = 70 / 60
    errors = {"fog": [10.0, 20.0], "snow": [40.0, 40.0]}
    relative = relative_corruption_errors(errors, 5.0, OURS, severities=(1, 5))
    assert relative == {"fog": 50.0, "snow": pytest.approx(100 * 70 / 60)}
    assert relative_mce(errors, 5.0, OURS, severities=(1, 5)) == pytest.approx((50 + 100 * 70 / 60) / 2)


def test_only_means_are_known_of_the_subset():
    errors = {name: list(row) for name, row in ALEXNET.errors.items()}
    assert mce(errors, "AlexNet, RobustBench 5k") == pytest.approx(100, abs=0.5)
    with pytest.raises(KeyError, match="only means over the severities"):
        corruption_errors({"fog": [80.0]}, ALEXNET_ROBUSTBENCH_5K, severities=(3,))
    with pytest.raises(ValueError, match="no clean error"):
        relative_mce(errors, 40.0, ALEXNET_ROBUSTBENCH_5K)


def test_mce_over_a_part_must_be_asked_for():
    errors = {name: row for name, row in ALEXNET.errors.items() if name != "frost"}
    with pytest.raises(ValueError, match=r"missing \['frost'\].*do not call it mCE"):
        mce(errors)
    assert mce(errors, partial=True) == 100.0
    with pytest.raises(ValueError, match=r"missing \[1, 2, 4, 5\]"):
        mce({name: [50.0] for name in ALEXNET.errors}, severities=(3,))
    with pytest.raises(KeyError, match="has no 'spatter'"):
        mce({**ALEXNET.errors, "spatter": [1.0] * 5})


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({}, "no corruption"),
        ({"fog": [1.0]}, "{'fog': 1} instead of 2"),
        ({"fog": [1.0, 101.0]}, "in percent"),
        ({"fog": [1.0, float("nan")]}, "in percent"),
    ],
)
def test_uneven_or_odd_errors_are_refused(errors, message):
    with pytest.raises(ValueError, match=message):
        corruption_errors(errors, OURS, severities=(1, 5))


def test_a_corruption_that_does_not_hurt_the_baseline_has_no_relative_error():
    flat = Baseline("flat", {"fog": (10.0,)}, clean_error=10.0, severities=(1,))
    with pytest.raises(ValueError, match="does not raise its error"):
        relative_mce({"fog": [20.0]}, 5.0, flat, severities=(1,))


def test_baselines_are_checked_and_found():
    assert find_baseline(OURS) is OURS
    with pytest.raises(KeyError, match="did you mean 'AlexNet'"):
        find_baseline("AlexNett")
    with pytest.raises(ValueError, match="expected 2 errors"):
        Baseline("short", {"fog": (1.0,)}, severities=(1, 2))
    with pytest.raises(ValueError, match="above 0"):
        Baseline("perfect", {"fog": (0.0,)}, severities=(1,))
    with pytest.raises(KeyError, match=r"has the severities \(1, 5\), asked for \[3\]"):
        OURS.total("fog", (1, 3))


def test_worst_corruption():
    assert worst_corruption({"fog": [10.0, 60.0], "snow": [40.0, 40.0]}) == ("snow", 40.0)
    with pytest.raises(ValueError, match="expected corruptions"):
        worst_corruption({"fog": []})


def test_grid_of_cells():
    cells = cells_of({("snow", 5): 40, ("fog", 1): 10, ("snow", 1): 30, ("fog", 5): 20, CLEAN: 5})
    grid = error_grid(cells)
    assert grid == (5.0, {"snow": [30.0, 40.0], "fog": [10.0, 20.0]}, (1, 5))
    assert list(grid.errors) == ["snow", "fog"]
    assert error_grid(cells, top5=True).errors["fog"] == [0.0, 0.0]
    del cells["fog", 5], cells[CLEAN]
    with pytest.raises(ValueError, match="same severities"):
        error_grid(cells)
    assert error_grid({}) == (None, {}, ())


def test_weights_give_each_metric():
    cells = cells_of({CLEAN: 5, ("fog", 1): 10, ("fog", 5): 20, ("snow", 5): 40, ("snow", 1): 33})
    stacked = stack(cells)
    means = stacked.values.double().mean(1)
    clean, errors, severities = error_grid(cells)
    assert clean is not None
    expected = {
        "clean_error": clean,
        "mean_corruption_error": mean_corruption_error(errors),
        "mce": mce(errors, OURS, severities=severities),
        "relative_mce": relative_mce(errors, clean, OURS, severities=severities),
    }
    for metric, value in expected.items():
        assert (cell_weights(stacked.keys, metric, OURS) @ means).item() == pytest.approx(value)


def test_weights_refuse():
    with pytest.raises(ValueError, match="needs the cell"):
        cell_weights([("fog", 1)], "relative_mce", OURS)
    with pytest.raises(ValueError, match="same severities"):
        cell_weights([("fog", 1), ("snow", 1), ("snow", 5)], "mean_corruption_error")
    with pytest.raises(ValueError, match="do not call it mCE"):
        cell_weights([("fog", 1), ("fog", 5)], "mce", OURS)
    assert cell_weights([("fog", 1)], "mce", OURS, partial=True).tolist() == [5.0]
    with pytest.raises(ValueError, match="expected 'clean_error'"):
        cell_weights([("fog", 1)], "accuracy")


def test_class_errors_average_the_cells():
    # of 50 images per class, the first w images are wrong: half of them in each class
    cells = cells_of({CLEAN: 100, ("fog", 1): 10, ("fog", 5): 30})
    assert mean_class_errors(cells, 3).tolist()[:2] == [20.0, 20.0]
    assert mean_class_errors(cells, 3)[2].isnan()
    with pytest.raises(ValueError, match="at least one corrupted cell"):
        mean_class_errors({CLEAN: cells[CLEAN]})
