"""Placements in architectures too many or too large to compute with: shapes and structure only, on the meta device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shiftnorm.surgery import convert, revert
from surgery_check import Outcome, flat

# One of each mechanism: replacement in branches, in front of a fused pair, everywhere, and in a slot of its own.
META = ["ibn_a", "cnsn", "rbn", "selfnorm@post"]


def try_on_meta(name: str, build: Callable[[], nn.Module], placements: Sequence[str]) -> list[dict[str, Any]]:
    try:
        with torch.device("meta"):
            model = build().eval()
            x = input_for(model)
            expected = shapes(model, x)
    except Exception as fault:  # any: an architecture may be no use on the meta device, and the record says why
        reason = f"{type(fault).__name__}: {fault}"[:200]
        return [{"model": name, "placement": "", "outcome": "not run", "reason": reason}]
    return [try_one(name, model, x, expected, placement).to_json() for placement in placements]


def input_for(model: nn.Module) -> Tensor:
    size = (getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224))
    return torch.empty(2, *size, device="meta")


def shapes(model: nn.Module, x: Tensor) -> list[torch.Size]:
    with torch.no_grad():
        return [tensor.shape for tensor in flat(model(x))]


def try_one(name: str, model: nn.Module, x: Tensor, expected: list[torch.Size], placement: str) -> Outcome:
    start = time.perf_counter()
    result = Outcome(name, placement, "converted")
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    try:
        with torch.device("meta"):
            _, report = convert(model, placement)
    except ValueError as refusal:
        result.outcome, result.reason = "refused", str(refusal)[:300]
    except Exception as fault:  # any other exception is no refusal
        result.outcome, result.reason = "failed", f"{type(fault).__name__}: {fault}"[:300]
    else:
        result.changed, result.skipped = len(report), len(report.skipped)
        if not len(report):
            result.outcome = "refused"
            result.reason = "; ".join(sorted({reason for _, reason in report.skipped}))[:300]
        try:
            if shapes(model, x) != expected:
                result.silent.append("the outputs have other shapes")
        except Exception as fault:  # any: it is what the benchmark counts
            result.silent.append(f"{type(fault).__name__}: {fault}"[:300])
        revert(model, report)
    if list(model.state_dict()) != keys:
        result.silent.append("afterwards, the state_dict has other keys")
    if [type(module) for module in model.modules()] != types:
        result.silent.append("afterwards, modules have other types")
    result.seconds = time.perf_counter() - start
    return result
