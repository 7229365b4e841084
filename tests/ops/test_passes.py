"""The two passes and their gradients, on every backend, format, dtype and odd shape."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from planes import BACKENDS, FORMATS, inputs, mixed, norm, plain, skip_without_compiler
from shiftnorm.ops import Affine, Moments, apply, moments, normalize, use_backend


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_and_second_derivatives(backend: str, layout: str) -> None:
    skip_without_compiler(backend)
    with use_backend(backend):
        arguments = inputs(3, 2, 3, 2, layout=layout)
        assert torch.autograd.gradcheck(norm, arguments)
        assert torch.autograd.gradgradcheck(norm, arguments)


SHAPES = [
    (2, 3, 7),
    (4, 5, 6, 7),
    (1, 3, 5, 5),
    (2, 3, 1, 1),
    (3, 1, 13, 11),
    (2, 3, 3, 4, 5),
    (5, 64, 23, 1),
    (2, 40, 32, 32),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "aten"])
def test_kernels_equal_the_formula(
    backend: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, poisoned: None
) -> None:
    skip_without_compiler(backend)
    arguments = inputs(*shape, dtype=dtype, layout=layout)
    with use_backend(backend):
        y = norm(*arguments)
        g = torch.randn_like(y)
        gradients = torch.autograd.grad(y, arguments, g)
    expected = plain(*(argument.double() for argument in arguments))
    expected_gradients = torch.autograd.grad(expected, arguments, g.double())
    tolerance = dict(rtol=1e-9, atol=1e-10) if dtype == torch.float64 else dict(rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(y.double(), expected, **tolerance)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), want.double(), **tolerance)
    x = arguments[0]
    assert y.is_contiguous() == x.is_contiguous()
    assert y.movedim(1, -1).is_contiguous() == x.movedim(1, -1).is_contiguous()


def test_small_and_large_channels_last_samples_take_both_paths() -> None:
    for shape in [(6, 8, 5, 5), (2, 128, 28, 28)]:
        x, weight, bias = inputs(*shape, dtype=torch.float32, layout="channels_last")
        with use_backend("aten"):
            got = torch.autograd.grad(norm(x, weight, bias).square().sum(), x)[0]
        want = torch.autograd.grad(plain(x.double(), weight.double(), bias.double()).square().sum(), x)[0]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 2), (1, 2)], ids=str)
def test_shapes_without_kernels(shape: tuple[int, ...]) -> None:
    x, weight, bias = inputs(*shape)
    y = normalize(x, lambda m: Affine(weight * torch.rsqrt(m.var + 1e-5), bias + m.mean))
    assert y.shape == shape
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_non_contiguous_input_and_expanded_gradient() -> None:
    base, weight, bias = inputs(4, 6, 10, 9)
    x = base[:, ::2, 1:8:2, :]
    y = norm(x, weight[:, ::2], bias[:, ::2])
    torch.testing.assert_close(y, plain(x, weight[:, ::2], bias[:, ::2]))
    (gradient,) = torch.autograd.grad(y.sum(), base)  # the incoming gradient is an expanded scalar
    (expected,) = torch.autograd.grad(plain(x, weight[:, ::2], bias[:, ::2]).sum(), base)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("memory_format", ["channels_last", "channels_last_3d"])
def test_memory_format_is_kept_and_x_is_not_copied(memory_format: str) -> None:
    shape = (4, 32, 16, 16) if memory_format == "channels_last" else (4, 32, 4, 8, 8)
    x = torch.randn(shape).contiguous(memory_format=getattr(torch, memory_format)).requires_grad_()
    with torch.profiler.profile(record_shapes=True) as profile:
        y = norm(x, torch.ones(1, 32), torch.zeros(1, 32))
        y.backward(torch.ones_like(y))
    assert y.is_contiguous(memory_format=getattr(torch, memory_format))
    assert x.grad.is_contiguous(memory_format=getattr(torch, memory_format))
    copying = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy")
    copies = [
        event.name
        for event in profile.events()
        if event.name in copying and any(shape and math.prod(shape) >= x.numel() for shape in event.input_shapes)
    ]
    assert not copies


def saved_bytes(run) -> int:
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_one_activation_is_saved(layout: str, dtype: torch.dtype) -> None:
    x, weight, bias = inputs(8, 16, 32, 32, dtype=dtype, layout=layout)
    size = x.numel() * x.element_size()
    assert size <= saved_bytes(lambda: norm(x, weight, bias)) < 1.1 * size


def test_constant_moments_save_no_activation() -> None:
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    run = lambda: normalize(x, lambda m: Affine(torch.rsqrt(m.var + 1e-5), m.mean), constant=True)
    assert saved_bytes(run) < 0.1 * x.numel() * x.element_size()
    y = run()
    g = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(gradient, g * torch.rsqrt(x.detach().var((2, 3), correction=0) + 1e-5)[:, :, None, None])


@pytest.mark.parametrize("layout", FORMATS)
def test_compiles_to_one_graph_for_changing_batch_sizes(layout: str) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example: list[Tensor]):
        graphs.append(graph)
        return torch._inductor.compile(graph, example)

    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend=count)
    for batch in (4, 6, 9):
        arguments = inputs(batch, 5, 8, 6, dtype=torch.float32, layout=layout)
        y, expected = compiled(*arguments), norm(*arguments)
        g = torch.randn_like(y)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        pairs = zip(torch.autograd.grad(y, arguments, g), torch.autograd.grad(expected, arguments, g), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert len(graphs) == 1


def test_exports() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(1, 5))

        def forward(self, x: Tensor) -> Tensor:
            return norm(x, self.weight, self.weight)

    net, x = Net(), torch.randn(4, 5, 8, 8)
    sizes = {0: torch.export.Dim("batch", min=2), 2: torch.export.Dim("height", min=2)}
    program = torch.export.export(net, (x,), dynamic_shapes=(sizes,), strict=False)
    other = torch.randn(7, 5, 6, 8)
    torch.testing.assert_close(program.module()(other), net(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_returns_the_input_dtype_from_float32_moments(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def to_affine(m: Moments) -> Affine:
        seen.append(m.mean.dtype)
        seen.append((m.mean @ m.mean.T).dtype)  # a matmul would be 16-bit inside autocast
        return Affine(torch.rsqrt(m.var + 1e-5), torch.zeros_like(m.mean))

    x = torch.randn(4, 3, 16, 16, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = normalize(x, to_affine)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert seen == [torch.float32, torch.float32]
    torch.testing.assert_close(y.float(), torch.nn.functional.instance_norm(x.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_planes_stay_finite(value: float, dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 6, 6).to(dtype)
    x[:, 1] = value
    x.requires_grad_()
    y = normalize(x, lambda m: Affine(torch.sqrt(m.unbiased + 1e-12) / torch.sqrt(m.var + 1e-12), m.mean))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert moments(x.detach()).var[:, 1].max() == 0


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_precision_at_large_means_is_torchs_own(ratio: float, layout: str) -> None:
    x = (torch.randn(8, 16, 30, 30) + ratio).contiguous(memory_format=FORMATS[layout]).requires_grad_()
    exact = x.detach().double().requires_grad_()
    g = torch.randn_like(x)

    def batch_norm(m: Moments) -> Affine:
        batch = m.pooled(over="batch")
        gain = torch.rsqrt(batch.var + 1e-5)
        return Affine(gain, gain * (m.mean - batch.mean))

    def run(function, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        y = function(x)
        return y, torch.autograd.grad(y, x, g)[0]

    torchs = lambda x: torch.nn.functional.batch_norm(x, None, None, training=True)
    want = run(torchs, exact, g.double())
    theirs = run(torchs, x, g)
    ours = run(lambda x: normalize(x, batch_norm), x, g)
    for got, other, exactly in zip(ours, theirs, want, strict=True):
        error, allowed = (got.double() - exactly).abs().max(), (other.double() - exactly).abs().max()
        assert error <= 10 * allowed


def test_masked_moments_equal_those_of_the_part() -> None:
    x = torch.randn(3, 4, 10, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([10, 4, 1])
    mask = (torch.arange(10) < lengths[:, None]).unsqueeze(1)
    m = moments(x, mask)
    for n, length in enumerate(lengths.tolist()):
        part = moments(x[n : n + 1, :, :length])
        torch.testing.assert_close(m.mean[n], part.mean[0])
        torch.testing.assert_close(m.unbiased[n], part.unbiased[0])
    pooled = m.pooled(over="batch")
    everything = torch.cat([x[n, :, :length] for n, length in enumerate(lengths.tolist())], dim=1)
    torch.testing.assert_close(pooled.mean[0], everything.mean(1))
    torch.testing.assert_close(pooled.var[0], everything.var(1, correction=0))
    weight = torch.rand(1, 4, dtype=torch.float64, requires_grad=True)
    function = lambda x, weight: normalize(x, lambda m: mixed(m, weight, weight), mask=mask)
    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))
    with pytest.raises(ValueError, match=r"mask\.unsqueeze"):
        moments(x, mask.squeeze(1))


def test_apply_is_an_honest_pass() -> None:
    x, weight, bias = inputs(3, 2, 4, 3)
    m = moments(x)
    function = lambda x, weight, bias: apply(x, moments(x), mixed(moments(x), weight, bias))
    torch.testing.assert_close(function(x, weight, bias), plain(x, weight, bias))
    assert torch.autograd.gradcheck(function, (x, weight, bias))
    with torch.no_grad():
        assert not apply(x, m, Affine(weight, bias)).requires_grad


@pytest.mark.parametrize("context", [nullcontext, torch.inference_mode, torch.no_grad])
def test_inference(context) -> None:
    x, weight, bias = inputs(3, 2, 4, 3)
    with context():
        y = norm(x, weight, bias)
    torch.testing.assert_close(y.detach(), plain(x, weight, bias).detach())


def test_an_odd_first_element_costs_no_digits() -> None:
    x = torch.randn(4, 4, 60, 60).contiguous(memory_format=torch.channels_last)
    x[:, :, 0, 0] = 1000
    torch.testing.assert_close(moments(x).var.double(), x.double().var((2, 3), correction=0), rtol=1e-5, atol=0)


def test_padding_may_hold_anything() -> None:
    x = torch.randn(2, 3, 6)
    mask = torch.ones(2, 1, 6)
    mask[:, :, 4:] = 0
    want = moments(x[:, :, :4])
    x[:, :, 4:] = float("nan")
    torch.testing.assert_close(moments(x, mask).var, want.var)
    assert torch.isfinite(moments(x, torch.zeros(2, 1, 6)).pooled(over="batch").mean).all()


def test_what_is_no_set_of_planes_is_refused() -> None:
    for function in (moments, lambda x: normalize(x, lambda m: Affine(m.var, m.mean))):
        with pytest.raises(ValueError, match=r"expected x of shape \(N, C, \*\), got \(3,\)"):
            function(torch.zeros(3))
        with pytest.raises(TypeError, match="floating-point"):
            function(torch.zeros(3, 2, dtype=torch.int64))
