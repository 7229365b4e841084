"""The settings of an evaluation, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from shiftnorm.data.contents import contents_of
from shiftnorm.data.corrupted_set import CorruptedSet
from shiftnorm.data.corruptions import SEVERITIES, choose_corruptions
from shiftnorm.data.dataset import Dataset
from shiftnorm.evaluate.cells import CLEAN
from shiftnorm.evaluate.corrupted_pixels import make_pixels, read_pixels
from shiftnorm.evaluate.fingerprint import CONTENTS, batch_remarks, digest_data, digest_model, norms_using_batch
from shiftnorm.evaluate.forward_pass import choose_amp, describe_pass
from shiftnorm.evaluate.normalization import Normalization, Normalize, choose_normalization
from shiftnorm.surgery import source_of

__all__ = ["Plan", "make_plan", "refuse_collectives"]

_TRIED: Final = 64


@final
@dataclass(frozen=True)
class Plan:
    """What is measured, and what decides its numbers.

    Example:
        >>> from shiftnorm.evaluate.measure import as_dataset
        >>> data = as_dataset((torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4).long()))
        >>> plan = make_plan(nn.Flatten(), data, "fog", [1], normalize="half")
        >>> plan.keys, plan.constants
        ([('clean', 0), ('fog', 1)], 'cifar32')

    Args:
        names: of the corruptions.
        severities: rising.
        normalization: before the model.
        constants: named set of the strengths; None where files do not say.
        storage: "jpeg85" or "none"; None where files do not say.
        amp: dtype of autocast, or None.
        device: where the model runs.
        model_name: what to call the model.
        settings: for the result.
        identity: what decides the cells' numbers, as plain data; cells with another identity do not mix.
        notes: for the result.
    """

    names: list[str]
    severities: list[int]
    normalization: Normalization
    constants: str | None
    storage: str | None
    amp: torch.dtype | None
    device: torch.device
    model_name: str
    settings: dict[str, Any]
    identity: dict[str, Any]
    notes: list[str]

    @property
    def keys(self) -> list[tuple[str, int]]:
        """The cells in the order they are measured in.

        Example:
            >>> Plan([], [], None, "", "", None, None, "", {}, {}, []).keys
            [('clean', 0)]
        """
        return [CLEAN, *((name, severity) for name in self.names for severity in self.severities)]


def make_plan(
    model: nn.Module,
    data: Dataset,
    corruptions: str | Iterable[str],
    severities: Iterable[int],
    *,
    files: CorruptedSet | None = None,
    seed: int = 0,
    normalize: Normalize = "model",
    constants: str | None = None,
    storage: str = "default",
    frost_dir: str | Path | None = None,
    batch_size: int = 256,
    device: torch.device | None = None,
    amp: bool | str | torch.dtype | None = None,
    channels_last: bool = False,
    bootstrap: int = 1000,
    ranks: int = 1,
) -> Plan:
    """Check all settings, and take the digests of the model and the data.

    Example:
        >>> from shiftnorm.evaluate.measure import as_dataset
        >>> data = as_dataset((torch.zeros(4, 3, 40, 40, dtype=torch.uint8), torch.zeros(4).long()))
        >>> make_plan(nn.Flatten(), data, "fog", [1], normalize="half")
        Traceback (most recent call last):
        ...
        ValueError: robustness: there is no published set of strengths for 40x40 images. Name one, constants= ...

    Args:
        model: as for `robustness`.
        data: opened.
        corruptions: as for `robustness`, and so all that follow.
        severities: see there.
        files: where the corrupted images are read from, if they are not made; ``data`` are its clean ones.
        seed: see there.
        normalize: see there.
        constants: see there.
        storage: see there.
        frost_dir: see there.
        batch_size: see there.
        device: where the model will run.
        amp: see there.
        channels_last: see there.
        bootstrap: see there.
        ranks: how many processes share the work.

    Returns:
        The plan.

    Raises:
        ValueError: for an impossible setting.
        TypeError: for a seed or batch size that is no whole number.
    """
    device = torch.device("cpu") if device is None else device
    levels = _severities(severities)
    for what, value, least in (("batch_size", batch_size, 1), ("bootstrap", bootstrap, 0), ("seed", seed, None)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"robustness: {what} must be a whole number, got {value!r}.")
        if least is not None and value < least:
            raise ValueError(f"robustness: {what} must be at least {least}, got {value}.")
    if files is None:
        names = list(choose_corruptions(corruptions, frost_dir=frost_dir))
        height, width = _size_of(data)
        pixels = make_pixels(names, height, width, constants=constants, storage=storage, frost_dir=frost_dir)
        notes = pixels.notes
    else:
        names, missing = files.select(corruptions, levels)
        height, width = _size_of(data)
        pixels = read_pixels(files, names, levels, constants=constants, storage=storage, frost_dir=frost_dir)
        notes = [*pixels.notes, *missing]
    normalization = choose_normalization(model, normalize)
    dtype = choose_amp(amp, device)
    settings = {
        "corruptions": names,
        "severities": levels,
        "seed": seed,
        **pixels.settings,
        **describe_pass(normalization, dtype, channels_last=channels_last, batch_size=batch_size, device=device),
        "ranks": ranks,
        "bootstrap": bootstrap,
        "size": [height, width],
    }
    contents = contents_of(data)
    identity = {
        "model": digest_model(model),
        "data": digest_data(data),
        **({} if contents is None else {CONTENTS: contents}),
        **pixels.identity,
        **{key: settings[key] for key in ("seed", "mean", "std", "bytes", "amp")},
    }
    if batchwise := _batchwise(model):
        notes += batch_remarks(batchwise, batch_size)
        identity.update({"batch size": batch_size, "ranks": ranks})
    return Plan(
        names,
        levels,
        normalization,
        pixels.constants,
        pixels.storage,
        dtype,
        device,
        _name_of(model),
        settings,
        identity,
        notes,
    )


def refuse_collectives(model: nn.Module) -> None:
    """Refuse a model whose forward pass waits for other ranks: their numbers of batches differ.

    Example:
        >>> refuse_collectives(nn.Linear(2, 2))

    Args:
        model: that each rank holds whole.

    Raises:
        ValueError: if its weights are sharded over ranks, or a norm pools the batch over ranks.
    """
    if any(hasattr(parameter, "placements") for parameter in model.parameters()) or any(
        type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()
    ):
        raise ValueError(
            "robustness: the model's weights are sharded over ranks. Gather them into a model of its own on every rank."
        )
    modules = dict(model.named_modules())
    pooled = [path for path in _batchwise(model) if getattr(modules[path], "process_group", None) is not None]
    if pooled:
        raise ValueError(
            f"robustness: the norm {pooled[0]!r} pools the moments of the batch over ranks, whose batches differ in "
            "number. Set its process_group to None, or evaluate in one process."
        )


def _severities(severities: Iterable[int]) -> list[int]:
    levels = [severities] if isinstance(severities, int) else list(severities)
    if not levels or any(isinstance(level, bool) or level not in SEVERITIES for level in levels):
        raise ValueError(f"robustness: severities must be among 1 to 5, got {levels}.")
    if len(set(levels)) < len(levels):
        raise ValueError(f"robustness: each severity once, got {levels}.")
    return sorted(levels)


def _size_of(data: Dataset) -> tuple[int, int]:
    tried = min(len(data), _TRIED)
    # A loader draws a seed for its workers.
    with torch.random.fork_rng(devices=[]):
        for batch in data.batches(1, indices=range(tried)):
            return batch.images.shape[2], batch.images.shape[3]
    raise ValueError(f"robustness: not one of the first {tried} images of {data.name!r} could be read.")


def _batchwise(model: nn.Module) -> list[str]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return norms_using_batch(model)
    finally:
        for module, training in modes:
            module.training = training


def _name_of(model: nn.Module) -> str:
    inner = getattr(model, "_orig_mod", model)
    source = source_of(inner)
    return str(source["name"]) if source is not None else type(inner).__name__
