"""Adversarial images within a budget: FGSM, PGD and, where installed, AutoAttack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Budget", "auto_attack", "fgsm", "pgd"]

Budget: TypeAlias = Literal["linf", "l2"]
"""How the size of a change is measured, per image over all its values."""

_TINY = 1e-30


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: Budget = "linf") -> Tensor:
    """One step of size eps along the gradient of the cross-entropy: the fast gradient sign method.

        linf: x + eps * sign(gradient)          l2: x + eps * gradient / |gradient|

    The model is in evaluation mode meanwhile, its parameters get no gradient, and it is left as it was found. The
    gradient followed is that of the log-odds against the label, which has the cross-entropy's direction but does not
    vanish for a sure network.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> x, y = torch.full((1, 3, 2, 2), 0.5), torch.tensor([0])
        >>> (fgsm(model, x, y, eps=0.1) - x).abs().max()
        tensor(0.1000)

    Args:
        model: maps images in [0, 1] to (N, classes) logits; it normalises them itself.
        x: (N, ...) floating-point images in [0, 1].
        y: (N,) true labels.
        eps: size of the change, in units of x.
        norm: how it is measured.

    Returns:
        Images of x's shape, dtype and device, in [0, 1] and within eps of x.

    Raises:
        ValueError: if an argument is out of range, x and y do not belong together, or a score is NaN.
    """
    _check("fgsm", x, y, eps, norm)
    with _attacked(model):
        # clones, since tensors of inference mode cannot be part of a graph
        x, y = x.detach().clone(), y.clone()
        gradient, losses = _gradient(model, x, y)
        _refuse_nan("fgsm", losses)
        return _projected(x + eps * _direction(gradient, norm), x, eps, norm)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Budget = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Projected gradient ascent of the cross-entropy: several steps, each projected back to within eps of x.

    Of all points visited, over all restarts, each image keeps the one with the highest loss, the clean one included,
    so no image ends with a lower loss than it had. Untargeted. The model is treated as by `fgsm`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> x, y = torch.full((1, 3, 2, 2), 0.5), torch.tensor([0])
        >>> torch.allclose(pgd(model, x, y, eps=0.1), fgsm(model, x, y, eps=0.1), atol=1e-6)  # for a linear network
        True

    Args:
        model: maps images in [0, 1] to (N, classes) logits; it normalises them itself.
        x: (N, ...) floating-point images in [0, 1].
        y: (N,) true labels.
        eps: size of the change, in units of x: 8 / 255 for "linf" and 0.5 for "l2" are usual on CIFAR-10.
        norm: how it is measured.
        steps: gradient steps.
        step_size: length of one step; default: 2.5 * eps / steps.
        random_start: start from a random point within eps, not from x.
        restarts: how many starts; with more than one, they should be random.
        seed: of the random starts. They depend on the batch too: attack the same batches to get the same images.

    Returns:
        Images of x's shape, dtype and device, in [0, 1] and within eps of x.

    Raises:
        ValueError: if an argument is out of range, x and y do not belong together, or a score is NaN.
    """
    _check("pgd", x, y, eps, norm)
    step = 2.5 * eps / steps if step_size is None and steps > 0 else step_size
    if steps < 1 or restarts < 1 or step is None or step < 0:
        raise ValueError(
            f"pgd: expected steps and restarts of at least 1 and a step_size of at least 0, got {steps}, {restarts} "
            f"and {step_size}."
        )
    if restarts > 1 and not random_start:
        raise ValueError(f"pgd: {restarts} restarts from the same point are all the same; use random_start=True.")
    generator = torch.Generator(x.device).manual_seed(seed)
    with _attacked(model):
        x, y = x.detach().clone(), y.clone()
        best, highest = x.clone(), _losses(model, x, y)
        _refuse_nan("pgd", highest)

        def keep(point: Tensor, losses: Tensor) -> None:
            better = losses > highest
            best[better] = point[better]
            highest[better] = losses[better]

        for _ in range(restarts):
            point = _projected(x + _random_change(x, eps, norm, generator), x, eps, norm) if random_start else x
            for _ in range(steps):
                gradient, losses = _gradient(model, point, y)
                keep(point, losses)
                point = _projected(point + step * _direction(gradient, norm), x, eps, norm)
            keep(point, _losses(model, point, y))
        return best


