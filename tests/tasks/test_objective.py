"""Every training loss against the table of the authors' loops, from what the network was given and answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.ops import moments
from shiftnorm.tasks import Normalize, Objective
from shiftnorm.tasks.consistency import jensen_shannon
from toy_training import CLASSES, Watched, batch, network, recipe

AUGMIX = {"enabled": True}


def divergence(*logits: Tensor) -> Tensor:
    return jensen_shannon(*(each.detach() for each in logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain(smoothing: float) -> None:
    images, labels = batch()
    watched = Watched(network(), loss={"label_smoothing": smoothing})
    loss, parts = watched(images, labels)
    assert watched.active == [[False, False]] and list(parts) == ["cross_entropy"]
    torch.testing.assert_close(watched.inputs[0], (images / 255 - 0.5) / 0.25)
    logits = network(crossnorm=False)((images / 255 - 0.5) / 0.25)
    if not smoothing:
        torch.testing.assert_close(loss, -logits.log_softmax(1)[range(8), labels].mean())
    else:
        targets = (1 - smoothing) * F.one_hot(labels, CLASSES) + smoothing / CLASSES
        torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())


def test_gating_acts_with_its_probability_on_so_many_layers() -> None:
    images, labels = batch(2)
    for active_num in (1, 2):
        watched = Watched(network(), crossnorm={"p": 0.3, "active_num": active_num})
        counts: list[int] = []
        chosen: set[tuple[bool, ...]] = set()
        for step in range(150):
            watched(images, labels, step)
            assert len(watched.outputs) == 1
            counts.append(sum(watched.active[0]))
            chosen.add(tuple(watched.active[0]))
        assert set(counts) == {0, active_num}
        assert 0.2 < sum(map(bool, counts)) / 150 < 0.4
        assert len(chosen) == (3 if active_num == 1 else 2)  # nothing, and each layer alone or both


def test_the_loss_of_a_gated_pass_is_that_of_restyled_features() -> None:
    images, labels = batch()
    watched = Watched(network(), crossnorm={"p": 1.0, "active_num": 2})
    loss, _ = watched(images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(watched.outputs[0], labels))
    plain, _ = Watched(network())(images, labels)
    assert (loss - plain).abs() > 1e-4


@pytest.mark.parametrize("crop", ["neither", "both"])
def test_consistency_is_a_clean_pass_and_two_restyled_ones(crop: str) -> None:
    images, labels = batch()
    watched = Watched(network(crop), crossnorm={"p": 0.5, "consistency": 10.0})
    passes: list[int] = []
    for step in range(40):
        loss, parts = watched(images, labels, step)
        passes.append(len(watched.outputs))
        assert watched.active[0] == [False, False]
        clean, *restyled = watched.outputs
        wanted = F.cross_entropy(clean, labels)
        torch.testing.assert_close(parts["cross_entropy"], wanted.detach())
        if restyled:
            assert [sum(active) for active in watched.active[1:]] == [1, 1]
            assert all(torch.equal(x, watched.inputs[0]) for x in watched.inputs)
            wanted = wanted + 10 * jensen_shannon(clean, *restyled)
            torch.testing.assert_close(parts["crossnorm_divergence"], divergence(clean, *restyled))
        torch.testing.assert_close(loss, wanted)
        loss.backward()
    assert set(passes) == {1, 3} and 10 < passes.count(3) < 30


def test_the_two_restyled_passes_draw_their_layers_apart() -> None:
    images, labels = batch()
    watched = Watched(network(), crossnorm={"p": 1.0, "consistency": 1.0})
    pairs: set[tuple[int, int]] = set()
    for step in range(30):
        watched(images, labels, step)
        pairs.add((watched.active[1].index(True), watched.active[2].index(True)))
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("implementation", ["shiftnorm", "torchvision"])
def test_augmix_is_one_pass_over_three_views(implementation: str) -> None:
    images, labels = batch(size=32)
    watched = Watched(network(), augmix={**AUGMIX, "implementation": implementation})
    loss, parts = watched(images, labels)
    assert len(watched.outputs) == 1 and watched.active == [[False, False]]
    clean, first, second = watched.inputs[0].chunk(3)
    assert torch.equal(clean, watched.normalize(images))
    assert not torch.equal(first, clean) and not torch.equal(first, second)
    one, two, three = watched.outputs[0].chunk(3)
    torch.testing.assert_close(loss, F.cross_entropy(one, labels) + 12 * jensen_shannon(one, two, three))
    torch.testing.assert_close(parts["augmix_divergence"], divergence(one, two, three))


def test_augmix_without_consistency_trains_on_one_mixed_view() -> None:
    images, labels = batch(size=32)
    watched = Watched(network(), augmix={**AUGMIX, "consistency": 0.0}, crossnorm={"p": 1.0, "consistency": 2.0})
    loss, parts = watched(images, labels)
    assert [len(x) for x in watched.inputs] == [8, 8, 8]
    assert not torch.equal(watched.inputs[0], watched.normalize(images))
    assert torch.equal(watched.inputs[0], watched.inputs[1])
    assert list(parts) == ["cross_entropy", "crossnorm_divergence"]
    torch.testing.assert_close(loss, F.cross_entropy(watched.outputs[0], labels) + 2 * divergence(*watched.outputs))


def test_augmix_and_crossnorm_consistency_together() -> None:
    images, labels = batch(size=32)
    watched = Watched(network("both"), augmix=AUGMIX, crossnorm={"p": 0.5, "consistency": 10.0, "active_num": 2})
    seen: set[int] = set()
    for step in range(12):
        loss, parts = watched(images, labels, step)
        seen.add(len(watched.outputs))
        one, two, three = watched.outputs[0].chunk(3)
        wanted = F.cross_entropy(one, labels) + 12 * jensen_shannon(one, two, three)
        if len(watched.outputs) == 3:
            assert watched.active == [[False, False], [True, True], [True, True]]
            for x in watched.inputs[1:]:
                assert torch.equal(x, watched.normalize(images))
            wanted = wanted + 10 * jensen_shannon(one, *watched.outputs[1:])
            assert list(parts) == ["cross_entropy", "augmix_divergence", "crossnorm_divergence"]
        torch.testing.assert_close(loss, wanted)
        loss.backward()
    assert seen == {1, 3}


def plane_means(x: Tensor) -> Tensor:
    return moments(x).mean.sort(0).values


def test_crossnorm_on_images_exchanges_the_styles_of_the_batch() -> None:
    images, labels = batch()
    watched = Watched(network(), crossnorm={"p": 0.5, "images": True})
    clean = watched.normalize(images)
    acted = 0
    for step in range(60):
        watched(images, labels, step)
        assert watched.active == [[False, False]]  # the network's own layers rest
        (x,) = watched.inputs
        acted += not torch.allclose(x, clean, atol=1e-5)
        torch.testing.assert_close(plane_means(x), plane_means(clean))
    assert 18 < acted < 42


def test_crossnorm_on_images_mixes_augmix_views_with_clean_ones() -> None:
    images, labels = batch(size=32)
    watched = Watched(network(crossnorm=False), crossnorm={"p": 1.0, "images": True}, augmix=AUGMIX)
    plain = Watched(network(crossnorm=False), augmix=AUGMIX)
    for each in (watched, plain):
        loss, _ = each(images, labels)
        one, two, three = each.outputs[0].chunk(3)
        torch.testing.assert_close(loss, F.cross_entropy(one, labels) + 12 * jensen_shannon(one, two, three))
    restyled, clean = watched.inputs[0], plain.inputs[0]
    torch.testing.assert_close(plane_means(restyled), plane_means(clean))
    own = moments(clean).mean
    partner = (moments(restyled).mean[:, None] - own).abs().sum(2).argmin(1)
    assert {(int(a) < 8, int(b) < 8) for a, b in enumerate(partner)} == {
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    }


def test_consistency_on_images() -> None:
    images, labels = batch()
    watched = Watched(network(), crossnorm={"p": 1.0, "images": True, "crop": "both", "consistency": 10.0})
    loss, _ = watched(images, labels)
    clean, first, second = watched.inputs
    assert torch.equal(clean, watched.normalize(images))
    assert not torch.equal(first, clean) and not torch.equal(first, second)
    wanted = F.cross_entropy(watched.outputs[0], labels) + 10 * divergence(*watched.outputs)
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("loss", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_images_have_mixed_labels(loss: dict[str, Any]) -> None:
    images = torch.arange(8, dtype=torch.uint8).mul(30).view(8, 1, 1, 1).expand(8, 3, 12, 12).contiguous()
    labels = torch.arange(8) % CLASSES
    watched = Watched(network(), loss=loss)
    kinds: set[bool] = set()
    for step in range(12):
        found, _ = watched(images, labels, step)
        x = watched.inputs[0] * 0.25 + 0.5
        level = (torch.arange(8) * 30 / 255).view(8, 1, 1, 1)
        other = level.roll(1, 0)
        own = ((x - other) / (level - other)).mean((1, 2, 3))  # share of the own image
        kinds.add(bool(x[1].std() > 1e-4))  # patches, where mixup gives one level
        share = own[:1].clamp(0, 1)
        torch.testing.assert_close(own, share.expand(8), rtol=0, atol=1e-4)
        one_hot = F.one_hot(labels, CLASSES).float()
        targets = share * one_hot + (1 - share) * one_hot.roll(1, 0)
        torch.testing.assert_close(found, F.cross_entropy(watched.outputs[0], targets), rtol=1e-3, atol=1e-3)
    assert kinds == {name == "cutmix" for name in loss} or kinds == {True, False}


EVERYTHING = {"crossnorm": {"p": 0.5, "consistency": 10.0}, "augmix": AUGMIX}


def test_draws_follow_from_seed_and_step_alone() -> None:
    images, labels = batch(size=32)
    losses = [Watched(network("both"), **EVERYTHING)(images, labels, step)[0].item() for step in range(6)]
    resumed = Watched(network("both"), **EVERYTHING)
    torch.manual_seed(99)
    torch.rand(17)
    resumed.model.load_state_dict(network("both").state_dict())
    assert resumed(images, labels, 4)[0].item() == losses[4]
    assert len(set(losses)) == 6


def test_evaluation_is_not_restyled() -> None:
    images, labels = batch()
    watched = Watched(network(), crossnorm={"p": 1.0, "active_num": 2})
    watched(images, labels)
    x = watched.normalize(images)
    torch.testing.assert_close(watched.model.eval()(x), watched.model(x))
    quiet = network().eval()
    quiet.load_state_dict(watched.model.state_dict())
    assert torch.equal(watched.model(x), quiet(x))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"crossnorm": {"p": 0.5, "consistency": 10.0}}, "consistency needs CrossNorm layers, and the model has none"),
        ({"augmix": AUGMIX, "loss": {"mixup": 0.2}}, "expected mixup and cutmix to be 0 with augmix.consistency"),
        ({"loss": {"cutmix": 0.2}}, "expected the number of classes, got None"),
    ],
)
def test_refusals(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective.of(recipe(**parts), nn.Flatten(), Normalize(), classes=None if "cutmix" in str(parts) else 3)


def test_a_recipe_with_crossnorm_serves_a_network_without() -> None:
    images, labels = batch()
    watched = Watched(network(crossnorm=False), crossnorm={"p": 0.5})
    assert watched.objective.controller is None
    watched(images, labels)
    with pytest.raises(ValueError, match="active_num from 1 to the model's 2 CrossNorm layers, got 3"):
        Watched(network(), crossnorm={"p": 0.5, "active_num": 3})
