"""How many kernels of ours a norm launches, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cases import CASES, Case, build
from shiftnorm.norms import CNSN, BatchNorm, Chain, MomentNorm
from shiftnorm.ops import use_backend
from triton_device import DEVICE, INTERPRETED, LAYOUTS, random, runs_kernels

pytestmark = runs_kernels

TWO_PASSES = (2, 2)  # moments and apply, reduce and combine
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
        return plain(kernel, *arguments, **options)

    monkeypatch.setattr(Kernel, method, counted)
    return seen


def launches(module: nn.Module, layout: str, seen: list[str]) -> tuple[int, int]:
    x = random((3, 8, 5, 3), layout).requires_grad_()
    with use_backend("triton"):
        y = module(x)
        forward = len(seen)
        y.backward(torch.ones_like(y))
    return forward, len(seen) - forward


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", MOMENT_CASES, ids=str)
def test_of_every_moment_norm(case: Case, layout: str, launched: list[str]) -> None:
    module = build(case, dtype=torch.float32, channels=8).to(DEVICE)
    assert launches(module, layout, launched) == OTHERS.get(case.name, TWO_PASSES), launched


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_a_chain_with_an_activation(layout: str, launched: list[str]) -> None:
    chain = Chain(BatchNorm(8), *CNSN(8), nn.ReLU()).to(DEVICE)
    assert launches(chain, layout, launched) == TWO_PASSES
