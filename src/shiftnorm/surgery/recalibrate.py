"""Estimate the running statistics of a model anew, from unlabelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from shiftnorm.norms import MixtureNorm, RunningMoments, SwitchNorm
from shiftnorm.ops import Moments, moments
from shiftnorm.surgery.kinds import kind_of

__all__ = ["Recalibrated", "Recalibration", "recalibrate"]

# What dictionaries of images call them, in the order they are looked for.
_KEYS = ("image", "input", "x", "pixel_values")


class Recalibrated(NamedTuple):
    """How far the running statistics of one norm moved.

    Example:
        >>> print(Recalibrated("bn1", "BatchNorm2d", mean_shift=0.5, std_ratio=1.2))
        bn1  BatchNorm2d  mean moved by 0.500 deviations, deviation times 1.200

    Args:
        path: dotted name of the norm.
        kind: its class.
        mean_shift: root mean square over the channels of the change of the mean, in old standard deviations.
        std_ratio: new over old standard deviation, geometric mean over the channels.
    """

    path: str
    kind: str
    mean_shift: float
    std_ratio: float

    def __str__(self) -> str:
        return (
            f"{self.path}  {self.kind}  mean moved by {self.mean_shift:.3f} deviations, "
            f"deviation times {self.std_ratio:.3f}"
        )


@dataclass
class Recalibration:
    """What :func:`recalibrate` did.

    Example:
        >>> print(Recalibration(batches=2, samples=10, left={"aux.bn": "no data reached it"}))
        0 norms recalibrated on 10 samples in 2 batches.
          aux.bn  left alone: no data reached it

    Args:
        batches: batches that were used.
        samples: samples in them, on this rank.
        norms: the norms, in the order in which data reached them.
        left: reasons why other norms with running statistics kept theirs, by path.
    """

    batches: int = 0
    samples: int = 0
    norms: list[Recalibrated] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        norms = f"{len(self.norms)} norm{'' if len(self.norms) == 1 else 's'}"
        samples = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        lines = [f"{norms} recalibrated on {samples} in {self.batches} batch{'' if self.batches == 1 else 'es'}."]
        lines += [f"  {row}" for row in self.norms]
        lines += [f"  {path}  left alone: {reason}" for path, reason in self.left.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data.

        Example:
            >>> Recalibration(batches=1).to_json()["batches"]
            1
        """
        return {**asdict(self), "norms": [row._asdict() for row in self.norms]}


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    steps: int | None = None,
    momentum: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Recalibration:
    """Re-estimate the running statistics of every norm that pools over the batch; everything else stays as it is.

    The statistics are those of all the data seen as one batch, by the law of total variance: every element counts the
    same whatever the batch sizes, so for the first norm of the model one batch of 10 gives what batches of 4, 4 and 2
    give. Norms behind it see activations that were normalised batch by batch, as in training. Only these norms run in
    training mode: dropout, CrossNorm, MixStyle and the like rest. Parameters do not change and there are no gradients.

    ``torch.optim.swa_utils.update_bn`` averages the batches' means and variances, an incomplete last batch counting
    as much as any other and the spread of the means between batches getting lost; runs dropout; forgets the old
    statistics when it fails halfway; and knows torch's BatchNorms only.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> report = recalibrate(model, torch.arange(12.0).reshape(6, 2).split(4))
        >>> model[0].running_mean, model[0].running_var
        (tensor([5., 6.]), tensor([14., 14.]))
        >>> print(report)
        1 norm recalibrated on 6 samples in 2 batches.
          0  BatchNorm1d  mean moved by 5.523 deviations, deviation times 3.742

    Args:
        model: any model with norms of ours, torch or timm that keep running statistics; compiled ones run eagerly.
        loader: batches: a tensor, a sequence whose first item is one, or a mapping with one under "image", "input",
            "x" or "pixel_values". Batches need more than one sample where a norm sees one value per sample.
        steps: use this many batches only, and take no more from the loader.
        momentum: None for the exact statistics of the data alone; a number in [0, 1] updates the present ones batch by
            batch with this weight of the new batch.
        device: where batches are moved; None for the device of the model's first tensor.
        progress: show a progress bar, which needs tqdm.

    Returns:
        How far each norm's statistics moved, and which norms kept theirs.

    Raises:
        ValueError: if no norm has running statistics to estimate, the loader is empty, an argument is out of range, or
            an activation is not finite; the text names the first layer and batch. After any exception the statistics
            are what they were.
        TypeError: if a batch has no tensor to give to the model, or there is a tensor in the place of batches.
        ModuleNotFoundError: if ``progress`` is asked for and tqdm is not installed.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"recalibrate: expected steps to be at least 1 or None, got {steps}.")
    if momentum is not None and not 0.0 <= momentum <= 1.0:
        raise ValueError(f"recalibrate: expected momentum in [0, 1] or None, got {momentum}.")
    if isinstance(loader, Tensor):
        raise TypeError("recalibrate: expected batches, got one tensor, which is a sequence of samples; pass [x].")
    if isinstance(model, nn.DataParallel):
        raise TypeError("recalibrate: expected the model itself, got it wrapped in DataParallel; pass model.module.")
    found, left = _norms_of(model)
    batches = _shown(islice(loader, steps), progress)
    where = _device_of(model) if device is None else torch.device(device)
    report = Recalibration(left=left)
    with _Session(model, found, momentum) as session, torch.no_grad(), _eagerly(model):
        for batch in batches:
            x = _input_of(batch).to(where)
            model(x)
            session.check_finite(report.batches)
            report.batches += 1
            report.samples += len(x)
        if report.batches == 0:
            raise ValueError("recalibrate: expected at least one batch, got an empty loader (or a used-up generator).")
        report.norms = session.write()
    for path, statistics in found.items():
        if statistics.calls == 0:
            report.left[path] = "no data reached it"
    return report


class _Statistics:
    """One norm, what was gathered for it, and everything about it that has to be put back."""

    def __init__(self, path: str, norm: nn.Module) -> None:
        mean, var, count = (getattr(norm, name) for name in ("running_mean", "running_var", "num_batches_tracked"))
        self.path, self.norm = path, norm
        self.buffers: list[Tensor] = [tensor for tensor in (mean, var, count) if tensor is not None]
        self.before = [tensor.clone() for tensor in self.buffers]
        # BatchInstanceNorm clamps its gate in training.
        self.parameters = [(tensor, tensor.detach().clone()) for tensor in norm.parameters(recurse=False)]
        self.momentum = norm.momentum
        self.calls = 0
        self.total: Moments | None = None
        self.fading = self._wide(mean), self._wide(var)
        self.last: Moments | None = None

    @staticmethod
    def _wide(tensor: Tensor) -> Tensor:
        # Sums over a data set want more digits than a batch; Apple's GPUs have no float64.
        return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64, copy=True)

    def add(self, batch: Moments, momentum: float | None) -> None:
        """Take in the (1, C) moments of a batch."""
        self.calls += 1
        self.last = batch
        mean, var = self._wide(batch.mean), self._wide(batch.var)
        count = torch.as_tensor(batch.count, dtype=mean.dtype, device=mean.device).reshape(1, 1)
        new = Moments(mean, var, count)
        if momentum is not None:
            old = self.fading
            self.fading = (
                old[0].lerp(new.mean.squeeze(0), momentum),
                old[1].lerp(new.unbiased.squeeze(0), momentum),
            )
        elif self.total is None:
            self.total = new
        else:
            both = [torch.cat([getattr(m, name) for m in (self.total, new)]) for name in Moments._fields]
            self.total = Moments(*both).pooled(over="batch")

    def write(self, momentum: float | None) -> Recalibrated:
        """Put the estimate into the buffers."""
        old = [self._wide(tensor) for tensor in self.before[:2]]
        if momentum is None and self.total is not None:
            self.fading = self.total.mean.squeeze(0), self.total.unbiased.squeeze(0)
        for buffer, new in zip(self.buffers, self.fading, strict=False):
            buffer.copy_(new)
        if len(self.buffers) > 2:
            self.buffers[2].copy_(self.before[2] * (momentum is not None) + self.calls)
        tiny = torch.finfo(torch.float32).tiny
        was, now = (var.clamp(min=tiny) for var in (old[1], self.fading[1]))
        shift = ((self.fading[0] - old[0]).square() / was).mean().sqrt()
        ratio = (0.5 * (now / was).log()).mean().exp()
        return Recalibrated(self.path, type(self.norm).__name__.lstrip("_"), shift.item(), ratio.item())

    def restore(self) -> None:
        """Put the old statistics back."""
        for buffer, old in zip(self.buffers, self.before, strict=True):
            buffer.copy_(old)


class _Session:
    """The time in which the norms gather: sets modes and recorders up, and takes them down whatever happens."""

    def __init__(self, model: nn.Module, found: dict[str, _Statistics], momentum: float | None) -> None:
        self.found = found
        self.momentum = momentum
        # Flags and not .train(), .eval(): models override these, and to set a flag back is exact.
        self.modes = [(module, module.training) for module in model.modules()]
        self.order: list[_Statistics] = []
        self.reached: dict[str, _Statistics] = {}
        self.undo: list[Callable[[], object]] = []

    def __enter__(self) -> _Session:
        for module, _ in self.modes:
            module.training = False
        for statistics in self.found.values():
            norm: Any = statistics.norm
            norm.training = True
            if isinstance(norm, RunningMoments):
                source = norm.source
                self.undo += [lambda norm=norm: vars(norm).pop("seen"), partial(setattr, norm, "source", source)]
                norm.source, norm.momentum = "auto", None  # None keeps torch's kernels out, which show no moments
                vars(norm)["seen"] = self._recording(statistics, norm.seen)
            else:
                hook = self._looking_at_inputs(statistics)
                self.undo.append(norm.register_forward_pre_hook(hook, with_kwargs=True).remove)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for undo in self.undo:
            undo()
        for module, training in self.modes:
            module.training = training
        with torch.no_grad():
            for statistics in self.found.values():
                vars(statistics.norm)["momentum"] = statistics.momentum
                for parameter, old in statistics.parameters:
                    parameter.data.copy_(old)
                if error is not None or statistics.calls == 0:
                    statistics.restore()

    def _add(self, statistics: _Statistics, batch: Moments) -> None:
        if isinstance(batch.count, int) and batch.count == 0:
            return
        statistics.add(batch, self.momentum)
        self.order.append(statistics)
        self.reached.setdefault(statistics.path, statistics)

    def _recording(self, statistics: _Statistics, seen: Callable[[Moments], Moments]) -> Callable[[Moments], Moments]:
        def recording(m: Moments) -> Moments:
            group = vars(statistics.norm)["process_group"]
            self._add(statistics, m.pooled(over="batch", process_group=group))
            return seen(m)

        return recording

    def _looking_at_inputs(self, statistics: _Statistics) -> Callable[..., None]:
        def look(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            self._add(statistics, moments(x).pooled(over="batch", process_group=_group_of(norm)))

        return look

    def check_finite(self, batch: int) -> None:
        """Refuse what the last batch brought if it is not finite."""
        order, self.order = self.order, []
        sums = [s.last.mean.sum() + s.last.var.sum() for s in order if s.last is not None]
        # One look at the device for all layers; the layer is searched for only in the bad case.
        if not sums or bool(torch.stack([total.isfinite().to(sums[0].device) for total in sums]).all()):
            return
        first = next(s for s, total in zip(order, sums, strict=True) if not total.isfinite())
        raise ValueError(
            f"recalibrate: expected finite activations, got NaN or infinity at the input of {first.path!r} "
            f"({type(first.norm).__name__}) in batch {batch} (counted from 0). Look at the data and at the layers "
            "before it. All running statistics are what they were."
        )

    def write(self) -> list[Recalibrated]:
        """Put all estimates into the buffers."""
        return [statistics.write(self.momentum) for statistics in self.reached.values()]


def _group_of(norm: nn.Module) -> object | None:
    if not isinstance(norm, SyncBatchNorm) or not (distributed.is_available() and distributed.is_initialized()):
        return None
    return norm.process_group or distributed.group.WORLD


def _norms_of(model: nn.Module) -> tuple[dict[str, _Statistics], dict[str, str]]:
    found: dict[str, _Statistics] = {}
    left: dict[str, str] = {}
    for path, module in model.named_modules():
        if getattr(module, "running_mean", None) is None or getattr(module, "running_var", None) is None:
            continue
        reason = _refusal(module)
        if reason is not None:
            left[path] = reason
        elif isinstance(module, RunningMoments | _BatchNorm):
            found[path] = _Statistics(path, module)
    if not found:
        kinds = [type(module).__name__ for module in model.modules() if kind_of(module) is not None]
        has = ", ".join(f"{kinds.count(name)} {name}" for name in dict.fromkeys(kinds))
        reasons = "".join(f" {path}: {reason}." for path, reason in left.items())
        raise ValueError(
            "recalibrate: expected a norm that pools over the batch and keeps running statistics, found none; "
            f"the norms of {type(model).__name__} are: {has or 'none'}.{reasons}"
        )
    return found, left


def _refusal(module: nn.Module) -> str | None:
    if isinstance(module, SwitchNorm) and not module.using_moving_average:
        raise ValueError(
            "recalibrate: expected finished running statistics, got a SwitchNorm that is taking an average over "
            "batches. Call its finish_average first."
        )
    if isinstance(module, MixtureNorm):
        return "it keeps a running mixture, which moments of the data do not give"
    kind = kind_of(module)
    if kind is None or kind.name == "ours":
        return None
    if kind.name not in ("batch", "sync batch"):
        return kind.refusal or f"it is a norm of kind {kind.name!r}, and does not pool over the batch"
    return kind.refusal


def _input_of(batch: Any) -> Tensor:
    item = batch
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Mapping):
        item = next((item[key] for key in _KEYS if key in item), item)
    if isinstance(item, Tensor):
        return item
    raise TypeError(
        f"recalibrate: expected batches to be a tensor, a sequence whose first item is one, or a mapping with one "
        f"under {', '.join(map(repr, _KEYS))}, got {_described(batch)}."
    )


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with the keys {list(batch)}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {[type(item).__name__ for item in batch]}"
    return f"a {type(batch).__name__}"


def _device_of(model: nn.Module) -> torch.device:
    # A model with running statistics has a tensor.
    return next(tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


def _eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    compiled = any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _shown(batches: Iterator[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return batches
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'recalibrate: progress=True needs tqdm; install it with pip install "shiftnorm[train]".'
        ) from error
    return tqdm(batches, desc="recalibrate", unit="batch")
