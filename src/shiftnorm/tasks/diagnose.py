"""Where in a network numbers stop being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["first_not_finite"]


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The first layer whose output is not finite while ``run`` runs, in words.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].bias, float("nan"))
        >>> first_not_finite(model, lambda: model(torch.zeros(1, 2)))
        "the output of '0' (Linear), whose bias is not finite"
        >>> first_not_finite(model, lambda: model[1](torch.zeros(1, 2))) is None
        True

    Args:
        model: whose layers are watched; if it is compiled, it runs without its compiled form.
        run: calls the model, without gradients.

    Returns:
        The layer's name and class, and which of its own tensors are not finite; "the images" if what the model is given
        already is not; None if every output was finite.
    """
    found: list[str] = []

    def enter(module: nn.Module, arguments: object) -> None:
        if not found and not _finite(arguments):
            found.append("the images as the network takes them")

    def leave(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            # The innermost module ends first, so the first one found is a layer and not what contains it.
            if found or _finite(output):
                return
            tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            bad = " and ".join(name for name, tensor in tensors if not _finite(tensor))
            where = f"{path!r}" if path else "the model itself"
            blame = f", whose {bad} is not finite" if bad else ""
            found.append(f"the output of {where} ({type(module).__name__}){blame}")

        return hook

    handles = [module.register_forward_hook(leave(path)) for path, module in model.named_modules()]
    handles.append(model.register_forward_pre_hook(enter))
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(_finite(each) for each in value.values())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return all(_finite(each) for each in value)
    return True
