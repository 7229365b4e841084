"""Training steps of whole networks on a GPU, with the norms of this package against those they stand for, in one call.

python benchmarks/gpu_models.py                     at most 9 minutes; a record under benchmarks/results
python benchmarks/gpu_models.py                     once more: what the unfinished record lacks
python benchmarks/gpu_models.py --only resnet50 encoder --modes eager
python benchmarks/gpu_models.py --quick             end to end with tiny networks, on a CPU too; its times mean nothing

resnet50      ResNet-50, bf16 autocast: plain (ours, torchvision's), with CNSN where surgery puts it, our BatchNorm
encoder       an nnU-Net-like 3-D residual encoder: torch's InstanceNorm3d, ours and no norm, in both memory formats
cifar steps   WRN-40-2 by the recipes cifar10/wrn40_2/base and cnsn, images held and augmented on the device
cifar epochs  the same in whole epochs of 50 000 images, as `shiftnorm train` runs them
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpu_clock import machine
from gpu_model_steps import MODES, QUICK, Sizes, compared, encoder_cases, forget_compiled, release, resnet_cases
from record import RESULTS, save

FORMAT = "shiftnorm.gpu-models/1"
PARTS = ("resnet50", "encoder", "cifar steps", "cifar epochs")


class Unit(NamedTuple):
    """What is measured together: networks in rounds with each other, or the epochs of a pair of recipes."""

    part: str
    mode: str
    variant: str
    """Memory format, for resnet50; precision, for the CIFAR network."""
    reserve: float
    """Seconds it is not started without: compiling a network takes about a minute and cannot be cut short."""

    @property
    def label(self) -> str:
        return f"{self.part}, {self.mode}, {self.variant}"


# Targets first, within minutes; what takes minutes to compile last. Reserves are guesses until a first record corrects
# them.
UNITS = (
    Unit("resnet50", "eager", "channels_last", 50),
    Unit("encoder", "eager", "bf16", 60),
    Unit("cifar steps", "eager", "bf16", 30),
    Unit("cifar epochs", "eager", "bf16", 90),
    Unit("resnet50", "algebra", "channels_last", 90),
    Unit("cifar steps", "algebra", "bf16", 60),
    Unit("resnet50", "eager", "contiguous", 50),
    Unit("cifar steps", "eager", "32", 30),
    Unit("cifar epochs", "eager", "32", 90),
    Unit("resnet50", "compiled", "channels_last", 240),
    Unit("cifar steps", "compiled", "bf16", 120),
    Unit("encoder", "compiled", "bf16", 240),
    Unit("cifar epochs", "compiled", "bf16", 260),
    Unit("encoder", "algebra", "bf16", 90),
    Unit("resnet50", "algebra", "contiguous", 90),
    Unit("resnet50", "compiled", "contiguous", 240),
)


def planned(sizes: Sizes) -> list[Unit]:
    """All there is to measure; with tiny networks, no mode but eager is run in a second memory format."""
    return [unit for unit in UNITS if sizes is not QUICK or unit.mode == "eager" or unit.variant != "contiguous"]


class Target(NamedTuple):
    """What the rows of a part have to reach: a number, found in a row or None where the row has none."""

    part: str
    what: str
    limit: float
    measured: Callable[[dict[str, Any]], float | None]
    below: bool = False


def _ratio(networks: Sequence[str], key: str = "median") -> Callable[[dict[str, Any]], float | None]:
    """The ratio of one of these networks to the only one it is compared with."""

    def find(row: dict[str, Any]) -> float | None:
        ratios = row.get("ratios")
        return next(iter(ratios.values()))[key] if ratios and row["network"] in networks else None

    return find


def _formats(row: dict[str, Any]) -> float | None:
    found = row.get("ratios", {}).get("ours contiguous") if row["network"] == "ours" else None
    return None if found is None else found["median"]


WITH_CNSN = ("cnsn", "cnsn behind bn3", "torchvision cnsn")
TARGETS = (
    Target("resnet50", "step with CNSN over the plain network's", 1.02, _ratio(WITH_CNSN)),
    # equal, but for the workspaces that convolutions choose by trial
    Target("resnet50", "bytes of a step over BatchNorm's", 1.01, _ratio((*WITH_CNSN, "our BatchNorm"), "bytes")),
    Target("encoder", "step in channels_last_3d over contiguous, our InstanceNorm", 1.0, _formats, below=True),
    Target("cifar steps", "step by the CNSN recipe over BatchNorm's", 1.03, _ratio(("cnsn",))),
    Target("cifar epochs", "seconds of an epoch", 6.0, lambda row: row.get("epoch_s", {}).get("median")),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks, on the CPU if there is no GPU")
    parser.add_argument("--seconds", type=float, default=540.0, help="start nothing that may last longer (540)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--batch", type=int, default=Sizes.batch, help="images of ResNet-50, 64 to 128 (default: 128)")
    parser.add_argument("--output", type=Path, help="the record; default: a name with the date in benchmarks/results")
    parser.add_argument("--fresh", action="store_true", help="begin anew where there is a record")
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        parser.error("needs a GPU; --quick runs tiny networks on the CPU")
    if options.batch < 1:
        parser.error(f"--batch: expected at least 1, got {options.batch}")
    sizes = QUICK if options.quick else replace(Sizes(), batch=options.batch)
    today = datetime.now(timezone.utc).isoformat(timespec="seconds")
    kind = "quick-" if options.quick else ""
    path = options.output or RESULTS / f"gpu-models-{kind}{today[:10]}.json"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        record = begun(path, today, sizes, device, fresh=options.fresh)
    except ValueError as error:
        parser.error(str(error))
    measure_all(
        record,
        [unit for unit in planned(sizes) if unit.part in options.only and unit.mode in options.modes],
        sizes,
        device,
        path,
        seconds=options.seconds,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(summary(record))
    print(f"{len(record['units'])} of {len(planned(sizes))} parts, record: {path}")


def begun(path: Path, now: str, sizes: Sizes, device: str, *, fresh: bool) -> dict[str, Any]:
    """A new record, or the unfinished one in the file.

    Raises:
        ValueError: if the file holds a finished record, one of another machine or other settings, or something else.
    """
    new = {
        "format": FORMAT,
        "date": now,
        "finished": False,
        "machine": machine(device),
        "settings": {"device": device, "quick": sizes is QUICK, **asdict(sizes)},
        "calls": [],
        "units": {},
        "not_reached": [],
        "targets": [],
    }
    new = json.loads(json.dumps(new))  # lists for tuples, as it comes back from the disk
    if fresh or not path.is_file():
        return new
    advice = "--fresh measures anew and overwrites it, --output names another file."
    try:
        old = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a record, got {error}. {advice}") from error
    if not isinstance(old, dict) or old.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a record of format {FORMAT}, got something else. {advice}")
    if old["finished"]:
        raise ValueError(f"{path}: this record is finished. {advice}")
    for part in ("machine", "settings"):
        theirs, ours = (_lasting(record[part]) for record in (old, new))
        if theirs != ours:
            changed = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
            raise ValueError(f"{path}: this record was begun with another {part} ({', '.join(changed)}). {advice}")
    return old


def _lasting(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "clocks"}


def measure_all(
    record: dict[str, Any],
    units: Sequence[Unit],
    sizes: Sizes,
    device: str,
    path: Path,
    *,
    seconds: float,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Measure what the record lacks of the units while there is time, and write it after each."""
    began = time.perf_counter()
    call = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "before": machine(device).get("clocks")}
    record["calls"].append(call)
    torch.backends.cudnn.benchmark = True  # as training sets it
    for unit in units:
        spent = time.perf_counter() - began
        if unit.label in record["units"] or spent + (0 if sizes is QUICK else unit.reserve) > seconds:
            continue
        started = time.perf_counter()
        found: dict[str, Any] = {"part": unit.part, "mode": unit.mode, "variant": unit.variant}
        try:
            found["rows"] = measured(unit, sizes, device)
        except Exception as error:  # what cannot be measured is a result, and the rest still counts
            found |= {"rows": [], "error": f"{type(error).__name__}: {error}"[:500]}
        forget_compiled()
        release(device)
        found |= {"seconds": time.perf_counter() - started, "clocks": machine(device).get("clocks")}
        record["units"][unit.label] = found
        _write(record, sizes, path, call, began)
        report(f"{time.perf_counter() - began:5.0f} s  {unit.label}")
    _write(record, sizes, path, call, began)


