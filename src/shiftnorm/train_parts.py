"""The parts of a training run: frozen dataclasses that check their values when they are made."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, final

from shiftnorm.near_names import suggest
from shiftnorm.recipe_tree import check_ranges, check_types, refuse

__all__ = [
    "AugMixRecipe",
    "CrossNormRecipe",
    "DataRecipe",
    "EvaluateRecipe",
    "LoopRecipe",
    "LossRecipe",
    "ModelRecipe",
    "PlacementRecipe",
]


@final
@dataclass(frozen=True)
class DataRecipe:
    """The images, and what is done to every training image before any method of the paper.

    Example:
        >>> DataRecipe(name="cifar10", flip=True, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]).std
        (0.5, 0.5, 0.5)

    Args:
        name: "digits", "folder", or a name of ``shiftnorm.data.open_dataset``.
        root: where the data lie; None to be given on the command line, or not needed (digits).
        size: side of the square images in pixels.
        limit: at most so many training images per class, the first ones; None for all.
        validation: share of the training images that is held out and used for nothing but choosing.
        crop: "pad" shifts by up to ``pad`` pixels over black; "resized" cuts a random part and scales it to ``size``.
        pad: largest shift.
        flip: mirror half of the images.
        mean: per channel of images in [0, 1]; None to take it from the training images.
        std: likewise.
        on_error: what becomes of files that cannot be read as images: "raise", or "skip", named and in the record.
    """

    name: str = "digits"
    root: str | None = None
    size: int = 32
    limit: int | None = None
    validation: float = 0.0
    crop: Literal["pad", "resized"] = "pad"
    pad: int = 4
    flip: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, size="[8, inf)", limit="[1, inf)", validation="[0, 1)", pad="[0, inf)")
        from shiftnorm.data.catalogue import DATASETS

        _check_name(self, "name", self.name, ("digits", "folder", *DATASETS))
        if (self.mean is None) != (self.std is None):
            refuse(self, "std", "numbers where mean has some, and none where it has none")
        if self.mean is not None and self.std is not None and not 0 < len(self.mean) == len(self.std):
            refuse(self, "std", f"as many numbers as mean has ({len(self.mean)})")
        if any(value <= 0 for value in self.std or ()):
            refuse(self, "std", "numbers above 0")


@final
@dataclass(frozen=True)
class PlacementRecipe:
    """One edit of the network, as ``shiftnorm.surgery.convert`` takes it.

    Example:
        >>> PlacementRecipe("cnsn@post", arguments={"crop": "both"}).preserve
        False

    Args:
        name: a placement such as "cnsn@post" or "ibn_a", or a norm's name.
        where: selectors such as "stages:1-2", of which any may hold; empty for the placement's own choice.
        arguments: keyword arguments of the norm.
        preserve: start norms such that a trained network keeps its function, not as published.
    """

    name: str
    where: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    preserve: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not self.name.strip():
            refuse(self, "name", "a placement or a norm")


@final
@dataclass(frozen=True)
class ModelRecipe:
    """The network.

    Example:
        >>> ModelRecipe(placements=[{"name": "selfnorm@pre"}]).placements[0].name
        'selfnorm@pre'

    Args:
        name: as ``shiftnorm.surgery.build_model`` takes it: "shiftnorm/wide_resnet40_2",
            "torchvision/resnet50", "timm/...".
        arguments: keyword arguments of its constructor; the number of classes comes from the data.
        placements: edits, in this order.
        weights: a file for ``load_weights``; None to start from scratch.
    """

    name: str = "shiftnorm/wide_resnet40_2"
    arguments: dict[str, Any] = field(default_factory=dict)
    placements: tuple[PlacementRecipe, ...] = ()
    weights: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        library, slash, name = self.name.partition("/")
        if not slash and ":" not in self.name:
            refuse(self, "name", "a library and a name such as 'shiftnorm/wide_resnet40_2'")
        if library == "shiftnorm":
            from shiftnorm.models import list_models

            _check_name(self, "name", name, list_models())


@final
@dataclass(frozen=True)
class CrossNormRecipe:
    """When the CrossNorm layers of the network act, and CrossNorm on the images themselves.

    Example:
        >>> CrossNormRecipe(p=0.25, active_num=2).images
        False

    Args:
        p: probability that a step is augmented; 0 for never.
        active_num: layers that act in an augmented step.
        consistency: weight of the Jensen-Shannon divergence between a clean and two augmented passes; 0 for one pass.
        statistics: what the extra passes do to running statistics: "shared" lets them count, as the authors do,
            "frozen" leaves the statistics as the clean pass made them, "separate" keeps a second set for them.
        images: CrossNorm acts on the normalised images instead of in the network.
        crop: of CrossNorm on images.
    """

    p: float = 0.5
    active_num: int = 1
    consistency: float = 0.0
    statistics: Literal["shared", "frozen", "separate"] = "shared"
    images: bool = False
    crop: Literal["neither", "style", "content", "both"] = "neither"

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, p="[0, 1]", active_num="[1, inf)", consistency="[0, inf)")
        if self.crop != "neither" and not self.images:
            refuse(
                self,
                "crop",
                "'neither' unless images is true",
                "CrossNorm in the network has its crop in its placement.",
            )
        if self.statistics != "shared" and self.consistency == 0:
            refuse(
                self,
                "statistics",
                "'shared' unless consistency is above 0",
                "Without a consistency there are no extra passes.",
            )


@final
@dataclass(frozen=True)
class AugMixRecipe:
    """AugMix.

    Example:
        >>> AugMixRecipe(enabled=True, severity=1).consistency
        12.0

    Args:
        enabled: whether training images pass it.
        severity: 1 to 10.
        width: chains that are mixed.
        depth: operations in a chain; -1 draws 1 to 3.
        alpha: of the Dirichlet and Beta weights.
        all_operations: also the four that overlap with the common corruptions.
        consistency: weight of the Jensen-Shannon divergence between a clean and two mixed views; 0 trains on one mixed
            view.
        implementation: "shiftnorm", faithful to the authors', or "torchvision".
    """

    enabled: bool = False
    severity: int = 3
    width: int = 3
    depth: int = -1
    alpha: float = 1.0
    all_operations: bool = False
    consistency: float = 12.0
    implementation: Literal["shiftnorm", "torchvision"] = "shiftnorm"

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, severity="[1, 10]", width="[1, inf)", alpha="(0, inf)", consistency="[0, inf)")
        if self.depth != -1 and self.depth < 1:
            refuse(self, "depth", "at least 1, or -1 for 1 to 3 by chance")


@final
@dataclass(frozen=True)
class LossRecipe:
    """Changes to plain cross-entropy that come from torchvision.

    Example:
        >>> LossRecipe(mixup=0.2, cutmix=1).cutmix
        1.0

    Args:
        label_smoothing: share spread over all classes.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none. With both, each step draws one.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, label_smoothing="[0, 1)", mixup="[0, inf)", cutmix="[0, inf)")


