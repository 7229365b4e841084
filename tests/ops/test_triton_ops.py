"""The passes as operators of torch: registered as torch wants it, differentiable twice, whole in every graph."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
import torch._inductor
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from shiftnorm.norms import BatchNorm, Chain, SelfNorm
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


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(1, 3, device=DEVICE))

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x, self.weight, self.weight)


def exported(net: torch.nn.Module, *, any_batch: bool) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},) if any_batch else None
    return torch.export.export(net, (random(SHAPE, "contiguous"),), dynamic_shapes=sizes, strict=False)


@pytest.mark.parametrize("any_batch", [False, True])
def test_an_exported_program_keeps_the_operators(any_batch: bool) -> None:
    net = Net()
    program = exported(net, any_batch=any_batch)
    names = {str(node.target) for node in program.graph.nodes}
    assert {"shiftnorm.moments.default", "shiftnorm.apply.default"} <= names
    for batch in (2, 5) if any_batch else (2,):
        x = random((batch, *SHAPE[1:]), "contiguous")
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel cannot be looked into")
def test_a_size_that_is_left_open_is_not_that_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, given: list[Tensor]) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    net = Net().requires_grad_(False)
    given = [random((batch, *SHAPE[1:]), "contiguous") for batch in (7, 9)]
    wanted = [net(x) for x in given]
    # as on a GPU, where the kernels take x
    monkeypatch.setattr(triton_ops._triton, "unsupported", lambda x: None)
    compiled = torch.compile(net, backend=aot_autograd(fw_compiler=noted), dynamic=True, fullgraph=True)
    torch.testing.assert_close([compiled(x) for x in given], wanted)
    (graph,) = graphs
    assert not [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel cannot be looked into")
@pytest.mark.skipif(which("g++") is None, reason="no g++ here, with which torch compiles programs")
@pytest.mark.filterwarnings("default")  # from inside torch's compiler, about itself
@pytest.mark.parametrize(("whole", "any_batch"), [(False, False), (False, True), (True, True)])
def test_compiled_ahead_of_time(whole: bool, any_batch: bool, tmp_path: Path) -> None:
    net = Chain(BatchNorm(3), SelfNorm(3)).to(DEVICE).eval() if whole else Net()
    with torch.no_grad():
        program = exported(net, any_batch=any_batch)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        run = torch._inductor.aoti_load_package(package)
        for batch in (2, 5) if any_batch else (2,):
            x = random((batch, *SHAPE[1:]), "contiguous")
            torch.testing.assert_close(run(x), net(x))


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
