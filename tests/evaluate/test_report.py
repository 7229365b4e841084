from __future__ import annotations

import itertools
import re

import pytest
import torch

from shiftnorm.evaluate.chart import Line, choose_ticks, draw_lines, spread_labels
from shiftnorm.evaluate.record import Record
from shiftnorm.evaluate.report import describe_findings, render_report
from shiftnorm.evaluate.table import build_rows, to_markdown
from shiftnorm.evaluate.timing import StepTime, time_steps

NORMS = ["BatchNorm", "SelfNorm", "CNSN", "<Odd> & Co"]
RECIPE = {
    "severities": [1, 2], "seeds": [0, 1], "epochs": 2, "corruptions": ["fog", "shot_noise"], "depth": 10,
    "widen_factor": 1, "batch_size": 4, "momentum": 0.9, "learning_rate": 0.1, "weight_decay": 0.0, "shift": 4,
    "flip": False,
}  # fmt: skip
DATA = {"name": "toy set", "train": 8, "test": 4, "classes": ["a", "b"], "sha256": "0123456789abcdef", "size": [8, 8]}


def make_record(norm: str, seed: int, clean: float, corrupted: float) -> Record:
    errors = {"fog": [corrupted - 5, corrupted + 5], "shot_noise": [corrupted, corrupted]}
    return Record("0f", norm, seed, "ok", clean_error=clean, corruption_errors=errors, parameters=1234)


RECORDS = [
    make_record("BatchNorm", 0, 5.0, 40.0),
    make_record("BatchNorm", 1, 6.0, 42.0),
    make_record("SelfNorm", 0, 5.0, 30.0),
    make_record("SelfNorm", 1, 5.5, 31.0),
    make_record("CNSN", 0, 5.5, 40.0),
    make_record("CNSN", 1, 6.0, 43.0),
    make_record("<Odd> & Co", 0, 9.0, 50.0),
    Record("0f", "<Odd> & Co", 1, "failed", message="ArithmeticError: the training loss is nan at step 7"),
]
TIMES = {"BatchNorm": StepTime(20.0, 1.0), "SelfNorm": StepTime(23.0, 1.15)}


def make_rows(records=RECORDS):
    return build_rows(records, NORMS, reference="BatchNorm", step_times=TIMES)


def render(records=RECORDS):
    pictures = {name: [torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)] * 3 for name in RECIPE["corruptions"]}
    return render_report(
        make_rows(records), records, RECIPE, DATA, {"torch": "2"}, {"cpu_count": 2}, pictures, "BatchNorm"
    )


def test_rows_by_hand():
    base, self_norm, cnsn, odd = make_rows()
    assert base.clean is not None and base.clean.mean == 5.5
    assert base.corrupted is not None and base.corrupted.mean == 41.0
    assert base.difference is None
    assert self_norm.difference is not None and self_norm.difference.mean == -10.5
    assert self_norm.difference.exceeds_spread is True
    assert cnsn.difference is not None and cnsn.difference.exceeds_spread is False
    assert odd.difference is not None and odd.difference.exceeds_spread is None
    assert odd.failures == {1: "ArithmeticError: the training loss is nan at step 7"}
    assert base.by_corruption["fog"] == [36.0, 46.0]


def test_the_table_says_what_is_within_the_spread():
    text = to_markdown(make_rows(), "BatchNorm")
    assert "−10.5 (better)" in text
    assert "+0.5 (within spread)" in text
    assert "Not larger than the spread of the seeds, so no finding either way: CNSN.\n" in text
    assert "<Odd> & Co, seed 1 failed: ArithmeticError" in text
    assert "1.15 ×" in text and "1,234" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1 and len(table) == 2 + len(NORMS)


def test_findings_claim_no_more_than_the_seeds_allow():
    better, within = describe_findings(make_rows(), "BatchNorm")[1:3]
    assert "SelfNorm" in better and "CNSN" not in better
    assert "CNSN" in within and "SelfNorm" not in within
    single = describe_findings(make_rows([r for r in RECORDS if r.seed == 0]), "BatchNorm")
    assert "no difference is claimed" in single[-1]


def test_a_difference_beyond_the_spread_whose_interval_holds_zero_is_tentative():
    base = [make_record("BatchNorm", seed, 5.0, value) for seed, value in enumerate((40.0, 42.0))]
    rows = make_rows([*base, *(make_record("CNSN", seed, 5.0, value) for seed, value in enumerate((38.0, 37.0)))])
    assert rows[2].difference is not None and rows[2].difference.exceeds_spread is True  # -3.5, spread 2
    assert rows[2].difference.interval == pytest.approx((-3.5 - 12.7062 * 1.5, -3.5 + 12.7062 * 1.5), abs=1e-3)
    text = to_markdown(rows, "BatchNorm")
    assert "−3.5 (tentative)" in text and "so confirm with more seeds: CNSN.\n" in text
    assert "larger than the spread of the seeds: CNSN" not in text and "no finding either way" not in text
    assert describe_findings(rows, "BatchNorm")[1:] == [
        "Beyond the spread, but zero lies in the interval of the difference: CNSN."
    ]


def test_the_page_is_whole_and_self_contained():
    page = render()
    for name in ("BatchNorm", "SelfNorm", "CNSN", "&lt;Odd&gt; &amp; Co", "toy set", "shot noise"):
        assert name in page
    assert "<Odd>" not in page
    assert "http" not in page and "//" not in re.sub(r"base64,[^\"]*", "", page)
    assert not re.findall(r"<(?:script|link|iframe)", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert len(re.findall(r"<img", page)) == 2 * 3
    assert page.count("<svg") == page.count("</svg>")
    assert "the training loss is nan at step 7" in page
    assert "within spread" in page


def test_the_page_without_any_finished_run():
    failed = [Record("0f", norm, 0, "failed", message="out of memory") for norm in NORMS]
    page = render(failed)
    assert "nothing to compare" in page and page.count("seed 0 failed: out of memory") == len(NORMS)


def test_choose_ticks_cover_the_range():
    for low, high in ((0.0, 1.0), (31.2, 33.9), (0.0, 99.9), (5.0, 5.0)):
        ticks = choose_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and ticks == sorted(set(ticks)) and len(ticks) > 1


def test_labels_do_not_overlap():
    places = [100.0, 101.0, 99.0, 10.0, 200.0, 199.0]
    moved = spread_labels(places, 15.0, 0.0, 205.0)
    order = sorted(moved)
    assert all(after - before >= 15 - 1e-6 for before, after in itertools.pairwise(order))
    assert sorted(range(6), key=lambda i: moved[i]) == sorted(range(6), key=lambda i: places[i])
    assert max(moved) <= 205.0


def test_every_line_has_its_own_look():
    svg = draw_lines([Line(f"norm {i}", i, [1.0, 2.0]) for i in range(16)], ["a", "b"], title="t")
    looks = re.findall(r"<polyline (.*?) points", svg)
    assert len(looks) == 16 and len(set(looks)) == 16


def test_steps_are_timed_in_turns():
    calls: list[str] = []
    times = time_steps(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "a", warmup=1, min_rounds=4, max_rounds=4
    )
    assert sorted(calls) == ["a"] * 5 + ["b"] * 5
    assert all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, 10, 2))
    assert times["a"].ratio == 1.0
    with pytest.raises(ValueError, match="reference"):
        time_steps({"a": lambda: None}, "b")
