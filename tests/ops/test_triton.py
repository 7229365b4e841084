"""The Triton backend without a GPU: why it declines, how it cuts the work, and its kernels run by the interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from resource_table import between_markdown, norms_markdown
from shiftnorm.ops import explain, triton_backend
from shiftnorm.ops.triton_backend import TritonBackend
from shiftnorm.ops.triton_launch import (
    map_launch,
    pixel_launch,
    pixel_view,
    programs,
    set_launch,
    sort_launch,
    sum_launch,
    view_of,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed here")


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same tests run the compiled kernels on this GPU")
def test_the_kernels_run_by_the_interpreter() -> None:
    files = sorted(str(path) for path in HERE.glob("test_triton_*.py"))
    assert len(files) == 9
    # Interpreted functions are made when their module is imported, so the setting needs a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 350, done.stdout[-500:]


DECLINED = {
    "dtype": (torch.zeros(2, 3, 4, dtype=torch.float64), "takes float32, bfloat16 and float16, x is float64"),
    "empty": (torch.zeros(0, 3, 4), "at least one element"),
    "strides": (torch.zeros(2, 3, 4, 8)[..., ::2], "contiguous or channels-last"),
    "channels": (torch.zeros(2, 2, (1 << 22) + 1, dtype=torch.bfloat16).movedim(1, 2), "takes up to 4194304 channels"),
    "planes": (torch.zeros(1, dtype=torch.float16).expand(1, 1, 1 << 31), "contiguous"),
    "large": (torch.zeros(1, 1, 1 << 31, device="meta"), "takes planes of fewer than 2147483648 elements"),
    "cpu": (torch.zeros(2, 3, 4), "takes CUDA tensors, x is on cpu"),
    "meta": (torch.zeros(2, 3, 4, device="meta"), "takes CUDA tensors, x is on meta"),
    "sparse": (torch.zeros(2, 3, 4).to_sparse(), "x is sparse"),
    "negated": (torch._neg_view(torch.zeros(2, 3, 4)), "lazily negated"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_it_says_why_it_declines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, reason = DECLINED[case]
    assert reason in (TritonBackend().unsupported(x) or "")


def test_it_says_so_where_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda name: None)
    triton_backend._is_installed.cache_clear()
    try:
        x = torch.zeros(2, 3, 4)
        assert TritonBackend().unsupported(x) == "needs the package triton, which is not installed"
        assert "triton: declines, needs the package triton" in explain(x)
    finally:
        triton_backend._is_installed.cache_clear()


def test_every_module_can_be_imported_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from shiftnorm.ops import epilogue, triton_kernels, triton_ops, triton_passes, triton_single, triton_sort, triton_unit
print(torch.ops.shiftnorm.moments(torch.tensor([[[1.0, 3.0]]])))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "(tensor([[2.]]), tensor([[1.]]))", done.stderr


def test_the_plan_says_how_planes_are_cut() -> None:
    assert TritonBackend().plan(torch.empty(1, 1, 1024, 1024)).splitlines() == [
        "sums: 256 programs of 4 warps, 1 x 2048 elements (planes x places) at a time, "
        "256 splits of 4096 to a plane, joined by a second launch",
        "maps: 512 programs of 4 warps, 1 x 2048 elements (planes x places) at a time",
    ]


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((9, 0), torch.bfloat16, None),
        ((7, 5), torch.float32, None),
        ((7, 5), torch.bfloat16, "takes bfloat16 on compute capability 8.0 and above, x is on a GPU of 7.5"),
        ((6, 1), torch.float32, "takes GPUs of compute capability 7.5 and above, x is on one of 6.1"),
    ],
)
@needs_triton
def test_old_gpus_are_declined(
    capability: tuple[int, int], dtype: torch.dtype, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    triton_backend._why_not_on.cache_clear()
    try:
        assert triton_backend._why_not_on(0, dtype) == reason
    finally:
        triton_backend._why_not_on.cache_clear()


def test_kernels_that_keep_x_on_chip_spill_nothing_and_are_on_the_page() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "triton-sm_90.json").read_text())
    assert {row["kernel"] for row in record["norms"]} == {
        *("whole_tile", "whole_gradient_tile", "unit_tile", "unit_gradient_tile"),
        *("sort_tile", "mix_tile", "mix_gradient_tile"),
    }
    assert [row for row in record["norms"] if row["spilled_bytes"]] == []
    assert {row["kernel"] for row in record["between"]} == {"retarget_block", "retarget_gradient_block"}
    assert len({row["norm"] for row in record["between"]}) == 5
    assert [row for row in record["between"] if row["spilled_bytes"]] == []
    page = (ROOT / "docs" / "performance.md").read_text()
    assert norms_markdown(record) in page and between_markdown(record) in page


SHAPES = [
    (1, 1),
    (1, 1, 1),
    (3, 5, 7),
    (1, 1, 1 << 20),
    (1, 3, 1024, 1024),
    (32, 64, 56, 56),
    (32, 256, 28, 28),
    (64, 512, 7, 7),
    (2, 32, 128, 128, 128),
    (100000, 64, 3),
    (1, 4000000, 2),
    (2, 3, 1021, 1019),
    (70000, 3, 1, 1),
    (1, 1 << 22, 5),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_launches_cover_every_element_within_the_limits(shape: tuple[int, ...], layout: str) -> None:
    x = torch.empty(shape, device="meta")
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    view = view_of(x)
    assert view.groups * view.planes * view.places == x.numel()
    assert (view.places if view.rows else view.planes) % view.unit == 0
    strides = (view.places, 1) if view.rows else (1, view.planes)
    for launch in (sum_launch(view), map_launch(view)):
        assert launch.planes & (launch.planes - 1) == launch.places & (launch.places - 1) == 0
        assert 1 <= launch.planes * launch.places <= 4096
        assert launch.warps in (1, 2, 4, 8)
        assert launch.splits * launch.segment >= view.places > (launch.splits - 1) * launch.segment
        assert programs(view, launch) < 2**31
        # offsets inside a tile are 32-bit
        assert launch.planes * strides[0] + launch.places * strides[1] < 2**31
    assert sum_launch(view).splits <= 256
    assert sum_launch(view).segment % sum_launch(view).places == 0
    assert map_launch(view).segment == map_launch(view).places


@pytest.mark.parametrize("shape", [*SHAPES, (64, 96, 14, 14), (8, 512, 28, 28), (2, 320, 8, 8, 8)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_sets_of_planes_that_are_kept_on_chip(shape: tuple[int, ...], layout: str, itemsize: int) -> None:
    x = torch.empty(shape, device="meta")
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    view = view_of(x)
    for sharing in {1, shape[1], *(size for size in (2, 3, 16) if shape[1] % size == 0)}:
        launch = set_launch(view, sharing, itemsize)
        if launch is None:
            assert sharing * view.places > 4096 or not view.rows
            continue
        sets = view.planes // sharing
        each = launch.planes // launch.deep
        assert launch.sharing == sharing <= launch.deep < 2 * sharing and view.places <= launch.places
        assert launch.planes * launch.places <= 1 << 14 and launch.warps in (1, 2, 4, 8, 16)
        assert launch.programs == view.groups * -(-sets // each) < 2**31
        assert not launch.planes & (launch.planes - 1) and not launch.places & (launch.places - 1)
        if not view.rows:
            assert view.places * view.planes < 2**31
            assert each >= sets or each * sharing * itemsize >= 32


@pytest.mark.parametrize("shape", [*SHAPES, (8, 1024, 14, 14), (8, 512, 7, 7), (4, 16, 31, 33)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_pixels_and_planes_that_are_kept_on_chip(shape: tuple[int, ...], layout: str, itemsize: int) -> None:
    x = torch.empty(shape, device="meta")
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    view = pixel_view(x)
    assert (view.groups, view.planes, view.places) == (shape[0], shape[1], x.numel() // (shape[0] * shape[1]))
    pixels = pixel_launch(view, itemsize)
    assert (pixels is None) == (shape[1] > 1024)
    if pixels is not None:
        assert shape[1] <= pixels.planes < 2 * shape[1]
        assert pixels.planes * pixels.places <= 1 << 13 and pixels.warps in (1, 2, 4, 8, 16)
        tiles = -(-view.places // pixels.places)
        assert pixels.splits * pixels.steps >= tiles > (pixels.splits - 1) * pixels.steps
    planes = sort_launch(view_of(x), itemsize)
    if planes is None:
        assert view.places > 4096 or (layout == "channels_last" and view.places > 128)
    else:
        assert view.places <= planes.places and planes.planes * planes.places <= 4096


def test_large_planes_are_split_and_many_are_not() -> None:
    def count(*shape: int) -> int:
        view = view_of(torch.empty(shape, device="meta"))
        return programs(view, sum_launch(view))

    assert count(1, 1, 1024, 1024) == 256
    assert count(8, 8, 512, 512) >= 1000
    for shape in [(32, 64, 56, 56), (64, 256, 14, 14), (64, 512, 7, 7), (8, 16, 14, 14)]:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.empty(shape, device="meta", memory_format=memory_format)
            few_large = shape[0] == 32 and memory_format == torch.channels_last
            assert (sum_launch(view_of(x)).splits > 1) == few_large
