from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from shiftnorm.evaluate import adversarial
from shiftnorm.evaluate.adversarial import auto_attack, fgsm, pgd
from shiftnorm.norms import CNSN, IBN, BatchNorm, CrossNorm, SelfNorm


class Convolutional(nn.Module):
    """A small network with one norm, and a batch norm that is kept in evaluation mode."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.frozen = nn.BatchNorm2d(8).eval()
        self.norm = norm
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.frozen(self.first(x))).relu().mean((2, 3)))


def linear(values: int = 12, classes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(values, classes))


def losses(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def ascent(model: nn.Sequential, y: torch.Tensor) -> torch.Tensor:
    """The direction in which a two-class linear network's loss rises: the other row minus the label's."""
    weight = model[1].weight.detach()
    return (weight[1 - y] - weight[y]).view(len(y), 3, 2, 2)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 3, 8, 8), torch.randint(4, (6,))


@pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_linear_optimum_in_linf(attack):
    model, x, y = linear(), torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 1])
    expected = (x + 0.07 * ascent(model, y).sign()).clamp(0, 1)
    assert torch.allclose(attack(model, x, y, eps=0.07), expected, atol=1e-6)


@pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_linear_optimum_in_l2(attack):
    model, y = linear(), torch.tensor([0, 1, 0, 1, 1])
    x = 0.4 + 0.2 * torch.rand(5, 3, 2, 2)  # far enough from the box
    direction = ascent(model, y)
    expected = x + 0.3 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    found = attack(model, x, y, eps=0.3, norm="l2", **({"steps": 30, "step_size": 0.3} if attack is pgd else {}))
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.allclose(losses(model, found, y), losses(model, expected, y), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.0, 8 / 255, 0.5, 3.0])
@pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_the_budget_and_the_box_are_kept(batch, attack, eps, norm):
    x, y = batch
    x[0], x[1] = 0.0, 1.0
    found = attack(Convolutional(nn.Identity()), x, y, eps=eps, norm=norm)
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max().item() <= eps + 1e-6
    assert 0 <= found.min() and found.max() <= 1
    assert found.shape == x.shape and found.dtype == x.dtype and not found.requires_grad


@pytest.mark.parametrize("make", [BatchNorm, IBN, SelfNorm, CNSN, lambda c: CrossNorm(c)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_loss_rises_through_our_norms(batch, make, norm):
    x, y = batch
    model = Convolutional(make(8)).train()
    before = losses(model.eval(), x, y)
    model.train()
    one = losses(model.eval(), fgsm(model, x, y, eps=0.02, norm=norm), y)
    many = losses(model, pgd(model, x, y, eps=0.02, norm=norm), y)
    assert bool((one > before).all())
    assert bool((many >= before).all())
    assert many.mean() >= one.mean() - 1e-4


def test_cross_norm_is_the_identity_while_attacked(batch):
    x, y = batch
    model = Convolutional(CrossNorm(8, p=1.0)).train()
    with_norm = pgd(model, x, y, eps=0.03)
    model.norm = nn.Identity()
    assert torch.equal(pgd(model, x, y, eps=0.03), with_norm)


@pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_the_model_is_left_as_it_was(batch, attack):
    x, y = batch
    model = Convolutional(BatchNorm(8)).train()
    model.frozen.eval()
    model.norm.source = "ema"  # it moves its buffers in every pass
    model.first.requires_grad_(False)
    model.last.weight.grad = torch.ones_like(model.last.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attack(model, x, y, eps=0.05)
    assert [m.training for m in (model, model.first, model.frozen, model.norm)] == [True, True, False, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False, False, *[True] * 6]
    assert torch.equal(model.last.weight.grad, torch.ones_like(model.last.weight))
    assert model.norm.weight.grad is None


def test_a_failing_model_is_left_as_it_was(batch):
    class Failing(Convolutional):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    model = Failing(nn.Identity()).train()
    with pytest.raises(RuntimeError, match="broken"):
        pgd(model, *batch, eps=0.1)
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_attacks_work_where_gradients_are_off(batch, attack, mode):
    model = Convolutional(SelfNorm(8)).eval()
    expected = attack(model, *batch, eps=0.05)
    with mode():
        x, y = batch[0].clone(), batch[1].clone()
        found = attack(model, x, y, eps=0.05)
    assert torch.equal(found, expected)


def test_a_sure_network_is_still_attacked():
    model, x, y = linear(), torch.full((1, 3, 2, 2), 0.5), torch.tensor([0])
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1000.0, 0.0]))  # the cross-entropy and its gradient are exactly 0
    assert losses(model, x, y).item() == 0.0
    assert torch.allclose(fgsm(model, x, y, eps=0.1), x + 0.1 * ascent(model, y).sign(), atol=1e-6)
    step = fgsm(model, x, y, eps=0.1, norm="l2") - x
    assert step.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_the_direction_is_that_of_the_cross_entropy(batch):
    x, y = batch
    model = Convolutional(SelfNorm(8)).eval()
    inside = 0.2 + 0.6 * x  # the box cuts nothing off
    point = inside.clone().requires_grad_()
    nn.functional.cross_entropy(model(point), y, reduction="sum").backward()
    gradient = point.grad.flatten(1)
    expected = 1e-3 * gradient / gradient.norm(dim=1, keepdim=True)
    step = (fgsm(model, inside, y, eps=1e-3, norm="l2") - inside).flatten(1)
    assert torch.allclose(step, expected, atol=1e-6)


def test_logits_of_another_form_are_refused(batch):
    with pytest.raises(ValueError, match=r"at least 2 classes, the model gave \(6, 1\)"):
        fgsm(linear(192, 1), *batch, eps=0.1)


def test_starts_are_random_and_seeded(batch):
    model = Convolutional(nn.Identity())
    kwargs: dict[str, Any] = {"eps": 0.1, "steps": 1}
    assert torch.equal(pgd(model, *batch, **kwargs), pgd(model, *batch, **kwargs))
    assert not torch.equal(pgd(model, *batch, **kwargs), pgd(model, *batch, seed=1, **kwargs))
    plain = pgd(model, *batch, eps=0.1, steps=1, step_size=0.1, random_start=False)
    assert torch.allclose(plain, fgsm(model, *batch, eps=0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_short_step_stays_short(batch, norm):
    x = 0.2 + 0.6 * batch[0]
    found = pgd(
        Convolutional(nn.Identity()), x, batch[1], eps=0.1, norm=norm, steps=1, step_size=0.01, random_start=False
    )
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert torch.allclose(size, torch.full((6,), 0.01), atol=1e-5)


def test_random_starts_fill_the_budget_evenly():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(4000, 3, 1, 1)
    ball = adversarial._random_change(x, 0.5, "l2", generator).flatten(1)
    share = (ball.norm(dim=1) / 0.5) ** 3  # of the ball's volume within that radius: even from 0 to 1
    assert share.max() <= 1 + 1e-5 and share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert ball.mean(0).abs().max() < 0.02
    cube = adversarial._random_change(x, 0.5, "linf", generator)
    assert cube.abs().max() <= 0.5 and cube.abs().mean().item() == pytest.approx(0.25, abs=0.01)


def test_restarts_never_lower_the_loss(batch):
    model = Convolutional(SelfNorm(8)).eval()
    once = losses(model, pgd(model, *batch, eps=0.1, steps=2), batch[1])
    often = losses(model, pgd(model, *batch, eps=0.1, steps=2, restarts=4), batch[1])
    assert bool((often >= once - 1e-6).all())


def test_no_images_are_no_fault():
    x, y = torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)
    for norm in ("linf", "l2"):
        assert fgsm(Convolutional(nn.Identity()), x, y, eps=0.1, norm=norm).shape == x.shape
        assert pgd(Convolutional(nn.Identity()), x, y, eps=0.1, norm=norm).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -0.1}, "eps of at least 0"),
        ({"eps": 0.1, "norm": "l1"}, "'linf' or 'l2'"),
        ({"eps": 0.1, "steps": 0}, "steps and restarts of at least 1"),
        ({"eps": 0.1, "step_size": -1.0}, "step_size of at least 0"),
        ({"eps": 0.1, "restarts": 2, "random_start": False}, "use random_start=True"),
    ],
)
def test_arguments_out_of_range_are_refused(batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        pgd(linear(192, 4), *batch, **arguments)


def test_images_that_do_not_fit_are_refused(batch):
    x, y = batch
    model = linear(192, 4)
    with pytest.raises(ValueError, match="Let the model normalise"):
        fgsm(model, 2 * x - 1, y, eps=0.1)
    with pytest.raises(ValueError, match="floating-point images"):
        fgsm(model, (255 * x).byte(), y, eps=0.1)
    with pytest.raises(ValueError, match="labels"):
        fgsm(model, x, y[1:], eps=0.1)
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    for attack in (fgsm, pgd):
        with pytest.raises(ValueError, match="contain NaN"):
            attack(model, x, y, eps=0.1)


def test_auto_attack_says_how_to_install_it(batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ModuleNotFoundError, match="pip install git"):
        auto_attack(linear(192, 4), *batch, eps=8 / 255)


def test_auto_attack_calls_the_package(batch, monkeypatch):
    asked: dict[str, Any] = {}

    class AutoAttack:
        def __init__(self, model: nn.Module, **kwargs: Any) -> None:
            asked.update(kwargs, training=model.training)
            self.model = model

        def run_standard_evaluation(self, x: torch.Tensor, y: torch.Tensor, bs: int) -> torch.Tensor:
            asked["bs"] = bs
            return fgsm(self.model, x, y, eps=asked["eps"], norm="l2")

    package = ModuleType("autoattack")
    package.AutoAttack = AutoAttack
    monkeypatch.setitem(sys.modules, "autoattack", package)
    model = linear(192, 4).train()
    found = auto_attack(model, *batch, eps=0.5, norm="l2", batch_size=3, seed=5)
    assert torch.equal(found, fgsm(model, *batch, eps=0.5, norm="l2"))
    assert model.training and asked == {
        "norm": "L2", "eps": 0.5, "seed": 5, "verbose": False, "version": "standard", "device": "cpu",
        "training": False, "bs": 3,
    }  # fmt: skip
