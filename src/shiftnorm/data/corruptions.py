"""Common image corruptions as batched tensor operations."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from shiftnorm.data import plasma
from shiftnorm.data.blur import defocus, gaussian, motion
from shiftnorm.data.hsv import hsv_to_rgb, rgb_to_hsv

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
CONSTANT_SETS: Mapping[str, tuple[int, int]] = MappingProxyType({"cifar32": (32, 32)})
SMALLEST_SIDE = 8
ELEMENTS_PER_CHUNK = 2**20


@dataclass(frozen=True)
class Corruption:
    """One corruption: five constants, the arithmetic, and the draw that the arithmetic replays.

    Calling it works on float images in [0, 1] and neither checks nor quantises; use :func:`corrupt` for that.

    Example:
        >>> import torch
        >>> from shiftnorm.data import CORRUPTIONS
        >>> image = torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64)
        >>> noise = CORRUPTIONS["gaussian_noise"]
        >>> draw = noise.draw(image, noise.constants[0], [torch.Generator().manual_seed(0)])
        >>> torch.equal(noise(image, 1, draw), image + 0.04 * draw)
        True

    Args:
        constants: the strength for severities 1 to 5.
        arithmetic: (images (N, 3, H, W), constant[, draw]) → images.
        draw_one: (image (3, H, W) on the CPU, constant, generator) → the random numbers for that image; None if the
            corruption has none.
    """

    constants: tuple[Any, ...]
    arithmetic: Callable[..., Tensor]
    draw_one: Callable[[Tensor, Any, torch.Generator], Tensor] | None = None

    def draw(self, images: Tensor, constant: Any, generators: list[torch.Generator]) -> Tensor | None:
        """Return the random numbers for ``images``, one CPU generator per image, on the device of the images.

        Example:
            >>> generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
            >>> CORRUPTIONS["gaussian_noise"].draw(torch.zeros(2, 3, 32, 32), 0.04, generators).shape
            torch.Size([2, 3, 32, 32])
        """
        if self.draw_one is None:
            return None
        # On the CPU whatever the device, so that a GPU sees the same corrupted images.
        pairs = zip(images.cpu(), generators, strict=True)
        drawn = [self.draw_one(image, constant, generator) for image, generator in pairs]
        return torch.stack(drawn).to(images.device, images.dtype)

    def __call__(self, images: Tensor, severity: int, draw: Tensor | None = None) -> Tensor:
        """Return the corrupted images, not yet quantised; ``draw`` is what :meth:`draw` returned."""
        constant = self.constants[severity - 1]
        if self.draw_one is None:
            return self.arithmetic(images, constant)
        if draw is None:
            raise ValueError("Corruption: this one is random and needs a draw; make one with .draw, or call corrupt()")
        return self.arithmetic(images, constant, draw)


def _normal(x: Tensor, _: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _photons(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator=generator)


def _two_uniforms(x: Tensor, _: Any, generator: torch.Generator) -> Tensor:
    return torch.rand((2, *x.shape), generator=generator, dtype=x.dtype)


def _angle(x: Tensor, _: Any, generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator, dtype=x.dtype) * 90 - 45


def _plasma(x: Tensor, _: Any, generator: torch.Generator) -> Tensor:
    return torch.rand(plasma.draws(*x.shape[-2:]), generator=generator, dtype=x.dtype) * 2 - 1


def _gaussian_noise(x: Tensor, sigma: float, draw: Tensor) -> Tensor:
    return x + sigma * draw


def _shot_noise(x: Tensor, photons: float, draw: Tensor) -> Tensor:
    return draw / photons


def _impulse_noise(x: Tensor, amount: float, draw: Tensor) -> Tensor:
    replaced, white = draw[:, 0] <= amount, draw[:, 1] <= 0.5
    return torch.where(replaced, white.to(x.dtype), x)


def _defocus_blur(x: Tensor, constant: tuple[float, float]) -> Tensor:
    radius, alias = constant
    return defocus(x, radius, alias)


def _motion_blur(x: Tensor, constant: tuple[float, float], draw: Tensor) -> Tensor:
    radius, sigma = constant
    return motion(x, radius, sigma, draw)


def _brightness(x: Tensor, added: float) -> Tensor:
    hue, saturation, value = rgb_to_hsv(x)
    return hsv_to_rgb(hue, saturation, (value + added).clamp(0, 1))


def _saturate(x: Tensor, constant: tuple[float, float]) -> Tensor:
    scale, shift = constant
    hue, saturation, value = rgb_to_hsv(x)
    return hsv_to_rgb(hue, (saturation * scale + shift).clamp(0, 1), value)


def _contrast(x: Tensor, factor: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def _fog(x: Tensor, constant: tuple[float, float], draw: Tensor) -> Tensor:
    strength, decay = constant
    height, width = x.shape[-2:]
    brightest = x.amax((1, 2, 3), keepdim=True)
    foggy = x + strength * plasma.fractal(draw, decay)[:, None, :height, :width]
    return foggy * brightest / (brightest + strength)


def _box_down(size: int, smaller: int, like: Tensor) -> Tensor:
    # A source pixel counts fully or not at all, as in Pillow's box filter, so the areas are not shared out.
    scale = size / smaller
    weights = like.new_zeros(smaller, size)
    for i in range(smaller):
        centre = (i + 0.5) * scale
        first, end = max(0, int(centre - scale / 2 + 0.5)), min(size, int(centre + scale / 2 + 0.5))
        weights[i, first:end] = 1 / (end - first)
    return weights


def _pixelate(x: Tensor, scale: float) -> Tensor:
    height, width = x.shape[-2:]
    small_height, small_width = int(height * scale), int(width * scale)
    # Rounded to whole levels after each axis, as Pillow does.
    small = (x * 255 @ _box_down(width, small_width, x).T + 0.5).floor()
    small = (_box_down(height, small_height, x) @ small + 0.5).floor()
    rows = ((torch.arange(height, device=x.device) + 0.5) * (small_height / height)).long()
    columns = ((torch.arange(width, device=x.device) + 0.5) * (small_width / width)).long()
    return small[:, :, rows[:, None], columns] / 255


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "gaussian_noise": Corruption((0.04, 0.06, 0.08, 0.09, 0.10), _gaussian_noise, _normal),
        "shot_noise": Corruption((500, 250, 100, 75, 50), _shot_noise, _photons),
        "impulse_noise": Corruption((0.01, 0.02, 0.03, 0.05, 0.07), _impulse_noise, _two_uniforms),
        "defocus_blur": Corruption(((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), _defocus_blur),
        "motion_blur": Corruption(((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), _motion_blur, _angle),
        "fog": Corruption(((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), _fog, _plasma),
        "brightness": Corruption((0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
        "contrast": Corruption((0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
        "pixelate": Corruption((0.95, 0.9, 0.85, 0.75, 0.65), _pixelate),
        "gaussian_blur": Corruption((0.4, 0.6, 0.7, 0.8, 1), gaussian),
        "saturate": Corruption(((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), _saturate),
    }
)


def quantise(x: Tensor) -> Tensor:
    """Return images clipped to [0, 1] as whole levels 0 to 255, cut off instead of rounded, as float.

    Cutting off is what made the published sets; it darkens by half a level on average.

    Example:
        >>> import torch
        >>> quantise(torch.tensor([-1.0, 0.5, 0.999, 2.0])).tolist()
        [0.0, 127.0, 254.0, 255.0]
    """
    return (x.clamp(0, 1) * 255).floor()


def _levels(images: Tensor) -> Tensor:
    # A float image that was made from whole levels gets them back exactly: the truncation at the end would otherwise
    # turn the rounding of k / 255 into a whole level.
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    if images.dtype == torch.uint8:
        return images.to(dtype)
    levels = images.to(dtype) * 255
    whole = levels.round()
    return torch.where((levels - whole).abs() <= 255 * torch.finfo(images.dtype).eps, whole, levels)


def _check(images: Tensor, name: str, severity: int, constants: str | None) -> None:
    if name not in CORRUPTIONS:
        near = difflib.get_close_matches(str(name), CORRUPTIONS, n=3, cutoff=0.5) or list(CORRUPTIONS)
        raise ValueError(f"corrupt: unknown corruption {name!r}; did you mean one of {', '.join(near)}?")
    if isinstance(severity, bool | float) or severity not in SEVERITIES:
        raise ValueError(f"corrupt: severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"corrupt: images must be RGB, (N, 3, H, W) with sides of at least {SMALLEST_SIDE}, "
            f"got {tuple(images.shape)}"
        )
    if constants is not None and constants not in CONSTANT_SETS:
        raise ValueError(f"corrupt: constants must be one of {', '.join(CONSTANT_SETS)}, got {constants!r}")
    size = tuple(images.shape[2:])
    if constants is None and size not in CONSTANT_SETS.values():
        raise ValueError(
            f"corrupt: no set of constants was made for images of {size[0]}x{size[1]}; resize them to 32x32, or pass "
            f"constants='cifar32' to apply the strengths for 32x32 as they are"
        )
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise TypeError(f"corrupt: images must be uint8 or float in [0, 1], got {images.dtype}")
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError(
                f"corrupt: float images must be in [0, 1] without NaN, got values from {float(images.min()):.4g} to "
                f"{float(images.max()):.4g}; corrupt before normalizing"
            )


def _first_seed(seed: int, name: str, severity: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/{severity}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    start: int = 0,
    constants: str | None = None,
) -> Tensor:
    """Return the images under the corruption ``name`` at a severity from 1 to 5.

    The definitions and constants are those of CIFAR-10-C (set ``"cifar32"``), including the truncation to whole levels
    at the end. Each image has its own random numbers, which depend on the seed, the corruption, the severity and the
    image's position in the set, and on nothing else: neither on the batch it comes in nor on the device.

    Example:
        >>> import torch
        >>> from shiftnorm.data import corrupt
        >>> images = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
        >>> foggy = corrupt(images, "fog", 3, seed=0)
        >>> torch.equal(foggy[2:], corrupt(images[2:], "fog", 3, seed=0, start=2))
        True

    Args:
        images: (N, 3, H, W) RGB, uint8 or float in [0, 1], on any device.
        name: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of the random numbers (0 if neither a seed nor a generator is given).
        generator: takes the seed from this generator instead, so that every call gives another result.
        start: position in the set of the first image, when the set comes in batches.
        constants: ``"cifar32"``: use the strengths made for 32x32 whatever the size. Needed for other sizes only.

    Returns:
        Images of the same shape, dtype and device. Float images have whole levels too, k / 255.

    Raises:
        ValueError: an unknown name, a severity outside 1 to 5, both a seed and a generator, images that are not RGB or
            smaller than 8x8, float values outside [0, 1] or NaN, or a size no constants were made for.
        TypeError: images that are neither uint8 nor float.
    """
    _check(images, name, severity, constants)
    if seed is not None and generator is not None:
        raise ValueError("corrupt: got both a seed and a generator; pass one of them")
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    corruption, first = CORRUPTIONS[name], _first_seed(seed or 0, name, severity) + start
    constant = corruption.constants[severity - 1]
    out = torch.empty_like(images)
    # Chunks bound the memory of the float64 intermediates and keep them in the cache.
    per_chunk = max(1, ELEMENTS_PER_CHUNK // images[0].numel()) if len(images) else 1
    for begin in range(0, len(images), per_chunk):
        part = slice(begin, begin + per_chunk)
        x = _levels(images[part]) / 255
        # The CPU generator uses 32 bits of its seed. Consecutive seeds cannot collide within a set.
        generators = [torch.Generator().manual_seed((first + begin + i) % 2**32) for i in range(len(x))]
        levels = quantise(corruption(x, severity, corruption.draw(x, constant, generators)))
        out[part] = levels if images.dtype == torch.uint8 else levels / 255
    return out
