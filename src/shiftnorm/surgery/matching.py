"""Which tensor of a checkpoint belongs to which tensor of a model, whoever named and shaped it."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from shiftnorm.norms import Chain, InstanceNorm, NormLayer
from shiftnorm.surgery.kinds import kind_of

__all__ = ["Match", "Misfit", "match"]

Shape = tuple[int, ...]
Misfit = tuple[str, Shape, Shape]

RUNNING = ("running_mean", "running_var", "num_batches_tracked")
OF_BATCH_NORM = ("weight", "bias", *RUNNING)


@dataclass
class Match:
    """What was found for a model among the tensors of a checkpoint. Nothing in the model has changed.

    Example:
        >>> found = match(nn.Linear(2, 1), {"weight": torch.zeros(1, 2), "scale": torch.zeros(1)})
        >>> list(found.values), list(found.left)
        (['weight'], ['scale'])

    Args:
        values: tensors in the model's shapes, by the model's names.
        left: tensors of the checkpoint that nothing takes.
        misfits: name, shape there and shape here, where only the name agrees.
        renamed: names there and here, where they differ; a star stands for a whole layer.
        reshaped: name here, shape there and here, where only axes of one element differ.
        skipped: names there, and why nothing takes them, where that is no loss.
        official: layers and what they took in their authors' form.
        objections: why layers did not take what seems meant for them, by the beginning of its names.
        extras: names of the model's tensors that belong to layers of ours and that no BatchNorm has, with the layer's
            class.
        older: what a name in ``left`` is in the checkpoint, where it was changed first.
        refused: layers whose names and shapes agree, but whose function would be another than in the checkpoint.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    misfits: list[Misfit] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    reshaped: list[Misfit] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    official: list[tuple[NormLayer, dict[str, Tensor]]] = field(default_factory=list)
    objections: dict[str, str] = field(default_factory=dict)
    extras: dict[str, type[nn.Module]] = field(default_factory=dict)
    older: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def match(model: nn.Module, state: Mapping[str, Tensor]) -> Match:
    """Find for every tensor of a model its counterpart in a checkpoint.

    In this order: the authors' form of a layer of ours at its own name, or at the names the authors give it in their
    networks; equal names; a BatchNorm's tensors for a Chain that stands in its place; IBN-b's ``IN``.

    Example:
        >>> from shiftnorm.norms import BatchNorm, SelfNorm
        >>> chain = nn.Sequential(Chain(BatchNorm(2), SelfNorm(2)))
        >>> list(match(chain, nn.Sequential(nn.BatchNorm2d(2)).state_dict()).values)[:2]
        ['0.0.weight', '0.0.bias']

    Args:
        model: the model.
        state: tensors by name, without a prefix.
    """
    return _Matching(model, state).run()


class _Layer:
    """A layer, its tensors by their names in it, and what these are called in the model."""

    def __init__(self, path: str, module: nn.Module, names: Mapping[int, list[str]]) -> None:
        self.path = path
        self.module = module
        self.tensors: dict[str, Tensor] = {
            name: tensor
            for name, tensor in module.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and id(tensor) in names
        }
        self.keys = {name: names[id(tensor)] for name, tensor in self.tensors.items()}
        self.prefix = f"{path}." if path else ""
        for name, keys in self.keys.items():
            if self.prefix + name not in keys:  # the module around this one calls its tensors its own
                self.prefix = keys[0].removesuffix(name)
            break

    def fits(self, entries: Mapping[str, Tensor]) -> bool:
        return all(name in self.tensors and same(tensor, self.tensors[name]) for name, tensor in entries.items())


def same(tensor: Tensor, target: Tensor) -> bool:
    # the parameters of a lazy module have no shape before its first call
    return isinstance(target, nn.UninitializedParameter | nn.UninitializedBuffer) or tensor.shape == target.shape


