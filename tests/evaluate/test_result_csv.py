"""The CSV of what sums results up: one number a line, with its interval, what it is against and its test."""

from __future__ import annotations

import csv
import io

import pytest

from robustness_results import COMPARISONS, make_result, make_trio
from shiftnorm.evaluate.metrics import summarize
from shiftnorm.evaluate.paired import compare_seeds
from shiftnorm.evaluate.result import Estimate
from shiftnorm.evaluate.result_csv import SUMMARY_COLUMNS, render_summary
from shiftnorm.evaluate.seed_groups import GroupRow


def read(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    assert all(tuple(row) == SUMMARY_COLUMNS and None not in row.values() for row in rows)
    return rows


def only(rows: list[dict[str, str]], **fields: str) -> dict[str, str]:
    (found,) = [row for row in rows if all(row[key] == value for key, value in fields.items())]
    return found


def test_every_network_has_its_numbers() -> None:
    told = {"name": "AlexNet", "source": "published", "called": "mCE of a part"}
    one = make_result("=1+1", mce=Estimate(80.0, 79.0, 81.0), relative_mce=Estimate(90.0), baseline=told)
    rows = read(render_summary([one, make_result("other", corruptions=())], {}))
    assert {row["model"] for row in rows} == {"'=1+1", "other"}
    mine = [row for row in rows if row["model"] == "'=1+1"]
    mean = one.mean_corruption_error
    assert mean is not None
    for quantity, value, low, high in (
        ("clean_error", 8.0, "7.5", "8.6"),
        ("mean_corruption_error", mean.value, str(mean.low), str(mean.high)),
        ("shift_cost", mean.value - 8.0, "", ""),
        ("clean_ece", 2.1, "", ""),
        ("corrupted_rms_calibration_error", 16.0, "", ""),
        ("mean_corruption_brier", 0.3, "", ""),
        ("parameters", 11_173_962, "", ""),
    ):
        row = only(mine, quantity=quantity)
        assert float(row["value"]) == pytest.approx(value) and (row["low"], row["high"]) == (low, high)
        assert row["level"] == ("0.95" if low else "")
    named = only(mine, quantity="mce")
    assert (named["value"], named["low"], named["against"], named["note"]) == (
        "80.0",
        "79.0",
        "AlexNet",
        told["called"],
    )
    assert only(mine, quantity="relative_mce")["low"] == "" and only(mine, quantity="clean_error")["count"] == "10000"
    worst = one.worst_corruption
    assert worst is not None and only(mine, quantity="worst_corruption_error")["corruption"] == worst[0]
    # nothing was corrupted, so there is nothing to say of it
    rest = {row["quantity"] for row in rows if row["model"] == "other"}
    assert "clean_error" in rest and not {"mce", "shift_cost", "mean_corruption_error"} & rest


def test_differences_have_what_they_are_to_and_their_test() -> None:
    rows = [row for row in read(render_summary(make_trio(), COMPARISONS)) if row["test"]]
    assert {row["against"] for row in rows} == {"BatchNorm"} and {row["over"] for row in rows} == {"images"}
    second = [row for row in rows if row["model"] == "IBN <b>a</b> & co"]
    found = COMPARISONS[1].mean_corruption_error
    assert found is not None
    row = only(second, quantity="mean_corruption_error_difference")
    assert [float(row[key]) for key in ("value", "low", "high", "p_value")] == [*found[2:]]
    assert row["test"] == "permutation" and row["level"] == "0.95"
    fog = only(second, quantity="error_difference", corruption="fog")
    assert fog["test"] == "permutation, Holm" and fog["p_value"] == "0.001"
    assert len(second) == 4 == len(rows) - len(second)


def test_groups_have_their_spread_and_tests_over_seeds() -> None:
    errors = {0: 30.0, 1: 31.0, 2: 29.0}
    paired = compare_seeds(errors, {0: 33.0, 1: 33.0, 2: 33.0})
    base = GroupRow("a", [0, 1, 2], True, summarize([5.0, 6.0, 7.0]), summarize([33.0] * 3), None, None, *[None] * 3)
    row = GroupRow("b", [0, 1, 2], True, base.clean, summarize([*errors.values()]), None, None, paired, paired, None)
    rows = [row for row in read(render_summary([make_result("b, seed 0")], {}, [base, row])) if row["over"] == "seeds"]
    mean = only(rows, model="b", quantity="mean_corruption_error")
    assert (mean["value"], mean["std"], mean["count"]) == ("30.0", "1.0", "3")
    t = only(rows, quantity="mean_corruption_error_difference", test="paired t")
    assert (t["value"], t["against"], float(t["p_value"])) == ("-3.0", "a", paired.p_t) and float(t["high"]) < 0
    flips = only(rows, quantity="mean_corruption_error_difference", test="sign flips")
    assert flips["p_value"] == "0.25" and flips["note"] == "cannot be below 0.25"
    single = GroupRow("b", [0], True, base.clean, None, None, None, compare_seeds({0: 1.0}, {0: 2.0}), None, None)
    last = read(render_summary([make_result()], {}, [base, single]))[-1]
    assert (last["quantity"], last["value"], last["test"], last["low"]) == ("clean_error_difference", "-1.0", "", "")
