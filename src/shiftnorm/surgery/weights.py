"""Weights from a file into a model, whoever wrote them, and a report of what went where."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shiftnorm.surgery.checkpoint import read_checkpoint, unwrap
from shiftnorm.surgery.convert import edits_of
from shiftnorm.surgery.matching import Match, Misfit, match
from shiftnorm.surgery.save import read_recipe

__all__ = ["LoadReport", "load_weights"]

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
# torch.compile, fully sharded training and recomputation put these anywhere into a name.
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
HEADS = ("fc", "classifier", "head", "heads", "last_linear", "linear", "aux_classifier")


@dataclass
class LoadReport:
    """What :func:`load_weights` did; ``print`` it.

    Example:
        >>> report = load_weights(nn.Linear(2, 1), {"module.weight": torch.ones(1, 2), "module.bias": torch.ones(1)})
        >>> print(report)
        Linear: 2 of 2 tensors from the given state (without the prefix 'module.')

    Args:
        source: name of the file.
        model: class of the model.
        loaded: how many tensors of the model were filled.
        total: how many it has.
        missing: names of the model's tensors that the file does not have.
        unexpected: names in the file, without the prefix, that the model does not have.
        reshaped: name, shape in the file and in the model, where only axes of one element differ.
        renamed: names in the file and in the model, where they differ; a star stands for all tensors of a layer.
        skipped: names in the file, and why they were left out.
        kept: names of tensors that the file cannot have, because it is a checkpoint of plain BatchNorms: what our norms
            have beyond them stays as it is.
        wrappers: keys under which the tensors lay in the file.
        prefix: what was taken off all names.
        converted: how many tensors changed their type, by "from → to".
        notes: choices that were made.
        warnings: what is probably wrong.
    """

    source: str
    model: str
    loaded: int = 0
    total: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[Misfit] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    wrappers: tuple[str, ...] = ()
    prefix: str = ""
    converted: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data.

        Example:
            >>> load_weights(nn.Linear(2, 1), nn.Linear(2, 1).state_dict()).to_json()["loaded"]
            2
        """
        return asdict(self)

    def __str__(self) -> str:
        inside = f" under {' / '.join(self.wrappers)}" if self.wrappers else ""
        without = f" (without the prefix {self.prefix!r})" if self.prefix else ""
        lines = [f"{self.model}: {self.loaded} of {self.total} tensors from {self.source}{inside}{without}"]
        lines += [f"  warning     {text}" for text in self.warnings]
        lines += [f"  note        {text}" for text in self.notes]
        lines += [f"  converted   {_count(count)} {kinds}" for kinds, count in self.converted.items()]
        lines += _rows("renamed", [f"{old} → {new}" for old, new in self.renamed])
        lines += _rows("reshaped", [f"{key} {old} → {new}" for key, old, new in self.reshaped])
        lines += _rows("skipped", [f"{key}: {reason}" for key, reason in self.skipped])
        lines += _rows("kept", self.kept)
        lines += _rows("missing", self.missing)
        lines += _rows("unexpected", self.unexpected)
        return "\n".join(lines)


def _count(tensors: int) -> str:
    return f"{tensors} tensor{'' if tensors == 1 else 's'}"


def _rows(label: str, texts: list[str], most: int = 8) -> list[str]:
    shown = texts if len(texts) <= most else [*texts[: most - 1], f"and {len(texts) - most + 1} more"]
    return [f"  {label if index == 0 else '':<11} {text}" for index, text in enumerate(shown)]


