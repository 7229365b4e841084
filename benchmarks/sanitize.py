"""The Triton kernels under NVIDIA's compute-sanitizer, while their parity tests run on a GPU: memory and races.

python benchmarks/sanitize.py                        memcheck, then racecheck; a record under benchmarks/results
python benchmarks/sanitize.py --tools racecheck      one of them
python benchmarks/sanitize.py --largest 2000000      tests with larger inputs, too; the default is 100000 elements

Each tool first has to find a fault that is planted for it: a tool that sees nothing proves nothing. Running the tests
without the tools before (pytest tests/ops) saves time, as the kernels are compiled then.

Exit status: 0 if nothing was found; 1 if something was, a test failed, a planted fault was not seen or time ran out; 2
if there is no GPU or no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpu_clock import machine
from record import RESULTS, save

FORMAT = "shiftnorm.sanitize/1"
ROOT = Path(__file__).resolve().parent.parent
CHILD = ROOT / "benchmarks" / "sanitized.py"
# All modules with kernels but the one of their parts, which are never launched.
KERNELS = sorted({*(ROOT / "src/shiftnorm/ops").glob("triton_*.py")} - {ROOT / "src/shiftnorm/ops/triton_place.py"})
TOOLS = ("memcheck", "racecheck")
PLANTED = "planted_"

OPTIONS = [
    # The Python process itself: Triton and torch start compilers and nvidia-smi, which never touch the GPU's memory.
    *("--target-processes", "application-only"),
    # Importing torch takes longer than the ten seconds after which the tool gives up waiting for a first CUDA call.
    *("--launch-timeout", "0"),
    *("--error-exitcode", "86"),
    # What is tracked of launches that nobody waits for fills the memory, and launches are then let pass unseen.
    *("--force-synchronization-limit", "100"),
]
OPTIONS_OF = {
    "memcheck": [
        # torch and Triton ask the driver questions whose answer may be an error (is this pointer one of the device's,
        # has this chip that attribute), which they handle; see triton-lang/triton#10957. Accesses stay reported.
        *("--report-api-errors", "no"),
        # Allocations may lie back to back, and an overrun would end in the next one unseen.
        *("--padding", "32768"),
        # A wrong access ends its kernel only; with the context, every later test would fail and show nothing.
        *("--destroy-on-device-error", "kernel"),
    ],
    "racecheck": [],
}
ENVIRONMENT = {
    # torch cuts tensors out of large blocks: an overrun that stays in its block would be no error to the tool.
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
}
# Expandable segments make memcheck report writes that are right (pytorch/pytorch#196209).
UNSET = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Findings(NamedTuple):
    """What the tool says it found."""

    errors: int
    warnings: int


class Ended(NamedTuple):
    """A process that ran under the tool: its exit status (None: stopped), what it printed and what the tool wrote."""

    status: int | None
    printed: str
    log: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, metavar="TOOL", help=", ".join(TOOLS))
    parser.add_argument("--largest", type=int, default=100_000, help="elements of a test's input (default: 100000)")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything (default: 540)")
    parser.add_argument("--sanitizer", type=Path, help="the program; default: compute-sanitizer of PATH or the toolkit")
    parser.add_argument("--output", type=Path, help="the record; default: a name with the date in benchmarks/results")
    options = parser.parse_args(arguments)
    sanitizer = options.sanitizer or find_sanitizer()
    reason = refusal(sanitizer)
    if reason is not None or sanitizer is None:
        parser.error(f"{reason}")
    until = time.perf_counter() + options.seconds
    record: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine("cuda"),
        "sanitizer": version_of(sanitizer),
        "settings": {"largest": options.largest, "environment": ENVIRONMENT, "kernels": kernels()},
        "checks": [],
    }
    path = options.output or RESULTS / f"sanitize-{record['date'][:10]}.json"
    for number, tool in enumerate(options.tools):
        left = (until - time.perf_counter()) / (len(options.tools) - number)
        record["checks"].append(check(tool, sanitizer, options.largest, left))
        save(record, path)  # after each, as a later one may be cut short
        print(line_of(record["checks"][-1]), flush=True)
    print(f"record: {path}")
    return 0 if all(each["verdict"] == "clean" for each in record["checks"]) else 1


def refusal(sanitizer: Path | None) -> str | None:
    """Why nothing can be checked here, or None."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and torch finds none; the interpreter's tests (pytest tests/ops) need none"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "needs compiled kernels, and TRITON_INTERPRET is set; unset it"
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if sanitizer is None or not os.access(sanitizer, os.X_OK):
        where = "PATH, CUDA_HOME or /usr/local/cuda" if sanitizer is None else str(sanitizer)
        return f"needs compute-sanitizer, which is not at {where}; it comes with the CUDA toolkit, --sanitizer names it"
    return None


def find_sanitizer() -> Path | None:
    found = shutil.which("compute-sanitizer")
    if found is not None:
        return Path(found)
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [home / "bin" / "compute-sanitizer" for home in [*homes, Path("/usr/local/cuda")]]
    return next((place for place in places if place.is_file()), None)


def version_of(sanitizer: Path) -> str:
    said = subprocess.run([str(sanitizer), "--version"], capture_output=True, text=True).stdout.splitlines()
    return next((line.strip() for line in said if line.startswith("Version")), " ".join(said)[:200])


def kernels() -> list[str]:
    """The names of our kernels: the public functions that Triton compiles."""
    names: list[str] = []
    for file in KERNELS:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names += [node.name for decorator in node.decorator_list if ast.unparse(decorator) == "triton.jit"]
    return names


