"""Speed of every corruption, in images per second of one core, at 32 and at 224 pixels.

python benchmarks/corruptions.py                    a record under benchmarks/results/corruptions, and its table
python benchmarks/corruptions.py --quick            one round of few images
python benchmarks/corruptions.py --peer PYTHON      also imagecorruptions, run by the interpreter of its own environment
python benchmarks/corruptions.py --device cuda      on a GPU, by the wall clock
python benchmarks/corruptions.py --table RECORD     the table of a record made before
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from measure import interleaved, spread
from record import RESULTS, rounded, save
from run import commit, cpu_model, load_average
from shiftnorm.data.corruptions import CORRUPTIONS, SEVERITIES, choose_corruptions, corrupt

FORMAT = "shiftnorm.bench.corruptions/1"
SETS = {32: "cifar32", 224: "imagenet224"}
COUNTS = {32: 512, 224: 16}
QUICK_COUNTS = {32: 64, 224: 2}
# Milliseconds per image of one core for the sum over the 15: a CIFAR-10-C in 3 minutes, and ImageNet-C's target.
TARGETS = {32: 3 * 60e3 / (10_000 * len(SEVERITIES)), 224: 100.0}
PEER = "imagecorruptions"
PEER_IMAGES = {32: 8, 224: 2}
# What the interpreter of the peer's environment runs: images in, milliseconds per image or the error out.
PEER_PROGRAM = """
import json, sys, time, warnings
import numpy as np
warnings.simplefilter("ignore")  # of the peer, about its own imports
arrays, names, result = np.load(sys.argv[1]), json.loads(sys.argv[2]), {}
from importlib.metadata import version
from imagecorruptions import corrupt
import cv2
cv2.setNumThreads(1)
for size in arrays.files:
    result[size] = {}
    for name in names:
        try:
            times = []
            for severity in range(1, 6):
                corrupt(arrays[size][0], corruption_name=name, severity=severity)
                start = time.process_time()
                for image in arrays[size]:
                    corrupt(image, corruption_name=name, severity=severity)
                times.append(1e3 * (time.process_time() - start) / len(arrays[size]))
            result[size][name] = {"ms": times}
        except Exception as error:  # three of them crash on the NumPy of today; the record says which
            result[size][name] = {"error": f"{type(error).__name__}: {error}"[:200]}
