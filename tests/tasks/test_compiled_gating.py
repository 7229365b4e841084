"""A compiled network has no graph break, and gating does not compile it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from toy_training import Watched, batch, network


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Sequential, **parts: Any) -> tuple[Watched, CompileCounter]:
    watched, counter = Watched(model, **parts), CompileCounter()
    # A graph break is an error with fullgraph; hooks are left out, which would be one.
    model._forward_hooks.clear()
    model.compile(backend=counter, fullgraph=True)
    return watched, counter


def train(watched: Watched, steps: int) -> set[tuple[bool, ...]]:
    optimizer = torch.optim.SGD(watched.model.parameters(), 0.01)
    flags: set[tuple[bool, ...]] = set()
    for step in range(steps):
        loss, _ = watched.objective(*batch(seed=step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        flags.add(tuple(bool(layer.active) for layer in watched.layers))
    return flags


def test_gating_is_one_graph() -> None:
    watched, counter = compiled(network("both"), crossnorm={"p": 0.6})
    assert train(watched, 12) == {(False, False), (True, False), (False, True)}
    assert counter.frame_count == 1


@pytest.mark.parametrize("statistics", ["shared", "frozen", "separate"])
def test_consistency_is_one_graph(statistics: str) -> None:
    parts = {"p": 0.6, "consistency": 10.0, "statistics": statistics}
    watched, counter = compiled(network(), crossnorm=parts)
    buffers = [buffer.data_ptr() for buffer in watched.model.buffers()]
    assert len(train(watched, 8)) >= 2
    assert counter.frame_count == 1
    assert [buffer.data_ptr() for buffer in watched.model.buffers()] == buffers
    assert watched.model[1].num_batches_tracked.item() == (8 if statistics != "shared" else 8 + 2 * coins(watched))


def coins(watched: Watched) -> int:
    quiet = Watched(network(), crossnorm={"p": 0.6, "consistency": 10.0})
    return sum("crossnorm_divergence" in quiet(*batch(seed=step), step)[1] for step in range(8))


def test_the_compiled_loss_is_the_eager_one() -> None:
    parts = {"crossnorm": {"p": 1.0, "consistency": 10.0, "statistics": "separate"}}
    watched, counter = compiled(network("both"), **parts)
    eager = Watched(network("both"), **parts)
    for step in range(3):
        found, wanted = watched.objective(*batch(seed=step), step)[0], eager(*batch(seed=step), step)[0]
        torch.testing.assert_close(found, wanted)
    assert counter.frame_count == 1
    ours, theirs = watched.objective.statistics.state_dict(), eager.objective.statistics.state_dict()
    torch.testing.assert_close(dict(ours), dict(theirs))


def test_augmix_and_consistency_compile_once_per_batch_size() -> None:
    parts = {"crossnorm": {"p": 0.5, "consistency": 10.0}, "augmix": {"enabled": True}}
    watched, counter = compiled(network(), **parts)
    for step in range(10):  # 3 x 8 images in one pass, then 8 in the others
        watched.objective(*batch(size=32), step)[0].backward()
        if step == 5:
            early = counter.frame_count
    assert early == counter.frame_count == 2
