"""AugMix: its draws, the mixture against one image at a time, and torchvision's."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import Tensor

from pillow_operations import as_picture, as_tensor, by_pillow
from shiftnorm.data.augmix import AugMixDraw, apply_augmix, augmix, draw_augmix, torchvision_augmix
from shiftnorm.data.augmix_operations import OPERATIONS
from shiftnorm.data.corruptions.draws import Stream

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def stream(n: int, *, seed: int = 0, number: int = 0, start: int = 0) -> Stream:
    return Stream(seed, "augmix", number, torch.arange(start, start + n))


def pictures(n: int = 12, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def normalised(image: Tensor) -> Tensor:
    return (image.double() / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def one_by_one(image: Tensor, draw: AugMixDraw, index: int) -> Tensor:
    """The authors' loop over chains, with Pillow between the operations."""
    mixed = torch.zeros(image.shape, dtype=torch.float64)
    for chain in range(draw.weights.shape[1]):
        picture = as_picture(image)
        for step in range(draw.operations.shape[2]):
            place = (index, chain, step)
            if draw.operations[place] >= 0:
                name = OPERATIONS[int(draw.operations[place])]
                picture = by_pillow(name, picture, draw.levels[place].item(), bool(draw.negative[place]))
        mixed += draw.weights[index, chain] * normalised(as_tensor(picture))
    return (1 - draw.share[index]) * normalised(image) + draw.share[index] * mixed


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"severity": 1, "width": 2, "depth": 4},
        {"severity": 10, "all_operations": True},
        {"width": 1, "depth": 1, "alpha": 0.2},
    ],
)
def test_against_one_image_at_a_time(arguments: dict[str, float]) -> None:
    images = pictures()
    draw = draw_augmix(stream(12), **arguments)
    ours = apply_augmix(images, draw, MEAN, STD)
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    for index, image in enumerate(images):
        # A level that interpolation cuts off differently moves on through equalize and the like; few pixels do.
        wrong = (ours[index] - one_by_one(image, draw, index)).abs()
        assert (wrong > 1e-5).double().mean() < 0.01 and wrong.max() < 0.2
    assert torch.equal(augmix(images, stream(12), mean=MEAN, std=STD, **arguments), ours)


def test_a_draw_belongs_to_its_image() -> None:
    images = pictures(20)
    whole = augmix(images, stream(20, number=4), mean=MEAN, std=STD)
    for start, end in ((0, 1), (3, 11), (19, 20)):
        part = augmix(images[start:end], stream(end - start, number=4, start=start), mean=MEAN, std=STD)
        assert torch.equal(part, whole[start:end])
    assert not torch.equal(whole, augmix(images, stream(20, number=5), mean=MEAN, std=STD))
    assert not torch.equal(whole, augmix(images, stream(20, number=4, seed=1), mean=MEAN, std=STD))


def test_one_stream_gives_two_views() -> None:
    both = stream(50)
    first, second = draw_augmix(both), draw_augmix(both)
    assert abs(torch.corrcoef(torch.stack([first.share, second.share]))[0, 1]) < 0.5
    assert not torch.equal(first.operations, second.operations)


def test_images_and_global_state_are_untouched() -> None:
    images, state = pictures(), torch.get_rng_state()
    before = images.clone()
    augmix(images, stream(12))
    torchvision_augmix(images, seed=1)
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())


def test_an_image_mixed_with_itself_is_itself() -> None:
    draw = draw_augmix(stream(12))
    still = draw._replace(operations=torch.full_like(draw.operations, -1))
    torch.testing.assert_close(apply_augmix(pictures(), still), pictures() / 255)


N = 20_000


