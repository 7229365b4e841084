"""Which backend runs the passes: an ordered list, the first one without an objection wins."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, cast

import torch
from torch import Tensor

from shiftnorm.ops.aten import AtenBackend
from shiftnorm.ops.cpp import CppBackend
from shiftnorm.ops.eager import EagerBackend
from shiftnorm.ops.triton_backend import TritonBackend

__all__ = [
    "BACKENDS",
    "Backend",
    "choose",
    "explain",
    "has_cpp",
    "has_triton",
    "is_batched",
    "is_forced",
    "is_traced",
    "use_backend",
]


class Backend(Protocol):
    """The four passes over x and the reason, if any, not to run them. Coefficients are contiguous (N, C) tensors."""

    name: str

    def unsupported(self, x: Tensor) -> str | None:
        """Why this backend declines x, or None."""
        ...

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per plane."""
        ...

    def apply(self, x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
        """``gain * (x - center) + mean``."""
        ...

    def reduce(self, g: Tensor, x: Tensor, center: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over each plane of g and of ``g * (x - center)``; var says how far off zero the planes are."""
        ...

    def combine(
        self, g: Tensor, x: Tensor, gain: Tensor, center: Tensor, var: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """``gain * g + slope * (x - center) + offset``."""
        ...


_cpp, _triton = CppBackend(), TritonBackend()
BACKENDS: tuple[Backend, ...] = (_cpp, AtenBackend(), _triton, EagerBackend())

_forced: ContextVar[str | None] = ContextVar("shiftnorm_backend", default=None)


def choose(x: Tensor) -> Backend:
    """The backend that runs the passes over x.

    Example:
        >>> choose(torch.zeros(2, 3)).name
        'eager'

    Raises:
        RuntimeError: if ``use_backend`` forces one that declines x, or every backend does; the text has every reason.
    """
    forced = _forced.get()
    objections: list[str] = []
    for backend in BACKENDS:
        if forced is not None and backend.name != forced:
            continue
        objection = backend.unsupported(x)
        if objection is None:
            return backend
        objections.append(f"{backend.name} {objection}")
    raise RuntimeError(f"no backend takes x of shape {tuple(x.shape)}, {x.dtype}, {x.device}: " + "; ".join(objections))


def has_cpp() -> bool:
    """Whether the C++ kernels can run here and ``use_backend`` does not set them aside.

    Example:
        >>> with use_backend("eager"):
        ...     has_cpp()
        False
    """
    return _forced.get() in (None, _cpp.name) and _cpp.unavailable() is None


def has_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels take a tensor of moments, or x itself, and ``use_backend`` does not set them aside.

    Example:
        >>> has_triton(torch.zeros(2, 3, dtype=torch.float64))
        False
    """
    return _forced.get() in (None, _triton.name) and _triton.unsupported(tensor) is None


def is_forced() -> bool:
    """Whether ``use_backend`` is in force.

    Example:
        >>> is_forced()
        False
    """
    return _forced.get() is not None


def explain(x: Tensor) -> str:
    """What runs for x and why the others do not, one line per backend.

    Example:
        >>> print(explain(torch.zeros(2, 3)))
        cpp: declines, takes x with spatial dimensions and at least one element, x has shape (2, 3)
        aten: declines, takes x with spatial dimensions and at least one element, x has shape (2, 3)
        triton: declines, takes CUDA tensors, x is on cpu
        eager: runs
    """
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  (not every caller checks types)
        raise TypeError(f"explain: expected a tensor, got {type(x).__name__}.")
    if is_traced(x):
        return "traced (torch.compile, export, torch.func or a tensor subclass): the plain formulas run, no backend"
    forced = _forced.get()
    lines: list[str] = []
    chosen = False
    for backend in BACKENDS:
        if forced is not None and backend.name != forced:
            lines.append(f"{backend.name}: set aside by use_backend({forced!r})")
            continue
        objection = backend.unsupported(x)
        if objection is not None:
            lines.append(f"{backend.name}: declines, {objection}")
        else:
            lines.append(f"{backend.name}: {'could run, comes later in the list' if chosen else 'runs'}")
            if not chosen and isinstance(backend, TritonBackend):
                lines += [f"  {line}" for line in backend.plan(x).splitlines()]
            chosen = True
    return "\n".join(lines)


@contextmanager
def use_backend(name: str) -> Generator[None]:
    """Run every norm inside the block on the named backend, and none by torch's kernels for whole norms.

    Example:
        >>> with use_backend("eager"):
        ...     choose(torch.zeros(2, 3, 4, 4)).name
        'eager'

    Raises:
        ValueError: if no backend has this name.
    """
    names = [backend.name for backend in BACKENDS]
    if name not in names:
        raise ValueError(f"use_backend: expected one of {', '.join(names)}, got {name!r}.")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def is_traced(x: Tensor) -> bool:
    """Whether x is being traced or transformed, so that only plain differentiable formulas may touch it.

    Example:
        >>> is_traced(torch.zeros(2, 3))
        False
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    # torch has no public question for these two; a test pins them
    transformed: bool = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
    level = cast("int", torch.autograd.forward_ad._current_level)  # pyright: ignore
    return transformed or level >= 0 or type(x) not in (Tensor, torch.nn.Parameter) or x.is_meta


def is_batched(g: Tensor) -> bool:
    """Whether g carries a hidden axis of a batched gradient (``is_grads_batched``, ``vmap`` over ``grad``).

    Example:
        >>> is_batched(torch.zeros(2, 3))
        False
    """
    functorch = torch._C._functorch  # pyright: ignore
    return bool(functorch.is_batchedtensor(g) or functorch.is_legacy_batchedtensor(g))  # pyright: ignore
