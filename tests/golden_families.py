"""The golden networks, built from our classes, with the names that the authors give their parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shiftnorm import norms
from shiftnorm.models import create_model
from shiftnorm.norms import NormLayer

State = dict[str, Tensor]

# The authors' ResNeXt computes these and throws the result away: where a block has a downsample, it replaces the
# shortcut that was just normalised. Ours does not have them, which is all that may differ. Their channels are the
# block's input's.
DEAD: dict[tuple[str, str], dict[str, int]] = {
    ("resnext29", "identity"): {"stage_1.0.cnsn": 64, "stage_2.0.cnsn": 256, "stage_3.0.cnsn": 512},
}

# Where each backbone can be normalised, by the authors' word for it: our slot.
RESIDUAL_POSITIONS = {name: name for name in ("pre", "residual", "identity", "post")}
POSITIONS: dict[str, dict[str, str]] = {
    "wrn40_2": RESIDUAL_POSITIONS,
    "resnext29": RESIDUAL_POSITIONS,
    "resnet50": RESIDUAL_POSITIONS,
    "densenet40": {name: name for name in ("conv1_pre", "conv1_post")},
    "allconv": {"pos1": "conv", "pos2": "norm", "pos3": "activation"},
}
CROPS = ("neither", "style", "content", "both")

# The constructor of each backbone that IBN-Net has.
IBN_NET = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"se_resnet{depth}": f"se_resnet{depth}" for depth in (50, 101, 152)},
    **{f"resnext{depth}": f"resnext{depth}_32x4d" for depth in (50, 101, 152)},
    **{f"densenet{depth}": f"densenet{depth}" for depth in (121, 161, 169, 201)},
}


@dataclass(frozen=True)
class Network:
    """What a golden name says: a backbone, the kind of IBN (``a``, ``b``), and CrossNorm, SelfNorm or both in it."""

    backbone: str
    ibn: str = ""
    filling: str = ""
    position: str = ""
    crop: str = ""


class UnknownNetwork(ValueError):
    """A golden case that this harness cannot build."""


def parse(name: str) -> Network:
    """Read a golden name, for example ``resnet50_ibn_b_sn_post``."""
    filled = re.fullmatch(
        r"(?P<backbone>[a-z]+\d*(?:_2)?)(?:_ibn_(?P<ibn>[ab]))?_(?P<filling>cnsn|cn|sn)"
        rf"_(?P<position>[a-z\d]+?(?:_pre|_post)?)(?:_(?P<crop>{'|'.join(CROPS)}))?(?:_all)?",
        name,
    )
    if filled:
        given = {key: value for key, value in filled.groupdict().items() if value is not None}
        network = Network(**given)
        known = network.position in POSITIONS.get(network.backbone, {})
        if known and (not network.ibn or network.backbone == "resnet50"):
            return network
    ibn = re.fullmatch(r"(?P<backbone>\w+?)_ibn_(?P<ibn>[ab])", name)
    if ibn and ibn["backbone"] in IBN_NET and (ibn["ibn"] == "a" or re.fullmatch(r"resnet\d+", ibn["backbone"])):
        return Network(**ibn.groupdict())
    if name == "resnet50_plain_cnsnrepo":
        return Network("resnet50")
    places = ", ".join(f"{backbone} {'/'.join(known)}" for backbone, known in POSITIONS.items())
    raise UnknownNetwork(
        f"golden model {name!r}: the harness knows no such network. It reads BACKBONE[_ibn_a|b]_cn|sn|cnsn_POSITION"
        f"[_CROP] with {places}, and BACKBONE_ibn_a|b with {', '.join(IBN_NET)}."
    )


# The backbones of each family of the authors' code.
FAMILIES: dict[str, tuple[str, ...]] = {
    "wrn": ("wrn40_2",),
    "resnext": ("resnext29",),
    "densenet": ("densenet40",),
    "allconv": ("allconv",),
    "resnet50_cnsn": ("resnet50",),
    "ibnnet": tuple(IBN_NET),
}


def identify(meta: Mapping[str, Any]) -> Network:
    """The network of a case, by its name, which its family and its arguments must bear out."""
    name, family, kw = meta["name"], meta["family"], dict(meta["kw"])
    network = parse(name)
    if family in FAMILIES and network.backbone not in FAMILIES[family]:
        raise UnknownNetwork(f"golden model {name!r}: family {family!r} has {', '.join(FAMILIES[family])}")
    if family == "ibnnet" and parse(meta.get("fn", name)) != network:
        raise UnknownNetwork(f"golden model {name!r}: its name does not fit its fn={meta['fn']!r}")
    crop = str(kw.pop("crop", None) or network.crop or "neither")
    said = {"cnsn_type": network.filling, "pos": re.sub(r"^pos(?=\d)", "", network.position)}
    agrees = all(str(kw.pop(argument, None) or value) == value for argument, value in said.items())
    if not agrees or crop not in CROPS or network.crop not in ("", crop):
        raise UnknownNetwork(f"golden model {name!r}: its name does not fit its arguments {meta['kw']}")
    # How many CrossNorms act, and where their boxes lie, comes as draws. What IBN nets with CNSN and families that are
    # not known here call their arguments is not known either: there the name decides.
    unknown = kw.keys() - {"beta", "active_num"}
    if unknown and family in FAMILIES and not (network.ibn and network.filling):
        raise UnknownNetwork(f"golden model {name!r}: unknown arguments {sorted(unknown)} of family {family!r}")
    return replace(network, crop=crop)


@dataclass(frozen=True)
class Golden:
    """Our network, and how the authors call its parts.

    Args:
        model: the network.
        slot: the name of the modules that CrossNorm and SelfNorm stand in; empty if none.
        renamed: the authors' paths of our modules, where they differ.
        dead: the authors' CNSN that ours lacks, and the shapes of their tensors.
    """

    model: nn.Module
    slot: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    dead: tuple[str, ...] = ()
    dead_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def layers(self) -> Iterator[tuple[str, NormLayer]]:
        """Our norms, outermost first, whose tensors may have other names and shapes than the authors'."""
        inside: tuple[str, ...] = ()
        for path, module in self.model.named_modules():
            if isinstance(module, NormLayer) and not path.startswith(inside):
                inside = (*inside, f"{path}.")
                yield path, module

    def prefix(self, path: str, layer: NormLayer) -> str:
        """What the authors put before the names of a layer's tensors."""
        parent, _, last = path.rpartition(".")
        if last == self.slot and not isinstance(layer, norms.InstanceNorm):
            path = self.renamed.get(path, f"{parent}.cnsn")
        elif last == "post" and isinstance(layer, norms.InstanceNorm):
            path = f"{parent}.IN"
        return f"{path}.{getattr(layer, 'official_prefix', '')}"

    def rename(self, name: str) -> str:
        path, _, tensor = name.rpartition(".")
        return f"{self.renamed.get(path, path)}.{tensor}"

    def to_official(self, state: Mapping[str, Tensor]) -> State:
        """Tensors of ours, of some or of all names, by the authors' names and in their shapes."""
        theirs, left = {}, dict(state)
        for path, layer in self.layers():
            own = {key.removeprefix(f"{path}."): left.pop(key) for key in list(left) if key.startswith(f"{path}.")}
            theirs |= {self.prefix(path, layer) + key: value for key, value in layer.to_official(own).items()}
        return theirs | {self.rename(name): value for name, value in left.items()}

    def from_official(self, state: Mapping[str, Tensor]) -> State:
        """The authors' state_dict in ours; what is not ours stays, for ``load_state_dict`` to refuse."""
        ours, left = {}, dict(state)
        for path, layer in self.layers():
            prefix = self.prefix(path, layer)
            own = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
            ours |= {f"{path}.{key}": value for key, value in layer.from_official(own).items()}
        back = {self.rename(name): name for name in self.model.state_dict()}
        return ours | {back.get(name, name): value for name, value in left.items()}

    def listen(self, stages: Iterable[str]) -> State:
        """A dictionary that the next forward fills with the means and deviations of these modules of the authors."""
        found: State = {}
        back = {theirs: ours for ours, theirs in self.renamed.items()}

        def hear(_: nn.Module, __: Any, y: Tensor, *, stage: str) -> None:
            planes = y.detach().flatten(2)
            found[f"stage.{stage}.mean"] = planes.mean(2)
            found[f"stage.{stage}.std"] = planes.std(2, correction=0)

        for stage in stages:
            self.model.get_submodule(back.get(stage, stage)).register_forward_hook(partial(hear, stage=stage))
        return found

    def cross_norms(self) -> list[norms.CrossNorm | None]:
        """The authors' CrossNorms in their order, which is that of depth; None is one that they compute in vain."""
        found: list[norms.CrossNorm | None] = []
        for path, module in self.model.named_modules():
            parent, _, last = path.rpartition(".")
            if not self.slot or last != self.slot:
                continue
            inside = [part for part in module.modules() if isinstance(part, norms.CrossNorm)]
            if inside or f"{parent}.cnsn" in self.dead:
                found.append(inside[0] if inside else None)
        return found


