"""Every norm on a GPU, against plain formulas, torch's own norms and the bandwidth of a copy, in one call.

python benchmarks/gpu.py                        at most 9 minutes; a record under benchmarks/results
python benchmarks/gpu.py --seconds 120          start nothing that may last longer; the record names what was left out
python benchmarks/gpu.py --only passes norms    passes, norms, torch, plain, compiled
TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke    end to end on a CPU with tiny tensors; its times mean nothing
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpu_clock import Clock, Forward, machine, times
from gpu_targets import FORMAT, markdown
from record import RESULTS, save
from rows import ROWS, Draws, Row, draws_for, groups, plain_state
from shiftnorm.norms.base import MomentNorm
from shiftnorm.norms.fused import run_fused
from shiftnorm.ops import choose, explain, use_backend

# ResNet-50 at 64 x 224 x 224, and its second stage at a batch no cache holds; nnU-Net at 2 x 128 x 128 x 128
SHAPES = [
    (64, 256, 56, 56),
    (2, 32, 128, 128, 128),
    (256, 256, 56, 56),
    (64, 64, 112, 112),
    (64, 512, 28, 28),
    (64, 1024, 14, 14),
    (64, 2048, 7, 7),
    (2, 64, 64, 64, 64),
    (2, 128, 32, 32, 32),
    (2, 256, 16, 16, 16),
    (2, 320, 8, 8, 8),
]
TINY = [(2, 4, 5, 3), (1, 4, 3, 2, 2)]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LAYOUTS = ["channels_last", "contiguous"]
# What is compiled, as each takes seconds: a norm of every kind, on the first shape.
COMPILED = ["BatchNorm", "BatchInstanceNorm", "SelfNorm", "Chain (BatchNorm, CNSN)"]
COMPILED_SECONDS = 60.0  # with fewer left a candidate is not started: its compilation cannot be cut short
# Norms that read x once where what shares moments fits on chip: "ours" may then beat the floor, that of two passes.
AT_ONCE = ["InstanceNorm", "GroupNorm", "LayerNorm"]
PARTS = ["passes", "norms", "torch", "plain", "compiled"]


class Config(NamedTuple):
    """One kind of input."""

    shape: tuple[int, ...]
    dtype: str
    layout: str

    def tensor(self, device: str) -> Tensor:
        x = torch.randn(self.shape, device=device, dtype=DTYPES[self.dtype])
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if self.layout == "channels_last" else x


class OutOfTime(Exception):
    """What comes next is not started: there is no time left for it."""


class Task(NamedTuple):
    """A candidate of one part; made only when its turn comes."""

    part: str
    row: str
    kind: str
    make: Callable[[Tensor], tuple[Forward, list[Tensor]]]
    backend: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny tensors, on the CPU if there is no GPU")
    parser.add_argument("--seconds", type=float, default=540.0, help="stop after this long (default: 540)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--norms", nargs="+", choices=list(ROWS), metavar="NORM", help="only these rows")
    parser.add_argument("--output", type=Path, help="the record; default: a name with the date in benchmarks/results")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        parser.error("needs a GPU; --smoke runs tiny tensors on the CPU")
    kind = "smoke-" if options.smoke else ""
    path = options.output or RESULTS / f"gpu-{kind}{datetime.now(timezone.utc):%Y-%m-%d}.json"
    record = measured(
        TINY if options.smoke else SHAPES,
        parts=options.only,
        names=options.norms or list(ROWS),
        seconds=options.seconds,
        smoke=options.smoke,
        report=lambda line: print(line, file=sys.stderr, flush=True),
        keep=lambda record: save(record, path),
    )
    if not options.smoke:
        print(markdown(record))
    failed = sum("error" in row for row in record["results"])
    print(
        f"{len(record['results'])} results, {failed} of them errors, {len(record['not_reached'])} not reached, "
        f"record: {path}"
    )


def measured(
    shapes: Sequence[tuple[int, ...]],
    *,
    parts: Sequence[str],
    names: Sequence[str],
    seconds: float,
    smoke: bool,
    report: Callable[[str], None] = lambda line: None,
    keep: Callable[[dict[str, Any]], object] = lambda record: None,
) -> dict[str, Any]:
    """The record, handed to ``keep`` whenever a part of a shape is done: what comes later may be cut short."""
    began = time.perf_counter()
    clock = Clock.here(smoke)
    configs = [Config(shape, dtype, layout) for shape in shapes for dtype in DTYPES for layout in LAYOUTS]
    copies: dict[Config, float] = {}
    record: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"before": machine(clock.device)},
        "settings": {"smoke": smoke, **clock._asdict()},
        "seconds": 0.0,
        "copies": [],
        "backends": {},
        "results": [],
        "not_reached": [],
    }
    for part, config in plan(parts, configs):
        common = {**described(config), "part": part}
        try:
            if time.perf_counter() - began > seconds:
                raise OutOfTime
            if config not in copies:
                record["backends"][label(config)] = explain(config.tensor(clock.device)).splitlines()
                copies[config] = copy_bandwidth(config, clock)
                record["copies"].append({**described(config), "bytes_per_s": copies[config]})
            rows = (
                pass_results(config, clock)
                if part == "passes"
                else norm_results(part, config, names, clock, smoke, until=began + seconds)
            )
            for row in rows:
                record["results"].append({**common, **row, **fractions(row, config, copies[config])})
        except OutOfTime as left:
            record["not_reached"].append(" ".join([part, label(config), *left.args]))
        except Exception as error:  # what cannot be measured is a result, and the other parts still count
            record["results"].append({**common, "error": said(error)})
        record["seconds"] = time.perf_counter() - began
        keep(record)
        report(f"{record['seconds']:5.0f} s  {part} {label(config)}")
    record["machine"]["after"] = machine(clock.device)
    keep(record)
    return record


def plan(parts: Sequence[str], configs: Sequence[Config]) -> Iterator[tuple[str, Config]]:
    """Everything about one shape before the next; what is compiled after the first shape, as that takes minutes."""
    for i, config in enumerate(configs):
        yield from ((part, config) for part in PARTS if part in parts and part != "compiled")
        if "compiled" in parts and i == 3:
            yield "compiled", configs[0]
    if "compiled" in parts:
        yield "compiled", configs[1]


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def label(config: Config) -> str:
    return f"{'x'.join(map(str, config.shape))} {config.dtype} {config.layout}"


def described(config: Config) -> dict[str, Any]:
    return {"shape": list(config.shape), "dtype": config.dtype, "layout": config.layout}


def copy_bandwidth(config: Config, clock: Clock) -> float:
    """Bytes read and written in a second by a copy of x, its input rotating through more than the cache."""
    inputs = clock.sets(config.tensor)
    rooms = [torch.empty_like(x) for x in inputs]
    found = times([lambda i=i: rooms[i].copy_(inputs[i]) for i in range(len(inputs))], clock)
    return 2 * inputs[0].numel() * inputs[0].element_size() / (1e-3 * (found.get("graph_ms") or found["plain_ms"]))


def pass_results(config: Config, clock: Clock) -> Iterator[dict[str, Any]]:
    """The four passes of the kernels one by one; ``units`` is how many tensors of x's size each reads or writes."""
    inputs, gradients = clock.sets(config.tensor), clock.sets(config.tensor)
    with use_backend("triton"):
        backend = choose(inputs[0])
    rows = [torch.randn(config.shape[:2], device=clock.device) for _ in range(4)]
    gain, center, slope, offset = rows
    calls: dict[str, tuple[int, Callable[[int], Any]]] = {
        "moments": (1, lambda i: backend.moments(inputs[i])),
        "apply": (2, lambda i: backend.apply(inputs[i], gain, center, offset)),
        "reduce": (2, lambda i: backend.reduce(gradients[i], inputs[i], center, center)),
        "combine": (3, lambda i: backend.combine(gradients[i], inputs[i], gain, center, center, slope, offset)),
    }
    for name, (units, call) in calls.items():
        steps = [lambda i=i, call=call: call(i) for i in range(len(inputs))]
        common = {"row": name, "kind": "kernel", "what": "pass", "units": units}
        try:
            yield {**common, **times(steps, clock)}
        except Exception as error:  # as below
            yield {**common, "error": said(error)}


