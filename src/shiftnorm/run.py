"""The composition root: a recipe becomes runs, their records, and a report."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch

from shiftnorm.data import corrupt
from shiftnorm.evaluate.record import (
    Record,
    describe_machine,
    describe_versions,
    read_json,
    read_record,
    write_json,
    write_record,
    write_text,
)
from shiftnorm.evaluate.report import render_report
from shiftnorm.evaluate.sweep import CONSTANTS
from shiftnorm.evaluate.table import Row, build_rows, to_markdown
from shiftnorm.evaluate.timing import StepTime, time_steps
from shiftnorm.recipe import CompareRecipe
from shiftnorm.result_folder import COMPARISON, check_owner
from shiftnorm.trained import FOLDER, write_network
from shiftnorm.training import Data, load_data, make_step, train_and_evaluate
from shiftnorm.variants import REFERENCE, VARIANTS
from shiftnorm.workers import Job, Outcome, run_jobs


@dataclass(frozen=True)
class Comparison:
    """What `compare` made.

    Example:
        >>> Comparison(rows=[], table="", report=Path("report.html"), records=[]).failed
        []

    Args:
        rows: one per norm.
        table: the rows as Markdown.
        report: path of the HTML page.
        records: one per run, finished or failed.
    """

    rows: list[Row]
    table: str
    report: Path
    records: list[Record]

    @property
    def failed(self) -> list[Record]:
        """Records of the runs that failed."""
        return [record for record in self.records if not record.complete]


def compare(
    recipe: CompareRecipe,
    *,
    data_dir: str | Path | None = None,
    out_dir: str | Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    say: Callable[[str], object] = print,
    debug: bool = False,
) -> Comparison:
    """Train every norm with every seed, evaluate each under corruptions, and write records and a report.

    The trained network of every run is kept in ``networks/``, where ``shiftnorm evaluate`` finds it. Finished runs are
    found again by the digest of all that decides their numbers and are not repeated; failed ones are. Nothing in the
    directory is deleted. With worker processes, a script must call this under ``if __name__ == "__main__":``, as always
    with the spawn method.

    Example:
        >>> import tempfile
        >>> from shiftnorm.recipe import load_recipe
        >>> recipe = load_recipe("compare-digits").changed(
        ...     norms=["BatchNorm"], seeds=[0], limit=4, epochs=1, corruptions=["contrast"], workers=0
        ... )
        >>> result = compare(recipe, out_dir=tempfile.mkdtemp(), say=lambda line: None)
        >>> result.rows[0].norm, result.failed
        ('BatchNorm', [])

    Args:
        recipe: what to compare.
        data_dir: images in ImageFolder layout; None for the embedded digits.
        out_dir: where results go; None for ``runs/compare-<name of the data>``.
        on_error: what becomes of files that cannot be read as images: "raise", or "skip", named and in the records.
        say: gets lines of text on what happens.
        debug: also say the tracebacks of failed runs.

    Returns:
        Table, report and records; `failed` lists what did not finish.

    Raises:
        FileNotFoundError, ValueError: for a directory that is missing or holds no usable images, or one for results
            that holds those of something else.
        KeyboardInterrupt: when interrupted; finished runs are kept.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ValueError('recipe field device: expected a CUDA device for "cuda", found none; use "cpu".')
    began = time.perf_counter()
    data = load_data(recipe, None if data_dir is None else Path(data_dir), on_error=on_error)
    for each in data.left_out:
        say(f"left out: {each}")
    facts = data.describe()
    out = Path("runs", "compare-" + re.sub(r"[^\w.-]+", "-", facts["name"])) if out_dir is None else Path(out_dir)
    check_owner(out, COMPARISON, "compare")
    out.mkdir(parents=True, exist_ok=True)
    versions, machine = describe_versions(), describe_machine(recipe.device, recipe.threads)

    # By seed first: an interrupted comparison then has whole rounds of norms rather than a few norms only.
    paths: dict[Job, tuple[str, Path]] = {}
    for seed in recipe.seeds:
        for norm in recipe.norms:
            key = recipe.run_key(norm, seed, facts["sha256"], versions["shiftnorm"])
            paths[Job(norm, seed)] = key, out / "records" / f"{norm}-seed{seed}-{key}.json"
    records = {job: record for job, (key, path) in paths.items() if (record := _find_record(path, key, say))}
    jobs = [job for job in paths if job not in records]
    if records:
        say(f"{len(records)} of {len(paths)} runs are finished already, {len(jobs)} to go.")

    def finish(job: Job, outcome: Outcome) -> None:
        key, path = paths[job]
        results = dict(outcome.results)
        network = results.pop("network", None)
        if network is not None:
            # before the record, which says that the run is finished
            write_network(out / FOLDER / f"{path.stem}.safetensors", network)
        records[job] = Record(
            key=key,
            norm=job.norm,
            seed=job.seed,
            status="failed" if outcome.message else "ok",
            message=outcome.message,
            recipe=recipe.to_dict(),
            data=facts,
            versions=versions,
            machine=machine,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **results,
        )
        write_record(path, records[job])
        if outcome.trace and debug:
            say(outcome.trace)

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        run_jobs(train_and_evaluate, recipe, data, jobs, finish, workers=_count_workers(recipe, len(jobs)), say=say)
        done = [record for job, record in records.items() if record.complete]
        step_times = _load_or_time_steps(recipe, data, done, facts, versions, machine, out, say)
    finally:
        torch.set_num_threads(threads)

    ordered = [records[job] for job in paths]
    rows = build_rows(
        ordered, recipe.norms, reference=REFERENCE, step_times=step_times,
        summaries={name: VARIANTS[name].summary for name in recipe.norms},
    )  # fmt: skip
    table = to_markdown(rows, REFERENCE)
    # One image of each of the first classes, the same ones in every report of these data.
    shown = [int((data.test.labels == label).nonzero()[0]) for label in data.test.labels.unique().tolist()[:2]]
    pictures = {
        name: [
            data.test.images[shown],
            *(_corrupt_some(data.test.images, shown, name, severity, recipe) for severity in recipe.severities),
        ]
        for name in recipe.corruptions
    }
    report = out / "report.html"
    write_text(out / "table.md", table)
    write_text(report, render_report(rows, ordered, recipe.to_dict(), facts, versions, machine, pictures, REFERENCE))
    say(f"Finished in {time.perf_counter() - began:.0f} s.")
    return Comparison(rows, table, report, ordered)


