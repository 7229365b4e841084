"""Numbers that stop being finite: what is named, and what is kept."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from shiftnorm.tasks import Classify
from shiftnorm.tasks.diagnose import first_not_finite
from shiftnorm.tasks.guard import FiniteGuard
from toy_training import CLASSES, Given, batch, network, recipe, task, trainer


class Trap(nn.Module):
    """Lets everything through, until it is armed: then NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = torch.tensor(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.armed, torch.nan, x)


class Root(nn.Module):
    """A square root, whose derivative at 0 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


class Keep(L.Callback):
    """The state before every batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


BRIGHT = 3


def batches(count: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Batches, of which number 3 is bright all over."""
    made = [(*batch(4, seed), torch.arange(4) + 100 * seed) for seed in range(count)]
    made[BRIGHT][0].fill_(255)
    return made


def with_trap(model: nn.Sequential) -> nn.Sequential:
    """The network, with NaN behind its second convolution for a bright batch."""
    trap = Trap()
    model.insert(5, trap)
    model.register_forward_pre_hook(lambda _, inputs: setattr(trap, "armed", inputs[0].mean() > 1.9))
    return model


def make(model: nn.Module, **parts: Any) -> Classify:
    return task(model, 6, recipe(**parts))


def fail(trained: Classify, data: list[tuple[Tensor, ...]], **options: Any) -> tuple[str, list[dict[str, Tensor]]]:
    """What the training says when it stops, and the states before every batch."""
    keep = Keep()
    engine = trainer(max_epochs=1, callbacks=[keep], **options)
    with pytest.raises(ArithmeticError) as stop:
        engine.fit(trained, Given(data))
    return str(stop.value), keep.states


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"crossnorm": {"p": 1.0, "active_num": 2}},
        {"crossnorm": {"p": 1.0, "consistency": 10.0, "statistics": "separate"}},
    ],
)
def test_step_layer_and_samples_are_named_and_everything_kept(parts: dict[str, Any]) -> None:
    trained = make(with_trap(network("both")), **parts)
    text, states = fail(trained, batches())
    assert text == (
        "the training loss is nan at step 4 of 6; try a learning rate below 0.1. First not finite: the output of '5' "
        "(Trap). Samples of the batch: 300, 301, 302, 303. Parameters and buffers are as they were before this step."
    )
    assert len(states) == 4
    torch.testing.assert_close(dict(trained.state_dict()), states[3], rtol=0, atol=0)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_accumulated_batches_are_one_step() -> None:
    trained = make(with_trap(network()), accumulate=2)
    text, states = fail(trained, batches(), accumulate_grad_batches=2)
    assert "loss is nan at step 2 of 3;" in text and "Samples of the batch: 300, 301, 302, 303." in text
    torch.testing.assert_close(dict(trained.state_dict()), states[2], rtol=0, atol=0)  # before both batches of the step


def test_gradients_alone_can_be_at_fault() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Root(), nn.Linear(2, CLASSES))
    data = batches()
    # Zeros for the bright batch only, whose planes are constant.
    model[1].register_forward_hook(lambda _, inputs, y: y * (inputs[0].var((2, 3)).max() > 1e-6))
    trained = make(model)
    text, states = fail(trained, data)
    assert text.startswith("the gradients are not finite at step 4 of 6; try a learning rate below 0.1; the loss is ")
    assert "First not finite: the gradient of '0.bias'." in text
    assert "Samples of the batch: 300, 301, 302, 303." in text
    torch.testing.assert_close(dict(trained.state_dict()), states[3], rtol=0, atol=0)


def test_compiled_networks_are_searched_too() -> None:
    torch.compiler.reset()
    model = with_trap(network())
    trained = make(model)
    model.compile(backend="eager")
    text, _ = fail(trained, batches())
    assert "First not finite: the output of '5' (Trap)" in text
    torch.compiler.reset()


def test_batches_without_indices() -> None:
    text, _ = fail(make(with_trap(network())), [pair[:2] for pair in batches()])
    assert "(Trap). Parameters and buffers" in text


def test_a_checkpoint_is_refused_while_a_bad_step_waits() -> None:
    # As on an accelerator, where a step is looked at later: nothing not finite may reach a file meanwhile.
    model = network()
    trained = make(model)
    trained.guard.begin(1)
    trained.guard.note(torch.tensor(torch.inf), torch.arange(3), lambda: None)
    trained.guard._steps[0].finite = torch.tensor(0.0)
    with pytest.raises(ArithmeticError, match=r"loss is inf at step 1 of 6.*nothing in a second run of the batch"):
        trained.on_save_checkpoint({})


def test_steps_that_wait_are_looked_at_in_order_and_put_back() -> None:
    norm = nn.BatchNorm1d(2)
    guard = FiniteGuard(norm, norm)
    for number in (1, 2, 3):
        guard.begin(number)
        norm.running_mean.fill_(number)
        guard.note(torch.tensor(1.0), None, lambda: None)
        guard._steps[-1].finite = torch.tensor(float(number != 2))
    guard.begin(4)  # looks at the first step only, and it was finite
    with pytest.raises(ArithmeticError, match="at step 2"):
        guard.check()
    assert norm.running_mean.tolist() == [1.0, 1.0]


def test_half_precision_reruns_as_it_ran() -> None:
    seen: list[torch.dtype] = []
    model = with_trap(network())
    model[0].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    text, _ = fail(make(model), batches(), precision="bf16-mixed")
    assert "(Trap)" in text and set(seen) == {torch.bfloat16} and len(seen) == 5


def test_first_not_finite() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.BatchNorm1d(3)).eval()
    x = torch.randn(4, 3)
    assert first_not_finite(model, lambda: model(x)) is None
    assert first_not_finite(model, lambda: model(x / 0)) == "the images as the network takes them"
    model[2].running_var.fill_(torch.nan)
    model[2].weight.data.fill_(torch.inf)
    found = first_not_finite(model, lambda: model(x))
    assert found == "the output of '2' (BatchNorm1d), whose weight and running_var is not finite"
    model[1][0].bias.data[1] = torch.inf
    assert first_not_finite(model, lambda: model(x)) == "the output of '1.0' (Linear), whose bias is not finite"
    assert not model[1][0]._forward_hooks and not model._forward_pre_hooks