def command(tool: str, sanitizer: Path, log: Path, child: Sequence[str]) -> list[str]:
    # Only our kernels and the planted ones: instrumented code is 10 to 100 times slower, and what the tool says of the
    # kernels of cuDNN and CUB (NVIDIA/cccl#1903) is not for us to mend.
    names = [part for name in [*kernels(), PLANTED] for part in ("--kernel-name", f"kns={name}")]
    tooled = [str(sanitizer), "--tool", tool, *OPTIONS, *OPTIONS_OF[tool], *names, "--log-file", str(log)]
    return [*tooled, sys.executable, str(CHILD), *child]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in given.items() if key not in UNSET} | ENVIRONMENT


def check(tool: str, sanitizer: Path, largest: int, seconds: float) -> dict[str, Any]:
    """Let a tool find its planted fault, then run the tests under it."""
    began = time.perf_counter()
    control = run(tool, sanitizer, ["planted", tool], seconds)
    planted = findings(tool, control.log)
    tests = run(tool, sanitizer, ["tests", str(largest)], max(1.0, seconds - control.seconds))
    found = findings(tool, tests.log)
    counts = counted(tests.printed)
    result: dict[str, Any] = {
        "tool": tool,
        "options": [*OPTIONS, *OPTIONS_OF[tool]],
        "verdict": verdict(planted, found, counts, tests),
        "planted_fault_seen": bool(planted and planted.errors),
        "errors": found and found.errors,
        "warnings": found and found.warnings,
        "tests": counts,
        "status": tests.status,
        "reports": reports(tests.log),
        "seconds": time.perf_counter() - began,
    }
    if result["verdict"] != "clean":  # what helps to find out why
        result["tails"] = {
            "planted": (control.printed + control.log)[-2000:],
            "tests": tests.printed[-4000:],
            "log": tests.log[-4000:],
        }
    return result


def run(tool: str, sanitizer: Path, child: Sequence[str], seconds: float) -> Ended:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log, output = Path(folder) / "log.txt", Path(folder) / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                command(tool, sanitizer, log, child),
                cwd=ROOT,
                env=environment(os.environ),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the tool and what it watches can be stopped together
            )
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = None
        printed = _text(output)
        # a tool that could not even start writes no log
        return Ended(status, printed, _text(log) or printed, time.perf_counter() - began)


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""


_ERRORS = re.compile(r"^=+ ERROR SUMMARY: ([\d,]+) errors?\s*$", re.MULTILINE)
_HAZARDS = re.compile(
    r"^=+ RACECHECK SUMMARY: [\d,]+ hazards? displayed \(([\d,]+) errors?, ([\d,]+) warnings?\)", re.MULTILINE
)


def findings(tool: str, log: str) -> Findings | None:
    """The sums of the tool's summaries; None if there is none, as when the tool was stopped or refused the device."""
    if tool == "racecheck":
        sums = [(_number(errors), _number(warnings)) for errors, warnings in _HAZARDS.findall(log)]
        # faults other than hazards, such as a kernel that fails, are summed up as by the other tools
        sums += [(_number(errors), 0) for errors in _ERRORS.findall(log)] if sums else []
    else:
        sums = [(_number(errors), 0) for errors in _ERRORS.findall(log)]
    return Findings(sum(each[0] for each in sums), sum(each[1] for each in sums)) if sums else None


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def reports(log: str, most: int = 20) -> list[str]:
    """The different things that were reported, each as its first two lines, most frequent first."""
    lines = [line.lstrip("=").strip() for line in log.splitlines() if line.startswith("=")]
    heads = ("Invalid ", "Error: ", "Warning: ", "ERROR: ", "WARNING: ", "Internal ", "Program hit ", "Unspecified ")
    counts: dict[str, int] = {}
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if line.startswith(heads):
            text = re.sub(r"\[\d+ hazards?\]", "", f"{line} {following}").strip()
            counts[text] = counts.get(text, 0) + 1
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    return [f"{count} x {text}" for text, count in ordered[:most]]


def counted(printed: str) -> dict[str, int]:
    """How the tests ended, from pytest's last line."""
    kinds = "passed|failed|errors?|skipped|deselected"
    lines = [line for line in printed.splitlines() if re.search(rf"\d+ ({kinds})\b.* in [\d.:]+", line)]
    found = re.findall(rf"(\d+) ({kinds})\b", lines[-1]) if lines else []
    return {kind.removesuffix("s") if kind == "errors" else kind: int(count) for count, kind in found}


def verdict(planted: Findings | None, found: Findings | None, tests: Mapping[str, int], ended: Ended) -> str:
    if ended.status is None:
        return "out of time"
    if found is None:
        return "no summary of the tool"
    if found.errors or found.warnings:
        return "faults"
    if "Internal Sanitizer Error" in ended.log:
        return "launches not looked at"
    if tests.get("failed") or tests.get("error") or not tests.get("passed") or ended.status != 0:
        return "tests failed"
    # last, as a blind tool still shows what the tests did
    return "clean" if planted and planted.errors else "planted fault not seen"


def line_of(result: Mapping[str, Any]) -> str:
    tests = ", ".join(f"{count} {kind}" for kind, count in result["tests"].items()) or "no tests"
    faults = f"{result['errors']} errors, {result['warnings']} warnings"
    return f"{result['tool']}: {result['verdict']} ({faults}; {tests}; {result['seconds']:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
