"""What a conversion did: every change, every site left alone and why, and by how much the function moved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shiftnorm.surgery.edit import Change, Edit
from shiftnorm.surgery.norm_act import NormAct

__all__ = ["Movement", "Report", "Skipped"]

# Differences of this share of the outputs' own spread are rounding, not a change of the function.
_ROUNDING = 1e-4
_ROUNDING_16_BITS = 5e-2


class Skipped(NamedTuple):
    """A site that was left as it is.

    Example:
        >>> Skipped("bn1", "it is frozen").reason
        'it is frozen'

    Args:
        path: dotted name of the module.
        reason: why.
    """

    path: str
    reason: str


class Movement(NamedTuple):
    """How far the outputs of a model in evaluation mode moved on an example.

    Example:
        >>> Movement(max=0.0, mean=0.0, spread=2.0).kept
        True

    Args:
        max: largest absolute difference of an output.
        mean: mean absolute difference.
        spread: standard deviation of the outputs before (of a single one its size).
        rounding: share of the spread that is rounding and no change of the function.
    """

    max: float
    mean: float
    spread: float
    rounding: float = _ROUNDING

    @property
    def kept(self) -> bool:
        """Whether the function is the same up to rounding.

        Example:
            >>> Movement(1.0, 0.5, 2.0).kept
            False
        """
        return self.max <= self.rounding * max(self.spread, 1e-12)

    def to_json(self) -> dict[str, float | bool | None]:
        """The numbers as plain data; what is not finite is None, because JSON has no word for it.

        Example:
            >>> Movement(float("nan"), 0.5, 2.0).to_json()["max"] is None
            True
        """
        data = {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}
        return {**data, "kept": self.kept}

    def __str__(self) -> str:
        moved = f"max |Δ| {self.max:.3g}, mean |Δ| {self.mean:.3g} (the outputs' own spread is {self.spread:.3g})"
        if not math.isfinite(self.max):
            return "The outputs are no longer finite. Train, or recalibrate() the running moments, before use."
        if self.kept:
            return f"The function is kept: {moved}."
        return f"The function moved: {moved}. Fine-tune before use; recalibrate() re-estimates running moments."


@dataclass
class Report:
    """What a conversion did to a model; ``print`` it, write it with :meth:`to_json`, undo it with ``revert``.

    Example:
        >>> from shiftnorm.surgery import convert
        >>> model, report = convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "rbn")
        >>> print(report)
        rbn: 1 changed, 0 left alone; parameters 24 -> 36.
          1  BatchNorm2d -> RepresentativeBatchNorm  replace  keeps weight, bias, running_mean, running_var, ...

    Args:
        what: the placement or norm that was asked for.
        changes: what was done, in order.
        skipped: what was left alone, and why.
        parameters: their number before and after.
        movement: how far the outputs moved on the example input; None without one.
        notes: further remarks: optimizer groups, modules called several times.
    """

    what: str
    changes: list[Change] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    movement: Movement | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def edits(self) -> list[Edit]:
        """The changes as data that files hold.

        Example:
            >>> Report("ibn_a").edits
            []
        """
        return [change.edit for change in self.changes]

    def __len__(self) -> int:
        return len(self.changes)

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{self.what}: {len(self.changes)} changed, {len(self.skipped)} left alone; "
            f"parameters {before:,} -> {after:,}."
        ]
        cells = [_cells(change) for change in self.changes]
        widths = [max((len(row[i]) for row in cells), default=0) for i in range(3)]
        for row in cells:
            padded = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            lines.append(f"  {padded}  {row[3]}".rstrip())
        lines += [f"  {path}: left alone, {reason}" for path, reason in self.skipped]
        lines += self.notes
        if self.movement is not None:
            lines.append(str(self.movement))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data.

        Example:
            >>> Report("ibn_a").to_json()["changes"]
            []
        """
        rows = [
            {
                **change.edit.to_json(),
                "was": _name(change.old),
                "is": _name(change.new),
                "kept": list(change.kept),
                "fused": change.fused,
            }
            for change in self.changes
        ]
        data = {
            "what": self.what,
            "changes": rows,
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "parameters": list(self.parameters),
            "movement": None if self.movement is None else self.movement.to_json(),
            "notes": self.notes,
        }
        return json.loads(json.dumps(data, default=str))  # a user's arguments may be anything


def _name(module: nn.Module | None) -> str:
    if module is None or isinstance(module, nn.Identity):
        return "nothing"
    if type(module).__name__ == "Chain":
        return f"Chain({', '.join(type(part).__name__ for part in module.children())})"
    if isinstance(module, NormAct):
        return f"NormAct({_name(module.norm)})"
    return type(module).__name__


def _cells(change: Change) -> tuple[str, str, str, str]:
    edit = change.edit
    kept = f"keeps {', '.join(change.kept)}" if change.kept else ""
    if change.handle is not None:
        return edit.path, f"{_name(change.old)}, {_name(change.norm)} {edit.how} it", "insert", kept
    return edit.path, f"{_name(change.old)} -> {_name(change.new)}", edit.how, kept


def outputs_of(model: nn.Module, example: Any) -> Tensor:
    """All outputs of a model in evaluation mode as one float64 vector; the model is left as it was.

    Example:
        >>> outputs_of(nn.Linear(2, 3), torch.zeros(1, 2)).shape
        torch.Size([3])

    Args:
        model: any model.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        ValueError: if the model returns no floating-point tensor.
    """
    modes = [(module, module.training) for module in model.modules()]
    # Evaluation moves buffers, too, under source = "ema".
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({buffer.get_device() for buffer in (*model.parameters(), *model.buffers()) if buffer.is_cuda})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)  # the same draws before and after, if there are any
            if isinstance(example, Mapping):
                out = model(**example)
            else:
                out = model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.copy_(value)
    tensors = _tensors(out)
    if not tensors:
        raise ValueError(f"surgery: expected the model to return floating-point tensors, got {type(out).__name__}.")
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in tensors])


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    if isinstance(out, Mapping):  # also the output classes of transformers
        out = list(out.values())
    if isinstance(out, Sequence) and not isinstance(out, str):
        return [tensor for part in out for tensor in _tensors(part)]
    return []


def rounding_of(model: nn.Module) -> float:
    """The share of the outputs' spread that may be rounding, by the dtypes of a model's tensors.

    Example:
        >>> rounding_of(nn.Linear(2, 2)), rounding_of(nn.Linear(2, 2).half())
        (0.0001, 0.05)
    """
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    return _ROUNDING_16_BITS if any(torch.finfo(dtype).bits < 32 for dtype in dtypes) else _ROUNDING


def movement_between(before: Tensor, after: Tensor, rounding: float = _ROUNDING) -> Movement:
    """How far outputs moved.

    Example:
        >>> movement_between(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 3.0])).max
        1.0

    Raises:
        ValueError: if the number of outputs changed.
    """
    if before.shape != after.shape:
        raise ValueError(f"surgery: the model returned {before.numel()} numbers before and {after.numel()} after.")
    delta = (after - before).abs()
    if delta.numel() == 0:
        return Movement(0.0, 0.0, 0.0, rounding)
    spread = before.abs() if before.numel() == 1 else before.std(correction=0)
    return Movement(delta.max().item(), delta.mean().item(), spread.item(), rounding)
