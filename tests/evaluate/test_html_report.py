from __future__ import annotations

import csv
import io
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from robustness_results import COMPARISONS, Reds, make_reds, make_result, make_trio
from shiftnorm.evaluate.comparison import compare
from shiftnorm.evaluate.heat_table import build_shades, contrast_ratio, find_top, pick_shade
from shiftnorm.evaluate.html_report import render_results, write_report
from shiftnorm.evaluate.paired_results import find_comparisons, find_cost
from shiftnorm.evaluate.result import Estimate, Result
from shiftnorm.evaluate.result_csv import render_csv
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.robustness_chart import draw_reliability, place_estimates
from shiftnorm.evaluate.robustness_table import (
    describe_results,
    find_hurt_classes,
    find_mismatches,
    label_results,
    render_markdown,
)

GAPS = {1: Estimate(-6.1, -6.9, -5.3), 2: Estimate(0.3, -0.4, 1.0)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    data, folder = make_reds(120), tmp_path_factory.mktemp("runs")
    return [
        robustness(
            Reds(mixed), data, ["fog", "gaussian_noise"], [1, 5], normalize="half", out=folder / name, name=name,
            progress=False,
        )
        for name, mixed in (("worse", 0.2), ("better", 0.0))
    ]  # fmt: skip


def test_every_number_is_legible_on_its_shade_and_lightness_orders_the_shades():
    for dark in (False, True):
        shades = build_shades(dark=dark)
        assert min(shade.contrast for shade in shades) >= 4.5
        to_white = [contrast_ratio(shade.background, "#ffffff") for shade in shades]
        assert to_white == sorted(to_white, reverse=dark)
        # neighbours differ to an eye that sees no colour
        assert all(max(a, b) / min(a, b) > 1.04 for a, b in itertools.pairwise(to_white))


def test_contrast_against_published_values():
    assert contrast_ratio("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)
    assert contrast_ratio("#ff0000", "#ffffff") == pytest.approx(4.00, abs=0.005)


def test_the_scale_covers_every_error():
    assert [find_top([value]) for value in (0.0, 9.9, 10.0, 10.1, 99.2)] == [10.0, 10.0, 10.0, 20.0, 100.0]
    assert [pick_shade(value, 80.0) for value in (-1.0, 0.0, 40.0, 80.0, 81.0)] == [0, 0, 10, 20, 20]


def test_the_page_is_whole_and_self_contained():
    page = render_results(make_trio(), comparisons=COMPARISONS)
    bare = re.sub(r"base64,[^\"]*", "", page)
    assert "http" not in bare and "//" not in bare and "url(" not in bare
    assert not re.findall(r"<(?:script|link|iframe|object|form)", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert page.count("<svg") == page.count("</svg>") and page.count("<table") == page.count("</table>")
    assert page.count("<div") == page.count("</div>") and page.count("<span") == page.count("</span>")
    for text in ("prefers-color-scheme: dark", "@media print", "11,173,962", "1.93", "812 MB", "cifar32",
                 "shiftnorm evaluate net.safetensors --data cifar10", "Frost was made procedurally",
                 "−6.9 to −5.3"):  # fmt: skip
        assert text in page, text
    for result in make_trio():
        for cell in result.cells:
            assert f">{cell.error.value:.1f}<i style" in page
    # one star: fog under the second network, and under the third, by the p-values of the comparisons
    assert page.count(" *</span>") == 2


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a\u202eb\x1b[31m\nc", "{{ 7*7 }}"]
)
def test_no_text_becomes_markup(text):
    result = make_result(
        text, classes=[text] * 10, data={"name": text, text: text}, command=text, notes=[text], warnings=[text],
        versions={text: text}, machine={text: text}, settings={text: text}, finished=text, corruptions=["fog", text],
        baseline={"name": text, "source": text, "called": text}, mce=Estimate(70.0, 69.0, 71.0),
    )  # fmt: skip
    for page in (render_results([result]), render_results([result, result], title=text)):
        assert "<script" not in page and "<img src=x" not in page and "49" not in re.findall(r"<bdi>(.*?)</bdi>", page)
        assert "\u202e" not in page and "\x1b" not in page
        assert len(re.findall("<svg", page)) == len(re.findall("</svg>", page))
    markdown = render_markdown([result, result], {}, text)
    assert "<script" not in markdown and "<img" not in markdown and "\u202e" not in markdown
    assert {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("| net")} <= {8}


def test_names_that_are_no_unicode_are_written(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.safetensors")
    path = write_report(make_result(name, corruptions=["fog"], command=name), tmp_path / "a.html")
    assert "caf\\udce9.safetensors" in path.read_text(encoding="utf-8")
    assert "caf\\udce9" in path.with_suffix(".csv").read_text(encoding="utf-8")


def test_the_csv_holds_every_cell_and_no_formula():
    results = [make_result("net"), make_result("=1+1", corruptions=["fog"])]
    rows = list(csv.DictReader(io.StringIO(render_csv(results))))
    assert len(rows) == (1 + 75) + (1 + 5)
    assert rows[0]["corruption"] == "clean" and float(rows[0]["error_high"]) == 8.6
    first = results[0].cells[0]
    assert (rows[1]["corruption"], int(rows[1]["severity"])) == ("gaussian_noise", 1)
    assert float(rows[1]["error"]) == first.error.value and int(rows[1]["images"]) == 10_000
    assert {row["model"] for row in rows} == {"net", "'=1+1"}


def test_the_markdown_has_the_numbers():
    text = render_markdown(make_trio(), GAPS, "Three networks")
    assert text.startswith("# Three networks\n")
    assert "−6.1 (−6.9 to −5.3)" in text and "| IBN &lt;b&gt;a&lt;/b&gt; &amp; co |" in text
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(tables) == 1 + 3 * 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "mCE" not in text
    errors = make_trio()[0].errors["fog"]
    assert f"| fog | {' | '.join(f'{value:.1f}' for value in errors)} | {sum(errors) / 5:.1f} |" in text


def test_the_markdown_has_the_mce_and_names_its_baseline():
    told = {"name": "AlexNet", "source": "50,000 images", "called": "mCE of a part"}
    first = make_result("net", mce=Estimate(76.7, 76.1, 77.3), relative_mce=Estimate(105.0), baseline=told)
    lines = render_markdown([first, make_result("other")], {}, "Two").splitlines()
    head, rows = lines[4].split(" | "), [line.split(" | ") for line in lines[6:8]]
    place = head.index("mCE of a part %")
    assert head[place + 1] == "Relative mCE of a part %"
    assert '<th scope="col">mCE of a part %</th>' in render_results([first, make_result("other")])
    assert [row[place : place + 2] for row in rows] == [["76.7 (76.1 to 77.3)", "105.0"], ["–", "–"]]
    assert len({len(row) for row in (head, *rows)}) == 1
    assert "* baseline: AlexNet, 50,000 images, mCE of a part" in lines


def test_findings_claim_no_more_than_the_intervals_allow():
    results = make_trio()
    first, less, unclear = describe_results(results, GAPS)
    assert "shift costs it" in first
    assert "by 6.1 points" in less and "timm" not in less
    assert unclear.startswith("Not told apart from BatchNorm") and "timm" in unclear and "IBN" not in unclear
    assert len(describe_results(results, {1: Estimate(-6.1)})) == 1
    (worse,) = describe_results(results, {2: Estimate(2.0, 1.0, 3.0)})[1:]
    assert worse.startswith("These err more") and "by 2.0 points" in worse


def test_classes_are_ordered_by_what_corruption_adds():
    errors = {"clean": [1.0, 50.0, 5.0, None], "corrupted": [21.0, 60.0, 4.0, 8.0]}
    hurt = find_hurt_classes(make_result(classes=["a", "b", "c"], class_errors=errors))
    assert [(each.name, each.added) for each in hurt] == [("a", 20.0), ("b", 10.0)]
    assert [each.name for each in find_hurt_classes(make_result(classes=[], class_errors=errors), 1)] == ["class 0"]


def test_results_that_were_not_measured_alike_are_not_compared():
    first = make_result("a")
    others = {
        "seed 0 and 1": make_result("b", settings=first.settings | {"seed": 1}),
        "constants cifar32 and tiny64": make_result("b", settings=first.settings | {"constants": "tiny64"}),
        "10,000 and 9,999 images": _with(make_result("b"), images=9_999),
        "different images": make_result("b", fingerprint={"data": "e" * 16}),
        "not the same corruptions (fog 1, fog 2, fog 3, …)": make_result("b", corruptions=["snow"]),
    }
    first = {key: make_result("a", corruptions=["snow", "fog"]) if "corruptions" in key else first for key in others}
    for reason, other in others.items():
        assert find_mismatches(first[reason], other) == [reason]
        page = render_results([first[reason], other])
        assert f"were not measured alike: {reason}" in page and find_comparisons([first[reason], other]) == {}
    assert find_mismatches(make_result("a"), make_result("b", seed=3)) == []


def _with(result: Result, **fields) -> Result:
    return Result.from_json(result.to_json() | fields)


def test_names_that_repeat_are_numbered():
    page = render_results([make_result("net", corruptions=["fog"])] * 3)
    assert label_results([make_result("net"), make_result("net (2)"), make_result("net")]) == [
        "net",
        "net (2)",
        "net (3)",
    ]
    assert "<bdi>net (3)</bdi>" in page


def test_a_page_of_little():
    mappings = ("class_errors", "calibration", "settings", "data", "cost", "versions", "machine", "fingerprint")
    empty: dict = {key: {} for key in mappings}
    empty |= {"classes": [], "examples": [], "notes": [], "command": None, "finished": None}
    nothing = make_result(corruptions=(), **empty)
    page = render_results(nothing)
    assert "8.0" in page and '<table class="heat">' not in page and "Error against severity" not in page
    result = make_result("net", corruptions=["fog", "snow"])
    ragged = _with(
        result,
        cells=[cell for cell in result.to_json()["cells"] if cell["severity"] != 2 or cell["corruption"] == "fog"],
    )
    page = render_results([ragged, result])
    assert page.count('<td class="none">–</td>') == 1


def test_differences_and_costs_come_from_the_cells(measured: list[Result], tmp_path: Path):
    worse, better = measured
    found = find_comparisons([worse, better])[1]
    asked = compare(better, worse, resamples=1000)
    assert found == asked and found.mean_corruption_error is not None
    ours, theirs = better.mean_corruption_error, worse.mean_corruption_error
    assert ours is not None and theirs is not None
    assert found.mean_corruption_error.difference == pytest.approx(ours.value - theirs.value)
    cost = find_cost(worse)
    assert cost is not None and cost.low is not None and cost.high is not None
    assert cost.value == pytest.approx(theirs.value - worse.clean.error.value)
    assert cost.low < cost.value < cost.high
    path = write_report(measured, tmp_path / "report.html")
    low, high = (f"{abs(each):.1f}" for each in found.mean_corruption_error[3:5])
    assert re.search(f"[−+]?{low} to [−+]?{high}", path.read_text(encoding="utf-8"))
    assert "were not measured alike" not in path.read_text(encoding="utf-8")
    names = ["report.csv", "report.html", "report.md", "report.summary.csv"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    signs = f"{cost.low:+.1f} to {cost.high:+.1f} points".replace("-", "−")
    assert signs in render_results(worse)


def test_without_cells_there_is_a_difference_in_words_only(measured: list[Result]):
    loose = [Result.from_json(result.to_json()) for result in measured]
    cost = find_cost(loose[0])
    assert find_comparisons(loose) == {} and cost is not None and cost.low is None
    assert "single images were not at hand" in render_results(loose)


def test_a_damaged_cell_is_named(measured: list[Result], tmp_path: Path):
    assert measured[0].folder is not None
    folder = Path(shutil.copytree(measured[0].folder, tmp_path / "copy"))
    result = Result.load(folder)
    (folder / "cells" / "fog-5.safetensors").write_bytes(b"no cell")
    with pytest.raises(ValueError, match=r"fog-5\.safetensors is damaged"):
        find_cost(result)
    (folder / "cells" / "fog-5.safetensors").unlink()
    cost = find_cost(result)
    assert cost is not None and cost.low is None


def test_estimates_are_placed_on_the_axis():
    axis = place_estimates(["a", "b"], {0: Estimate(15.0, 10.0, 20.0), 1: Estimate(30.0)})
    assert [text for _, text in axis.ticks] == ["10", "15", "20", "25", "30"] and axis.zero is None
    assert axis.rows[0][3:] == (25.0, 0.0, 50.0) and axis.rows[1][3:] == (100.0, 100.0, 100.0)
    signed = place_estimates(["a", "b"], {1: Estimate(-4.0, -6.0, -2.0)}, signed=True)
    assert signed.ticks[0] == (0.0, "−6") and signed.ticks[-1] == (100.0, "0") and signed.zero == 100.0


def test_the_reliability_diagram_leaves_empty_bins_out():
    svg = draw_reliability(make_result().calibration, title="<t>")
    assert svg.count("<circle") == 12 and svg.count("<rect") == 12
    assert "&lt;t&gt;" in svg and "None" not in svg
    assert draw_reliability({}, title="t").count("<polyline") == 0


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="at least one result"):
        write_report([], tmp_path / "a.html")
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_report(make_result(), tmp_path / "a.pdf")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "shiftnorm\[train\]"'):
        write_report(make_result(), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []
