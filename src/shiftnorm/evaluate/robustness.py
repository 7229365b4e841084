"""What shift costs a model: its errors on clean and corrupted images, measured so that it can stop and go on."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shiftnorm.data.corrupted_set import CorruptedSet
from shiftnorm.data.dataset import Dataset
from shiftnorm.evaluate.assemble import LEVEL, measure_baseline, remark_on_chance, summarize_cells
from shiftnorm.evaluate.baselines import Baseline
from shiftnorm.evaluate.borrow import Borrowed, borrowed, device_of, find_device
from shiftnorm.evaluate.cell_folder import CellFolder
from shiftnorm.evaluate.cells import CLEAN
from shiftnorm.evaluate.examples import show_examples
from shiftnorm.evaluate.file_cells import check_files, describe_files, files_of, keep_common
from shiftnorm.evaluate.measure import Images, Measurer, as_dataset
from shiftnorm.evaluate.normalization import Normalize, unknown_warning
from shiftnorm.evaluate.outcome import CellOutcome, merge
from shiftnorm.evaluate.plan import Plan, make_plan, refuse_collectives
from shiftnorm.evaluate.progress import Progress, plural
from shiftnorm.evaluate.ranks import Ranks
from shiftnorm.evaluate.record import describe_machine, describe_versions
from shiftnorm.evaluate.result import RESULT_FILE, Result

__all__ = ["robustness"]


def robustness(
    model: nn.Module,
    data: Any,
    corruptions: str | Iterable[str] = "common",
    severities: Iterable[int] = range(1, 6),
    seed: int = 0,
    *,
    normalize: Normalize = "model",
    constants: str | None = None,
    storage: str = "default",
    frost_dir: str | Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device | None = None,
    amp: bool | str | torch.dtype | None = None,
    channels_last: bool = False,
    out: str | Path | None = None,
    baseline: str | Baseline | Result | None = None,
    name: str | None = None,
    command: str | None = None,
    process_group: Any = None,
    progress: bool = True,
    bootstrap: int = 1000,
    examples: bool = True,
) -> Result:
    """Measure a model on clean images and under every corruption and severity.

    The images are corrupted on the model's device, each by random numbers of its own, so neither the batch size nor the
    number of processes changes them. With ``out``, each finished cell is kept: killed at any moment and run again, the
    evaluation goes on with the next cell and ends with the same numbers.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> result = robustness(model, (images, torch.arange(20) % 2), ["fog", "contrast"], [1, 5], normalize="half",
        ...                     progress=False)
        >>> result.corruptions, result.severities, len(result.cells)
        (['fog', 'contrast'], [1, 5], 4)

    Args:
        model: maps (N, 3, H, W) normalized images to (N, classes) scores (or an object with ``logits``). It is used in
            eval mode, and left as it was: modes, weights, buffers, devices, hooks, states of the random generators.
        data: a `Dataset` (`open_dataset`), an `ImageSet`, or (images, labels), which are corrupted here; or a
            `CorruptedSet` (`open_corrupted`), whose corruptions are read from files.
        corruptions: ``"common"`` (the 15 of the published sets), ``"all"`` (19), or names. Without ``frost_dir``,
            ``frost_procedural`` stands for ``frost`` in the first two.
        severities: 1 to 5.
        seed: of the corruptions.
        normalize: what is done to images before the model: ``"model"``, what the model says itself
            (``input_normalization``), else timm or torchvision of its weights, else nothing, which is warned of; or
            ``"imagenet"``, ``"half"``, ``"none"``, ``"bytes"``, or (mean, std). On clean images it is compared with the
            model's running statistics, and a wrong one is warned of.
        constants: named set of the corruptions' strengths. None takes the set that was published for images of this
            size, and the result's notes say which; for other sizes it has to be named.
        storage: ``"default"`` (as the published set of the constants), ``"jpeg85"`` or ``"none"``.
        frost_dir: where the authors' photographs of frost are.
        batch_size: images per forward pass.
        workers: processes that decode images from files.
        device: where to run; default: where the model is.
        amp: run under autocast: True for the device's default dtype, or a dtype or its name.
        channels_last: memory format of images and weights.
        out: folder for ``cells/``, ``identity.json`` and ``result.json``. It belongs to one model, data set, seed and
            settings; more corruptions and severities may be added later.
        baseline: for mCE and relative mCE: a name such as ``"AlexNet"``, a `Baseline`, or another network's `Result`.
        name: of the model in reports; default: its source's name or its class.
        command: how to repeat this, for the report; default: the command line of this process.
        process_group: ranks that share the work, each a part of the images; None takes the default group where
            torch.distributed is initialised (all its ranks must then call this); ``"alone"`` is this process.
        progress: show progress and the time left on standard error.
        bootstrap: resamples for the intervals over images; 0 for none.
        examples: keep a few small corrupted images for the report.

    Returns:
        The result, on every rank.

    Raises:
        ValueError: for an impossible setting, a folder that belongs to another evaluation, scores that are NaN, a
            model whose outputs are not the classes of the data, or corruptions that are not in the files.
        TypeError: for data or a model's output of an unknown kind.
        KeyError: for an unknown baseline.
        OSError: if ``out`` cannot be written to.
        RuntimeError: on the other ranks if one fails.

    Cost:
        One forward pass per image and cell, the corruption, and 29 bytes per image and cell. ``workers`` help where
        images are files: decoded images are kept for the next cell up to 2 GiB.
    """
    began = time.monotonic()
    ranks = Ranks(process_group)
    # Its forward exchanges buffers, so ranks with fewer batches would keep the others waiting.
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    files = data if isinstance(data, CorruptedSet) else None

    def prepare() -> tuple[Dataset, Plan]:
        opened = as_dataset(data if files is None else files.clean)
        if ranks.size > 1:
            refuse_collectives(model)
        plan = make_plan(
            model,
            opened,
            corruptions,
            severities,
            files=files,
            seed=seed,
            normalize=normalize,
            constants=constants,
            storage=storage,
            frost_dir=frost_dir,
            batch_size=batch_size,
            device=device_of(model) if device is None else find_device(device, who="robustness"),
            amp=amp,
            channels_last=channels_last,
            bootstrap=bootstrap,
            ranks=ranks.size,
        )
        measure_baseline(baseline, plan.names, plan.severities, classes=len(opened.classes), settings=plan.settings)
        return opened, plan

    opened, plan = ranks.agree("preparation", prepare)
    _check_same(ranks, plan, files)

    def open_folder() -> CellFolder | None:
        if out is None or ranks.rank != 0:
            return None
        _refuse_inside(Path(out), opened)
        return CellFolder(out, plan.identity, images=len(opened))

    folder = ranks.agree("opening out", open_folder)
    mine = torch.arange(ranks.rank, len(opened), ranks.size)
    with _leaving_nothing(folder), borrowed(model, device=plan.device, channels_last=channels_last) as loan:
        measurer = Measurer(
            loan,
            opened,
            Images(opened, mine, batch_size, workers),
            plan.normalization,
            plan.constants or "",
            seed=seed,
            storage=plan.storage or "default",
            frost_dir=frost_dir,
            device=plan.device,
            amp=plan.amp,
            channels_last=channels_last,
            check=ranks.rank == 0,
            files=files,
            named=not isinstance(data, tuple | list),
        )
        measured, found = _sweep(measurer, plan, ranks, folder, progress)

        def finish() -> Result | None:
            if ranks.rank != 0:
                return None
            cells, lost = keep_common(measured, opened)
            shown = show_examples(measurer, plan.names, plan.severities) if examples else []
            read, digest = describe_files(files, plan.keys[1:])
            fingerprint = {**{key: str(value) for key, value in plan.identity.items()}, **digest}
            baseline_used, entry, remarks = measure_baseline(
                baseline,
                plan.names,
                plan.severities,
                classes=len(opened.classes),
                settings=plan.settings,
                images=len(cells[CLEAN]),
                fingerprint=fingerprint,
            )
            summary = summarize_cells(cells, len(opened.classes), resamples=bootstrap, baseline=baseline_used)
            guessed = remark_on_chance(summary["clean"].error, len(opened.classes))
            result = Result(
                name=name or plan.model_name,
                **summary,
                baseline=entry,
                classes=list(opened.classes),
                data=_plain(opened.describe() if files is None else {**files.describe(), **read}),
                settings=_plain({**plan.settings, "level": LEVEL}),
                cost={**found["cost"], **_size_of(loan), "seconds": round(time.monotonic() - began, 3)},
                notes=[
                    *(*guessed, *plan.notes, *found["notes"], *remarks, *_skipped(opened), *lost),
                    *(folder.remarks if folder else []),
                ],
                warnings=[*unknown_warning(plan.normalization), *found["warnings"]],
                versions=describe_versions(),
                machine=describe_machine(plan.device.type, torch.get_num_threads()),
                command=command if command is not None else shlex.join(sys.argv),
                finished=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                fingerprint=fingerprint,
                examples=shown,
                folder=None if folder is None else folder.path.resolve(),
            )
            if folder is not None:
                result.save(folder.path / RESULT_FILE)
            return result

        result = ranks.share(ranks.agree("summarizing", finish))
    assert result is not None
    for text in result.warnings if ranks.rank == 0 else ():
        warnings.warn(text, stacklevel=2)
    return result


def _refuse_inside(out: Path, data: Dataset) -> None:
    source = data.provenance.path
    if data.files() is not None and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"robustness: {out} is inside {source}, where the images come from, and results there would be taken for "
            "images the next time. Choose another folder for out."
        )


@contextmanager
def _leaving_nothing(folder: CellFolder | None) -> Iterator[None]:
    """Let an evaluation that fails before its first cell, as one of another network's images, leave no files."""
    try:
        yield
    except Exception:  # any: it goes on to the caller
        if folder is not None:
            folder.abandon()
        raise


