"""Golden cases: a layer's input, state, draws, output and gradients, as the authors' code computed them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Largest difference allowed, as a fraction of max(1, largest expected value). In float32 both sides round, and sum in
# different orders.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

FOLDERS = ("", "layers", "layers_research_only")


@dataclass(frozen=True)
class Case:
    """One file. Tensors are fresh copies: a test may differentiate or overwrite them."""

    name: str
    layer: str
    kw: dict[str, Any]
    training: bool
    inputs: list[Tensor]
    upstream: Tensor
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    draws: dict[str, Tensor]
    derived: dict[str, Tensor]
    expected: dict[str, Tensor]
    without_gradient: tuple[str, ...]

    @property
    def x(self) -> Tensor:
        return self.inputs[0]

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the authors' names."""
        return {**self.parameters, **self.buffers}

    @property
    def active(self) -> bool:
        """Whether the authors' random layer acted in this forward (their gate is the identity above p)."""
        if not self.training or not self.kw.get("_active", True):
            return False
        gate = self.draws.get("gate")
        return gate is None or float(gate) <= float(self.kw.get("p", 0.5))


@dataclass(frozen=True)
class Outcome:
    """What a layer made of a case: y, and after the backward what became of its parameters and buffers.

    ``collect`` returns entries ``grad_NAME`` and ``buffer_after.NAME`` under the authors' names and in their shapes.
    """

    y: Tensor
    collect: Callable[[], dict[str, Tensor]] = dict


Layer = Callable[[Case], Outcome]


def find_cases(directory: Path) -> list[Path]:
    """Every npz in ``directory`` or in its layer folders, found by globbing and not from an index.

    Networks and corruptions that lie in ``directory`` itself are other tests' affair.
    """
    return sorted(path for folder in FOLDERS for path in (directory / folder).glob("*.npz") if not _is_of_others(path))


def _is_of_others(path: Path) -> bool:
    with np.load(path) as z:
        meta = json.loads(str(z["meta"])) if "meta" in z.files else {}
        # a network; a corruption or its clean images; ImageMagick's answers
        return bool({"family", "versions", "paths"} & meta.keys()) and "layer" not in meta


def load_entries(path: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The meta and the arrays of a file that should hold ``what``."""
    with np.load(path) as z:
        if "meta" not in z.files:
            raise ValueError(f"{path}: expected {what} with a 'meta' entry, found the keys {z.files}")
        meta = json.loads(str(z["meta"]))
        return meta, {key: torch.from_numpy(np.array(z[key])) for key in z.files if key != "meta"}


def load_case(path: Path) -> Case:
    meta, arrays = load_entries(path, "a golden case")

    def group(prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}

    inputs = [arrays[key] for key in ("x", "x0", "x1") if key in arrays]
    if not inputs or "y" not in arrays or "g" not in arrays:
        raise ValueError(f"{path}: expected the keys x (or x0, x1), g and y, found {sorted(arrays)}")
    if missing := {"name", "layer", "kw", "mode"} - meta.keys():
        raise ValueError(f"{path}: expected the entries {sorted(missing)} in its meta too, found {sorted(meta)}")
    gradients = {key: value for key, value in arrays.items() if key.startswith("grad_")}
    buffers_after = {key: value for key, value in arrays.items() if key.startswith("buffer_after.")}
    return Case(
        name=meta["name"],
        layer=meta["layer"],
        kw=meta["kw"],
        training=meta["mode"] == "train",
        inputs=inputs,
        upstream=arrays["g"],
        parameters=group("param."),
        buffers=group("buffer."),
        draws=group("draw."),
        derived=group("derived."),
        expected={"y": arrays["y"], **gradients, **buffers_after},
        without_gradient=tuple(meta.get("no_grad_params", ())),
    )


def run_case(case: Case, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Forward and backward of one case; every result under the key its expected value has."""
    if case.layer not in layers:
        raise AssertionError(
            f"golden case {case.name}: no layer {case.layer!r} in the harness. Add a function for it to the table, "
            f"which has {', '.join(sorted(layers))}."
        )
    before = [x.clone() for x in case.inputs]
    for x in case.inputs:
        x.requires_grad_()
    outcome = layers[case.layer](case)
    (outcome.y * case.upstream).sum().backward()
    for x, untouched in zip(case.inputs, before, strict=True):
        assert torch.equal(x, untouched), f"golden case {case.name}: the forward changed its input in place"
    names = ["grad_x"] if len(case.inputs) == 1 else [f"grad_x{i}" for i in range(len(case.inputs))]
    got: dict[str, Tensor] = {"y": outcome.y.detach()}
    for name, x in zip(names, case.inputs, strict=True):
        got[name] = torch.zeros_like(x) if x.grad is None else x.grad
    return {**got, **outcome.collect()}


def check_case(case: Case, got: Mapping[str, Tensor]) -> None:
    """Every expected entry is there, in its shape, within tolerance; no parameter has a gradient the authors' lacks."""
    problems: list[str] = []
    for key, want in case.expected.items():
        if key not in got:
            problems.append(f"{key}: missing")
            continue
        have = got[key]
        if have.shape != want.shape:
            problems.append(f"{key}: shape {tuple(have.shape)}, expected {tuple(want.shape)}")
        elif not want.is_floating_point():
            if not torch.equal(have.to(want.dtype), want):
                problems.append(f"{key}: {have.tolist()}, expected {want.tolist()}")
        else:
            scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
            difference = (have.to(want.dtype) - want).abs().max().item() if want.numel() else 0.0
            limit = TOLERANCE[case.upstream.dtype] * scale
            if not difference <= limit:
                problems.append(f"{key}: differs by {difference:.2e}, allowed {limit:.2e}")
    for name in case.without_gradient:
        gradient = got.get(f"grad_{name}")
        if gradient is not None and bool(gradient.any()):
            problems.append(f"grad_{name}: expected no gradient, got {gradient.abs().max():.2e}")
    if got["y"].dtype != case.expected["y"].dtype:
        problems.append(f"y: dtype {got['y'].dtype}, expected {case.expected['y'].dtype}")
    assert not problems, f"golden case {case.name} (layer {case.layer}, {case.kw}):\n  " + "\n  ".join(problems)
