"""Who feeds a norm, and what forbids to take the two as one: by tracing and by running alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftnorm.norms import BatchNorm, Chain, SelfNorm
from shiftnorm.surgery.fold import fold
from shiftnorm.surgery.graph import Feed, feeds_of_run, feeds_of_trace


class Net(nn.Module):
    """Parts to be wired by a function."""

    def __init__(self, wiring: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def in_place(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    F.relu(y, inplace=True)
    return net.bn(y)


WIRINGS: dict[str, tuple[Callable[[Net, Tensor], Tensor], str | None]] = {
    "plain": (lambda net, x: net.bn(net.conv(x)), None),
    "size and dropout": (lambda net, x: net.bn(F.dropout(net.conv(x), training=False)), None),
    "layer called twice": (lambda net, x: net.bn(net.conv(net.conv(x))), "conv is called 2 times"),
    "norm called twice": (lambda net, x: net.bn(net.conv(x)) + net.bn(net.conv2(x)), "it is called 2 times"),
    "output used by a function": (lambda net, x: (y := net.conv(x)) + net.bn(y), "other users too"),
    "output used by a view": (lambda net, x: net.bn(y := net.conv(x)) + y[:, :1], "other users too"),
    "output used by a layer": (lambda net, x: net.bn(y := net.conv(x)) + net.conv2(y), "other users too"),
    "output used by a norm": (lambda net, x: net.bn(y := net.conv(x)) + net.bn2(y), "other users too"),
    "weight of the layer read": (
        lambda net, x: net.bn(net.conv(x)) + F.conv2d(x, net.conv.weight),
        "the parameters of conv are also read",
    ),
    "weight of the norm read": (
        lambda net, x: net.bn(net.conv(x)) * net.bn.weight.view(1, -1, 1, 1) * x,
        "the parameters of the norm are also read",
    ),
    "activation between": (lambda net, x: net.bn(F.relu(net.conv(x))), "its input"),
    "activation in place between": (in_place, ""),
    "sum between": (lambda net, x: net.bn(net.conv(x) + x), "its input"),
}


WIRINGS_BY_FUNCTION = {wiring: name for name, (wiring, _) in WIRINGS.items()}


@pytest.mark.parametrize("wiring,objection", WIRINGS.values(), ids=WIRINGS)
def test_wirings(wiring: Callable[[Net, Tensor], Tensor], objection: str | None) -> None:
    net, x = Net(wiring).eval(), torch.randn(2, 4, 3, 3)
    net.bn.running_mean.normal_()
    found = {"run": feeds_of_run(net, lambda: net(x))}
    if "dropout" not in WIRINGS_BY_FUNCTION[wiring]:  # only a run shows that a function hands its input on
        found["trace"] = feeds_of_trace(net)
    for how, feeds in found.items():
        if objection is None:
            assert feeds["bn"] == Feed("conv"), how
        else:
            assert objection in (feeds["bn"].objection or ""), how
            assert feeds["bn"].objection, how
    folded, _ = fold(net, x)
    assert torch.allclose(folded(x), net(x), atol=1e-5)


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, mode: str = "mean", sizes: tuple[int, ...] = (1, 1)
    ) -> Tensor:
        y = self.conv(x)
        constant = torch.ones(1, 4, 1, 1)
        if mask is not None:
            return self.bn(y * mask)
        if mode != "mean":
            return y
        return self.bn(y) * constant * sizes[0]


def test_optional_arguments_have_their_defaults_and_nothing_is_left_on_the_model() -> None:
    model = Leaf().eval()
    before = set(vars(model))
    assert feeds_of_trace(model) == {"bn": Feed("conv")}
    assert set(vars(model)) == before


def guarded(hook: Callable[[nn.Sequential], object]) -> str:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), BatchNorm(4), nn.ReLU()).eval()
    hook(model)
    folded, report = fold(model)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(folded(x), model(x))
    assert report.folded == 0
    return report.rows[0].reason


def attach(model: nn.Sequential) -> None:
    model[0].after_norm = BatchNorm(4).eval()
    model[0].register_forward_hook(lambda module, args, output: module.after_norm(output))


def test_layers_that_do_more_than_their_forward_are_left() -> None:
    assert guarded(lambda model: model[0].register_forward_hook(lambda *_: None)).startswith("hooks run with 0")
    assert guarded(lambda model: model[0].register_forward_pre_hook(lambda *_: None)).startswith("hooks run with 0")
    assert guarded(lambda model: model[1].register_forward_hook(lambda *_: None)).startswith("it has hooks")
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    assert guarded(lambda model: weight_norm(model[0])).startswith("the weight of 0 is parametrized")

    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    def exchange(model: nn.Sequential) -> None:
        model[0] = Doubled(4, 4, 1)

    assert guarded(exchange) == "0 (Doubled) has a forward of its own"


def test_attached_norms_and_their_layer_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), BatchNorm(4)).eval()
    attach(model)
    for example in (None, torch.randn(2, 4, 3, 3)):
        rows = {row.norm: row for row in fold(model, example)[1].rows}
        assert rows["0.after_norm"].reason == "it is attached to 0 and run by a hook"
        assert rows["1"].reason.startswith("hooks run with 0 (a norm attached by surgery")


def test_norms_of_torch_with_another_forward_are_left() -> None:
    class Other(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).abs()

    model = nn.Sequential(nn.Conv2d(4, 4, 1), Other(4)).eval()
    assert fold(model)[1].rows[0].reason == "Other has a forward of its own"
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    model[1].train()
    report = fold(model)[1]
    assert [str(row) for row in report.rows] == ["1: left, it is in training mode", "3 -> 2"]


def test_unusable_numbers_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    model[1].running_var.fill_(-1.0)
    assert fold(model)[1].rows[0].reason == "its coefficients are not finite"
    model[1].running_var.fill_(1e-12)
    model[1].running_mean.fill_(1e5)
    assert fold(model.half())[1].rows[0].reason == "its coefficients are not finite"
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    model[1].running_mean.fill_(1e5)
    model[0].half()
    assert fold(model)[1].rows[0].reason == "the weights of 0 would not be finite in torch.float16"


def test_channels_that_do_not_fit_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(4)).eval()
    assert fold(model)[1].rows[0].reason == "it has 4 channels and 0 returns 8"


def test_lists_of_modules_the_model_calls_besides_its_children() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.layers = [self.conv, self.bn]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = Listed().eval(), torch.randn(2, 4, 3, 3)
    model.bn.running_mean.normal_()
    for example in (None, x):
        folded, report = fold(model, example)
        assert report.folded == 0
        assert torch.equal(folded(x), model(x))


def test_modules_under_two_names_are_replaced_under_both() -> None:
    model = Net(lambda net, x: net.bn(net.conv(x))).eval()
    model.alias = model.bn
    folded, report = fold(model, inplace=True)
    assert report.rows[0].into == "conv"
    assert type(folded.bn) is nn.Identity and folded.alias is folded.bn


def test_a_forward_set_on_the_instance_is_not_traced_past() -> None:
    model = Net(lambda net, x: net.bn(net.conv(x))).eval()
    model.forward = lambda x: model.bn(F.relu(model.conv(x)))
    with pytest.raises(ValueError, match=r"another was set on the instance.*Pass example_input"):
        fold(model)
    assert fold(model, torch.randn(2, 4, 3, 3), inplace=True)[1].folded == 0


def test_norms_inside_a_norm_are_no_rows_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Chain(BatchNorm(4), SelfNorm(4))).eval()
    assert [row.norm for row in fold(model, torch.randn(2, 4, 3, 3))[1].rows] == ["1"]
    assert set(feeds_of_run(model, lambda: model(torch.randn(2, 4, 3, 3)))) == {"1"}


def test_wrapped_and_scripted_models_are_refused() -> None:
    with pytest.raises(TypeError, match="wrapped in DataParallel"):
        fold(nn.DataParallel(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).eval())
