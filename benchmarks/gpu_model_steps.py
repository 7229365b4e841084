"""Whole training steps, plain and with the norms of this package, and how they are timed against each other."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import interleaved, spread
from residual_encoder import BLOCKS, WIDTHS, ResidualEncoder, instance_norm, no_norm
from shiftnorm.models import Bottleneck, ResNet
from shiftnorm.norms import CrossNorm, CrossNormController
from shiftnorm.norms.compile_algebra import compile_algebra
from shiftnorm.surgery import convert, insert, replace

MODES = ("eager", "algebra", "compiled")
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


@dataclass(frozen=True)
class Sizes:
    """How large everything is, and how long it is measured: rounds of about ``round_ms`` for each network."""

    batch: int = 128
    image: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    volumes: int = 2
    side: int = 128
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS
    cifar_model: str = "shiftnorm/wide_resnet40_2"
    cifar_images: int = 50_000
    cifar_batch: int = 128
    epochs: int = 3
    compiler: str = "inductor"
    warmups: int = 2
    round_ms: float = 100.0
    min_rounds: int = 5
    max_rounds: int = 15
    seconds: float = 20.0


# Enough to run every line. The compiler "eager" traces and makes no kernels, which would take minutes.
QUICK = Sizes(
    batch=2, image=32, depths=(1, 1, 1, 1), width=4, volumes=2, side=8, widths=(4, 8), blocks=(1, 1),
    cifar_model="shiftnorm/wide_resnet10_1", cifar_images=40, cifar_batch=16, epochs=2,
    compiler="eager", warmups=0, round_ms=0.0, min_rounds=1, max_rounds=1, seconds=0.0,
)  # fmt: skip


class Case(NamedTuple):
    """A network in a memory format, the names of the cases it is compared with, and how its step is made."""

    network: str
    layout: str
    against: tuple[str, ...]
    make: Callable[[], Step]


class Step:
    """Forward, loss, backward and optimizer, as a training loop makes them.

    Args:
        loss: the forward pass on the next batch; called under autocast for "bf16".
        optimizer: of the network.
        device: "cpu" or "cuda".
        precision: "bf16" or "32".
    """

    def __init__(
        self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, *, device: str, precision: str
    ) -> None:
        self.loss, self.optimizer, self.device, self.precision = loss, optimizer, device, precision
        self.last: Tensor | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.last = loss.detach()

    def most_bytes(self) -> int | None:
        """The most memory that a step needs at once beyond what lies there between two steps; None on a CPU."""
        if self.device != "cuda":
            return None
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def compared(cases: Mapping[str, Case], sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Time every case in rounds with all others; one that cannot run says why."""
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    for name, case in cases.items():
        rows[name] = {"network": case.network, "layout": case.layout}
        torch.manual_seed(0)
        breaks = graph_breaks()
        try:
            step = case.make()
            began = time.perf_counter()
            step()
            wait(device)
            rows[name]["first_step_s"] = time.perf_counter() - began
            for _ in range(sizes.warmups):
                step()
            rows[name]["step_bytes"] = step.most_bytes()
            steps[name] = step
        except Exception as error:  # a network that cannot run is a result, and the others still count
            rows[name]["error"] = f"{type(error).__name__}: {error}"[:500]
            step = None
            release(device)
        rows[name]["graph_breaks"] = graph_breaks() - breaks
    calls = {name: calls_in(step, sizes, device) for name, step in steps.items()}
    rounds = interleaved(
        {name: partial(timed, step, calls[name], device) for name, step in steps.items()},
        warmup=min(sizes.warmups, 1),
        min_rounds=sizes.min_rounds,
        max_rounds=sizes.max_rounds,
        seconds=sizes.seconds,
    )
    for name, step in steps.items():
        whole, host = ([each[name][part] for each in rounds] for part in (0, 1))
        rows[name] |= {
            "ms": spread(whole),
            "host_ms": statistics.median(host),
            "calls": calls[name],
            "rounds": len(rounds),
            "finite": step.last is not None and bool(step.last.isfinite()),
            "ratios": {
                other: {
                    **spread([each[name][0] / each[other][0] for each in rounds]),
                    "bytes": share(rows[name]["step_bytes"], rows[other]["step_bytes"]),
                }
                for other in cases[name].against
                if other in steps
            },
        }
    return list(rows.values())


