"""EFDMix and match_distribution: ranks, ties, the authors' gradient and what a step costs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from shiftnorm.norms import EFDMix, EFDMixDraw, match_distribution

ACTS = torch.tensor(True)


class CountOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def draw_for(size: int, weight: float | None = None) -> EFDMixDraw:
    draw = EFDMix(p=1.0, alpha=1.0).draw(torch.empty(size, 1), torch.Generator().manual_seed(size))
    return draw if weight is None else draw._replace(weight=torch.full((size, 1), weight))


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
def test_same_generator_seed_gives_the_same_output(mix):
    norm, x = EFDMix(p=1.0, mix=mix), torch.randn(5, 3, 4, 4)
    first, again = (norm(x, draw=norm.draw(x, torch.Generator().manual_seed(3))) for _ in range(2))
    other = norm(x, draw=norm.draw(x, torch.Generator().manual_seed(4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", [EFDMix(p=1.0).eval(), EFDMix(p=0.0)], ids=["eval", "p=0"])
def test_identity_is_the_same_object(norm):
    x = torch.randn(4, 3, 5)
    assert norm(x) is x


def test_active_switches_the_layer_off_and_on_again():
    norm, x = EFDMix(p=1.0), torch.randn(4, 3, 5)
    norm.active = False
    assert norm(x) is x
    norm.active = True
    assert norm(x) is not x


def test_a_batch_of_one_is_its_own_partner():
    x, g = torch.randn(1, 3, 5, requires_grad=True), torch.randn(1, 3, 5)
    norm = EFDMix(p=1.0)
    draw = norm.draw(x)
    y = norm(x, draw=draw)
    torch.testing.assert_close(y, x)
    # as every sample that meets itself: g for the element, and (1 - weight) * g for what it lends
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], (2 - draw.weight.unsqueeze(-1)) * g)


def test_a_step_without_action_changes_nothing():
    x = torch.randn(4, 3, 5, requires_grad=True)
    y = EFDMix()(x, draw=draw_for(4)._replace(acts=torch.tensor(False)))
    g = torch.randn_like(x)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], g)


@pytest.mark.parametrize("shape", [(4, 3), (5, 3, 7), (4, 3, 4, 5), (3, 3, 2, 3, 4), (4, 3, 1, 1)])
def test_weight_zero_gives_the_partners_distribution_in_own_order(shape):
    x = torch.randn(shape, dtype=torch.float64)
    draw = draw_for(shape[0], weight=0.0)
    y = EFDMix()(x, draw=draw)
    own, mixed = x.reshape(*shape[:2], -1), y.reshape(*shape[:2], -1)
    torch.testing.assert_close(mixed.sort(-1).values, own[draw.permutation].sort(-1).values, atol=1e-12, rtol=0)
    assert torch.equal(mixed.argsort(-1), own.argsort(-1))


def test_the_gradient_is_whole_for_the_content_and_by_rank_for_the_style():
    x = torch.tensor([[[3.0, 1.0, 2.0]], [[40.0, 60.0, 50.0]]], requires_grad=True)
    g = torch.tensor([[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]])
    draw = EFDMixDraw(ACTS, torch.tensor([1, 0]), torch.tensor([[0.75], [0.5]]))
    y = EFDMix()(x, draw=draw)
    assert y.tolist() == [[[17.25, 10.75, 14.0]], [[20.5, 31.5, 26.0]]]
    y.backward(g)
    # sample 0 receives half of sample 1's g at its ranks (1: 40, 2: 50, 3: 60), sample 1 a quarter of sample 0's
    expected = [[[1 + 10.0, 2 + 5.0, 3 + 15.0]], [[10 + 0.5, 20 + 0.25, 30 + 0.75]]]
    assert x.grad is not None and x.grad.tolist() == expected


def test_eager_and_traced_gradients_agree_to_second_order():
    norm, draw = EFDMix(), draw_for(4)
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return norm(x, draw=draw).pow(3).sum()

    eager = torch.autograd.grad(loss(x), x)[0]
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), eager)
    assert torch.autograd.gradgradcheck(lambda x: norm(x, draw=draw), x)


def test_one_sort_and_two_bytes_per_element():
    norm = EFDMix(p=1.0)
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    saved: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t)
    with CountOperators() as forward, hooks:
        y = norm(x)
    with CountOperators() as backward:
        y.sum().backward()
    assert {name: forward.calls[name] for name in ("sort", "argsort", "gather", "scatter")} == {
        "sort": 1, "argsort": 0, "gather": 0, "scatter": 1,
    }  # fmt: skip
    assert (backward.calls["sort"], backward.calls["gather"], backward.calls["scatter"]) == (0, 1, 1)
    assert sum(saved) <= 2 * x.numel() + 1024


def test_planes_too_long_for_two_byte_indices():
    x = torch.randn(2, 1, (1 << 15) + 5, dtype=torch.float64, requires_grad=True)
    draw = EFDMixDraw(ACTS, torch.tensor([1, 0]), torch.zeros(2, 1))
    (grad,) = torch.autograd.grad(EFDMix()(x, draw=draw), x, g := torch.randn_like(x))
    order = x.detach().argsort(-1)
    expected = g + torch.zeros_like(g).scatter(-1, order, g.flip(0).gather(-1, order.flip(0)))
    torch.testing.assert_close(grad, expected, atol=1e-12, rtol=0)


def test_equal_values_rank_in_memory_order_unless_an_order_is_given():
    x = torch.tensor([[[0.0, 0.0, 0.0, 1.0]], [[5.0, 6.0, 7.0, 8.0]]])
    draw = EFDMixDraw(ACTS, torch.tensor([1, 0]), torch.zeros(2, 1))
    assert EFDMix()(x, draw=draw)[0].tolist() == [[5.0, 6.0, 7.0, 8.0]]
    order = torch.tensor([[[2, 0, 1, 3]], [[0, 1, 2, 3]]])
    assert EFDMix()(x, draw=draw._replace(order=order))[0].tolist() == [[6.0, 7.0, 5.0, 8.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((4, 3, 5, 6), torch.channels_last),
        ((4, 3, 2, 5, 6), torch.channels_last_3d),
        ((4, 3, 5, 6), torch.contiguous_format),
    ],
)
def test_keeps_dtype_and_memory_format(dtype, shape, memory_format):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    draw = draw_for(4)
    y = EFDMix()(x, draw=draw)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for result in (y, grad):
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=memory_format)
    wide = EFDMix()(x.detach().double().contiguous(), draw=draw)
    torch.testing.assert_close(y.double(), wide, atol=4 * torch.finfo(dtype).eps, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_acts_with_probability_p(p):
    norm, x, generator = EFDMix(p=p), torch.empty(2, 3), torch.Generator().manual_seed(0)
    rate = sum(bool(norm.draw(x, generator).acts) for _ in range(1000)) / 1000
    assert rate == pytest.approx(p, abs=4 * (p * (1 - p) / 1000) ** 0.5)


def test_compiled_acts_with_probability_p_in_one_graph():
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("inductor")
    norm = EFDMix(p=0.25, alpha=1.0, mix="crossdomain")
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend=graphs)
    batches = [torch.randn(size, 3, 5, 9) for size in (4, 7, 6)]
    acted = [bool((compiled(x) - x).abs().max() > 1e-3) for x in batches * 80]
    assert sum(acted) / len(acted) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(acted)) ** 0.5)
    assert graphs.frame_count == 1


def test_match_distribution_is_exact_and_passes_the_gradient_to_both():
    content = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    style = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    y = match_distribution(content, style)
    rank = content.detach().flatten(2).argsort(-1).argsort(-1)
    style_order = style.detach().flatten(2).argsort(-1)
    assert torch.equal(y.flatten(2), style.flatten(2).sort(-1).values.gather(-1, rank))
    to_content, to_style = torch.autograd.grad(y, (content, style), g := torch.randn_like(y))
    by_rank = g.flatten(2).gather(-1, content.detach().flatten(2).argsort(-1))
    assert torch.equal(to_content, g)
    assert torch.equal(to_style.flatten(2), torch.zeros_like(by_rank).scatter(-1, style_order, by_rank))


@pytest.mark.parametrize(
    "style", [torch.zeros(2, 3, 4), torch.zeros(1, 3, 5), torch.zeros(2, 3, 5).double(), torch.zeros(())]
)
def test_match_distribution_refuses_another_shape_or_dtype(style):
    with pytest.raises(ValueError, match="equally many elements per plane"):
        match_distribution(torch.zeros(2, 3, 5), style)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, r"EFDMix: expected p in \[0, 1\], got 1.5"),
        ({"alpha": -1.0}, "EFDMix: expected alpha above 0"),
        ({"mix": "cross"}, "EFDMix: expected mix 'random' or 'crossdomain', got 'cross'"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        EFDMix(**arguments)


def test_refuses_a_mask():
    with pytest.raises(ValueError, match="EFDMix: expected mask to be None"):
        EFDMix()(torch.randn(2, 3, 5), mask=torch.ones(2, 1, 5))