def norm_results(
    part: str, config: Config, names: Sequence[str], clock: Clock, smoke: bool, *, until: float
) -> Iterator[dict[str, Any]]:
    inputs = [x.requires_grad_() for x in clock.sets(config.tensor)]
    gradients = clock.sets(config.tensor)
    draws = Draws._make(draw.to(clock.device) for draw in draws_for(inputs[0].detach().cpu()))
    reserve = COMPILED_SECONDS if part == "compiled" and not smoke else 0.0
    for task in tasks(part, config, names, draws, clock.device, smoke):
        if time.perf_counter() + reserve > until:
            raise OutOfTime(f"from {task.row}, {task.kind}")
        common = {"row": task.row, "kind": task.kind}
        try:
            torch.manual_seed(0)
            forward, parameters = task.make(inputs[0])
            with use_backend(task.backend) if task.backend else nullcontext():
                if part != "compiled":  # a second graph, as long in the making as the one that counts
                    yield {**common, "what": "forward", "units": 3, **forward_times(forward, inputs, clock)}
                found = step_times(forward, parameters, inputs, gradients, clock)
                yield {**common, "what": "forward+backward", "units": 8, **found}
        except Exception as error:  # a candidate that cannot run is a result, and the others still count
            yield {**common, "what": "forward+backward", "error": said(error)}
        if part == "compiled":
            torch._dynamo.reset()
            gc.collect()


def forward_times(forward: Forward, inputs: list[Tensor], clock: Clock) -> dict[str, Any]:
    with torch.no_grad():
        return times([lambda x=x: forward(x) for x in inputs], clock)