def _corrupt_some(
    images: torch.Tensor, indices: list[int], name: str, severity: int, recipe: CompareRecipe
) -> torch.Tensor:
    # by position, so that these are the pixels that were evaluated
    return torch.cat(
        [
            corrupt(images[i : i + 1], name, severity, seed=recipe.corruption_seed, start=i, constants=CONSTANTS)
            for i in indices
        ]
    )


def _find_record(path: Path, key: str, say: Callable[[str], object]) -> Record | None:
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as fault:
        say(f"This run is repeated, its record cannot be used: {fault}")
        return None
    return record if record.complete and record.key == key else None


def _count_workers(recipe: CompareRecipe, jobs: int) -> int:
    wanted = recipe.workers
    if wanted is None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted = 1 if recipe.device == "cuda" else max(1, available // recipe.threads)
    return min(wanted, jobs)


def _load_or_time_steps(
    recipe: CompareRecipe,
    data: Data,
    done: list[Record],
    facts: dict[str, Any],
    versions: dict[str, str],
    machine: dict[str, Any],
    out: Path,
    say: Callable[[str], object],
) -> dict[str, StepTime]:
    """Step times of the norms that trained, measured once per set of norms, recipe and machine."""
    names = [name for name in recipe.norms if any(record.norm == name for record in done)]
    if REFERENCE not in names:
        return {}
    keys = [recipe.run_key(name, 0, facts["sha256"], versions["shiftnorm"]) for name in names]
    content = {"runs": keys, "versions": versions, "machine": machine}
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    path = out / "records" / f"step-times-{digest}.json"
    if path.exists():
        try:
            return {name: StepTime(**times) for name, times in read_json(path)["step_times"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            say(f"The step times are measured again, {path.name} cannot be used: {fault}")
    say("Timing one training step of each norm, interleaved ...")
    times = time_steps({name: make_step(recipe, name, data.train) for name in names}, REFERENCE)
    write_json(path, {**content, "step_times": {name: each._asdict() for name, each in times.items()}})
    return times