class _Matching:
    def __init__(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.found = Match(left=dict(state))
        self.targets: dict[str, Tensor] = {
            name: tensor
            for name, tensor in model.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and not name.endswith("_extra_state")
        }
        self.names: dict[int, list[str]] = {}
        for name, tensor in self.targets.items():
            self.names.setdefault(id(tensor), []).append(name)

    def run(self) -> Match:
        self.take_older_names()
        self.take_official()
        self.take_equal_names()
        self.take_into_chains()
        self.take_instance_norms()
        self.skip_running_moments()
        self.skip_dead()
        for layer in self.layers():
            for name in layer.keys.keys() - set(OF_BATCH_NORM):
                self.found.extras.update(dict.fromkeys(layer.keys[name], type(layer.module)))
        return self.found

    def put(self, name: str, source: str, tensor: Tensor, *, renamed: bool = True) -> None:
        target = self.targets[name]
        if not same(tensor, target):
            self.found.reshaped.append((name, tuple(tensor.shape), tuple(target.shape)))
            tensor = tensor.reshape(target.shape)
        self.found.values[name] = tensor
        self.found.left.pop(source, None)
        if renamed:
            self.note_rename(source, name)

    def note_rename(self, old: str, new: str) -> None:
        """Put down two names, for whole layers at once."""
        (old_path, _, last), (new_path, _, new_last) = old.rpartition("."), new.rpartition(".")
        row = (f"{old_path}.*".lstrip("."), f"{new_path}.*".lstrip(".")) if last == new_last else (old, new)
        if old != new and row not in self.found.renamed:
            self.found.renamed.append(row)

    def take_older_names(self) -> None:
        left = self.found.left
        units = _all_conv_units(left) if "stage1.0.conv" in self.modules else {}
        for key in list(left):
            path, _, name = key.rpartition(".")
            if path in self.modules:
                continue
            numbered = re.fullmatch(r"features\.(\d+)(.*)", path)
            options = [
                re.sub(r"\.(norm|relu|conv)\.([12])(?=\.|$)", r".\1\2", path),  # torchvision's DenseNet before 0.3
                re.sub(r"\.module(?=\.|$)", "", path),  # DataParallel around a part of the network
                units[numbered[1]] + numbered[2] if numbered and numbered[1] in units else path,
            ]
            for option in options:
                new = f"{option}.{name}"
                if option != path and self.exists(option) and new not in left:
                    left[new] = left.pop(key)
                    self.found.older[new] = key
                    self.note_rename(key, new)
                    break

    def exists(self, path: str) -> bool:
        """Whether there is such a module, or a layer of ours above it, whose parts the authors name otherwise."""
        if path in self.modules:
            return True
        while path := path.rpartition(".")[0]:
            if isinstance(self.modules.get(path), NormLayer):
                return True
        return False

    def layers(self) -> Iterator[_Layer]:
        inside: tuple[str, ...] = ()
        for path, module in self.modules.items():
            if not isinstance(module, NormLayer) or isinstance(module, Chain) or path.startswith(inside or ("\0",)):
                continue
            inside += (f"{path}." if path else "",)
            layer = _Layer(path, module, self.names)
            if layer.tensors:
                yield layer

    def take_official(self) -> None:
        chosen = {layer.path: (layer, prefix) for layer in self.layers() if (prefix := self.official_place(layer))}
        claims = Counter(prefix for _, prefix in chosen.values())
        for layer, prefix in chosen.values():
            if claims[prefix] > 1:
                rivals = [path for path, (_, other) in chosen.items() if other == prefix]
                self.found.objections[prefix] = f"{prefix}* could be for any of {', '.join(rivals)}"
                continue
            self.translate(layer, prefix)

    def official_place(self, layer: _Layer) -> str | None:
        """Where the checkpoint has the layer in its authors' form; None if nowhere, or if it has it in ours."""
        official: str | None = getattr(layer.module, "official_prefix", None)
        own = self.below(layer.prefix)
        if own and not (official and all(name.startswith(official) for name in own)):
            return None if layer.fits(own) else layer.prefix
        if official is None:
            return None
        path = layer.path
        while True:
            around = f"{path}." if path else ""
            for prefix in (f"{around}cnsn.{official}", f"{around}{official}"):
                if self.below(prefix):
                    return prefix
            if not path:
                return None
            path = path.rpartition(".")[0]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.found.left.items() if key.startswith(prefix)}

    def translate(self, layer: _Layer, prefix: str) -> bool:
        """Let a layer read its authors' form; on a copy, because reading can leave marks in a layer."""
        entries = self.below(prefix)
        module = layer.module
        assert isinstance(module, NormLayer)
        try:
            ours = copy.copy(module).from_official(entries)
        except (KeyError, ValueError, RuntimeError) as error:
            self.found.objections[prefix] = f"{layer.path}: {str(error.args[0] if error.args else error)[:400]}"
            return False
        if any(getattr(part, "height", 1.0) != 1.0 for part in module.modules()):
            self.found.refused.append(
                f"{layer.path} scales its gates so as to start as an identity, which its authors' do not: build it "
                "with their start (convert(..., preserve=False))"
            )
        if not layer.fits(ours):
            self.found.objections[prefix] = f"{layer.path}: what {prefix}* holds has other shapes than the layer"
            return False
        for name, tensor in ours.items():
            for key in layer.keys[name]:
                self.put(key, "", tensor, renamed=False)
                for original in entries.values():
                    if original.data_ptr() == tensor.data_ptr() and original.shape != tensor.shape:
                        self.found.reshaped.append((key, tuple(original.shape), tuple(tensor.shape)))
        for name in entries:
            del self.found.left[prefix + name]
        foreign = sorted({name.split(".")[0] for name in entries.keys() - layer.tensors.keys()})
        if prefix != layer.prefix:
            self.found.renamed.append((f"{prefix}*", f"{layer.prefix}*"))
        elif foreign:
            self.found.renamed.append((f"{prefix}{{{','.join(foreign)}}}*", f"{layer.prefix}*"))
        self.found.official.append((module, entries))
        return True

    def take_equal_names(self) -> None:
        for name, target in self.targets.items():
            tensor = self.found.left.get(name)
            if tensor is None or name in self.found.values:
                continue
            if same(tensor, target) or squeezed(tensor.shape) == squeezed(target.shape):
                self.put(name, name, tensor)
            else:
                self.found.misfits.append((name, tuple(tensor.shape), tuple(target.shape)))
                del self.found.left[name]

    def take_into_chains(self) -> None:
        for path, chain in self.modules.items():
            if not isinstance(chain, Chain):
                continue
            prefix = f"{path}." if path else ""
            entries = {name: value for name, value in self.below(prefix).items() if not name.split(".")[0].isdigit()}
            if not entries:
                continue
            members = [_Layer(f"{prefix}{name}", member, self.names) for name, member in chain.named_children()]
            # a member without running moments can do without those of the norm that it replaces
            reduced = {name: tensor for name, tensor in entries.items() if name not in RUNNING}
            for wanted in (entries, reduced):
                member = next((member for member in members if wanted and member.fits(wanted)), None)
                if member is not None:
                    for name, tensor in wanted.items():
                        for key in member.keys[name]:
                            self.put(key, prefix + name, tensor)
                    break
            else:
                ours = [member for member in members if isinstance(member.module, NormLayer) and member.tensors]
                for member in ours:
                    if self.translate(member, prefix):
                        break

    def take_instance_norms(self) -> None:
        blocks = {key.rpartition(".IN.")[0] for key in self.found.left if ".IN." in key}
        for block in sorted(blocks):
            entries = self.below(f"{block}.IN.")
            norms = [
                _Layer(path, module, self.names)
                for path, module in self.modules.items()
                if path.startswith(f"{block}.") and isinstance(module, InstanceNorm | _InstanceNorm)
            ]
            empty = [
                norm for norm in norms if not self.found.values.keys() & {k for ks in norm.keys.values() for k in ks}
            ]
            if len(empty) == 1 and empty[0].fits(entries):
                for name, tensor in entries.items():
                    for key in empty[0].keys[name]:
                        self.put(key, f"{block}.IN.{name}", tensor)

    def skip_running_moments(self) -> None:
        for key in list(self.found.left):
            path, _, name = key.rpartition(".")
            module = self.modules.get(path)
            if name in RUNNING and module is not None and kind_of(module) is not None:
                del self.found.left[key]
                self.found.skipped.append((key, "the norm there keeps none"))

    def skip_dead(self) -> None:
        """AugMix's ResNeXt normalises shortcuts that it then replaces; ours need not have those norms."""
        taken = {prefix.rpartition(".")[0] for _, prefix in self.found.renamed if ".identity." in prefix}
        for key in list(self.found.left):
            block, cnsn, _ = key.partition(".cnsn.")
            module = self.modules.get(block)
            if taken and cnsn and module is not None and getattr(module, "keeps_shape", True) is False:
                if isinstance(getattr(module, "identity", None), nn.Identity):
                    del self.found.left[key]
                    self.found.skipped.append((key, "the authors' network computes it and throws the result away"))


def squeezed(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _all_conv_units(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Where the layers of AugMix's AllConv, numbered in one list there, stand in ours."""
    numbers: dict[int, set[str]] = {}
    for key in state:
        found = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        if found:
            numbers.setdefault(int(found[1]), set()).add(found[2])
    units: dict[str, str] = {}
    convolutions = [n for n in sorted(numbers) if (w := state.get(f"features.{n}.weight")) is not None and w.dim() == 4]
    for unit, start in enumerate(convolutions):
        end = convolutions[unit + 1] if unit + 1 < len(convolutions) else max(numbers) + 1
        place = f"stage{unit // 3 + 1}.{unit % 3}"
        units[str(start)] = f"{place}.conv"
        norm = next((n for n in range(start, end) if "running_mean" in numbers.get(n, ())), end)
        for n in range(start + 1, end):
            if n in numbers:
                after = "conv" if n < norm else "norm" if n == norm + 1 else "activation"
                units[str(n)] = f"{place}.norm" if n == norm else f"{place}.after_{after}"
    return units
