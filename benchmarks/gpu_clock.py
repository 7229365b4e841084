"""How long calls take on a GPU, plain and replayed from a CUDA graph, and what the machine says about itself."""

from __future__ import annotations

import math
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]


class Clock(NamedTuple):
    """Where and how long to measure.

    flush_bytes: inputs rotate through at least so many bytes, more than the cache holds.
    round_ms: calls of at least so long are timed together, so that the clock's own steps do not show.
    rounds: how often.
    """

    device: str
    flush_bytes: int
    round_ms: float
    rounds: int

    @staticmethod
    def here(smoke: bool) -> Clock:
        if not torch.cuda.is_available():
            return Clock("cpu", 0, 0.0, 1)
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        return Clock("cuda", 3 * cache, 0.1 if smoke else 5.0, 2 if smoke else 5)

    def sets(self, make: Callable[[str], Tensor]) -> list[Tensor]:
        first = make(self.device)
        size = first.numel() * first.element_size()
        count = min(max(1, math.ceil(self.flush_bytes / size)), 64)
        return [first, *(make(self.device) for _ in range(count - 1))]


def times(steps: Sequence[Callable[[], Any]], clock: Clock) -> dict[str, Any]:
    """Milliseconds of one call, the median of the rounds: plain, and replayed from a graph where there is a GPU.

    Args:
        steps: the same call on different inputs; they take turns.
        clock: where and how long.
    """
    if clock.device == "cpu":
        return {"plain_ms": statistics.median(_cpu_ms(steps[0]) for _ in range(clock.rounds))}
    for step in (steps[0], steps[-1]):  # compiles, warms the allocator
        step()
    single = _cuda_ms(steps[0])
    calls = len(steps) * max(1, math.ceil(min(clock.round_ms / single, 50) / len(steps)))

    def run() -> None:
        for i in range(calls):
            steps[i % len(steps)]()

    run()
    found: dict[str, Any] = {"plain_ms": statistics.median(_cuda_ms(run) for _ in range(clock.rounds)) / calls}
    try:
        graph = _captured(run)
        graph.replay()
        rounds = [_cuda_ms(graph.replay) / calls for _ in range(clock.rounds)]
        found |= {"graph_ms": statistics.median(rounds), "graph_spread": max(rounds) / min(rounds)}
    except RuntimeError as error:  # waits for the device, or allocates out of turn: that is a result as well
        found["graph_error"] = f"{error}"[:300]
    torch.cuda.synchronize()
    return found


def _captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.set_stream(before)  # one that fails to end does not leave its stream
        _let_go_of_the_generator()
        raise
    return graph


def _let_go_of_the_generator() -> None:
    """After a capture that failed, torch's generator may go on waiting for its end and give no more random numbers."""
    try:
        torch.rand((), device="cuda")
    except RuntimeError:  # pytorch/pytorch#171263
        torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(torch.Generator("cuda"))


def _cuda_ms(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _cpu_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def machine(device: str) -> dict[str, Any]:
    """Device, versions and, from nvidia-smi, clocks, temperature and power."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
        "device": platform.machine() if device == "cpu" else torch.cuda.get_device_name(0),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "clocks": _nvidia_smi(),
        }
    return found


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    names = ["driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw"]
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    return dict(zip(names, (part.strip() for part in done.stdout.splitlines()[0].split(",")), strict=True))
