"""What every Triton kernel takes on a GPU, by compiling it for one: registers, spills, shared memory, widths of loads.

python benchmarks/triton_resources.py                 for sm_90; a record under benchmarks/results
python benchmarks/triton_resources.py --capability 80

No GPU is needed: the launches are recorded from tensors without data, and Triton brings the assembler.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from record import RESULTS, save
from shiftnorm.ops import Exchange, Gate, Pool, triton_retarget, triton_single, triton_sort, triton_unit
from shiftnorm.ops import triton_passes as passes
from shiftnorm.ops.retargeting import Setting
from shiftnorm.ops.triton_launch import pixel_launch, pixel_view, set_launch, sort_launch, view_of

FORMAT = "shiftnorm.triton_resources/1"
SHAPES = [
    (32, 64, 56, 56),
    (32, 256, 28, 28),
    (64, 256, 14, 14),
    (64, 512, 7, 7),
    (2, 32, 128, 128, 128),
    (1, 1, 1024, 1024),
]
# For the kernels of whole norms: shapes, and the channels that share moments in one of ResNet-50's GroupNorms.
WHOLE = [
    ((64, 2048, 7, 7), 64),
    ((64, 1024, 14, 14), 32),
    ((64, 512, 28, 28), 16),
    ((32, 64, 56, 56), 2),
    ((2, 256, 16, 16, 16), 8),
]
# For the kernels between the passes, samples and channels.
BETWEEN = [(32, 64), (32, 2048), (256, 64), (256, 2048), (1024, 512)]
DTYPES = [torch.bfloat16, torch.float32]
LAYOUTS = ["contiguous", "channels_last"]
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.bool: "*i1",
    torch.int16: "*i16",
    torch.int64: "*i64",
}


class Recorder:
    """Stands for a kernel and notes its launches."""

    def __init__(self, kernel: Any, launches: Launched) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **meta: self.launches.append((self.kernel, grid, arguments, meta))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 90 is Hopper")
    parser.add_argument("--quick", action="store_true", help="one shape")
    parser.add_argument("--output", type=Path, help="the record")
    options = parser.parse_args(arguments)
    shapes, whole, between = (SHAPES[:1], WHOLE[:1], BETWEEN[:1]) if options.quick else (SHAPES, WHOLE, BETWEEN)
    record = measured(shapes, whole, between, options.capability)
    for row in [*record["kernels"], *record["norms"], *record["between"]]:
        print(line(row))
    path = save(record, options.output or RESULTS / f"triton-sm_{options.capability}.json")
    print(f"record: {path}", file=sys.stderr)


Launched = list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]]


def measured(
    shapes: Sequence[tuple[int, ...]],
    whole: Sequence[tuple[tuple[int, ...], int]],
    between: Sequence[tuple[int, int]],
    capability: int,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "target": f"sm_{capability}",
        "triton": triton.__version__,
        "torch": torch.__version__,
        "kernels": [row for shape in shapes for row in rows_of(shape, launches, capability)],
        "norms": [
            row
            for shape, sharing in whole
            for row in rows_of(shape, lambda x, sharing=sharing: norm_launches(x, sharing), capability)
        ],
        "between": [row for shape in between for row in between_rows(*shape, capability)],
    }


def rows_of(
    shape: tuple[int, ...], launched: Callable[[Tensor], Launched], capability: int
) -> Iterator[dict[str, Any]]:
    for layout in LAYOUTS:
        for dtype in DTYPES:
            x = torch.empty(shape, dtype=dtype, device="meta")
            if layout == "channels_last":
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            for kernel, grid, given, meta in launched(x):
                yield {
                    "kernel": name_of(kernel, given, meta),
                    "shape": list(shape),
                    "layout": layout,
                    "dtype": str(dtype).removeprefix("torch."),
                    "programs": grid[0],
                    "tile": [meta["PLANES"], meta.get("PLACES", meta.get("SPLITS"))],
                    "warps": meta.get("num_warps", 4),
                    **compiled(kernel, given, meta, capability),
                }


def launches(x: Tensor) -> Launched:
    found: Launched = []
    wrap = lambda kernel: Recorder(kernel, found)
    row = torch.empty(x.shape[:2], device="meta")
    mask = torch.empty((x.shape[0], 1, *x.shape[2:]), dtype=torch.bool, device="meta")
    passes.moments(x, wrap=wrap)
    passes.apply(x, row, row, row, wrap=wrap)
    passes.reduce(x, x, row, wrap=wrap)
    passes.combine(x, x, row, row, row, row, wrap=wrap)
    passes.moments(x, mask, wrap=wrap)
    passes.combine(x, x, row, row, row, row, mask=mask, wrap=wrap)
    passes.apply(x, row, row, row, x, "relu", wrap=wrap)
    passes.reduce(x, x, row, row, row, x, "relu", wrap=wrap)
    passes.combine(x, x, row, row, row, row, row, x, "relu", wrap=wrap)
    return found


def norm_launches(x: Tensor, sharing: int) -> Launched:
    """What whole norms launch where x is kept on chip: InstanceNorm and GroupNorm, DomainNorm, EFDMix."""
    found: Launched = []
    wrap = lambda kernel: Recorder(kernel, found)
    row, channel = torch.empty(x.shape[:2], device="meta"), torch.empty(x.shape[1], device="meta")
    for sets in (set_launch(view_of(x), together, x.element_size()) for together in (1, sharing)):
        if sets is not None:
            _, moments = triton_single.forward(x, sets, channel, channel, 1e-5, wrap=wrap)
            triton_single.backward(x, x, sets, channel, moments, wrap=wrap)
    pixels = pixel_launch(pixel_view(x), x.element_size())
    if pixels is not None:
        triton_unit.forward(x, pixels, row, row, channel, channel, x.dtype, 1e-12, wrap=wrap)
        triton_unit.backward(x, x, pixels, row, row, channel, 1e-12, wrap=wrap)
    planes = sort_launch(view_of(x), x.element_size())
    if planes is not None:
        share, partner = (
            torch.empty(x.shape[0], device="meta"),
            torch.empty(x.shape[0], dtype=torch.int64, device="meta"),
        )
        _, order = triton_sort.mix(x, planes, share, partner, wrap=wrap)
        triton_sort.mix_gradient(x, planes, order, share, partner, wrap=wrap)
    return found


def between_rows(samples: int, channels: int, capability: int) -> Iterator[dict[str, Any]]:
    """What BatchNorm, a BatchNorm with shares, CNSN and BatchNorm before CNSN launch on their (N, C) numbers."""
    numbers, channel = torch.empty(samples, channels, device="meta"), torch.empty(channels, device="meta")
    counter = torch.empty((), dtype=torch.int64, device="meta")
    running = (channel, channel, counter)
    pool = Pool(channel, channel, *running, pace=0.1, eps=1e-5)
    gate = Gate(torch.empty(channels, 2, device="meta"), channel, channel, *running, pace=0.1, eps=1e-12, norm_eps=1e-5)
    acts = torch.empty((), dtype=torch.bool, device="meta")
    exchange = Exchange(torch.empty(samples, dtype=torch.int64, device="meta"), 1e-5, acts)
    for name, *steps in (
        ("BatchNorm", pool, None, None),
        ("IBN", pool._replace(share=channel), None, None),
        ("AttentiveNorm", pool._replace(weight=numbers, bias=numbers), None, None),
        ("CNSN", None, exchange, gate),
        ("Chain (BatchNorm, CNSN)", pool, exchange, gate),
    ):
        setting = Setting(784, *steps, on_cpu=False)
        front, _, behind = steps
        parameters = (*(behind[:3] if behind else [None] * 3), *((*front[:2], front.share) if front else [None] * 3))
        inputs, found = (numbers, numbers, None, *parameters), Launched()
        wrap = lambda kernel, found=found: Recorder(kernel, found)
        _, _, *kept = triton_retarget.forward(inputs, setting, wrap=wrap)
        triton_retarget.backward(inputs, kept, setting, (numbers, numbers), wrap=wrap)
        for kernel, grid, given, meta in found:
            yield {
                "kernel": str(kernel.__name__),
                "norm": name,
                "shape": [samples, channels],
                "layout": "(N, C)",
                "dtype": "float32",
                "programs": grid[0],
                "tile": [meta["ROWS"], meta["COLUMNS"]],
                "warps": meta.get("num_warps", 4),
                **compiled(kernel, given, meta, capability),
            }


def name_of(kernel: Any, given: tuple[Any, ...], meta: dict[str, Any]) -> str:
    name = str(kernel.__name__)
    if meta.get("ACTIVATION", "none") != "none":
        name = name.replace("_tile", "_activated_tile")
    return name + ("_masked" if any(isinstance(each, Tensor) and each.dtype is torch.bool for each in given) else "")


def compiled(kernel: Any, given: tuple[Any, ...], meta: dict[str, Any], capability: int) -> dict[str, Any]:
    """Compile one launch as Triton would on its first call: 1 is a constant, multiples of 16 are known as such."""
    options = {name: value for name, value in meta.items() if name == "num_warps"}
    values = {**dict(zip(kernel.arg_names, given, strict=False)), **{k: v for k, v in meta.items() if k not in options}}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif index >= len(given) or value is None or value == 1:
            signature[name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = binary.asm["ptx"]
    return {
        "shared": binary.metadata.shared,
        **assembled(ptx, capability),
        "loads": widths(ptx, "ld"),
        "stores": widths(ptx, "st"),
    }


def assembled(ptx: str, capability: int) -> dict[str, int]:
    target = re.search(r"\.target (\S+?)[,\s]", ptx)
    if target is None:
        raise ValueError("assembled: expected PTX with a .target line, got " + ptx[:80])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={target[1]}",
            str(path),
            "-o",
            str(path.with_suffix(".cubin")),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    stores, reads = (re.search(rf"(\d+) bytes spill {what}", said) for what in ("stores", "loads"))
    if registers is None or stores is None or reads is None:
        raise ValueError("assembled: expected registers and spills, ptxas said " + said)
    return {"registers": int(registers[1]), "spilled_bytes": int(stores[1]) + int(reads[1])}


def widths(ptx: str, what: str) -> dict[str, int]:
    """How many loads or stores of global memory there are of each width in bytes, copies to shared memory included."""
    found: dict[str, int] = {}
    for size in re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, (0x[0-9a-f]+)", ptx) if what == "ld" else ():
        found[str(int(size, 16))] = found.get(str(int(size, 16)), 0) + 1
    for vector, bits in re.findall(rf"{what}\.global(?:\.[a-z_0-9:]+?)*?(?:\.v(\d))?\.b(\d+)", ptx):
        width = str(int(vector or 1) * int(bits) // 8)
        found[width] = found.get(width, 0) + 1
    return found


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['kernel']:22} {row['shape']!s:24} {row['layout']:13} {row['dtype']:8} {row['programs']:6} programs "
        f"{row['tile']!s:12} {row['warps']} warps  {row['registers']:3} registers {row['spilled_bytes']:4} spilled "
        f"{row['shared']:5} shared  loads {row['loads']} stores {row['stores']}"
    )


if __name__ == "__main__":
    main()
