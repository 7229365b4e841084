"""Recalibration against statistics computed by hand on the whole data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm import norms
from shiftnorm.ops import moments
from shiftnorm.surgery.norm_act import NormAct
from shiftnorm.surgery.recalibrate import Recalibration, recalibrate

UNEVEN = [4, 4, 2]


def data(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) * torch.arange(1.0, shape[0] + 1).reshape(
        -1, *[1] * (len(shape) - 1)
    )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


FIRST: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: nn.BatchNorm2d(3),
    "sync": lambda: nn.SyncBatchNorm(3),
    "ours": lambda: norms.BatchNorm(3),
    "ibn": lambda: norms.IBN(3),
    "bin": lambda: norms.BatchInstanceNorm(3),
    "chain": lambda: norms.Chain(norms.BatchNorm(3), norms.CrossNorm(3), norms.SelfNorm(3)),
    "timm": lambda: pytest.importorskip("timm.layers").BatchNormAct2d(3),
    "norm_act": lambda: NormAct(3, norm=norms.BatchNorm, act_layer=nn.ReLU),
}


@pytest.mark.parametrize("kind", FIRST)
def test_batches_of_any_size_give_the_moments_of_all_the_data(kind: str) -> None:
    model, x = FIRST[kind]().double(), data(10, 3, 4, 5)
    whole = copy.deepcopy(model)
    recalibrate(model, x.split(UNEVEN))
    recalibrate(whole, [x])
    values = x.movedim(1, 0).flatten(1)
    first = next(module for module in model.modules() if getattr(module, "running_mean", None) is not None)
    torch.testing.assert_close(first.running_mean, values.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.running_var, values.var(1), rtol=1e-12, atol=1e-12)
    assert int(first.num_batches_tracked) == 3
    same = next(module for module in whole.modules() if getattr(module, "running_mean", None) is not None)
    torch.testing.assert_close(same.running_var, first.running_var, rtol=1e-12, atol=1e-12)


def test_a_plain_average_of_batches_would_be_seen() -> None:
    x = data(10, 3, 4, 5)
    ours, theirs = (nn.Sequential(nn.BatchNorm2d(3)).double() for _ in range(2))
    recalibrate(ours, x.split(UNEVEN))
    torch.optim.swa_utils.update_bn(x.split(UNEVEN), theirs)
    assert not torch.allclose(ours[0].running_mean, theirs[0].running_mean, rtol=1e-2)
    assert not torch.allclose(ours[0].running_var, theirs[0].running_var, rtol=1e-2)


def test_norms_that_transform_moments_first_get_their_own() -> None:
    x = data(10, 3, 4, 5)
    calibrated = norms.RepresentativeBatchNorm(3).double()
    with torch.no_grad():
        calibrated.center_weight.copy_(torch.tensor([0.5, -0.3, 1.0]))
    recalibrate(calibrated, x.split(UNEVEN))
    shifted = x + torch.tensor([0.5, -0.3, 1.0], dtype=x.dtype).reshape(1, 3, 1, 1) * x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(calibrated.running_var, shifted.movedim(1, 0).flatten(1).var(1))
    switch = norms.SwitchNorm(3).double()
    recalibrate(switch, x.split(UNEVEN))
    planes_mean, planes_var = x.mean((2, 3)), x.var((2, 3))
    second = (planes_var + planes_mean.square()).mean(0) - planes_mean.mean(0).square()
    torch.testing.assert_close(switch.running_var, second, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("attention", ["channel", "mixing"])
def test_gates_are_recalibrated(attention: Any) -> None:
    norm, x = norms.SelfNorm(4, two_branches=True, attention=attention).double(), data(10, 4, 6)
    recalibrate(norm, x.split(UNEVEN))
    m = moments(x)
    mean, std = m.mean, torch.sqrt(m.unbiased + norm.eps)
    for gate in (norm.gate, norm.mean_gate):
        if attention == "channel":
            z = gate.fc[:, 0] * mean + gate.fc[:, 1] * std
        else:
            z = gate.fc(torch.relu(gate.squeeze(torch.cat([mean, std], 1))))
        torch.testing.assert_close(gate.running_mean, z.mean(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gate.running_var, z.var(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["bn_hsigmoid", "mlp_bn"])
def test_attentive_norm_has_its_base_and_its_attention_recalibrated(attention: Any) -> None:
    norm, x = norms.AttentiveNorm(4, num_pairs=3, attention=attention).double(), data(10, 4, 6)
    report = recalibrate(norm, x.split(UNEVEN))
    assert len(report.norms) == (3 if attention == "mlp_bn" else 2)
    torch.testing.assert_close(norm.running_var, x.movedim(1, 0).flatten(1).var(1))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        norms.Chain(norms.BatchNorm(6), norms.CrossNorm(6), norms.SelfNorm(6)),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8, momentum=0.3),
        norms.MixStyle(8, p=1.0),
        norms.BatchInstanceNorm(8),
        norms.DSU(8, p=1.0),
        nn.LayerNorm(4),
    ).double()


def test_everything_else_is_put_back_and_random_layers_rest() -> None:
    model, x = network(), data(6, 3, 8, 8)
    bin_norm, batch = model[6], model[4]
    with torch.no_grad():
        bin_norm.gate.copy_(torch.linspace(-0.5, 1.5, 8))  # the layer clamps it in training
    bin_norm.source = "running"
    model[2].train(False)
    batch.eval()
    parameters = {name: (tensor, tensor.detach().clone()) for name, tensor in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    torch.manual_seed(1)
    report = recalibrate(model, x.split(4))
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))  # nothing was drawn
    assert [module.training for module in model.modules()] == modes
    assert (batch.momentum, bin_norm.momentum, bin_norm.source) == (0.3, 0.1, "running")
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name][0]
        assert torch.equal(parameter, parameters[name][1]), name
        assert parameter.grad is None
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    assert "seen" not in vars(bin_norm)
    assert not batch._forward_pre_hooks
    assert [row.path for row in report.norms] == ["1.0", "1.2.gate", "4", "6"]
    assert (report.batches, report.samples) == (2, 6)
    again = copy.deepcopy(model)
    recalibrate(again, x.split(4))
    assert_unchanged(again, tensors_of(model))


class _Fails(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        return x


def test_all_or_nothing() -> None:
    model = nn.Sequential(network(), _Fails(1))
    before, modes = tensors_of(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="out of memory"):
        recalibrate(model, data(6, 3, 8, 8).split(3))
    assert_unchanged(model, before)
    assert [module.training for module in model.modules()] == modes
    assert model[0][4].momentum == 0.3
    assert "seen" not in vars(model[0][6])
    assert not model[0][4]._forward_pre_hooks


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_nan_is_refused_with_layer_and_batch(momentum: float | None) -> None:
    model, x = network(), data(9, 3, 8, 8)
    before = tensors_of(model)
    x[4, 1, 2, 3] = torch.nan
    text = "got NaN or infinity at the input of '1.0' (BatchNorm) in batch 1"
    with pytest.raises(ValueError, match=re.escape(text)):
        recalibrate(model, x.split(3), momentum=momentum)
    assert_unchanged(model, before)


def test_momentum_moves_the_present_statistics() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3)).double(), data(6, 3)
    plain = copy.deepcopy(model)
    plain[0].momentum = 0.25
    for batch in x.split(3):
        plain(batch)
    recalibrate(model, x.split(3), momentum=0.25)
    torch.testing.assert_close(tensors_of(model), tensors_of(plain))
    assert model[0].momentum == 0.1
    recalibrate(model, x.split(3), momentum=0.25)
    assert int(model[0].num_batches_tracked) == 4


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, 3),
        lambda x: [x],
        lambda x: {"label": 1, "image": x},
        lambda x: {"input": x},
        lambda x: {"x": x},
        lambda x: ({"pixel_values": x}, None),
    ],
)
def test_forms_of_batches(wrap: Callable[[Tensor], Any]) -> None:
    model, x = nn.BatchNorm1d(2).double(), data(6, 2)
    recalibrate(model, (wrap(batch) for batch in x.split(4)))
    torch.testing.assert_close(model.running_mean, x.mean(0))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"img": torch.ones(2, 2)}, "got a mapping with the keys ['img']"),
        (("a", 1), "got a tuple of ['str', 'int']"),
        ("a", "got a str"),
        ([], "got a list of []"),
    ],
)
def test_other_batches_are_refused(batch: Any, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        recalibrate(nn.BatchNorm1d(2), [batch])


def endless(taken: list[int]) -> Iterator[Tensor]:
    while True:
        taken.append(1)
        yield torch.randn(4, 2)


def test_steps_take_no_more_than_asked() -> None:
    taken: list[int] = []
    report = recalibrate(nn.BatchNorm1d(2), endless(taken), steps=3)
    assert (report.batches, report.samples, len(taken)) == (3, 12, 3)


def test_wrong_arguments_are_refused_in_words() -> None:
    norm, x = nn.BatchNorm1d(2), torch.randn(4, 2)
    before = tensors_of(norm)
    with pytest.raises(ValueError, match="expected at least one batch, got an empty loader"):
        recalibrate(norm, [])
    with pytest.raises(ValueError, match="steps to be at least 1 or None, got 0"):
        recalibrate(norm, [x], steps=0)
    with pytest.raises(ValueError, match=r"momentum in \[0, 1\] or None, got 2"):
        recalibrate(norm, [x], momentum=2)
    with pytest.raises(TypeError, match=r"got one tensor, which is a sequence of samples; pass \[x\]"):
        recalibrate(norm, x)
    with pytest.raises(TypeError, match=r"pass model\.module"):
        recalibrate(nn.DataParallel(norm), [x])
    plain = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.GroupNorm(2, 2), norms.MixtureNorm(2))
    with pytest.raises(
        ValueError, match=r"Sequential are: 2 GroupNorm, 1 MixtureNorm[.] 3: it keeps a running mixture"
    ):
        recalibrate(plain, [x])
    with pytest.raises(ValueError, match="are: 1 BatchNorm"):
        recalibrate(norms.BatchNorm(2, track_running_stats=False), [x])
    with pytest.raises(ValueError, match="finish_average first"):
        recalibrate(norms.SwitchNorm(2, using_moving_average=False), [x])
    assert_unchanged(norm, before)


class _Forks(nn.Module):
    """Has a part that evaluation does not use, and one norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.auxiliary = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.auxiliary(x)
        return self.used(self.used(x) * 3)


