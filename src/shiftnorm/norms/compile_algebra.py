"""The switch that compiles what norms compute between their two passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from shiftnorm.norms.base import MomentNorm

__all__ = ["compile_algebra"]

M = TypeVar("M", bound=nn.Module)


def compile_algebra(model: M, backend: str | Callable[..., Any] | None = "inductor") -> M:
    """Let the norms of a model run what they compute between their two passes through ``torch.compile``.

    Between reading x and writing y, a norm works on tensors of N times C numbers only, in 20 to 100 operations each of
    which takes longer to start than to run. Compiled they are one or two kernels each way. The passes over x and the
    rest of the model stay as they are: nothing else is traced, and hooks, checkpointing and prints keep working.

    Example:
        >>> import torch
        >>> from shiftnorm.norms import CNSN, BatchNorm, Chain
        >>> norm = compile_algebra(Chain(BatchNorm(8), CNSN(8)), backend="aot_eager")
        >>> norm(torch.randn(4, 8, 6, 6)).shape
        torch.Size([4, 8, 6, 6])

    Args:
        model: a model, a block or a single norm; changed in place. Norms of a Chain are compiled as one.
        backend: of ``torch.compile``; None switches back.

    Returns:
        The model.

    Raises:
        ValueError: if the model has no norm that this is for.

    Cost: on the CPU some ten seconds of compilation at the first batch for every kind of norm, number of channels, and
        mode (training or evaluation), less where the compiler finds its work of an earlier process; a change of the
        batch or image size compiles once more, then for all sizes.
    Limits: those of ``torch.compile``. There are no second derivatives: a gradient penalty raises torch's error, and
        so does ``backward(retain_graph=True)`` unless ``torch._functorch.config.donated_buffer`` is False.
        Norms that pool over several processes run theirs uncompiled. Inside a ``torch.compile`` of the whole model
        everything is compiled as one, and this changes nothing.
    """
    norms = [module for module in model.modules() if isinstance(module, MomentNorm)]
    if not norms:
        raise ValueError(f"compile_algebra: {type(model).__name__} has no norm of shiftnorm that retargets moments.")
    for norm in norms:
        norm.algebra_backend = backend
    return model
