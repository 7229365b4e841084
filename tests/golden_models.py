"""Golden networks: logits, stages, gradients and buffers of whole backbones, as the authors' code computed them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_cases import load_entries
from golden_families import Golden, build, identify
from golden_weights import IMAGE_GRADIENT, formula_images, formula_state, is_counter, places, probe
from shiftnorm.norms.cross_norm import CrossNormDraw

# Largest difference allowed, as a fraction of max(1, largest expected value).
TOLERANCE = {"eval": 1e-9, "train": 1e-8}
# Gradients are compared by their own size, since many are far below 1. Some are zero in exact arithmetic (of a bias
# that a BatchNorm follows, say), and then rounding on both sides, in proportion to the network's other gradients.
NOISE = 1e-13

# What else lies in a golden folder.
ELSEWHERE = ("layers", "layers_research_only", "corruptions", "augmix")

State = dict[str, Tensor]


@dataclass(frozen=True)
class ModelCase:
    """One file."""

    path: Path
    meta: dict[str, Any]
    arrays: State

    @property
    def training(self) -> bool:
        return self.meta["part"] == "train"

    @property
    def name(self) -> str:
        return f"{self.meta['name']}_{self.meta['part']}"

    def under(self, prefix: str) -> State:
        """The arrays below ``prefix``, without it."""
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    @property
    def expected(self) -> State:
        """Everything that a run is compared with, one entry for each tensor."""
        whole = ("logits", "loss", "labels", "grad_x_probe")
        found = {key: value for key, value in self.arrays.items() if key in whole or key.startswith("stage.")}
        for kind in ("grad", "buffer_after"):
            names = self.meta.get("grad_names" if kind == "grad" else "buffer_names", ())
            rows = self.arrays.get(f"{kind}_probe", ())
            found |= {f"{kind}.{name}": row for name, row in zip(names, rows, strict=True)}
        return found


def _files(directory: Path, pattern: str) -> list[Path]:
    found = sorted(directory.rglob(pattern))
    return [path for path in found if path.relative_to(directory).parts[0] not in ELSEWHERE]


def find_model_cases(directory: Path) -> list[Path]:
    """Every npz of a network in ``directory`` or below, found by its own meta and not from an index."""

    def is_network(path: Path) -> bool:
        with np.load(path) as z:
            return "meta" in z.files and "family" in json.loads(str(z["meta"]))

    # In the networks' own folder a meta will do: what is wrong with it, the test says.
    return [path for path in _files(directory, "*.npz") if path.parent.name == "models" or is_network(path)]


def find_listings(directory: Path) -> list[Path]:
    """Every list of a network's tensors."""

    def is_listing(path: Path) -> bool:
        said = json.loads(path.read_text())
        return isinstance(said, dict) and "tensors" in said

    return [path for path in _files(directory, "*.json") if is_listing(path)]


def find_counts(directory: Path) -> list[Path]:
    """The parameter counts of IBN-Net's constructors."""
    return _files(directory, "ibnnet*counts.json")


def load_model_case(path: Path) -> ModelCase:
    meta, arrays = load_entries(path, "a golden network")
    if missing := {"name", "part", "family", "kw", "N", "HW"} - meta.keys():
        raise ValueError(f"{path}: expected the entries {sorted(missing)} in its meta too, found {sorted(meta)}")
    if meta["part"] not in TOLERANCE:
        raise ValueError(f"{path}: expected part eval or train, found {meta['part']!r}")
    needed = {"logits"}
    if meta["part"] == "train":
        needed |= {"labels", "loss", "grad_probe", "buffer_after_probe", "grad_x_probe"}
    if missing := needed - arrays.keys():
        raise ValueError(f"{path}: expected the arrays {sorted(missing)} too")
    return ModelCase(path, meta, arrays)


def shapes_of(golden: Golden) -> dict[str, tuple[int, ...]]:
    """The authors' state_dict: names and shapes of ours, and those that ours need not have."""
    ours = golden.to_official(golden.model.state_dict())
    return {name: tuple(value.shape) for name, value in ours.items()} | dict(golden.dead_shapes)


