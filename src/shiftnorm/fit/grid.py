"""Recipes times seeds: every run by itself, resumable, a failed one kept apart, and what they show together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from shiftnorm.evaluate.html_report import write_report
from shiftnorm.evaluate.paired_results import find_comparisons
from shiftnorm.evaluate.progress import plural
from shiftnorm.evaluate.record import write_json, write_text
from shiftnorm.evaluate.result import RESULT_FILE, Result
from shiftnorm.fit.grid_table import GridRow, compare_rows, to_markdown
from shiftnorm.fit.record import TrainRecord
from shiftnorm.fit.run_folder import evaluation_of
from shiftnorm.fit.training import train
from shiftnorm.recipe_tree import difference, to_mapping
from shiftnorm.result_folder import GRID, check_owner
from shiftnorm.train_recipe import TrainRecipe
from shiftnorm.workers import Job, Outcome, run_jobs

__all__ = ["Grid", "compare_recipes", "name_of_folder"]

FORMAT = "shiftnorm.grid/1"


@final
@dataclass(frozen=True)
class Grid:
    """What `compare_recipes` made.

    Example:
        >>> Grid([], "", Path("report.html"), []).failed
        []

    Args:
        rows: one per recipe.
        table: the rows as Markdown.
        report: path of the HTML page, which is there if any run was measured.
        records: one per run, finished or failed.
    """

    rows: list[GridRow]
    table: str
    report: Path
    records: list[TrainRecord]

    @property
    def failed(self) -> list[TrainRecord]:
        """Records of the runs that failed.

        Example:
            >>> Grid([], "", Path("report.html"), [TrainRecord("", "cn", 0, "failed")]).failed[0].name
            'cn'
        """
        return [record for record in self.records if record.status == "failed"]


@dataclass(frozen=True)
class _Plan:
    """What every run needs to know, in this process or another."""

    recipes: dict[str, TrainRecipe]
    out: Path
    data_root: str | None
    threads: int
    command: str | None
    say: Callable[[str], object]


def name_of_folder(name: str) -> str:
    """A recipe's name or file as a part of a folder's name.

    Example:
        >>> name_of_folder("cifar10/wrn40_2/cnsn"), name_of_folder("../mine.yaml")
        ('cifar10-wrn40_2-cnsn', 'mine')
    """
    return re.sub(r"[^\w.-]+", "-", name.removesuffix(".yaml")).strip("-.")


def compare_recipes(
    recipes: Mapping[str, TrainRecipe],
    seeds: Sequence[int],
    *,
    out: str | Path,
    data_root: str | Path | None = None,
    workers: int = 0,
    threads: int = 1,
    say: Callable[[str], object] = print,
    command: str | None = None,
) -> Grid:
    """Train and measure every recipe with every seed, and compare the recipes with the first.

    Each run has its folder in ``out`` and goes on where it was ended; finished ones are not made again, and one that
    fails is recorded in ``out/failed`` and does not stop the others. The same call tries failed runs again.

    Example:
        >>> import tempfile
        >>> from shiftnorm.recipe_tree import override
        >>> small = override(TrainRecipe("toy"), [
        ...     "data.limit=4", "model.name=shiftnorm/all_conv", "model.arguments={width: 8}", "loop.epochs=1",
        ...     "loop.batch_size=20", "evaluate.corruptions=[contrast]", "evaluate.severities=[5]", "evaluate.limit=20",
        ... ])
        >>> grid = compare_recipes({"base": small}, [0], out=tempfile.mkdtemp(), say=lambda line: None)
        >>> grid.rows[0].name, grid.rows[0].clean.count, grid.failed
        ('base', 1, [])

    Args:
        recipes: by the names that tables give them; the others are compared with the first.
        seeds: one run of each recipe for each.
        out: where everything goes.
        data_root: where the images lie.
        workers: processes that train at the same time; 0: one run after the other in this one.
        threads: torch threads in each of them.
        say: gets lines of text.
        command: how to repeat this, for the reports.

    Returns:
        Rows, table, report and records.

    Raises:
        ValueError: without a recipe or a seed, if two recipes would share a folder or are measured otherwise, or if the
            folder holds results of another kind.
        Stopped, KeyboardInterrupt: if ended; the same call goes on.
    """
    folders = [name_of_folder(name) for name in recipes]
    if not recipes or not seeds or len(set(folders)) < len(folders) or len(set(seeds)) < len(seeds):
        raise ValueError(
            "compare_recipes: expected recipes of different names and different seeds, at least one of each, got "
            f"{', '.join(recipes) or 'no recipe'} and seeds {list(seeds)}."
        )
    _check_measuring(recipes)
    place = Path(out)
    check_owner(place, GRID, "compare_recipes")
    plan = _Plan(
        dict(recipes),
        place,
        None if data_root is None else str(data_root),
        threads,
        command,
        _silent if workers else say,
    )
    # By seed first: an interrupted grid then has whole rounds of recipes rather than a few recipes only.
    jobs = [Job(name, seed) for seed in seeds for name in recipes]
    records: dict[Job, TrainRecord] = {}

    def finish(job: Job, outcome: Outcome) -> None:
        failed = place / "failed" / f"{name_of_folder(job.norm)}-seed{job.seed}.json"
        if outcome.message is None:
            records[job] = TrainRecord(**outcome.results["record"])
            failed.unlink(missing_ok=True)
        else:
            recipe = to_mapping(_with_seed(recipes[job.norm], job.seed))
            records[job] = TrainRecord("", job.norm, job.seed, "failed", outcome.message, recipe=recipe)
            records[job].save(failed)

    run_jobs(_execute, plan, None, jobs, finish, workers=workers, say=say)
    ordered = [records[job] for job in jobs]
    # Only runs of this call: what lies in the folder of one that just failed may be of another recipe.
    results = {job: Result.load(folder) for job in jobs if (folder := _measured(place, job, records[job])) is not None}
    of_recipe = {name: {job.seed: result for job, result in results.items() if job.norm == name} for name in recipes}
    rows = compare_rows([*recipes], ordered, of_recipe)
    held_out = next(iter(recipes.values())).evaluate.part == "validation"  # as all of them
    table = to_markdown(rows, held_out=held_out)
    write_text(place / "table.md", table)
    write_json(
        place / "grid.json",
        {
            "format": FORMAT,
            "recipes": [*recipes],
            "seeds": list(seeds),
            "held_out": held_out,
            "rows": [row.to_json() for row in rows],
        },
    )
    report = place / "report.html"
    shown = [found[min(found)] for found in of_recipe.values() if found]
    if shown:
        title = f"{len(recipes)} {plural('recipe', len(recipes))}, one seed of each"
        write_report(shown, report, title=title, comparisons=find_comparisons(shown))
    else:
        report.unlink(missing_ok=True)  # of an earlier call, with runs that are not of this one
    return Grid(rows, table, report, ordered)


def _check_measuring(recipes: Mapping[str, TrainRecipe]) -> None:
    """Errors on other images or under other corruptions have no difference that says anything."""
    (first, base), *others = recipes.items()
    for name, recipe in others:
        found = difference(recipe, base)
        changed = [key for key in found if key == "data.name" or key.startswith("evaluate.")]
        if changed:
            settings = ", ".join(f"{key} is {found[key]!r}" for key in changed)
            raise ValueError(
                f"compare_recipes: {name} is measured otherwise than {first} ({settings}); give all recipes the same "
                "(--set KEY=VALUE), or compare them in calls of their own."
            )


def _with_seed(recipe: TrainRecipe, seed: int) -> TrainRecipe:
    return replace(recipe, loop=replace(recipe.loop, seed=seed))


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name_of_folder(name)}-seed{seed}"


def _measured(out: Path, job: Job, record: TrainRecord) -> Path | None:
    if not record.complete:
        return None
    folder = _folder(out, job.norm, job.seed) / evaluation_of(record.recipe["evaluate"], record.data["test_sha256"])
    return folder if (folder / RESULT_FILE).is_file() else None


def _execute(
    plan: _Plan, name: str, seed: int, _: None, on_progress: Callable[[float, str], object] | None
) -> dict[str, Any]:
    """One run, in the form that `run_jobs` calls."""
    result = train(
        _with_seed(plan.recipes[name], seed),
        out=_folder(plan.out, name, seed),
        data_root=plan.data_root,
        say=plan.say,
        name=name,
        command=plan.command,
        on_progress=on_progress,
    )
    # what the display of the runs shows is called clean_error
    return {"record": asdict(result.record), "clean_error": result.record.clean_error}


def _silent(_: str) -> None:
    """What worker processes say: their display shows it."""