def test_norms_that_no_data_reach_keep_theirs_and_are_named() -> None:
    model = _Forks().double()
    report = recalibrate(model, [data(5, 2)])
    assert report.left == {"auxiliary": "no data reached it"}
    assert torch.equal(model.auxiliary.running_var, torch.ones(2, dtype=torch.float64))
    assert int(model.used.num_batches_tracked) == 2
    assert [row.path for row in report.norms] == ["used"]


def test_gates_see_nothing_in_batches_of_one_and_say_so() -> None:
    norm = norms.Chain(norms.BatchNorm(3), norms.SelfNorm(3))
    report = recalibrate(norm, torch.randn(4, 3, 5).split(1))
    assert report.left == {"1.gate": "no data reached it"}


def test_frozen_and_instance_norms_are_left_alone() -> None:
    ops = pytest.importorskip("torchvision.ops")
    model = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True), ops.FrozenBatchNorm2d(2))
    report = recalibrate(model, [torch.randn(3, 2, 4, 4) + 5])
    assert torch.equal(model[1].running_mean, torch.zeros(2))
    assert torch.equal(model[2].running_mean, torch.zeros(2))
    assert set(report.left) == {"1", "2"}
    assert "does not pool over the batch" in report.left["1"]
    assert "frozen" in report.left["2"]


