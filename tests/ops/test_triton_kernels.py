"""The Triton kernels against plain formulas: by the interpreter on CPU tensors, compiled where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftnorm.ops.eager import EagerBackend
from shiftnorm.ops.triton_backend import TritonBackend
from triton_device import COMPILED, DEVICE, DTYPES, LAYOUTS, assert_near, laid_out, random, rows, runs_kernels

pytestmark = runs_kernels
# numpy, on which the interpreter stands, warns where a GPU computes on
not_finite = pytest.mark.filterwarnings("ignore:.*(invalid value|overflow) encountered:RuntimeWarning")

SHAPES = [
    (1, 1),
    (3, 5),
    (1, 1, 1),
    (2, 3, 7),
    (4, 5, 6, 7),
    (1, 3, 5, 5),
    (2, 3, 1, 1),
    (2, 1, 13, 11),
    (2, 3, 3, 4, 5),
    (3, 64, 23, 1),
    (1, 3, 4099),  # a prime that takes a second tile
    (1, 1, 2 * 4096 + 1),  # pieces of a plane
    (2, 131, 5),
    (1, 70, 61),
    (1, 65, 330),  # splits of channels-last planes
    (2, 2, 40),
    (40, 2, 2),
    *(
        [
            (1, 1, 1024, 1024),
            (2, 3, 1021, 1019),
            (40000, 64, 3),
            (1, 1500000, 2),
            (8, 2048, 7, 7),
            (32, 256, 14, 14),
            (16, 64, 112, 112),
            (2, 32, 64, 65, 66),
            (70000, 3, 4, 4),
        ]
        if COMPILED
        else []
    ),
]


def run_all(backend: TritonBackend | EagerBackend, g: Tensor, x: Tensor, coefficients: list[Tensor]) -> list[Tensor]:
    gain, center, slope, offset = coefficients
    return [
        *backend.moments(x),
        backend.apply(x, gain, center, offset),
        *backend.reduce(g, x, center, center),
        backend.combine(g, x, gain, center, center, slope, offset),
    ]


def check(x: Tensor, g: Tensor, coefficients: list[Tensor]) -> None:
    assert TritonBackend().unsupported(x) is None
    got = run_all(TritonBackend(), g, x, coefficients)
    wanted = run_all(EagerBackend(), g.double(), x.double(), [row.double() for row in coefficients])
    for index, (result, want) in enumerate(zip(got, wanted, strict=True)):
        full = index in (2, 5)
        assert result.dtype == (x.dtype if full else torch.float32)
        assert not full or result.stride() == x.stride()
        assert_near(result, want, x.dtype if full else torch.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_passes_equal_eager_ones(shape: tuple[int, ...], layout: str, poisoned: None) -> None:
    check(random(shape, layout), random(shape, layout), rows(4, shape))


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 40, 6, 6), (1, 2, 4099)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_sixteen_bits(shape: tuple[int, ...], layout: str, dtype: torch.dtype, poisoned: None) -> None:
    check(random(shape, layout, dtype), random(shape, layout, dtype), rows(4, shape))


@not_finite
@pytest.mark.parametrize("dtype", DTYPES[1:] if COMPILED else [torch.float16], ids=str)  # it truncates to bfloat16
def test_sixteen_bit_values_are_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 1, -1)
    every, zero = every.to(DEVICE), torch.zeros(1, 1, device=DEVICE)
    for gain in (1.0, 1 / 3, 3.0):
        factor = torch.full((1, 1), gain, device=DEVICE)
        got, want = TritonBackend().apply(every, factor, zero, zero), (every.float() * factor).to(dtype)
        normal = want.isfinite() & (want.abs() >= torch.finfo(dtype).tiny)  # the interpreter loses subnormal digits
        assert torch.equal(got[normal], want[normal])
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_twice(layout: str) -> None:
    shape = (16, 80, 60, 60) if COMPILED else (1, 2, 70, 70)
    x, g, coefficients = random(shape, layout), random(shape, layout), rows(4, shape)
    first, second = (run_all(TritonBackend(), g, x, coefficients) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (1, 2, 70, 80)], ids=str)
def test_a_large_mean_does_no_harm(layout: str, shape: tuple[int, ...]) -> None:
    x = laid_out((torch.randn(shape, dtype=torch.float64) + 1e4).to(DEVICE, torch.float32), layout)
    truth = torch.var_mean(x.double(), (2, 3), correction=0)
    mean, var = TritonBackend().moments(x)
    torch.testing.assert_close(var.double(), truth[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), truth[1], rtol=2e-7, atol=0)
    g = random(shape, layout)
    total, product = TritonBackend().reduce(g, x, mean, var)
    want = EagerBackend().reduce(g.double(), x.double(), mean.double(), var)
    torch.testing.assert_close(total.double(), want[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(product.double(), want[1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_ones_out_cost_no_digits(layout: str) -> None:
    x = torch.randn(2, 3, 40, 40)
    x.view(2, 3, -1)[:, 0, [0, 400, 800, 1599]] = 1e5  # where a shift could be taken from
    x.view(2, 3, -1)[:, 1, 0] = 1e4
    x = laid_out(x.to(DEVICE), layout)
    mean, var = TritonBackend().moments(x)
    truth = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(var.double(), truth[0], rtol=2e-6, atol=0)
    assert ((mean - truth[1]).abs() <= 40 * 2.0**-24 * truth[0].sqrt()).all()  # sqrt(S) roundings


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "dtype"), [(9001, torch.float32), *((77, dtype) for dtype in DTYPES)], ids=str)
def test_constant_planes_have_exactly_no_variance(layout: str, size: int, dtype: torch.dtype) -> None:
    values = (torch.randn(1, 3, 1) * 100).to(DEVICE, dtype)
    values[0, 0] = 0
    mean, var = TritonBackend().moments(laid_out(values.expand(1, 3, size), layout))
    assert torch.equal(var, torch.zeros_like(var))
    assert torch.equal(mean, values.squeeze(2).float())


@not_finite
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("place", [0, 5, 76])
def test_values_that_are_not_finite_stay_in_their_plane(layout: str, value: float, place: int) -> None:
    x = torch.randn(2, 4, 11, 7)
    x.view(2, 4, -1)[1, 2, place] = value
    x, g, coefficients = laid_out(x.to(DEVICE), layout), random((2, 4, 11, 7), layout), rows(4, (2, 4))
    pairs = zip(*(run_all(b, g, x, coefficients) for b in (TritonBackend(), EagerBackend())), strict=True)
    for got, want in pairs:
        assert torch.equal(got.isfinite(), want.isfinite())  # an infinite mean may come out as infinity or NaN
        finite = got.isfinite()
        torch.testing.assert_close(got[finite], want[finite], rtol=1e-4, atol=1e-4)


def test_coefficients_and_gradients_in_any_layout() -> None:
    x, coefficients = random((4, 6, 5), "contiguous"), [torch.randn(6, 4).t().to(DEVICE) for _ in range(4)]
    gradients = [
        random((4, 6, 5), "channels_last"),
        torch.ones((), device=DEVICE).expand(4, 6, 5),
        random((4, 6, 5), "contiguous", torch.bfloat16),
        random((4, 6, 10), "contiguous")[..., ::2],
    ]
    for g in gradients:
        for x_layout in LAYOUTS:
            check_pair(laid_out(x, x_layout), g, coefficients)
    with pytest.raises(ValueError, match=r"expected g of x's shape \(4, 6, 5\), got \(2, 6, 5\)"):
        TritonBackend().reduce(gradients[0][:2], x, coefficients[1], coefficients[1])


def check_pair(x: Tensor, g: Tensor, coefficients: list[Tensor]) -> None:
    for got, want in zip(*(run_all(b, g, x, coefficients) for b in (TritonBackend(), EagerBackend())), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_views_into_a_larger_tensor() -> None:
    x = random((3, 4, 5, 6), "contiguous")[1:]  # starts where no vector does
    odd = torch.randn(1 + 2 * 3 * 7).to(DEVICE)[1:].view(2, 3, 7)
    for part in (x, odd):
        check(part, torch.randn_like(part), rows(4, tuple(part.shape)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (1, 2, 70, 80)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_passes(shape: tuple[int, ...], layout: str, dtype: torch.dtype, poisoned: None) -> None:
    x, g = random(shape, layout, dtype), random(shape, layout, dtype)
    mask = (torch.rand(shape[0], 1, *shape[2:]) > 0.4).to(DEVICE)
    mask[..., :, :3] = False
    mask[0, :, 0, 4] = True
    center, slope, offset, gain = rows(4, shape)
    inside = torch.where(mask, x.double(), 0.0)
    count = mask.sum((2, 3))
    mean = inside.sum((2, 3)) / count
    var = (torch.where(mask, x.double() - mean[:, :, None, None], 0.0)).square().sum((2, 3)) / count
    x = torch.where(mask, x, float("nan"))  # padding may hold anything
    x = laid_out(x, layout)
    backend = TritonBackend()
    for got, want in zip(backend.masked_moments(x, mask), (mean, var), strict=True):
        assert_near(got, want, torch.float32)
    planes = lambda row: row.double()[:, :, None, None]
    through = torch.where(mask, planes(slope) * (x.double() - planes(center)) + planes(offset), 0.0)
    got = backend.masked_combine(None, x, mask, None, center, slope, offset)
    assert_near(got, through, dtype)
    got = backend.masked_combine(g, x, mask, gain, center, slope, offset)
    assert_near(got, through + planes(gain) * g.double(), dtype)
    assert got.stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_shared_by_all_samples_empty_or_full(layout: str) -> None:
    x = random((3, 5, 6, 4), layout)
    backend, box = TritonBackend(), torch.zeros(1, 1, 6, 4, device=DEVICE)
    box[..., 1:4, 2:] = 2.0  # any nonzero number counts
    part = x[..., 1:4, 2:].double()
    mean, var = backend.masked_moments(x, box)
    assert_near(mean, part.mean((2, 3)), torch.float32)
    assert_near(var, part.var((2, 3), correction=0), torch.float32)
    for tensor in backend.masked_moments(x, torch.zeros_like(box)):
        assert torch.equal(tensor, torch.zeros_like(tensor))
    rows_only = torch.ones(3, 1, 6, 1, device=DEVICE)
    for got, want in zip(backend.masked_moments(x, rows_only), backend.moments(x), strict=True):
        assert_near(got, want.double(), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_masked_constant_plane_has_exactly_no_variance(layout: str) -> None:
    x = laid_out(torch.full((1, 2, 9001), 77.7).to(DEVICE), layout)
    mask = torch.zeros(1, 1, 9001, device=DEVICE)
    mask[..., 5000:5017] = 1
    mean, var = TritonBackend().masked_moments(x, mask)
    assert torch.equal(var, torch.zeros_like(var))
    assert torch.equal(mean, x[..., 0])


@pytest.mark.skipif(not COMPILED, reason="takes 9 GB of GPU memory")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    shape = (2, 40, 8192, 3300)
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    if layout == "channels_last":
        x = torch.empty(2, 8192, 3300, 40, dtype=torch.bfloat16, device=DEVICE).movedim(-1, 1)
    x.normal_()
    x[1, 39] += 5
    mean, var = TritonBackend().moments(x)
    torch.testing.assert_close(mean[1, 39].cpu(), torch.tensor(5.0), rtol=1e-2, atol=0)
    torch.testing.assert_close(var.mean().cpu(), torch.tensor(1.0), rtol=1e-2, atol=0)
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    y = TritonBackend().apply(x, one, mean, zero)
    assert abs(float(y[1, 39].float().mean())) < 1e-2
    assert torch.equal(y[0, 0], (x[0, 0].float() - mean[0, 0]).to(x.dtype))
