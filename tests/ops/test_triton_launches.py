"""How many kernels of ours a norm launches, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cases import CASES, Case, build
from shiftnorm.norms import (
    CNSN,
    IBN,
    BatchInstanceNorm,
    BatchNorm,
    Chain,
    CrossNorm,
    MomentNorm,
    NormLayer,
    SelfNorm,
    base,
    cross_norm,
)
from shiftnorm.ops import use_backend
from triton_device import DEVICE, INTERPRETED, LAYOUTS, random, runs_kernels

pytestmark = runs_kernels

TWO_PASSES = (2, 2)  # moments and apply, reduce and combine
BETWEEN = {"retarget_block", "retarget_gradient_block"}  # on (N, C) numbers
# Operations of torch that launch nothing.
FREE = {"empty", "empty_like", "new_empty", "view", "expand", "detach", "alias", "select", "slice", "as_strided"}
OTHERS = {
    # what shares moments fits on chip here, and is read once
    "InstanceNorm": (1, 1),
    "GroupNorm": (1, 1),
    "LayerNorm": (1, 1),
    # no gradient flows through the moments
    "MixStyle": (2, 1),
    "MixStyle-crossdomain": (2, 1),
    # one moments pass more for every box, and one back
    "CrossNorm-2-instance-content": (3, 3),
    "CrossNorm-2-instance-style": (3, 3),
    "CrossNorm-both-both": (4, 4),
}
MOMENT_CASES = [case for case in CASES if isinstance(case.build(8), MomentNorm)]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every launch."""
    seen: list[str] = []
    if INTERPRETED:
        from triton.runtime.interpreter import GridExecutor as Kernel

        method = "__call__"
    else:
        from triton.runtime.jit import JITFunction as Kernel

        method = "run"
    plain: Callable[..., Any] = getattr(Kernel, method)

    def counted(kernel: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(kernel.fn.__name__)
        with _disable_current_modes():  # what the interpreter computes with is no launch
            return plain(kernel, *arguments, **options)

    monkeypatch.setattr(Kernel, method, counted)
    return seen


class Noted(TorchDispatchMode):
    """Adds the operations of torch that launch a kernel."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.seen.append(f"aten {name}")
        return func(*args, **(kwargs or {}))


def launched_each_way(module: nn.Module, layout: str, seen: list[str]) -> tuple[list[str], list[str]]:
    x = random((3, 8, 5, 3), layout).requires_grad_()
    g, draw = torch.ones_like(x), module.draw(x) if isinstance(module, NormLayer) else None
    with use_backend("triton"):
        with Noted(seen):
            y = module(x) if draw is None else module(x, draw=draw)
        forward = list(seen)
        seen.clear()
        with Noted(seen):
            torch.autograd.grad(y, [x, *module.parameters()], g)
    return forward, list(seen)


def launches(module: nn.Module, layout: str, seen: list[str]) -> tuple[int, int]:
    """Of kernels of ours that see x."""
    forward, backward = launched_each_way(module, layout, seen)
    return tuple(sum(not (name in BETWEEN or name.startswith("aten")) for name in way) for way in (forward, backward))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", MOMENT_CASES, ids=str)
def test_of_every_moment_norm(case: Case, layout: str, launched: list[str]) -> None:
    module = build(case, dtype=torch.float32, channels=8).to(DEVICE)
    assert launches(module, layout, launched) == OTHERS.get(case.name, TWO_PASSES), launched


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_a_chain_with_an_activation(layout: str, launched: list[str]) -> None:
    chain = Chain(BatchNorm(8), *CNSN(8), nn.ReLU()).to(DEVICE)
    assert launches(chain, layout, launched) == TWO_PASSES


# Forward, the operations of torch beside the three launches of ours; backward there are five: the gradient of the
# centre (two), its sum with the moments', and two that divide by the size of a plane.
ONE_BETWEEN: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "BatchNorm": (lambda: BatchNorm(8), []),
    "IBN": (lambda: IBN(8), ["aten new_ones", "aten zero_"]),
    "BatchInstanceNorm": (lambda: BatchInstanceNorm(8), ["aten clamp_"]),
    "SelfNorm": (lambda: SelfNorm(8), []),
    "CrossNorm": (lambda: CrossNorm(8), []),
    "CNSN": (lambda: CNSN(8), []),
    "Chain of BatchNorm and CNSN": (lambda: Chain(BatchNorm(8), *CNSN(8)), []),
}


@pytest.mark.parametrize("name", ONE_BETWEEN)
def test_what_is_computed_between_the_passes_is_one_launch(
    name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (base, cross_norm):
        monkeypatch.setattr(module, "is_known", lambda flag: False)  # as on a GPU
    build_norm, besides = ONE_BETWEEN[name]
    forward, backward = launched_each_way(build_norm().to(DEVICE), "contiguous", launched)
    ours = [[each for each in way if not each.startswith("aten")] for way in (forward, backward)]
    assert ours == [
        ["moments_tile", "retarget_block", "apply_tile"],
        ["reduce_tile", "retarget_gradient_block", "combine_tile"],
    ]
    assert [each for each in forward if each.startswith("aten")] == besides
    assert [each for each in backward if each.startswith("aten")] == [
        *("aten neg", "aten mul", "aten add", "aten mul", "aten div"),
    ]