def load_weights(
    model: nn.Module,
    path_or_state: str | Path | Mapping[str, Any],
    *,
    strict: bool = True,
    prefix: str | None = None,
    ema: bool = False,
    head: Literal["error", "skip"] = "error",
) -> LoadReport:
    """Fill a model from a file of weights, translating names and shapes; all or nothing.

    It reads safetensors and torch's files without running anything in them, looks into the usual wrappers
    (``state_dict``, ``model``, ...), takes off the prefixes that wrapping leaves (``module.``, ``backbone.``, ...)
    where that makes names fit, and knows the files of IBN-Net, of CrossNorm and SelfNorm, of torchvision and of timm.
    A checkpoint of plain BatchNorms fits a model whose BatchNorms were converted: what its norms have beyond a
    BatchNorm stays as it is, unless the file has it for some layer of that class. ``num_batches_tracked`` may be
    absent.

    Example:
        >>> from shiftnorm.norms import IBN
        >>> official = {"bn1.IN.weight": torch.ones(2), "bn1.IN.bias": torch.ones(2)}
        >>> official |= {f"bn1.BN.{name}": torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}
        >>> model = nn.Sequential()
        >>> model.bn1 = IBN(4)
        >>> print(load_weights(model, {"state_dict": official}))
        Sequential: 4 of 5 tensors from the given state under state_dict
          renamed     bn1.{BN,IN}* → bn1.*

    Args:
        model: the model; its parameters stay the same objects, with their dtype and device.
        path_or_state: a file, or what it holds.
        strict: every tensor of the model must be filled, and every one of the file used; False loads what fits.
        prefix: take only the names that begin so, and take it off; None finds out, "" takes nothing off.
        ema: take the averaged weights where the file has both; by default only if it has no others.
        head: "skip" leaves the model's last layer as it is where the file's has another number of classes, another name
            or none.

    Returns:
        What went where.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, no checkpoint or unsafe, if shapes differ, or if names are missing or left
            over. The model is as before then.
        TypeError: if the model or the source is of another type.
        ModuleNotFoundError: if the file needs safetensors and that is not installed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_weights: expected a torch.nn.Module, got {type(model).__name__}.")
    if head not in ("error", "skip"):
        raise ValueError(f"load_weights: expected head 'error' or 'skip', got {head!r}.")
    if not isinstance(path_or_state, str | Path | Mapping):
        raise TypeError(
            f"load_weights: expected a path, or a mapping of tensors by name, got {type(path_or_state).__name__}."
        )
    model = _inner(model)
    is_file = isinstance(path_or_state, str | Path)
    name = str(path_or_state) if is_file else "the given state"
    found = unwrap(read_checkpoint(path_or_state) if is_file else path_or_state, name=name, ema=ema)
    report = LoadReport(name, type(model).__name__, wrappers=found.wrappers, notes=list(found.notes))
    targets: dict[str, Any] = model.state_dict(keep_vars=True)
    if any(isinstance(target, Tensor) and target.is_meta for target in targets.values()):
        raise ValueError(
            "load_weights: the model is on the meta device. Give it memory first: model.to_empty(device=...)."
        )

    taken, report.prefix = _best(model, _without_infixes(found.state, targets, report), prefix, report)
    others = {key.removeprefix(report.prefix): value for key, value in found.others.items()}
    extra = {key: value for key, value in others.items() if key in targets and key.endswith("_extra_state")}
    report.skipped += [(key, "no tensor") for key in others.keys() - extra.keys()]
    report.skipped += taken.skipped
    report.renamed += taken.renamed
    report.reshaped += taken.reshaped
    misfits = _without_head(model, taken, report) if head == "skip" else taken.misfits
    report.unexpected = _unexpected(taken, report, skips_head=head == "skip")
    report.missing = _missing(targets, taken, report, skips_head=head == "skip")
    kinds = _wrong_kinds(taken.values, targets)
    wrong = misfits or kinds or taken.refused or not taken.values
    if wrong or (strict and (report.missing or report.unexpected)):
        if is_file and (report.missing or report.unexpected) and _is_converted(Path(path_or_state)):
            raise ValueError(
                f"load_weights: {name} is a converted model, whose names {report.model} does not have; give it as "
                "MODEL (or read it with shiftnorm.surgery.load). Nothing was changed."
            )
        raise ValueError(_objection(model, report, taken, misfits, kinds))

    if is_file and not edits_of(model) and _is_converted(Path(path_or_state)):
        report.warnings.append("the file is a converted model, whose conversions are not made here; give it as MODEL")
    _check_numbers(taken.values, targets, report)
    state = OrderedDict({**taken.values, **extra})
    # what was translated has today's form, whatever wrote the file
    state._metadata = getattr(targets, "_metadata", {})  # pyright: ignore  (torch sets it likewise)
    for layer, entries in taken.official:
        layer.from_official(entries)
    model.load_state_dict(state, strict=False)
    tensors = [target for target in targets.values() if isinstance(target, Tensor)]
    report.loaded, report.total = len(taken.values), len(tensors)
    return report


def _is_converted(path: Path) -> bool:
    """Whether `save` wrote the file, of a model with edits."""
    try:
        return bool(read_recipe(path.expanduser())["edits"])
    except (ValueError, ModuleNotFoundError):
        return False  # weights alone; without safetensors, of torch's


def _inner(model: nn.Module) -> nn.Module:
    """The model inside what wraps it for several devices or compiles it."""
    inside = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    while (attribute := inside.get(type(model).__name__)) and isinstance(getattr(model, attribute, None), nn.Module):
        model = getattr(model, attribute)
    return model


def _without_infixes(state: Mapping[str, Tensor], targets: Iterable[str], report: LoadReport) -> dict[str, Tensor]:
    names = list(targets)
    foreign = [infix for infix in INFIXES if not any(infix in name for name in names)]
    cleaned: dict[str, Tensor] = {}
    for key, tensor in state.items():
        new = key
        for infix in foreign:
            new = new.replace(infix, "")
        cleaned[new] = tensor
    off = [infix for infix in foreign if any(infix in key for key in state)]
    report.notes += [f"took {infix!r} out of all names" for infix in off]
    return cleaned


def _best(model: nn.Module, state: Mapping[str, Tensor], prefix: str | None, report: LoadReport) -> tuple[Match, str]:
    if prefix:
        prefix = prefix.rstrip(".") + "."
        inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if not inside:
            tops = sorted({key.split(".")[0] for key in state})
            raise ValueError(
                f"load_weights: no name in {report.source} begins with {prefix!r}; names there begin with {tops[:8]}."
            )
        report.skipped += [(key, "outside the prefix") for key in state if not key.startswith(prefix)]
        return match(model, inside), prefix
    options = [""] if prefix == "" else _prefixes(state)
    matches = [(match(model, _stripped(state, option)), option) for option in options]
    # the first of equals: the shortest prefix
    return max(matches, key=lambda pair: (len(pair[0].values) + len(pair[0].misfits), len(pair[0].values)))


def _prefixes(names: Iterable[str]) -> list[str]:
    found = {""}
    for name in names:
        prefix = ""
        while any(name.startswith(prefix + known) for known in PREFIXES):
            prefix += name.removeprefix(prefix).split(".")[0] + "."
            found.add(prefix)
    return sorted(found, key=len)


def _stripped(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return inside | {key: tensor for key, tensor in state.items() if not key.startswith(prefix) and key not in inside}


def _is_head(key: str) -> bool:
    return any(part in HEADS for part in key.split("."))


def _without_head(model: nn.Module, taken: Match, report: LoadReport) -> list[Misfit]:
    """Move layers that differ in their number of outputs only from the misfits to what is skipped."""
    modules = dict(model.named_modules())
    rest: list[Misfit] = []
    for key, theirs, ours in taken.misfits:
        module = modules.get(key.rpartition(".")[0])
        if isinstance(module, nn.Linear | nn.Conv2d) and theirs[1:] == ours[1:]:
            report.skipped.append((key, f"{theirs[0]} outputs there, {ours[0]} here; the model's own stays"))
        else:
            rest.append((key, theirs, ours))
    return rest


def _unexpected(taken: Match, report: LoadReport, *, skips_head: bool) -> list[str]:
    if skips_head:
        report.skipped += [(key, "a head the model does not have") for key in taken.left if _is_head(key)]
    return [taken.older.get(key, key) for key in taken.left if not (skips_head and _is_head(key))]


def _missing(targets: Mapping[str, Any], taken: Match, report: LoadReport, *, skips_head: bool) -> list[str]:
    filled = {id(targets[key]) for key in taken.values}
    misfit = {key for key, _, _ in taken.misfits}
    there = {taken.extras[key] for key in taken.values if key in taken.extras}
    missing: list[str] = []
    for key, target in targets.items():
        absent = isinstance(target, Tensor) and id(target) not in filled and key not in misfit
        if not absent or key.endswith("num_batches_tracked"):
            continue
        layer = taken.extras.get(key)
        if (layer is not None and layer not in there) or (skips_head and _is_head(key)):
            report.kept.append(key)
        else:
            missing.append(key)
    return missing


def _wrong_kinds(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} ({tensor.dtype} in the file, {targets[key].dtype} in the model)"
        for key, tensor in values.items()
        if tensor.is_floating_point() != targets[key].is_floating_point() and not key.endswith("num_batches_tracked")
    ]


def _objection(model: nn.Module, report: LoadReport, taken: Match, misfits: list[Misfit], kinds: list[str]) -> str:
    shapes = [f"{key} {theirs} in the file, {ours} in the model" for key, theirs, ours in misfits]
    parts = [
        f"{len(items)} {what}: {', '.join(items[:6])}{', ...' if len(items) > 6 else ''}"
        for what, items in (
            ("of another shape", shapes),
            ("of another kind of number", kinds),
            ("missing in the file", report.missing),
            ("not in the model", report.unexpected),
        )
        if items
    ]
    parts += taken.refused[:1]
    open_names = [*taken.left, *(key for key, _, _ in misfits)]
    parts += [
        reason for beginning, reason in taken.objections.items() if any(key.startswith(beginning) for key in open_names)
    ][:3]
    heads = LoadReport("", "")
    if misfits and len(_without_head(model, taken, heads)) < len(misfits):
        parts.append("head='skip' leaves a last layer of another number of classes as it is")
    if not taken.values:
        parts.insert(0, "no tensor fits")
    elif report.missing or report.unexpected:
        parts.append("strict=False loads what fits")
    return f"load_weights: {report.source} does not fit {report.model}. " + "; ".join(parts) + ". Nothing was changed."


def _check_numbers(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], report: LoadReport) -> None:
    converted: Counter[str] = Counter()
    bad: list[str] = []
    for key, tensor in values.items():
        dtype = targets[key].dtype
        if tensor.dtype != dtype:
            converted[f"{tensor.dtype} → {dtype}".replace("torch.", "")] += 1
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(dtype)).all()):
            bad.append(key)
    report.converted = dict(converted)
    if bad:
        shown = ", ".join(bad[:6]) + (f" and {len(bad) - 6} more" if len(bad) > 6 else "")
        report.warnings.append(f"not all numbers are finite in {_count(len(bad))}: {shown}")
