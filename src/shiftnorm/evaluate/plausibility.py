"""Whether the images that reach a model are normalized as those it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from shiftnorm.evaluate.normalization import NAMED, Normalization, known_normalization

__all__ = ["InputCheck", "check_inputs", "first_norm_distance"]

# Jeffreys divergence of two normal distributions: 0.5 is a standard deviation off by a factor of 1.6 or a mean off by
# 0.7 deviations. Data sets of natural images differ by less than 0.2 from each other.
SUSPICIOUS: Final = 0.5
# So far off that no data set of images explains it.
IMPOSSIBLE: Final = 4.0
# Another normalization must fit this many times better to be named.
BETTER: Final = 3.0

_CIFAR: Final = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR's mean and std")
_LEVELS: Final = Normalization((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), "levels 0 to 255")


class InputCheck(NamedTuple):
    """What was found: sentences to warn of, remarks, and how far the first norm's input is from its statistics.

    Example:
        >>> InputCheck([], [], 0.02).distance
        0.02
    """

    warnings: list[str]
    notes: list[str]
    distance: float | None


class _Reached(Exception):
    """Ends a forward pass at the first norm; the rest of the model is not needed."""


def check_inputs(
    model: nn.Module, images: Tensor, normalization: Normalization, *, forward: Callable[[Tensor], Any] | None = None
) -> InputCheck:
    """Compare what reaches a model's first norm with the running statistics of its training.

    A wrong normalization moves and scales the input of the first norm, so its moments on clean images are far from the
    running ones; then other normalizations are tried up to that norm, and the one that fits is named.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
        >>> half = Normalization(*NAMED["half"], "half")
        >>> with torch.no_grad():
        ...     for _ in range(100):
        ...         _ = model(half.apply(images))
        >>> check_inputs(model.eval(), images, half).warnings
        []
        >>> print(check_inputs(model, images, half._replace(mean=(0.0,) * 3, std=(0.1,) * 3)).warnings[0])
        robustness: the input of '1' is far from its running statistics ...; with normalize="half" it fits ...

    Args:
        model: in eval mode.
        images: (N, 3, H, W) uint8, clean, on the model's device.
        normalization: what is done to them.
        forward: calls the model, for example under autocast; default: the model.

    Returns:
        The findings. Without a norm with running statistics there is no distance, and a remark says so.
    """
    warnings: list[str] = []
    known = None if normalization.bytes else known_normalization(model)
    if known is not None and not known.same_as(normalization):
        warnings.append(
            f"robustness: images are normalized with mean {normalization.mean} and std {normalization.std} "
            f"({normalization.name}), but {known.name} says mean {known.mean} and std {known.std}. "
            'Unless the model was trained otherwise, pass normalize="model".'
        )
    distance = first_norm_distance(model, normalization.apply(images), forward=forward)
    if distance is None:
        remark = (
            "The normalization of the inputs could not be checked: no norm with trained running statistics was reached."
        )
        return InputCheck(warnings, [remark], None)
    if distance.value <= SUSPICIOUS:
        return InputCheck(warnings, [], distance.value)
    best, fits = None, distance.value
    for candidate in () if normalization.bytes else _candidates(known):
        other = first_norm_distance(model, candidate.apply(images), forward=forward)
        if other is not None and other.value < fits:
            best, fits = candidate, other.value
    found = (
        f"the input of {distance.path!r} is far from its running statistics (distance {distance.value:.2g}, "
        f"standard deviation times {distance.scale:.2g}, mean off by {distance.shift:.2g} deviations)"
    )
    if best is not None and fits * BETTER < distance.value:
        warnings.append(
            f"robustness: {found}; with {_remedy(best)} fits (distance {fits:.2g}). The images seem to be normalized "
            f"otherwise than in training{_diagnosis(normalization, best)}."
        )
    elif distance.value > IMPOSSIBLE:
        warnings.append(
            f"robustness: {found}, and no usual normalization fits better. Check normalize, the order of the colours "
            "and the size of the images against the model's training."
        )
    else:
        return InputCheck(
            warnings, [f"The images seem to be of another domain than the training's: {found}."], distance.value
        )
    return InputCheck(warnings, [], distance.value)


class _Distance(NamedTuple):
    value: float
    path: str
    scale: float
    shift: float


def first_norm_distance(
    model: nn.Module, x: Tensor, *, forward: Callable[[Tensor], Any] | None = None
) -> _Distance | None:
    """How far the moments that reach the first norm are from its running ones.

        distance = median over channels of ½(v/r + r/v) - 1 + ½(m - μ)²(1/v + 1/r)

    with the batch's moments m, v and the running μ, r: Jeffreys divergence of the two normal distributions.

    Example:
        >>> norm = nn.BatchNorm2d(2).eval()
        >>> _ = norm.running_mean.fill_(3.0)
        >>> round(first_norm_distance(norm, torch.randn(64, 2, 32, 32) + 3).value, 1)
        0.0
        >>> round(first_norm_distance(norm, torch.randn(64, 2, 32, 32) + 4).value, 1)
        1.0

    Args:
        model: in eval mode; hooks are removed again.
        x: as the model takes it.
        forward: calls the model; default: the model.

    Returns:
        The distance (``value``, 0 for equal), the norm's ``path``, ``scale`` of the standard deviation and ``shift``
        of the mean; None if no norm with trained running statistics was reached.
    """
    found: list[_Distance] = []

    def compare(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        mean, var = module.running_mean, module.running_var
        assert isinstance(mean, Tensor) and isinstance(var, Tensor)
        if features is None or features.ndim < 3 or mean.shape != features.shape[1:2]:
            return
        trained = (mean != 0) | (var != 1)
        if not bool(trained.any()):
            return
        axes = [axis for axis in range(features.ndim) if axis != 1]
        var_here, mean_here = torch.var_mean(features.detach().float(), axes, correction=0)
        var_here, mean_here = var_here.double()[trained], mean_here.double()[trained]
        r, mu = var.detach().double()[trained], mean.detach().double()[trained]
        # A dead channel has no variance on either side; a floor keeps it from deciding.
        floor = 1e-6 * r.median().clamp_min(1e-12)
        v, r = var_here + floor, r + floor
        each = 0.5 * (v / r + r / v) - 1 + 0.5 * (mean_here - mu).square() * (1 / v + 1 / r)
        shift = ((mean_here - mu).abs() / r.sqrt()).median()
        found.append(_Distance(each.median().item(), path, (v / r).sqrt().median().item(), shift.item()))
        raise _Reached

    inner = getattr(model, "_orig_mod", model)
    norms = [(path, module) for path, module in inner.named_modules() if _keeps_moments(module)]
    if not norms:
        return None
    with _hooked(norms, compare):
        try:
            (forward if forward is not None and inner is model else inner)(x)
        except _Reached:
            pass
    return found[0] if found else None


def _keeps_moments(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


@contextmanager
def _hooked(
    norms: list[tuple[str, nn.Module]], look: Callable[[str, nn.Module, tuple[Any, ...]], None]
) -> Iterator[None]:
    handles = []
    try:
        for path, module in norms:
            hook = lambda module, inputs, path=path: look(path, module, inputs)
            handles.append(module.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _candidates(known: Normalization | None) -> list[Normalization]:
    named = [Normalization(*NAMED[name], name) for name in NAMED]
    return [*([] if known is None else [known]), *named, _CIFAR, _LEVELS]


def _remedy(best: Normalization) -> str:
    if best.name in NAMED:
        return f'normalize="{best.name}" it'
    return f"normalize=({best.mean}, {tuple(round(value, 6) for value in best.std)}) ({best.name}) it"


def _diagnosis(given: Normalization, best: Normalization) -> str:
    if best.name == "none" and not given.name.startswith("none"):
        return ": the model probably normalizes images in [0, 1] itself, and they are now normalized twice"
    if given.name.startswith("none"):
        return ": images in [0, 1] reach a model that was trained on normalized ones"
    return ""
