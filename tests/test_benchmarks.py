"""The benchmark measures what it says, its table says what was measured, and no norm is missing from it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import measure
import record as records
import rows
import run
import table
from shiftnorm import norms

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (4, 4, 6, 6)


@pytest.fixture(scope="module")
def small() -> dict:
    """A run of every row on a tiny tensor, as it comes back from disk."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = run.measured(rows.ROWS, [SHAPE], compiling="none", seconds=0.0, min_rounds=2, max_rounds=2)
    finally:
        torch.set_num_threads(threads)
    return json.loads(json.dumps(records.rounded(measured)))


def test_every_norm_has_a_row_and_every_row_a_norm() -> None:
    assert sorted({rows.norm_of(name) for name in rows.ROWS}) == sorted(rows.roster())


def test_the_roster_is_the_layers_and_nothing_else() -> None:
    roster = rows.roster()
    assert {"BatchNorm", "CNSN", "Chain", "EFDMix"} <= set(roster)
    assert not {"MomentNorm", "NormLayer", "CrossNormController", "CrossNormDraw", "restyle"} & set(roster)
    assert set(roster) <= set(norms.__all__)


def test_only_layers_outside_the_family_are_excused_from_the_targets() -> None:
    for name, row in rows.ROWS.items():
        made = row.ours(4)
        in_family = isinstance(made, norms.MomentNorm) or rows.norm_of(name) in ("CNSN", "Chain")
        assert row.moment == in_family, name


@pytest.mark.parametrize("name", rows.ROWS)
def test_ours_and_the_plain_formula_compute_the_same(name: str) -> None:
    row, x = rows.ROWS[name], torch.randn(SHAPE)
    torch.manual_seed(1)
    norm, draws = row.ours(SHAPE[1]), rows.draws_for(x)
    expected = row.plain(x, rows.plain_state(norm), draws)
    parts = list(norm.children()) if isinstance(norm, norms.Chain) else [norm]
    given = [replayed(part, x, draws) for part in parts]
    y = norm(x, draw=tuple(given) if isinstance(norm, norms.Chain) else given[0])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def replayed(norm: torch.nn.Module, x: torch.Tensor, draws: rows.Draws) -> object:
    """The norm's own draw, with the benchmark's numbers put in by field."""
    assert isinstance(norm, norms.NormLayer)
    own = norm.draw(x)
    if own is None:
        return None
    ours = {
        "partner": draws.permutation,
        "permutation": draws.permutation,
        "weight": draws.lam,
        "mean_noise": draws.mean_noise,
        "std_noise": draws.std_noise,
        "races": draws.races,
    }
    assert set(own._fields) - set(ours) <= {"acts", "channels", "style_box", "content_box", "order"}
    fields = {name: value for name, value in ours.items() if name in own._fields}
    return own._replace(**{name: value.reshape(getattr(own, name).shape) for name, value in fields.items()})


def test_record_has_every_number_for_every_row(small: dict) -> None:
    assert small["format"] == records.FORMAT
    assert set(small) == {"format", "date", "commit", "machine", "settings", "load", "seconds", "configs"}
    assert set(small["machine"]) == {"cpu", "cores", "torch", "python", "system"}
    assert small["settings"]["threads"] == 1
    assert small["settings"]["clock"] == "CPU time of the thread"
    assert [config["memory_format"] for config in small["configs"]] == ["contiguous", "channels_last"]
    for config in small["configs"]:
        assert config["rounds"] == 2
        assert not config["has_targets"]
        assert set(config["norms"]) == set(rows.ROWS)
        for name, kinds in config["norms"].items():
            expected = {"ours", "plain"} | ({"authors"} if rows.ROWS[name].authors else set())
            assert set(kinds) == expected, name
            for kind, result in kinds.items():
                assert "error" not in result, (name, kind, result)
                for key in ("forward_ms", "backward_ms", "total_ms", "copies", "to_our_batch_norm", "to_plain"):
                    assert result[key]["q1"] <= result[key]["median"] <= result[key]["q3"], (name, kind, key)
                assert result["peak"] > 1.9, (name, kind)
        assert config["norms"]["BatchNorm"]["ours"]["to_our_batch_norm"] == {"q1": 1.0, "median": 1.0, "q3": 1.0}


def test_record_names_no_place(small: dict) -> None:
    text = json.dumps(small)
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


