"""The run under compute-sanitizer says why it cannot run, reads what the tool writes and believes no blind tool."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sanitize
import sanitized
from shiftnorm.ops import triton_kernels

# In the form of the tool's documentation (Compute Sanitizer 2025): an overrun, and a race.
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
OVERRUN = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at apply_tile+0x160 in triton_kernels.py:280
=========     by thread (0,0,0) in block (0,0,0)
=========     Access to 0x7f6510c00fa0 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f6510c00000 of size 4,000 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= Invalid __global__ write of size 4 bytes
=========     at apply_tile+0x160 in triton_kernels.py:280
=========     by thread (1,0,0) in block (0,0,0)
=========     Access to 0x7f6510c00fa4 is out of bounds
=========
========= ERROR SUMMARY: 1,128 errors
========= ERROR SUMMARY: 1028 errors were not printed. Use --print-limit option to adjust the number of printed errors
"""
RACE_FREE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at join_sums+0xf0 in triton_kernels.py:40
=========     and Read access at join_sums+0x280 in triton_kernels.py:46 [4 hazards]
=========
========= Warning: Race reported between Write access at join_sums+0x5ad20 in standard.py:237
=========     and Write access at join_sums+0x5ad20 in standard.py:237 [6136 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
REFUSED = """\
========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section of the sanitizer documentation
=========
"""
UNTRACKED = (
    "========= Internal Sanitizer Error: The Sanitizer encountered an error while launching moments_tile and didn't "
    "track the launch. Errors might go undetected. (Unable to allocate enough memory)\n" + CLEAN
)
PASSED = "....\n340 passed, 2 skipped, 31 deselected in 83.20s (0:01:23)\n"


@pytest.mark.parametrize(
    ("tool", "log", "expected"),
    [
        ("memcheck", CLEAN, (0, 0)),
        ("memcheck", OVERRUN, (1128, 0)),
        ("memcheck", CLEAN + OVERRUN, (1128, 0)),
        ("memcheck", REFUSED, None),
        ("memcheck", "", None),
        ("racecheck", RACE_FREE, (0, 0)),
        ("racecheck", RACE, (1, 1)),
        ("racecheck", CLEAN, None),  # of another tool
        ("racecheck", RACE_FREE + "========= ERROR SUMMARY: 1 error\n", (1, 0)),
    ],
)
def test_summaries_are_read(tool: str, log: str, expected: tuple[int, int] | None) -> None:
    assert sanitize.findings(tool, log) == expected


def test_each_report_is_named_once_with_its_place() -> None:
    assert sanitize.reports(OVERRUN) == [
        "2 x Invalid __global__ write of size 4 bytes at apply_tile+0x160 in triton_kernels.py:280"
    ]
    first, second = sanitize.reports(RACE)
    assert first.startswith("1 x Error: Race reported between Write access at join_sums+0xf0 in triton_kernels.py:40")
    assert first.endswith("and Read access at join_sums+0x280 in triton_kernels.py:46")
    assert "standard.py:237" in second


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (PASSED, {"passed": 340, "skipped": 2, "deselected": 31}),
        ("1 failed, 2 passed, 1 error in 0.10s", {"failed": 1, "passed": 2, "error": 1}),
        ("3 passed in 1s\nkilled", {"passed": 3}),
        ("", {}),
    ],
)
def test_tests_are_counted(printed: str, expected: dict[str, int]) -> None:
    assert sanitize.counted(printed) == expected


def test_our_kernels_are_what_is_looked_at() -> None:
    assert set(triton_kernels.__all__) <= set(sanitize.kernels())
    words = sanitize.command("racecheck", Path("compute-sanitizer"), Path("log"), ["tests", "1"])
    assert "kns=moments_tile" in words and "kns=planted_" in words
    assert words[-2:] == ["tests", "1"]
    assert "planted_race" in sanitized.RACE