def filling(network: Network) -> Callable[[int], nn.Module]:
    """What stands in the network's one place."""
    crossing: Callable[[int], nn.Module] = partial(norms.CrossNorm, **{"crop": network.crop or "neither"})
    return {
        "sn": norms.SelfNorm,
        "cn": crossing,
        "cnsn": lambda channels: norms.Chain(crossing(channels), norms.SelfNorm(channels)),
    }[network.filling]


def slots_of(network: Network) -> dict[str, Callable[[int], nn.Module]]:
    return {POSITIONS[network.backbone][network.position]: filling(network)} if network.filling else {}


def instance_norm(channels: int) -> nn.Module:
    return norms.InstanceNorm(channels, affine=True)


def residual(network: Network) -> Golden:
    """ResNet, ResNeXt and SE-ResNet for ImageNet."""
    options: dict[str, Any] = {"slots": slots_of(network)}
    if network.ibn == "a":
        options["inner_norm"] = (norms.IBN, norms.IBN, norms.IBN, None)
    if network.ibn == "b":
        options |= {"stem_norm": instance_norm, "stage_end": (instance_norm, instance_norm, None, None)}
    if network.ibn and network.filling:
        options["pre_feeds_downsample"] = True
    return Golden(create_model(IBN_NET[network.backbone], **options), network.position)


