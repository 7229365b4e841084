"""A layer and the norms that become part of it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from shiftnorm.surgery.constant import Constant
from shiftnorm.surgery.graph import has_hooks

__all__ = ["Merge", "is_layer", "refusal_of"]


class Merge:
    """All norms that become part of one layer.

    Example:
        >>> from shiftnorm.surgery.constant import constant_of
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
        >>> merge = Merge(model, "0", model[0])
        >>> merge.add("1", model[1], constant_of(model[1])) is None
        True
        >>> merge.apply()
        >>> model[1]
        Identity()
        >>> merge.undo()
        >>> model[1]
        BatchNorm1d(3, ...)

    Args:
        model: the whole model.
        path: of the layer.
        layer: the convolution or linear layer.
    """

    def __init__(self, model: nn.Module, path: str, layer: nn.Module) -> None:
        self.path = path
        self.steps: dict[str, Constant] = {}
        self._model = model
        self._layer = layer
        self._norms: list[nn.Module] = []
        self._new: tuple[nn.Parameter, nn.Parameter] | None = None
        self._old: list[tuple[nn.Module, str, Any]] = []

    def add(self, path: str, norm: nn.Module, step: Constant) -> str | None:
        """Take one more norm in, the one behind those before, or say why not.

        Example:
            >>> from shiftnorm.surgery.constant import constant_of
            >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(3)).eval()
            >>> Merge(model, "0", model[0]).add("1", model[1], constant_of(model[1]))
            'it has 3 channels and 0 returns 4'

        Args:
            path: of the norm.
            norm: the norm.
            step: its coefficients.

        Returns:
            None, or why it cannot be taken in.
        """
        layer = self._layer
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if channels != len(step.gain):
            own = f"{len(step.gain)} channel{'' if len(step.gain) == 1 else 's'}"
            return f"it has {own} and {self.path} returns {channels}"
        new = _folded(layer, *(self._new or (layer.weight, layer.bias)), step)
        if not all(parameter.isfinite().all() for parameter in new):
            return f"the weights of {self.path} would not be finite in {new[0].dtype}"
        self._new = new
        self.steps[path] = step
        self._norms.append(norm)
        return None

    def apply(self) -> None:
        """Give the layer its new parameters, and the norms' places to what is left of them.

        Example:
            >>> model = nn.Sequential(nn.Linear(2, 3))
            >>> Merge(model, "0", model[0]).apply()  # nothing was added
        """
        if self._new is None:
            return
        self._exchange(self._layer, "weight", self._new[0])
        self._exchange(self._layer, "bias", self._new[1])
        for norm, step in zip(self._norms, self.steps.values(), strict=True):
            rest = step.rest if step.rest is not None else nn.Identity().eval()
            for parent in list(self._model.modules()):
                for name in [name for name, child in parent._modules.items() if child is norm]:
                    self._exchange(parent, name, rest)

    def undo(self) -> None:
        """The inverse of :meth:`apply`.

        Example:
            >>> model = nn.Sequential(nn.Linear(2, 3))
            >>> Merge(model, "0", model[0]).undo()  # nothing was applied
        """
        while self._old:
            module, name, value = self._old.pop()
            setattr(module, name, value)

    def _exchange(self, module: nn.Module, name: str, value: Any) -> None:
        self._old.append((module, name, getattr(module, name)))
        setattr(module, name, value)


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
# Pads before the convolution and changes nothing behind it.
_PLAIN_LAYERS = ("timm.layers.conv2d_same.Conv2dSame",)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or a linear layer, of whatever class.

    Example:
        >>> is_layer(nn.Conv3d(1, 1, 1)), is_layer(nn.ReLU())
        (True, False)
    """
    return isinstance(module, (_ConvNd, nn.Linear))


def refusal_of(path: str, layer: nn.Module) -> str | None:
    """Why nothing may be folded into a module; None if something may.

    Example:
        >>> refusal_of("relu", nn.ReLU())
        'its input comes from relu (ReLU), which stays'

    Args:
        path: the module's.
        layer: the module.
    """
    if not is_layer(layer):
        return f"its input comes from {path} ({type(layer).__name__}), which stays"
    if has_hooks(layer):
        return f"hooks run with {path} (a norm attached by surgery, weight_norm or an observer, for instance)"
    if is_parametrized(layer):
        return f"the weight of {path} is parametrized; torch.nn.utils.parametrize.remove_parametrizations first"
    if type(layer.weight) is not nn.Parameter or not layer.weight.is_floating_point():
        return f"the weight of {path} is {type(layer.weight).__name__} of {layer.weight.dtype}, no plain parameter"
    known = f"{type(layer).__module__}.{type(layer).__qualname__}" in _PLAIN_LAYERS
    if "forward" in vars(layer) or not (known or any(_runs_as(type(layer), plain) for plain in _LAYERS)):
        return f"{path} ({type(layer).__name__}) has a forward of its own"
    return None


def _runs_as(own: type[nn.Module], plain: type[nn.Module]) -> bool:
    names = ("forward", "_conv_forward")
    return issubclass(own, plain) and all(getattr(own, name, None) is getattr(plain, name, None) for name in names)


def _folded(layer: nn.Module, weight: Any, bias: Any, step: Constant) -> tuple[nn.Parameter, nn.Parameter]:
    """The parameters of ``gain * layer(x) + shift``, computed in the norm's wide dtype, kept in the layer's."""
    wide = weight.detach().to(step.gain.dtype)
    if isinstance(layer, _ConvTransposeNd):
        # (in, out / groups, *): the output channels of group g belong to the g-th run of input channels
        gain = step.gain.view(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, 0)
        gain = gain.view(*weight.shape[:2], *[1] * (weight.dim() - 2))
    else:
        gain = step.gain.view(-1, *[1] * (weight.dim() - 1))
    shift = step.shift if bias is None else bias.detach().to(step.gain.dtype) * step.gain + step.shift
    return (
        nn.Parameter((wide * gain).to(weight.dtype), weight.requires_grad),
        nn.Parameter(shift.to(weight.dtype), (weight if bias is None else bias).requires_grad),
    )