print(json.dumps({"version": version("imagecorruptions"), "numpy": np.__version__, "sizes": result}))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few images")
    parser.add_argument("--rounds", type=int, default=5, help="of all corruptions at all severities; default: 5")
    parser.add_argument("--device", default="cpu", help="default: cpu, on one thread")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has imagecorruptions")
    parser.add_argument("--output", type=Path, help="the record; default: a name with the date")
    parser.add_argument("--table", type=Path, metavar="RECORD", help="print the table of this record and stop")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(load(options.table)))
        return
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    torch.set_num_threads(1)
    record = measured(
        QUICK_COUNTS if options.quick else COUNTS,
        rounds=1 if options.quick else options.rounds,
        device=options.device,
        peer=options.peer,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    kind = "quick-" if options.quick else ""
    default = RESULTS / "corruptions" / f"{kind}{record['date'][:10]}-{options.device.replace(':', '')}.json"
    print(table(rounded(record)))
    print(f"record: {save(record, options.output or default)}", file=sys.stderr)


def pictures(count: int, size: int) -> Tensor:
    """Coloured blobs with grain and an edge: what a corruption does takes about as long as on photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 220
    images += torch.rand(count, 3, size, size, generator=generator) * 30
    images[..., size // 2 :] *= 0.8
    return images.to(torch.uint8)


def names() -> list[str]:
    """The 19, in the published order, with frost from made pictures; then the variants."""
    published = choose_corruptions("all")
    return [*published, *(name for name in CORRUPTIONS if name not in (*published, "frost"))]


def measured(
    counts: dict[int, int],
    *,
    rounds: int,
    device: str = "cpu",
    peer: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The record of a run."""
    began, load_before = time.perf_counter(), load_average()
    sizes = {}
    for size, count in counts.items():
        sizes[str(size)] = measured_size(pictures(count, size).to(device), SETS[size], rounds)
        report(f"{size} pixels: {sizes[str(size)]['common_ms']:.3g} ms for the 15")
    others = None if peer is None else measured_peer(peer, counts)
    on_cpu = torch.device(device).type == "cpu"
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": "python benchmarks/corruptions.py "
        + " ".join(Path(word).name if os.sep in word else word for word in sys.argv[1:]),
        "machine": {
            "cpu": cpu_model(),
            "device": "cpu" if on_cpu else torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "shiftnorm": version("shiftnorm"),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "settings": {
            "threads": torch.get_num_threads(),
            "clock": "CPU time of the thread" if on_cpu else "wall clock, synchronised",
            "images": {str(size): count for size, count in counts.items()},
            "rounds": rounds,
            "storage": "none; the row 'storage as JPEG' is what it adds",
        },
        "load": {"before": load_before, "after": load_average()},
        "seconds": time.perf_counter() - began,
        "sizes": sizes,
        "peer": others,
    }


def measured_size(images: Tensor, constants: str, rounds: int) -> dict[str, Any]:
    """Milliseconds per image of each corruption at each severity."""

    def timer(name: str, severity: int, storage: str = "none") -> Callable[[], tuple[float, float]]:
        def call() -> tuple[float, float]:
            start = clock(images.device)
            corrupt(images, name, severity, constants=constants, storage=storage)
            return 1e3 * (clock(images.device) - start) / len(images), 0.0

        return call

    steps = {f"{name}/{severity}": timer(name, severity) for name in names() for severity in SEVERITIES}
    steps |= {f"contrast with storage/{severity}": timer("contrast", severity, "jpeg85") for severity in SEVERITIES}
    taken = interleaved(steps, warmup=1, min_rounds=rounds, max_rounds=rounds, seconds=0)
    rows = {
        name: [spread([each[f"{name}/{severity}"][0] for each in taken]) for severity in SEVERITIES]
        for name in (*names(), "contrast with storage")
    }
    means = {name: sum(row["median"] for row in found) / len(found) for name, found in rows.items()}
    return {
        "constants": constants,
        "rows": {
            name: {"ms": means[name], "images_per_second": 1e3 / means[name], "severities_ms": rows[name]}
            for name in names()
        },
        "storage_ms": means["contrast with storage"] - means["contrast"],
        "common_ms": sum(means[name] for name in choose_corruptions("common")),
    }


def clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measured_peer(python: str, counts: dict[int, int]) -> dict[str, Any]:
    """The same for imagecorruptions, as it is: a corruption that fails is a result too."""
    arrays: dict[str, Any] = {
        str(size): pictures(min(count, PEER_IMAGES[size]), size).permute(0, 2, 3, 1).numpy()
        for size, count in counts.items()
    }
    theirs = [name.replace("frost_procedural", "frost") for name in choose_corruptions("all")]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, **arrays)
        done = subprocess.run(
            [python, "-c", PEER_PROGRAM, str(path), json.dumps(theirs)],
            capture_output=True,
            text=True,
            env={**os.environ, **single},
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"name": PEER, "error": lines[-1] if lines else f"exit status {done.returncode}"}
    return {"name": PEER, **json.loads(done.stdout.splitlines()[-1])}


def load(path: Path) -> dict[str, Any]:
    """A record from its file."""
    record = json.loads(path.read_text())
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a record of format {FORMAT}, got {record.get('format')!r}.")
    return record


def table(record: dict[str, Any]) -> str:
    """Milliseconds per image and images per second, the mean over severities, and the peer's beside them."""
    sizes, peer = record["sizes"], record["peer"]
    head = [f"{size} px: {what}" for size in sizes for what in ("ms", "images/s", *([f"{PEER} ms"] if peer else []))]
    lines = ["| Corruption | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    for name in next(iter(sizes.values()))["rows"]:
        cells = []
        for size, found in sizes.items():
            row = found["rows"][name]
            cells += [f"{row['ms']:.3g}", f"{row['images_per_second']:,.0f}"]
            cells += [peer_cell(peer, size, name)] if peer else []
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for label, key in (("sum of the 15", "common_ms"), ("storage as JPEG", "storage_ms")):
        cells = []
        for found in sizes.values():
            cells += [f"{found[key]:.3g}", f"{1e3 / found[key]:,.0f}"] + ([""] if peer else [])
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append("")
    for size, found in sizes.items():
        target = TARGETS[int(size)]
        verdict = "met" if found["common_ms"] <= target else "missed"
        lines.append(f"At {size} px the 15 take {found['common_ms']:.3g} ms per image; target {target:.3g}: {verdict}.")
    if "32" in sizes:
        minutes = sizes["32"]["common_ms"] * 10_000 * len(SEVERITIES) / 60e3
        lines.append(f"A CIFAR-10-C (10,000 images, 15 x 5) takes {minutes:.2g} minutes of one core.")
    if peer and "error" in peer:
        lines.append(f"{PEER} did not run: {peer['error']}.")
    return "\n".join(lines)


def peer_cell(peer: dict[str, Any], size: str, name: str) -> str:
    found = peer.get("sizes", {}).get(size, {}).get("frost" if name == "frost_procedural" else name)
    if found is None:
        return "–"
    return "fails" if "error" in found else f"{sum(found['ms']) / len(found['ms']):.3g}"


if __name__ == "__main__":
    main()
