"""Several training seeds of one network taken together: which seed is which, the spread, and the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from robustness_results import Reds, make_reds, make_result
from shiftnorm.evaluate.comparison import compare
from shiftnorm.evaluate.group_table import describe_groups, list_group_notes, render_groups, say_groups
from shiftnorm.evaluate.html_report import render_results, write_report
from shiftnorm.evaluate.paired import compare_seeds
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.seed_groups import SeedGroup, compare_groups, group_results

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
        group_results({"net": [one, ("copy-seed1", one[1])]})
    strange = ("b-seed0", replace(other[1], settings={**other[1].settings, "seed": 5}))
    with pytest.raises(ValueError, match="a-seed0 and b-seed0 were not measured alike: seed 0 and 5"):
        group_results({"a": [one], "b": [strange]})


def test_the_page_and_the_markdown(named: dict[str, list[tuple[str, Result]]], tmp_path: Path) -> None:
    groups = group_results({"plain <b>": named["plain"], "robust": named["robust"]})
    rows = compare_groups(groups, resamples=100)
    results = [result for group in groups for result in group.runs.values()]
    path = write_report(results, tmp_path / "r.html", comparisons={}, groups=rows)
    page, text = path.read_text(), path.with_suffix(".md").read_text()
    assert "<h2>Over training seeds</h2>" in page and "<h2>Every run</h2>" in page and "plain <b>" not in page
    found, clean = rows[1].difference, rows[1].clean
    assert found is not None and f"{clean.mean:.1f} ± {clean.std:.1f}" in page and f"{found.p_t:.2g}" in page
    assert "these err less: robust by" in page and "cannot be below 0.25" in page
    assert "## Over training seeds" in text and "| robust | 3 (0, 1, 2) |" in text and "## Every run" in text
    assert text.index("these err less") < text.index("## Over training seeds") < text.index("## Every run")
    assert "robust, seed 2" in page and "seeds" in path.with_suffix(".summary.csv").read_text()
    assert "Over training seeds" not in render_results(results, comparisons={})
