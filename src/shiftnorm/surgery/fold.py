"""Folding: a norm whose coefficients are constants becomes part of the convolution in front of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shiftnorm.surgery.constant import constant_of, wide_dtype
from shiftnorm.surgery.convert import FOLDED, remember
from shiftnorm.surgery.graph import Feed, feeds_of_run, feeds_of_trace, has_hooks, trace
from shiftnorm.surgery.kinds import kind_of, refuse_model
from shiftnorm.surgery.merge import Merge, is_layer, refusal_of

__all__ = ["FoldReport", "FoldRow", "fold"]


@dataclass(frozen=True)
class FoldRow:
    """What became of one norm.

    Example:
        >>> print(FoldRow("bn1", "conv1", ""))
        bn1 -> conv1

    Args:
        norm: its path.
        into: path of the convolution or linear layer it is now part of; None if it was left as it was.
        reason: why it was left, or what of it stays in its place; "" for a norm that is gone.
    """

    norm: str
    into: str | None
    reason: str

    def __str__(self) -> str:
        if self.into is None:
            return f"{self.norm}: left, {self.reason}"
        return f"{self.norm} -> {self.into}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class FoldReport:
    """What :func:`fold` did, norm by norm.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.LayerNorm(4)).eval()
        >>> print(fold(model)[1])
        fold: 1 norm folded, 1 left; connections found by tracing
          1 -> 0
          3: left, LayerNorm normalizes every input by its own moments

    Args:
        rows: one per norm of the model, in registration order.
        found_by: "tracing", or "running" where the model cannot be traced.
        change: largest difference of the outputs on the example, as a share of the largest output; None without one.
    """

    rows: tuple[FoldRow, ...]
    found_by: str
    change: float | None = None

    @property
    def folded(self) -> int:
        """How many norms were folded.

        Example:
            >>> FoldReport((FoldRow("bn1", "conv1", ""),), "tracing").folded
            1
        """
        return sum(row.into is not None for row in self.rows)

    @property
    def left(self) -> int:
        """How many norms were left as they were.

        Example:
            >>> FoldReport((FoldRow("bn1", "conv1", ""),), "tracing").left
            0
        """
        return len(self.rows) - self.folded

    def to_json(self) -> dict[str, Any]:
        """The report as plain data.

        Example:
            >>> FoldReport((), "tracing").to_json()
            {'folded': 0, 'left': 0, 'found_by': 'tracing', 'change': None, 'rows': []}
        """
        rows = [asdict(row) for row in self.rows]
        counts = {"folded": self.folded, "left": self.left}
        return {**counts, "found_by": self.found_by, "change": self.change, "rows": rows}

    def __str__(self) -> str:
        if not self.rows:
            return "fold: the model has no norms"
        what = f"{self.folded} norm{'' if self.folded == 1 else 's'}" if self.folded else "nothing"
        head = f"fold: {what} folded, {self.left} left; connections found by {self.found_by}"
        if self.change is not None:
            head += f"; the output changed by {self.change:.1e} of its largest value"
        return "\n".join([head, *(f"  {row}" for row in self.rows)])


def fold(
    model: nn.Module,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    inplace: bool = False,
) -> tuple[nn.Module, FoldReport]:
    """Make every norm with constant coefficients part of the convolution or linear layer in front of it.

        gain_c * conv(x) + shift_c = conv'(x)   with   weight' = gain_c * weight,  bias' = gain_c * bias + shift_c

    The coefficients of a norm are constant in evaluation if they come from running statistics: those of every torch,
    timm and frozen BatchNorm and of each of our norms that then looks at no moments. Activations and dropout inside a
    norm stay, as do the instance channels of an IBN and what follows the BatchNorm at the head of a Chain.

    What feeds a norm is found by tracing the model with torch.fx; where Python control flow prevents that, by watching
    one run on ``example_input``. With an example the outputs before and after are compared in either case, and a fold
    that changes them beyond rounding is undone (1e-9 of the largest output in float64, 1e-4 in float32, 1e-2 on a GPU,
    3e-2 in 16 bits).

    Example:
        >>> from shiftnorm.norms import IBN
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), IBN(8)).eval()
        >>> folded, report = fold(model, torch.randn(2, 3, 16, 16))
        >>> print(report)
        fold: 2 norms folded, 0 left; connections found by tracing; the output changed by ...
          1 -> 0
          3 -> 2 (the instance channels stay)
        >>> folded
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1))
          (3): InstanceChannels(8, eps=1e-05, start=0, stop=4, affine=True)
        )

    Args:
        model: in evaluation mode. The result is for evaluation only: its statistics are part of its weights. It can
            neither be saved by ``save`` nor reverted; do that before.
        example_input: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments. A linear
            layer in front of a norm is taken to return (N, C), which only an example can check.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The folded model and the report. A model with nothing to fold, such as one whose norms stand in front of the
        convolutions, is no error: the report says why for every norm.

    Raises:
        ValueError: if the model is in training mode, cannot be traced and no example is given, or returns on the
            example no tensors to compare or non-finite ones.
        TypeError: if the model is no module, or scripted, compiled, quantized or wrapped for several devices.
    """
    refuse_model(model)
    if model.training:
        raise ValueError(
            "fold: expected a model in evaluation mode, got one in training mode, where norms use the batch. "
            "Call model.eval() first."
        )
    result = model if inplace else copy.deepcopy(model)
    norms = dict(_norms(result))
    if not norms or "" in norms:
        reason = "it is the model itself, and nothing is in front of it"
        return result, FoldReport(tuple(FoldRow(path, None, reason) for path in norms), "tracing")
    run = None if example_input is None else _runner(result, example_input)
    feeds, found_by = _feeds(result, run)
    comparison = None if run is None else _Comparison(result, run)
    plans, reasons = _plans(result, norms, feeds)
    for plan, refusal in _settle(plans, comparison or _retracing(result)):
        reasons.update(dict.fromkeys(plan.steps, refusal))
    notes = {path: (plan.path, step.stays) for plan in plans for path, step in plan.steps.items()}
    rows = [FoldRow(path, None, reasons[path]) if path in reasons else FoldRow(path, *notes[path]) for path in norms]
    change = None
    if comparison is not None:
        comparison()
        change = comparison.change
    report = FoldReport(tuple(rows), found_by, change)
    if report.folded:  # what was edited is part of the weights now, and no edit of the model any more
        remember(result, ())
        setattr(result, FOLDED, True)
    return result, report


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms of a model, each once, without the norms inside a norm."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or kind_of(module) is None:
            continue
        inside.update(module.modules())
        yield name, module


def _feeds(model: nn.Module, run: Callable[[], Any] | None) -> tuple[dict[str, Feed], str]:
    try:
        return feeds_of_trace(model), "tracing"
    except Exception as error:  # a forward may raise anything when it is given symbols
        if run is None:
            raise ValueError(
                f"fold: expected a model that torch.fx can trace, and {type(model).__name__} cannot be "
                f"({type(error).__name__}: {error}). Pass example_input, an input to run it on."
            ) from error
    return feeds_of_run(model, run), "running"


def _plans(
    model: nn.Module, norms: Mapping[str, nn.Module], feeds: Mapping[str, Feed]
) -> tuple[list[Merge], dict[str, str]]:
    """What is to go where, and why the other norms are left."""
    reasons: dict[str, str] = {}
    plans: dict[str, Merge] = {}
    behind: dict[str, Merge] = {}  # by norm that vanishes: the plan that a norm behind it joins
    # in the order of the calls, for a norm behind a norm that vanishes
    for path in [*(path for path in feeds if path in norms), *(path for path in norms if path not in feeds)]:
        norm = norms[path]
        step = constant_of(norm)
        reason = step if isinstance(step, str) else _obstacle(model, path, norm, feeds.get(path))
        if isinstance(step, str) or reason is not None:
            reasons[path] = reason or ""
            continue
        producer = feeds[path].producer or ""
        layer = model.get_submodule(producer)
        plan = behind.get(producer)
        if plan is None:
            plan = Merge(model, producer, layer)
            refusal = refusal_of(producer, layer)
            if refusal is not None:
                reasons[path] = refusal
                continue
        refusal = plan.add(path, norm, step)
        if refusal is not None:
            reasons[path] = refusal
            continue
        plans[plan.path] = plan
        behind.pop(producer, None)
        if step.rest is None:
            behind[path] = plan
    return list(plans.values()), reasons


def _obstacle(model: nn.Module, path: str, norm: nn.Module, feed: Feed | None) -> str | None:
    if has_hooks(norm):
        return "it has hooks, which would be lost"
    if feed is None:
        parent = path.rpartition(".")[0]
        if is_layer(model.get_submodule(parent)):
            return f"it is attached to {parent} and run by a hook"
        return "no call of it was seen: it is unused, or run inside a layer or by a hook"
    return feed.objection


def _settle(plans: Sequence[Merge], check: Callable[[], str | None]) -> list[tuple[Merge, str]]:
    """Apply the plans and undo those that do not pass the check, found by halving; return them with the reason."""
    for plan in plans:
        plan.apply()
    refusal = check() if plans else None
    if refusal is None:
        return []
    for plan in reversed(plans):
        plan.undo()
    if len(plans) == 1:
        return [(plans[0], refusal)]
    half = len(plans) // 2
    return [*_settle(plans[:half], check), *_settle(plans[half:], check)]


def _retracing(model: nn.Module) -> Callable[[], str | None]:
    """The check without an example: a forward that asks a norm for its attributes cannot be traced any more."""

    def check() -> str | None:
        try:
            trace(model)
        except Exception as error:  # of the model's own forward: any
            return f"the model needs the norm itself ({type(error).__name__}: {error})"
        return None

    return check


def _runner(model: nn.Module, example: Any) -> Callable[[], Any]:
    if isinstance(example, Tensor):
        args, kwargs = (example,), {}
    elif isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    elif isinstance(example, Sequence) and not isinstance(example, str):
        args, kwargs = tuple(example), {}
    else:
        raise TypeError(
            "fold: expected example_input to be a tensor, a tuple or list of arguments or a mapping of keyword "
            f"arguments, got {type(example).__name__}."
        )
    devices = sorted({each.device.index or 0 for each in model.parameters() if each.is_cuda})

    def run() -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)  # for a forward that draws in evaluation too
            return model(*args, **kwargs)

    return run


class _Comparison:
    """The check with an example: the outputs are those of the unfolded model up to rounding."""

    def __init__(self, model: nn.Module, run: Callable[[], Any]) -> None:
        self.run = run
        self.expected = [each.clone() for each in _outputs(run())]
        self.change = 0.0
        if not self.expected or not all(each.isfinite().all() for each in self.expected):
            raise ValueError(
                "fold: expected the model to return finite floating-point tensors on example_input, to compare them "
                f"before and after; got {len(self.expected)} tensors"
                + (", some of them not finite." if self.expected else ".")
            )
        tensors = [*self.expected, *(each for each in model.parameters() if each.is_floating_point())]
        self.tolerance = max(_tolerance(each) for each in tensors)

    def __call__(self) -> str | None:
        """What is wrong with the outputs now; None if nothing is."""
        try:
            got = _outputs(self.run())
        except Exception as error:  # of the model's own forward: any
            return f"the model needs the norm itself ({type(error).__name__}: {error})"
        if [each.shape for each in got] != [each.shape for each in self.expected]:
            return "without it the model returns tensors of other shapes"
        self.change = max(map(_change, got, self.expected))
        if self.change <= self.tolerance:
            return None
        return f"folding it changes the output on the example by {self.change:.1e} of its largest value"


def _outputs(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]


def _change(got: Tensor, expected: Tensor) -> float:
    wide = wide_dtype(got.device)
    difference = (got.to(wide) - expected.to(wide)).abs().max()
    scale = expected.to(wide).abs().max()
    return float(difference / scale) if scale > 0 else float(difference)


def _tolerance(tensor: Tensor) -> float:
    if tensor.dtype == torch.float64:
        return 1e-9
    # A GPU may round the factors of its convolutions to 10 bits (TF32).
    return (1e-2 if tensor.is_cuda else 1e-4) if tensor.dtype == torch.float32 else 3e-2