def share(mine: int | None, theirs: int | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None


def calls_in(step: Step, sizes: Sizes, device: str) -> int:
    """Steps of one round: so many that starting the clock does not show, and the host can run ahead of the device."""
    if not sizes.round_ms:
        return 1
    single, _ = timed(step, 1, device)
    return min(max(1, math.ceil(sizes.round_ms / single)), 20)


def timed(step: Callable[[], object], calls: int, device: str) -> tuple[float, float]:
    """Milliseconds of one call: on the device, and until the host had asked for everything."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
    began = time.perf_counter()
    for _ in range(calls):
        step()
    host = 1e3 * (time.perf_counter() - began) / calls
    if device != "cuda":
        return host, host
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls, host


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def forget_compiled() -> None:
    """Let what comes next start without the compiled code of what came before."""
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch._dynamo.reset()


def graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def prepare(model: nn.Module, mode: str, sizes: Sizes, *, ours: bool, dynamic: bool | None = False) -> None:
    """Let a network run as a mode says: as it is, with the algebra of our norms compiled, or compiled as a whole.

    Several networks are compiled in one process. To Dynamo they are one function that is called with other strides, and
    left to itself (``dynamic=None``) it would compile all but the first for any size.
    """
    if mode == "algebra" and ours:
        compile_algebra(model, backend=sizes.compiler)
    if mode == "compiled":
        model.compile(backend=sizes.compiler, dynamic=dynamic)  # in place, as shiftnorm.tasks does it


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    # a rate at which random labels do no harm
    return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)


# ResNet-50: the network without our norms, what is compared with it, and what is done to it.
RESNETS: dict[str, tuple[str, tuple[str, ...], Callable[[nn.Module], object] | None]] = {
    "plain": ("shiftnorm", (), None),
    "cnsn": ("shiftnorm", ("plain",), lambda model: convert(model, "cnsn")),
    "cnsn behind bn3": ("shiftnorm", ("plain",), lambda model: insert(model, "CNSN", after="layer*.bn3")),
    "our BatchNorm": ("shiftnorm", ("plain",), lambda model: convert(model, "batch")),
    "torchvision": ("torchvision", ("plain",), None),
    "torchvision cnsn": ("torchvision", ("torchvision",), lambda model: convert(model, "cnsn")),
}
RESNETS_IN = {
    "eager": tuple(RESNETS),
    "algebra": ("plain", "cnsn", "cnsn behind bn3", "torchvision", "torchvision cnsn"),
    "compiled": ("plain", "cnsn behind bn3", "torchvision", "torchvision cnsn"),  # a minute each
}


def resnet_cases(mode: str, layout: str, sizes: Sizes, device: str) -> dict[str, Case]:
    chosen = RESNETS_IN[mode]
    if sizes is QUICK and mode != "eager":
        chosen = chosen[-2:]
    return {
        name: Case(name, layout, RESNETS[name][1], partial(_resnet_step, name, mode, layout, sizes, device))
        for name in chosen
    }


def _resnet_step(name: str, mode: str, layout: str, sizes: Sizes, device: str) -> Step:
    library, _, change = RESNETS[name]
    model: nn.Module = ResNet(Bottleneck, sizes.depths, width_per_group=sizes.width)
    if library == "torchvision":
        from torchvision.models import resnet

        model = resnet.ResNet(resnet.Bottleneck, list(sizes.depths), width_per_group=sizes.width)
    if change is not None:
        change(model)
    model = model.to(device).to(memory_format=FORMATS[layout]).train()
    gated = any(isinstance(module, CrossNorm) for module in model.modules())
    # as the authors train: in every other step one layer acts
    controller = CrossNormController(model, active_num=1, p=0.5) if gated else None
    prepare(model, mode, sizes, ours=change is not None)
    images = torch.randn(sizes.batch, 3, sizes.image, sizes.image, device=device).to(memory_format=FORMATS[layout])
    labels = torch.randint(1000, (sizes.batch,), device=device)

    def loss() -> Tensor:
        if controller is not None:
            controller.step()
        return F.cross_entropy(model(images), labels)

    return Step(loss, sgd(model), device=device, precision="bf16")


ENCODERS: dict[str, Callable[[int], nn.Module]] = {"torch": instance_norm, "ours": instance_norm, "no norm": no_norm}


def encoder_cases(mode: str, sizes: Sizes, device: str) -> dict[str, Case]:
    """Both memory formats at once, as it is they that are compared."""
    cases: dict[str, Case] = {}
    for network in ENCODERS:
        for layout in ("contiguous", "channels_last_3d"):
            others = [f"{network} contiguous"] if layout != "contiguous" else []
            others += [f"torch {layout}"] if network == "ours" else []
            others += ["torch contiguous"] if network == "ours" and layout != "contiguous" else []
            make = partial(_encoder_step, network, mode, layout, sizes, device)
            cases[f"{network} {layout}"] = Case(network, layout, tuple(others), make)
    return cases


def _encoder_step(network: str, mode: str, layout: str, sizes: Sizes, device: str) -> Step:
    model: nn.Module = ResidualEncoder(sizes.widths, sizes.blocks, norm=ENCODERS[network])
    if network == "ours":
        model, _ = replace(model, "InstanceNorm", where="type:InstanceNorm3d")
    model = model.to(device).to(memory_format=FORMATS[layout]).train()
    prepare(model, mode, sizes, ours=network == "ours")
    volumes = torch.randn(sizes.volumes, 1, *(sizes.side,) * 3, device=device).to(memory_format=FORMATS[layout])
    labels = torch.randint(3, (sizes.volumes,), device=device)
    return Step(lambda: F.cross_entropy(model(volumes), labels), sgd(model), device=device, precision="bf16")