def test_half_precision_statistics_come_from_wide_sums() -> None:
    model, x = nn.BatchNorm1d(2).bfloat16(), torch.randn(300, 2).bfloat16() + 8
    recalibrate(model, x.split(7))
    torch.testing.assert_close(model.running_var.double(), x.double().var(0), rtol=1e-2, atol=0)


@pytest.mark.parametrize("wrap", [False, True], ids=["compile()", "torch.compile"])
def test_compiled_models_are_recalibrated_eagerly(wrap: bool) -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3), norms.BatchNorm(3), nn.BatchNorm1d(3)), torch.randn(8, 3) + 2

    def never(*_: object) -> Any:
        raise AssertionError("compiled")

    want = copy.deepcopy(model)
    if wrap:
        recalibrate(torch.compile(model, backend=never), [x])
    else:
        model.compile(backend=never)
        recalibrate(model, [x])
    recalibrate(want, [x])
    torch.testing.assert_close(tensors_of(model), tensors_of(want))


def test_the_report_says_how_far_statistics_moved() -> None:
    model = nn.BatchNorm1d(1).double()
    report = recalibrate(model, [torch.tensor([[1.0], [3.0], [5.0]], dtype=torch.float64)])
    row = report.norms[0]
    assert (row.mean_shift, row.std_ratio) == (pytest.approx(3.0), pytest.approx(2.0))
    assert str(report).splitlines()[0] == "1 norm recalibrated on 3 samples in 1 batch."
    assert report.to_json()["norms"] == [
        {"path": "", "kind": "BatchNorm1d", "mean_shift": row.mean_shift, "std_ratio": row.std_ratio}
    ]
    assert Recalibration().to_json()["left"] == {}


def test_progress_is_a_bar_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    recalibrate(nn.BatchNorm1d(2), [torch.randn(4, 2)], progress=True)
    assert "recalibrate: 1batch" in capsys.readouterr().err


def test_it_repairs_a_model_under_shift() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    clean = torch.randn(64, 1, 8, 8)
    recalibrate(model, clean.split(16))
    model.eval()
    want, shifted = model(clean), clean * 5 + 3
    wrong = (model(shifted) - want).abs().mean()
    recalibrate(model, shifted.split(16))
    assert (model(shifted) - want).abs().mean() < 1e-3 * wrong
