"""Write the generated parts of README and docs from the records: ``make docs``; ``--check`` only compares.

A page says where a table goes with ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; NAME is one of ``TABLES``, or a
directory under ``results/`` that holds the records of a comparison or, if its name begins so, of ``evaluate`` or of
``compare-recipes`` (``recipes-``, ``search-``).
"""

from __future__ import annotations

import argparse
import bisect
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]

SURGERY_RECORDS = ROOT / "benchmarks" / "results"
SUITES = {
    "torchvision": "torchvision: every classification model",
    "timm": "timm: the smallest model of every family",
    "shiftnorm": "shiftnorm: every model",
    "timm-meta": "timm: every model, shapes only",
}

# What refusals say, and how they are counted; the first that fits.
REASONS = (
    (r"no residual blocks that are known", "no residual blocks that are known, and the placement goes by blocks"),
    (r"It has no norm at all", "no norm in the model"),
    (r"no BatchNorm to put", "no BatchNorm in the model, and no other norm was named"),
    (r"has no place for '(\w+)'", r"the blocks have no place for `\1`"),
    (r"expected num_groups to divide", "GroupNorm: the number of groups does not divide the channels"),
    (r"normalizes the last axis", "the norms take the last axis for the channels"),
    (r"no norm of its own in front", "the branch of the blocks has no norm of its own in front"),
    (r"it is frozen", "the norms are frozen"),
    (r"formula contains an activation", "the formula of the norms contains an activation"),
    (r"it (is|holds) \w+ already", "the norm is there already"),
)
REASONS_SHOWN = 8

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


def make_placements_table() -> str:
    """Every placement: what it does, what ``where`` selects, how the norm starts, whether the function is kept."""
    from shiftnorm.surgery import PLACEMENTS
    from surgery_check import PRESERVING

    rows = [row for suite in SUITES for row in _rows_of(suite) if row["outcome"] == "converted"]
    lines = [
        "| Placement | What it does | Slot | `where` selects | Starts with | Keeps the function of a trained model |",
        "|---|---|---|---|---|---|",
    ]
    for name, placement in PLACEMENTS.items():
        selects = "norms" if placement.at in ("norms", "branch") else "blocks"
        start = ", ".join(f"`{key}={value!r}`" for key, value in placement.preserving.items()) or "–"
        slot = f"`{placement.slot}`" if placement.slot else "–"
        kept = "no"
        if name in PRESERVING:
            judged = [row["kept"] for row in rows if row["placement"] == name and row["kept"] is not None]
            kept = f"yes, in {sum(judged):,} of {len(judged):,} conversions" if judged else "yes"
        lines.append(f"| `{name}` | {placement.summary} | {slot} | {selects} | {start} | {kept} |")
    return "\n".join(lines)


@cache
def _record_of(suite: str) -> dict[str, Any] | None:
    import surgery_record

    path = SURGERY_RECORDS / f"surgery-{suite}.json"
    return surgery_record.read(path) if path.is_file() else None


def _rows_of(suite: str) -> list[dict[str, Any]]:
    record = _record_of(suite)
    return [] if record is None else record["rows"]


def _reason_of(row: dict[str, Any]) -> str:
    text = row["reason"]
    for pattern, label in REASONS:
        match = re.search(pattern, text)
        if match:
            return match.expand(label)
    # A name of a model or a number would make every text another one.
    return re.sub(r"\d+", "…", text.split(". ")[0])[:120].replace("|", "\\|")


