"""Running statistics after one step with extra passes, by hand, for each choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import BatchNorm, MixtureNorm, SelfNorm
from shiftnorm.tasks.statistics import PassStatistics
from toy_training import Watched, batch, network

CONSISTENT = {"p": 1.0, "consistency": 10.0, "active_num": 2}


def run(choice: str, step: int = 0) -> tuple[Watched, dict[str, list[Tensor]]]:
    """One step, and what every norm's statistics were made from in each of the three passes."""
    watched = Watched(network(), crossnorm={**CONSISTENT, "statistics": choice})
    seen: dict[str, list[Tensor]] = {"1": [], "3.norms.1.gate": [], "5": []}
    model = watched.model
    seen = {"1": [], "5": [], gate_path(model): []}
    for path in ("1", "5"):
        model.get_submodule(path).register_forward_pre_hook(lambda _, x, path=path: seen[path].append(x[0].detach()))
    gate = model.get_submodule(gate_path(model))

    def see_gate(module: Any, inputs: tuple[Tensor, Tensor]) -> None:
        mean, std = inputs
        of_mean, of_std = module.fc.detach().unbind(1)
        seen[gate_path(model)].append((of_mean * mean + of_std * std).detach())

    gate.register_forward_pre_hook(see_gate)
    watched(*batch(), step)
    return watched, seen


def gate_path(model: nn.Module) -> str:
    (path,) = [path for path, _ in model.named_modules() if path.endswith("gate")]
    return path


def by_hand(passes: list[Tensor]) -> dict[str, Tensor]:
    """torch's rule with momentum 0.1 and the unbiased variance, pass after pass."""
    mean, var = torch.zeros(passes[0].shape[1]), torch.ones(passes[0].shape[1])
    for x in passes:
        values = x.transpose(0, 1).flatten(1)
        mean, var = 0.9 * mean + 0.1 * values.mean(1), 0.9 * var + 0.1 * values.var(1)
    return {"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(len(passes))}


def check(owner: nn.Module, passes: list[Tensor]) -> None:
    for name, value in by_hand(passes).items():
        torch.testing.assert_close(owner.get_buffer(name), value)


@pytest.mark.parametrize("choice", ["shared", "frozen", "separate"])
def test_one_step(choice: str) -> None:
    watched, seen = run(choice)
    statistics = watched.objective.statistics
    for path, passes in seen.items():
        assert len(passes) == 3
        norm = watched.model.get_submodule(path)
        check(norm, passes if choice == "shared" else passes[:1])
        if choice == "separate":
            check(statistics.get_submodule(path), passes[1:])
    # torch's BatchNorm sees restyled features from the second pass on only behind the first CrossNorm
    assert not torch.allclose(seen["5"][0], seen["5"][1])
    assert (len(statistics.state_dict()) > 0) == (choice == "separate")


def test_the_second_set_is_kept_under_the_names_of_the_model() -> None:
    watched, _ = run("separate")
    state = watched.objective.statistics.state_dict()
    names = {name for name, _ in watched.model.named_buffers() if "running" in name or "num_batches" in name}
    assert set(state) == names
    other = Watched(network(), crossnorm={**CONSISTENT, "statistics": "separate"}).objective.statistics
    assert not torch.equal(other.state_dict()["5.running_mean"], state["5.running_mean"])
    other.load_state_dict(state)
    with other.extra_pass():
        pass
    torch.testing.assert_close(dict(other.state_dict()), dict(state))


@pytest.mark.parametrize("choice", ["frozen", "separate"])
def test_gradients_are_those_of_shared_statistics(choice: str) -> None:
    # In training mode no output depends on running statistics, so only they may differ.
    gradients: list[list[Tensor]] = []
    for each in ("shared", choice):
        watched = Watched(network("both"), crossnorm={**CONSISTENT, "statistics": each})
        loss, _ = watched(*batch())
        loss.backward()
        gradients.append([p.grad for p in watched.model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_frozen_passes_read_what_the_clean_pass_made() -> None:
    # The gate of a single sample goes by running moments, also in training.
    norm = SelfNorm(4)
    statistics = PassStatistics(norm, "frozen")
    norm(torch.randn(6, 4, 5, 5))
    x = torch.randn(1, 4, 5, 5)
    clean = norm(x)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    for _ in range(2):
        with statistics.extra_pass():
            norm(torch.randn(6, 4, 5, 5))
            assert not torch.equal(norm(x), clean)
        with statistics.extra_pass():
            torch.testing.assert_close(norm(x), clean)
    torch.testing.assert_close(dict(norm.named_buffers()), before)


NORMS = [
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4, momentum=None),
    nn.InstanceNorm2d(4, track_running_stats=True),
    BatchNorm(4, momentum=None),
    SelfNorm(4, two_branches=True),
    MixtureNorm(4),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: repr(norm)[:40])
def test_every_kind_of_norm_is_held(norm: nn.Module) -> None:
    statistics = PassStatistics(norm, "frozen")
    x = torch.randn(6, 4, 5, 5)
    norm(x)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with statistics.extra_pass():
        norm(x + 3)
        inside = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    assert any(not torch.equal(inside[name], before[name]) for name in before)
    torch.testing.assert_close(dict(norm.named_buffers()), before, rtol=0, atol=0)


def test_an_error_inside_puts_the_clean_set_back() -> None:
    norm = nn.BatchNorm2d(4)
    own = norm.running_mean
    statistics = PassStatistics(norm, "separate")
    with pytest.raises(ValueError, match="expected 4D input"), statistics.extra_pass():
        norm(torch.zeros(3))
    assert norm.running_mean is own


def test_unknown_choice() -> None:
    with pytest.raises(ValueError, match="expected 'shared', 'frozen' or 'separate', got 'own'"):
        PassStatistics(nn.BatchNorm2d(4), "own")
