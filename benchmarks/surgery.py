"""Every placement in every model: converted, tried, saved, loaded and taken back, or refused with a reason.

python benchmarks/surgery.py torchvision          every classification model of torchvision
python benchmarks/surgery.py timm                 the smallest model of every family of timm
python benchmarks/surgery.py shiftnorm            every model of this package
python benchmarks/surgery.py timm-meta            every architecture of timm, without values, on the meta device
Options: --models PATTERN, --placements NAME ..., --output FILE. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery_check import NAMES, Trial
from surgery_meta import META, try_on_meta
from surgery_record import read, write

FORMAT = "shiftnorm.surgery/1"
RESULTS = Path(__file__).resolve().parent / "results"
SUITES = ("torchvision", "timm", "shiftnorm", "timm-meta")

# Files of larger models are written for one placement only: the mechanism does not depend on the size.
LARGE = 40_000_000
# These stay in float32 and are not written at all.
HUGE = 150_000_000
SIZES = (64, 96, 160, 224, 256, 384, 448, 512)


def names_of(suite: str) -> list[str]:
    if suite == "torchvision":
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)
    import timm

    if suite == "timm-meta":
        return timm.list_models()
    if suite == "timm":
        return sorted(smallest_of_families().values())
    from shiftnorm.models import list_models

    return list_models()


def smallest_of_families() -> dict[str, str]:
    """The model with the fewest parameters of every module of timm; found once for each version: it takes minutes."""
    import timm

    path = RESULTS / "timm-families.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("timm") == timm.__version__:
        return known["smallest"]
    best: dict[str, tuple[int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            try:
                with torch.device("meta"):
                    size = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            except Exception:  # some architectures cannot be made on the meta device
                continue
            if module not in best or size < best[module][0]:
                best[module] = (size, name)
    smallest = {module: name for module, (_, name) in sorted(best.items())}
    path.write_text(json.dumps({"timm": timm.__version__, "smallest": smallest}, indent=1) + "\n")
    return smallest


def builder(suite: str, name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        if suite == "torchvision":
            import torchvision

            extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
            return torchvision.models.get_model(name, weights=None, **extra)
        if suite.startswith("timm"):
            import timm

            return timm.create_model(name)
        from shiftnorm.models import create_model

        return create_model(name)

    return build


def input_for(build: Callable[[], nn.Module]) -> torch.Tensor:
    """The smallest square images that the model takes."""
    model = build().eval()
    like = next(model.parameters())
    configured = getattr(model, "default_cfg", {}) or {}
    fixed = configured.get("input_size", (3, 0, 0))
    channels = fixed[0]
    sizes = [fixed[1]] if configured.get("fixed_input_size") and fixed[1] else list(SIZES)
    for size in sizes:
        x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1)).to(like.dtype)
        try:
            with torch.no_grad():
                model.eval()(x)
                model.train()(x)
        except Exception as fault:  # any: the next size may do
            last = fault
            continue
        return x
    raise RuntimeError(f"takes no square image of {sizes}: {last}")


def size_of(build: Callable[[], nn.Module]) -> int:
    try:
        with torch.device("meta"):
            model = build()
    except NotImplementedError:  # some constructors look at values
        model = build()
    return sum(parameter.numel() for parameter in model.parameters())


def try_model(suite: str, name: str, placements: Sequence[str]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of constructors and of autocast in other people's models
    single = builder(suite, name)
    size = 0 if suite == "timm-meta" else size_of(single)

    def build() -> nn.Module:
        # In float64, so that rounding is no excuse; four copies of the largest would not fit.
        return single() if suite == "timm-meta" or size > HUGE else single().double()

    if suite == "timm-meta":
        return try_on_meta(name, build, placements)
    try:
        x = input_for(build)
    except Exception as fault:  # any: the record says why it was not run
        return [
            {"model": name, "placement": "", "outcome": "not run", "reason": f"{type(fault).__name__}: {fault}"[:200]}
        ]
    trial = Trial(name, build, x, disk=True)
    rows: list[dict[str, Any]] = []
    written = False
    for placement in placements:
        trial.disk = size < LARGE or (size < HUGE and not written)
        outcome = trial.run(placement)
        written = written or outcome.saved
        rows.append({**outcome.to_json(), "image": x.shape[-1], "dtype": str(x.dtype).removeprefix("torch.")})
    return rows


def _work(job: tuple[str, str, list[str]]) -> tuple[str, list[dict[str, Any]]]:
    return job[1], try_model(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--models", default="*", metavar="PATTERN")
    parser.add_argument("--placements", nargs="+", metavar="NAME", help="default: all, four for timm-meta")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.placements = options.placements or list(META if options.suite == "timm-meta" else NAMES)
    path = options.output or RESULTS / f"surgery-{options.suite}.json"
    record = _read(path, options.placements)
    done = {row["model"] for row in record["rows"]}
    names = [name for name in names_of(options.suite) if fnmatch.fnmatch(name, options.models)]
    jobs = [(options.suite, name, options.placements) for name in names if name not in done]
    record["planned"] = max(len(names), record.get("planned", 0))
    print(f"{len(names)} models, {len(done)} done before, {len(options.placements)} placements")
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=8) as pool:
        for number, (name, rows) in enumerate(pool.imap_unordered(_work, jobs), start=1):
            record["rows"] += rows
            silent = [f"{row['placement']}: {row['silent']}" for row in rows if row.get("silent")]
            counts = Counter(row["outcome"] for row in rows)
            left = (time.perf_counter() - start) / number * (len(jobs) - number) / 60
            print(f"{name}: {dict(counts)} {' | '.join(silent)} ({left:.0f} min left)", flush=True)
            write(path, record)
    counts = Counter(row["outcome"] for row in record["rows"])
    silent = sum(bool(row.get("silent")) for row in record["rows"])
    print(f"{dict(counts)}; silent failures: {silent}; record: {path}")
    sys.exit(1 if silent else 0)


def _read(path: Path, placements: Sequence[str]) -> dict[str, Any]:
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    if path.is_file():
        record = read(path)
        if record["placements"] == list(placements):
            if commit not in record["commit"].split(", "):  # continued with other code: the record says so
                record["commit"] += f", {commit}"
            return record
    import timm
    import torchvision

    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "placements": list(placements),
        "rows": [],
    }


if __name__ == "__main__":
    main()
