"""What every norm must do, whatever it computes; one row of ``cases.py`` each."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, Case, build, roster
from shiftnorm.norms import MomentNorm, NormLayer
from shiftnorm.ops import choose, use_backend

all_cases = pytest.mark.parametrize("case", CASES, ids=str)
# Norms that leave some inputs to a kernel of torch's, and are also to be tried with our passes.
LEAVING = [case for case in CASES if getattr(type(case.build(8)), "native", None) not in (None, MomentNorm.native)]
all_cases_both_ways = pytest.mark.parametrize(
    ("case", "own"),
    [*((case, False) for case in CASES), *((case, True) for case in LEAVING)],
    ids=lambda value: {True: "own", False: "best"}[value] if isinstance(value, bool) else str(value),
)
SHAPES = [(6, 8), (6, 8, 11), (5, 8, 7, 6), (4, 8, 3, 4, 5)]


def draw_of(norm: NormLayer, x: Tensor) -> Any:
    return norm.draw(x) if norm.training else None


def run(norm: NormLayer, x: Tensor, draw: Any = None, *, own: bool = False) -> Tensor:
    with use_backend(choose(x).name) if own else nullcontext():
        return norm(x, draw=draw)


def test_no_norm_of_the_roster_is_forgotten() -> None:
    assert {case.name.split("-")[0] for case in CASES} == set(roster())


def test_some_norms_leave_inputs_to_torch() -> None:
    assert {str(case) for case in LEAVING} >= {"BatchNorm", "GroupNorm", "LayerNorm"}


@all_cases_both_ways
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{len(shape)}d")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_and_gradients_equal_the_paper(case: Case, own: bool, shape: tuple[int, ...], training: bool) -> None:
    if len(shape) == 2 and case.not_on_2d:
        pytest.skip(case.not_on_2d)
    norm = build(case).train(training)
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 0.5).requires_grad_()
    before, draw = x.detach().clone(), draw_of(norm, x)
    state = {name: value.detach().clone() for name, value in norm.state_dict().items()}
    tracked = {
        name: value.clone().requires_grad_(value.is_floating_point() and "running" not in name)
        for name, value in state.items()
    }
    want = case.reference(x, norm.to_official(tracked), training, draw)
    got = run(norm, x, draw, own=own)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)
    g = torch.randn_like(got)
    wanted_inputs = [x, *(tracked[name] for name, _ in norm.named_parameters())]
    wants = torch.autograd.grad(want, wanted_inputs, g, allow_unused=True)
    gots = torch.autograd.grad(got, [x, *norm.parameters()], g, allow_unused=True) if got.requires_grad else wants
    for name, ours, theirs in zip(["x", *dict(norm.named_parameters())], gots, wants, strict=True):
        ours, theirs = (torch.zeros(()) if gradient is None else gradient for gradient in (ours, theirs))
        torch.testing.assert_close(
            ours,
            theirs.reshape(ours.shape) if theirs.numel() == ours.numel() else theirs.sum(),
            rtol=1e-8,
            atol=1e-9,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )


@all_cases
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d], ids=["2d", "3d"])
def test_memory_format_is_kept(case: Case, memory_format: torch.memory_format) -> None:
    norm = build(case, dtype=torch.float32)
    shape = (4, 8, 6, 5) if memory_format == torch.channels_last else (4, 8, 3, 4, 5)
    plain = torch.randn(shape)
    x = plain.contiguous(memory_format=memory_format)
    draw = norm.draw(x)
    other = copy.deepcopy(norm)
    y = run(norm, x, draw)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, run(other, plain, draw), rtol=1e-3, atol=1e-4)


@all_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast_keep_the_dtype(case: Case, dtype: torch.dtype) -> None:
    norm = build(case, dtype=torch.float32)
    x = torch.randn(6, 8, 5, 5).to(dtype).requires_grad_()
    draw = norm.draw(x)
    exact = run(copy.deepcopy(norm), x.float(), draw)
    with torch.autocast("cpu", dtype=dtype):
        y = run(norm, x, draw)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=2e-2 * float(exact.detach().abs().max()))
    y.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()


@all_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_dead_planes_are_harmless(case: Case, dtype: torch.dtype) -> None:
    norm = build(case, dtype=torch.float32 if dtype == torch.float16 else dtype)
    x = torch.randn(6, 8, 5, 5).relu()
    x[:, 3], x[2] = 0, 0
    x = x.to(dtype).requires_grad_()
    y = run(norm, x, norm.draw(x))
    y.float().square().mean().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    for parameter in norm.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@all_cases
@pytest.mark.parametrize("shape", [(1, 8, 5, 5), (5, 8, 1, 1), (3, 8, 2, 2), (2, 8, 1, 13), (7, 8, 3, 3)], ids=str)
def test_awkward_shapes_stay_finite(case: Case, shape: tuple[int, ...]) -> None:
    norm = build(case)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = run(norm, x, norm.draw(x))
    y.square().sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@all_cases
@pytest.mark.parametrize("shape", [(0, 8), (0, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_empty_batches_pass(case: Case, shape: tuple[int, ...], training: bool) -> None:
    norm = build(case).train(training)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in norm.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@all_cases
def test_copies_and_state_dicts_carry_everything(case: Case) -> None:
    norm = build(case)
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    draw = norm.draw(x)
    loaded = case.build(8).double()
    loaded.load_state_dict(norm.state_dict())
    official = case.build(8).double()
    official.load_state_dict(official.from_official(norm.to_official()))
    copies = [copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), loaded, official]
    y = run(norm, x, draw)
    for other in copies:
        assert torch.equal(run(other, x, draw), y)
        for name, value in norm.to_official().items():  # ours may hold more, such as running moments IBN has no use for
            assert torch.equal(other.to_official()[name], value), name
        assert torch.equal(other.eval()(x), copy.deepcopy(norm).eval()(x))


@all_cases
def test_wrong_input_is_refused_in_words(case: Case) -> None:
    norm = case.build(8)
    name = type(norm).__name__
    with pytest.raises(TypeError, match=f"{name}: expected a floating-point tensor, got torch.int64"):
        norm(torch.zeros(2, 8, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"{name}: expected planes with at least one element"):
        norm(torch.zeros(2, 8, 4, 0))
    if norm.num_features is not None:
        with pytest.raises(ValueError, match=rf"{name}: expected x of shape \(N, 8, \*\), got \(2, 7, 4, 4\)"):
            norm(torch.zeros(2, 7, 4, 4))
    if norm.state_dict():
        with pytest.raises(KeyError, match="nonsense"):
            norm.from_official({**norm.to_official(), "nonsense": torch.zeros(1)})


@all_cases
def test_repr_names_the_class(case: Case) -> None:
    assert repr(case.build(8)).startswith(type(case.build(8)).__name__ + "(")


@all_cases
def test_random_norms_replay_and_rest_in_evaluation(case: Case) -> None:
    norm = build(case)
    x = torch.randn(6, 8, 6, 6, dtype=torch.float64)
    if not case.random:
        draw = norm.draw(x)
        assert torch.equal(run(copy.deepcopy(norm), x, draw), run(copy.deepcopy(norm), x, draw))
        return
    generator = torch.Generator().manual_seed(3)
    first = norm.draw(x, generator)
    second = norm.draw(x, generator.manual_seed(3))
    assert torch.equal(run(norm, x, first), run(copy.deepcopy(norm), x, second))
    assert not torch.equal(run(norm, x, first), x)
    torch.manual_seed(1)
    drawn = norm(x)
    torch.manual_seed(1)
    torch.testing.assert_close(copy.deepcopy(norm)(x), drawn)
    if case.rests:
        assert norm.eval()(x) is x


@all_cases
def test_a_random_norm_that_does_not_act_costs_nothing(case: Case) -> None:
    norm, x = build(case), torch.randn(4, 8, 5, 5, dtype=torch.float64)
    draw = norm.draw(x)
    if not isinstance(norm, NormLayer) or not hasattr(draw, "acts"):
        return
    resting = draw._replace(acts=torch.tensor(False))
    assert norm.rests(resting) and not norm.rests(draw._replace(acts=torch.tensor(True)))
    assert norm(x, draw=resting) is x
    compiled = torch.compile(lambda x: norm(x, draw=resting), backend="eager")(x)  # where it may not be asked
    torch.testing.assert_close(compiled, x)


@all_cases
def test_a_draw_for_another_batch_is_refused(case: Case) -> None:
    norm, x = build(case), torch.randn(4, 8, 5, 5, dtype=torch.float64)
    if case.random or norm.draw(x) is not None:
        with pytest.raises(ValueError, match="expected a draw for 4 samples, got one for 1"):
            norm(x, draw=norm.draw(x[:1]))


@all_cases
def test_compiles_without_a_break(case: Case) -> None:
    torch._dynamo.reset()
    norm = build(case, dtype=torch.float32)
    x = torch.randn(6, 8, 6, 5, requires_grad=True)
    draw = norm.draw(x)
    other = copy.deepcopy(norm)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    y, want = compiled(x, draw=draw), run(norm, x, draw)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    g = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, g)[0], torch.autograd.grad(want, x, g)[0], rtol=1e-3, atol=1e-3
    )
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert compiled(x).shape == x.shape  # with the draw inside the graph


@all_cases
def test_exports_in_evaluation(case: Case) -> None:
    norm = build(case, dtype=torch.float32).eval()
    x = torch.randn(6, 8, 6, 5)
    program = torch.export.export(torch.nn.Sequential(norm).eval(), (x,), strict=False)
    torch.testing.assert_close(program.module()(x), norm(x), rtol=1e-4, atol=1e-5)


@all_cases
def test_second_derivatives(case: Case) -> None:
    if case.constant:
        pytest.skip("holds statistics constant: its gradient is no derivative to differentiate numerically")
    norm = build(case, channels=8)
    x = torch.randn(3, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    draw = norm.draw(x)
    assert torch.autograd.gradgradcheck(lambda x: run(copy.deepcopy(norm), x, draw), (x,), fast_mode=True)


@all_cases
def test_masks_leave_padding_out_of_the_moments(case: Case) -> None:
    norm = build(case)
    x = torch.randn(4, 8, 9, dtype=torch.float64)
    mask = torch.ones(4, 1, 9, dtype=torch.bool)
    mask[:, :, 6:] = False
    draw = norm.draw(x)
    if not case.masks:
        with pytest.raises(ValueError, match="mask"):
            norm(x, draw=draw, mask=mask)
        return
    short = run(copy.deepcopy(norm), x[:, :, :6], draw)
    padded = norm(torch.cat([x[:, :, :6], 1e3 * x[:, :, 6:]], dim=2), draw=draw, mask=mask)
    torch.testing.assert_close(padded[:, :, :6], short)


@all_cases
def test_backends_agree(case: Case) -> None:
    norm = build(case, dtype=torch.float32)
    x = torch.randn(4, 8, 6, 6)
    draw = norm.draw(x)
    with use_backend("eager"):
        want = run(copy.deepcopy(norm), x, draw)
    torch.testing.assert_close(run(norm, x, draw), want, rtol=1e-4, atol=1e-5)


@all_cases
def test_samples_are_independent_where_they_should_be(case: Case) -> None:
    norm = build(case).eval()
    x = torch.randn(4, 8, 6, 6, dtype=torch.float64)
    if not getattr(norm, "uses_batch", False):  # a BatchNorm without running moments couples samples here too
        torch.testing.assert_close(norm(x)[:1], norm(x[:1]))
    if not case.couples:
        norm.train()
        torch.testing.assert_close(norm(x)[:1], norm(x[:1]))


class _WrongByHalf(MomentNorm):
    """A norm with a mistake, to show that the checks above can fail."""

    def affine(self, m, *_):
        from shiftnorm.ops import Affine

        return Affine(torch.rsqrt(m.unbiased + 1e-5), torch.zeros_like(m.mean))  # unbiased where InstanceNorm is biased


def test_the_contract_can_fail() -> None:
    import reference
    from cases import fixed

    wrong = Case("wrong", lambda c: _WrongByHalf(c), fixed(reference.instance_norm))
    with pytest.raises(AssertionError):
        test_output_and_gradients_equal_the_paper(wrong, False, (5, 8, 7, 6), True)


NORMALISING = ["BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "IBN", "BatchInstanceNorm", "SwitchNorm"]


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in NORMALISING], ids=str)
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_large_means_cost_no_more_than_in_torchs_batch_norm(case: Case, ratio: float) -> None:
    x, g = torch.randn(6, 8, 30, 30) + ratio, torch.randn(6, 8, 30, 30)

    def run_in(norm: torch.nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        data = x.to(dtype).requires_grad_()
        with use_backend(choose(data).name):  # never torch's own kernel
            y = norm.to(dtype)(data)
        return y.double(), torch.autograd.grad(y, data, g.to(dtype))[0].double()

    theirs = torch.nn.BatchNorm2d(8)
    allowed = [
        10 * (single - double).abs().max()
        for single, double in zip(run_in(theirs, torch.float32), run_in(theirs, torch.float64), strict=True)
    ]
    norm = case.build(8)
    for single, double, most in zip(run_in(norm, torch.float32), run_in(norm, torch.float64), allowed, strict=True):
        assert (single - double).abs().max() <= most


@all_cases
def test_one_graph_for_changing_batch_sizes(case: Case) -> None:
    torch._dynamo.reset()
    norm = build(case, dtype=torch.float32)
    graphs = 0

    def count(graph: torch.fx.GraphModule, example: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend=count)
    for batch in (4, 6, 9):
        assert compiled(torch.randn(batch, 8, 7, 5)).shape == (batch, 8, 7, 5)
    assert graphs == 1
