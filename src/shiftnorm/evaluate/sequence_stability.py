"""How often a network changes its mind along perturbation sequences, measured so that it can stop and go on."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from shiftnorm.data.sequences import SequenceSet
from shiftnorm.evaluate.bootstrap import bootstrap
from shiftnorm.evaluate.borrow import borrowed, device_of, find_device
from shiftnorm.evaluate.fingerprint import batch_remarks, digest_model, norms_using_batch
from shiftnorm.evaluate.forward_pass import choose_amp, describe_pass, naming_sizes
from shiftnorm.evaluate.measure import scores_of
from shiftnorm.evaluate.normalization import Normalization, Normalize, choose_normalization, unknown_warning
from shiftnorm.evaluate.progress import Progress, plural
from shiftnorm.evaluate.record import describe_machine, describe_versions, read_json, write_json, write_text
from shiftnorm.evaluate.result import Estimate
from shiftnorm.evaluate.stability import (
    CIFAR10_P,
    IMAGENET_P,
    flips_by_sequence,
    mean_flip_rate,
    mean_top5_distance,
    top5_by_sequence,
)
from shiftnorm.evaluate.stability_result import STABILITY_FILE, PerturbationResult, StabilityResult
from shiftnorm.result_folder import check_writable

__all__ = ["measure_stability"]

_LEVEL: Final = 0.95


class _Measured(NamedTuple):
    flips: list[float]
    top5: list[float] | None
    frames: int


def measure_stability(
    model: nn.Module,
    data: SequenceSet,
    perturbations: str | Iterable[str] = "published",
    *,
    difficulty: int = 1,
    normalize: Normalize = "model",
    batch_size: int = 256,
    device: str | torch.device | None = None,
    amp: bool | str | torch.dtype | None = None,
    channels_last: bool = False,
    limit: int | None = None,
    out: str | Path | None = None,
    baseline: StabilityResult | None = None,
    on_missing: str = "raise",
    name: str | None = None,
    command: str | None = None,
    progress: bool = True,
    resamples: int = 1000,
) -> StabilityResult:
    """Measure flip probability and top-5 distance along the sequences of CIFAR-10-P, ImageNet-P and their like.

    A frame is compared with the one before it, and under noise, whose frames have no order, with the first. With
    ``out``, each finished perturbation is kept, and the same call goes on where it was stopped.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from shiftnorm.data.sequences import open_sequences
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "tilt.npy", np.random.default_rng(0).integers(0, 256, (6, 5, 32, 32, 3), np.uint8))
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        >>> result = measure_stability(model, open_sequences(folder), ["tilt"], normalize="half", progress=False)
        >>> result.rows[0].sequences, 0 <= result.mean_flips.value <= 100
        (6, True)

    Args:
        model: as for `robustness`; it is left as it was.
        data: what `open_sequences` returned.
        perturbations: ``"published"``, the ten that the published means are over, or names.
        difficulty: 1 to 3: how far apart compared frames are; noise takes it from the files NAME_2 and NAME_3.
        normalize: as for `robustness`.
        batch_size: frames per forward pass.
        device: where to run; default: where the model is.
        amp: as for `robustness`.
        channels_last: memory format of frames and weights.
        limit: at most so many sequences of each perturbation, the first ones.
        out: folder for ``stability.json``, ``stability.md`` and what is finished of them.
        baseline: another network's result on the same sequences, which mFR and mT5D divide by; published ones divide by
            AlexNet's, which is not in the benchmark's files.
        on_missing: of perturbations that are asked for and not there, ``"raise"``, or ``"skip"`` and name them.
        name: of the model in reports.
        command: how to repeat this; default: the command line of this process.
        progress: show progress and the time left on standard error.
        resamples: of the intervals over sequences; 0 for none.

    Returns:
        The result.

    Raises:
        ValueError: for an impossible setting, a missing perturbation, a model of another number of classes, or a folder
            that belongs to another evaluation.
        TypeError: for other data.
        OSError: if ``out`` cannot be written to.

    Cost:
        One forward pass per frame: 10 x 10,000 x 31 for CIFAR-10-P.
    """
    if not isinstance(data, SequenceSet):
        raise TypeError(f"measure_stability: expected what open_sequences returns as data, got {type(data).__name__}.")
    for what, value, least in (("batch_size", batch_size, 1), ("resamples", resamples, 0), ("limit", limit, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"measure_stability: {what} must be a whole number of at least {least}, got {value!r}.")
    if out is not None:
        check_writable(Path(out), "measure_stability")
    began = time.monotonic()
    chosen, notes = _choose(data, perturbations, difficulty, on_missing)
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    normalization = choose_normalization(model, normalize)
    place = device_of(model) if device is None else find_device(device, who="measure_stability")
    dtype = choose_amp(amp, place)
    sums = {plain: data.checksum(file) for plain, file in chosen.items()}
    settings: dict[str, Any] = {
        "perturbations": list(chosen),
        "difficulty": difficulty,
        "limit": limit,
        "preprocess": data.preprocess.name,
        **describe_pass(normalization, dtype, channels_last=channels_last, batch_size=batch_size, device=place),
    }
    counts = {plain: min(data.count(file), limit or sys.maxsize) for plain, file in chosen.items()}
    shown = Progress(len(chosen), max(counts.values()), shown=progress, unit="sequence", told="flips")
    measured: dict[str, _Measured] = {}
    with borrowed(model, device=place, channels_last=channels_last) as loan:
        batchwise = norms_using_batch(loan.model)
        notes += batch_remarks(batchwise, batch_size)
        deciding = ("difficulty", "limit", "preprocess", "mean", "std")
        same = {"model": digest_model(loan.model), **{key: settings[key] for key in deciding}}
        same |= {"bytes": normalization.bytes, "amp": settings["amp"], **({"batch": batch_size} if batchwise else {})}
        runner = _Runner(loan.model, data, normalization, place, dtype, channels_last, batch_size)
        try:
            for plain, file in chosen.items():
                identity = {**same, "perturbation": plain, "checksum": sums[plain]}
                held = _read(out, plain, identity)
                if held is None:
                    loan.reset()
                    held = runner.measure(file, plain, 1 if "noise" in plain else difficulty, limit, shown)
                    _write(out, plain, identity, held)
                measured[plain] = held
                shown.finish(plain, sum(held.flips) / len(held.flips))
        finally:
            shown.close()
    rows = [_row(plain, found, resamples) for plain, found in measured.items()]
    distances = [found.top5 for found in measured.values() if found.top5 is not None]
    compared = _against(baseline, rows, settings, sums, notes)
    result = StabilityResult(
        name or type(model).__name__,
        rows,
        _mean([found.flips for found in measured.values()], resamples),
        _mean(distances, resamples) if distances else None,
        **compared,
        data={**data.describe(), "checksums": sums},
        settings=settings,
        notes=notes
        + ([f"{len(data.skipped)} {plural('sequence', len(data.skipped))} could not be read."] if data.skipped else []),
        warnings=[text.replace("errors mean", "numbers mean") for text in unknown_warning(normalization)],
        versions=describe_versions(),
        machine=describe_machine(place.type, torch.get_num_threads()),
        command=command if command is not None else shlex.join(sys.argv),
        finished=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 3),
        folder=None if out is None else Path(out).resolve(),
    )
    if out is not None:
        result.save(Path(out) / STABILITY_FILE)
        write_text(Path(out) / STABILITY_FILE.replace(".json", ".md"), result.to_markdown())
    for text in result.warnings:
        warnings.warn(text, stacklevel=2)
    return result


def _choose(
    data: SequenceSet, perturbations: str | Iterable[str], difficulty: int, on_missing: str
) -> tuple[dict[str, str], list[str]]:
    """Plain names of perturbations with those of their files."""
    if isinstance(difficulty, bool) or difficulty not in (1, 2, 3):
        raise ValueError(f"measure_stability: difficulty must be 1, 2 or 3, got {difficulty!r}.")
    if on_missing not in ("raise", "skip"):
        raise ValueError(f"measure_stability: on_missing must be 'raise' or 'skip', got {on_missing!r}.")
    if perturbations == "published":
        # CIFAR-10-P is averaged with spatter in place of snow.
        names = list(CIFAR10_P if data.layout == "arrays" else IMAGENET_P)
    else:
        names = [perturbations] if isinstance(perturbations, str) else list(perturbations)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"measure_stability: expected names of perturbations, each once, got {names}.")
    files = {name: f"{name}_{difficulty}" if difficulty > 1 and "noise" in name else name for name in names}
    missing = [file for file in files.values() if file not in data.perturbations]
    kept = {name: file for name, file in files.items() if file not in missing}
    if missing and (on_missing == "raise" or not kept):
        raise ValueError(
            f"measure_stability: {data.name} in {data.path} has no {', '.join(missing)}; it has "
            f"{', '.join(data.perturbations)}. Get what is missing, name what is there with perturbations=, or measure "
            "the part that is there with on_missing='skip', which names the rest."
        )
    return kept, [f"Not in the files, and left out: {', '.join(missing)}."] if missing else []


class _Runner(NamedTuple):
    model: nn.Module
    data: SequenceSet
    normalization: Normalization
    device: torch.device
    amp: torch.dtype | None
    channels_last: bool
    batch_size: int

    @torch.inference_mode()
    def measure(self, file: str, name: str, stride: int, limit: int | None, shown: Progress) -> _Measured:
        """Flips and distances of every sequence."""
        flips: list[float] = []
        distances: list[float] = []
        longest, known = 0, True
        for sequences in self._groups(self.data.read(file, limit=limit)):
            tops = self._top(torch.cat(sequences)).split([len(each) for each in sequences])
            for top in tops:
                noise = "noise" in name
                flips += flips_by_sequence(top[None, :, 0], noise=noise, stride=stride).tolist()
                if known := top.shape[1] == 5:
                    distances += top5_by_sequence(top[None], noise=noise, stride=stride).tolist()
                longest = max(longest, len(top))
            shown.advance(len(sequences))
        if not flips:
            raise ValueError(f"measure_stability: not one sequence of {file} could be read.")
        return _Measured(flips, distances if known else None, longest)

    def _groups(self, sequences: Iterator[Tensor]) -> Iterator[list[Tensor]]:
        """Sequences of one size that fill about a batch."""
        group: list[Tensor] = []
        for each in sequences:
            if group and (sum(map(len, group)) >= self.batch_size or each.shape[1:] != group[0].shape[1:]):
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _scores(self, frames: Tensor) -> Tensor:
        x = self.normalization.apply(frames)
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        with nullcontext() if self.amp is None else torch.autocast(self.device.type, dtype=self.amp):
            return scores_of(self.model(x))

    def _top(self, frames: Tensor) -> Tensor:
        """(frames, 5) classes from the best on, fewer if there are fewer."""
        found: list[Tensor] = []
        for part in frames.split(self.batch_size):
            part = part.to(self.device)
            with naming_sizes(self._scores, part[:2], who="measure_stability"):
                scores = self._scores(part)
            if self.data.classes is not None and scores.shape[1] != self.data.classes:
                raise ValueError(
                    f"measure_stability: the model has {scores.shape[1]} outputs, but {self.data.name} is for "
                    f"{self.data.classes} classes. Is it the data set that the model was trained for?"
                )
            if bool(scores.isnan().any()):
                raise ValueError("measure_stability: a score is NaN. Check the model and its normalization.")
            found.append(scores.float().topk(min(5, scores.shape[1]), sorted=True).indices.cpu())
        return torch.cat(found)


def _row(name: str, found: _Measured, resamples: int) -> PerturbationResult:
    distance = None if found.top5 is None else _mean([found.top5], resamples)
    return PerturbationResult(name, len(found.flips), found.frames, _mean([found.flips], resamples), distance)


def _mean(rows: list[list[float]], resamples: int) -> Estimate:
    """The mean of the rows' means; an interval where the rows are of the same sequences."""
    values = [torch.tensor(row, dtype=torch.float64) for row in rows]
    mean = torch.stack([row.mean() for row in values]).mean().item()
    if not resamples or len(values[0]) < 2 or len({len(row) for row in values}) > 1:
        return Estimate(mean)
    return Estimate(mean, *bootstrap(torch.stack(values), resamples=resamples, level=_LEVEL)[1:3])


