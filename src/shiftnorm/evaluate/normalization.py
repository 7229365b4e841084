"""The mean and standard deviation that a model's input images are normalized by."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from shiftnorm.surgery import source_of

__all__ = ["NAMED", "Normalization", "Normalize", "choose_normalization", "known_normalization", "unknown_warning"]

Normalize: TypeAlias = "str | tuple[Sequence[float], Sequence[float]]"
"""A name ("model", "imagenet", "half", "none", "bytes"), or mean and standard deviation for images in [0, 1]."""

NAMED: Final[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_ATTRIBUTE: Final = "input_normalization"
_UNKNOWN: Final = "none, as the model does not say"


class Normalization(NamedTuple):
    """What is done to uint8 images before the model: (image / 255 - mean) / std, or nothing.

    Example:
        >>> half = choose_normalization(nn.Identity(), "half")
        >>> half.apply(torch.tensor([[0, 255], [0, 255], [0, 255]], dtype=torch.uint8).view(1, 3, 1, 2)).unique()
        tensor([-1.,  1.])

    Args:
        mean: of each channel, for images in [0, 1].
        std: of each channel.
        name: what it is called, and where it was found.
        bytes: hand the uint8 images over as they are, to a model that normalizes them itself.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    bytes: bool = False

    def apply(self, images: Tensor) -> Tensor:
        """Normalize (N, 3, H, W) uint8 images.

        Example:
            >>> NAMED_NONE = choose_normalization(nn.Identity(), "none")
            >>> NAMED_NONE.apply(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
            tensor([1., 1., 1.])
        """
        if self.bytes:
            return images
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    def same_as(self, other: Normalization) -> bool:
        """Whether both do the same, up to the third decimal.

        Example:
            >>> imagenet = choose_normalization(nn.Identity(), "imagenet")
            >>> imagenet.same_as(choose_normalization(nn.Identity(), "half"))
            False
        """
        ours, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        close = all(math.isclose(a, b, abs_tol=2e-3) for a, b in zip(ours, theirs, strict=True))
        return self.bytes == other.bytes and (self.bytes or close)


def choose_normalization(model: nn.Module, normalize: Normalize) -> Normalization:
    """The normalization that a name or a pair of numbers stands for.

    What is given decides; else what the model says itself (``input_normalization``); else what timm or torchvision say
    of its weights; else images stay in [0, 1], of which :func:`unknown_warning` warns.

    Example:
        >>> choose_normalization(nn.Identity(), ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])).std
        (0.25, 0.25, 0.25)
        >>> choose_normalization(nn.Identity(), "model").name
        'none, as the model does not say'

    Args:
        model: looked at for ``"model"``.
        normalize: ``"imagenet"``; ``"half"`` (mean and std 0.5); ``"none"`` (images in [0, 1]); ``"bytes"`` (uint8
            images, which the model normalizes itself); ``"model"`` (what the model says, see
            :func:`known_normalization`); or (mean, std) of three numbers each.

    Returns:
        The normalization.

    Raises:
        ValueError: for another name, or numbers that are not for images in [0, 1].
    """
    if isinstance(normalize, str):
        if normalize in NAMED:
            return Normalization(*NAMED[normalize], normalize)
        if normalize == "bytes":
            return Normalization(*NAMED["none"], "bytes", bytes=True)
        if normalize != "model":
            raise ValueError(
                "robustness: normalize must be 'model', 'imagenet', 'half', 'none', 'bytes' or (mean, std), "
                f"got {normalize!r}."
            )
        known = known_normalization(model)
        return Normalization(*NAMED["none"], _UNKNOWN) if known is None else known
    return _checked(normalize, "given")


def unknown_warning(normalization: Normalization) -> list[str]:
    """A sentence to warn of a normalization that nobody named; none if somebody did.

    Example:
        >>> print(unknown_warning(choose_normalization(nn.Identity(), "model"))[0])
        robustness: the model does not say how its inputs are normalized, ...
        >>> unknown_warning(choose_normalization(nn.Identity(), "half"))
        []

    Args:
        normalization: of :func:`choose_normalization`.
    """
    if normalization.name != _UNKNOWN:
        return []
    return [
        "robustness: the model does not say how its inputs are normalized, so it was given images in [0, 1]; if it was "
        "trained otherwise, the errors mean nothing. Say what it was trained with, by normalize= or --normalize: "
        "imagenet, half, none (images in [0, 1]), bytes (uint8), or mean and std; or let the model say it: "
        f"model.{_ATTRIBUTE} = (mean, std), which shiftnorm.surgery.save keeps."
    ]


def known_normalization(model: nn.Module) -> Normalization | None:
    """What a model itself, timm or torchvision says about its inputs.

    Looked at in this order: an attribute ``input_normalization = (mean, std)``; timm's ``pretrained_cfg``; the weights
    that torchvision has for a model of that name, where they agree and the model has their 1000 classes.

    Example:
        >>> model = nn.Conv2d(3, 8, 1)
        >>> model.input_normalization = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        >>> known_normalization(model).std
        (0.2, 0.2, 0.2)
        >>> known_normalization(nn.Conv2d(3, 8, 1)) is None
        True

    Args:
        model: any; a compiled or parallel wrapper is looked into.

    Returns:
        The normalization, or None.

    Raises:
        ValueError: if the attribute is not for images in [0, 1].
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    own = getattr(model, _ATTRIBUTE, None)
    if own is not None and not isinstance(own, nn.Module):  # a part of the network may have the name
        return _checked(own, f"the model's {_ATTRIBUTE}")
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and config.get("mean") and config.get("std") and len(config["mean"]) == 3:
        return _checked((config["mean"], config["std"]), "timm's pretrained_cfg")
    return _of_torchvision(model)


def _of_torchvision(model: nn.Module) -> Normalization | None:
    source = source_of(model)
    if source is not None:
        library, _, name = str(source["name"]).partition("/")
        arguments: dict[str, Any] = source["arguments"]
        if library != "torchvision" or arguments.get("num_classes", 1000) != 1000:
            return None
        names = [name]
    elif type(model).__module__.startswith("torchvision.models."):
        head = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if not head or (getattr(head[-1], "out_features", None) or getattr(head[-1], "out_channels", None)) != 1000:
            return None
        module = sys.modules[type(model).__module__]
        names = [name for name in _torchvision_names() if hasattr(module, name)]
    else:
        return None
    found = [pair for name in names for pair in _weights_of(name)]
    if not found or any(pair != found[0] for pair in found):
        return None
    return _checked(found[0], "torchvision's weights of this architecture")


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models()


def _weights_of(name: str) -> list[tuple[Sequence[float], Sequence[float]]]:
    if importlib.util.find_spec("torchvision") is None:
        return []
    import torchvision

    if name not in torchvision.models.list_models():
        return []
    transforms = [weights.transforms() for weights in torchvision.models.get_model_weights(name)]
    # Those of videos and of optical flow have no such mean, or another meaning of it.
    return [(each.mean, each.std) for each in transforms if hasattr(each, "crop_size") and hasattr(each, "mean")]


def _checked(pair: Any, name: str) -> Normalization:
    try:
        mean, std = (tuple(float(value) for value in part) for part in pair)
    except (TypeError, ValueError):
        mean, std = (), ()
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"robustness: expected (mean, std) of three numbers each with std > 0, got {pair!r} ({name}).")
    if max(mean) > 1 or max(std) > 1.5 or min(mean) < -1:
        raise ValueError(
            f"robustness: mean {mean} and std {std} ({name}) are not for images in [0, 1]. If they are for images from "
            "0 to 255, divide both by 255."
        )
    return Normalization(mean, std, name)
