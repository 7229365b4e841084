"""The training loss of a classifier, with everything a recipe can ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.norms import CrossNorm, CrossNormController
from shiftnorm.tasks.consistency import jensen_shannon
from shiftnorm.tasks.normalize import Normalize
from shiftnorm.tasks.seeds import coin, rank, seed_of
from shiftnorm.tasks.statistics import PassStatistics
from shiftnorm.tasks.views import mixed_view, mixer

if TYPE_CHECKING:
    from shiftnorm.train_recipe import AugMixRecipe, CrossNormRecipe, LossRecipe, TrainRecipe

__all__ = ["Objective"]

# What a seed is for: numbers that keep the draws of one step apart.
_PASS, _COIN, _VIEW = 1, 2, 3


@final
class Objective:
    """The training loss of a batch of uint8 images, as the authors' training loops have it.

    With CE the cross-entropy, JSD :func:`jensen_shannon`, x the images, am(x) an AugMix view of them, cn a forward pass
    with CrossNorm and w the weights of the recipe:

    ===================================  ===================================================================
    recipe                               loss
    ===================================  ===================================================================
    nothing                              CE(x)
    crossnorm                            CE(cn(x)) with probability p, else CE(x)
    crossnorm with consistency           CE(x); with probability p also w JSD(x, cn(x), cn(x))
    augmix                               CE(am(x)), with crossnorm as above
    augmix with consistency              CE(x) + w JSD(x, am(x), am(x)), in one pass over all three
    ... and crossnorm                    the same, with CrossNorm acting on the three with probability p
    ... and crossnorm with consistency   the same, and with probability p also w JSD(x, cn(x), cn(x))
    ===================================  ===================================================================

    ``crossnorm.images`` has CrossNorm act on the normalised images instead of in the network, whose CrossNorm layers
    then rest. Label smoothing, mixup and cutmix are those of torchvision; mixed images are what x means above.

    Which CrossNorm layers act is a tensor on the device (:class:`~shiftnorm.norms.CrossNormController`). Whether the
    two extra passes of a consistency run at all is decided on the host: running them always, with weight 0 when they
    are not wanted, would triple the cost of a step for nothing. The coin is a function of (seed, step), so nothing
    waits for a device, all ranks agree, and the network, the only thing that is compiled, knows nothing of it.

    All draws are a function of (seed, rank, step): a call seeds torch's default generators. So a resumed run needs no
    states of generators, only the step.

    Example:
        >>> from shiftnorm.norms import CNSN
        >>> from shiftnorm.train_recipe import TrainRecipe, CrossNormRecipe
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), CNSN(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        >>> recipe = TrainRecipe("toy", crossnorm=CrossNormRecipe(p=1.0, consistency=10.0))
        >>> objective = Objective.of(recipe, model, Normalize())
        >>> images, labels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 5
        >>> loss, parts = objective(images, labels, step=0)
        >>> loss.shape, list(parts)
        (torch.Size([]), ['cross_entropy', 'crossnorm_divergence'])

    Args:
        model: the network, after its last edit; its CrossNorm layers rest until a call wakes them, and
            in evaluation.
        normalize: how the network takes images.
        crossnorm: gating and consistency of CrossNorm; a network without CrossNorm has nothing to gate.
        augmix: AugMix and its consistency.
        loss: label smoothing, mixup, cutmix.
        seed: of every draw.
        classes: how many; needed for mixup and cutmix only.

    Raises: ValueError for a consistency of CrossNorm in a network without it, more active layers than there are, mixup
        or cutmix together with AugMix's consistency, whose views would not match, or without ``classes``.
    Source: the training loops of CrossNorm/SelfNorm (ICCV 2021) and AugMix (ICLR 2020).
    Differences: the authors choose the loop by parts of an experiment's name; a consistency on images works without
        crops too; AugMix views are drawn on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: Normalize,
        *,
        crossnorm: CrossNormRecipe,
        augmix: AugMixRecipe,
        loss: LossRecipe,
        seed: int = 0,
        classes: int | None = None,
    ) -> None:
        self.model, self.normalize, self.seed = model, normalize, seed
        self.crossnorm, self.augmix, self.loss = crossnorm, augmix, loss
        self.mixer = mixer(loss, classes)
        self.views = 3 if augmix.enabled and augmix.consistency > 0 else 1
        if self.views > 1 and self.mixer is not None:
            raise ValueError(
                "Objective: expected mixup and cutmix to be 0 with augmix.consistency, which compares views of the "
                f"same images, got {loss.mixup} and {loss.cutmix}."
            )
        layers = [module for module in model.modules() if isinstance(module, CrossNorm)]
        for layer in layers:
            layer.active.fill_(False)
        self.consistent = crossnorm.consistency > 0 and crossnorm.p > 0
        # The coin of a consistency is thrown before its passes; in them CrossNorm acts for certain.
        p = 1.0 if self.consistent else crossnorm.p
        self.controller: CrossNormController | None = None
        self.image_norm: CrossNorm | None = None
        if crossnorm.images and p > 0:
            self.image_norm = CrossNorm(crop=crossnorm.crop, p=p)
        elif p > 0 and layers:
            self.controller = CrossNormController(model, crossnorm.active_num, p, seed=seed)
        elif self.consistent:
            raise ValueError(
                "Objective: crossnorm.consistency needs CrossNorm layers, and the model has none. Give it some by "
                "model.placements (for instance cnsn@post), or set crossnorm.images."
            )
        self.statistics = PassStatistics(model, crossnorm.statistics if self.consistent else "shared")

    @classmethod
    def of(
        cls, recipe: TrainRecipe, model: nn.Module, normalize: Normalize, *, classes: int | None = None
    ) -> Objective:
        """The objective a training recipe asks for.

        Example:
            >>> from shiftnorm.train_recipe import TrainRecipe
            >>> Objective.of(TrainRecipe("toy"), nn.Flatten(), Normalize()).views
            1

        Args:
            recipe: its ``crossnorm``, ``augmix``, ``loss`` and ``loop.seed`` are looked at.
            model: the network.
            normalize: how the network takes images.
            classes: how many.
        """
        return cls(
            model,
            normalize,
            crossnorm=recipe.crossnorm,
            augmix=recipe.augmix,
            loss=recipe.loss,
            seed=recipe.loop.seed,
            classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts before their weights.

        Args:
            images: (N, 3, H, W) uint8.
            labels: (N,) int64.
            step: forward calls done before, over the whole training; the draws follow from it.

        Returns:
            0-d loss; detached 0-d ``cross_entropy``, ``augmix_divergence`` and ``crossnorm_divergence``, as far as
            they were computed in this step.
        """
        torch.manual_seed(seed_of(_PASS, self.seed, rank(), step))
        x, batch, targets = self._inputs(images, labels, step)
        if self.consistent and self.controller is not None:
            self.controller.clear()
        logits = self.model(batch) if self.consistent else self._restyled(batch, 2 * step)
        clean, *mixed = logits.chunk(self.views)
        loss = F.cross_entropy(clean, targets, label_smoothing=self.loss.label_smoothing)
        parts = {"cross_entropy": loss.detach()}
        if mixed:
            divergence = jensen_shannon(clean, *mixed)
            loss = loss + self.augmix.consistency * divergence
            parts["augmix_divergence"] = divergence.detach()
        if self.consistent and coin(self.crossnorm.p, _COIN, self.seed, step):
            with self.statistics.extra_pass():
                first = self._restyled(x, 2 * step)
            with self.statistics.extra_pass():
                second = self._restyled(x, 2 * step + 1)
            divergence = jensen_shannon(clean, first, second)
            loss = loss + self.crossnorm.consistency * divergence
            parts["crossnorm_divergence"] = divergence.detach()
        return loss, parts

    def _inputs(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What x is, what goes through the network first, and the labels of x."""

        def view(number: int) -> Tensor:
            return mixed_view(images, self.augmix, self.normalize, _VIEW, self.seed, rank(), step, number)

        x = view(0) if self.augmix.enabled and self.views == 1 else self.normalize(images)
        if self.views > 1:
            return x, torch.cat([x, *(view(number) for number in range(1, self.views))]), labels
        if self.mixer is not None:
            x, labels = self.mixer(x, labels)
        return x, x, labels

    def _restyled(self, x: Tensor, number: int) -> Tensor:
        """A forward pass in which CrossNorm acts if it is to."""
        if self.image_norm is not None:
            return self.model(self.image_norm.to(x.device)(x))
        if self.controller is not None:
            self.controller.steps = number
            self.controller.step()
        return self.model(x)
