"""Norms whose algebra is compiled compute what they compute without, forward, backward and in their state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from cases import CASES, Case, build
from shiftnorm.norms import CNSN, DSU, BatchNorm, Chain, EFDMix, NormLayer, SelfNorm, compile_algebra
from shiftnorm.ops import Affine, Moments

# Dynamo asks its inputs for their gradients and hides torch's warning by not showing it: too late where it is an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def run(norm: nn.Module, x: Tensor, g: Tensor, **options: Any) -> list[Tensor | None]:
    """The output, all gradients, and the state after the step."""
    x = x.detach().clone().requires_grad_()
    y = norm(x, **options)
    wanted = [tensor for tensor in (x, *norm.parameters()) if y.requires_grad]
    return [y.detach(), *(torch.autograd.grad(y, wanted, g, allow_unused=True) if wanted else ()), *norm.buffers()]


def same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def compilable(norm: NormLayer) -> bool:
    return any(hasattr(part, "algebra_backend") for part in norm.modules())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@all_cases
def test_the_step_is_the_same(case: Case, training: bool) -> None:
    torch.manual_seed(0)
    norm = build(case).double().train(training)
    if not compilable(norm):
        pytest.skip("is no norm that retargets moments")
    x, g = torch.randn(2, 6, 8, 5, 7, dtype=torch.float64)
    draw = norm.draw(x) if training else None
    twin = compile_algebra(copy.deepcopy(norm), backend="aot_eager")
    for scale in (1.0, 3.0):  # the second time with moved running statistics
        same(run(twin, scale * x, g, draw=draw), run(norm, scale * x, g, draw=draw))


def test_inductor_and_its_gradient() -> None:
    torch.manual_seed(0)
    norm = Chain(BatchNorm(8), CNSN(8)).double()
    twin = compile_algebra(copy.deepcopy(norm))
    for batch in (6, 4):
        x, g = torch.randn(2, batch, 8, 5, 7, dtype=torch.float64)
        draw = norm.draw(x)
        same(run(twin, x, g, draw=draw), run(norm, x, g, draw=draw))


def test_a_chain_is_one_graph_and_new_sizes_make_few() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    norm = compile_algebra(Chain(BatchNorm(8), CNSN(8)), backend=counter)
    x = torch.randn(6, 8, 5, 7)
    for _ in range(4):
        norm(x).sum().backward()
    assert counter.frame_count == 1
    for batch, side in ((5, 7), (4, 9), (7, 11), (9, 4)):
        norm(torch.randn(batch, 8, side, side)).sum().backward()
    assert counter.frame_count <= 3


def test_layers_of_one_kind_share_their_graph() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = compile_algebra(nn.Sequential(*(SelfNorm(8) for _ in range(12))), backend=counter)
    for _ in range(2):
        model(torch.randn(6, 8, 5, 7, requires_grad=True)).sum().backward()
    assert counter.frame_count == 1


def test_a_norm_of_the_users_own() -> None:
    from shiftnorm.norms import MomentNorm

    class Halved(MomentNorm):
        def affine(self, m: Moments) -> Affine:
            return Affine(torch.full_like(m.mean, 0.5), m.mean)

    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(compile_algebra(Halved(3), backend="aot_eager")(x), Halved(3)(x))


def test_it_is_switched_back_and_copied() -> None:
    norm = compile_algebra(SelfNorm(4), backend="aot_eager")
    assert copy.deepcopy(norm).algebra_backend == "aot_eager"
    assert compile_algebra(norm, backend=None).algebra_backend is None


def test_members_that_do_not_agree_run_as_they_stand() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    norm = Chain(BatchNorm(4), SelfNorm(4))
    compile_algebra(norm[1], backend=counter)
    norm(torch.randn(3, 4, 5, 5))
    assert counter.frame_count == 0


def test_compiling_the_whole_model_goes_on() -> None:
    torch.manual_seed(0)
    norm = compile_algebra(CNSN(4).eval(), backend="aot_eager")
    x = torch.randn(3, 4, 5, 5)
    whole = torch.compile(norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x), norm(x))


def test_second_derivatives_are_refused() -> None:
    norm = compile_algebra(SelfNorm(4), backend="aot_eager")
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    (first,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 1), EFDMix()], ids=["Conv2d", "EFDMix"])
def test_a_model_without_such_norms_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"compile_algebra: .* has no norm of shiftnorm"):
        compile_algebra(model)


def test_a_norm_at_rest_compiles_nothing() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(3, 4, 5, 5)
    assert compile_algebra(DSU(4).eval(), backend=counter)(x) is x
    assert counter.frame_count == 0
