"""One placement in one model: converted, tried, saved, loaded and taken back, or refused with a reason."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftnorm.surgery import PLACEMENTS, Report, convert, load, revert, save
from shiftnorm.surgery.report import outputs_of

# With these a trained model has to keep its function in evaluation mode; every other one has to move it.
PRESERVING = {"cnsn", "selfnorm", "crossnorm", "rbn", "bin", "batch", "mixstyle", "efdmix", "dsu", "padain"}
NAMES = [*PLACEMENTS, "selfnorm@pre", "selfnorm@identity", "selfnorm@post"]


@dataclass
class Outcome:
    """What happened.

    outcome: "converted", "refused" (a ValueError that says why) or "failed" (any other exception: loud, but a defect).
    silent: everything that went wrong without a word: the number that has to be 0.
    """

    model: str
    placement: str
    outcome: str
    changed: int = 0
    skipped: int = 0
    reason: str = ""
    max_delta: float | None = None
    kept: bool | None = None
    saved: bool = False
    seconds: float = 0.0
    silent: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        if self.max_delta is not None and not math.isfinite(self.max_delta):
            data["max_delta"] = str(self.max_delta)
        return data


def trained(model: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """Weights and running moments such as training leaves them: no branch is dead, no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    batch = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (parameter.dim() == 1 and name.endswith("weight")) or name.endswith("gain"):
                parameter.uniform_(0.8, 1.2, generator=generator)
            elif name.endswith("gamma") or "layer_scale" in name:
                parameter.fill_(0.5)
        # Running moments of this input, a little off: else the signal dies out, and with it every difference.
        momenta = [module.momentum for module in batch]
        for module in batch:
            module.momentum = 1.0
        model.train()(x)
        for module, momentum in zip(batch, momenta, strict=True):
            module.momentum = momentum
            spread = module.running_var.sqrt()
            module.running_mean += spread * torch.empty_like(spread).normal_(0, 0.1, generator=generator)
            module.running_var *= torch.empty_like(spread).uniform_(0.8, 1.2, generator=generator)
    return model.eval()


class Trial:
    """A model on which placements are tried one after the other; each has to leave it as it was."""

    def __init__(self, name: str, build: Callable[[], nn.Module], x: Tensor, *, disk: bool) -> None:
        self.name, self.build, self.x, self.disk = name, build, x, disk
        self.start()

    def start(self) -> None:
        self.model = trained(self.build(), self.x)
        self.expected = outputs_of(self.model, self.x)
        # How far rounding alone moves the outputs: some nets of random weights amplify the last bit a billion times.
        nudged = outputs_of(self.model, self.x * (1 + 8 * torch.finfo(self.x.dtype).eps))
        self.sensitivity = (nudged - self.expected).abs().max().item()
        self.keys = list(self.model.state_dict())
        self.types = [type(module) for module in self.model.modules()]
        self.called = called_in(self.model, self.x)

    def run(self, placement: str) -> Outcome:
        start = time.perf_counter()
        torch.manual_seed(0)
        result = Outcome(self.name, placement, "converted")
        try:
            model, report = convert(self.model, placement, example_input=self.x)
        except ValueError as refusal:
            result.outcome, result.reason = "refused", str(refusal)
            self.compare(result, "after the refusal")
        except Exception as fault:  # any other exception is no refusal
            result.outcome, result.reason = "failed", f"{type(fault).__name__}: {fault}"
            self.start()
        else:
            self.examine(result, model, report)
        result.seconds = time.perf_counter() - start
        if result.silent or result.outcome == "failed":
            self.start()
        return result

    def examine(self, result: Outcome, model: nn.Module, report: Report) -> None:
        result.changed, result.skipped = len(report), len(report.skipped)
        if not len(report):
            result.outcome = "refused"
            result.reason = "; ".join(sorted({reason for _, reason in report.skipped}))[:300]
        assert report.movement is not None
        result.max_delta, result.kept = report.movement.max, report.movement.kept
        try:
            self.judge(result, model, report)
        except Exception as fault:  # a converted model that raises in use is a failure nobody was told of
            result.silent.append(f"{type(fault).__name__}: {fault}"[:300])
        try:
            self.model = revert(model, report)
        except Exception as fault:  # any: it is what the benchmark counts
            result.silent.append(f"revert: {type(fault).__name__}: {fault}"[:300])
            return
        self.compare(result, "after revert")

    def judge(self, result: Outcome, model: nn.Module, report: Report) -> None:
        assert report.movement is not None
        name = result.placement.partition("@")[0]
        if name in PRESERVING and not result.kept and report.movement.max > 100 * self.sensitivity:
            result.silent.append(f"the function moved by {result.max_delta:.3g}")
        if name not in PRESERVING and len(report) and result.max_delta == 0:
            result.silent.append("nothing moved: the new norms take no part")
        called = called_in(model, self.x)
        dead = [c.edit.path for c in report.changes if c.edit.path in self.called and c.edit.path not in called]
        if dead:
            result.silent.append(f"not called any more: {', '.join(dead[:3])}")
        before = outputs_of(model, self.x)
        if self.disk and len(report):
            with tempfile.TemporaryDirectory() as folder:
                path = save(model, Path(folder) / "model.safetensors")
                again, _ = load(path, self.build())
                result.saved = True
                if not same(outputs_of(again, self.x), before):
                    result.silent.append("loaded from its file, the model gives other outputs")
        self.train(result, model, report)

    def train(self, result: Outcome, model: nn.Module, report: Report) -> None:
        """One forward and backward in training mode; the state is put back."""
        state = copy.deepcopy(model.state_dict())  # with the versions that some modules ask for
        modes = [(module, module.training) for module in model.modules()]
        model.train()
        try:
            loss = sum(tensor.float().square().mean() for tensor in flat(model(self.x)))
            loss.backward()
            if not torch.isfinite(loss):
                result.silent.append("the training loss is not finite")
            for change in report.changes:
                if change.edit.path not in self.called:
                    continue  # not in use in the original either
                for key, parameter in change.norm.named_parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        result.silent.append(f"no gradient for {key} of the norm at {change.edit.path}")
                        return
        finally:
            model.zero_grad(set_to_none=True)
            for module, mode in modes:
                module.training = mode
            model.load_state_dict(state)

    def compare(self, result: Outcome, when: str) -> None:
        if not same(outputs_of(self.model, self.x), self.expected):
            result.silent.append(f"{when}, the outputs differ from before")
        if list(self.model.state_dict()) != self.keys:
            result.silent.append(f"{when}, the state_dict has other keys")
        if [type(module) for module in self.model.modules()] != self.types:
            result.silent.append(f"{when}, modules have other types")


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two vectors are equal bit for bit, NaN included."""
    return one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())


def called_in(model: nn.Module, x: Tensor) -> set[str]:
    """The dotted names of the modules that an evaluation forward calls."""
    called: set[str] = set()
    handles = [
        # containers only: a hook on a member of a Chain would unfuse it
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in model.named_modules()
        if not inside_chain(model, name)
    ]
    try:
        outputs_of(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return called


def inside_chain(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    return any(type(model.get_submodule(".".join(parts[:end]))).__name__ == "Chain" for end in range(1, len(parts)))


def flat(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else ()
    return [tensor for part in values for tensor in flat(part)]
