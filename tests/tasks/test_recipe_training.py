"""A recipe's optimizer, schedule, averages and resumption, through Lightning's trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.norms import CrossNorm
from shiftnorm.tasks import Batches, Classify, Normalize, Objective
from shiftnorm.tasks.average import WeightAverage
from shiftnorm.tasks.schedule import rate_factor
from shiftnorm.train_recipe import GroupRecipe
from toy_training import CLASSES, Given, batch, network, recipe, task, trainer


class Rates(L.Callback):
    """The learning rate of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def batches(count: int, size: int = 12) -> Given:
    return Given([batch(4, seed, size) for seed in range(count)])


def rates_of(epochs: int, per_epoch: int, accumulate: int = 1, **optimizer: Any) -> list[float]:
    rates = Rates()
    plan = recipe(optimizer=optimizer, epochs=epochs, accumulate=accumulate)
    engine = trainer(max_epochs=epochs, callbacks=[rates], accumulate_grad_batches=accumulate)
    engine.fit(task(network(), per_epoch, plan), batches(per_epoch))
    return rates.seen


def test_the_authors_cosine() -> None:
    lr, final = 0.1, 1e-3
    wanted = [final + (lr - final) / 2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates_of(2, 4, learning_rate=lr, final_learning_rate=final) == pytest.approx(wanted, rel=1e-12)


def test_milestones_and_warmup_count_epochs_of_optimizer_steps() -> None:
    # 5 batches, 2 to a step: 3 steps in an epoch
    found = rates_of(4, 5, 2, learning_rate=0.1, schedule="steps", milestones=(1, 3), factor=10.0)
    assert found == pytest.approx([0.1] * 3 + [0.01] * 6 + [0.001] * 3)
    warm = rates_of(3, 5, 2, learning_rate=0.3, schedule="steps", milestones=(9,), warmup=1.0)
    assert warm == pytest.approx([0.1, 0.2] + [0.3] * 7)


def test_one_step_is_sgd_on_the_recipes_loss() -> None:
    options = {"learning_rate": 0.2, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01, "clip": 0.3}
    plan = recipe(crossnorm={"p": 1.0, "consistency": 10.0}, optimizer=options, seed=7)
    trained = task(network("both"), 1, plan)
    trainer(max_epochs=1).fit(trained, batches(1))
    model = network("both")
    loss, _ = Objective.of(plan, model, Normalize())(*batch(4, 0), 0)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm > 0.3
    for p, new in zip(model.parameters(), trained.model.parameters(), strict=True):
        step = p.grad * (0.3 / norm) + 0.01 * p.detach()
        torch.testing.assert_close(new.detach(), p.detach() - 0.2 * (1 + 0.8) * step)


def test_groups_train_by_their_own_numbers() -> None:
    groups = (GroupRecipe("*.bias", 10.0, weight_decay=0.0), GroupRecipe("*.weight", 0.0))
    options = {"learning_rate": 0.2, "momentum": 0.0, "nesterov": False, "weight_decay": 0.5, "groups": groups}
    plan = recipe(optimizer=options)
    trained, start = task(network(), 1, plan), network()
    trainer(max_epochs=1).fit(trained, batches(1))
    loss, _ = Objective.of(plan, start, Normalize())(*batch(4, 0), 0)
    loss.backward()
    kinds = set()
    for (name, p), new in zip(start.named_parameters(), trained.model.parameters(), strict=True):
        kind = name.rpartition(".")[2]
        kinds.add(kind)
        steps = {"bias": 2.0 * p.grad, "weight": 0.0 * p.grad}
        rest = 0.2 * (p.grad + 0.5 * p.detach())
        torch.testing.assert_close(new.detach(), p.detach() - steps.get(kind, rest))
    assert kinds == {"bias", "weight", "fc"}


def test_a_group_without_parameters_is_an_error() -> None:
    plan = recipe(optimizer={"groups": (GroupRecipe("*.gaet"),)})
    with pytest.raises(ValueError, match=r"optimizer.groups: expected '\*.gaet' to match parameters"):
        task(network(), 1, plan).configure_optimizers()


def test_accumulated_batches_average_their_gradients() -> None:
    plan = recipe(accumulate=2, optimizer={"momentum": 0.0, "nesterov": False, "weight_decay": 0.0})
    trained = task(network(), 2, plan)
    assert trained.steps == 1
    trainer(max_epochs=1, accumulate_grad_batches=2).fit(trained, batches(2))
    model = network()
    objective = Objective.of(plan, model, Normalize())
    for number in range(2):
        (objective(*batch(4, number), number)[0] / 2).backward()
    for p, new in zip(model.parameters(), trained.model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), p.detach() - 0.1 * p.grad)
    assert trained.batches_seen == 2


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_an_epochs_last_step_of_fewer_batches_is_as_strong_as_the_others(clip: float | None) -> None:
    plan = recipe(accumulate=4, optimizer={"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip": clip})
    trained = task(network(), 7, plan)
    trainer(max_epochs=1, accumulate_grad_batches=4).fit(trained, batches(7))
    model = network()
    objective = Objective.of(plan, model, Normalize())
    for numbers, rate in (range(4), 0.1), (range(4, 7), 0.1 * rate_factor(1, steps=2)):
        model.zero_grad()
        for number in numbers:
            (objective(*batch(4, number), number)[0] / len(numbers)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    for p, new in zip(model.parameters(), trained.model.parameters(), strict=True):
        torch.testing.assert_close(new, p)


class After(L.Callback):
    """Weights and buffers after every batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Classify, *_: Any) -> None:
        self.seen.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})


def test_averaged_weights_are_the_ones_evaluated() -> None:
    trained, after = task(network(), 4, recipe(ema=0.75)), After()
    trainer(max_epochs=1, callbacks=[after]).fit(trained, batches(4))
    average = network().state_dict()
    for state in after.seen:
        for name, value in state.items():
            average[name] = 0.75 * average[name] + 0.25 * value if value.is_floating_point() else value
    found = trained.evaluated.state_dict()
    torch.testing.assert_close(dict(found), dict(average))
    assert found["1.num_batches_tracked"] == 4
    model = network()
    model.load_state_dict(average)
    images, _ = batch()
    trained.eval()
    torch.testing.assert_close(trained(images), model.eval()(trained.normalize(images)))
    assert not torch.allclose(trained(images), trained.model(trained.normalize(images)))
    assert "average.module.1.running_mean" in trained.state_dict()
    assert not any(p.requires_grad for p in trained.evaluated.parameters())


def test_averages_follow_accumulated_steps_not_batches() -> None:
    trained, after = task(network(), 4, recipe(ema=0.75, accumulate=4)), After()
    trainer(max_epochs=1, callbacks=[after], accumulate_grad_batches=4).fit(trained, batches(4))
    torch.testing.assert_close(
        trained.evaluated.state_dict()["0.weight"],
        0.75 * network().state_dict()["0.weight"] + 0.25 * after.seen[-1]["0.weight"],
    )


def test_average_refuses() -> None:
    with pytest.raises(ValueError, match=r"WeightAverage: expected a decay in \[0, 1\), got 1"):
        WeightAverage(nn.Linear(1, 1), 1.0)


PARTS = {
    "crossnorm": {"p": 0.6, "consistency": 10.0, "statistics": "separate"},
    "augmix": {"enabled": True},
    "ema": 0.9,
    "epochs": 2,
}


def with_dropout() -> nn.Sequential:
    model = network("both")
    model.insert(10, nn.Dropout(0.5))
    return model


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = batches(3, size=32)
    whole = task(with_dropout(), 3, recipe(**PARTS))
    trainer(max_epochs=2).fit(whole, data)
    first = task(with_dropout(), 3, recipe(**PARTS))
    engine = trainer(max_epochs=1)
    engine.fit(first, data)
    engine.save_checkpoint(tmp_path / "one.ckpt")
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["classify"]["batches_seen"] == 3
    torch.rand(100)  # whatever the generators are at
    second = task(with_dropout(), 3, recipe(**PARTS))
    trainer(max_epochs=2).fit(second, data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    torch.testing.assert_close(dict(second.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


def test_losses_of_a_checkpoint_follow_the_task_to_its_device() -> None:
    # Lightning reads the checkpoint first; the device without numbers stands for any other than the CPU.
    trained = Classify(nn.Conv2d(3, 1, 1), steps=4)
    trained.on_load_checkpoint({"classify": {"batches_seen": 2, "losses": torch.ones(2), "epochs": [0.5]}})
    trained.to("meta").on_fit_start()
    assert [loss.device.type for loss in trained._losses] == ["meta", "meta"]
    assert trained.epoch_losses == [0.5] and trained.batches_seen == 2


def test_the_losses_of_a_recipe_are_not_kept_twice(tmp_path: Path) -> None:
    trained, engine = task(network(), 3, recipe()), trainer(max_epochs=1)
    engine.fit(trained, batches(3))
    engine.save_checkpoint(tmp_path / "one.ckpt")
    kept = torch.load(tmp_path / "one.ckpt", weights_only=True)["classify"]
    assert (kept["batches_seen"], kept["losses"].tolist(), kept["epochs"]) == (3, [], [])


def test_seeds_draw_differently() -> None:
    losses: set[float] = set()
    for seed in (0, 1):
        trained = task(with_dropout(), 3, recipe(**{**PARTS, "epochs": 1}, seed=seed))
        engine = trainer(max_epochs=1)
        engine.fit(trained, batches(3, size=32))
        losses.add(float(engine.callback_metrics["loss"]))
    assert len(losses) == 2


def test_the_plain_path_is_the_plain_loop_to_the_bit() -> None:
    images, labels = batch(24)
    trained = Classify(network(crossnorm=False), steps=6, learning_rate=0.3, weight_decay=1e-3)
    data = Batches(images, labels, batch_size=8, shift=1, flip=True, seed=4)
    trainer(max_epochs=2).fit(trained, data)
    model = network(crossnorm=False).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, 0.9, weight_decay=1e-3, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / 6)))
    again = Batches(images, labels, batch_size=8, shift=1, flip=True, seed=4)
    losses: list[Tensor] = []
    for _ in range(2):
        for x, y in again:
            x = x.to(memory_format=torch.channels_last).float().div(255).sub(0.5).div(0.25)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    assert trained.epoch_losses == [torch.stack(losses[:3]).mean().item(), torch.stack(losses[3:]).mean().item()]
    torch.testing.assert_close(dict(trained.model.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_the_parts_of_the_loss_are_logged(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    plan = recipe(crossnorm={"p": 1.0, "consistency": 10.0}, augmix={"enabled": True})
    engine = trainer(max_epochs=1, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    engine.fit(task(network(), 2, plan), batches(2, size=32))
    (file,) = tmp_path.rglob("metrics.csv")
    names = set(file.read_text().splitlines()[0].split(","))
    assert names >= {"loss", "cross_entropy", "augmix_divergence", "crossnorm_divergence"}


def test_the_network_is_compiled_in_place() -> None:
    torch.compiler.reset()
    trained = task(network(), 1, recipe(compile=True))
    names = list(trained.state_dict())
    trained.configure_model()
    trained.configure_model()
    assert trained.model._compiled_call_impl is not None
    assert list(trained.state_dict()) == names
    torch.compiler.reset()


def test_refusals() -> None:
    objective = Objective.of(recipe(), network(), Normalize(), classes=CLASSES)
    with pytest.raises(ValueError, match=r"expected an objective made for the same model, .* got another model"):
        Classify(network(), steps=1, objective=objective)
    with pytest.raises(ValueError, match="no before_step beside it, got both"):
        Classify(objective.model, steps=1, objective=objective, before_step=lambda: None)
    with pytest.raises(ValueError, match="expected as many means as stds, and every std > 0"):
        Normalize((0.5,), (0.0,))


def test_a_new_task_has_its_crossnorms_at_rest() -> None:
    trained = task(network(), 1, recipe(crossnorm={"p": 1.0, "active_num": 2}))
    assert [bool(m.active) for m in trained.modules() if isinstance(m, CrossNorm)] == [False, False]
