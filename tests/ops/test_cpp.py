"""The C++ kernels against plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftnorm.ops import Affine, dispatch, normalize, use_backend
from shiftnorm.ops.cpp import CppBackend
from shiftnorm.ops.eager import EagerBackend

REASON = CppBackend().unsupported(torch.zeros(1, 1, 2))
compiled = pytest.mark.skipif(REASON is not None, reason=f"the C++ backend {REASON}")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPES = [
    (2, 3, 7),
    (4, 5, 6, 7),
    (1, 3, 5, 5),
    (2, 3, 1, 1),
    (2, 33, 1, 1),  # one position, an overlapping vector
    (3, 1, 13, 11),
    (2, 3, 3, 4, 5),
    (5, 64, 23, 1),
    (3, 17, 9, 5),
    (2, 33, 2, 2),
    (1, 1, 1),
    (2, 520, 3, 3),  # more channels than a tile holds
    (1, 1100, 3, 1),
    (2, 67, 50, 47),
    (1, 3, 224, 223),  # few channels, few samples: folded positions, in pieces
    (1, 20, 8009),  # pieces of a sample
    (1, 1, 100003),  # pieces of a row
]


def laid_out(x: Tensor, layout: str) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x


def random(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    return laid_out((torch.randn(shape) * 2 + 1).to(dtype), layout)


def rows(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [torch.randn(shape[:2]).to(wide) for _ in range(count)]


def run_all(backend: CppBackend | EagerBackend, g: Tensor, x: Tensor, coefficients: list[Tensor]) -> list[Tensor]:
    gain, center, slope, offset = coefficients
    return [
        *backend.moments(x),
        backend.apply(x, gain, center, offset),
        *backend.reduce(g, x, center, center),
        backend.combine(g, x, gain, center, center, slope, offset),
    ]


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_passes_equal_eager_ones(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, poisoned: None, threads: None
) -> None:
    x, g = random(shape, dtype, layout), random(shape, dtype, layout)
    coefficients = rows(4, shape, dtype)
    expected = run_all(EagerBackend(), g.double(), x.double(), [row.double() for row in coefficients])
    for count in (1, 2):
        torch.set_num_threads(count)
        assert CppBackend().unsupported(x) is None
        for got, want in zip(run_all(CppBackend(), g, x, coefficients), expected, strict=True):
            full = got.dim() > 2
            assert got.dtype == (dtype if full else coefficients[0].dtype)
            assert not full or got.stride() == x.stride()
            tolerance = TOLERANCE[dtype if full or dtype == torch.float64 else torch.float32]
            torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max() + 1))


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 40, 30, 30), (1, 5, 90000), (1, 64, 100, 100)], ids=str)
def test_bits_depend_neither_on_the_run_nor_on_the_threads(shape: tuple[int, ...], layout: str, threads: None) -> None:
    x, g = random(shape, torch.float32, layout), random(shape, torch.float32, layout)
    coefficients = rows(4, shape, torch.float32)
    results: list[list[Tensor]] = []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(run_all(CppBackend(), g, x, coefficients))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_values_are_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 1, -1)
    zero = torch.zeros(1, 1)
    for gain in (1.0, 1 / 3, 3.0):
        factor = torch.full((1, 1), gain)
        got, expected = CppBackend().apply(every, factor, zero, zero), (every.float() * factor).to(dtype)
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=0, atol=0)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [3, 40])
def test_a_large_mean_does_no_harm(layout: str, channels: int) -> None:
    shape = (8, channels, 28, 28)
    exact = torch.randn(shape, dtype=torch.float64) + 1e4
    x, g = laid_out(exact.float(), layout), laid_out(torch.randn(shape), layout)
    truth = torch.var_mean(x.double(), (2, 3), correction=0)
    mean, var = CppBackend().moments(x)
    torch.testing.assert_close(var.double(), truth[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), truth[1], rtol=2e-7, atol=0)

    def error(y: Tensor) -> float:
        wide = x.double()
        dims = (0, 2, 3)
        scale = (wide.var(dims, correction=0, keepdim=True) + 1e-5).rsqrt()
        return float((y.double() - (wide - wide.mean(dims, keepdim=True)) * scale).abs().max())

    def batch_norm(m) -> Affine:
        batch = m.pooled(over="batch")
        gain = torch.rsqrt(batch.var + 1e-5)
        return Affine(gain.expand_as(m.mean), gain * (m.mean - batch.mean))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "BACKENDS", (CppBackend(), *dispatch.BACKENDS))
        with use_backend("cpp"):
            ours = error(normalize(x, batch_norm))
    assert ours <= 10 * error(torch.nn.functional.batch_norm(x, None, None, training=True))
    total, product = CppBackend().reduce(g, x, mean, var)
    want = EagerBackend().reduce(g.double(), x.double(), mean.double(), var)
    torch.testing.assert_close(total.double(), want[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product.double(), want[1], rtol=1e-5, atol=1e-3)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [2, 37])
def test_a_shift_that_misses_the_plane_is_repaired(layout: str, channels: int) -> None:
    x = torch.randn(2, channels, 40, 40)
    x.view(2, channels, -1)[:, 0, [0, 400, 800, 1199]] = 1e5  # where the shift is taken from
    mean, var = CppBackend().moments(laid_out(x, layout))
    torch.testing.assert_close(var.double(), x.double().var((2, 3), correction=0), rtol=2e-6, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean((2, 3)), rtol=2e-6, atol=1e-6)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [3, 19])
def test_constant_planes_have_exactly_no_variance(layout: str, dtype: torch.dtype, channels: int) -> None:
    values = torch.randn(2, channels, 1, 1).to(dtype) * 100
    values[0, 0] = 0
    mean, var = CppBackend().moments(laid_out(values.expand(2, channels, 11, 7).contiguous(), layout))
    assert torch.equal(var, torch.zeros_like(var))
    assert torch.equal(mean, values.flatten(1).to(mean.dtype))


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [4, 21])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("place", [0, 5, 76])
def test_values_that_are_not_finite_stay_in_their_plane(layout: str, channels: int, value: float, place: int) -> None:
    x = torch.randn(2, channels, 11, 7)
    x.view(2, channels, -1)[1, 2, place] = value
    x, g = laid_out(x, layout), laid_out(torch.randn(2, channels, 11, 7), layout)
    coefficients = rows(4, (2, channels), torch.float32)
    results = (run_all(backend, g, x, coefficients) for backend in (CppBackend(), EagerBackend()))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())  # an infinite mean may come out as infinity or NaN
        finite = got.isfinite()
        torch.testing.assert_close(got[finite], want[finite], rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_through_a_norm(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", (CppBackend(), *dispatch.BACKENDS))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def affine(m):
            batch = m.pooled(over="batch")
            return Affine(weight * torch.rsqrt(0.5 * m.var + 0.5 * batch.var + 1e-5), bias + 0.3 * m.mean)

        return normalize(x, affine)

    x = random((3, 2, 3, 2), torch.float64, layout).requires_grad_()
    weight = torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    with use_backend("cpp"):
        assert torch.autograd.gradcheck(norm, (x, weight, bias))
        assert torch.autograd.gradgradcheck(norm, (x, weight, bias))
        # an expanded incoming gradient and one in the other memory format
        other = random((3, 2, 3, 2), torch.float64, "contiguous" if layout == "channels_last" else "channels_last")
        for g in (torch.ones((), dtype=torch.float64).expand(3, 2, 3, 2), other):
            got = torch.autograd.grad(norm(x, weight, bias), (x, weight, bias), g)
            with use_backend("eager"):
                want = torch.autograd.grad(norm(x, weight, bias), (x, weight, bias), g)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b)


@compiled
def test_coefficients_in_any_layout() -> None:
    x, coefficients = torch.randn(4, 6, 5), [torch.randn(6, 4).t() for _ in range(4)]
    got, want = (run_all(backend, x, x, coefficients) for backend in (CppBackend(), EagerBackend()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)], ids=str)
def test_a_gradient_of_another_dtype(dtypes: tuple[torch.dtype, torch.dtype], layout: str) -> None:
    x, g = random((3, 20, 7, 5), dtypes[0], layout), random((3, 20, 7, 5), dtypes[1], "contiguous")
    coefficients = rows(4, (3, 20), torch.float32)
    got, want = (run_all(backend, g, x, coefficients) for backend in (CppBackend(), EagerBackend()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2.0**-7 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="expected g of x's shape"):
        CppBackend().reduce(g[:2], x, coefficients[1], coefficients[1])


DECLINED = {
    "dtype": (torch.zeros(2, 3, 4, dtype=torch.int32), "takes float32, float64, bfloat16 and float16, x is int32"),
    "rank": (torch.zeros(2, 3), "takes x with spatial dimensions"),
    "empty": (torch.zeros(0, 3, 4), "at least one element"),
    "strides": (torch.zeros(2, 3, 4, 8)[..., ::2], "contiguous or channels-last"),
    "device": (torch.zeros(2, 3, 4, device="meta"), "takes CPU tensors, x is on meta"),
    "sparse": (torch.zeros(2, 3, 4).to_sparse(), "x is sparse"),
    "negated": (torch._neg_view(torch.zeros(2, 3, 4)), "lazily negated"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_it_says_why_it_declines(case: str) -> None:
    x, reason = DECLINED[case]
    assert reason in (CppBackend().unsupported(x) or "")


def test_it_can_be_switched_off() -> None:
    backend = CppBackend(enabled=False)
    assert backend.unsupported(torch.zeros(2, 3, 4)) == "is switched off"
    backend.enabled = True
    assert backend.unsupported(torch.zeros(2, 3, 4)) == REASON