def test_saved_bytes_by_hand() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    weight = torch.randn(3, 1, 1, requires_grad=True)
    size = x.numel() * 4
    assert measure.Step(lambda x: x.exp(), x, []).saved_bytes() == size  # its result
    assert measure.Step(lambda x: x * x, x, []).saved_bytes() == size  # x twice is x once
    assert measure.Step(lambda x: x * weight, x, [weight]).saved_bytes() == size  # a parameter lives anyway
    assert measure.Step(lambda x: x.exp().sin(), x, []).saved_bytes() == size  # exp keeps what sin keeps
    assert measure.Step(lambda x: x.square().exp(), x, []).saved_bytes() == 2 * size
    assert measure.Step(lambda x: x + 1, x, []).saved_bytes() == 0
    assert measure.Step(lambda x: x[:1] * x[:1], x, []).saved_bytes() == size  # a slice keeps the whole


def test_peak_bytes_by_hand() -> None:
    x = torch.randn(64, 32, 16, requires_grad=True)
    size = x.numel() * 4
    # y and the gradient of x
    assert measure.Step(lambda x: x * 2, x, []).peak_bytes() == pytest.approx(2 * size, rel=0.01)
    # the intermediate is alive while y is made, and gone again when the gradient is
    assert measure.Step(lambda x: (x * 2).exp(), x, []).peak_bytes() == pytest.approx(3 * size, rel=0.01)


def test_gradient_has_the_memory_format_of_the_output() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    assert measure.Step(lambda x: x * 2, x, []).g.is_contiguous(memory_format=torch.channels_last)
    assert measure.Step(lambda x: x.contiguous(), x, []).g.is_contiguous()


def test_compiled_functions_have_code_of_their_own() -> None:
    first, second = (measure.compiled(lambda x: x, name) for name in ("a/b", "c"))
    codes = [step.__wrapped__.__code__ for step in (first, second)]
    assert codes[0] is not codes[1]
    assert codes[0].co_name == "a_b"


def test_rounds_are_interleaved_and_warm_ups_do_not_count() -> None:
    calls: list[str] = []

    def step(name: str) -> tuple[float, float]:
        calls.append(name)
        return float(len(calls)), 0.0

    rounds = measure.interleaved(
        {name: lambda name=name: step(name) for name in "abc"}, warmup=1, min_rounds=3, max_rounds=5, seconds=0.0
    )
    assert len(rounds) == 3
    assert len(calls) == 12
    assert all(set(calls[i : i + 3]) == set("abc") for i in range(0, 12, 3))
    assert min(each["a"][0] for each in rounds) > 3
    assert len({"".join(calls[i : i + 3]) for i in range(0, 12, 3)}) > 1


def test_slow_steps_run_in_some_rounds_only() -> None:
    steps = {name: lambda: (1.0, 0.0) for name in "abc"}
    rounds = measure.interleaved(steps, warmup=2, min_rounds=9, max_rounds=9, seconds=0.0, rarely={"b"})
    assert [set(each) for each in rounds] == 2 * [set("abc"), set("ac"), set("ac"), set("ac")] + [set("abc")]


def test_ratios_are_of_the_rounds_that_hold_both() -> None:
    rounds = [{"SelfNorm/ours": (1.0, 1.0), "SelfNorm/plain": (4.0, 4.0)}, {"SelfNorm/ours": (9.0, 9.0)}]
    found = run.ratios(rounds, "SelfNorm", "ours", {"SelfNorm/ours", "SelfNorm/plain"})
    assert found["to_plain"]["median"] == 0.25
    assert set(found) == {"to_plain"}