def _write(record: dict[str, Any], sizes: Sizes, path: Path, call: dict[str, Any], began: float) -> None:
    call["seconds"] = time.perf_counter() - began
    record["not_reached"] = [unit.label for unit in planned(sizes) if unit.label not in record["units"]]
    record["finished"] = not record["not_reached"]
    record["targets"] = judged(record)
    os.replace(save(record, path.with_name(f"{path.name}.tmp")), path)  # a call that is cut short leaves a whole record


def measured(unit: Unit, sizes: Sizes, device: str) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        # from inside torch's compiler and lightning, about themselves
        warnings.simplefilter("ignore")
        # several networks are one function to Dynamo, which gives up after eight
        with torch._dynamo.config.patch(recompile_limit=64):
            if unit.part == "resnet50":
                return compared(resnet_cases(unit.mode, unit.variant, sizes, device), sizes, device)
            if unit.part == "encoder":
                return compared(encoder_cases(unit.mode, sizes, device), sizes, device)
            import gpu_model_cifar as cifar  # brings lightning, which takes seconds to import

            if unit.part == "cifar steps":
                return compared(cifar.cifar_cases(unit.mode, unit.variant, sizes, device), sizes, device)
            return cifar.epoch_rows(unit.mode, unit.variant, sizes, device)


def judged(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target for every row it is meant for; nothing is met or missed without a GPU or with tiny networks."""
    counts = record["settings"]["device"] == "cuda" and not record["settings"]["quick"]
    found: list[dict[str, Any]] = []
    for label, unit in record["units"].items():
        for target in TARGETS:
            for row in unit["rows"] if target.part == unit["part"] else ():
                value = target.measured(row)
                if value is None:
                    continue
                reached = value < target.limit if target.below else value <= target.limit
                found.append(
                    {
                        "target": target.what,
                        "unit": label,
                        "network": row["network"],
                        "limit": target.limit,
                        "measured": value,
                        "met": reached if counts else None,
                    }
                )
    return found


def summary(record: dict[str, Any]) -> str:
    """Targets and figures as lines of text."""
    verdicts = {True: "met", False: "MISSED", None: "not judged"}
    lines = [
        f"{verdicts[each['met']]:>10}  {each['measured']:6.3f} of {each['limit']:.2f}  {each['target']}: "
        f"{each['network']} ({each['unit']})"
        for each in record["targets"]
    ]
    for label, unit in record["units"].items():
        for row in [unit, *unit["rows"]]:
            if "error" in row:
                lines.append(f"{'error':>10}  {row.get('network', '')} ({label}): {row['error']}")
    lines += [f"not reached: {label}" for label in record["not_reached"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