def _against(
    baseline: StabilityResult | None,
    rows: list[PerturbationResult],
    settings: dict[str, Any],
    sums: dict[str, str],
    notes: list[str],
) -> dict[str, Any]:
    """mFR and mT5D, or a note why there are none."""
    if baseline is None:
        notes.append(
            "No mFR and mT5D: they are in percent of a baseline's, for published numbers AlexNet's on the same "
            "sequences. Measure it and pass its result as baseline=."
        )
        return {}
    flips = {row.perturbation: row.flips.value for row in rows}
    reasons = [f"another {key}" for key in ("difficulty", "limit") if baseline.settings.get(key) != settings[key]]
    # Results of before it was a setting have it among the data.
    before = {**baseline.data, **baseline.settings}.get("preprocess")
    if before is not None and before != settings["preprocess"]:
        reasons.append(f"another preprocess ({before}, not {settings['preprocess']})")
    theirs = baseline.data.get("checksums", {})
    if others := [name for name in flips if name in baseline.flips and theirs.get(name, sums[name]) != sums[name]]:
        reasons.append(f"other sequences of {', '.join(others)}")
    if set(baseline.flips) != set(flips):
        reasons.append(f"other perturbations ({', '.join(sorted(set(baseline.flips) ^ set(flips)))})")
    if still := [name for name, value in baseline.flips.items() if not value > 0]:
        reasons.append(f"no flips under {', '.join(still)}")
    if reasons:
        notes.append(f"No mFR and mT5D: the baseline {baseline.name!r} has {'; '.join(reasons)}.")
        return {}
    distances = {row.perturbation: row.top5_distance.value for row in rows if row.top5_distance is not None}
    comparable = distances.keys() == baseline.top5_distances.keys() and all(
        v > 0 for v in baseline.top5_distances.values()
    )
    return {
        "mfr": mean_flip_rate(flips, baseline.flips),
        "mt5d": mean_top5_distance(distances, baseline.top5_distances) if distances and comparable else None,
        "baseline": baseline.name,
    }


def _file(out: str | Path, name: str) -> Path:
    return Path(out) / "perturbations" / f"{name}.json"


def _read(out: str | Path | None, name: str, identity: dict[str, Any]) -> _Measured | None:
    if out is None or not _file(out, name).is_file():
        return None
    content = read_json(_file(out, name))
    before = content.get("identity")
    if before != json.loads(json.dumps(identity)):
        changed = [key for key in identity if not isinstance(before, dict) or before.get(key) != identity[key]]
        raise ValueError(
            f"measure_stability: {out} holds another evaluation, with another {', '.join(changed)}. Choose another "
            "folder for out, or go back to the same model, data and settings to go on with it."
        )
    return _Measured(*(content[key] for key in _Measured._fields))


def _write(out: str | Path | None, name: str, identity: dict[str, Any], found: _Measured) -> None:
    if out is not None:
        write_json(_file(out, name), {"identity": identity, **found._asdict()})