def make_surgery_table() -> str:
    """What became of every conversion that was tried, suite by suite, and why models were refused."""
    lines = [
        "| Models of | Models | Conversions tried | Converted | Refused with a reason | Failed loudly | "
        "Failed silently |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    reasons: Counter[str] = Counter()
    origins: dict[str, list[str]] = {}
    remarks: list[str] = []
    for suite, label in SUITES.items():
        record = _record_of(suite)
        if record is None:
            lines.append(f"| {label} | not run yet | – | – | – | – | – |")
            continue
        tried = [row for row in record["rows"] if row["outcome"] != "not run"]
        counts = Counter(row["outcome"] for row in tried)
        silent = [row for row in tried if row["silent"]]
        cells = [len(tried), counts["converted"], counts["refused"], counts["failed"], len(silent)]
        lines.append("| " + " | ".join([label, _coverage(record), *(f"{n:,}" for n in cells)]) + " |")
        reasons.update(_reason_of(row) for row in tried if row["outcome"] == "refused")
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        origins.setdefault(f"{record['date'][:10]}, commit {record['commit']}, {versions}", []).append(suite)
        wrong = {f"silently, {row['silent'][0]}": row for row in reversed(silent)}
        wrong |= {row["reason"]: row for row in tried if row["outcome"] == "failed"}
        remarks += [f"{suite}: {row['model']}, {row['placement']}: {what}" for what, row in wrong.items()]
        absent = [row["model"] for row in record["rows"] if row["outcome"] == "not run"]
        if absent:
            shown = ", ".join(absent[:REASONS_SHOWN]) + (", ..." if len(absent) > REASONS_SHOWN else "")
            remarks.append(f"{suite}: not run, because the model itself does not: {len(absent):,} ({shown})")
    parts = ["\n".join(lines)]
    if reasons:
        most = reasons.most_common(REASONS_SHOWN)
        rest = sum(reasons.values()) - sum(count for _, count in most)
        most += [("other reasons", rest)] if rest else []
        parts.append(
            "\n".join(["| Reason of a refusal | Conversions |", "|---|---:|", *(f"| {t} | {n:,} |" for t, n in most)])
        )
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    if origins:
        parts.append(" ".join(f"{', '.join(suites)}: {origin}." for origin, suites in origins.items()))
    return "\n\n".join(parts)


def _coverage(record: dict[str, Any]) -> str:
    """How many models were tried, and of how many where the run is not finished."""
    models = {row["model"] for row in record["rows"]}
    tried = {row["model"] for row in record["rows"] if row["outcome"] != "not run"}
    planned = record.get("planned", len(models))
    return f"{len(tried):,}" if planned <= len(models) else f"{len(tried):,} of {planned:,}"


def make_surgery_summary() -> str:
    """One sentence: the silent failures of every suite."""
    parts: list[str] = []
    for suite, label in SUITES.items():
        record = _record_of(suite)
        tried = [row for row in record["rows"] if row["outcome"] != "not run"] if record is not None else []
        if record is not None and tried:
            silent = sum(bool(row["silent"]) for row in tried)
            parts.append(f"{silent:,} in {len(tried):,} conversions of {_coverage(record)} models ({label})")
        else:
            parts.append(f"not run yet ({label})")
    return f"Silent failures: {'; '.join(parts)}."


def make_models_table() -> str:
    """Every backbone: its size, the smallest image it takes, its slots, and whether torchvision has it."""
    import torchvision

    from shiftnorm.models import create_model, list_models

    lines = [
        "| Name | Parameters | Smallest image | Slots of a block | Names and shapes of torchvision |",
        "|---|---:|---:|---|---|",
    ]
    known = torchvision.models.list_models()
    for name in list_models():
        model = _on_meta(lambda name=name: create_model(name))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        side = _smallest_image(model)
        slots = ", ".join(f"`{slot}`" for slot in _slots(model))
        same = name in known and _shapes(model) == _shapes(
            _on_meta(lambda name=name: torchvision.models.get_model(name))
        )
        lines.append(f"| `{name}` | {parameters:,} | {side}x{side} | {slots} | {'yes' if same else '–'} |")
    return "\n".join(lines)


def _on_meta(build: Callable[[], Any]) -> Any:
    import torch

    with torch.device("meta"):
        return build().eval()


def _shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def _slots(model: Any) -> list[str]:
    from shiftnorm.models.slots import SLOTS

    places = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    slots = getattr(sys.modules[type(model).__module__], "SLOTS", SLOTS)
    return [slot for slot in slots if slot in places or f"after_{slot}" in places]


def _smallest_image(model: Any, largest: int = 32) -> int:
    import torch

    def takes(side: int) -> bool:
        try:
            with torch.no_grad():
                model(torch.empty(1, 3, side, side, device="meta"))
        except (ValueError, RuntimeError):
            return False
        return True

    if takes(1):
        return 1
    return bisect.bisect_left(range(largest + 1), True, key=takes)


def make_recipes_table() -> str:
    """Every recipe of a training run by what it sets, folder by folder."""
    from shiftnorm.recipe_files import list_recipes, resolve
    from shiftnorm.train_recipe import load_train_recipe

    lines = [
        "| Recipe | Network | Norms | CrossNorm | AugMix | Epochs | Batch | Learning rate | Weight decay |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    for name in list_recipes():
        if resolve(name)[-1].kind != "train":
            continue
        recipe = load_train_recipe(name)
        cells = [
            f"`{name}`",
            f"`{recipe.model.name}`",
            "<br>".join(_placement(each) for each in recipe.model.placements) or "–",
            _crossnorm(recipe),
            f"severity {recipe.augmix.severity}, weight {recipe.augmix.consistency:g}"
            if recipe.augmix.enabled
            else "–",
            str(recipe.loop.epochs),
            str(recipe.loop.batch_size),
            f"{recipe.optimizer.learning_rate:g}",
            f"{recipe.optimizer.weight_decay:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _placement(placement: Any) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in placement.arguments.items())
    return f"`{placement.name}`{arguments and ', '}{arguments}"


def _crossnorm(recipe: Any) -> str:
    chosen = recipe.crossnorm
    inside = any(each.name.startswith(("cnsn", "crossnorm")) for each in recipe.model.placements)
    if not inside and not chosen.images:
        return "–"
    where = f"on the images, crop {chosen.crop}" if chosen.images else f"{chosen.active_num} active"
    weight = f", consistency {chosen.consistency:g}" if chosen.consistency else ""
    return f"p {chosen.p:g}, {where}{weight}"


def make_corruptions_table() -> str:
    """The newest record of the corruptions' speed."""
    import corruptions

    newest = max((ROOT / "benchmarks" / "results" / "corruptions").glob("*.json"))
    return corruptions.table(corruptions.load(newest)).rstrip()


def make_evaluation_table(directory: Path) -> str:
    """The table of networks that were measured under corruption."""
    from evaluation_table import make_table

    return make_table(directory)


def make_recipe_grid_table(directory: Path) -> str:
    """The tables of one comparison of recipes."""
    from recipe_grid_table import make_table

    return make_table(directory)


def make_published_table() -> str:
    """What papers print, what others measured again, and what runs of our recipes gave, row by row."""
    from published_table import make_table

    return make_table(ROOT)


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


TABLES: dict[str, Callable[[], str]] = {
    "norms": make_norms_table,
    "bench": make_bench_table,
    "placements": make_placements_table,
    "surgery": make_surgery_table,
    "surgery-summary": make_surgery_summary,
    "models": make_models_table,
    "recipes": make_recipes_table,
    "published": make_published_table,
    "corruptions": make_corruptions_table,
}

KINDS: dict[str, Callable[[Path], str]] = {
    "evaluate": make_evaluation_table,
    "recipes": make_recipe_grid_table,
    "search": make_recipe_grid_table,
}


def fill(text: str) -> str:
    """Replace what stands between every pair of markers."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in TABLES:
            made = TABLES[name]()
        else:
            make = KINDS.get(name.partition("-")[0], make_comparison_table)
            made = make(ROOT / "results" / name)
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
