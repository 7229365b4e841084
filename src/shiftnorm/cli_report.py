"""The verb that puts the results of several evaluations on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftnorm.cli_verb import add_verb, require, speaking_of_options
from shiftnorm.result_folder import check_writable, plain_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shiftnorm.evaluate.comparison import Comparison
    from shiftnorm.evaluate.result import Result
    from shiftnorm.evaluate.seed_groups import GroupRow

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
        description="Write one report of several evaluations; the others are compared with the first, image by image. "
        "Networks that were trained with several seeds are given by --group, one for each network: then the report has "
        "the mean and spread over seeds, and tests paired by seed.",
        examples=[
            "report runs/batchnorm runs/cnsn",
            "report runs/*/result.json --out all.html --title 'All nets'",
            "report --group BatchNorm runs/bn-seed* --group CNSN runs/cnsn-seed* --out seeds.html",
        ],
    )
    report.usage = "shiftnorm report RESULT... [options]\n       shiftnorm report --group NAME RESULT... [--group ...]"
    report.add_argument(
        "results", nargs="*", metavar="RESULT", help="a folder of `shiftnorm evaluate` or `shiftnorm train`, or a "
        "result.json"
    )  # fmt: skip
    report.add_argument(
        "--group", nargs="+", action="append", metavar=("NAME", "RESULT"), dest="groups",
        help="one network: its name, and the results of its training seeds. The first group is what the others are "
        "compared to. Which seed a run is of is read from its record, its name or its folder (...seed0)",
    )  # fmt: skip
    report.add_argument(
        "--out", type=Path, metavar="FILE.html", default=Path("report.html"),
        help="the page; .md, .csv (every cell) and .summary.csv (what sums them up) are written beside it (default: "
        "report.html)",
    )  # fmt: skip
    report.add_argument("--title", metavar="TEXT", help="of the page")
    report.add_argument("--force", action="store_true", help="overwrite files that exist")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    require("report", "jinja2", "safetensors")
    with speaking_of_options(), plain_faults("report", options.out.parent):
        return _write(options)


def _write(options: argparse.Namespace) -> int:
    from shiftnorm.evaluate.html_report import REPORT_ENDINGS, write_report
    from shiftnorm.evaluate.paired_results import find_comparisons
    from shiftnorm.evaluate.seed_groups import compare_runs

    out: Path = options.out
    if out.suffix != ".html":
        raise ValueError(f"report: expected --out to end in .html, got {out}.")
    files = [out.with_suffix(ending) for ending in REPORT_ENDINGS]
    for file in files:
        check_writable(file, "report", file=True)
    if not options.force and (taken := [file for file in files if file.exists()]):
        raise FileExistsError(f"report: {taken[0]} exists already; --force overwrites it, or choose another --out.")
    results, rows = _grouped(options) if options.groups else ([_load(where) for where in options.results], [])
    if not results:
        raise ValueError("report: expected at least one RESULT, a folder of `shiftnorm evaluate`, or --group.")
    comparisons = compare_runs(rows) if rows else find_comparisons(results)
    write_report(results, out, title=options.title, comparisons=comparisons, groups=rows)
    _say(results, comparisons, rows)
    print(f"Report: {out}")
    return 0


def _grouped(options: argparse.Namespace) -> tuple[list[Result], list[GroupRow]]:
    """The results of all groups with names of their own, and the groups over their seeds."""
    from shiftnorm.evaluate.seed_groups import compare_groups, group_results

    if options.results:
        raise ValueError(
            f"report: {options.results[0]} belongs to no group; give every RESULT to a --group NAME, also a single "
            "one, or leave out --group."
        )
    named: dict[str, list[tuple[str, Result]]] = {}
    for name, *places in options.groups:
        if not places:
            raise ValueError(f"report: expected --group NAME RESULT..., got the name {name!r} alone.")
        if name in named:
            raise ValueError(f"report: the group {name!r} is given twice; name all its results behind one --group.")
        named[name] = [(place, _load(place)) for place in places]
    groups = group_results(named)
    return [result for group in groups for result in group.runs.values()], compare_groups(groups)


def _say(results: list[Result], comparisons: Mapping[int, Comparison], rows: list[GroupRow]) -> None:
    from shiftnorm.evaluate.group_table import say_groups
    from shiftnorm.evaluate.robustness_table import find_mismatches, label_results

    if rows:
        print("\n".join(say_groups(rows)))
        return
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


def _load(where: str) -> Result:
    from shiftnorm.evaluate.result import RESULT_FILE, Result
    from shiftnorm.evaluate.stability_result import STABILITY_FILE
    from shiftnorm.result_folder import name_below

    path = Path(where)
    if path.is_file() and path.suffix != ".json":
        raise ValueError(
            f"report: {where} is no result; expected the folder of an evaluation, or its {RESULT_FILE}, from which "
            "pages are made."
        )
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