def step_times(
    forward: Forward, parameters: list[Tensor], inputs: list[Tensor], gradients: list[Tensor], clock: Clock
) -> dict[str, Any]:
    def step(x: Tensor, g: Tensor) -> Any:
        return torch.autograd.grad(forward(x), [x, *parameters], g, allow_unused=True)

    return times([lambda x=x, g=g: step(x, g) for x, g in zip(inputs, gradients, strict=True)], clock)


def tasks(part: str, config: Config, names: Sequence[str], draws: Draws, device: str, smoke: bool) -> Iterator[Task]:
    channels, dims = config.shape[1], len(config.shape) - 2
    if part == "torch":
        for name, make in torchs(channels, dims, config.dtype).items():
            yield Task(part, name, "torch", lambda x, make=make: module(make().to(device)))
        return
    for name in names:
        row = ROWS[name]
        if part == "norms":
            forced = "triton" if smoke else None
            yield Task(part, name, "ours", lambda x, row=row: module(row.ours(channels).to(device)), forced)
            if not smoke and name == "BatchNorm":  # torch's is taken
                yield Task(part, name, "kernels", lambda x, row=row: module(row.ours(channels).to(device)), "triton")
            if name in AT_ONCE:
                yield Task(
                    part, name, "two_passes", lambda x, row=row: two_passes(row.ours(channels).to(device)), forced
                )
        elif part == "plain":
            yield Task(part, name, "plain", lambda x, row=row: plain(row, channels, draws, device))
        elif row.moment and name in COMPILED:
            for kind, mode in (("compiled", "default"), ("max_autotune", "max-autotune-no-cudagraphs")):
                if smoke and kind == "max_autotune":
                    continue
                options = {"backend": "aot_eager"} if smoke else {"mode": mode}
                for whose in ("plain", "ours"):
                    yield Task(
                        part,
                        name,
                        f"{whose}_{kind}",
                        lambda x, row=row, whose=whose, options=options: graph_of(
                            row, whose, channels, draws, device, options
                        ),
                    )


def module(norm: nn.Module) -> tuple[Forward, list[Tensor]]:
    return norm.train(), list(norm.parameters())


def two_passes(norm: nn.Module) -> tuple[Forward, list[Tensor]]:
    if not isinstance(norm, MomentNorm):
        raise TypeError(f"two_passes: expected a MomentNorm, got {type(norm).__name__}.")
    return (lambda x: run_fused([norm], x, [None])), list(norm.parameters())


def plain(row: Row, channels: int, draws: Draws, device: str) -> tuple[Forward, list[Tensor]]:
    state = plain_state(row.ours(channels).to(device))
    # 16-bit x, as under autocast: the formula is computed in float32 and rounded once
    forward = lambda x: row.plain(x.float(), state, draws).to(x.dtype)
    return forward, [tensor for tensor in state.values() if tensor.requires_grad]


def graph_of(
    row: Row, whose: str, channels: int, draws: Draws, device: str, options: dict[str, str]
) -> tuple[Forward, list[Tensor]]:
    forward, parameters = (
        plain(row, channels, draws, device) if whose == "plain" else module(row.ours(channels).to(device))
    )
    return torch.compile(forward, fullgraph=True, dynamic=False, **options), parameters


def torchs(channels: int, dims: int, dtype: str) -> dict[str, Callable[[], nn.Module]]:
    """The norms torch and others bring."""
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
    found: dict[str, Callable[[], nn.Module]] = {
        "BatchNorm (cuDNN)": lambda: batch(channels),
        "BatchNorm (native)": lambda: WithoutCudnn(batch(channels)),
        "InstanceNorm": lambda: instance(channels, affine=True),
        "GroupNorm": lambda: nn.GroupNorm(groups(channels), channels, dtype=DTYPES[dtype]),
    }
    if find_spec("liger_kernel") is not None:
        found["GroupNorm (Liger)"] = lambda: _liger(channels)
    if find_spec("apex") is not None:
        found["GroupNorm (apex)"] = lambda: _apex(channels)
    return found


# Imported where they are timed: an installation that is broken is then an error of this row alone.
def _liger(channels: int) -> nn.Module:
    from liger_kernel.transformers.group_norm import LigerGroupNorm

    return LigerGroupNorm(channels, groups(channels))


def _apex(channels: int) -> nn.Module:
    from apex.contrib.group_norm import GroupNorm

    return GroupNorm(groups(channels), channels)


class WithoutCudnn(nn.Module):
    """A module that runs with torch's own kernels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return self.inner(x)


def fractions(row: dict[str, Any], config: Config, copied: float) -> dict[str, float]:
    """The share of a copy's bandwidth at which the tensors that our passes have to move were moved."""
    taken = row.get("graph_ms") or row.get("plain_ms")
    if taken is None:
        return {}
    elements = 1
    for size in config.shape:
        elements *= size
    floor = row["units"] * elements * DTYPES[config.dtype].itemsize / copied
    return {"floor_ms": 1e3 * floor, "of_copy": 1e3 * floor / taken}


if __name__ == "__main__":
    main()
