"""Training on two ranks with synchronised norms, and in one process on the whole batches: the same, step for step."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, distributed, nn

from ranks import on_ranks
from shiftnorm.norms import CrossNorm, CrossNormController
from shiftnorm.tasks import Classify
from toy_training import Given, batch, network, recipe, task, trainer

STEPS = 4
SIZES = [8, 8, 8, 5]  # the last batch is shared unevenly, 3 and 2


class Fade(nn.Module):
    """Multiplies by another number in every pass, so that the passes of a consistency differ, alike on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x * (1 + 0.3 * (self.passes % 3))


def toy() -> nn.Sequential:
    """The toy network, whose CrossNorms never act: a permutation of a rank's part is none of the whole batch's."""
    model = network()
    for module in model.modules():
        if isinstance(module, CrossNorm):
            module.p = 0.0
    model.insert(1, Fade())
    return model


class After(L.Callback):
    """Weights, buffers and gradients after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Classify, *_: Any) -> None:
        self.seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})


PLAN: dict[str, Any] = {
    "crossnorm": {"p": 0.6, "consistency": 10.0, "statistics": "separate"},
    "optimizer": {"clip": 0.5},
    "ema": 0.9,
}


def train(batches: list[tuple[Tensor, Tensor]], **options: Any) -> tuple[list[dict[str, Tensor]], int]:
    """The states after every step, and the number of forward passes."""
    trained, after = task(toy(), STEPS, recipe(**PLAN)), After()
    engine = trainer(max_epochs=1, callbacks=[after], precision="64-true", **options)
    engine.fit(trained, Given(list(batches)))
    return after.seen, trained.model[1].passes


def whole() -> list[tuple[Tensor, Tensor]]:
    return [batch(size, seed) for seed, size in enumerate(SIZES)]


def as_launched(rank: int) -> None:
    """What torchrun sets for a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in names.items()}, TORCHELASTIC_RUN_ID="toy")


def on_rank(rank: int, _: Tensor) -> dict[str, Any]:
    as_launched(rank)
    parts = [tuple(tensor.chunk(2)[rank] for tensor in pair) for pair in whole()]
    states, passes = train(parts, strategy="ddp", devices=2)
    return {"states": states, "passes": passes, "flags": flags(), "stop": stop(rank)}


def flags() -> list[list[bool]]:
    """Which layers a controller draws, step after step."""
    controller = CrossNormController(network(), active_num=1, p=0.7, seed=3)
    return [controller.step().tolist() for _ in range(12)]


def stop(rank: int) -> str:
    """What a rank says when the loss of the other one stops being finite."""
    model = toy()
    trap = nn.Identity()
    bad = batch(4, 3)[0].fill_(255)
    trap.register_forward_hook(lambda _, inputs, y: y * torch.where(inputs[0].mean() > 1.9, torch.nan, 1.0))
    model.insert(0, trap)
    pairs = [(bad, torch.zeros(4, dtype=torch.int64)) if rank == 1 and n == 2 else batch(4, n) for n in range(4)]
    indexed = [(*pair, torch.arange(4) + 10 * n + 100 * rank) for n, pair in enumerate(pairs)]
    trained = task(model, STEPS, recipe())
    engine = trainer(max_epochs=1, strategy="ddp", devices=2)
    # Lightning takes the group of a failed run down; here both ranks have caught it, and go on.
    destroy, distributed.destroy_process_group = distributed.destroy_process_group, lambda *_: None
    try:
        engine.fit(trained, Given(indexed))
    except ArithmeticError as error:
        finite = all(value.isfinite().all() for value in trained.state_dict().values())
        return f"{error} {'All' if finite else 'Not all'} is finite."
    finally:
        distributed.destroy_process_group = destroy
    return "nothing"


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return on_ranks(on_rank, [torch.zeros(1), torch.zeros(1)])


def test_two_ranks_train_as_one_process(ranks: list[dict[str, Any]]) -> None:
    wanted, passes = train(whole())
    assert len(wanted) == STEPS and STEPS < passes < 3 * STEPS  # extra passes in some steps, not in all
    for rank in ranks:
        assert rank["passes"] == passes
        for found, state in zip(rank["states"], wanted, strict=True):
            assert found.keys() == state.keys()
            for name, value in state.items():
                torch.testing.assert_close(
                    found[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
                )
    assert not torch.equal(wanted[0]["model.0.weight"], wanted[-1]["model.0.weight"])
    assert {name.partition(".")[0] for name in wanted[0]} == {"model", "average", "statistics"}


def test_ranks_draw_the_same_layers(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["flags"] == ranks[1]["flags"] == flags()
    assert len({tuple(drawn) for drawn in ranks[0]["flags"]}) == 3


def test_all_ranks_stop_together(ranks: list[dict[str, Any]]) -> None:
    assert "the training loss is nan at step 3 of 4" in ranks[1]["stop"]
    assert "the output of '0' (Identity). Samples of the batch: 120, 121, 122, 123." in ranks[1]["stop"]
    assert "at step 3 of 4" in ranks[0]["stop"]
    assert all(rank["stop"].endswith("All is finite.") for rank in ranks)
