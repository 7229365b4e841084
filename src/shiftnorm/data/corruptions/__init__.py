"""Common image corruptions as batched tensor operations, after the definitions of CIFAR-C and ImageNet-C.

Each family of corruptions has a module; here are the table of all and :func:`corrupt`, which applies one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from shiftnorm.data.corruptions import (
    blur,
    digital,
    elastic,
    fog,
    frost,
    glass,
    motion,
    noise,
    snow,
    spatter,
    zoom,
)
from shiftnorm.data.corruptions.base import Corruption, truncate
from shiftnorm.data.corruptions.constants import CONSTANT_SETS, JPEG_STORED
from shiftnorm.data.corruptions.digital import through_jpeg
from shiftnorm.data.corruptions.draws import Stream

__all__ = [
    "COMMON",
    "CONSTANT_SETS",
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "STORAGES",
    "Corruption",
    "Stream",
    "choose_corruptions",
    "corrupt",
]

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
COMMON: tuple[str, ...] = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 of the published benchmarks, in their order."""
EXTRA: tuple[str, ...] = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 4 more that the authors gave for validation; they are in no mCE."""
STORAGES: tuple[str, ...] = ("default", "jpeg85", "none")

FAMILIES = (noise, blur, glass, motion, zoom, snow, frost, fog, elastic, digital, spatter)
CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {corruption.name: corruption for family in FAMILIES for corruption in family.CORRUPTIONS}
)
"""Every corruption by its name: the published ones and the named variants."""

SMALLEST_SIDE = 8
# Chunks bound the memory of the intermediates, and on the CPU keep them in the cache.
CPU_ELEMENTS = 2**19
DEVICE_ELEMENTS = 2**25


def choose_corruptions(which: str | Iterable[str], *, frost_dir: str | Path | None = None) -> tuple[str, ...]:
    """The names that a word stands for, checked.

    Frost needs the authors' photographs, which are not shipped: without them, ``"common"`` and ``"all"`` hold
    ``frost_procedural`` in its place, and results made with it carry that name.

    Example:
        >>> choose_corruptions("extra")
        ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')
        >>> choose_corruptions("common")[8], choose_corruptions("common", frost_dir="photos")[8]
        ('frost_procedural', 'frost')
        >>> choose_corruptions(["fog", "snow"])
        ('fog', 'snow')

    Args:
        which: ``"common"`` (the 15), ``"extra"`` (the 4), ``"all"`` (the 19), the name of one, or names.
        frost_dir: where the photographs of frost are, if they are.

    Returns:
        Names, each a key of ``CORRUPTIONS``.

    Raises:
        ValueError: for an unknown name, one named twice, or none at all.
    """
    groups = {"common": COMMON, "extra": EXTRA, "all": COMMON + EXTRA}
    if isinstance(which, str):
        chosen = groups.get(which, (which,))
        if frost_dir is None and which in groups:
            chosen = tuple("frost_procedural" if name == "frost" else name for name in chosen)
    else:
        chosen = tuple(which)
    for name in chosen:
        if name not in CORRUPTIONS:
            raise ValueError(f"choose_corruptions: {_unknown(name, (*groups, *CORRUPTIONS))}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"choose_corruptions: expected names, each once, got {chosen}")
    return chosen


def _unknown(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if not near:
        return f"unknown corruption {name!r}; known: {', '.join(known)}."
    return f"unknown corruption {name!r}; did you mean {'one of ' if len(near) > 1 else ''}{', '.join(near)}?"


def _check_names(name: str, severity: int, constants: str, storage: str) -> None:
    if name not in CORRUPTIONS:
        raise ValueError(f"corrupt: {_unknown(name, tuple(CORRUPTIONS))}")
    if isinstance(severity, bool | float) or severity not in SEVERITIES:
        raise ValueError(f"corrupt: severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    for what, value, known in (("constants", constants, CONSTANT_SETS), ("storage", storage, STORAGES)):
        if value not in known:
            raise ValueError(f"corrupt: {what} must be one of {', '.join(known)}, got {value!r}")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"corrupt: images must be RGB, (N, 3, H, W) with sides of at least {SMALLEST_SIDE}, "
            f"got {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise TypeError(f"corrupt: images must be uint8 or float in [0, 1], got {images.dtype}")
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError(
            f"corrupt: float images must be in [0, 1] without NaN, got values from {float(images.min()):.4g} to "
            f"{float(images.max()):.4g}; corrupt before normalizing"
        )


def _positions(images: Tensor, start: int, indices: Tensor | Sequence[int] | None) -> Tensor:
    if indices is None:
        return torch.arange(start, start + len(images), device=images.device)
    if start:
        raise ValueError("corrupt: got both start and indices; indices are the images' numbers, pass one of the two")
    numbers = torch.as_tensor(indices, device=images.device)
    if numbers.shape != images.shape[:1] or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(
            f"corrupt: indices must be one whole number for each of the {len(images)} images, got {numbers.dtype} of "
            f"shape {tuple(numbers.shape)}"
        )
    return numbers.to(torch.int64)


def _find(name: str, frost_dir: str | Path | None) -> Corruption:
    return CORRUPTIONS[name] if name != "frost" or frost_dir is None else frost.frost_from_photos(frost_dir)


@torch.no_grad()
def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    start: int = 0,
    indices: Tensor | Sequence[int] | None = None,
    constants: str = "cifar32",
    storage: str = "default",
    frost_dir: str | Path | None = None,
) -> Tensor:
    """Return the images under the corruption ``name`` at a severity from 1 to 5.

    Definitions, constants and quirks are those of the published sets, including the truncation to whole levels at the
    end. Each image has its own random numbers, which depend on the seed, the corruption, the severity and the image's
    number in its data set, and on nothing else: neither on the batch it comes in nor on the device.

    Example:
        >>> from shiftnorm.data import corrupt
        >>> images = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
        >>> foggy = corrupt(images, "fog", 3)
        >>> torch.equal(foggy[2:], corrupt(images[2:], "fog", 3, start=2))
        True
        >>> torch.equal(foggy[[3, 0]], corrupt(images[[3, 0]], "fog", 3, indices=[3, 0]))
        True

    Args:
        images: (N, 3, H, W) RGB, uint8 or float in [0, 1], on any device. Floats are rounded to the 256 levels first:
            the published sets corrupt stored images.
        name: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of the random numbers, any integer.
        start: the number in the data set of the first image, when the set comes in batches.
        indices: instead of ``start``, the number of each image.
        constants: the strengths: ``"cifar32"`` as in CIFAR-10-C, ``"tiny64"``, ``"imagenet224"`` as in ImageNet-C, or
            ``"inception299"``. Used as they are whatever the size of the images.
        storage: what became of the images between making and reading: ``"jpeg85"``, a JPEG file of quality 85, as in
            ImageNet-C; ``"none"``, nothing, as in CIFAR-10-C; ``"default"``, what the published set of the constants
            did: nothing for ``"cifar32"`` only.
        frost_dir: for ``"frost"``: the directory of the authors' photographs.

    Returns:
        Images of the same shape, dtype, device and memory format. Float images have whole levels too, k / 255.

    Raises:
        ValueError: for an unknown name, severity, set or storage; images that are not RGB or smaller than 8x8; float
            values outside [0, 1] or NaN; wrong indices; ``"frost"`` without ``frost_dir``.
        TypeError: for images that are neither uint8 nor float.
        ModuleNotFoundError: where JPEG is needed and Pillow is not installed.
    """
    _check_names(name, severity, constants, storage)
    _check_images(images)
    numbers = _positions(images, start, indices)
    corruption = _find(name, frost_dir)
    constant = corruption.constant(constants, severity)
    as_jpeg = storage == "jpeg85" or (storage == "default" and constants in JPEG_STORED)
    out = torch.empty_like(images)
    elements = CPU_ELEMENTS if images.device.type == "cpu" else DEVICE_ELEMENTS
    per_chunk = max(1, elements // (3 * images.shape[2] * images.shape[3]))
    for begin in range(0, len(images), per_chunk):
        part = slice(begin, begin + per_chunk)
        x = images[part].to(torch.float32, memory_format=torch.contiguous_format)
        x = (x if images.dtype == torch.uint8 else (x * 255).round_()) / 255
        params = corruption.sample(Stream(seed, name, severity, numbers[part]), x.shape, constant)
        levels = truncate(corruption.apply(x, constant, params))
        if as_jpeg:
            levels = through_jpeg(levels.to(torch.uint8), 85)
        out[part] = levels if images.dtype == torch.uint8 else (levels / 255).to(images.dtype)
    return out
