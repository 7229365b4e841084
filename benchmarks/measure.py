"""Time and memory of forward and backward."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
RARELY = 4


class Step:
    """One forward and backward of a function, with a gradient in the memory format of its output.

    Args:
        forward: x to y.
        x: a leaf that requires a gradient.
        parameters: what else gets a gradient.
        gradients: gradients made before, by (shape, strides), so that steps share them.
    """

    def __init__(
        self, forward: Forward, x: Tensor, parameters: Sequence[Tensor], gradients: dict[Any, Tensor] | None = None
    ) -> None:
        self.forward = forward
        self.x = x
        self.inputs = [x, *parameters]
        y = forward(x)
        gradients = {} if gradients is None else gradients
        self.g = gradients.setdefault((y.shape, y.stride()), torch.randn_like(y).detach())
        self.backward(y)

    def backward(self, y: Tensor) -> None:
        torch.autograd.grad(y, self.inputs, self.g, allow_unused=True)

    def time(self, clock: Callable[[], float]) -> tuple[float, float]:
        """Milliseconds of forward and of backward."""
        start = clock()
        y = self.forward(self.x)
        middle = clock()
        self.backward(y)
        return 1e3 * (middle - start), 1e3 * (clock() - middle)

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps between forward and backward; parameters, which live anyway, do not count."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self.inputs[1:]}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.forward(self.x)
        self.backward(y)
        return sum(kept.values())

    def peak_bytes(self) -> int:
        """The most memory alive at once above x and g, the caller holding y and the gradients at the end."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            y = self.forward(self.x)
            gradients = torch.autograd.grad(y, self.inputs, self.g, allow_unused=True)
        del gradients, y
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        allocations = [event for event in events if event.get("name") == "[memory]"]
        alive = peak = 0
        for event in sorted(allocations, key=lambda event: event["ts"]):
            alive += event["args"]["Bytes"]
            peak = max(peak, alive)
        return peak


def compiled(forward: Forward, name: str) -> Forward:
    """The function under torch.compile, as one graph and with a compilation cache of its own.

    Dynamo counts recompilations per code object, and all steps are calls of the same few lines: sharing the object,
    the ninth norm would run uncompiled.
    """

    def call(x: Tensor) -> Tensor:
        return forward(x)

    code = call.__code__.replace(co_name="".join(letter if letter.isalnum() else "_" for letter in name))
    own = types.FunctionType(code, call.__globals__, code.co_name, call.__defaults__, call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def interleaved(
    steps: Mapping[str, Callable[[], tuple[float, float]]],
    *,
    warmup: int,
    min_rounds: int,
    max_rounds: int,
    seconds: float,
    rarely: Collection[str] = (),
    seed: int = 0,
) -> list[dict[str, tuple[float, float]]]:
    """Rounds in which every step runs once, in an order drawn anew, so that a slow minute slows all of them alike.

    After the warm-up, steps named in `rarely` run in one of `RARELY` rounds only, which leaves time for more rounds.
    """
    order = random.Random(seed)
    rounds: list[dict[str, tuple[float, float]]] = []
    began = time.perf_counter()
    while len(rounds) < warmup + max_rounds:
        if len(rounds) >= warmup + min_rounds and time.perf_counter() - began > seconds:
            break
        complete = len(rounds) < warmup or (len(rounds) - warmup) % RARELY == 0
        names = [name for name in steps if complete or name not in rarely]
        order.shuffle(names)
        rounds.append({name: steps[name]() for name in names})
    return rounds[warmup:]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "q1": low, "q3": high}