def _check_same(ranks: Ranks, plan: Plan, files: CorruptedSet | None) -> None:
    """Refuse ranks that measure different things; their parts would be mixed."""

    def describe() -> dict[str, Any]:
        # Each may read a copy of its own.
        copies = describe_files(files, plan.keys[1:])[0] if ranks.size > 1 else {}
        sums = {f"checksum of {name}": value for found in copies.values() for name, value in found.items()}
        return {**plan.identity, "cells": [list(key) for key in plan.keys], **sums}

    ours = ranks.agree("describing the corrupted files", describe)
    first = ranks.share(ours)

    def compare() -> None:
        differing = [key for key in ours if ours[key] != first.get(key)]
        if differing:
            raise ValueError(f"robustness: rank {ranks.rank} and rank 0 have another {', '.join(differing)}.")

    ranks.agree("comparing the ranks' settings", compare)


def _sweep(
    measurer: Measurer, plan: Plan, ranks: Ranks, folder: CellFolder | None, progress: bool
) -> tuple[dict[tuple[str, int], CellOutcome], dict[str, Any]]:
    """Every cell, on rank 0, and what was found along with the clean one; elsewhere empty."""
    cells: dict[tuple[str, int], CellOutcome] = {}
    found: dict[str, Any] = {"cost": {}, "notes": [], "warnings": []}

    def resume() -> list[tuple[str, int]]:
        for key in plan.keys if folder is not None else ():
            held = folder.read(key) if folder is not None else None
            if held is not None:
                check_files(measurer.files, key, held[1])
                cells[key] = held[0]
                if key == CLEAN:
                    found.update(held[1].get("found", {}))
        return [key for key in plan.keys if key not in cells]

    todo = ranks.share(ranks.agree("reading finished cells", resume))
    shown = Progress(
        len(todo), len(measurer.images), done=len(plan.keys) - len(todo), shown=progress and ranks.rank == 0
    )
    try:
        for key in todo:
            part = ranks.agree(f"the cell {key[0]} {key[1]}", lambda key=key: measurer.measure(key, shown))
            parts = [part for part in ranks.gather(part) if part is not None]

            def keep(key: tuple[str, int] = key, parts: list[CellOutcome] = parts) -> None:
                if ranks.rank != 0:
                    return
                if not parts:
                    raise ValueError("robustness: not one image could be read.")
                outcome = merge(parts)
                _check_images(cells, key, outcome, measurer)
                if key == CLEAN:
                    found.update(_found(measurer))
                if folder is not None:
                    facts = {"found": found} if key == CLEAN else {}
                    folder.write(key, outcome, {**facts, **files_of(measurer.files, key)})
                cells[key] = outcome
                shown.finish(f"{key[0]} {key[1]}" if key != CLEAN else "clean", outcome.error)

            ranks.agree(f"keeping the cell {key[0]} {key[1]}", keep)
    finally:
        shown.close()
    return {key: cells[key] for key in plan.keys if key in cells}, found


