"""The networks that `compare` compares: a name, and how its norms enter one and the same backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from torch import nn

from shiftnorm import norms
from shiftnorm.models import WideResNet
from shiftnorm.near_names import suggest

REFERENCE: Final = "BatchNorm"


class Network(NamedTuple):
    """A built network and what must be called before each of its training steps.

    Example:
        >>> build("BatchNorm", depth=10, widen_factor=1, num_classes=3).before_step is None
        True
    """

    model: nn.Module
    before_step: Callable[[], object] | None


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Example:
        >>> VARIANTS["SelfNorm"].summary
        'SelfNorm after the addition of every block'

    Args:
        summary: where the norm sits, in words; shown in the report.
        places: makes the norm arguments of `WideResNet`; called once per network.
        controlled: whether a `CrossNormController` draws the active layers before each step.
    """

    summary: str
    places: Callable[[], dict[str, Any]] = field(repr=False)
    controlled: bool = False


def _everywhere(norm: Callable[[int], nn.Module]) -> Callable[[], dict[str, Any]]:
    return lambda: {"norm": norm}


def _post(norm: Callable[[int], nn.Module]) -> Callable[[], dict[str, Any]]:
    return lambda: {"norm": norms.BatchNorm, "slots": {"post": norm}}


def _after_stages(norm: Callable[[], nn.Module]) -> Callable[[], dict[str, Any]]:
    return lambda: {"norm": norms.BatchNorm, "stage_slots": {1: lambda _: norm(), 2: lambda _: norm()}}


VARIANTS: Final[dict[str, Variant]] = {
    REFERENCE: Variant("BatchNorm everywhere; what the others are compared to", _everywhere(norms.BatchNorm)),
    "IBN-a": Variant(
        "IBN between the convolutions of every block of stages 1 and 2",
        lambda: {"norm": norms.BatchNorm, "inner_norm": (norms.IBN, norms.IBN, None)},
    ),
    "SelfNorm": Variant("SelfNorm after the addition of every block", _post(norms.SelfNorm)),
    "CNSN": Variant(
        "CrossNorm, then SelfNorm, after the addition of every block; one CrossNorm acts in half of the steps",
        _post(norms.CNSN),
        controlled=True,
    ),
    "RepresentativeBatchNorm": Variant(
        "RepresentativeBatchNorm in place of every BatchNorm", _everywhere(norms.RepresentativeBatchNorm)
    ),
    "MixStyle": Variant("MixStyle after stages 1 and 2", _after_stages(norms.MixStyle)),
    "CrossNorm": Variant(
        "CrossNorm after the addition of every block; one acts in half of the steps",
        _post(lambda _: norms.CrossNorm()),
        controlled=True,
    ),
    "BatchInstanceNorm": Variant("BatchInstanceNorm in place of every BatchNorm", _everywhere(norms.BatchInstanceNorm)),
    "SwitchNorm": Variant("SwitchNorm in place of every BatchNorm", _everywhere(norms.SwitchNorm)),
    "InstanceNorm": Variant(
        "InstanceNorm in place of every BatchNorm",
        _everywhere(lambda channels: norms.InstanceNorm(channels, affine=True)),
    ),
    "LayerNorm": Variant("LayerNorm in place of every BatchNorm", _everywhere(norms.LayerNorm)),
    "AttentiveNorm": Variant("AttentiveNorm in place of every BatchNorm", _everywhere(norms.AttentiveNorm)),
    "SqueezeExcite": Variant("SqueezeExcite after the addition of every block", _post(norms.SqueezeExcite)),
    "DSU": Variant("DSU after stages 1 and 2", _after_stages(norms.DSU)),
    "PermutedAdaIN": Variant("PermutedAdaIN after stages 1 and 2", _after_stages(norms.PermutedAdaIN)),
    "EFDMix": Variant("EFDMix after stages 1 and 2", _after_stages(norms.EFDMix)),
}


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of variants, each once, with the reference first.

    Example:
        >>> check_names(["SelfNorm", "SelfNorm", "CNSN"])
        ('BatchNorm', 'SelfNorm', 'CNSN')

    Args:
        names: the wanted variants; upper and lower case are not told apart.

    Returns:
        Their exact names; "BatchNorm" is added where missing, as every difference is one to it.

    Raises:
        ValueError: for an unknown name, listing near matches.
    """
    exact = {name.casefold(): name for name in VARIANTS}
    found = [REFERENCE]
    for name in names:
        if name.casefold() not in exact:
            raise ValueError(f"unknown norm {name!r}; {suggest(name, VARIANTS)}")
        found.append(exact[name.casefold()])
    return tuple(dict.fromkeys(found))


def build(
    name: str, *, depth: int, widen_factor: int, num_classes: int, dropout: float = 0.0, seed: int = 0
) -> Network:
    """Build a variant's network.

    Example:
        >>> network = build("CNSN", depth=10, widen_factor=1, num_classes=3)
        >>> network.before_step is not None
        True

    Args:
        name: one of `VARIANTS`.
        depth: of the wide residual net, 6n + 4.
        widen_factor: of its width.
        num_classes: number of classes.
        dropout: between the convolutions of a block.
        seed: of the controller's draws; initial weights come from torch's global generator.

    Returns:
        The network, and the call due before each training step.

    Raises:
        ValueError: for an unknown name.
    """
    variant = VARIANTS[check_names([name])[-1]]
    model = WideResNet(depth, widen_factor, num_classes, dropout=dropout, **variant.places())
    if not variant.controlled:
        return Network(model, None)
    controller = norms.CrossNormController(model, active_num=1, p=0.5, seed=seed)
    return Network(model, controller.step)
