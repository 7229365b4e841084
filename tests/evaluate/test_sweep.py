from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.data import ImageSet, corrupt
from shiftnorm.evaluate.sweep import predict, sweep


class Brightness(nn.Module):
    """Says 1 where the image is brighter than a threshold."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(100.0))
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        level = self.dropout(images.float().mean((1, 2, 3)) - self.threshold)
        return torch.stack([-level, level], 1)


def make_set(n=20):
    labels = torch.arange(n) % 2
    images = (60 + 80 * labels).view(-1, 1, 1, 1).expand(n, 3, 32, 32).to(torch.uint8).contiguous()
    return ImageSet(images, labels, ("dark", "bright"), "toy")


def test_predict_uses_eval_mode_and_restores_the_mode():
    model = Brightness().train()
    scores = predict(model, make_set().images, batch_size=7)
    assert (scores.argmax(1) == make_set().labels).all()
    assert model.training


def test_sweep_by_hand():
    test = make_set()
    result = sweep(Brightness(), test, ["brightness", "pixelate"], [1, 5], batch_size=7)
    assert result.clean_error == 0.0
    # pixelating a flat image changes nothing; brightening makes every dark image bright in the end
    assert result.corruption_errors["pixelate"] == [0.0, 0.0]
    brightened = corrupt(test.images, "brightness", 5, seed=0).float().mean((1, 2, 3))
    expected = 100.0 * float(((brightened > 100).long() != test.labels).double().mean())
    assert expected > 0
    assert result.corruption_errors["brightness"][1] == expected


def test_batches_do_not_change_the_corruption():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    test = ImageSet(images, torch.arange(12) % 2, ("a", "b"), "toy")
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.float().mean((2, 3))

    sweep(Spy(), test, ["gaussian_noise"], [3], seed=5, batch_size=5)
    assert torch.equal(torch.cat(seen[3:]), corrupt(images, "gaussian_noise", 3, seed=5))


def test_a_diverged_network_has_no_error():
    model = Brightness()
    model.threshold.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        sweep(model, make_set(), ["contrast"], [1])