def _check_images(
    cells: dict[tuple[str, int], CellOutcome], key: tuple[str, int], outcome: CellOutcome, measurer: Measurer
) -> None:
    images = len(measurer.data)
    if len(outcome) > images or (len(outcome) and int(outcome.index.max()) >= images):
        raise RuntimeError(
            f"robustness: {key[0]} {key[1]} has {len(outcome)} outcomes for {images} {plural('image', images)}."
        )
    if measurer.files is not None:  # each cell has files of its own, and may lack some
        return
    first = cells.get(CLEAN)
    if first is not None and not torch.equal(first.index, outcome.index):
        raise RuntimeError(
            f"robustness: in the cell {key[0]} {key[1]} other images could be read than in the clean one "
            f"({len(outcome)} and {len(first)} of {images}). Did files change or a disk fail? Run again."
        )


def _found(measurer: Measurer) -> dict[str, Any]:
    """What is learned along with the clean cell."""
    whole = [(seconds, count) for seconds, count in measurer.times if count == measurer.images.batch_size]
    times = whole[1:] or whole or measurer.times  # the first pass warms up
    each = sorted(1000 * seconds / count for seconds, count in times)
    check = measurer.found
    return {
        "cost": {
            "ms_per_image": round(each[len(each) // 2], 6) if each else None,
            "peak_memory_mb": None if measurer.peak is None else round(measurer.peak / 2**20, 1),
            "input_distance": None if check is None or check.distance is None else round(check.distance, 6),
        },
        "notes": [] if check is None else check.notes,
        "warnings": [] if check is None else check.warnings,
    }


def _size_of(loan: Borrowed) -> dict[str, int]:
    parameters = list(loan.model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "parameter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    }


def _skipped(data: Dataset) -> list[str]:
    if not data.skipped:
        return []
    listed: Sequence[Any] = data.skipped[:5]
    more = f"; and {len(data.skipped) - 5} more" if len(data.skipped) > 5 else ""
    few = f"{len(data.skipped)} files or classes were" if len(data.skipped) > 1 else "1 file or class was"
    return [f"{few} left out: {'; '.join(map(str, listed))}{more}."]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
