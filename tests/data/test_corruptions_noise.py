"""Noise: formulas, and the distributions of what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shiftnorm.data.corruptions import CORRUPTIONS, Stream
from shiftnorm.data.corruptions.noise import Impulses, Photons, photons

LIMIT = 5.0


def images(value: float, n: int = 16, size: int = 64) -> Tensor:
    return torch.full((n, 3, size, size), value)


def drawn(name: str, x: Tensor, constant: float) -> tuple[object, Tensor]:
    corruption = CORRUPTIONS[name]
    params = corruption.sample(Stream(0, name, 1, torch.arange(len(x))), x.shape, constant)
    return params, corruption.apply(x, constant, params)


def test_gaussian_and_speckle_are_what_they_say() -> None:
    x = images(0.4)
    for name, sigma, deviation in (("gaussian_noise", 0.1, 0.1), ("speckle_noise", 0.2, 0.08)):
        draw, out = drawn(name, x, sigma)
        assert isinstance(draw, Tensor) and draw.shape == x.shape
        assert torch.allclose(out, (x + deviation * draw).clamp(0, 1), atol=1e-6)
        assert float(out.std()) == pytest.approx(deviation, rel=0.02)
        # Every channel has its own numbers.
        channels = draw.movedim(1, 0).flatten(1)
        assert torch.corrcoef(channels).fill_diagonal_(0).abs().max() < LIMIT / channels.shape[1] ** 0.5
    for value in (0.0, 1.0):
        _, out = drawn("gaussian_noise", images(value), 0.5)
        assert float(out.min()) == 0 and float(out.max()) <= 1


@pytest.mark.parametrize("amount", [0.01, 0.27])
def test_impulses_fall_on_single_values_half_of_them_white(amount: float) -> None:
    draw, out = drawn("impulse_noise", images(0.5), amount)
    assert isinstance(draw, Impulses)
    n = out.numel()
    for value in (0.0, 1.0):
        count = int((out == value).sum())
        assert abs(count - n * amount / 2) < LIMIT * math.sqrt(n * amount / 2)
    assert torch.equal(out == 0.5, ~draw.replaced)
    # One channel at a time, not the pixel.
    both = (draw.replaced[:, 0] & draw.replaced[:, 1]).double().mean()
    assert float(both) == pytest.approx(amount**2, abs=LIMIT * amount / (n / 3) ** 0.5)


@pytest.mark.parametrize("scale", [500.0, 60.0, 3.0])
@pytest.mark.parametrize("level", [1, 77, 255])
def test_photons_are_poisson(scale: float, level: int) -> None:
    n = 2**18
    words = Stream(0, "shot_noise", 1, torch.arange(1)).words(n)
    counts = photons(torch.full((1, n), level, dtype=torch.int32), scale, words).double()
    mean = scale * level / 255
    assert abs(float(counts.mean()) - mean) < LIMIT * math.sqrt(mean / n)
    fourth = mean + 3 * mean**2
    assert abs(float(counts.var()) - mean) < LIMIT * math.sqrt((fourth - mean**2) / n)
    expected = torch.tensor([n * math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(800)])
    usual = expected > 10
    observed = torch.bincount(counts.long().flatten(), minlength=800)[:800]
    chi = ((observed - expected) ** 2 / expected)[usual].sum()
    assert abs(float(chi) - int(usual.sum())) < LIMIT * math.sqrt(2 * int(usual.sum()))
    assert int(observed[~usual].sum()) < float(expected[~usual].sum()) * 2 + 20


def test_photons_table_holds_the_exact_chances() -> None:
    # Words that count up visit every column evenly, so the counts are the chances themselves.
    words = (torch.arange(2**20) * 2**11).to(torch.int32)[None]
    for scale, level in ((15.0, 200), (500.0, 255), (50.0, 3)):
        counts = photons(torch.full_like(words, level), scale, words)
        mean = scale * level / 255
        chance = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(700)]
        observed = torch.bincount(counts.flatten(), minlength=700)[:700] / 2**20
        assert (observed - torch.tensor(chance)).abs().max() < 2e-3 / math.sqrt(scale)


def test_shot_noise_of_black_and_white_and_of_given_counts() -> None:
    _, out = drawn("shot_noise", images(0.0), 5)
    assert float(out.max()) == 0
    _, out = drawn("shot_noise", images(1.0), 5)
    assert float(out.max()) == 1 and 0.5 < float(out.mean()) < 1
    given = Photons(torch.tensor([0, 3, 9]).view(1, 3, 1, 1))
    out = CORRUPTIONS["shot_noise"].apply(torch.zeros(1, 3, 1, 1), 5, given)
    assert out.flatten().tolist() == pytest.approx([0, 0.6, 1])
