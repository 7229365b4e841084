"""Batches that depend on (seed, epoch, index) alone: order, shares, resuming; and those of `shiftnorm compare`."""

from __future__ import annotations

import hashlib
import io

import lightning as L
import pytest
import torch
from torch import nn

from shiftnorm.data import Dataset
from shiftnorm.tasks.batches import Batches
from shiftnorm.tasks.epoch_order import EpochOrder
from shiftnorm.tasks.generator_batches import GeneratorBatches
from shiftnorm.tasks.loaded_batches import LoadedBatches

N = 22


def pictures(n=N, size=6):
    return torch.randint(1, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def batches(kind="held", n=N, **arguments):
    arguments = {"batch_size": 4, "seed": 5, "with_indices": True, "shift": 2, "flip": True, **arguments}
    labels = torch.arange(n) % 7
    if kind == "held":
        return Batches(pictures(n), labels, **arguments)
    return LoadedBatches(Dataset.of_images("toy", pictures(n), labels, tuple("abcdefg")), **arguments)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def by_image(passes):
    columns = [torch.cat(column) for column in zip(*passes, strict=True)]
    return {int(i): (x, int(y)) for x, y, i in zip(*columns, strict=True)}


@pytest.mark.parametrize("kind", ["held", "loaded"])
def test_an_epoch_is_a_function_of_its_number(kind):
    one, two = batches(kind), batches(kind)
    epochs = [list(one) for _ in range(3)]
    assert not same(epochs[0], epochs[1])
    for epoch in (2, 0, 1):
        two.set_epoch(epoch)
        assert same(list(two), epochs[epoch])
    assert [indices.tolist() for *_, indices in batches(kind, seed=6)] != [i.tolist() for *_, i in epochs[0]]


def test_held_and_loaded_batches_are_the_same():
    for arguments in ({}, {"drop_last": False}, {"resized": 5, "shift": 0}, {"flip": False, "with_indices": False}):
        held, loaded = batches(**arguments), batches("loaded", **arguments)
        assert len(held) == len(loaded)
        assert same([*held, *held], [*loaded, *loaded])


def test_workers_read_the_same_batches():
    assert same(list(batches("loaded", workers=2)), list(batches()))


def test_an_image_is_augmented_alike_in_every_batch():
    whole, small = by_image(batches(batch_size=22)), by_image(batches(batch_size=3, drop_last=False))
    assert whole.keys() == small.keys() == set(range(N))
    for index, (image, label) in whole.items():
        assert torch.equal(image, small[index][0]) and label == small[index][1] == index % 7
    other = by_image(batches(batch_size=22, seed=6))
    assert sum(torch.equal(whole[i][0], other[i][0]) for i in whole) < 6


def test_without_augmentation_the_images_are_theirs():
    for images, labels, indices in batches(shift=0, flip=False):
        assert torch.equal(images, pictures()[indices]) and torch.equal(labels, indices % 7)


@pytest.mark.parametrize(
    ("drop_last", "world", "sizes"),
    [
        (True, 1, [4, 4, 4, 4, 4]),
        (False, 1, [4, 4, 4, 4, 4, 2]),
        (True, 2, [4, 4]),
        (False, 2, [4, 4, 3]),
        (False, 4, [4, 1]),
        (False, 5, [4]),
        (True, 6, [3]),
        (False, 6, [3]),
    ],
)
def test_processes_share_an_epoch(drop_last, world, sizes):
    shares = [list(batches(rank=rank, world=world, drop_last=drop_last)) for rank in range(world)]
    assert all([len(labels) for _, labels, _ in share] == sizes for share in shares)
    assert all(len(batches(rank=rank, world=world, drop_last=drop_last)) == len(sizes) for rank in range(world))
    seen = torch.cat([indices for share in shares for *_, indices in share])
    assert len(seen.unique()) == len(seen) == world * sum(sizes)
    # Together they see what one process sees, in its order.
    alone = list(batches(batch_size=world * sizes[0], drop_last=drop_last))
    for number in range(len(sizes)):
        together = torch.cat([share[number][2] for share in shares])
        assert torch.equal(alone[number][2][: len(together)], together)


@pytest.mark.parametrize("kind", ["held", "loaded"])
@pytest.mark.parametrize("done", range(6))
def test_resuming_anywhere(kind, done):
    whole, first, second, third = (batches(kind) for _ in range(4))
    expected = [*whole, *whole]
    passing = iter(first)
    for _ in range(done):
        next(passing)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    rest = [*second, *second] if done < 5 else list(second)
    assert same(rest, expected[done:])
    third.set_epoch(0)
    third.skip(done)
    third.set_epoch(0)
    assert same([*third, *third], expected[done:])


def test_a_pass_that_was_left_early_is_over():
    one, two = batches(), batches()
    next(iter(one))
    two.set_epoch(1)
    assert same(list(one), list(two))
    next(iter(one))
    one.set_epoch(2)
    two.set_epoch(2)
    assert same(list(one), list(two))


def test_resuming_with_other_processes():
    alone = batches(batch_size=8)
    rest = iter(alone)
    next(rest)
    state = alone.state_dict()
    shares = [batches(batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    for share in shares:
        share.load_state_dict(state)
    expected, (left, right) = list(rest), (list(share) for share in shares)
    for (_, _, whole), (_, _, one), (_, _, two) in zip(expected, left, right, strict=True):
        assert torch.equal(whole, torch.cat([one, two]))


@pytest.mark.parametrize("changed", [{"batch_size": 3}, {"seed": 6}, {"n": 21}, {"drop_last": False}, {"world": 2}])
def test_a_position_in_another_order_is_refused(changed):
    with pytest.raises(ValueError, match="resume with the settings of the first run"):
        batches(**changed).load_state_dict(batches().state_dict())


def test_lightning_restores_the_position(tmp_path):
    class Task(L.LightningModule):
        def __init__(self, stop_at=None):
            super().__init__()
            self.layer, self.seen, self.stop_at = nn.Linear(1, 1), [], stop_at

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, batch[2].tolist()))
            return self.layer(batch[0].float().mean().view(1, 1)).sum()

        def on_train_batch_end(self, *_):
            if len(self.seen) == self.stop_at:
                self.trainer.save_checkpoint(tmp_path / "now.ckpt")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    def fit(task, resume=None):
        options = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
        trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=3, **options)
        trainer.fit(task, batches(), ckpt_path=resume)
        return task.seen

    whole = fit(Task(stop_at=7))
    assert len(whole) == 15
    assert fit(Task(), resume=tmp_path / "now.ckpt") == whole[7:]