@final
@dataclass(frozen=True)
class LoopRecipe:
    """How long and on what.

    Example:
        >>> LoopRecipe(epochs=2, precision="bf16").batch_size
        128

    Args:
        epochs: passes over the training images.
        batch_size: images per optimizer step and process, before ``accumulate``.
        accumulate: batches whose gradients make one step.
        drop_last: leave out what does not fill the last batch of an epoch, rather than train on a smaller one.
        seed: of weights, order and every draw.
        ema: decay of averaged weights, which are then the ones evaluated; 0 for none.
        precision: "32", "bf16" or "16" (mixed).
        channels_last: memory format.
        compile: torch.compile of the network.
        deterministic: same bits on the same machine, also on CUDA.
        device: "auto", "cpu" or "cuda".
        processes: processes per node.
        nodes: nodes; they are started by torchrun or SLURM.
        synced: batch moments over all processes.
        threads: torch threads per process; 0 for torch's own choice.
        images_on_device: hold and augment images on the device where they fit.
        checkpoint_every: steps between checkpoints; 0 for the end of each epoch.
    """

    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    drop_last: bool = False
    seed: int = 0
    ema: float = 0.0
    precision: Literal["32", "bf16", "16"] = "32"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = 1
    nodes: int = 1
    synced: bool = True
    threads: int = 0
    images_on_device: bool = True
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(
            self, epochs="[1, inf)", batch_size="[1, inf)", accumulate="[1, inf)", seed="[0, inf)", ema="[0, 1)"
        )
        check_ranges(self, processes="[1, inf)", nodes="[1, inf)", threads="[0, inf)", checkpoint_every="[0, inf)")


@final
@dataclass(frozen=True)
class EvaluateRecipe:
    """What the trained network is measured on, and the corruptions it is measured under.

    Example:
        >>> EvaluateRecipe(corruptions=["fog"], severities=[5]).corruptions
        ('fog',)

    Args:
        corruptions: names, or "common" for the fifteen.
        severities: 1 to 5.
        seed: of their draws, the same for every run.
        constants: the published set of constants.
        limit: at most so many images; None for all.
        part: the "test" images, or those that ``data.validation`` holds out of the training images, to choose by.
    """

    corruptions: tuple[str, ...] | Literal["common"] = "common"
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0
    constants: str = "cifar32"
    limit: int | None = None
    part: Literal["test", "validation"] = "test"

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, seed="[0, inf)", limit="[1, inf)")
        from shiftnorm.data.corruptions import CONSTANT_SETS, CORRUPTIONS

        for name in () if self.corruptions == "common" else self.corruptions:
            _check_name(self, "corruptions", name, CORRUPTIONS)
        _check_name(self, "constants", self.constants, CONSTANT_SETS)
        if not self.severities or set(self.severities) - {1, 2, 3, 4, 5}:
            refuse(self, "severities", "one or more numbers from 1 to 5")
        for name in ("corruptions", "severities"):
            values = getattr(self, name)
            if values != "common" and len(set(values)) < len(values):
                refuse(self, name, "different values")


def _check_name(tree: Any, field: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{type(tree).__name__}: {field}: unknown {name!r}; {suggest(name, known)}")