def check_listing(golden: Golden, listing: Mapping[str, Any]) -> None:
    """Our state_dict under the authors' names is theirs: names, shapes, and the number of parameters."""
    shapes = shapes_of(golden)
    theirs = {entry["name"]: tuple(entry["shape"]) for entry in listing["tensors"]}
    kinds = {entry["name"]: entry["kind"] for entry in listing["tensors"]}
    problems = [
        f"{name}: {shapes.get(name, 'missing')}, expected {theirs.get(name, 'none')}"
        for name in sorted(shapes.keys() | theirs.keys())
        if shapes.get(name) != theirs.get(name)
    ]
    if places(shapes) != {entry["name"]: entry["k"] for entry in listing["tensors"] if entry["k"] is not None}:
        problems.append("k: other places among the sorted names")
    parameters = golden.to_official(dict(golden.model.named_parameters()))
    dead = {name for name in golden.dead_shapes if kinds.get(name) == "parameter"}
    if parameters.keys() | dead != {name for name, kind in kinds.items() if kind == "parameter"}:
        problems.append("other tensors are parameters")
    count = count_parameters(golden)
    if count != listing["n_parameters"]:
        problems.append(f"{count:,} parameters, expected {listing['n_parameters']:,}")
    assert not problems, f"golden model {listing['model']}:\n  " + "\n  ".join(problems)


def count_parameters(golden: Golden) -> int:
    """How many numbers the authors' network learns, or would if all were alive."""
    dead = [shape for name, shape in golden.dead_shapes.items() if name.endswith((".weight", ".bias"))]
    return sum(value.numel() for value in golden.model.parameters()) + sum(math.prod(shape) for shape in dead)


def load_weights(golden: Golden, case: ModelCase) -> None:
    """Give our network the formula's weights, and in evaluation the file's running moments."""
    state = formula_state(shapes_of(golden))
    running = case.under("running.")
    expected = {name for name in state if name.endswith(("running_mean", "running_var")) and not case.training}
    missing, unknown = expected - running.keys() - golden.dead_shapes.keys(), running.keys() - expected
    if missing or unknown:
        raise AssertionError(
            f"golden case {case.name}: expected running moments of the layers that ours has; missing "
            f"{sorted(missing)[:8]}, unknown {sorted(unknown)[:8]}"
        )
    whole = {name: running[name].double() if name in running else value for name, value in state.items()}
    golden.model.double().train(case.training)
    golden.model.load_state_dict(
        golden.from_official({name: value for name, value in whole.items() if name not in golden.dead_shapes})
    )


def replay(golden: Golden, case: ModelCase, crop: str) -> None:
    """Let the CrossNorms that were active draw what the authors' drew, and switch the others off."""
    crossings = golden.cross_norms()
    for norm in crossings:
        if norm is not None:
            norm.active.fill_(False)
    drawn = case.under("draw.")
    if not drawn:
        return
    # Keys are NUMBER.FUNCTION.
    left = [
        (key.partition(".")[2], drawn[key].long()) for key in sorted(drawn, key=lambda key: int(key.partition(".")[0]))
    ]

    def take(function: str) -> Tensor:
        if not left or left[0][0] != function:
            found = left[0][0] if left else "no more"
            raise AssertionError(f"golden case {case.name}: expected a draw of {function}, the file has {found}")
        return left.pop(0)[1]

    every = list(range(len(crossings)))
    active = sorted(take("np.random.choice").reshape(-1).tolist()) if left[0][0] == "np.random.choice" else every
    if not set(active) <= set(every):
        raise AssertionError(f"golden case {case.name}: CrossNorms {active} are active, ours has {len(crossings)}")
    for index in active:
        draw = CrossNormDraw(
            torch.tensor(True),
            take("randperm"),
            None,
            take("cn_rand_bbox") if crop in ("style", "both") else None,
            take("cn_rand_bbox") if crop in ("content", "both") else None,
        )
        norm = crossings[index]
        if norm is not None:
            norm.active.fill_(True)
            norm.draw = lambda x, generator=None, draw=draw: draw
    if left:
        raise AssertionError(f"golden case {case.name}: draws that no CrossNorm takes: {[name for name, _ in left]}")


@dataclass(frozen=True)
class Outcome:
    """What our network made of a case, under the keys of the expected values, and what it need not have made."""

    got: State
    dead: frozenset[str] = frozenset()


