"""The verb that puts the results of several evaluations on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftnorm.cli_verb import add_verb, require

if TYPE_CHECKING:
    from shiftnorm.evaluate.result import Result

__all__ = ["add_report_verb"]


def add_report_verb(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb report.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_report_verb(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        >>> parser.parse_args(["report", "runs/a", "runs/b"]).results
        ['runs/a', 'runs/b']

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
    """
    report = add_verb(
        verbs,
        common,
        "report",
        help="compare the results of several evaluations in one report",
        description="Write one report of several evaluations; the others are compared with the first, image by image.",
        examples=["report runs/batchnorm runs/cnsn", "report runs/*/result.json --out all.html --title 'All nets'"],
    )
    report.add_argument(
        "results", nargs="+", metavar="RESULT", help="a folder of `shiftnorm evaluate` or `shiftnorm train`, or a "
        "result.json"
    )  # fmt: skip
    report.add_argument(
        "--out", type=Path, metavar="FILE.html", default=Path("report.html"),
        help="the page; .md and .csv are written beside it (default: report.html)",
    )  # fmt: skip
    report.add_argument("--title", metavar="TEXT", help="of the page")
    report.add_argument("--force", action="store_true", help="overwrite files that exist")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    require("report", "jinja2", "safetensors")
    from shiftnorm.evaluate.html_report import write_report
    from shiftnorm.evaluate.paired_results import find_comparisons
    from shiftnorm.evaluate.robustness_table import find_mismatches, label_results

    out: Path = options.out
    if out.suffix != ".html":
        raise ValueError(f"report: expected --out to end in .html, got {out}.")
    taken = [file for ending in (".html", ".md", ".csv") if (file := out.with_suffix(ending)).exists()]
    if taken and not options.force:
        raise FileExistsError(f"report: {taken[0]} exists already; --force overwrites it, or choose another --out.")
    results = [_load(where) for where in options.results]
    comparisons = find_comparisons(results)
    write_report(results, out, title=options.title, comparisons=comparisons)
    labels = label_results(results)
    width = max(map(len, labels))
    for place, (label, result) in enumerate(zip(labels, results, strict=True)):
        line = f"{label:{width}}  clean {result.clean.error} %"
        if result.mean_corruption_error is not None:
            line += f", corrupted {result.mean_corruption_error} %"
        found = comparisons[place].mean_corruption_error if place in comparisons else None
        if found is not None:
            line += f", against {labels[0]} {found}"
        elif place:
            reasons = find_mismatches(results[0], result) or ["the cells of one of them are gone"]
            line += f", not compared with {labels[0]}: {'; '.join(reasons)}"
        print(line)
    print(f"Report: {out}")
    return 0


def _load(where: str) -> Result:
    from shiftnorm.evaluate.result import RESULT_FILE, Result
    from shiftnorm.evaluate.stability_result import STABILITY_FILE
    from shiftnorm.result_folder import name_below

    path = Path(where)
    if path.name == STABILITY_FILE or (path / STABILITY_FILE).is_file():
        raise ValueError(
            f"report: {where} is of perturbation sequences, which are on no page with corruptions; its numbers are in "
            f"{STABILITY_FILE} and stability.md. Compare two of them by evaluate --baseline."
        )
    if path.is_dir() and not (path / RESULT_FILE).is_file():
        if (path / "records").is_dir():
            raise ValueError(
                f"report: {where} is a comparison, whose report is {path / 'report.html'}; evaluate its runs first: "
                f"shiftnorm evaluate {path}/NORM-seedN --data DATA."
            )
        if (path / "cells").is_dir():
            raise ValueError(f"report: {where} is an unfinished evaluation; repeat its command to finish it.")
        measured = [*path.glob(f"evaluation*/*/{RESULT_FILE}")]
        if (path / "model.safetensors").is_file() and not measured:
            raise ValueError(
                f"report: {where} is a run that was not measured, or not to the end; repeat its command without "
                f"--no-evaluate, or measure it: shiftnorm evaluate {where} --data DATA."
            )
        if not measured and (advice := name_below(path, RESULT_FILE)):
            raise ValueError(f"report: {where} is no result itself, but has results in it; {advice}.")
    return Result.load(path)
