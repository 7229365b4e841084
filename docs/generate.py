"""Write the generated parts of README and docs from the records: ``make docs``; ``--check`` only compares.

A page says where a table goes with ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; NAME is ``norms``, ``bench``, or
a directory under ``results/`` that holds the records of a comparison.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def make_norms_table() -> str:
    """Every layer of the roster with its first sentence, cost and source."""
    from shiftnorm import norms

    lines = ["| Layer | What it does | Cost | Source |", "|---|---|---|---|"]
    for name in sorted(norms.__all__, key=str.casefold):
        thing = getattr(norms, name)
        documentation = inspect.getdoc(thing) or ""
        if "Source:" not in documentation or not (inspect.isclass(thing) or name == "CNSN"):
            continue
        sentence = documentation.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
        lines.append(f"| `{name}` | {sentence} | {_field(documentation, 'Cost')} | {_field(documentation, 'Source')} |")
    return "\n".join(lines)


def _field(documentation: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*?)(?=^\S|\Z)", documentation, re.DOTALL | re.MULTILINE)
    return " ".join(found.group(1).split()).split(". ")[0].rstrip(".") if found else "–"


def make_bench_table() -> str:
    """The benchmark records of the newest day, one after the other."""
    from record import load
    from table import markdown

    records = sorted((ROOT / "benchmarks" / "results").glob("[0-9]*.json"))
    if not records:
        raise FileNotFoundError("benchmarks/results holds no record; make one with: make bench")
    newest = [path for path in records if path.name[:10] == records[-1].name[:10]]
    return "\n\n".join(markdown(load(path)).strip() for path in newest)


def make_comparison_table(directory: Path) -> str:
    """The table of one comparison."""
    from shiftnorm.evaluate.record import read_json, read_record
    from shiftnorm.evaluate.table import build_rows, to_markdown
    from shiftnorm.evaluate.timing import StepTime
    from shiftnorm.variants import REFERENCE

    files = sorted((directory / "records").glob("*.json"))
    records = [read_record(path) for path in files if not path.name.startswith("step-times")]
    if not records:
        raise FileNotFoundError(f"{directory.relative_to(ROOT)} holds no records")
    norms = list(dict.fromkeys(name for record in records for name in record.recipe["norms"]))
    times = {
        name: StepTime(**time)
        for path in files
        if path.name.startswith("step-times")
        for name, time in read_json(path)["step_times"].items()
    }
    return to_markdown(build_rows(records, norms, reference=REFERENCE, step_times=times), REFERENCE).rstrip()


def fill(text: str) -> str:
    """Replace what stands between every pair of markers."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "norms":
            made = make_norms_table()
        elif name == "bench":
            made = make_bench_table()
        else:
            made = make_comparison_table(ROOT / "results" / name)
        return f"<!-- begin {name} -->\n{made}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([\w.-]+) -->.*?<!-- end \1 -->", replace, text, flags=re.DOTALL)


def main() -> None:
    """Fill every page, or with ``--check`` say which are out of date and exit with 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale: list[str] = []
    for page in PAGES:
        old = page.read_text()
        new = fill(old)
        if new != old:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new)
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run: make docs")
    print("up to date" if not stale else f"written: {', '.join(stale)}")


if __name__ == "__main__":
    main()
