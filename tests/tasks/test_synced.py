"""What synchronised norms of a training tell about those that cannot be, and what becomes of their statistics."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranks import on_ranks
from shiftnorm.norms import CrossNorm, MixtureNorm
from shiftnorm.tasks import Classify, Normalize, Objective
from toy_training import CLASSES, batch, recipe


def synced(*norms: nn.Module) -> str:
    """What is said when norms are to pool over all ranks."""
    trained = Classify(nn.Sequential(*norms), steps=1, synced=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trained.configure_model()
        except ValueError as fault:
            return f"ValueError: {fault}"
    return "; ".join(str(each.message) for each in caught)


class Halved(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def with_activation() -> nn.Sequential:
    from timm.layers.norm_act import BatchNormAct2d

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchNormAct2d(4), CrossNorm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def statistics_of(choice: str) -> list[float]:
    """The clean and the other running means after one step with extra passes."""
    plan = recipe(crossnorm={"p": 1.0, "consistency": 10.0, "statistics": choice}, synced=True)
    model = with_activation()
    objective = Objective.of(plan, model, Normalize(), classes=CLASSES)
    trained = Classify(model, steps=1, objective=objective, synced=True)
    trained.configure_model()
    objective(*batch(), 0)
    return [value.sum().item() for name, value in trained.state_dict().items() if name.endswith("running_mean")]


def on_rank(rank: int, _: Tensor) -> dict[str, Any]:
    from timm.layers.filter_response_norm import FilterResponseNormAct2d

    return {
        "some": synced(nn.BatchNorm2d(4), MixtureNorm(4), Halved(4)),
        "none": synced(MixtureNorm(4)),
        "foreign": synced(Halved(4)),
        "all": synced(nn.BatchNorm2d(4)),
        "without": synced(nn.LayerNorm(4)),
        "by sample": synced(FilterResponseNormAct2d(4)),
        "frozen": statistics_of("frozen"),
        "separate": statistics_of("separate"),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    pytest.importorskip("timm")
    return on_ranks(on_rank, [torch.zeros(1), torch.zeros(1)])


def test_norms_that_cannot_pool_are_named_once(ranks: list[dict[str, Any]]) -> None:
    text = ranks[0]["some"]
    assert "norms pool over all processes, but 2 cannot and look at the batches of their own process: " in text
    assert "1: MixtureNorm left alone, it fits its mixture to the pixels of this rank's batch; 2: Halved left" in text
    assert ranks[1]["some"] == ""


@pytest.mark.parametrize("case", ["none", "foreign"])
def test_where_none_can_pool_it_is_an_error(ranks: list[dict[str, Any]], case: str) -> None:
    for rank in ranks:
        assert "ValueError: Classify: expected norms that can pool over all processes" in rank[case]
        assert "set loop.synced to false" in rank[case] and "left alone" in rank[case]


@pytest.mark.parametrize("case", ["all", "without", "by sample"])
def test_where_all_pool_or_none_needs_to_nothing_is_said(ranks: list[dict[str, Any]], case: str) -> None:
    assert [rank[case] for rank in ranks] == ["", ""]


def test_extra_passes_find_statistics_that_have_moved_into_a_part(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (frozen,) = rank["frozen"]
        clean, other = rank["separate"]
        assert frozen == clean != 0 and other not in (0, clean)
