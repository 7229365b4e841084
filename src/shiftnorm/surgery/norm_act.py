"""A norm with the drop and the activation behind it as one module, which is what many networks of timm are built of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["NormAct", "norm_act"]

_BEHIND = ("drop", "act")


@final
class NormAct(nn.Module):
    """A norm, then a drop layer, then an activation, under the norm's own keys.

    timm's BatchNormAct2d is a BatchNorm whose forward also drops and activates. This is the same for any norm, by
    composition: ``norm``, ``drop`` and ``act`` are children, but the state_dict names the norm's tensors without
    ``norm.``, so that weights of BatchNormAct2d load and checkpoints stay exchangeable.

    Example:
        >>> from shiftnorm.norms import IBN
        >>> layer = NormAct(16, norm=IBN, act_layer=nn.SiLU, ratio=0.25)
        >>> sorted(layer.state_dict())
        ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
        >>> layer(torch.randn(2, 16, 4, 4)).min() > -0.3
        tensor(True)

    Args:
        num_features: channels C.
        norm: a norm's class, or a function from a channel count to a norm.
        act_layer: the activation's class, a function that makes one, or a name that timm knows; None for none.
        apply_act: False leaves the activation out.
        act_kwargs: keyword arguments of the activation.
        inplace: the activation's, where it takes it.
        drop_layer: makes a module without parameters, such as DropBlock; None for none.
        device: of parameters and buffers, given to ``norm`` if not None.
        dtype: of parameters and buffers, given to ``norm`` if not None.
        norm_arguments: further keyword arguments of ``norm``.

    Shape: as the norm.
    State: that of the norm, without a prefix, and ``act.*`` for an activation with parameters. ``named_parameters``
        has ``norm.weight`` where the state_dict has ``weight``.
    Modes: as its parts.
    Raises: TypeError if ``norm`` makes no module.
    Cost: that of its parts.
    Source: this project; the interface is timm's.
    """

    def __init__(
        self,
        num_features: int,
        *,
        norm: Callable[..., nn.Module],
        act_layer: Callable[..., nn.Module] | str | None = None,
        apply_act: bool = True,
        act_kwargs: Mapping[str, Any] | None = None,
        inplace: bool = True,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **norm_arguments: Any,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        given = {"device": device, "dtype": dtype}
        made = norm(
            num_features, **norm_arguments, **{name: value for name, value in given.items() if value is not None}
        )
        if not isinstance(made, nn.Module):
            raise TypeError(f"NormAct: expected norm to make a module, got {made!r}.")
        self.norm = made
        self.drop = nn.Identity() if drop_layer is None else drop_layer()
        self.act = _activation(act_layer if apply_act else None, dict(act_kwargs or {}), inplace)

    @property
    def weight(self) -> Tensor | None:
        """The norm's weight, which initialisations ask for.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> layer = NormAct(4, norm=BatchNorm)
            >>> layer.weight is layer.norm.weight
            True
        """
        return getattr(self.norm, "weight", None)

    @property
    def bias(self) -> Tensor | None:
        """The norm's bias.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> NormAct(4, norm=BatchNorm).bias.shape
            torch.Size([4])
        """
        return getattr(self.norm, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, drop, activate.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> NormAct(4, norm=BatchNorm, act_layer=nn.ReLU)(torch.randn(2, 4, 3, 3)).min()
            tensor(0., grad_fn=...)
        """
        return self.act(self.drop(self.norm(x)))

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """The tensors, the norm's under their own names.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> list(nn.Sequential(NormAct(4, norm=BatchNorm)).state_dict())[:2]
            ['0.weight', '0.bias']
        """
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in [key for key in state if key.startswith(f"{prefix}norm.")]:
            state[prefix + key[len(f"{prefix}norm.") :]] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            rest = key[len(prefix) :]
            if rest.partition(".")[0] not in ("norm", *_BEHIND):
                state_dict[f"{prefix}norm.{rest}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _activation(layer: Callable[..., nn.Module] | str | None, arguments: dict[str, Any], inplace: bool) -> nn.Module:
    make = _timm("an activation given by name").layers.get_act_layer(layer) if isinstance(layer, str) else layer
    if make is None:
        return nn.Identity()
    if "inplace" in inspect.signature(make).parameters:
        arguments.setdefault("inplace", inplace)
    return make(**arguments)


def norm_act(norm: Callable[..., nn.Module], **arguments: Any) -> functools.partial[NormAct]:
    """What to pass as ``norm_layer=`` to the constructors of timm, so that the network gets this norm.

    Some networks of timm (ResNet) call ``norm_layer(channels)`` and take any norm of ours as it is. Others
    (EfficientNet, ResNetV2, RegNet, DenseNet, VoVNet and more) want norm and activation in one layer, and look
    one up by the lower-case name of the class they are given: ``BatchNorm``, ``GroupNorm`` and ``LayerNorm`` then
    silently become timm's own layers, and other classes are refused with "No equivalent norm_act layer". The result of
    this function works in all of them: where the network asks for an activation there is one, elsewhere there is none::

        timm.create_model("efficientnet_b0", norm_layer=norm_act(IBN, ratio=0.25))

    Example:
        >>> from shiftnorm.norms import IBN
        >>> norm_act(IBN, ratio=0.25)(8, act_layer=nn.SiLU)
        NormAct(
          (norm): IBN(8, ..., ratio=0.25, ...)
          (drop): Identity()
          (act): SiLU(inplace=True)
        )

    Args:
        norm: a norm's class, or a function from a channel count to a norm.
        arguments: its keyword arguments.

    Returns:
        A ``functools.partial`` of :class:`NormAct`, which pickles if ``norm`` does.

    Raises:
        TypeError: if ``norm`` cannot be called, or is a module instead of what makes one.
        ModuleNotFoundError: if timm is not installed.
        RuntimeError: if this version of timm has no table of its norm-and-activation layers.
    """
    if isinstance(norm, nn.Module) or not callable(norm):
        raise TypeError(
            f"norm_act: expected a norm's class or a function from a channel count to a norm, got {norm!r}."
        )
    _timm("norm_act")
    from timm.layers import create_norm_act

    # Only layers in these two tables are told the activation; a function gets none, and could only guess it.
    tables = [getattr(create_norm_act, name, None) for name in ("_NORM_ACT_TYPES", "_NORM_ACT_REQUIRES_ARG")]
    for table in tables:
        if not isinstance(table, set):
            raise RuntimeError(
                "norm_act: expected timm to list its norm-and-activation layers in timm.layers.create_norm_act, and "
                "this version does not. Build the model with its own norms and convert it: "
                "shiftnorm.surgery.convert(model, ...)."
            )
        table.add(NormAct)
    return functools.partial(NormAct, norm=norm, **arguments)


def _timm(who: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{who} needs timm; install it with pip install "shiftnorm[timm]".') from error
    return timm
