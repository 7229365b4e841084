"""Where the Triton kernels can run in this process, and what their tests share."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if COMPILED else "cpu"

runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or COMPILED),
    reason="no GPU in this process; test_triton.py runs this file in another one with TRITON_INTERPRET=1",
)

LAYOUTS = ["contiguous", "channels_last"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float64: 2.0**-50, torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def laid_out(x: Tensor, layout: str) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x.contiguous()


def random(shape: tuple[int, ...], layout: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return laid_out((torch.randn(shape) * 2 + 1).to(DEVICE, dtype), layout)


def rows(count: int, shape: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape[:2]).to(DEVICE) for _ in range(count)]


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Within the rounding of dtype, relative to the largest of want, which is in float64."""
    tolerance = ROUNDING[dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * (1 + float(want.abs().max())))