def test_torch_gives_every_tensor_memory_of_its_own() -> None:
    made = sanitize.environment({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "HOME": "/root"})
    assert made == {"HOME": "/root", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_large_tests_and_those_that_cannot_run_are_left_out() -> None:
    texts = [file.read_text() for file in sanitized.FILES]
    assert all(any(f"def {name}(" in text for text in texts) for name in sanitized.LEFT_OUT)
    plugin = sanitized.SmallOnly(100)

    def item(name: str, **given: object) -> SimpleNamespace:
        return SimpleNamespace(originalname=name, callspec=SimpleNamespace(params=given))

    assert not plugin.leaves_out(item("test_it", shape=(2, 5, 10), layout="contiguous", dtype=torch.float16))
    assert plugin.leaves_out(item("test_it", shape=(2, 5, 11)))
    assert not plugin.leaves_out(SimpleNamespace(originalname="test_without_parameters"))
    assert plugin.leaves_out(item("test_a_step_can_be_captured_in_a_cuda_graph"))


def pretended(folder: Path, body: str) -> Path:
    """A program that stands in for compute-sanitizer."""
    path = folder / "compute-sanitizer"
    path.write_text(f'#!/bin/bash\ncase "$*" in *--version*) echo Version 2025.3.1.0; exit;; esac\n{body}\n')
    path.chmod(0o755)
    return path


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sanitize, "machine", lambda device: {"device": device})
    monkeypatch.setattr(sanitize, "find_spec", lambda name: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


# Writes the first file for the planted fault and the second for the tests to where --log-file says.
WRITES = """
while [ "$1" != --log-file ]; do shift; done
case "$*" in
*planted*) cat {folder}/planted > "$2";;
*) cat {folder}/tests > "$2"; cat {folder}/printed; exit {status};;
esac
"""


@pytest.mark.parametrize(
    ("planted", "tests", "printed", "status", "expected"),
    [
        (OVERRUN, CLEAN, PASSED, 0, "clean"),
        (CLEAN, CLEAN, PASSED, 0, "planted fault not seen"),
        (REFUSED, REFUSED, PASSED, 0, "no summary of the tool"),
        (OVERRUN, OVERRUN, PASSED, 86, "faults"),
        (OVERRUN, UNTRACKED, PASSED, 0, "launches not looked at"),
        (OVERRUN, CLEAN, "1 failed, 3 passed in 1s\n", 1, "tests failed"),
        (OVERRUN, CLEAN, "4 skipped in 1s\n", 0, "tests failed"),
        (OVERRUN, CLEAN, PASSED, 3, "tests failed"),
    ],
)
def test_the_verdict(
    planted: str,
    tests: str,
    printed: str,
    status: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_a_gpu(monkeypatch)
    for name, text in {"planted": planted, "tests": tests, "printed": printed}.items():
        (tmp_path / name).write_text(text)
    tool = pretended(tmp_path, WRITES.format(folder=tmp_path, status=status))
    record = tmp_path / "record.json"
    done = sanitize.main(["--tools", "memcheck", "--sanitizer", str(tool), "--output", str(record)])
    saved = json.loads(record.read_text())
    assert done == (expected != "clean")
    assert saved["format"] == "shiftnorm.sanitize/1" and saved["sanitizer"] == "Version 2025.3.1.0"
    (check,) = saved["checks"]
    assert check["verdict"] == expected
    assert check["planted_fault_seen"] == (planted == OVERRUN)
    assert ("tails" in check) == (expected != "clean")
    assert f"memcheck: {expected}" in capsys.readouterr().out


def test_it_stops_when_time_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    tool = pretended(tmp_path, "sleep 60")
    result = sanitize.check("racecheck", tool, 100, 0.5)
    assert result["verdict"] == "out of time"
    assert result["seconds"] < 30


def test_it_asks_for_a_gpu_and_for_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs an NVIDIA GPU, and torch finds none" in (sanitize.refusal(None) or "")
    on_a_gpu(monkeypatch)
    assert "needs compute-sanitizer, which is not at PATH, CUDA_HOME" in (sanitize.refusal(None) or "")
    assert f"which is not at {tmp_path / 'none'}" in (sanitize.refusal(tmp_path / "none") or "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET is set; unset it" in (sanitize.refusal(None) or "")


def test_without_a_gpu_the_exit_status_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        sanitize.main(["--output", str(tmp_path / "record.json")])
    assert stopped.value.code == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()
