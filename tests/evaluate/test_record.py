from __future__ import annotations

import json
import os

import pytest

from shiftnorm.evaluate import record as module
from shiftnorm.evaluate.record import Record, describe_machine, read_record, write_record

RECORD = Record(
    key="0123",
    norm="SelfNorm",
    seed=1,
    status="ok",
    recipe={"epochs": 2, "norms": ["SelfNorm"]},
    data={"name": "toy", "sha256": "ff"},
    clean_error=12.5,
    corruption_errors={"fog": [20.0, 30.0]},
    parameters=77,
    history={"loss": [1.0, 0.5]},
    durations={"train_s": 1.5},
    versions={"torch": "2"},
    machine={"cpu_count": 2},
    finished="2026-01-01T00:00:00+00:00",
)


def test_round_trip(tmp_path):
    path = tmp_path / "records" / "run.json"
    write_record(path, RECORD)
    assert read_record(path) == RECORD
    assert os.listdir(path.parent) == ["run.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_record(path, RECORD)

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_record(path, Record(key="new", norm="x", seed=0, status="ok", clean_error=1.0))
    assert read_record(path) == RECORD
    assert os.listdir(tmp_path) == ["run.json"]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(tmp_path / "run.json", Record("0", "x", 0, "ok", clean_error=float("nan")))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "shiftnorm.run/1", "key": "0', "ends or breaks at line 1"),
        ("", "ends or breaks"),
        ("[1]", "got list"),
        ("{}", "missing fields"),
        (json.dumps({"format": "other", "key": "0", "norm": "x", "seed": 0, "status": "ok"}), "format 'other'"),
        (
            json.dumps({"format": module.FORMAT, "key": "0", "norm": "x", "seed": 0, "status": "ok", "extra": 1}),
            r"unknown fields \['extra'\]",
        ),
        (json.dumps({"format": module.FORMAT, "key": "0", "norm": "x", "seed": 0, "status": "ok"}), "finite errors"),
    ],
    ids=["cut", "empty", "list", "no fields", "format", "unknown field", "no results"],
)
def test_a_damaged_record_names_its_file(tmp_path, text, message):
    path = tmp_path / "SelfNorm-seed0.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_record(path)
    assert "SelfNorm-seed0.json" in str(caught.value)
    assert "Delete" in str(caught.value)


def test_the_machine_has_no_name():
    machine = describe_machine("cpu", 1)
    assert os.uname().nodename not in json.dumps(machine)
    assert set(machine) == {"architecture", "system", "cpu_count", "device", "threads"}
