"""What norms make of moments by C++ kernels between the passes, against the formulas of the norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import (
    CNSN,
    IBN,
    AttentiveNorm,
    BatchInstanceNorm,
    BatchNorm,
    Chain,
    CrossNorm,
    CrossNormDraw,
    InstanceNorm,
    LayerNorm,
    RepresentativeBatchNorm,
    SelfNorm,
    SwitchNorm,
)
from shiftnorm.ops import (
    Affine,
    Exchange,
    Gate,
    Moments,
    Pool,
    attending,
    cpp_retarget,
    has_retargeting,
    retarget,
    switching,
    use_backend,
)
from shiftnorm.ops import retargeting as module
from shiftnorm.ops.cpp import CppBackend

REASON = CppBackend().unsupported(torch.zeros(1, 1, 2))
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the C++ backend {REASON}")

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "SelfNorm": SelfNorm,
    "SelfNorm from the identity": lambda channels: SelfNorm(channels, start="identity"),
    "SelfNorm with two branches": lambda channels: SelfNorm(channels, two_branches=True),
    "CrossNorm": CrossNorm,
    "CNSN": CNSN,
    "behind BatchNorm": lambda channels: Chain(BatchNorm(channels), *CNSN(channels)),
    "behind a bare BatchNorm": lambda channels: Chain(
        BatchNorm(channels, affine=False, track_running_stats=False), SelfNorm(channels)
    ),
    "behind gains of channels": lambda channels: Chain(BatchNorm(channels, momentum=None), *CNSN(channels)),
    "between two": lambda channels: Chain(BatchNorm(channels), CrossNorm(), BatchNorm(channels), SelfNorm(channels)),
    "behind means of channels": lambda channels: Chain(InstanceNorm(channels, affine=True), CrossNorm()),
    "behind gains of samples": lambda channels: Chain(LayerNorm(channels), CrossNorm(), CrossNorm()),
    "in another order": lambda channels: Chain(SelfNorm(channels), CrossNorm(), SelfNorm(channels)),
    "BatchNorm twice": lambda channels: Chain(BatchNorm(channels), BatchNorm(channels, affine=False)),
    "IBN": IBN,
    "IBN, batch first": lambda channels: IBN(channels, ratio=0.3 * (channels > 1), order="batch_first"),
    "BatchInstanceNorm": BatchInstanceNorm,
    "a bare BatchInstanceNorm": lambda channels: BatchInstanceNorm(channels, affine=False, track_running_stats=False),
    "RepresentativeBatchNorm": RepresentativeBatchNorm,
    "RepresentativeBatchNorm from BatchNorm": lambda channels: RepresentativeBatchNorm(channels, start="batch"),
    "SwitchNorm": SwitchNorm,
    "a bare SwitchNorm": lambda channels: SwitchNorm(channels, affine=False, track_running_stats=False),
    "SwitchNorm behind others": lambda channels: Chain(BatchInstanceNorm(channels), CrossNorm(), SwitchNorm(channels)),
    "AttentiveNorm": AttentiveNorm,
    "AttentiveNorm over groups": lambda channels: AttentiveNorm(channels, base="group", num_groups=1),
    "AttentiveNorm of other shares": lambda channels: AttentiveNorm(channels, num_pairs=3, attention="bn_softmax"),
}  # fmt: skip
# one channel, a part of a vector, a part of a block, several blocks, work for several threads
SHAPES = [(2, 1, 3), (5, 17, 4), (8, 70, 3), (33, 256, 2)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """One entry for every call of the kernel."""
    made: list[bool] = []
    run = cpp_retarget.run_between
    for each in (cpp_retarget, switching, attending):
        monkeypatch.setattr(each, "run_between", lambda *arguments: made.append(True) or run(*arguments))
    yield made


def spread_planes(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Planes whose means and deviations differ: equal ones would leave SelfNorm's gates a BatchNorm of rounding."""
    rows = (*shape[:2], 1, 1)
    x = torch.randn(*shape, shape[-1], dtype=dtype)
    return x * (1 + 3 * torch.rand(rows, dtype=dtype)) + torch.randn(rows, dtype=dtype)


