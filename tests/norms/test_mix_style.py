"""MixStyle: who is mixed with whom, by how much, how often, and what flows back."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from shiftnorm import ops
from shiftnorm.norms import MixStyle, MixStyleDraw
from shiftnorm.norms.draws import draw_beta, draw_partners

MIXES = ("random", "crossdomain")


def styled_batch(size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    scale, shift = torch.rand(2, size, 3, 1, 1, generator=generator) + 0.5
    return (torch.randn(size, 3, 5, 9, generator=generator) * scale + shift).to(dtype)


@pytest.mark.parametrize("mix", MIXES)
def test_same_generator_seed_gives_the_same_output(mix):
    norm, x = MixStyle(p=1.0, mix=mix), styled_batch(6)
    first, again = (norm(x, draw=norm.draw(x, torch.Generator().manual_seed(3))) for _ in range(2))
    other = norm(x, draw=norm.draw(x, torch.Generator().manual_seed(4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", [MixStyle(p=1.0).eval(), MixStyle(p=0.0)], ids=["eval", "p=0"])
def test_identity_is_the_same_object(norm):
    x = styled_batch(4)
    assert norm(x) is x


def test_active_switches_the_layer_off_and_on_again():
    norm, x = MixStyle(p=1.0), styled_batch(4)
    norm.active = False
    assert norm(x) is x
    norm.active = True
    assert norm(x) is not x


def test_weights_have_the_authors_quantiles():
    generator = torch.Generator().manual_seed(0)
    weights = draw_beta((400_000, 1), 0.1, torch.device("cpu"), generator)
    assert weights.dtype == torch.float32
    ordered = weights.flatten().double().sort().values
    got = ordered[torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).mul(400_000).long()]
    # the first two are compared as logarithms, where their sampling error is small; the last two as distances from 1
    assert got[:2].log().tolist() == pytest.approx([-16.26, -7.09], abs=0.15)
    assert float(got[2]) == pytest.approx(0.5, abs=0.03)
    assert float(1 - got[3]) == pytest.approx(8.4e-4, rel=0.15)
    assert float(1 - got[4]) <= 1.8e-7


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.1, 1.0, 5.0])
def test_weights_are_beta_for_every_alpha(alpha):
    weights = draw_beta((200_000, 1), alpha, torch.device("cpu"), torch.Generator().manual_seed(1)).double()
    assert weights.isfinite().all()
    assert float(weights.min()) >= 0 and float(weights.max()) <= 1
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(weights.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.01)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_crossdomain_partners_come_from_the_other_half(size):
    half = (size + 1) // 2
    for seed in range(20):
        partners = draw_partners(torch.empty(size, 1), "crossdomain", torch.Generator().manual_seed(seed))
        assert sorted(partners.tolist()) == list(range(size))
        assert (partners[:half] >= size - half).all()
        assert (partners[half:] < size - half).all()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 3), (5, 3, 1, 1), (5, 3, 7), (5, 3, 2, 3, 4)])
def test_odd_batches_and_single_elements(mix, shape):
    x = torch.randn(shape, requires_grad=True)
    y = MixStyle(p=1.0, mix=mix)(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_planes_get_the_mixed_moments(weight):
    norm, x = MixStyle(eps=1e-12), styled_batch(4)
    permutation = torch.tensor([2, 3, 1, 0])
    y = norm(x, draw=MixStyleDraw(torch.tensor(True), permutation, torch.full((4, 1), weight)))
    old, new = ops.moments(x), ops.moments(y)
    own, other = torch.tensor(weight), 1 - torch.tensor(weight)
    torch.testing.assert_close(new.mean, own * old.mean + other * old.mean[permutation], atol=1e-10, rtol=0)
    std = old.var.sqrt()
    torch.testing.assert_close(new.var.sqrt(), own * std + other * std[permutation], atol=1e-10, rtol=0)


def test_a_step_without_action_changes_nothing():
    norm, x = MixStyle(), styled_batch(4)
    draw = norm.draw(x)._replace(acts=torch.tensor(False))
    torch.testing.assert_close(norm(x, draw=draw), x, atol=1e-14, rtol=0)


def test_the_gradient_is_the_gain_and_nothing_is_saved():
    norm = MixStyle(p=1.0)
    x = styled_batch(4).repeat(1, 1, 4, 4).requires_grad_()
    draw = norm.draw(x, torch.Generator().manual_seed(0))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        y = norm(x, draw=draw)
    assert sum(saved) <= 12 * x.shape[0] * x.shape[1]
    g = torch.randn_like(x)
    y.backward(g)
    gain = norm.affine(ops.moments(x.detach()), draw).gain
    torch.testing.assert_close(x.grad, gain[..., None, None] * g)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_acts_with_probability_p(p):
    norm, x, generator = MixStyle(p=p), torch.empty(2, 3), torch.Generator().manual_seed(0)
    rate = sum(bool(norm.draw(x, generator).acts) for _ in range(1000)) / 1000
    assert rate == pytest.approx(p, abs=4 * (p * (1 - p) / 1000) ** 0.5)


def test_compiled_acts_with_probability_p_in_one_graph():
    # torch 2.14's compiler takes a Python branch on random.random() wrongly; a tensor gate it takes rightly.
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("inductor")
    compiled = torch.compile(MixStyle(p=0.25, alpha=1.0), fullgraph=True, dynamic=True, backend=graphs)
    batches = [styled_batch(size, torch.float32) for size in (4, 7, 6)]
    acted = [bool((compiled(x) - x).abs().max() > 1e-3) for x in batches * 80]
    assert sum(acted) / len(acted) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(acted)) ** 0.5)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_dtype_and_memory_format(dtype):
    x = styled_batch(4, dtype).contiguous(memory_format=torch.channels_last)
    y = MixStyle(p=1.0)(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, r"MixStyle: expected p in \[0, 1\], got 1.5"),
        ({"alpha": 0.0}, "MixStyle: expected alpha above 0"),
        ({"eps": 0.0}, "MixStyle: expected eps above 0"),
        ({"mix": "cross"}, "expected mix 'random' or 'crossdomain', got 'cross'"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixStyle(**arguments)
