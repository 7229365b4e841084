"""Descriptions and reports say what there is, readably, and as JSON."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shiftnorm.models import resnet18
from shiftnorm.norms import CNSN, BatchNorm, GroupNorm, SelfNorm
from shiftnorm.surgery import Movement, Report, convert, describe, insert
from shiftnorm.surgery.report import movement_between, outputs_of, rounding_of


def test_a_converted_model() -> None:
    model, _ = convert(resnet18(num_classes=3), "ibn_a", where="stages:1")
    convert(model, "cnsn", where="stages:4 blocks:last")
    insert(model, "SelfNorm", after="bn1")
    model.layer2.eval()
    for parameter in model.layer3[0].bn1.parameters():
        parameter.requires_grad_(False)
    told = describe(model)
    rows = {row.path: row for row in told.rows}
    assert len(rows) == len(told.rows) == 20 + 3
    assert rows["bn1.0"].chain == "bn1" and rows["bn1.0"].type == "BatchNorm" and rows["bn1.1"].moments != "running"
    assert rows["layer1.0.bn1"].type == "IBN" and rows["layer1.0.bn1"].stage == 1
    assert rows["layer4.1.residual.0"].moments == "own" and rows["layer4.1.residual.0"].learns is None
    assert not rows["layer2.0.bn1"].training and rows["layer2.0.bn1"].moments == "running"
    assert rows["layer3.0.bn1"].learns is False and rows["layer3.0.bn2"].learns is True
    assert told.parameters == sum(p.numel() for p in model.parameters()) and 0 < told.in_norms < told.parameters
    lines = str(told).splitlines()
    assert len(lines) == 2 + 23 and lines[0].startswith("ResNet: 23 norms (")
    columns = lines[1].index("moments")
    assert all(line[columns - 1] == " " and line[columns] != " " for line in lines[1:])  # a table
    assert max(map(len, lines[1:])) < 110 and all(line == line.rstrip() for line in lines)
    data = told.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert len(data["edits"]) == 2 + 1 + 1 and data["norms"][0]["path"] == "bn1.0"


def test_moments_by_source_and_mode() -> None:
    def moments(norm: nn.Module) -> str:
        return describe(norm).rows[0].moments

    norm = BatchNorm(3)
    assert moments(norm) == "batch, updates running" and moments(norm.eval()) == "running"
    for source, expected in (
        ("batch", "batch"),
        ("running", "running"),
        ("ema", "running, updated first"),
        ("blend", "0.5 running + 0.5 batch"),
    ):
        norm.source = source
        assert moments(norm) == expected
    assert moments(BatchNorm(3, track_running_stats=False).eval()) == "batch"
    assert moments(nn.BatchNorm2d(3)) == "batch, updates running" and moments(nn.BatchNorm2d(3).eval()) == "running"
    assert moments(nn.BatchNorm2d(3, track_running_stats=False)) == "batch"
    assert moments(nn.GroupNorm(1, 3)) == "own" and moments(GroupNorm(3, 1)) == "own"


def test_models_without_norms_and_selectors() -> None:
    assert str(describe(nn.Linear(2, 2))) == "Linear: 0 norms; 6 parameters, 0 of them in norms."
    assert str(describe(nn.BatchNorm2d(1))).startswith("BatchNorm2d: 1 norm (1 BatchNorm2d); ")
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.GroupNorm(1, 3))
    assert [row.path for row in describe(model, "type:Group*").rows] == ["1"]
    assert describe(model).rows[0].learns is None and " -" in str(describe(model)).splitlines()[2]
    with pytest.raises(ValueError, match="matches no norm"):
        describe(model, "bn1")
    lazy = nn.Sequential(nn.LazyConv2d(3, 1), nn.LazyBatchNorm2d())
    assert describe(lazy).parameters == describe(lazy).in_norms == 0


def test_a_long_report_is_a_table() -> None:
    x = torch.randn(2, 3, 32, 32)
    model, report = convert(resnet18(num_classes=3), "selfnorm@residual", example_input=x)
    text = str(report)
    lines = text.splitlines()
    assert lines[0].startswith("selfnorm@residual: 8 changed, 0 left alone; parameters 11,")
    assert len(lines) == 1 + 8 + 1 and "The function is kept" in lines[-1]
    arrows = {line.index("nothing -> SelfNorm") for line in lines[1:9]}
    assert len(arrows) == 1 and max(map(len, lines[1:9])) < 120
    data = report.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["changes"][0]["was"] == "nothing" and data["movement"]["kept"] is True
    _, report = convert(model, "selfnorm@residual")
    assert str(report).count("left alone, it holds SelfNorm already") == 8 and len(report) == 0


def test_reports_name_what_stands_beside() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    _, report = insert(model, CNSN, after="0")
    assert "Conv2d, Chain(CrossNorm, SelfNorm) after it" in str(report)
    _, report = insert(model, SelfNorm, after="1", eps=1e-3)
    assert "BatchNorm2d -> Chain(BatchNorm, SelfNorm)" in str(report)
    assert report.to_json()["changes"][0]["arguments"] == {"eps": 1e-3}


def test_movements() -> None:
    one = movement_between(torch.tensor([5.0]), torch.tensor([5.0 + 1e-6]))
    assert one.kept and one.spread == 5.0  # a single output has no spread
    assert not movement_between(torch.tensor([5.0]), torch.tensor([5.1])).kept
    assert movement_between(torch.zeros(0), torch.zeros(0)).kept
    with pytest.raises(ValueError, match="returned 2 numbers before and 3 after"):
        movement_between(torch.zeros(2), torch.zeros(3))
    lost = movement_between(torch.zeros(2), torch.tensor([0.0, float("nan")]))
    assert not lost.kept and "no longer finite" in str(lost)
    data = Report("x", movement=lost).to_json()
    assert data["movement"]["max"] is None and json.dumps(data, allow_nan=False)
    assert rounding_of(nn.Linear(2, 2).bfloat16()) > rounding_of(nn.Linear(2, 2).double())
    assert (
        Movement(1e-3, 1e-3, 1.0).kept is False and Movement(1e-3, 1e-3, 1.0, rounding_of(nn.Linear(2, 2).half())).kept
    )


def test_outputs_of_models_that_return_more_than_a_tensor() -> None:
    class Several(nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, object]:
            return {"a": scale * x, "b": [x.sum(), (x, None)], "labels": x.argmax(), "name": "x"}

    x = torch.ones(2, 2)
    assert outputs_of(Several(), x).numel() == 4 + 1 + 4
    assert outputs_of(Several(), (x, 2.0)).sum() == 8 + 4 + 4
    assert outputs_of(Several(), {"x": x, "scale": 3.0}).sum() == 12 + 4 + 4
    with pytest.raises(ValueError, match="expected the model to return floating-point tensors, got str"):
        outputs_of(type("Text", (nn.Module,), {"forward": lambda self, x: "text"})(), x)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(BatchNorm(3), nn.Dropout(0.5), BatchNorm(3).eval())
    model[0].source = "ema"  # updates its running moments in every mode
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    outputs_of(model, torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2)))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