def everything(norm: nn.Module, x: Tensor, g: Tensor, draw: object) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x, draw=draw)
    y.backward(g)
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad, **dict(norm.named_buffers())}
    return {**found, **{name: parameter.grad for name, parameter in norm.named_parameters()}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_outputs_gradients_and_buffers_are_the_formulas(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = (NORMS[name](shape[1]).to(dtype).train() for _ in range(2))
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    start = {key: value.clone() for key, value in ours.state_dict().items()}
    plain.load_state_dict(start)
    x = spread_planes(shape, dtype)
    g, draw = torch.randn_like(x), ours.draw(x)
    found = everything(ours, x, g, draw)
    assert calls
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "has_cpp", lambda: False)
        expected = everything(plain, x, g, draw)
    assert not calls
    assert found.keys() == expected.keys()
    # Where float32 formulas are themselves far from the truth, as a gate's BatchNorm is over samples much alike, the
    # kernel need not be nearer.
    exact = NORMS[name](shape[1]).double().train()
    exact.load_state_dict(start)
    with monkeypatch.context() as patch:
        patch.setattr(module, "has_cpp", lambda: False)
        truth = everything(exact, x.double(), g.double(), draw)
    for key, value in truth.items():
        size = max(float(value.double().abs().max()), 1.0)
        theirs, own = (float((each[key].double() - value.double()).abs().max()) for each in (expected, found))
        bound = 1e-10 if dtype == torch.float64 else 2e-4
        assert own <= max(bound * size, 4 * theirs * (dtype == torch.float32)), f"{key}: off by {own}, not {theirs}"


@pytest.mark.parametrize("name", ["behind BatchNorm", "BatchInstanceNorm", "SwitchNorm", "AttentiveNorm"])
def test_threads_change_no_bit(name: str, threads: None) -> None:
    norm, x = NORMS[name](300), spread_planes((16, 300, 2), torch.float32)
    draw, results = norm.draw(x), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        again = NORMS[name](300)
        again.load_state_dict(norm.state_dict())
        results.append(everything(again, x, x.flip(0), draw))
    for result in results[1:]:
        assert all(torch.equal(result[key], value) for key, value in results[0].items())


def test_gradients_of_gradients_and_of_batches() -> None:
    norm, x = Chain(BatchNorm(3), *CNSN(3)).double(), spread_planes((4, 3, 2), torch.float64).requires_grad_()
    draw = norm.draw(x)
    assert torch.autograd.gradcheck(lambda x: norm(x, draw=draw), x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: norm(x, draw=draw), x)
    gate = norm[2].gate
    of_parameters = [gate.fc, gate.weight, gate.bias]

    def through(*parameters: Tensor) -> Tensor:
        step = Gate(*parameters, None, None, None, pace=0.0, eps=1e-12, norm_eps=1e-5, height=2.0)
        m = Moments(x.detach().mean((2, 3)), x.detach().var((2, 3), correction=0), 4)
        affine = retarget(m, None, Exchange(draw[1].partner, 1e-5), step)
        assert affine is not None
        return affine.gain + affine.mean

    assert torch.autograd.gradcheck(through, of_parameters)
    assert torch.autograd.gradgradcheck(through, of_parameters)


@pytest.mark.parametrize("gate", [0.0, 0.4, 1.0])
def test_a_gate_at_its_end_has_the_same_gradient_in_a_graph(gate: float, calls: list[bool]) -> None:
    norm, x = BatchInstanceNorm(3).double(), spread_planes((4, 3, 2), torch.float64)
    share = norm.get_parameter("gate")
    nn.init.constant_(share, gate)
    g = torch.randn_like(x)
    (plain,) = torch.autograd.grad(norm(x), share, g)
    (in_a_graph,) = torch.autograd.grad(norm(x), share, g, create_graph=True)
    assert len(calls) > 1
    torch.testing.assert_close(in_a_graph, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name",
    ["BatchNorm twice", "IBN", "BatchInstanceNorm", "SwitchNorm", "AttentiveNorm", "SelfNorm with two branches"],
)
def test_gradients_of_gradients_of_x(name: str, calls: list[bool]) -> None:
    norm, x = NORMS[name](3).double(), spread_planes((4, 3, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(norm, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(norm, x)
    assert calls


@pytest.mark.parametrize("name", ["IBN", "IBN, batch first"])
def test_instance_channels_do_not_see_the_batch(name: str, calls: list[bool]) -> None:
    norm, x = NORMS[name](8).train(), spread_planes((4, 8, 3), torch.float32)
    own = slice(0, 4) if name == "IBN" else slice(6, 8)
    x[1, own, 0, 0] = float("nan")
    x.requires_grad_()
    y = norm(x)
    kept = [0, 2, 3]
    assert calls and bool(y[1, own].isnan().all()) and bool(y[kept].isfinite().all())
    y[kept].square().sum().backward()
    assert x.grad is not None and bool(x.grad[kept].isfinite().all())


def test_frozen_parameters_and_unused_outputs() -> None:
    norm, x = SelfNorm(4).train(), spread_planes((6, 4, 3), torch.float32)
    norm.gate.fc.requires_grad_(False)
    norm(x).sum().backward()
    assert norm.gate.fc.grad is None and norm.gate.weight.grad is not None
    m = Moments(torch.randn(6, 4, requires_grad=True), torch.rand(6, 4, requires_grad=True), 9)
    affine = retarget(m, None, Exchange(torch.tensor([1, 2, 3, 4, 5, 0]), 1e-5), None)
    assert affine is not None
    affine.gain.sum().backward()
    assert m.var.grad is not None and torch.equal(m.mean.grad, torch.zeros(6, 4))


def test_constant_planes_and_far_gates_stay_finite() -> None:
    x = torch.relu(spread_planes((6, 5, 4), torch.float32) - 2)
    x[:, 1] = 0  # dead in all samples
    norm = CNSN(5).train()
    with torch.no_grad():
        norm[1].gate.bias.copy_(torch.tensor([0.0, 0.0, 500.0, -500.0, 3e38]))
    found = everything(norm, x, torch.ones_like(x), norm.draw(x))
    assert all(bool(value.isfinite().all()) for value in found.values())
    torch.testing.assert_close(found["y"][:, 3], torch.zeros_like(x[:, 3]))


def test_what_is_not_finite_comes_out() -> None:
    x = spread_planes((4, 3, 2), torch.float32)
    x[1, 2, 0, 0] = float("nan")
    y = SelfNorm(3).train()(x)
    assert bool(y[:, 2].isnan().all()) and bool(y[:, :2].isfinite().all())


def test_the_gate_is_exact_to_a_few_units() -> None:
    level = torch.linspace(-80, 80, 4001)
    samples = torch.stack([level, -level])  # their BatchNorm is 0 with a weight of 0: only the bias is left
    step = Gate(torch.zeros(4001, 2), torch.zeros(4001), level, None, None, None, pace=0.0, eps=1.0, norm_eps=1.0)
    affine = retarget(Moments(samples, torch.ones_like(samples), 2), None, None, step)
    assert affine is not None
    expected = torch.sigmoid(level.double())
    assert float(((affine.gain[0].double() - expected) / expected).abs().max()) < 5e-7


@pytest.mark.parametrize("partner", [[0, 4, 1, 2], [0, -1, 1, 2]])
def test_a_partner_that_is_no_sample_is_refused_and_nothing_counted(partner: list[int]) -> None:
    norm, x = CNSN(3).train(), spread_planes((4, 3, 2), torch.float32)
    draw = (CrossNormDraw(torch.tensor(True), torch.tensor(partner)), None)
    with pytest.raises(IndexError, match="CrossNorm: expected partners from 0 to 3"):
        norm(x, draw=draw)
    assert norm[1].gate.num_batches_tracked == 0
    assert torch.equal(norm[1].gate.running_mean, torch.zeros(3))


def _listened_to() -> SelfNorm:
    norm = SelfNorm(3)
    norm.gate.register_forward_hook(lambda module, inputs, output: None)
    return norm


def _pooled() -> CrossNorm:
    norm = CrossNorm(3)
    norm.pool = Moments(torch.zeros(4, 3), torch.ones(4, 3), 9)
    return norm


ONLY_FORMULAS: dict[str, Callable[[], nn.Module]] = {
    "another mode": lambda: CrossNorm(3, mode="1-instance"),
    "a blend": lambda: CrossNorm(3, blend=0.3),
    "a pool": _pooled,
    "a crop": lambda: CrossNorm(3, crop="both"),
    "mixing": lambda: SelfNorm(3, attention="mixing"),
    "cumulative averages": lambda: SelfNorm(3, momentum=None),
    "cumulative averages of moments": lambda: SwitchNorm(3, momentum=None),
    "sums of moments": lambda: SwitchNorm(3, using_moving_average=False),
    "no batch": lambda: SwitchNorm(3, using_bn=False),
    "no planes": lambda: SwitchNorm(3, using_in=False).eval(),
    "attention in evaluation": lambda: AttentiveNorm(3).eval(),
    "instances alone": lambda: IBN(3, ratio=1.0),
    "a hook on the gate": _listened_to,
    "evaluation": lambda: SelfNorm(3).eval(),
    "parameters in half precision": lambda: SelfNorm(3, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("what", ONLY_FORMULAS)
def test_left_to_the_formulas(what: str, calls: list[bool]) -> None:
    norm = ONLY_FORMULAS[what]()
    norm(spread_planes((4, 3, 6), torch.float32))
    assert not calls


def test_two_branches_of_which_one_is_listened_to(calls: list[bool]) -> None:
    x, heard = spread_planes((4, 3, 6), torch.float64), []
    plain = SelfNorm(3, two_branches=True).double()
    for count, name in ((1, "mean_gate"), (0, "gate")):
        norm = copy.deepcopy(plain)
        gate = norm.get_submodule(name)
        gate.register_forward_hook(lambda *_: heard.append(True))
        calls.clear()
        found = norm(x)
        assert len(calls) == count and len(heard) == 1
        heard.clear()
        torch.testing.assert_close(found, copy.deepcopy(plain)(x), rtol=0, atol=1e-12)


def test_left_to_the_formulas_by_the_input(calls: list[bool]) -> None:
    norm, x = CNSN(3).train(), spread_planes((4, 3, 6), torch.float32)
    norm(x[:1])  # a batch of one
    norm(x, mask=torch.ones(4, 1, 6, 6))
    with use_backend("eager"):
        norm(x)
    with torch.no_grad():
        torch.func.vmap(norm.eval())(x.unsqueeze(0))
    assert not calls
    assert not has_retargeting(x.to("meta"))
    norm.train()(x)
    assert calls


def test_moments_that_it_does_not_take() -> None:
    m, exchange = Moments(torch.randn(4, 3), torch.rand(4, 3), 9), Exchange(torch.tensor([1, 0, 3, 2]), 1e-5)
    assert retarget(m, None, exchange, None) is not None
    assert retarget(m, None, Exchange(torch.tensor([1, 0]), 1e-5), None) is None
    assert retarget(m, None, Exchange(torch.tensor([1, 0, 3, 2], dtype=torch.int32), 1e-5), None) is None
    assert retarget(Moments(m.mean, m.var, torch.full((4, 1), 9.0)), None, exchange, None) is None
    assert retarget(Moments(m.mean.half(), m.var.half(), 9), None, exchange, None) is None
    assert retarget(m, Affine(torch.ones(1, 3).double(), m.mean), exchange, None) is None
    gate = [torch.randn(3, 4)[:, ::2], torch.ones(3), torch.zeros(3)]
    assert retarget(m, None, None, Gate(*gate, None, None, None, pace=0.0, eps=1e-12, norm_eps=1e-5)) is None
    row = torch.ones(3)
    for wrong in (
        torch.ones(2),
        torch.ones(1).expand(3),
        torch.ones(3).double(),
        torch.ones(3, device="meta"),
        torch.ones(3, 1),
    ):
        assert retarget(m, Pool(row, wrong, None, None, None, pace=0.1, eps=1e-5), exchange, None) is None
        assert retarget(m, Pool(None, None, row, wrong, None, pace=0.1, eps=1e-5), exchange, None) is None
        gate = Gate(torch.ones(3, 2), row, wrong, None, None, None, pace=0.1, eps=1e-12, norm_eps=1e-5)
        assert retarget(m, None, None, gate) is None
    for wrong in (torch.ones(2, 3), torch.ones(4, 2), torch.ones(4, 3, device="meta")):
        assert retarget(m, Affine(wrong, m.mean), exchange, None) is None
        assert retarget(m, Affine(m.mean, wrong), exchange, None) is None
    counter = torch.tensor(0, dtype=torch.int32)
    assert retarget(m, Pool(None, None, None, None, counter, pace=0.1, eps=1e-5), exchange, None) is None
    assert retarget(m, None, exchange._replace(acts=torch.tensor(False)), None) is None
    strided = Moments(torch.randn(3, 4).T, torch.rand(3, 4).T, 9)
    affine = retarget(strided, None, exchange, None)
    assert affine is not None
    torch.testing.assert_close(affine.mean, strided.mean[[1, 0, 3, 2]])


@pytest.mark.parametrize("name", ["behind BatchNorm", "IBN", "SwitchNorm", "AttentiveNorm"])
def test_another_default_device_changes_nothing(name: str) -> None:
    norm, x = NORMS[name](5), spread_planes((4, 5, 3), torch.float32)
    again, draw = NORMS[name](5), norm.draw(x)
    again.load_state_dict(norm.state_dict())
    with torch.device("meta"):
        found = everything(norm, x, torch.ones_like(x), draw)
    expected = everything(again, x, torch.ones_like(x), draw)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_lazily_negated_gradients() -> None:
    m = Moments(torch.randn(4, 3), torch.rand(4, 3).requires_grad_(), 9)
    exchange = Exchange(torch.tensor([1, 0, 3, 2]), 1e-5)
    negated = torch.complex(torch.zeros(4, 3), torch.ones(4, 3)).conj().imag
    assert negated.is_neg()
    found = []
    for g in (negated, negated.resolve_neg()):
        affine = retarget(m, None, exchange, None)
        assert affine is not None
        found.append(torch.autograd.grad(affine.gain, m.var, g)[0])
    assert torch.equal(*found) and bool(found[0].abs().sum() > 0)


def test_a_cross_norm_that_rests_takes_no_part(calls: list[bool]) -> None:
    x = spread_planes((4, 3, 6), torch.float32)
    for norm in (CrossNorm(3, p=0.0), CrossNorm(3, p=0.0, crop="both"), CrossNorm(3, p=0.0, mode="1-instance")):
        assert norm(x) is x
    chain, alone = Chain(BatchNorm(3), CrossNorm(3, p=0.0), SelfNorm(3)), Chain(BatchNorm(3), SelfNorm(3))
    chain[2].load_state_dict(alone[1].state_dict())
    assert torch.equal(chain(x), alone(x))
    assert len(calls) == 2