def near(values: Tensor, mean: float, variance: float) -> None:
    """Within five standard errors."""
    assert abs(values.double().mean().item() - mean) < 5 * (variance / len(values)) ** 0.5
    assert abs(values.double().var().item() / variance - 1) < 0.1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_are_dirichlet_and_shares_beta(alpha: float) -> None:
    draw = draw_augmix(stream(N), alpha=alpha)
    torch.testing.assert_close(draw.weights.sum(1), torch.ones(N))
    for chain in range(3):
        near(draw.weights[:, chain], 1 / 3, 2 / 9 / (3 * alpha + 1))
    near(draw.share, 1 / 2, 1 / 4 / (2 * alpha + 1))
    expected = torch.distributions.Beta(alpha, 2 * alpha).sample((200_000,)).sort().values
    # The distance of Kolmogorov and Smirnov between one weight and its distribution.
    places = torch.searchsorted(expected, draw.weights[:, 0].sort().values) / 200_000
    assert (places - torch.arange(N) / N).abs().max() < 2 * (1 / N + 1 / 200_000) ** 0.5
    if alpha == 1:
        assert (draw.share.sort().values - torch.arange(N) / N).abs().max() < 2 / N**0.5


def test_tiny_alpha_stays_finite() -> None:
    draw = draw_augmix(stream(1000), alpha=1e-3)
    assert draw.weights.isfinite().all() and draw.weights.amax(1).mean() > 0.99


@pytest.mark.parametrize(("severity", "all_operations"), [(1, False), (3, False), (3, True)])
def test_operations_depths_and_levels(severity: int, all_operations: bool) -> None:
    draw = draw_augmix(stream(N), severity=severity, all_operations=all_operations)
    depths = (draw.operations >= 0).sum(2)
    for chain in range(3):
        near(depths[:, chain], 2, 2 / 3)
    # Chains end, they do not pause.
    assert bool(((draw.operations >= 0).int().diff(dim=2) <= 0).all())
    used = draw.operations[draw.operations >= 0]
    count = 13 if all_operations else 9
    counts = used.bincount().double()
    assert len(counts) == count
    chi_squared = ((counts - len(used) / count).square() / (len(used) / count)).sum().item()
    assert chi_squared < count - 1 + 5 * (2 * (count - 1)) ** 0.5
    assert draw.levels.min() >= 0.1 and draw.levels.max() < severity
    near(draw.levels.flatten(), (severity + 0.1) / 2, (severity - 0.1) ** 2 / 12)
    near(draw.negative.flatten(), 0.5, 0.25)
    near(depths[:, 0] * depths[:, 1], 4, (14 / 3) ** 2 - 16)


def test_fixed_depth() -> None:
    draw = draw_augmix(stream(100), width=2, depth=5)
    assert draw.operations.shape == (100, 2, 5) and draw.operations.min() == 0


@pytest.mark.parametrize(
    "arguments",
    [{"severity": 11}, {"severity": 0}, {"width": 0}, {"depth": 0}, {"alpha": 0.0}, {"alpha": float("nan")}],
)
def test_impossible_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"draw_augmix: expected 0\.1 <= severity <= 10"):
        draw_augmix(stream(2), **arguments)
    with pytest.raises(ValueError, match="torchvision_augmix: expected severity 1 to 10"):
        torchvision_augmix(pictures(), seed=0, **arguments)


def test_impossible_images() -> None:
    with pytest.raises(ValueError, match=r"uint8 images, got \(2, 3, 8, 8\) torch.float32"):
        augmix(torch.zeros(2, 3, 8, 8), stream(2))
    with pytest.raises(ValueError, match=r"torchvision_augmix: .* got \(2, 1, 8, 8\)"):
        torchvision_augmix(torch.zeros(2, 1, 8, 8).byte(), seed=0)
    with pytest.raises(ValueError, match="the draw is for 3 images, got 12"):
        augmix(pictures(), stream(3))


def test_torchvision_is_called_with_our_arguments() -> None:
    from torchvision.transforms import v2

    images = pictures()
    torch.manual_seed(5)
    expected = v2.AugMix(severity=2, mixture_width=4, chain_depth=2, alpha=0.7, all_ops=False)(images)
    ours = torchvision_augmix(images, seed=5, severity=2, width=4, depth=2, alpha=0.7, mean=MEAN, std=STD)
    torch.testing.assert_close(ours, torch.stack([normalised(image) for image in expected]).float())


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("torchvision"):
            raise ModuleNotFoundError("No module named 'torchvision'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"shiftnorm\[train\]\""):
        torchvision_augmix(pictures(), seed=0)
