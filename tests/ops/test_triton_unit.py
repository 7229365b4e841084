"""DomainNorm on its kernels: outputs and gradients are those of its formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import DomainNorm
from shiftnorm.ops import triton_launch, use_backend
from shiftnorm.ops.on_chip import pixels_on_chip
from triton_device import COMPILED, DEVICE, DTYPES, LAYOUTS, laid_out, random, runs_kernels

pytestmark = runs_kernels

FORMS = ("in_l2_affine", "in_l2", "l2_in", "l2_only")
SHAPES = [
    (2, 5, 7),
    (3, 6),
    (2, 3, 1, 1),
    (2, 20, 13, 11),
    (1, 9, 3, 4, 5),
    (1, 3, 50, 45),  # several tiles, one after the other
    *([(8, 1024, 14, 14), (4, 511, 7, 7), (2, 3, 300, 301), (16, 64, 56, 56)] if COMPILED else []),
]


def made(form: str, channels: int, dtype: torch.dtype = torch.float32) -> DomainNorm:
    norm = DomainNorm(channels, form=form, dtype=dtype).to(DEVICE)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 0.5)
    return norm


def step(norm: DomainNorm, x: Tensor, g: Tensor, backend: str, mask: Tensor | None = None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with use_backend(backend):
        assert (pixels_on_chip(x) is not None) == (backend == "triton")
        y = norm(x, mask=mask)
        return [y, *torch.autograd.grad(y, [x, *norm.parameters()], g)]


def check(norm: DomainNorm, x: Tensor, g: Tensor, mask: Tensor | None = None) -> None:
    wide = copy.deepcopy(norm).double()
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[x.dtype]
    pairs = zip(step(norm, x, g, "triton", mask), step(wide, x.double(), g.double(), "eager", mask), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(
            got.double(), want, rtol=tolerance, atol=tolerance * (1 + float(want.detach().abs().max()))
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients(form: str, shape: tuple[int, ...], layout: str, poisoned: None) -> None:
    x = random(shape, layout)
    check(made(form, shape[1]), x, random(shape, layout))
    with use_backend("triton"):
        y = made(form, shape[1])(x)
    assert laid_out(y, layout).data_ptr() == y.data_ptr()  # no copy: it lies as x does


@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_bits(form: str, dtype: torch.dtype, layout: str, poisoned: None) -> None:
    x, g = (random((2, 6, 5, 4), layout, dtype) for _ in range(2))
    norm = made(form, 6)
    check(norm, x, g)
    with use_backend("triton"):
        assert norm(x).dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_and_gradients_in_any_layout(layout: str) -> None:
    x, mask = random((2, 4, 5, 3), layout), torch.ones(2, 1, 5, 3, device=DEVICE)
    mask[0, :, 3:] = 0
    for g in (torch.ones((), device=DEVICE).expand(2, 4, 5, 3), random((2, 4, 5, 6), "contiguous")[..., ::2]):
        check(made("in_l2_affine", 4), x, g, mask)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dead_pixels_give_zero_and_no_gradient(form: str, layout: str) -> None:
    x = torch.randn(2, 4, 3, 3)
    x[0] = 0
    x[1, :, 0, 0] = 0
    x = laid_out(x.to(DEVICE), layout).requires_grad_()
    with use_backend("triton"):
        y = DomainNorm(4, form=form).to(DEVICE)(x)
        (dx,) = torch.autograd.grad(y, x, random((2, 4, 3, 3), layout))
    assert y.isfinite().all() and not y[0].any()
    assert dx.isfinite().all() and not dx[0].any()
    if form.startswith("l2"):
        assert not dx[1, :, 0, 0].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_mean_costs_no_more_than_its_rounding(layout: str) -> None:
    x = laid_out((torch.randn(2, 4, 9, 8, dtype=torch.float64) + 1e4).to(DEVICE, torch.float32), layout)
    norm = made("in_l2_affine", 4)
    with use_backend("triton"):
        got = norm(x)
    want = copy.deepcopy(norm).double()(x.double())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_twice_and_one_activation_kept(layout: str) -> None:
    norm, x, g = made("in_l2_affine", 3), random((2, 3, 40, 45), layout), random((2, 3, 40, 45), layout)
    first, second = (step(norm, x, g, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with use_backend("triton"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm(x.requires_grad_())
    assert sum(kept.values()) < 1.1 * x.untyped_storage().nbytes()


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_and_batched_gradients(form: str) -> None:
    norm, x = made(form, 4), random((2, 4, 3, 2), "contiguous")
    found: list[list[Tensor]] = []
    for module, given, backend in ((norm, x, "triton"), (copy.deepcopy(norm).double(), x.double(), "eager")):
        inputs = (given.requires_grad_(), *module.parameters())
        with use_backend(backend):
            first = torch.autograd.grad(module(given).pow(3).sum(), inputs, create_graph=True)
            found.append([*first, *torch.autograd.grad(first[0].square().sum(), inputs, allow_unused=True)])
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)  # bias has no part in the second derivative by x
        if want is not None:
            torch.testing.assert_close(
                got.double(), want, rtol=1e-3, atol=1e-3 * (1 + float(want.detach().abs().max()))
            )
    g = torch.stack([random((2, 4, 3, 2), "contiguous") for _ in range(3)])
    inputs = (x, *norm.parameters())
    with use_backend("triton"):
        batched = torch.autograd.grad(norm(x), inputs, g, is_grads_batched=True)
        one_by_one = [torch.autograd.grad(norm(x), inputs, each) for each in g]
    for got, *wanted in zip(batched, *one_by_one, strict=True):
        torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-3, atol=1e-3)


def test_more_channels_than_fit_are_plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_MOST_PIXEL_CHANNELS", 4)
    triton_launch.pixel_launch.cache_clear()
    try:
        with use_backend("triton"):
            assert pixels_on_chip(random((2, 4, 3), "contiguous")) is not None
            assert pixels_on_chip(x := random((2, 5, 3), "contiguous")) is None
            assert made("in_l2_affine", 5)(x).shape == x.shape
    finally:
        triton_launch.pixel_launch.cache_clear()