def run_case(case: ModelCase, *, nudged: int | None = None) -> Outcome:
    """Forward, and in training backward, of our network; ``nudged`` is the seed of a change in the images' last bit."""
    network = identify(case.meta)
    golden = build(network)
    load_weights(golden, case)
    replay(golden, case, network.crop)
    stages = {key.removeprefix("stage.").rpartition(".")[0] for key in case.arrays if key.startswith("stage.")}
    got = golden.listen(stages)
    images = formula_images(case.meta["N"], case.meta["HW"])
    if nudged is not None:
        bits = torch.randint(-1, 2, images.shape, generator=torch.Generator().manual_seed(nudged))
        images *= 1 + torch.finfo(images.dtype).eps * bits.double()
    images.requires_grad_(case.training)
    with torch.set_grad_enabled(case.training):
        logits = golden.model(images)
    got["logits"] = logits.detach()
    if not case.training:
        return Outcome(got)
    labels = 3 * torch.arange(len(images)) % logits.shape[1]
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    assert images.grad is not None
    got |= {"labels": labels, "loss": loss.detach(), "grad_x_probe": probe(images.grad, IMAGE_GRADIENT)}
    gradients = {name: p.grad for name, p in golden.model.named_parameters() if p.grad is not None}
    k = places(shapes_of(golden))
    for kind, tensors in (("grad", gradients), ("buffer_after", dict(golden.model.named_buffers()))):
        theirs = golden.to_official(tensors)
        got |= {f"{kind}.{name}": probe(theirs[name], k[name]) for name in theirs if not is_counter(name)}
    return Outcome(got, frozenset(f"{kind}.{name}" for name in golden.dead_shapes for kind in ("grad", "buffer_after")))


def group(key: str) -> str:
    """The results that rounding reaches alike: a stage, the logits with the loss, all gradients, all buffers."""
    head, _, rest = key.partition(".")
    if head == "stage":
        return rest.rpartition(".")[0]
    return {"loss": "logits", "grad_x_probe": "grad"}.get(head, head)


def size(key: str, want: Tensor) -> float:
    largest = want.abs().max().item()
    return largest if key.startswith("grad") else max(1.0, largest)


def sensitivity(case: ModelCase, got: State) -> dict[str, float]:
    """By how much, relative to its size, the last bit of the images changes each group of results.

    A SelfNorm's gate divides by the deviation of a batch. In a batch of two that is the difference of two numbers, and
    rounding in it grows from block to block: a ResNet-50 with the formula's weights has four digits left in its
    gradients.
    """
    found: dict[str, float] = {}
    for seed in range(3):
        for key, value in run_case(case, nudged=seed).got.items():
            if (scale := size(key, got[key])) > 0:
                change = (value - got[key]).abs().max().item() / scale
                found[group(key)] = max(found.get(group(key), 0.0), change)
    return found


def differences(case: ModelCase, outcome: Outcome, sensitive: Mapping[str, float] | None = None) -> list[str]:
    """What is missing or not theirs, what has another shape, and what differs by more than is allowed.

    Args:
        case: with the expected results.
        outcome: with ours.
        sensitive: what the last bit of the images does; ten times as much is allowed if the tolerance is less.
    """
    expected, got = case.expected, outcome.got
    problems = [f"{key}: missing" for key in expected.keys() - got.keys() - outcome.dead]
    # A stage's deviation is made here whether or not it is asked for.
    problems += [f"{key}: not theirs" for key in got.keys() - expected.keys() if not key.startswith("stage.")]
    without = {f"grad.{name}" for name in case.meta.get("no_grad_params", ())}
    problems += [f"{key}: expected no gradient" for key in without & got.keys()]
    noise = NOISE * max([1.0, *(size(key, want) for key, want in expected.items() if key.startswith("grad"))])
    for key in expected.keys() & got.keys():
        have, want = got[key], expected[key]
        if have.shape != want.shape:
            problems.append(f"{key}: shape {tuple(have.shape)}, expected {tuple(want.shape)}")
            continue
        tolerance = max(TOLERANCE[case.meta["part"]], 10 * (sensitive or {}).get(group(key), 0.0))
        limit = max(tolerance * size(key, want), noise if key.startswith("grad") else 0.0)
        difference = (have - want).abs().max().item()
        if not difference <= limit:
            problems.append(f"{key}: differs by {difference:.2e}, allowed {limit:.2e}")
    return sorted(problems)


def check_case(case: ModelCase) -> None:
    """Run our network on a case and compare everything that the file has."""
    outcome = run_case(case)
    problems = differences(case, outcome)
    if problems:
        problems = differences(case, outcome, sensitivity(case, outcome.got))
    assert not problems, f"golden case {case.name} ({case.meta['kw']}):\n  " + "\n  ".join(problems[:20])
