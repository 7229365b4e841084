"""MixtureNorm: BatchNorm for one component, modes told apart for several, and components that come out empty."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import reference
from shiftnorm.norms import BatchNorm, MixtureNorm


def two_modes(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels around +8 (a quarter of them) and around -8, and which is which."""
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(8, 1, 6, 6, generator=generator) < 0.25
    x = torch.randn(8, 4, 6, 6, generator=generator) + torch.where(high, 8.0, -8.0)
    return x.to(dtype), high.expand_as(x)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_one_component_is_batch_norm(momentum, affine):
    arguments = {"momentum": momentum, "affine": affine, "dtype": torch.float64}
    mixture, batch = MixtureNorm(4, num_components=1, **arguments), BatchNorm(4, **arguments)
    for ours, theirs in zip(mixture.parameters(), batch.parameters(), strict=True):
        nn.init.normal_(ours)
        theirs.data.copy_(ours)
    for training in (True, True, False):
        mixture.train(training), batch.train(training)
        x = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 3 + 100
        results = []
        for norm in (mixture, batch):
            leaf = x.clone().requires_grad_()
            y = norm(leaf)
            results.append([y, *torch.autograd.grad((y**3).sum(), (leaf, *norm.parameters()))])
        torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(mixture, name)[0], getattr(batch, name), atol=1e-12, rtol=1e-12)
    assert int(mixture.num_batches_tracked) == 2


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_equals_the_plain_formula(components, channels_last):
    norm = MixtureNorm(4, num_components=components, dtype=torch.float64)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    for _ in range(3):
        x = torch.randn(3, 4, 5, 4, dtype=torch.float64) + 3
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        x.requires_grad_()
        state = {name: value.detach().clone() for name, value in norm.state_dict().items()}
        inputs = (x, norm.weight, norm.bias)
        draw = norm.draw(x)
        expected, buffers = reference.mixture_norm(
            x, {**state, "weight": norm.weight, "bias": norm.bias}, training=True, races=draw.races
        )
        y = norm(x, draw=draw)
        torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
        gradients = [torch.autograd.grad((output**2).sum(), inputs) for output in (y, expected)]
        torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close({name: getattr(norm, name) for name in buffers}, buffers, atol=1e-9, rtol=1e-9)
        assert y.stride() == x.stride()


def test_modes_are_normalised_one_by_one():
    x, high = two_modes()
    norm = MixtureNorm(4, num_components=2, affine=False, dtype=torch.float64)
    y = norm(x)
    for mode in (high, ~high):
        share = mode.double().mean()
        assert y[mode].mean().abs() < 1e-6
        assert float(y[mode].var(correction=0)) == pytest.approx(float(1 / share), rel=0.01)


def test_running_components_stay_with_their_mode_and_normalise_in_evaluation():
    x, high = two_modes()
    norm = MixtureNorm(4, num_components=2, momentum=None, dtype=torch.float64)
    for seed in range(10):  # seeds come in either order
        norm(x, draw=norm.draw(x, torch.Generator().manual_seed(seed)))
    order = norm.running_mean[:, 0].argsort()
    torch.testing.assert_close(norm.running_mean[order].mean(1), torch.tensor([-8.0, 8.0]).double(), atol=0.2, rtol=0)
    share = high.double().mean()
    torch.testing.assert_close(norm.running_share[order], torch.stack([1 - share, share]), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm.eval()(x), norm.train()(x), atol=0.02, rtol=0.02)
    assert norm.eval().draw(x) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 4, 3, 3),
        torch.ones(1, 4, 2, 1),
        torch.randn(2, 4),
        torch.randn(2, 4, 1, 1),
        torch.randn(1, 4, 5, 5).relu(),
        torch.randn(0, 4, 5, 5),
        torch.randn(2, 4, 3, 2, 2) * 1e-4 + 100,
    ],
    ids=["dead", "constant", "vectors", "1x1", "relu", "empty batch", "offset"],
)
def test_empty_components_and_degenerate_batches_stay_finite(x, dtype):
    # More components than distinct pixels leaves some without any.
    norm = MixtureNorm(4, num_components=5)
    for training in (True, False):
        leaf = x.detach().to(dtype).requires_grad_()
        y = norm.train(training)(leaf)
        y.float().square().sum().backward()
        assert y.dtype == dtype and y.shape == x.shape and y.isfinite().all()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert all(tensor.isfinite().all() for tensor in norm.state_dict().values())


def test_empty_component_does_not_move_its_running_moments():
    norm = MixtureNorm(2, num_components=3)
    norm(torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    assert sorted(norm.running_share.tolist()) == pytest.approx([0.3, 0.35, 0.35])
    untouched = int(norm.running_share.argmin())
    assert not norm.running_mean[untouched].any() and norm.running_var[untouched].eq(1).all()


def test_same_generator_seed_gives_the_same_output():
    norm, x = MixtureNorm(4, em_steps=0), torch.randn(3, 4, 6, 6)
    first, again, other = (norm(x, draw=norm.draw(x, torch.Generator().manual_seed(seed))) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_seeds_are_drawn_in_proportion_to_the_squared_distance():
    # After a first seed at 0, pixels at 1 and 2 are the second in 1 and 4 of 5 cases.
    norm = MixtureNorm(1, num_components=2, em_steps=0, affine=False, track_running_stats=False)
    x = torch.tensor([[0.0], [1.0], [2.0]])
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(1000):
        draw = norm.draw(x, generator)
        draw.races[0, 0] = 1e-9  # the first seed
        # With the second seed at 2, the pixel at 1 is as near to 0 and goes there; else it keeps 2 company.
        hits += bool(norm(x, draw=draw)[2].abs() < 1e-3)
    assert hits / 1000 == pytest.approx(0.8, abs=0.05)


def test_autocast_fits_in_float32():
    norm, x = MixtureNorm(4, em_steps=3), two_modes(torch.float32)[0]
    draw = norm.draw(x)
    expected = norm(x, draw=draw)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x, draw=draw), expected)


def test_compiles_to_one_graph_for_changing_batches():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(MixtureNorm(4), fullgraph=True, dynamic=True, backend=graphs)
    for size in (5, 7, 6):
        x = torch.randn(size, 4, 3, 4, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        assert y.shape == x.shape and y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert graphs.frame_count == 1


def test_derivatives_of_torch_func_agree_with_autograd():
    norm = MixtureNorm(3, track_running_stats=False, dtype=torch.float64)
    x, tangent, target = torch.randn(3, 2, 3, 3, 3, dtype=torch.float64).unbind(0)
    draw = norm.draw(x)

    def loss(x):
        return (norm(x, draw=draw) * target).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), gradient)
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], (gradient * tangent).sum())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_components": 0}, "num_components to be at least 1, got 0"),
        ({"em_steps": -1}, "em_steps to be at least 0, got -1"),
        ({"momentum": 2.0}, r"momentum in \[0, 1\] or None, got 2.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        MixtureNorm(4, **arguments)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="expected more than one pixel"):
        MixtureNorm(4)(torch.randn(1, 4, 1, 1))
    with pytest.raises(ValueError, match="expected no mask"):
        MixtureNorm(4)(torch.randn(2, 4, 3), mask=torch.ones(2, 1, 3))
    assert MixtureNorm(4).eval()(torch.randn(1, 4, 1, 1)).isfinite().all()
