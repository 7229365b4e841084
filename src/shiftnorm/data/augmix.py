"""AugMix: images mixed with chains of simple operations on themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.data.augmix_operations import OPERATIONS, operate
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["AugMixDraw", "apply_augmix", "augmix", "draw_augmix", "torchvision_augmix"]

# Operations that do not overlap with the common corruptions.
FIRST = 9
# Each attempt succeeds with a probability of at least 0.95.
ATTEMPTS = 12


class AugMixDraw(NamedTuple):
    """The random numbers of AugMix, for N images with ``width`` chains of at most ``steps`` operations.

    Example:
        >>> draw = draw_augmix(Stream(0, "augmix", 0, torch.arange(5)))
        >>> draw.operations.shape, draw.weights.shape, draw.share.shape
        (torch.Size([5, 3, 3]), torch.Size([5, 3]), torch.Size([5]))

    Args:
        operations: (N, width, steps) int64, places in ``augmix_operations.OPERATIONS``; -1 where a chain has ended.
        levels: (N, width, steps) float64.
        negative: (N, width, steps) bool.
        weights: (N, width) float32, of the chains; their sum is 1.
        share: (N,) float32, of all chains together in the result; the rest is the image itself.
    """

    operations: Tensor
    levels: Tensor
    negative: Tensor
    weights: Tensor
    share: Tensor


def _dirichlet(stream: Stream, alpha: float, count: int) -> Tensor:
    """(N, count) float64, from gamma variables by the method of Marsaglia and Tsang, in logarithms."""
    d = alpha + 2 / 3
    x = stream.normal(ATTEMPTS, count).double()
    u = 1 - stream.uniform(ATTEMPTS, count).double()
    v = (1 + x / (9 * d) ** 0.5).pow(3)
    logarithm = v.clamp(min=1e-12).log()
    accepted = (v > 0) & (u.log() < 0.5 * x.square() + d - d * v + d * logarithm)
    first = accepted.int().argmax(1, keepdim=True)
    # This is a variable of alpha + 1; a power of a uniform one makes it one of alpha. Logarithms do not underflow.
    boost = (1 - stream.uniform(count).double()).log() / alpha
    return (logarithm.gather(1, first)[:, 0] + boost).softmax(1)


def draw_augmix(
    stream: Stream,
    *,
    severity: float = 3,
    width: int = 3,
    depth: int = -1,
    alpha: float = 1.0,
    all_operations: bool = False,
) -> AugMixDraw:
    """Draw what AugMix draws, for each image of a stream.

    Example:
        >>> draw = draw_augmix(Stream(0, "augmix", 0, torch.arange(100)), severity=1, depth=2)
        >>> bool((draw.levels >= 0.1).all() and (draw.levels < 1).all()), draw.operations.unique().tolist()
        (True, [0, 1, 2, 3, 4, 5, 6, 7, 8])

    Args:
        stream: the source of the draws: an image's draw depends on the stream's seed, name, number (the epoch or the
            step) and the image's index alone, whatever batch it comes in. On a CPU, also for images on an
            accelerator: then nothing waits for it. Two calls with one stream give two views.
        severity: every operation's level is uniform from 0.1 to this; 3 for CIFAR and 1 for ImageNet in the paper.
        width: chains that are mixed.
        depth: operations in a chain; -1 draws 1 to 3 for each.
        alpha: of the Dirichlet and Beta weights.
        all_operations: also color, contrast, brightness and sharpness, which overlap with the common corruptions.

    Returns:
        The draw, on the stream's device.

    Raises:
        ValueError: for impossible arguments.
    """
    known = 0.1 <= severity <= 10
    _check_settings("draw_augmix", "0.1 <= severity <= 10", known, severity, width, depth, alpha)
    steps = 3 if depth == -1 else depth
    weights, share = _dirichlet(stream, alpha, width), _dirichlet(stream, alpha, 2)[:, 1]
    operations = stream.integers(0, len(OPERATIONS) if all_operations else FIRST, width, steps)
    if depth == -1:
        depths = stream.integers(1, 4, width, 1)
        operations = operations.where(torch.arange(steps, device=stream.device) < depths, -1)
    levels = stream.uniform(width, steps).double() * (severity - 0.1) + 0.1
    return AugMixDraw(operations, levels, stream.uniform(width, steps) > 0.5, weights.float(), share.float())


def _check_settings(
    who: str, severities: str, known: bool, severity: float, width: int, depth: int, alpha: float
) -> None:
    if not known or width < 1 or (depth < 1 and depth != -1) or not alpha > 0:
        raise ValueError(
            f"{who}: expected {severities}, width >= 1, depth >= 1 or -1 and alpha > 0, "
            f"got severity={severity}, width={width}, depth={depth}, alpha={alpha}."
        )


def _constants(values: Sequence[float] | Tensor | None, default: float, images: Tensor) -> Tensor:
    chosen = torch.full((3,), default) if values is None else torch.as_tensor(values, dtype=torch.float32).flatten()
    return chosen.to(images.device, non_blocking=True).view(-1, 1, 1)


def _normalise(x: Tensor, mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None) -> Tensor:
    """From levels, in place."""
    return x.div_(255).sub_(_constants(mean, 0.0, x)).div_(_constants(std, 1.0, x))


def _check(who: str, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"{who}: expected (N, 3, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}.")


def apply_augmix(
    images: Tensor,
    draw: AugMixDraw,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Mix images by a draw: the arithmetic of AugMix, without a random number.

        (1 - share) · normalised(image) + share · Σ weight · normalised(chain)

    Chains are whole levels from operation to operation, as Pillow's images are; the mixture is not rounded.

    Example:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32)).to(torch.uint8)
        >>> draw = draw_augmix(Stream(0, "augmix", 0, torch.arange(4)))
        >>> whole, tail = apply_augmix(images, draw), apply_augmix(images[2:], AugMixDraw(*(part[2:] for part in draw)))
        >>> whole.dtype, torch.equal(whole[2:], tail)
        (torch.float32, True)

    Args:
        images: (N, 3, H, W) uint8, on any device.
        draw: from `draw_augmix`, for N images.
        mean: per channel of images in [0, 1]; None for 0.
        std: likewise; None for 1.

    Returns:
        (N, 3, H, W) float32, normalised.

    Raises:
        ValueError: for other images, or a draw for another number of them.
    """
    _check("apply_augmix", images)
    n, width, steps = draw.operations.shape
    if n != len(images):
        raise ValueError(f"apply_augmix: the draw is for {n} images, got {len(images)}; draw for these.")
    chains = images.repeat_interleave(width, 0)
    operations, levels, negative = (part.reshape(n * width, steps) for part in draw[:3])
    operations = operations.cpu()
    for step in range(steps):
        chains = operate(chains, operations[:, step], levels[:, step], negative[:, step])
    share, weights = (part.to(images.device, non_blocking=True) for part in (draw.share, draw.weights))
    chains = chains.view(n, width, *images.shape[1:])
    # The weights' sum is 1, so that the mixture can be normalised once, at the end.
    mixed = images.float().mul_((1 - share)[:, None, None, None])
    for chain, weight in zip(chains.unbind(1), (weights * share[:, None]).unbind(1), strict=True):
        mixed.addcmul_(chain.float(), weight[:, None, None, None])
    return _normalise(mixed, mean, std)


