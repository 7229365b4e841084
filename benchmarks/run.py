"""Time and memory of every norm, in one interleaved run.

python benchmarks/run.py                    the full run: a record under benchmarks/results, and its table
python benchmarks/run.py --quick            small shapes, nothing compiled, under a minute
python benchmarks/run.py --threads 1        CPU time of one thread: insensitive to what else runs
python benchmarks/run.py --table RECORD     the table of a record made before
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from measure import RARELY, Forward, Step, compiled, interleaved, spread
from record import FORMAT, RESULTS, load, save
from rows import ROWS, Draws, Row, State, draws_for, plain_state
from shiftnorm import norms
from table import markdown

FULL = [(32, 256, 28, 28), (32, 64, 56, 56), (64, 512, 7, 7)]
QUICK = [(8, 64, 28, 28), (16, 128, 7, 7)]
TARGETS = FULL[:2]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# glibc gives large blocks back to the kernel at every free and gets them back as page faults, which cost more than the
# norms do; with these settings freed pages are used again, as a training process with a warm allocator does.
QUIET_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
QUIET_PROFILER = {"KINETO_LOG_LEVEL": "99"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes, nothing compiled")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: every core")
    parser.add_argument("--norms", nargs="+", metavar="NORM", help="only these rows, and BatchNorm")
    parser.add_argument(
        "--compile",
        choices=("first", "targets", "all", "none"),
        default="first",
        help="the shapes for which norms and plain formulas are compiled as well: 2 minutes each and memory format",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of rounds for each shape and memory format")
    parser.add_argument("--output", type=Path, help="the record; default: a name with the date in benchmarks/results")
    parser.add_argument("--table", type=Path, metavar="RECORD", help="print the table of this record and stop")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(markdown(load(options.table)))
        return
    unknown = sorted(set(options.norms or ()) - set(ROWS))
    if unknown:
        parser.error(f"--norms: no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    restart_with(QUIET_MALLOC | QUIET_PROFILER)
    torch.set_num_threads(options.threads)
    rows = {name: row for name, row in ROWS.items() if not options.norms or name in {"BatchNorm", *options.norms}}
    record = measured(
        rows,
        QUICK if options.quick else FULL,
        compiling="none" if options.quick else options.compile,
        seconds=min(options.seconds, 3.0) if options.quick else options.seconds,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    kind = "quick-" if options.quick else ""
    default = RESULTS / f"{kind}{record['date'][:10]}-{options.threads}-threads.json"
    path = save(record, options.output or default)
    print(markdown(record))
    print(f"record: {path}", file=sys.stderr)


def restart_with(environment: dict[str, str]) -> None:
    """Start over with settings that only count when the process starts; what the user has set stays."""
    missing = {name: value for name, value in environment.items() if name not in os.environ}
    if missing and sys.platform.startswith("linux"):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def measured(
    rows: dict[str, Row],
    shapes: Sequence[tuple[int, ...]],
    *,
    compiling: str,
    seconds: float,
    min_rounds: int = 9,
    max_rounds: int = 49,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The record of a run; `rows` must hold BatchNorm, which the others are compared with."""
    load_before = load_average()
    began = time.perf_counter()
    # The backward of CPU tensors runs in the thread that asks for it, so with one thread its CPU time is all of it.
    one = torch.get_num_threads() == 1
    clock = time.thread_time if one else time.perf_counter
    configs: list[dict[str, Any]] = []
    for shape in shapes:
        for name in FORMATS:
            torch.manual_seed(0)
            compiles = shape in {"first": shapes[:1], "targets": TARGETS, "all": shapes, "none": []}[compiling]
            limits = {"seconds": seconds, "min_rounds": min_rounds, "max_rounds": max_rounds}
            config = measured_config(rows, shape, name, compiles, clock, limits)
            configs.append(config)
            report(f"{shape} {name}: {config['rounds']} rounds, {config['seconds']:.0f} s")
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "settings": {
            "threads": torch.get_num_threads(),
            "clock": "CPU time of the thread" if one else "wall clock",
            "dtype": "float32",
            "slow_every": RARELY,
            "malloc": {name: os.environ.get(name) for name in QUIET_MALLOC},
        },
        "load": {"before": load_before, "after": load_average()},
        "seconds": time.perf_counter() - began,
        "configs": configs,
    }


