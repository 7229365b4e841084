"""Whole norms on the Triton kernels: outputs and gradients are those of the eager passes."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, build
from planes import norm, plain
from shiftnorm.norms import MomentNorm
from shiftnorm.ops import explain, moments, normalize, use_backend
from shiftnorm.ops.triton_backend import TritonBackend
from shiftnorm.ops.types import Affine
from triton_device import COMPILED, DEVICE, LAYOUTS, laid_out, random, runs_kernels

pytestmark = runs_kernels

MOMENT_CASES = [case for case in CASES if isinstance(case.build(8), MomentNorm) or case.name.startswith(("C", "IBN"))]
SHAPE = (32, 64, 28, 28) if COMPILED else (3, 8, 5, 3)


def step(module: nn.Module, x: Tensor, draw: Any, g: Tensor) -> list[Tensor | None]:
    x = x.detach().requires_grad_()
    y = module(x, draw=draw)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], g, allow_unused=True)]


@pytest.mark.parametrize("case", MOMENT_CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_are_the_eager_ones(case: Case, layout: str) -> None:
    module = build(case, dtype=torch.float32, channels=SHAPE[1]).to(DEVICE)
    x, g = random(SHAPE, layout), random(SHAPE, layout)
    draw = module.draw(x)
    results: dict[str, list[Tensor | None]] = {}
    for backend in ("triton", "eager"):
        with use_backend(backend):
            results[backend] = step(copy.deepcopy(module), x, draw, g)
    for got, want in zip(results["triton"], results["eager"], strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * (1 + float(want.detach().abs().max())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_bits_and_autocast(dtype: torch.dtype, layout: str) -> None:
    module = build(next(case for case in CASES if case.name == "Chain"), dtype=torch.float32).to(DEVICE)
    shape = (4, 8, 6, 5)
    x, g = random(shape, layout, dtype), random(shape, layout, dtype)
    draw = module.draw(x)
    with use_backend("eager"):
        wanted = step(copy.deepcopy(module), x.float(), draw, g.float())
    with use_backend("triton"), torch.autocast(DEVICE, dtype=dtype):
        results = step(module, x, draw, g)
    assert results[0] is not None and results[0].dtype == dtype
    for got, want in zip(results, wanted, strict=True):
        assert got is not None and want is not None
        torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2 * float(want.detach().abs().max()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", [0.0, float("nan")])
def test_masks_and_regions(layout: str, padding: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("masked_moments", "masked_combine"):
        kernel = getattr(TritonBackend, name)
        monkeypatch.setattr(TritonBackend, name, lambda *a, k=kernel, n=name: (ran.append(n), k(*a))[1])
    x, mask = random((3, 4, 5, 7), layout), torch.rand(3, 1, 5, 7, device=DEVICE) < 0.6
    mask[1] = False
    weights = torch.randn(2, 3, 4, device=DEVICE)
    found: dict[str, list[Tensor]] = {}
    for backend in ("triton", "eager"):
        given = torch.where(mask, x, padding).requires_grad_()
        with use_backend(backend):
            m = moments(given, mask)
            (dx,) = torch.autograd.grad((weights[0] * m.mean + weights[1] * m.var).sum(), given)
        found[backend] = [m.mean, m.var, torch.where(mask, dx, 0.0)]
    assert ran == ["masked_moments", "masked_combine"]
    for got, want in zip(found["triton"], found["eager"], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_through_moments_alone_is_one_pass(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(TritonBackend, "apply", lambda *a, run=TritonBackend.apply: (ran.append("apply"), run(*a))[1])
    x, weights = random((2, 3, 5, 7), layout).requires_grad_(), torch.randn(2, 2, 3, device=DEVICE)
    found: list[Tensor] = []
    for backend in ("triton", "eager"):
        with use_backend(backend):
            m = moments(x)
            found += torch.autograd.grad((weights[0] * m.mean + weights[1] * m.var).sum(), x)
    assert ran == ["apply"]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_that_depends_on_everything(layout: str) -> None:
    x = random((3, 4, 5, 7), layout).requires_grad_()
    weight = torch.rand(1, 4, device=DEVICE, requires_grad=True)
    bias = torch.randn(1, 4, device=DEVICE, requires_grad=True)
    inputs = (x, weight, bias)
    with use_backend("triton"):
        y = norm(*inputs)
        other = random((3, 4, 5, 7), "contiguous" if layout == "channels_last" else "channels_last")
        for g in (torch.ones((), device=DEVICE).expand_as(y), other):
            gradients = torch.autograd.grad(y, inputs, g, retain_graph=True)
            exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
            wanted = torch.autograd.grad(plain(*exact), exact, g.double())
            for got, want in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
        penalty = torch.autograd.grad(norm(*inputs).square().sum(), x, create_graph=True)[0].square().sum()
        second = torch.autograd.grad(penalty, inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    penalty = torch.autograd.grad(plain(*exact).square().sum(), exact[0], create_graph=True)[0].square().sum()
    for got, want in zip(second, torch.autograd.grad(penalty, exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_large_means_cost_no_more_than_in_torchs_batch_norm() -> None:
    x, g = torch.randn(3, 4, 30, 30) + 1e4, torch.randn(3, 4, 30, 30)

    def run(function: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(DEVICE).requires_grad_()
        y = function(x)
        return y.double(), torch.autograd.grad(y, x, g.to(y))[0].double()

    def ours(x: Tensor) -> Tensor:
        def batch_norm(m):
            batch = m.pooled(over="batch")
            gain = torch.rsqrt(batch.var + 1e-5)
            return Affine(gain, gain * (m.mean - batch.mean))

        with use_backend("triton"):
            return normalize(x, batch_norm)

    theirs = lambda x: nn.functional.batch_norm(x, None, None, training=True)
    want = run(theirs, x.double(), g)
    for layout in LAYOUTS:
        laid = laid_out(x, layout)
        for got, other, exact in zip(run(ours, laid, g), run(theirs, laid, g), want, strict=True):
            assert (got - exact).abs().max() <= 10 * (other - exact).abs().max()


def test_it_is_chosen_and_explained() -> None:
    x = torch.randn(2, 3, 4, 4, device=DEVICE)
    with use_backend("triton"):
        assert "triton: runs\n  sums: " in explain(x)
        with pytest.raises(RuntimeError, match="triton takes float32, bfloat16 and float16, x is float64"):
            moments(x.double())
    if COMPILED:
        assert explain(x).endswith("eager: could run, comes later in the list")
        assert "triton: runs" in explain(x)
    else:  # the interpreter never gets a tensor that C++ or ATen can take
        assert "triton: could run, comes later in the list" in explain(x)


def test_threads_do_not_disturb_each_other() -> None:
    if not COMPILED:
        pytest.skip("the interpreter keeps the number of the running program in one place for all threads")
    x = [torch.randn(8, 16, 20 + i, 20, device=DEVICE) for i in range(4)]
    wanted = [moments(tensor).var for tensor in x]
    failures: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(moments(x[i]).var, wanted[i]):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not COMPILED, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("case", MOMENT_CASES, ids=str)
def test_a_step_can_be_captured_in_a_cuda_graph(case: Case) -> None:
    module = build(case, dtype=torch.float32).to(DEVICE)
    x = torch.randn(8, 8, 16, 16, device=DEVICE, requires_grad=True)
    g, draw = torch.randn_like(x), module.draw(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(module(x, draw=draw), x, g)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(x, draw=draw)
        dx = torch.autograd.grad(y, x, g)[0]
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    want = copy.deepcopy(module)(x, draw=draw)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(dx, torch.autograd.grad(want, x, g)[0])
