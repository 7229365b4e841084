"""PermutedAdaIN: whose style goes where, what is a constant, and when nothing happens."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from shiftnorm import ops
from shiftnorm.norms import PermutedAdaIN, PermutedAdaINDraw

ACTS = torch.tensor(True)


def styled_batch(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    scale, shift = torch.rand(2, size, 3, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(size, 3, 5, 9, generator=generator, dtype=torch.float64) * scale + shift


def test_same_generator_seed_gives_the_same_output():
    norm, x = PermutedAdaIN(p=1.0), styled_batch(6)
    first, again = (norm(x, draw=norm.draw(x, torch.Generator().manual_seed(3))) for _ in range(2))
    other = norm(x, draw=norm.draw(x, torch.Generator().manual_seed(4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", [PermutedAdaIN(p=1.0).eval(), PermutedAdaIN(p=0.0)], ids=["eval", "p=0"])
def test_identity_is_the_same_object(norm):
    x = styled_batch(4)
    assert norm(x) is x


def test_eps_counts_twice_for_the_content_and_once_for_the_style():
    x, permutation, eps = styled_batch(4), torch.tensor([1, 2, 3, 0]), 0.1
    mean, std = x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + eps).sqrt()
    expected = (x - mean) / (std + eps) * std[permutation] + mean[permutation]
    y = PermutedAdaIN(eps=eps)(x, draw=PermutedAdaINDraw(ACTS, permutation))
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)


def test_no_gradient_reaches_the_style():
    x = styled_batch(3).requires_grad_()
    y = PermutedAdaIN()(x, draw=PermutedAdaINDraw(ACTS, torch.tensor([1, 2, 0])))
    (grad,) = torch.autograd.grad(y[0].pow(3).sum(), x)
    assert grad[0].abs().max() > 0
    assert torch.equal(grad[1:], torch.zeros_like(grad[1:]))


@pytest.mark.parametrize("size", [2, 4, 5])
def test_second_half_styles_the_first_and_stays(size):
    x = styled_batch(size).requires_grad_()
    norm = PermutedAdaIN(p=1.0, eps=1e-9, style="second_half")
    y = norm(x)
    half = size // 2
    old, new = ops.moments(x), ops.moments(y)
    torch.testing.assert_close(new.mean[:half], old.mean[half : 2 * half], atol=1e-7, rtol=0)
    torch.testing.assert_close(new.var[:half], old.var[half : 2 * half], atol=1e-7, rtol=0)
    torch.testing.assert_close(y[half:], x[half:], atol=1e-14, rtol=0)
    g = torch.randn_like(x)
    (grad,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(grad[half:], g[half:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("style", ["permuted", "second_half"])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 3, 1, 1), (4, 3)])
def test_a_single_sample_or_element_passes_unchanged(style, shape):
    x = torch.randn(shape, requires_grad=True)
    y = PermutedAdaIN(p=1.0, style=style)(x)
    torch.testing.assert_close(y, x, atol=1e-6, rtol=0)
    g = torch.randn(shape)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], g, atol=1e-6, rtol=0)


def test_a_mask_that_leaves_one_element_passes_that_sample_unchanged():
    x, mask = styled_batch(3), torch.ones(3, 1, 5, 9)
    mask[1] = 0
    mask[1, 0, 2, 2] = 1
    y = PermutedAdaIN()(x, draw=PermutedAdaINDraw(ACTS, torch.tensor([2, 0, 1])), mask=mask)
    torch.testing.assert_close(y[1], x[1], atol=1e-14, rtol=0)
    assert (y[0] - x[0]).abs().max() > 1e-3


@pytest.mark.parametrize("p", [0.01, 0.5, 1.0])
def test_acts_with_probability_p(p):
    norm, x, generator = PermutedAdaIN(p=p), torch.empty(2, 3), torch.Generator().manual_seed(0)
    rate = sum(bool(norm.draw(x, generator).acts) for _ in range(2000)) / 2000
    assert rate == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5)


def test_compiled_acts_with_probability_p_in_one_graph():
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("inductor")
    norm = PermutedAdaIN(p=0.25, style="second_half")
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend=graphs)
    batches = [styled_batch(size).float() for size in (4, 7, 6)]
    acted = [bool((compiled(x) - x).abs().max() > 1e-3) for x in batches * 80]
    assert sum(acted) / len(acted) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(acted)) ** 0.5)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_dtype_and_memory_format(dtype):
    x = styled_batch(4).to(dtype).contiguous(memory_format=torch.channels_last)
    y = PermutedAdaIN(p=1.0)(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": -0.1}, r"PermutedAdaIN: expected p in \[0, 1\], got -0.1"),
        ({"eps": -1.0}, "PermutedAdaIN: expected eps above 0"),
        ({"style": "first"}, "expected style 'permuted' or 'second_half', got 'first'"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PermutedAdaIN(**arguments)