def test_spread_is_median_and_quartiles() -> None:
    assert measure.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert measure.spread([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}


def test_a_candidate_that_fails_is_a_result(small: dict) -> None:
    def broken(x: torch.Tensor, state: rows.State, draws: rows.Draws) -> torch.Tensor:
        raise RuntimeError("this formula cannot run")

    selected = {
        "BatchNorm": rows.ROWS["BatchNorm"],
        "SelfNorm": rows.ROWS["SelfNorm"]._replace(plain=broken),
    }
    measured = run.measured(selected, [SHAPE], compiling="none", seconds=0.0, min_rounds=1, max_rounds=1)
    kinds = measured["configs"][0]["norms"]["SelfNorm"]
    assert kinds["plain"] == {"error": "RuntimeError: this formula cannot run"}
    assert "to_plain" not in kinds["ours"]
    assert "| SelfNorm |" in table.markdown(measured)


def test_table_shows_every_row_of_every_config(small: dict) -> None:
    text = table.markdown(small)
    for config in small["configs"]:
        assert f"### {SHAPE}, {config['memory_format'].replace('_', ' ')}" in text
    lines = text.splitlines()
    for name, kinds in small["configs"][0]["norms"].items():
        line = next(line for line in lines if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(table.COLUMNS)
        assert cells[1] == f"{kinds['ours']['copies']['median']:.1f}"
        assert cells[-1] == "reported"
    assert small["machine"]["cpu"] in text


def ratio(value: float) -> dict[str, float]:
    return {"median": value, "q1": value, "q3": value}


@pytest.fixture
def with_targets(small: dict) -> dict:
    """SelfNorm at a target's shape, every target met."""
    config = copy.deepcopy(small["configs"][0])
    config["has_targets"] = config["compiled"] = True
    config["norms"]["SelfNorm"] = {
        "ours": {
            "copies": ratio(6.0),
            "total_ms": ratio(9.0),
            "to_our_batch_norm": ratio(1.15),
            "to_plain_compiled": ratio(1.3),
            "to_authors": ratio(1 / 3.01),
            "saved": 1.0,
            "peak": 2.01,
        },
        "ours_compiled": {"copies": ratio(5.0), "to_plain_compiled": ratio(1.05)},
    }
    return config


def test_mark_when_every_target_is_met(with_targets: dict) -> None:
    assert table.mark("SelfNorm", with_targets) == "PASS"


@pytest.mark.parametrize(
    ("kind", "key", "value", "text"),
    [
        ("ours", "to_our_batch_norm", ratio(1.16), "miss: BatchNorm 1.16 > 1.15"),
        ("ours", "to_plain_compiled", ratio(1.31), "miss: plain compiled 1.31 > 1.3"),
        ("ours_compiled", "to_plain_compiled", ratio(1.06), "miss: both compiled 1.06 > 1.05"),
        ("ours", "to_authors", ratio(1 / 2.9), "miss: authors 2.90 < 3"),
        ("ours", "peak", 2.2, "miss: peak 2.20 > 2.05"),
        ("ours_compiled", "error", "out of memory", "miss: ours compiled failed"),
    ],
)
def test_mark_when_one_is_missed(with_targets: dict, kind: str, key: str, value: object, text: str) -> None:
    with_targets["norms"]["SelfNorm"][kind][key] = value
    assert table.mark("SelfNorm", with_targets) == text


def test_a_miss_says_when_the_compiled_algebra_meets_the_target(with_targets: dict) -> None:
    kinds = with_targets["norms"]["SelfNorm"]
    kinds["ours"]["to_our_batch_norm"] = ratio(1.2)
    kinds["ours_algebra"] = {"to_our_batch_norm": ratio(1.04)}
    assert table.mark("SelfNorm", with_targets) == "miss: BatchNorm 1.20 > 1.15 (1.04 with its algebra compiled)"
    kinds["ours_algebra"] = {"to_our_batch_norm": ratio(1.16)}
    assert table.mark("SelfNorm", with_targets) == "miss: BatchNorm 1.20 > 1.15"


def test_chain_has_the_tighter_limit() -> None:
    assert rows.ROWS["Chain (BatchNorm, CNSN)"].limit == 1.1
    assert rows.ROWS["CNSN"].limit == 1.15


def test_table_says_when_the_machine_was_busy(small: dict) -> None:
    quiet, busy = copy.deepcopy(small), copy.deepcopy(small)
    quiet["load"]["before"], busy["load"]["before"] = 0.0, 40.0
    assert "busy" not in table.introduction(quiet)
    assert "The machine was busy: its load was 40.0" in table.introduction(busy)


def test_table_from_a_stored_record(small: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = records.save(small, tmp_path / "record.json")
    run.main(["--table", str(path)])
    assert capsys.readouterr().out.strip() == table.markdown(small).strip()


def test_missing_and_foreign_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such record\. `python benchmarks/run\.py`"):
        records.load(tmp_path / "none.json")
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=r"expected a record of format shiftnorm\.bench/1, got 'other'"):
        records.load(foreign)
    foreign.write_text("no json")
    with pytest.raises(ValueError, match="expected a JSON record"):
        records.load(foreign)


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("[0-9]*.json")), ids=lambda path: path.stem)
def test_stored_records_still_make_tables(path: Path) -> None:
    assert table.markdown(records.load(path)).count("###") == len(records.load(path)["configs"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--norms", "Nothing"], "no row Nothing"), (["--threads", "0"], "expected at least 1, got 0")],
)
def test_bad_arguments(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert text in capsys.readouterr().err
