"""Several training seeds of one network taken together: which seed is which, the spread, and the tests."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from robustness_results import Reds, make_reds, make_result
from shiftnorm.evaluate.comparison import compare
from shiftnorm.evaluate.corruption_rows import compare_corruptions
from shiftnorm.evaluate.group_mean import average_runs
from shiftnorm.evaluate.group_table import describe_groups, list_group_notes, render_groups, say_groups
from shiftnorm.evaluate.html_report import render_results, write_report
from shiftnorm.evaluate.metrics import summarize
from shiftnorm.evaluate.paired import adjust_holm, compare_seeds
from shiftnorm.evaluate.result import Estimate, Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.seed_groups import GroupRow, SeedGroup, compare_groups, compare_runs, group_results
from shiftnorm.evaluate.table import format_signed

NETS = {"plain": (0.30, 0.28, 0.33), "robust": (0.05, 0.02, 0.04)}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, Result]]]:
    """Two networks of three seeds each, measured on the same images."""
    data, root = make_reds(60), tmp_path_factory.mktemp("runs")
    found: dict[str, list[tuple[str, Result]]] = {}
    for name, weights in NETS.items():
        for seed, mixed in enumerate(weights):
            out = root / f"{name}-seed{seed}"
            result = robustness(
                Reds(mixed), data, ["fog", "gaussian_noise"], [1, 5], normalize="half", out=out, name=name,
                progress=False, bootstrap=20, examples=False,
            )  # fmt: skip
            found.setdefault(name, []).append((str(out), result))
    return found


def result_of(name: str, network: str) -> Result:
    return make_result(name, corruptions=["fog"], fingerprint={"model": network, "data": "d"})


def test_the_rows_are_the_tests_by_hand(named: dict[str, list[tuple[str, Result]]]) -> None:
    groups = group_results(named)
    assert [(group.name, list(group.runs), group.known) for group in groups] == [
        ("plain", [0, 1, 2], True),
        ("robust", [0, 1, 2], True),
    ]
    assert groups[1].runs[2].name == "robust, seed 2"
    first, second = compare_groups(groups, resamples=200)
    errors = [{s: r.mean_corruption_error.value for s, r in g.runs.items() if r.mean_corruption_error} for g in groups]
    assert second.corrupted is not None and second.corrupted.mean == pytest.approx(sum(errors[1].values()) / 3)
    assert second.difference == compare_seeds(errors[1], errors[0]) and first.difference is None
    clean = [{s: r.clean.error.value for s, r in g.runs.items()} for g in groups]
    assert second.clean_difference == compare_seeds(clean[1], clean[0])
    # over images: the mean over seeds; of one seed it is what two networks are compared by
    found = second.over_images
    assert found is not None and second.difference is not None
    assert found.difference == pytest.approx(second.difference.difference)
    alone = [SeedGroup(group.name, {0: group.runs[0]}, True) for group in groups]
    single = compare_groups(alone, resamples=200)[1].over_images
    assert single == compare(alone[1].runs[0], alone[0].runs[0], resamples=200).mean_corruption_error


def test_seeds_that_only_one_has_are_not_paired(named: dict[str, list[tuple[str, Result]]]) -> None:
    rows = compare_groups(group_results({"plain": named["plain"][1:], "robust": named["robust"][:2]}), resamples=20)
    assert rows[1].difference is not None and rows[1].difference.count == 1 and rows[1].difference.p_t is None
    assert "Not all have the same seeds; only common ones are paired." in list_group_notes(rows)
    assert "One common seed says nothing about other seeds: robust." in describe_groups(rows)
    rows = compare_groups(group_results({"plain": named["plain"][2:], "robust": named["robust"][:2]}), resamples=20)
    assert rows[1].difference is None and rows[1].over_images is None and "–" in render_groups(rows)[5]


@pytest.mark.parametrize(
    ("places", "names", "seeds"),
    [
        (("a-seed3", "a-seed1"), ("x", "x"), [1, 3]),
        (("runs/seed 4/result.json", "runs/seed 5/result.json"), ("x", "x"), [4, 5]),
        (("a", "b"), ("CNSN, seed 7", "CNSN, seed 0"), [0, 7]),
        (("old-seed9", "old-seed9/b"), ("CNSN, seed 7", "CNSN, seed 0"), [0, 7]),
        (("linseed1", "b"), ("x", "x"), None),
        (("a-seed1", "b-seed1"), ("x", "x"), None),
        (("a-seed1", "b"), ("x", "x"), None),
    ],
)
def test_which_seed_a_run_is_of(places: tuple[str, str], names: tuple[str, str], seeds: list[int] | None) -> None:
    runs = [
        (place, result_of(name, str(number))) for number, (place, name) in enumerate(zip(places, names, strict=True))
    ]
    (group,) = group_results({"net": runs})
    assert list(group.runs) == ([1, 2] if seeds is None else seeds) and group.known == (seeds is not None)
    rows = compare_groups([group])
    assert any("paired in the order given" in note for note in list_group_notes(rows)) == (seeds is None)
    assert ("2 runs" in say_groups(rows)[0]) == (seeds is None)


def test_the_record_of_a_run_tells_its_seed(tmp_path: Path) -> None:
    runs: list[tuple[str, Result]] = []
    for seed, name in ((12, "a"), (11, "b")):
        place = tmp_path / name / "evaluation" / "0f"
        place.mkdir(parents=True)
        (tmp_path / name / "record.json").write_text(json.dumps({"seed": seed}))
        runs.append((str(tmp_path / name), replace(result_of("x", name), folder=place)))
    assert list(group_results({"net": runs})[0].runs) == [11, 12]


def test_what_does_not_belong_together_is_refused() -> None:
    one, other = ("a-seed0", result_of("a", "1")), ("b-seed0", result_of("b", "2"))
    with pytest.raises(ValueError, match="a-seed0 and copy-seed1 of the group net are of the same network"):
        group_results({"net": [one, ("copy-seed1", replace(one[1]))]})
    with pytest.raises(ValueError, match="a-seed0 is given in the groups a and b; it would be compared with itself"):
        group_results({"a": [one], "b": [one]})
    with pytest.raises(ValueError, match="a-seed0 is given twice in the group net"):
        group_results({"net": [one, other, one]})
    strange = ("b-seed0", replace(other[1], settings={**other[1].settings, "seed": 5}))
    with pytest.raises(ValueError, match="a-seed0 and b-seed0 were not measured alike: seed 0 and 5"):
        group_results({"a": [one], "b": [strange]})


def test_the_means_are_of_the_runs(named: dict[str, list[tuple[str, Result]]]) -> None:
    row = compare_groups(group_results(named), resamples=20)[0]
    runs, mean = list(row.runs.values()), average_runs(row)
    assert mean.name == "plain" and len(mean.cells) == 4 and mean.folder is None
    errors = [run.cells[3].error.value for run in runs]
    assert mean.cells[3].error == Estimate(fmean(errors), min(errors), max(errors)) and min(errors) < max(errors)
    assert mean.cells[3].corruption == runs[0].cells[3].corruption and mean.cells[3].severity == 5
    assert mean.mean_corruption_error is not None and row.corrupted is not None
    assert mean.mean_corruption_error == (row.corrupted.mean, row.corrupted.low, row.corrupted.high)
    assert mean.class_errors["clean"][1] == pytest.approx(sum(r.class_errors["clean"][1] or 0.0 for r in runs) / 3)
    found, each = mean.calibration["corrupted"], [run.calibration["corrupted"] for run in runs]
    assert found.ece == pytest.approx(sum(one.ece for one in each) / 3)
    assert sum(row["count"] for row in found.bins) == sum(row["count"] for one in each for row in one.bins)
    place = max(range(len(found.bins)), key=lambda place: found.bins[place]["count"])
    same = [one.bins[place] for one in each if one.bins[place]["count"]]
    right = sum(row["count"] * row["accuracy"] for row in same)
    assert found.bins[place]["accuracy"] == pytest.approx(right / found.bins[place]["count"])


def test_a_class_without_images_in_one_run_has_no_mean() -> None:
    runs = {0: make_result("a, seed 0"), 1: make_result("a, seed 1", calibration={})}
    row = GroupRow("a", [0, 1], True, summarize([1.0, 2.0]), *(None,) * 6, runs=runs)
    mean = average_runs(row)
    assert mean.class_errors["clean"][9] is None and mean.class_errors["clean"][0] == 8.0 and mean.calibration == {}


def test_corruptions_are_compared_over_seeds(named: dict[str, list[tuple[str, Result]]]) -> None:
    first, second = compare_groups(group_results(named), resamples=20)
    assert first.corruptions == {} and list(second.corruptions) == ["fog", "gaussian_noise"]
    plain = {
        name: compare_seeds(
            *({seed: fmean(run.errors[name]) for seed, run in row.runs.items()} for row in (second, first))
        )
        for name in second.corruptions
    }
    adjusted = adjust_holm([each.p_t or 0.0 for each in plain.values()])
    assert [each.p_t for each in second.corruptions.values()] == adjusted
    assert [each[:4] for each in second.corruptions.values()] == [each[:4] for each in plain.values()]
    # with a single common seed there is a difference and no test
    alone = compare_groups(group_results({name: runs[:1] for name, runs in named.items()}), resamples=20)[1]
    assert alone.corruptions["fog"].p_t is None and alone.corruptions["fog"].count == 1
    cell = dict(compare_corruptions([average_runs(row) for row in (first, second)], {}, (first, alone)))["fog"][1]
    assert cell is not None and cell.difference is not None and not cell.clear


def test_single_runs_are_compared_with_their_partners(named: dict[str, list[tuple[str, Result]]]) -> None:
    groups = group_results({"plain": named["plain"][:2], "robust": named["robust"]})
    found = compare_runs(compare_groups(groups, resamples=20), resamples=20)
    assert {place: (each.first, each.second) for place, each in found.items()} == {
        2: ("robust, seed 0", "plain, seed 0"),
        3: ("robust, seed 1", "plain, seed 1"),
    }
    assert found[3] == compare(groups[1].runs[1], groups[0].runs[1], resamples=20)


@pytest.fixture(scope="module")
def grouped(
    named: dict[str, list[tuple[str, Result]]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[GroupRow]]:
    """The page of two groups."""
    rows = compare_groups(group_results({"plain <b>": named["plain"], "robust": named["robust"]}), resamples=100)
    return write_report(runs_of(rows), tmp_path_factory.mktemp("page") / "r.html", groups=rows), rows


def runs_of(rows: list[GroupRow]) -> list[Result]:
    return [run for row in rows for run in row.runs.values()]


def sections(text: str, heading: str) -> dict[str, str]:
    """What follows every heading."""
    parts = re.split(heading, text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_is_of_networks(grouped: tuple[Path, list[GroupRow]]) -> None:
    path, rows = grouped
    page, found, clean = path.read_text(), rows[1].difference, rows[1].clean
    assert "plain <b>" not in page and "plain &lt;b&gt;" in page
    assert found is not None and f"{clean.mean:.1f} ± {clean.std:.1f}" in page and f"{found.p_t:.2g}" in page
    assert "these err less: robust by" in page and "cannot be below 0.25" in page
    parts = sections(page, r"<h2>(.*?)</h2>")
    assert list(parts) == [
        "Over training seeds",
        "Error by corruption and severity, mean over seeds",
        "Corruption by corruption",
        "Error against severity",
        "How far its confidence can be trusted",
        "Classes hurt most",
        "The single runs",
        "How it was measured",
    ]
    for name, part in parts.items():
        # single runs are shown where the page says so, and nowhere else
        assert ("robust, seed 2" in part) == (name in ("The single runs", "How it was measured")), name
    heat = parts["Error by corruption and severity, mean over seeds"]
    assert heat.count('<table class="heat">') == 2
    fog = average_runs(rows[1]).cells[0].error
    assert f"fog, severity 1: {fog.value:.1f} % ({fog.low:.1f} to {fog.high:.1f})" in heat
    gap = rows[1].corruptions["fog"]
    assert (
        f'title="{format_signed(gap.low)} to {format_signed(gap.high)}, p = {gap.p_t:.2g}"'
        in (parts["Corruption by corruption"])
    )
    assert parts["Over training seeds"].count('<div class="axis">') == 2
    single = compare_runs(rows)[4].mean_corruption_error
    assert (
        single is not None
        and f"{format_signed(single.low)} to {format_signed(single.high)}" in (parts["The single runs"])
    )
    assert "with the run of <bdi>plain &lt;b&gt;</bdi> of the same seed" in parts["The single runs"]


def test_the_markdown_is_of_networks(grouped: tuple[Path, list[GroupRow]]) -> None:
    path, rows = grouped
    text = path.with_suffix(".md").read_text()
    assert "\n\n\n" not in text and text.index("these err less") < text.index("## Over training seeds")
    parts = sections(text, r"(?m)^## (.*)$")
    errors = "error in percent by corruption and severity, mean over seeds"
    heats = [f"{name}: {errors}" for name in ("plain &lt;b&gt;", "robust")]
    hurt = "plain &lt;b&gt;: most-hurt classes, mean over seeds"
    assert list(parts)[2:6] == [heats[0], hurt, heats[1], "The single runs"]
    assert "| robust | 3 (0, 1, 2) |" in parts["Over training seeds"]
    gap, mean = rows[1].corruptions["fog"], fmean(average_runs(rows[1]).errors["fog"])
    assert f"{mean:.1f} ({format_signed(gap.difference)}" in list(parts.values())[1]
    assert "Difference to plain &lt;b&gt;, same seed" in parts["The single runs"]
    assert {name.partition(": ")[2] for name in list(parts)[6:]} == {"notes", "how it was measured"}


def test_the_numbers_are_of_networks_and_of_runs(grouped: tuple[Path, list[GroupRow]]) -> None:
    path, rows = grouped
    with path.with_suffix(".summary.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    against = {(line["model"], line["against"]) for line in lines if line["quantity"].endswith("_difference")}
    assert against == {("robust", "plain <b>"), *((f"robust, seed {n}", f"plain <b>, seed {n}") for n in range(3))}
    fog = {line["model"]: line for line in lines if line["corruption"] == "fog" and line["over"] == "seeds"}
    (mean,) = (
        e for e in lines if (e["model"], e["quantity"], e["corruption"]) == ("robust", "corruption_error", "fog")
    )
    assert float(mean["value"]) == pytest.approx(fmean(average_runs(rows[1]).errors["fog"])) and mean["count"] == "3"
    gap = rows[1].corruptions["fog"]
    assert (float(fog["robust"]["value"]), float(fog["robust"]["p_value"])) == (gap.difference, gap.p_t)
    assert fog["robust"]["test"] == "paired t, Holm"


def test_one_group_alone(named: dict[str, list[tuple[str, Result]]]) -> None:
    rows = compare_groups(group_results({"robust": named["robust"]}), resamples=20)
    page = render_results(runs_of(rows), groups=rows)
    assert "<h1>What shift costs robust</h1>" in page and "robust, seed 2" in page
    assert "Difference<br>to the same seed" not in page and "Corruption by corruption" not in page
    assert 'class="figures"' not in page and page.count('<table class="heat">') == 1


def test_seeds_that_are_not_known_are_not_named(named: dict[str, list[tuple[str, Result]]], tmp_path: Path) -> None:
    runs = {
        name: [(f"{name}{place}", replace(result, folder=None)) for place, (_, result) in enumerate(runs)]
        for name, runs in named.items()
    }
    rows = compare_groups(group_results(runs), resamples=20)
    path = write_report(runs_of(rows), tmp_path / "r.html", groups=rows)
    page = path.read_text()
    assert "robust, run 3" in page and "at the same place" in page and "same seed" not in page
    assert "there is no such run, or the results of single images were not at hand." in page
    assert "Difference to plain, same place" in path.with_suffix(".md").read_text()


def test_results_that_are_not_the_runs_are_refused(named: dict[str, list[tuple[str, Result]]]) -> None:
    rows = compare_groups(group_results(named), resamples=20)
    with pytest.raises(ValueError, match="expected the 6 runs of the groups as results, one group after the other"):
        render_results(runs_of(rows)[::-1], groups=rows)
    assert "Over training seeds" not in render_results(runs_of(rows), comparisons={})