def auto_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Budget = "linf",
    version: Literal["standard", "plus", "rand"] = "standard",
    batch_size: int = 250,
    seed: int = 0,
) -> Tensor:
    """AutoAttack by its authors' package, which is not on PyPI and so not among our extras.

    The model is in evaluation mode meanwhile, and is left as it was found.

    Example:
        >>> auto_attack(nn.Flatten(), torch.zeros(2, 3), torch.tensor([0, 1]), eps=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: auto_attack: expected a finite eps of at least 0, got -1.0.

    Args:
        model: maps images in [0, 1] to (N, classes) logits; it normalises them itself.
        x: (N, C, H, W) floating-point images in [0, 1].
        y: (N,) true labels.
        eps: size of the change, in units of x.
        norm: how it is measured.
        version: "standard" is the one of the tables; "rand" is for networks that draw in evaluation mode.
        batch_size: images per forward pass.
        seed: of the attacks.

    Returns:
        Images of x's shape: the adversarial one where an attack succeeded, the clean one elsewhere.

    Raises:
        ModuleNotFoundError: if the package is not installed.
        ValueError: if an argument is out of range, or x and y do not belong together.
    """
    _check("auto_attack", x, y, eps, norm)
    try:
        import autoattack  # pyright: ignore[reportMissingImports]  (an extra)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "auto_attack needs AutoAttack, which is not on PyPI: "
            "pip install git+https://github.com/fra31/auto-attack. pgd needs nothing."
        ) from None
    package: Any = autoattack
    with _attacked(model):
        attack = package.AutoAttack(
            model,
            norm={"linf": "Linf", "l2": "L2"}[norm],
            eps=eps,
            seed=seed,
            verbose=False,
            version=version,
            device=str(x.device),
        )
        return attack.run_standard_evaluation(x.detach().clone(), y.clone(), bs=batch_size).detach()


@contextmanager
def _attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients; modes, parameters' flags and buffers are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # a norm that adapts in evaluation mode moves its buffers in every forward pass
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _losses(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return _odds(model(x), y)


def _gradient(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    point = x.detach().requires_grad_()
    losses = _odds(model(point), y)
    (gradient,) = torch.autograd.grad(losses.sum(), point)
    return gradient, losses.detach()


def _odds(logits: Tensor, y: Tensor) -> Tensor:
    """Logarithm of the odds against each label, (N,).

    The cross-entropy is its softplus: an image's two gradients have one direction, and what is higher by the one is
    higher by the other. But the cross-entropy's vanishes for a sure network, and the attack would stand still.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != len(y):
        raise ValueError(
            f"attack: expected logits ({len(y)}, classes) of at least 2 classes, the model gave {tuple(logits.shape)}."
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _refuse_nan(who: str, losses: Tensor) -> None:
    if bool(losses.isnan().any()):
        raise ValueError(f"{who}: the model's scores of the clean images contain NaN; there is nothing to attack.")


def _lengths(change: Tensor) -> Tensor:
    lengths = change.flatten(1).float().norm(dim=1)
    return lengths.view(-1, *[1] * (change.ndim - 1)).to(change.dtype)


def _direction(gradient: Tensor, norm: Budget) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    # the largest value first, so that squares of small gradients do not vanish
    largest = gradient.flatten(1).abs().amax(1).view(-1, *[1] * (gradient.ndim - 1))
    scaled = gradient / largest.clamp_min(_TINY)
    return scaled / _lengths(scaled).clamp_min(_TINY)


def _projected(point: Tensor, x: Tensor, eps: float, norm: Budget) -> Tensor:
    if norm == "linf":
        return torch.minimum(torch.maximum(point, (x - eps).clamp_min(0)), (x + eps).clamp_max(1)).detach()
    change = point - x
    change = change * (eps / _lengths(change).clamp_min(_TINY)).clamp_max(1)
    # x is in the box, so cutting off at the box only brings the point nearer to x
    return (x + change).clamp(0, 1).detach()


def _random_change(x: Tensor, eps: float, norm: Budget, generator: torch.Generator) -> Tensor:
    if norm == "linf":
        return eps * (2 * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 1)
    normal = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    # uniform in the ball: the radius grows with the root of the number of values
    radius = torch.rand(len(x), generator=generator, device=x.device) ** (1 / max(x[0].numel(), 1) if len(x) else 1)
    return eps * _direction(normal, "l2") * radius.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def _check(who: str, x: Tensor, y: Tensor, eps: float, norm: str) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"{who}: expected a finite eps of at least 0, got {eps}.")
    if norm not in ("linf", "l2"):
        raise ValueError(f"{who}: expected norm 'linf' or 'l2', got {norm!r}.")
    if x.ndim < 2 or y.shape != x.shape[:1] or not x.is_floating_point():
        raise ValueError(
            f"{who}: expected floating-point images (N, ...) and labels (N,), got {tuple(x.shape)} {x.dtype} and "
            f"{tuple(y.shape)}."
        )
    if x.numel() and not 0 <= x.min().item() <= x.max().item() <= 1:
        raise ValueError(
            f"{who}: expected images in [0, 1], got values from {x.min().item():.4g} to {x.max().item():.4g}. "
            "Let the model normalise, not the data."
        )
