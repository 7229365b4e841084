"""EFDMix on its kernels: the values, ties and gradients that ``torch.sort`` gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftnorm.norms import EFDMix, EFDMixDraw
from shiftnorm.ops import on_chip, use_backend
from shiftnorm.ops.on_chip import planes_to_sort
from triton_device import COMPILED, DEVICE, DTYPES, LAYOUTS, assert_near, laid_out, random, runs_kernels

pytestmark = runs_kernels

SHAPES = [
    (2, 3, 7),
    (3, 4),
    (2, 9, 1, 1),
    (3, 5, 4, 3),  # planes of several samples to a program
    (5, 20, 2, 2, 2),
    (2, 2, 13, 5),
    *([(16, 64, 14, 14), (8, 33, 56, 57), (4, 128, 7, 7), (3, 2, 4096)] if COMPILED else []),
]


def draw_for(samples: int, partners: list[int] | None = None, *, acts: bool = True) -> EFDMixDraw:
    permutation = torch.randperm(samples) if partners is None else torch.tensor(partners)
    draw = EFDMixDraw(torch.tensor(acts), permutation, torch.rand(samples, 1))
    return EFDMixDraw(*(part if part is None else part.to(DEVICE) for part in draw))


def step(x: Tensor, draw: EFDMixDraw, g: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with use_backend(backend):
        y = EFDMix()(x, draw=draw)
        return y, torch.autograd.grad(y, x, g)[0]


def check(x: Tensor, g: Tensor, draw: EFDMixDraw) -> None:
    with use_backend("triton"):
        assert planes_to_sort(x.unsqueeze(-1).flatten(2)) is not None
    wide = draw._replace(weight=draw.weight.double())
    pairs = zip(step(x, draw, g, "triton"), step(x.double(), wide, g.double(), "eager"), strict=True)
    for got, want in pairs:
        assert got.dtype == x.dtype
        assert_near(got, want.detach(), x.dtype)
        assert laid_out(got, "contiguous" if x.is_contiguous() else "channels_last").data_ptr() == got.data_ptr()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients(shape: tuple[int, ...], layout: str, poisoned: None) -> None:
    check(random(shape, layout), random(shape, layout), draw_for(shape[0]))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_bits_with_many_ties(dtype: torch.dtype, layout: str, poisoned: None) -> None:
    x = random((3, 5, 4, 3), layout, dtype).relu()
    x[0, 0, :2] = -0.0
    check(x, random((3, 5, 4, 3), layout, dtype), draw_for(3))


@pytest.mark.parametrize("partners", [[1, 1, 1, 0], [3, 3, 3, 3], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_partners_need_not_be_a_permutation(partners: list[int], layout: str) -> None:
    check(random((4, 3, 4, 3), layout), random((4, 3, 4, 3), layout), draw_for(4, partners))


def test_equal_values_rank_in_memory_order_and_nan_comes_last() -> None:
    x = torch.tensor([[[0.0, -0.0, 0.0, 1.0, -2.0]], [[5.0, 6.0, 7.0, 8.0, 4.0]]]).to(DEVICE)
    draw = draw_for(2, [1, 0])._replace(weight=torch.zeros(2, 1, device=DEVICE))
    y = step(x, draw, x, "triton")[0]
    assert y[0].tolist() == [[5.0, 6.0, 7.0, 8.0, 4.0]]
    x[0, 0, 1] = float("nan")
    y = step(x, draw, x, "triton")[0]
    assert y[0, 0, [0, 2, 3, 4]].tolist() == [5.0, 6.0, 7.0, 4.0] and y[0, 0, 1].isnan()
    assert y[1, 0, :3].tolist() == [0.0, 0.0, 1.0] and y[1, 0, 3].isnan() and y[1, 0, 4] == -2.0


@pytest.mark.filterwarnings("ignore:.*invalid value encountered:RuntimeWarning")  # numpy, where a GPU computes on
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_is_that_of_a_stable_sort(dtype: torch.dtype, layout: str) -> None:
    from shiftnorm.ops import triton_sort

    inf, nan = float("inf"), float("nan")
    odd = [inf, -inf, nan, 1e-45, -1e-45, 0.0, -0.0, -6e4, 6e4, 1.0, nan, -inf, inf, -nan, 0.0, 1.0]
    x = laid_out(torch.stack([torch.tensor(odd), torch.randn(16).round()])[None].to(DEVICE, dtype), layout)
    with use_backend("triton"):
        launch = planes_to_sort(x)
    assert launch is not None
    _, order = triton_sort.mix(
        x, launch, torch.zeros(1, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    )
    assert torch.equal(order.long(), torch.sort(x, dim=-1, stable=True).indices)


def test_a_step_without_action_changes_nothing() -> None:
    x, g = random((4, 3, 5), "contiguous"), random((4, 3, 5), "contiguous")
    y, dx = step(x, draw_for(4, acts=False), g, "triton")
    assert torch.equal(y, x) and torch.equal(dx, g)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_twice_and_two_bytes_per_element_kept(layout: str) -> None:
    x, g, draw = random((3, 4, 5, 3), layout), random((3, 4, 5, 3), layout), draw_for(3)
    first, second = (step(x, draw, g, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    saved: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t)
    with use_backend("triton"), hooks:
        EFDMix()(x.requires_grad_(), draw=draw)
    assert sum(saved) <= 2 * x.numel() + 64


def test_second_derivatives_and_batched_gradients() -> None:
    x, draw = random((3, 2, 5), "contiguous").requires_grad_(), draw_for(3)
    with use_backend("triton"):
        (first,) = torch.autograd.grad(EFDMix()(x, draw=draw).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    with use_backend("eager"):
        (want,) = torch.autograd.grad(EFDMix()(x, draw=draw).pow(3).sum(), x, create_graph=True)
        torch.testing.assert_close(first, want)
        torch.testing.assert_close(second, torch.autograd.grad(want.square().sum(), x)[0])
    g = torch.stack([random((3, 2, 5), "contiguous") for _ in range(4)])
    with use_backend("triton"):
        (batched,) = torch.autograd.grad(EFDMix()(x, draw=draw), x, g, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack([step(x, draw, each, "triton")[1] for each in g]))


def test_what_the_kernels_do_not_take_is_sorted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random((3, 2, 5), "contiguous")
    with use_backend("triton"):
        assert planes_to_sort(torch.zeros(2, 1, 4097, device=DEVICE)) is None
        monkeypatch.setattr(on_chip, "_MOST_SAMPLES", 2)
        assert planes_to_sort(x) is None
    draw = draw_for(3)
    torch.testing.assert_close(step(x, draw, x, "triton"), step(x, draw, x, "eager"))
