"""DSU: how far planes move, how often, and the batches that have no spread."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from shiftnorm import ops
from shiftnorm.norms import DSU, DSUDraw

ACTS = torch.tensor(True)


def styled_batch(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    scale, shift = torch.rand(2, size, 3, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(size, 3, 5, 9, generator=generator, dtype=torch.float64) * scale + shift


def test_same_generator_seed_gives_the_same_output():
    norm, x = DSU(p=1.0), styled_batch(6)
    first, again = (norm(x, draw=norm.draw(x, torch.Generator().manual_seed(3))) for _ in range(2))
    other = norm(x, draw=norm.draw(x, torch.Generator().manual_seed(4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", [DSU(p=1.0).eval(), DSU(p=0.0)], ids=["eval", "p=0"])
def test_identity_is_the_same_object(norm):
    x = styled_batch(4)
    assert norm(x) is x


def test_the_noise_for_the_means_is_drawn_first():
    x = styled_batch(4)
    draw = DSU().draw(x, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    torch.rand((), generator=generator)
    noise = [torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2)]
    assert torch.equal(draw.mean_noise, noise[0])
    assert torch.equal(draw.std_noise, noise[1])


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.5])
def test_moments_move_by_the_spread_of_the_batch(factor):
    norm, x = DSU(eps=1e-12, factor=factor), styled_batch(5)
    mean_noise, std_noise = torch.randn(2, 5, 3, dtype=torch.float64).clamp(-1, 1) * 0.1
    y = norm(x, draw=DSUDraw(ACTS, mean_noise, std_noise))
    old, new = ops.moments(x), ops.moments(y)
    std, new_std = old.unbiased.sqrt(), new.unbiased.sqrt()
    expected_mean = old.mean + factor * mean_noise * old.mean.std(0)
    torch.testing.assert_close(new.mean, expected_mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(new_std, std + factor * std_noise * std.std(0), atol=1e-9, rtol=0)


def test_gradients_flow_through_every_moment():
    norm = DSU()
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    draw = norm.draw(x, torch.Generator().manual_seed(0))._replace(acts=ACTS)
    assert torch.autograd.gradcheck(lambda x: norm(x, draw=draw), x)
    assert torch.autograd.gradgradcheck(lambda x: norm(x, draw=draw), x)


def test_a_batch_of_one_has_no_spread_and_passes_unchanged():
    x = styled_batch(1).requires_grad_()
    y = DSU(p=1.0, factor=100.0)(x)
    g = torch.randn_like(x)
    torch.testing.assert_close(y, x, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], g, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (4, 3), (3, 3, 7), (3, 3, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_rank_and_constant_planes_stay_finite(shape, dtype):
    x = torch.randn(shape).to(dtype)
    x[:, 0] = 0
    x.requires_grad_()
    y = DSU(p=1.0)(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype and y.shape == shape
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_acts_with_probability_p(p):
    norm, x, generator = DSU(p=p), torch.empty(2, 3), torch.Generator().manual_seed(0)
    rate = sum(bool(norm.draw(x, generator).acts) for _ in range(1000)) / 1000
    assert rate == pytest.approx(p, abs=4 * (p * (1 - p) / 1000) ** 0.5)


def test_compiled_acts_with_probability_p_in_one_graph():
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("inductor")
    compiled = torch.compile(DSU(p=0.25), fullgraph=True, dynamic=True, backend=graphs)
    batches = [styled_batch(size).float() for size in (4, 7, 6)]
    acted = [bool((compiled(x) - x).abs().max() > 1e-3) for x in batches * 80]
    assert sum(acted) / len(acted) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(acted)) ** 0.5)
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 2}, r"DSU: expected p in \[0, 1\], got 2"),
        ({"eps": 0.0}, "DSU: expected eps above 0"),
        ({"factor": -1.0}, "DSU: expected factor to be at least 0"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DSU(**arguments)
