"""A training step asks the device for no number and sends it none: it would wait for it, and could not be captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES, Case, build
from shiftnorm.norms import base, cross_norm
from shiftnorm.ops import use_backend

# What on a GPU waits for it: numbers that come to the host, sizes that depend on values, tensors made of host numbers.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "repeat_interleave", "lift_fresh"}


class Named(TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_step_waits_for_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, cross_norm):
        monkeypatch.setattr(module, "is_known", lambda flag: False)  # as on a GPU
    norm = build(case, dtype=torch.float32).train()
    x = torch.randn(4, 8, 6, 5, requires_grad=True)
    with use_backend("eager"), Named() as ran:
        y = norm(x)
        torch.autograd.grad(y, [x, *norm.parameters()], torch.ones_like(y), allow_unused=True)
    assert ran.names and not ran.names & WAITS


def test_what_waits_is_seen() -> None:
    with Named() as ran:
        x = torch.tensor([1.0, 0.0])
        if x[0] > 0:
            x.nonzero()
    assert {"lift_fresh", "_local_scalar_dense", "nonzero"} <= ran.names
