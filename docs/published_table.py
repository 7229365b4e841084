"""The table of published numbers beside those of our own runs; `generate.py` puts it into the pages."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from shiftnorm.fit.run_folder import identity_of
from shiftnorm.recipe_tree import build, to_mapping
from shiftnorm.train_recipe import TrainRecipe, load_train_recipe


def make_table(root: Path) -> str:
    """What papers print, what others measured again, and what runs of our recipes gave, row by row.

    Args:
        root: of the repository, with ``docs/published.json`` and the records of runs in ``results/train``.

    Returns:
        The table as Markdown, and remarks.

    Raises:
        ValueError: if a record is of other settings than its recipe's, or a seed of a recipe has two.
    """
    published = json.loads((root / "docs" / "published.json").read_text(encoding="utf-8"))
    ours: dict[str, list[dict[str, Any]]] = {}
    files: dict[tuple[str, int], Path] = {}
    for path in sorted((root / "results" / "train").glob("**/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] == "complete":
            _check_recipe(record, path)
            other = files.setdefault((record["name"], record["seed"]), path)
            if other != path:
                raise ValueError(
                    f"{other} and {path} are both of {record['name']} with seed {record['seed']}, which would count "
                    "twice; remove one of them."
                )
            ours.setdefault(record["name"], []).append(record)
    lines = [
        "| Images | Network | Method | Quantity | Paper | Reproduction | Ours | Recipe |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    for row in published["rows"]:
        found = [_quantity(record, row["quantity"]) for record in ours.get(row["recipe"], [])]
        values = [value for value in found if value is not None]
        cells = [row["data"], row["network"], row["method"], row["quantity"]]
        cells += ["–" if row[key] is None else f"{row[key]:.1f}" for key in ("paper", "reproduction")]
        cells += [_mean(values), f"`{row['recipe']}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *published["remarks"]])


def _check_recipe(record: dict[str, Any], path: Path) -> None:
    """A run with other settings than its recipe's must not stand in its row."""
    made, asked = (
        # How it is measured changes no weight, but every number of the table.
        {**identity_of(recipe, ""), **{f"evaluate.{key}": value for key, value in to_mapping(recipe.evaluate).items()}}
        for recipe in (build(TrainRecipe, record["recipe"], path.name), load_train_recipe(record["name"]))
    )
    changed = [key for key in {**made, **asked} if made.get(key) != asked.get(key) and key != "loop.seed"]
    if changed:
        raise ValueError(f"{path} was not made by {record['name']} as it is: {', '.join(changed)} differ.")


def _quantity(record: dict[str, Any], quantity: str) -> float | None:
    if quantity == "clean error":
        return record["clean_error"]
    found = record["mean_corruption_error" if quantity == "mean corruption error" else "mce"]
    return None if found is None else found["value"]


def _mean(values: list[float]) -> str:
    if not values:
        return "not run yet"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"
