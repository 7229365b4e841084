"""What sanitize.py runs under compute-sanitizer: the parity tests of the kernels, and a fault planted for each tool.

python benchmarks/sanitized.py tests 100000
python benchmarks/sanitized.py planted memcheck
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shiftnorm.ops.triton_place import tl, triton

TESTS = Path(__file__).resolve().parent.parent / "tests" / "ops"
# The registration of the operators runs the same kernels, between minutes of torch's compilers.
FILES = sorted({*TESTS.glob("test_triton_*.py")} - {TESTS / "test_triton_ops.py"})
LEFT_OUT = {
    "test_more_than_two_to_the_31_elements": "hours when every access is looked at",
    "test_a_step_can_be_captured_in_a_cuda_graph": "graphs take memory from torch's cache, which is switched off",
}

RACE = """
extern "C" __global__ void planted_race(float* out) {
    __shared__ float room[256];
    room[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = room[255 - threadIdx.x];
}
"""


class SmallOnly:
    """A plugin of pytest that leaves out tests with large inputs, and those that cannot run under the tools."""

    def __init__(self, largest: int) -> None:
        self.largest = largest

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        every = [*items]
        items[:] = [item for item in every if not self.leaves_out(item)]
        config.hook.pytest_deselected(items=[item for item in every if self.leaves_out(item)])

    def leaves_out(self, item: Any) -> bool:
        given: Mapping[str, object] = item.callspec.params if hasattr(item, "callspec") else {}
        return item.originalname in LEFT_OUT or any(elements(value) > self.largest for value in given.values())


def elements(value: object) -> int:
    """Of a tensor, where the value is a shape."""
    if not isinstance(value, tuple) or not all(type(size) is int for size in value):
        return 0
    return math.prod(value)


@triton.jit
def planted_overrun(pointer, START: tl.constexpr):
    place = START + tl.arange(0, 32)
    tl.store(pointer + place, place.to(tl.float32))


def plant(tool: str) -> None:
    kernel: Any = planted_overrun
    if tool == "racecheck":
        # Triton puts its barriers itself, so that a race has to be written in CUDA; torch has no public name for this.
        kernel = torch.cuda._compile_kernel(RACE, "planted_race")
        kernel((1, 1, 1), (256, 1, 1), [torch.empty(256, device="cuda")])
    else:
        kernel[(1,)](torch.empty(1000, device="cuda"), START=3000)
    torch.cuda.synchronize()


def main(arguments: Sequence[str]) -> int:
    what, value = arguments
    if what == "planted":
        plant(value)
        return 0
    # -s: what the tool prints must not end in pytest's buffers. Warnings of other versions of torch are no faults here.
    flags = ["-q", "-s", "-p", "no:cacheprovider", "-W", "default"]
    return int(pytest.main([*flags, *map(str, FILES)], plugins=[SmallOnly(int(value))]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
