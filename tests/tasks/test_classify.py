from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from shiftnorm.tasks import Batches, Classify


def make_task(steps=8, **arguments):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return Classify(model, steps=steps, **arguments)


def make_batches(n=16, **arguments):
    labels = torch.arange(n) % 2
    images = (40 + 150 * labels).view(-1, 1, 1, 1).expand(n, 3, 8, 8).to(torch.uint8).contiguous()
    return Batches(images, labels, **{"batch_size": 8, **arguments})


def fit(task, batches, epochs):
    options = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, **options)
    trainer.fit(task, batches)
    return trainer


def test_batches_cover_an_epoch_in_a_new_order_each_time():
    batches = Batches(torch.arange(12).view(12, 1, 1, 1), torch.arange(12), batch_size=5, seed=3)
    assert len(batches) == 2
    first, second = ([labels.tolist() for _, labels in batches] for _ in range(2))
    assert [len(batch) for batch in first] == [5, 5]
    assert len({*first[0], *first[1]}) == 10
    assert first != second
    again = Batches(torch.arange(12).view(12, 1, 1, 1), torch.arange(12), batch_size=5, seed=3)
    assert [labels.tolist() for _, labels in again] == first
    for images, labels in batches:
        assert torch.equal(images.flatten(), labels)


def test_fewer_images_than_a_batch():
    assert [len(labels) for _, labels in make_batches(6)] == [6]


@pytest.mark.parametrize(("n", "size"), [(0, 4), (3, 0)])
def test_batches_refuse(n, size):
    with pytest.raises(ValueError, match="at least one image"):
        make_batches(n, batch_size=size)


def test_training_learns_and_follows_the_cosine():
    torch.manual_seed(0)
    task = make_task(steps=40, learning_rate=0.2, weight_decay=0.0)
    rates: list[float] = []
    task.before_step = lambda: rates.append(task.trainer.optimizers[0].param_groups[0]["lr"])
    fit(task, make_batches(), epochs=20)
    assert len(task.epoch_losses) == 20 and task.epoch_losses[-1] < 0.2 < task.epoch_losses[0]
    expected = 0.1 * (1 + torch.cos(torch.pi * torch.arange(40, dtype=torch.float64) / 40))
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), expected)


def test_a_loss_that_is_nan_stops_with_its_step():
    task = make_task(steps=10)
    calls = iter(range(100))

    def poison():
        if next(calls) == 4:
            task.model[0].weight.data.fill_(float("nan"))

    task.before_step = poison
    with pytest.raises(ArithmeticError, match="loss is nan at step 5 of 10; try a learning rate below"):
        fit(task, make_batches(), epochs=5)


def test_images_are_standardised():
    task = Classify(nn.Identity(), steps=1, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    image = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(task(image).flatten(), torch.tensor([1.0, 0.2, -0.5]))


def test_weights_and_batches_are_channels_last():
    task = make_task()
    seen: list[bool] = []
    task.model[0].register_forward_pre_hook(
        lambda _, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    task(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert seen == [True]
    assert task.model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "arguments", [{"steps": 0}, {"learning_rate": 0.0}, {"std": (1.0, 0.0, 1.0)}, {"momentum": 1.0}]
)
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="expected steps >= 1"):
        make_task(**arguments)
