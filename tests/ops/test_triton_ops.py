"""The passes as operators of torch: registered as torch wants it, differentiable twice, whole in every graph."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shiftnorm.ops import triton_ops
from triton_device import COMPILED, DEVICE, INTERPRETED, LAYOUTS, random, rows, runs_kernels

needs_kernels = runs_kernels
SHAPE = (2, 3, 5, 4)
OPERATORS = triton_ops.__all__


def arguments(name: str, layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x, g = random(SHAPE, layout, dtype), random(SHAPE, layout, dtype)
    coefficients = [row.to(torch.float64 if dtype == torch.float64 else torch.float32) for row in rows(4, SHAPE)]
    gain, center, slope, offset = coefficients
    return {
        "moments": [x],
        "apply": [x, gain, center, offset],
        "reduce": [g, x, center],
        "combine": [g, x, gain, center, slope, offset],
    }[name]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own reading
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("layout", LAYOUTS[1:] if INTERPRETED else LAYOUTS)
def test_torch_finds_no_fault_in_the_registration(name: str, layout: str) -> None:
    operator = getattr(torch.ops.shiftnorm, name).default
    given = [argument.requires_grad_() for argument in arguments(name, layout)]
    torch.library.opcheck(operator, given)


@pytest.mark.parametrize("name", OPERATORS)
def test_first_and_second_derivatives(name: str) -> None:
    given = tuple(argument.requires_grad_() for argument in arguments(name, dtype=torch.float64))
    operator = getattr(torch.ops.shiftnorm, name)
    assert torch.autograd.gradcheck(operator, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(operator, given, fast_mode=True)


@needs_kernels
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_by_the_kernels(name: str, layout: str) -> None:
    operator = getattr(torch.ops.shiftnorm, name)
    given = [argument.requires_grad_() for argument in arguments(name, layout)]
    exact = [argument.detach().double().requires_grad_() for argument in given]
    results, wanted = operator(*given), operator(*exact)
    pairs = zip(results, wanted, strict=True) if isinstance(results, tuple) else [(results, wanted)]
    for result, want in pairs:
        g = torch.randn_like(result)
        gradients = torch.autograd.grad(result, given, g, allow_unused=True, retain_graph=True)
        exactly = torch.autograd.grad(want, exact, g.double(), allow_unused=True, retain_graph=True)
        for got, right in zip(gradients, exactly, strict=True):
            assert (got is None) == (right is None)
            if got is not None and right is not None:
                torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-4)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = torch.ops.shiftnorm.moments(x)
    return torch.ops.shiftnorm.apply(x, weight * torch.rsqrt(var + 1e-5), mean, bias.expand_as(mean))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_compiles_to_one_graph(layout: str) -> None:
    torch._dynamo.reset()
    x = random((4, 3, 6, 5), layout).requires_grad_()
    weight, bias = (torch.rand(1, 3, device=DEVICE, requires_grad=True) for _ in range(2))
    compiled = torch.compile(instance_norm, fullgraph=True, backend="inductor" if COMPILED else "aot_eager")
    y, want = compiled(x, weight, bias), instance_norm(x, weight, bias)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(
        want, torch.nn.functional.instance_norm(x) * weight[:, :, None, None] + bias[:, :, None, None]
    )
    g = torch.randn_like(y)
    pairs = zip(*(torch.autograd.grad(out, (x, weight, bias), g) for out in (y, want)), strict=True)
    for got, right in pairs:
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_an_exported_program_keeps_the_operators() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(1, 3, device=DEVICE))

        def forward(self, x: Tensor) -> Tensor:
            return instance_norm(x, self.weight, self.weight)

    net, x = Net(), random(SHAPE, "contiguous")
    program = torch.export.export(net, (x,), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert {"shiftnorm.moments.default", "shiftnorm.apply.default"} <= names
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize(("name", "operations"), [("moments", 4), ("apply", 3), ("reduce", 4), ("combine", 5)])
def test_floating_point_operations_are_counted(name: str, operations: int) -> None:
    with FlopCounterMode(display=False) as counter:
        getattr(torch.ops.shiftnorm, name)(*arguments(name))
    assert counter.get_total_flops() == operations * 2 * 3 * 5 * 4


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel cannot be looked into")
@pytest.mark.parametrize("name", ["moments", "apply", "reduce", "combine", "masked_moments", "masked_combine"])
@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_a_compiler_sees_the_kernels(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="traces Triton kernels")
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from shiftnorm.ops import triton_passes

    if not torch.cuda.is_available():  # tensors without data need a device as little as the kernels that do not run
        monkeypatch.setattr(torch.cuda, "device_of", lambda x: nullcontext())
    with FakeTensorMode(shape_env=ShapeEnv() if mode == "symbolic" else None):
        x, row = torch.empty(1, 3, 128, 128, device="cuda"), torch.empty(1, 3, device="cuda")
        given = {
            "moments": (x,),
            "apply": (x, row, row, row),
            "reduce": (x, x, row),
            "combine": (x, x, row, row, row, row),
            "masked_moments": (x, x[:, :1] > 0),
            "masked_combine": (x, x, row, row, row, row),
        }[name]
        mask = {"mask": x[:, :1] > 0} if name == "masked_combine" else {}
        launch = getattr(triton_passes, name.removeprefix("masked_"))
        function = partial(launch, wrap=torch.library.wrap_triton, **mask)
        graph = make_fx(function, tracing_mode=mode)(*given)
    launches = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    assert len(launches) == (2 if name in ("moments", "reduce", "masked_moments") else 1)