def measured_config(
    rows: dict[str, Row],
    shape: tuple[int, ...],
    format_name: str,
    compiling: bool,
    clock: Callable[[], float],
    limits: dict[str, Any],
) -> dict[str, Any]:
    began = time.perf_counter()
    x = torch.randn(shape).to(memory_format=FORMATS[format_name])
    room = torch.empty_like(x)
    draws = draws_for(x)
    x.requires_grad_()
    gradients: dict[Any, torch.Tensor] = {}
    steps: dict[str, Step] = {}
    errors: dict[str, str] = {}
    for name, row in rows.items():
        for kind, (forward, parameters) in candidates(name, row, x, draws, compiling).items():
            try:
                steps[f"{name}/{kind}"] = Step(forward, x, parameters, gradients)
            except Exception as error:  # a candidate that cannot run is a result, and the others still count
                errors[f"{name}/{kind}"] = f"{type(error).__name__}: {error}"[:300]
    source = x.detach()

    def copy() -> tuple[float, float]:
        start = clock()
        room.copy_(source)
        return 1e3 * (clock() - start), 0.0

    timers = {key: lambda step=step: step.time(clock) for key, step in steps.items()}
    # The slow ones, whose targets are wide: many times faster than the authors' form, or none at all.
    slow = [key for key in steps if not rows[key.split("/")[0]].moment or key.endswith(("/plain", "/authors"))]
    rounds = interleaved({"copy": copy, **timers}, warmup=2, rarely=slow, **limits)
    size = source.numel() * source.element_size()
    results: dict[str, dict[str, Any]] = {name: {} for name in rows}
    for key in [*steps, *errors]:
        name, kind = key.split("/")
        results[name][kind] = (
            {"error": errors[key]}
            if key in errors
            else {
                **times([each for each in rounds if key in each], key),
                **ratios(rounds, name, kind, set(steps)),
                "saved": steps[key].saved_bytes() / size,
                "peak": steps[key].peak_bytes() / size,
            }
        )
    del steps
    torch._dynamo.reset()
    gc.collect()
    return {
        "shape": list(shape),
        "memory_format": format_name,
        "has_targets": shape in TARGETS,
        "compiled": compiling,
        "rounds": len(rounds),
        "seconds": time.perf_counter() - began,
        "copy_ms": spread([each["copy"][0] for each in rounds]),
        "norms": results,
    }


def candidates(
    name: str, row: Row, x: torch.Tensor, draws: Draws, compiling: bool
) -> dict[str, tuple[Forward, list[torch.Tensor]]]:
    """What is timed for a row: kind to forward and parameters."""
    channels = x.shape[1]
    found: dict[str, tuple[Forward, list[torch.Tensor]]] = {}
    modules = {"ours": row.ours(channels)}
    if row.authors is not None:
        modules["authors"] = row.authors(channels)
    for kind, module in modules.items():
        found[kind] = (module.train(), list(module.parameters()))
    state: State = plain_state(modules["ours"])
    learned = [tensor for tensor in state.values() if tensor.requires_grad]
    found["plain"] = (lambda x: row.plain(x, state, draws), learned)
    if compiling and row.moment:
        lone = norms.compile_algebra(row.ours(channels).train())
        found["ours_algebra"] = (lone, list(lone.parameters()))
        # Against the plain formula, whose random numbers are made before the clock starts.
        separate = row.ours(channels).train()
        own = separate.draw(x) if isinstance(separate, norms.NormLayer) else None
        given = separate if own is None else lambda x: separate(x, draw=own)
        found["ours_compiled"] = (compiled(given, f"{name}_ours"), list(separate.parameters()))
        found["plain_compiled"] = (compiled(found["plain"][0], f"{name}_plain"), learned)
    return found


def times(rounds: list[dict[str, tuple[float, float]]], key: str) -> dict[str, dict[str, float]]:
    """Milliseconds, and copies of x made in the same round."""
    return {
        "forward_ms": spread([each[key][0] for each in rounds]),
        "backward_ms": spread([each[key][1] for each in rounds]),
        "total_ms": spread([sum(each[key]) for each in rounds]),
        "copies": spread([sum(each[key]) / each["copy"][0] for each in rounds]),
    }


def ratios(
    rounds: list[dict[str, tuple[float, float]]], name: str, kind: str, timed: set[str]
) -> dict[str, dict[str, float]]:
    """Ratios within each round of both, then median and quartiles; above 1 is slower than what it is divided by."""
    key = f"{name}/{kind}"
    others = {
        "to_our_batch_norm": "BatchNorm/ours",
        "to_torch_batch_norm": "BatchNorm/authors",
        "to_plain": f"{name}/plain",
        "to_plain_compiled": f"{name}/plain_compiled",
        "to_authors": f"{name}/authors",
    }
    return {
        label: spread([sum(each[key]) / sum(each[other]) for each in rounds if key in each and other in each])
        for label, other in others.items()
        if other in timed
    }


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit, with a plus where the working tree differs from it; None outside a repository."""
    try:
        root = Path(__file__).resolve().parent
        found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    if found.returncode:
        return None
    return found.stdout.strip() + ("+" if dirty.stdout.strip() else "")


if __name__ == "__main__":
    main()
