"""The four passes as C++ kernels, compiled on the user's machine at first use and called through a plain C interface.

No ATen kernel computes ``gain * g + slope * (x - center) + offset`` in one pass, and none sums channels-last samples
one by one; these do. They need a C++ compiler at run time and share the OpenMP runtime that torch has already loaded:
two runtimes in one process fight over the cores. Where torch runs on another one than GNU's, and with clang++, which
knows no GNU runtime, the kernels are compiled without OpenMP and decline unless torch is set to one thread.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from shiftnorm.ops.eager import accumulation_dtype, elements_per_plane

__all__ = ["CppBackend"]

_ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT = 60.0  # seconds; the kernels compile in about 4
_SOURCES = Path(__file__).with_name("kernels")
# No -ffast-math: NaN and infinity must come out, and the kernels order their sums themselves.
_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native",
)


class CppBackend:
    """C++ kernels for contiguous and channels-last CPU tensors of every floating-point type.

    Example:
        >>> CppBackend().unsupported(torch.zeros(2, 3))
        'takes x with spatial dimensions and at least one element, x has shape (2, 3)'
        >>> CppBackend(enabled=False).unsupported(torch.zeros(2, 3, 4))
        'is switched off'

    Args:
        enabled: False makes the backend decline everything; the attribute of the same name can be changed later.
    """

    name = "cpp"

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    def unsupported(self, x: Tensor) -> str | None:
        """Why this backend declines x, or None; the first tensor it could take starts the compiler.

        Example:
            >>> CppBackend().unsupported(torch.zeros(2, 3, 4, 8)[..., ::2])
            'takes contiguous or channels-last tensors, x has strides (96, 32, 8, 2)'
        """
        if not self.enabled:
            return "is switched off"
        if x.device.type != "cpu":
            return f"takes CPU tensors, x is on {x.device}"
        if x.dtype not in _ELEMENTS:
            return f"takes float32, float64, bfloat16 and float16, x is {str(x.dtype).removeprefix('torch.')}"
        if x.layout is not torch.strided or x.is_neg():
            return "takes plain strided tensors, x is sparse or lazily negated"
        if x.dim() < 3 or x.numel() == 0:
            return f"takes x with spatial dimensions and at least one element, x has shape {tuple(x.shape)}"
        if not (x.is_contiguous() or _is_channels_last(x)):
            return f"takes contiguous or channels-last tensors, x has strides {x.stride()}"
        return self.unavailable()

    def unavailable(self) -> str | None:
        """Why nothing can run here, whatever x is, or None; the first question starts the compiler.

        Example:
            >>> CppBackend(enabled=False).unavailable()
            'is switched off'
        """
        if not self.enabled:
            return "is switched off"
        library = _library()
        if isinstance(library, str):
            return library
        if not library.parallel and torch.get_num_threads() > 1:
            return f"runs on one thread here ({library.why_serial}), torch is set to {torch.get_num_threads()}"
        return None

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per plane, (N, C) each.

        Example:
            >>> from shiftnorm.ops import choose  # this backend, where there is a compiler
            >>> choose(x := torch.tensor([[[1.0, 3.0]]])).moments(x)
            (tensor([[2.]]), tensor([[1.]]))
        """
        mean = torch.empty(x.shape[:2], dtype=accumulation_dtype(x), device=x.device)
        var = torch.empty_like(mean)
        _kernels().moments(*_layout(x), x.data_ptr(), mean.data_ptr(), var.data_ptr())
        return mean, var

    def apply(self, x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
        """``gain * (x - center) + mean``, rounded once to x's dtype.

        Example:
            >>> from shiftnorm.ops import choose
            >>> x, one = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1)
            >>> choose(x).apply(x, 2 * one, 2 * one, 5 * one)
            tensor([[[3., 7.]]])
        """
        y = torch.empty_like(x)
        rows = _rows(x, gain, center, mean)  # kept alive while their memory is read
        _kernels().apply(*_layout(x), x.data_ptr(), *(row.data_ptr() for row in rows), y.data_ptr())
        return y

    def reduce(self, g: Tensor, x: Tensor, center: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over each plane of g and of ``g * (x - center)``, (N, C) each.

        Example:
            >>> from shiftnorm.ops import choose
            >>> m = choose(x := torch.tensor([[[1.0, 3.0]]])).moments(x)
            >>> choose(x).reduce(torch.tensor([[[1.0, 2.0]]]), x, *m)
            (tensor([[3.]]), tensor([[1.]]))
        """
        del var
        g, x = _alike(g, x)
        (center,) = _rows(x, center)
        total, product = torch.empty_like(center), torch.empty_like(center)
        pointers = (tensor.data_ptr() for tensor in (g, x, center, total, product))
        _kernels().reduce(*_layout(x), *pointers)
        return total, product

    def combine(
        self, g: Tensor, x: Tensor, gain: Tensor, center: Tensor, var: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """``gain * g + slope * (x - center) + offset``: both gradient paths into x at once.

        Example:
            >>> from shiftnorm.ops import choose
            >>> m = choose(x := torch.tensor([[[1.0, 3.0]]])).moments(x)
            >>> one = torch.ones(1, 1)
            >>> choose(x).combine(torch.tensor([[[1.0, 2.0]]]), x, one, *m, one, 0 * one)
            tensor([[[0., 3.]]])
        """
        del var
        dtype = x.dtype
        g, x = _alike(g, x)
        dx, rows = torch.empty_like(x), _rows(x, gain, center, slope, offset)
        pointers = (tensor.data_ptr() for tensor in (g, x, *rows, dx))
        _kernels().combine(*_layout(x), *pointers)
        return dx.to(dtype)


def _is_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _layout(x: Tensor) -> tuple[int, int, int, int, int, int]:
    # A 1x1 map has both layouts; as channels-last it is one long row instead of many of one element.
    size = elements_per_plane(x)
    by_rows = x.is_contiguous() and (size > 1 or x.shape[1] == 1)
    return _ELEMENTS[x.dtype], not by_rows, torch.get_num_threads(), x.shape[0], x.shape[1], size


def _rows(x: Tensor, *coefficients: Tensor) -> list[Tensor]:
    # The kernels believe what they are told: any other dtype or shape would be read past its end.
    shape, dtype = x.shape[:2], accumulation_dtype(x)
    return [row.to(dtype).expand(shape).contiguous() for row in coefficients]


def _alike(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two in one dtype, the wider where they differ, and g laid out as x is: gradients come in any layout."""
    if g.shape != x.shape:
        raise ValueError(f"CppBackend: expected g of x's shape {tuple(x.shape)}, got {tuple(g.shape)}.")
    if g.dtype != x.dtype:
        g, x = g.to(accumulation_dtype(x)), x.to(accumulation_dtype(x))
    g = g.resolve_neg()
    return (g.contiguous() if x.is_contiguous() else g.movedim(1, -1).contiguous().movedim(-1, 1)), x


class _Library:
    """The compiled kernels with their argument types."""

    def __init__(self, path: Path, why_serial: str) -> None:
        library = ctypes.CDLL(str(path))
        shape = [ctypes.c_int] * 3 + [ctypes.c_int64] * 3
        self.moments, self.reduce = library.shiftnorm_moments, library.shiftnorm_reduce
        self.apply, self.combine = library.shiftnorm_apply, library.shiftnorm_combine
        for function, pointers in ((self.moments, 3), (self.reduce, 5), (self.apply, 5), (self.combine, 7)):
            function.argtypes = shape + [ctypes.c_void_p] * pointers
            function.restype = None
        self.between = {name: getattr(library, f"shiftnorm_{name}") for name in ("attend", "retarget", "switch")}
        for function in self.between.values():
            function.argtypes = [ctypes.c_char_p]
        self.parallel = bool(library.shiftnorm_is_parallel())
        self.why_serial = why_serial


def run_between(name: str, arguments: bytes) -> bool:
    """Run a kernel between the passes on its packed arguments; False if an index among them is out of range."""
    return bool(_kernels().between[name](arguments))


def _kernels() -> _Library:
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(f"CppBackend: expected a tensor that unsupported(x) does not object to; it says: {library}.")
    return library


@cache
def _library() -> _Library | str:
    """The kernels, or why there are none; either way settled once per process."""
    if os.name == "nt":
        return "is not built on Windows"
    found = _find_compiler()
    if found is None:
        return f"no C++ compiler found (tried {', '.join(' '.join(command) for command in _candidates())})"
    compiler, version = found
    why_serial = "clang++ does not know torch's OpenMP runtime" if "clang" in version else _foreign_openmp()
    command = (*compiler, *_FLAGS, *(() if why_serial else ("-fopenmp",)))
    sources = [path.read_text() for path in sorted(_SOURCES.iterdir())]
    digest = hashlib.sha256("\0".join((*sources, version, *command, _cpu())).encode()).hexdigest()
    name = f"kernels-{digest[:24]}.so"
    try:
        try:
            return _cached(command, name, why_serial)
        except (OSError, AttributeError, RuntimeError):  # no home, read-only, noexec, another machine's file
            with tempfile.TemporaryDirectory(prefix="shiftnorm-") as directory:  # for this process alone
                path = Path(directory) / name
                _compile(command, path)
                return _Library(path, why_serial)
    except _CompileError as error:
        return f"compiling failed: {error}"
    except (OSError, AttributeError) as error:
        return f"loading the compiled kernels failed: {_first_line(str(error))}"


class _CompileError(Exception):
    """The compiler ran and did not make a library."""


def _cached(command: tuple[str, ...], name: str, why_serial: str) -> _Library:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # Path.home raises RuntimeError where there is none
    directory = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "shiftnorm"
    path = directory / name
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=directory)
        os.close(handle)
        try:
            _compile(command, Path(temporary))
            os.replace(temporary, path)  # whole or not at all; of several processes the last one wins
        finally:
            Path(temporary).unlink(missing_ok=True)
    return _Library(path, why_serial)


def _compile(command: tuple[str, ...], path: Path) -> None:
    call = (*command, str(_SOURCES / "kernels.cpp"), "-o", str(path))
    try:
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise _CompileError(f"{command[0]} took longer than {_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise _CompileError(_first_line(str(error))) from None
    if done.returncode != 0:
        raise _CompileError(_first_line(done.stderr) or f"{command[0]} returned {done.returncode}")


def _candidates() -> list[tuple[str, ...]]:
    given = tuple(shlex.split(os.environ.get("CXX", "")))
    return [given] if given else [(name,) for name in _COMPILERS]


def _find_compiler() -> tuple[tuple[str, ...], str] | None:
    """The first compiler that answers, and what it says it is."""
    for command in _candidates():
        try:
            done = subprocess.run((*command, "--version"), capture_output=True, text=True, errors="replace", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return command, done.stdout
    return None


def _foreign_openmp() -> str:
    """Why code compiled with -fopenmp would bring a second OpenMP runtime along, or nothing."""
    theirs, ours = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so", "libgomp.so.1"
    try:
        # RTLD_NOLOAD finds what is loaded; a symbol asked of torch's library comes from the runtime torch is bound to.
        mode = os.RTLD_NOLOAD | os.RTLD_NOW
        found = [ctypes.CDLL(str(name), mode=mode).omp_get_max_threads for name in (theirs, ours)]
    except (OSError, AttributeError):
        return "torch does not run on GNU OpenMP"
    first, second = (ctypes.cast(function, ctypes.c_void_p).value for function in found)
    return "" if first == second else "torch does not run on the GNU OpenMP that is loaded"


def _cpu() -> str:
    """What -march=native depends on: a cache shared between machines must not hand out illegal instructions."""
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = {line for line in text.splitlines() if line.startswith(names)}
    return "\n".join((platform.machine(), *sorted(lines)))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