def augmix(
    images: Tensor,
    stream: Stream,
    *,
    severity: float = 3,
    width: int = 3,
    depth: int = -1,
    alpha: float = 1.0,
    all_operations: bool = False,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """AugMix of a batch: `draw_augmix`, then `apply_augmix`.

    Example:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32)).to(torch.uint8)
        >>> stream = Stream(0, "augmix", 7, torch.arange(4))
        >>> first, second = (augmix(images, stream, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)) for _ in range(2))
        >>> first.shape, torch.equal(first, second)
        (torch.Size([4, 3, 32, 32]), False)

    Args:
        images: (N, 3, H, W) uint8, already cropped and mirrored, on any device.
        stream: of N images, best on a CPU; see `draw_augmix`.
        severity: see `draw_augmix`.
        width: see `draw_augmix`.
        depth: see `draw_augmix`.
        alpha: see `draw_augmix`.
        all_operations: see `draw_augmix`.
        mean: see `apply_augmix`.
        std: see `apply_augmix`.

    Returns:
        (N, 3, H, W) float32, normalised.

    Raises:
        ValueError: for other images or impossible arguments.

    Source: Hendrycks et al., AugMix, ICLR 2020, and the authors' augmentations.py.
    Differences: one stream per image instead of numpy's global generator; images need not be square, each translation
        goes by a third of its own side.
    """
    draw = draw_augmix(stream, severity=severity, width=width, depth=depth, alpha=alpha, all_operations=all_operations)
    return apply_augmix(images, draw, mean, std)


def torchvision_augmix(
    images: Tensor,
    *,
    seed: int,
    severity: int = 3,
    width: int = 3,
    depth: int = -1,
    alpha: float = 1.0,
    all_operations: bool = False,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """AugMix of a batch by ``torchvision.transforms.v2.AugMix``, for comparison with runs that used it.

    Example:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32)).to(torch.uint8)
        >>> first, second = (torchvision_augmix(images, seed=3) for _ in range(2))
        >>> first.shape, torch.equal(first, second)
        (torch.Size([4, 3, 32, 32]), True)

    Args:
        images: (N, 3, H, W) uint8, already cropped and mirrored.
        seed: of the draws; the global generators are left as they were.
        severity: 1 to 10.
        width: chains that are mixed.
        depth: operations in a chain; -1 draws 1 to 3.
        alpha: of the Dirichlet and Beta weights.
        all_operations: also the four that overlap with the common corruptions; torchvision's own default is True.
        mean: per channel of images in [0, 1]; None for 0.
        std: likewise; None for 1.

    Returns:
        (N, 3, H, W) float32, normalised.

    Raises:
        ModuleNotFoundError: without torchvision.
        ValueError: for other images or impossible arguments.

    Differences from `augmix` and the authors: all images of the batch share operations, strengths and depths, only the
        mixing weights are their own; strengths are one of ``severity`` steps of a ninth of the largest, from nothing
        on, instead of continuous: at severity 1 rotation, shear and translation do nothing, posterize keeps 4 bits and
        solarize inverts level 255 alone; at severity 3 strengths are 0, 11 or 22 % of the largest, the authors' 1 to
        30 %; geometry is about other centres (shears) and by fractions of pixels (translations); the mixture is cut
        off to whole levels before it is normalised; the draw depends on ``seed``, not on each image's index.
    """
    _check("torchvision_augmix", images)
    known = severity in range(1, 11)
    _check_settings("torchvision_augmix", "severity 1 to 10", known, severity, width, depth, alpha)
    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('torchvision_augmix needs torchvision; pip install "shiftnorm[train]"') from error
    transform = v2.AugMix(severity, width, depth, alpha, all_operations)
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        mixed = transform(images)
    return _normalise(mixed.float(), mean, std)
