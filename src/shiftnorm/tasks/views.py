"""What a training step makes of a batch before the network sees it: AugMix views, mixup and cutmix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shiftnorm.data.augmix import augmix, torchvision_augmix
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.tasks.normalize import Normalize
from shiftnorm.tasks.seeds import seed_of

if TYPE_CHECKING:
    from shiftnorm.train_recipe import AugMixRecipe, LossRecipe

__all__ = ["Mixer", "mixed_view", "mixer"]

Mixer = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]


def mixed_view(images: Tensor, recipe: AugMixRecipe, normalize: Normalize, *seeds: int) -> Tensor:
    """An AugMix view of every image, normalised.

    Example:
        >>> from shiftnorm.train_recipe import AugMixRecipe
        >>> images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
        >>> mixed_view(images, AugMixRecipe(enabled=True), Normalize(), 0).shape
        torch.Size([2, 3, 32, 32])

    Args:
        images: (N, 3, H, W) uint8.
        recipe: how strongly, and by whose implementation.
        normalize: how the network takes images.
        *seeds: numbers that say which draw this is.
    """
    arguments: dict[str, Any] = {
        "severity": recipe.severity,
        "width": recipe.width,
        "depth": recipe.depth,
        "alpha": recipe.alpha,
        "all_operations": recipe.all_operations,
        "mean": normalize.means,
        "std": normalize.stds,
    }
    if recipe.implementation == "torchvision":
        mixed = torchvision_augmix(images, seed=seed_of(*seeds), **arguments)
    else:
        stream = Stream(seed_of(*seeds), "augmix", recipe.severity, torch.arange(len(images)))
        mixed = augmix(images, stream, **arguments)
    return mixed.to(normalize.mean.dtype, memory_format=normalize.memory_format)


def mixer(recipe: LossRecipe, classes: int | None) -> Mixer | None:
    """Mixup and cutmix of torchvision for a batch of images and labels; None without either.

    Example:
        >>> from shiftnorm.train_recipe import LossRecipe
        >>> mix = mixer(LossRecipe(mixup=0.2), classes=5)
        >>> images, labels = mix(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
        >>> labels.shape, labels.sum(1)
        (torch.Size([4, 5]), tensor([1., 1., 1., 1.]))

    Args:
        recipe: strengths; with both, every batch draws one of them.
        classes: how many; labels become shares of them.

    Returns:
        A function of float images and int64 labels, which draws on the host and mixes on their device.

    Raises:
        ValueError: if either is on and ``classes`` is None.
        ModuleNotFoundError: without torchvision.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    if classes is None:
        raise ValueError("mixup and cutmix: expected the number of classes, got None. Give classes=...")
    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('mixup and cutmix need torchvision: pip install "shiftnorm[train]".') from error
    ways: list[Any] = []
    if recipe.mixup:
        ways.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        ways.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    return ways[0] if len(ways) == 1 else v2.RandomChoice(ways)
