"""The Markdown table of a record, with a mark for every target."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from rows import ROWS, Row

EAGER_TO_PLAIN_COMPILED = 1.3
# "As fast as": what two runs of the same code differ by.
COMPILED_TO_PLAIN_COMPILED = 1.05
# 2.0 is y and the gradient of x; the (N, C) tensors come on top.
PEAK = 2.05

COLUMNS = (
    "norm",
    "copies",
    "/ torch's BatchNorm",
    "/ our BatchNorm",
    "/ our BatchNorm, algebra compiled",
    "/ plain",
    "/ plain compiled",
    "copies, compiled",
    "/ plain compiled, both compiled",
    "faster than today's",
    "saved / x",
    "peak / x",
    "targets",
)


def markdown(record: dict[str, Any]) -> str:
    return "\n\n".join([introduction(record), *(section(config, record) for config in record["configs"])])


def introduction(record: dict[str, Any]) -> str:
    machine, settings, load = record["machine"], record["settings"], record["load"]["before"]
    lines = [
        f"Forward and backward, {settings['dtype']}, training mode, {settings['threads']} thread(s) of "
        f"{machine['cpu']} ({machine['cores']} cores), {settings['clock']}; torch {machine['torch']}, "
        f"Python {machine['python']}; commit {record['commit'] or 'unknown'}, {record['date'][:10]}.",
        "All candidates of a shape ran interleaved in one process, in random order; times are medians, ratios "
        "medians of the ratios within each round. The unit is one copy of x. Ratios below 1 are faster. "
        "*Algebra compiled* is `compile_algebra`: the layer is eager, what it computes between its passes is compiled. "
        "*plain* is the unfused formula, *plain compiled* the same under torch.compile; *faster than today's* is "
        "against torch's own layer for the first four norms, the authors' eager form for the others. Random numbers "
        "are drawn within the time of eager layers, and before it for plain formulas and all that is compiled.",
        "Targets hold for eager layers: at most 1.15 of our BatchNorm (1.1 for BatchNorm and CNSN in a Chain), at most "
        f"{EAGER_TO_PLAIN_COMPILED} of the compiled plain formula, compiled as fast as it "
        f"(at most {COMPILED_TO_PLAIN_COMPILED}), "
        + ", ".join(f"{row.speedup:g}x for {name}" for name, row in ROWS.items() if row.speedup)
        + f" against the authors' form, and a peak of 2.0 x (at most {PEAK} with the (N, C) tensors).",
    ]
    if "slow_every" in settings:
        lines.append(
            "Plain formulas in eager mode, authors' forms and the rows without targets, which are slow, ran in one of "
            f"{settings['slow_every']} rounds."
        )
    if any(settings["malloc"].values()):
        lines.append("The allocator kept freed memory, so that no page faults were timed.")
    if load is not None and load > 0.25 * (machine["cores"] or 1):
        lines.append(f"**The machine was busy: its load was {load:.1f} before the run.**")
    return " ".join(lines)


def section(config: dict[str, Any], record: dict[str, Any]) -> str:
    title = f"### {tuple(config['shape'])}, {config['memory_format'].replace('_', ' ')}"
    copy, torchs = config["copy_ms"]["median"], config["norms"]["BatchNorm"].get("authors", {})
    facts = [f"One copy: {copy:.3g} ms."]
    if "copies" in torchs:
        facts.append(f"torch's BatchNorm: {torchs['copies']['median']:.1f} copies.")
    facts.append(
        f"{config['rounds']} rounds; their middle half spans {100 * typical_spread(config):.0f}% of the median "
        "(typical norm)."
    )
    if not config["has_targets"]:
        facts.append("Reported; the targets are for other shapes.")
    elif not config["compiled"]:
        facts.append("Nothing was compiled here: PASS is about the other targets.")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 2) + "|---|"]
    lines += ["| " + " | ".join(cells(name, config)) + " |" for name in config["norms"]]
    return "\n".join([title, "", " ".join(facts), "", *lines])


def typical_spread(config: dict[str, Any]) -> float:
    """Interquartile range over median of our layers' times."""
    totals = [kinds["ours"]["total_ms"] for kinds in config["norms"].values() if "total_ms" in kinds["ours"]]
    return statistics.median((each["q3"] - each["q1"]) / each["median"] for each in totals) if totals else 0.0


def cells(name: str, config: dict[str, Any]) -> list[str]:
    kinds = config["norms"][name]
    ours, ours_compiled = kinds["ours"], kinds.get("ours_compiled", {})
    if "error" in ours:
        return [name, *["–"] * (len(COLUMNS) - 2), f"failed: {ours['error']}"]
    faster = ours.get("to_authors")
    return [
        name,
        number(ours["copies"], 1),
        number(ours.get("to_torch_batch_norm"), 2),
        number(ours.get("to_our_batch_norm"), 2),
        number(kinds.get("ours_algebra", {}).get("to_our_batch_norm"), 2),
        number(ours.get("to_plain"), 2),
        number(ours.get("to_plain_compiled"), 2),
        number(ours_compiled.get("copies"), 1),
        number(ours_compiled.get("to_plain_compiled"), 2),
        f"{1 / faster['median']:.1f}x" if faster else "–",
        f"{ours['saved']:.2f}",
        f"{ours['peak']:.2f}",
        mark(name, config),
    ]


def number(value: dict[str, float] | None, digits: int) -> str:
    return "–" if value is None else f"{value['median']:.{digits}f}"


def mark(name: str, config: dict[str, Any]) -> str:
    row = ROWS.get(name)
    if row is None or not row.moment or not config["has_targets"]:
        return "reported"
    missed = [f"{what} {got:.2f} {sign} {wanted:g}" for what, got, sign, wanted in failures(row, config["norms"][name])]
    algebra = config["norms"][name].get("ours_algebra", {}).get("to_our_batch_norm")
    if algebra is not None and algebra["median"] <= row.limit:
        compiled = f" ({algebra['median']:.2f} with its algebra compiled)"
        missed = [each + compiled * each.startswith("BatchNorm") for each in missed]
    failed = [kind for kind, result in config["norms"][name].items() if "error" in result]
    missed += [f"{kind.replace('_', ' ')} failed" for kind in failed]
    return "miss: " + ", ".join(missed) if missed else "PASS"


def failures(row: Row, kinds: dict[str, Any]) -> Iterator[tuple[str, float, str, float]]:
    """What was missed: its name, what came, and the bound."""
    ours, ours_compiled = kinds["ours"], kinds.get("ours_compiled", {})
    upper = (
        ("BatchNorm", ours.get("to_our_batch_norm"), row.limit),
        ("plain compiled", ours.get("to_plain_compiled"), EAGER_TO_PLAIN_COMPILED),
        ("both compiled", ours_compiled.get("to_plain_compiled"), COMPILED_TO_PLAIN_COMPILED),
    )
    for what, ratio, limit in upper:
        if ratio is not None and ratio["median"] > limit:
            yield what, ratio["median"], ">", limit
    if row.speedup is not None and "to_authors" in ours and 1 / ours["to_authors"]["median"] < row.speedup:
        yield "authors", 1 / ours["to_authors"]["median"], "<", row.speedup
    if ours["peak"] > PEAK:
        yield "peak", ours["peak"], ">", PEAK