def wide_residual(network: Network) -> Golden:
    return Golden(create_model("wide_resnet40_2", slots=slots_of(network)), network.position)


def resnext_cifar(network: Network) -> Golden:
    model = create_model("resnext29_4x32", slots=slots_of(network), identity_in_downsample=False)
    dead = DEAD.get((network.backbone, network.position), {})
    shapes = {
        f"{path}.selfnorm.{name}": tuple(tensor.shape)
        for path, channels in dead.items()
        if "sn" in network.filling
        for name, tensor in norms.SelfNorm(channels).to_official().items()
    }
    return Golden(model, network.position, dead=tuple(dead), dead_shapes=shapes)


def all_conv(network: Network) -> Golden:
    """The authors number all layers in one list, in which a pooling and a dropout follow each third unit."""
    slot = f"after_{POSITIONS['allconv'][network.position]}" if network.filling else ""
    parts = ("conv", "after_conv", "norm", "after_norm", "activation", "after_activation")
    present = [part for part in parts if not part.startswith("after_") or part == slot]
    renamed, number = {}, 0
    for unit in range(9):
        for part in present:
            renamed[f"stage{unit // 3 + 1}.{unit % 3}.{part}"] = f"features.{number}"
            number += 1
        number += 2 if unit % 3 == 2 else 0
    return Golden(create_model("all_conv", slots=slots_of(network), dropout=0.0), slot, renamed)


def dense_cifar(network: Network) -> Golden:
    return Golden(create_model("densenet40_12", slots=slots_of(network)), network.position)


def dense(network: Network) -> Golden:
    """DenseNet for ImageNet, whose IBN has the batch channels first."""
    inner = partial(norms.IBN, ratio=0.4, order="batch_first")
    return Golden(create_model(IBN_NET[network.backbone], inner_norm=(inner, inner, inner, None)))


BUILDERS: dict[str, Callable[[Network], Golden]] = {
    "wrn40_2": wide_residual,
    "resnext29": resnext_cifar,
    "allconv": all_conv,
    "densenet40": dense_cifar,
    **{name: dense if name.startswith("densenet") else residual for name in IBN_NET},
}


def build(network: Network, *, device: str = "cpu") -> Golden:
    """Our network, initialised at random."""
    with torch.device(device):
        return BUILDERS[network.backbone](network)
