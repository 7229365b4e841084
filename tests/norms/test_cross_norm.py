"""CrossNorm: who takes whose style, boxes, pools, gates and the controller."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from shiftnorm.norms import CNSN, CrossNorm, CrossNormController, CrossNormDraw, restyle
from shiftnorm.norms.boxes import draw_box, inside_box
from shiftnorm.ops import Moments, moments


@pytest.mark.parametrize("mode", ["2-instance", "1-instance", "both"])
def test_moments_are_exchanged(mode: str) -> None:
    norm = CrossNorm(mode=mode)
    x = torch.randn(6, 5, 9, 8, dtype=torch.float64) * 3
    draw = norm.draw(x)
    assert torch.equal(draw.partner.sort().values, torch.arange(6))
    assert (draw.partner.tolist() == list(range(6))) == (mode == "1-instance")
    assert (draw.channels is None) == (mode == "2-instance")
    before, after = moments(x), moments(norm(x, draw=draw))
    channels = torch.arange(5) if draw.channels is None else draw.channels
    torch.testing.assert_close(after.mean, before.mean[draw.partner][:, channels])
    torch.testing.assert_close(after.unbiased, before.unbiased[draw.partner][:, channels], rtol=1e-4, atol=0)


def test_batch_moments_survive_the_exchange() -> None:
    x = torch.randn(6, 5, 9, 8, dtype=torch.float64)
    before, after = moments(x).pooled(over="batch"), moments(CrossNorm()(x)).pooled(over="batch")
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.var, before.var, rtol=1e-4, atol=0)


def test_probability_and_flag_gate_the_layer() -> None:
    torch.manual_seed(0)
    norm = CrossNorm(p=0.3)
    x = torch.randn(4, 3, 5, 5)
    acted = sum(not torch.allclose(norm(x), x, atol=1e-5) for _ in range(300))
    assert 60 <= acted <= 120  # 90 expected, standard deviation 8
    norm.active.fill_(False)
    torch.testing.assert_close(norm(x), x)


def test_compiled_layers_act_with_their_probability() -> None:
    torch._dynamo.reset()
    norm = CrossNorm(p=0.3)
    compiled = torch.compile(norm, fullgraph=True, dynamic=True)
    acted = 0
    for step in range(200):
        x = torch.randn(4 + step % 3, 3, 5, 5)
        acted += not torch.allclose(compiled(x), x, atol=1e-5)
    assert 35 <= acted <= 85  # 60 expected, standard deviation 6.5


def test_styles_from_a_pool() -> None:
    norm = CrossNorm(3)
    norm.pool = Moments(torch.full((2, 3), 7.0), torch.full((2, 3), 4.0), 100)
    y = norm(torch.randn(5, 3, 20, 20))
    torch.testing.assert_close(moments(y).mean, torch.full((5, 3), 7.0))
    other = copy.deepcopy(norm)
    assert other.pool is not None
    assert other.pool.mean.shape == (2, 3)
    assert not norm.state_dict()
    norm.pool = None
    assert norm.pool is None
    with pytest.raises(ValueError, match=r"expected moments of shape \(K, 3\), got \(2, 4\)"):
        norm.pool = Moments(torch.zeros(2, 4), torch.ones(2, 4), 9)
    with pytest.raises(ValueError, match="a pool has no use"):
        CrossNorm(crop="style").pool = Moments(torch.zeros(2, 4), torch.ones(2, 4), 9)


def test_a_pool_moves_with_the_layer() -> None:
    norm = CrossNorm(3)
    norm.pool = Moments(torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 1), 9.0))
    pool = norm.to("meta").pool
    assert pool is not None
    assert pool.mean.is_meta and pool.var.is_meta and pool.count.is_meta


def test_only_the_content_box_changes() -> None:
    norm = CrossNorm(crop="content")
    x = torch.randn(4, 3, 9, 7)
    draw = norm.draw(x)
    changed = (norm(x, draw=draw) - x).abs().amax((0, 1)) > 1e-6
    assert torch.equal(changed, inside_box(draw.content_box, x)[0, 0])


def test_boxes_are_distributed_as_the_authors(golden: Path) -> None:
    published = json.loads((golden / "cn_rand_bbox_stats.json").read_text())
    for name in ("8x8_beta1", "7x7_beta1", "16x16_beta0.5", "12x20_beta1"):
        sides = [int(side) for side in name.split("_")[0].split("x")]
        x, generator = torch.zeros(1, 1, *sides), torch.Generator().manual_seed(1)
        beta = float(name.split("beta")[1])
        boxes = torch.stack([draw_box(x, beta, 0.1, generator) for _ in range(3000)]).double()
        area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) / (sides[0] * sides[1])
        assert abs(area.mean() - published[name]["area_mean"]) < 0.012  # 4 standard errors
        assert abs(area.std() - published[name]["area_sd"]) < 0.012
        assert area.max() <= published[name]["max_area"] + 1e-6
        assert abs((boxes[:, 2] - boxes[:, 0]).mean() - published[name]["side0_mean"]) < 0.06 * sides[0]


@pytest.mark.parametrize("sides", [(1, 9), (2, 2), (2, 16), (1,), (2, 2, 2)], ids=str)
def test_small_sides_end_with_the_whole_plane(sides: tuple[int, ...]) -> None:
    box = draw_box(torch.zeros(2, 3, *sides), 1.0, 0.1)
    assert box.tolist() == [0] * len(sides) + list(sides)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_boxes_of_any_rank(rank: int) -> None:
    x = torch.zeros(2, 3, *range(8, 8 + rank))
    for _ in range(50):
        box = draw_box(x, 1.0, 0.1)
        assert 0.1 < inside_box(box, x).double().mean() < 1


def test_restyle_takes_over_what_is_asked() -> None:
    x, style = torch.randn(2, 3, 8, 8, dtype=torch.float64), 4 + 2 * torch.randn(2, 3, 5, 5, dtype=torch.float64)
    own, given = moments(x), moments(style)
    both, mean, std = (moments(restyle(x, given, what=what)) for what in ("both", "mean", "std"))
    torch.testing.assert_close(both.mean, given.mean)
    torch.testing.assert_close(both.unbiased, given.unbiased, rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.mean, given.mean)
    torch.testing.assert_close(mean.var, own.var)
    torch.testing.assert_close(std.unbiased, given.unbiased, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="got 'all'"):
        restyle(x, given, what="all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "3-instance"}, "expected mode"),
        ({"crop": "all"}, "expected crop"),
        ({"beta": 0.0}, "expected beta above 0"),
        ({"min_area": 1.0}, "expected min_area"),
        ({"blend": 1.5}, "expected blend"),
        ({"p": -0.1}, "expected p in"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossNorm(**arguments)


def net(layers: int = 5) -> nn.Sequential:
    return nn.Sequential(*(CNSN(4) for _ in range(layers)))


def test_controller_draws_the_right_number_uniformly() -> None:
    controller = CrossNormController(net(), active_num=2, p=0.5, seed=1)
    assert not any(bool(layer.active) for layer in controller.layers)
    draws = torch.stack([controller.step() for _ in range(1000)])
    counts = draws.sum(1)
    assert set(counts.tolist()) == {0, 2}
    assert abs((counts == 2).double().mean() - 0.5) < 0.06
    assert (draws.double().mean(0) - 0.2).abs().max() < 0.06
    assert [bool(layer.active) for layer in controller.layers] == draws[-1].tolist()
    controller.clear()
    assert not any(bool(layer.active) for layer in controller.layers)


def test_controllers_of_one_seed_agree_and_resume() -> None:
    first, second = CrossNormController(net(), 2, 0.7, seed=4), CrossNormController(net(), 2, 0.7, seed=4)
    assert all(torch.equal(first.step(), second.step()) for _ in range(20))
    third = CrossNormController(net(), 2, 0.7, seed=99)
    third.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [bool(layer.active) for layer in third.layers] == [bool(layer.active) for layer in first.layers]
    assert all(torch.equal(first.step(), third.step()) for _ in range(20))
    with pytest.raises(ValueError, match="state of 3 CrossNorm layers, got one of 5"):
        CrossNormController(net(3)).load_state_dict(first.state_dict())


def test_controller_steps_cause_no_recompilation() -> None:
    torch._dynamo.reset()
    model = net(3)
    controller = CrossNormController(model, active_num=1, p=1.0, seed=2)
    graphs = 0

    def count(graph, example):
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=count)
    x = torch.randn(4, 4, 6, 6)
    outputs = []
    for _ in range(6):
        controller.step()
        outputs.append(compiled(x))
    assert graphs == 1
    assert len({round(float(y.detach().std()), 5) for y in outputs}) > 1


def test_controller_errors() -> None:
    with pytest.raises(ValueError, match="found none"):
        CrossNormController(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="from 1 to the model's 5"):
        CrossNormController(net(), active_num=6)
    with pytest.raises(ValueError, match="expected p"):
        CrossNormController(net(), p=2.0)


def test_controllers_may_draw_per_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = CrossNormController(net(), 2, 1.0, seed=4), CrossNormController(net(), 2, 1.0, seed=4, per_rank=True)
    first = [(shared.step().tolist(), own.step().tolist()) for _ in range(10)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    state = own.state_dict()
    shared.steps = own.steps = 0
    second = [(shared.step().tolist(), own.step().tolist()) for _ in range(10)]
    assert [draw[0] for draw in first] == [draw[0] for draw in second]
    assert [draw[1] for draw in first] != [draw[1] for draw in second]
    other = CrossNormController(net(), 2, 1.0, per_rank=True)
    other.load_state_dict(state)  # of rank 0, and yet rank 1 draws its own
    assert [other.step().tolist() for _ in range(10)] == [own.step().tolist() for _ in range(10)]


def test_the_flag_is_no_buffer_but_moves_and_copies() -> None:
    norm = CrossNorm()
    norm.active.fill_(False)
    assert not dict(norm.named_buffers())  # which DistributedDataParallel would overwrite by rank 0's
    assert not copy.deepcopy(norm).active
    assert norm.to("meta").active.is_meta


@pytest.mark.parametrize("crop", ["neither", "style", "content", "both"])
def test_a_draw_outlives_the_controllers_next_step(crop: str) -> None:
    norm, x = CrossNorm(crop=crop), torch.randn(4, 3, 6, 6, requires_grad=True)
    draw = norm.draw(x)
    y = norm(x, draw=draw)
    norm.active.fill_(False)
    y.sum().backward()  # autograd may hold the draw
    torch.testing.assert_close(norm(x, draw=draw), y)


def test_a_draw_for_another_batch_is_refused() -> None:
    norm = CrossNorm()
    with pytest.raises(ValueError, match="a draw for 4 samples, got one for 1"):
        norm(torch.randn(4, 3, 5, 5), draw=norm.draw(torch.randn(1, 3, 5, 5)))


def test_samples_may_act_one_by_one() -> None:
    x, partner, acts = torch.randn(3, 2, 4, 4), torch.tensor([1, 2, 0]), torch.tensor([True, False, True])
    y = CrossNorm()(x, draw=CrossNormDraw(acts, partner))
    torch.testing.assert_close(y[1], x[1])
    torch.testing.assert_close(moments(y[acts]).mean, moments(x[partner[acts]]).mean)


def test_replayed_draws_may_be_written_by_hand() -> None:
    x = torch.randn(3, 2, 4, 4)
    draw = CrossNormDraw(torch.tensor(True), torch.tensor([1, 2, 0]))
    torch.testing.assert_close(moments(CrossNorm()(x, draw=draw)).mean, moments(x[[1, 2, 0]]).mean)