def test_the_order_is_fair():
    """Every image is equally often at every place."""
    order = EpochOrder(6, batch_size=6)
    places = torch.stack([torch.cat(order.of_epoch(epoch)) for epoch in range(3000)])
    counts = torch.stack([(places == image).sum(0) for image in range(6)]).double()
    chi_squared = ((counts - 500).square() / 500).sum().item()
    # 25 degrees of freedom.
    assert chi_squared < 25 + 5 * 50**0.5


def test_what_compare_trains_on_has_not_changed():
    images = torch.randint(0, 256, (50, 3, 6, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    for arguments, expected in (
        ({"shift": 2, "flip": True}, "1cb257cf80f72006"),
        ({}, "54748bf9ee8bf05e"),
        ({"shift": 1}, "839e2141dc90e3c8"),
    ):
        old = GeneratorBatches(images, torch.arange(50), batch_size=8, seed=7, **arguments)
        digest = hashlib.sha256()
        for _ in range(2):
            for batch in old:
                for tensor in batch:
                    digest.update(tensor.numpy().tobytes())
        assert digest.hexdigest()[:16] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "world": 2}, "0 <= rank < world, got 22 images, batch_size 4, rank 2, world 2"),
        ({"world": 23}, "at least one image for each process"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"resized": 4}, "resized >= 1 without a shift, got shift=2, resized=4"),
        ({"shift": -1}, "shift >= 0"),
    ],
)
@pytest.mark.parametrize("kind", ["held", "loaded"])
def test_impossible_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(kind, **arguments)


def test_impossible_positions():
    with pytest.raises(ValueError, match="expected 0 to 5 batches of an epoch, got 6"):
        batches().skip(6)
    with pytest.raises(ValueError, match="expected an epoch >= 0, got -1"):
        batches().set_epoch(-1)
