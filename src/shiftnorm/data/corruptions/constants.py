"""The strengths of every corruption: four published sets, five severities each.

``cifar32`` made CIFAR-10-C and CIFAR-100-C, ``tiny64`` Tiny-ImageNet-C, ``imagenet224`` ImageNet-C and ``inception299``
its variant for Inception's input. The sets are named and never chosen by the size of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["CONSTANTS", "CONSTANT_SETS", "JPEG_STORED"]

CONSTANT_SETS: tuple[str, ...] = ("cifar32", "tiny64", "imagenet224", "inception299")
JPEG_STORED: frozenset[str] = frozenset({"tiny64", "imagenet224", "inception299"})
"""The sets whose published images were stored as JPEG files of quality 85."""

Sets = Mapping[str, tuple[Any, ...]]


def _sets(cifar32: tuple, tiny64: tuple, imagenet224: tuple, inception299: tuple) -> Sets:
    return MappingProxyType(dict(zip(CONSTANT_SETS, (cifar32, tiny64, imagenet224, inception299), strict=True)))


def _factors(step: float, count: int) -> tuple[float, ...]:
    """Zoom factors from 1, as the authors' floating-point range makes them: it sometimes includes its end."""
    exact = (1 + step) - 1
    return tuple(1 + i * exact for i in range(count))


def _elastic(size: int, *constants: tuple[float, float, float]) -> tuple[tuple[float, float, float], ...]:
    return tuple((size * alpha, size * sigma, size * jitter) for alpha, sigma, jitter in constants)


_SMALL_ZOOM = tuple(_factors(0.01, count) for count in (7, 12, 16, 21, 26))
_LARGE_ZOOM = tuple(_factors(*pair) for pair in ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)))
_LARGE_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_LARGE_FROST = ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1))
_LARGE_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_LARGE_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_LARGE_ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
_LARGE_SATURATE = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))

CONSTANTS: Mapping[str, Sets] = MappingProxyType(
    {
        # standard deviation
        "gaussian_noise": _sets(
            (0.04, 0.06, 0.08, 0.09, 0.10),
            (0.04, 0.08, 0.12, 0.15, 0.18),
            (0.08, 0.12, 0.18, 0.26, 0.38),
            (0.09, 0.13, 0.19, 0.27, 0.40),
        ),
        # photons at full brightness
        "shot_noise": _sets((500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3), (50, 20, 10, 5, 3)),
        # share of the values replaced
        "impulse_noise": _sets(
            (0.01, 0.02, 0.03, 0.05, 0.07),
            (0.01, 0.02, 0.05, 0.08, 0.14),
            (0.03, 0.06, 0.09, 0.17, 0.27),
            (0.04, 0.07, 0.10, 0.18, 0.28),
        ),
        # standard deviation in units of the value
        "speckle_noise": _sets(
            (0.06, 0.10, 0.12, 0.16, 0.20),
            (0.15, 0.2, 0.25, 0.3, 0.35),
            (0.15, 0.20, 0.35, 0.45, 0.60),
            (0.16, 0.21, 0.36, 0.46, 0.61),
        ),
        # sigma
        "gaussian_blur": _sets(
            (0.4, 0.6, 0.7, 0.8, 1), (0.5, 0.75, 1, 1.25, 1.5), (1, 2, 3, 4, 6), (1.5, 2.5, 3.5, 4.5, 6.5)
        ),
        # sigma, largest shift, passes
        "glass_blur": _sets(
            ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
            ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
            ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
            ((0.8, 1, 3), (1, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)),
        ),
        # radius of the disk, sigma that smooths it
        "defocus_blur": _sets(
            ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
            ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
            ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
            ((4, 0.1), (5, 0.5), (7, 0.5), (10, 0.5), (12, 0.5)),
        ),
        # radius, sigma
        "motion_blur": _sets(
            ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
            ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
            ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
            ((12, 4), (17, 6), (17, 9), (17, 13), (22, 16)),
        ),
        # all factors, 1 among them
        "zoom_blur": _sets(_SMALL_ZOOM, _SMALL_ZOOM, _LARGE_ZOOM, _LARGE_ZOOM),
        # mean, standard deviation, zoom, threshold, radius, sigma, weight of the image
        "snow": _sets(
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
            ),
            _LARGE_SNOW,
            _LARGE_SNOW,
        ),
        # weight of the image, weight of the frost, factor by which the photograph of the frost is resized
        "frost": _sets(
            ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
            ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
            _LARGE_FROST,
            _LARGE_FROST,
        ),
        # strength, decay of the roughness
        "fog": _sets(
            ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
            ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
            ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
            ((1.5, 2), (2, 2), (2.5, 1.8), (2.5, 1.6), (3, 1.5)),
        ),
        # added to the value of HSV
        "brightness": _sets((0.05, 0.1, 0.15, 0.2, 0.3), _LARGE_BRIGHTNESS, _LARGE_BRIGHTNESS, _LARGE_BRIGHTNESS),
        # factor
        "contrast": _sets((0.75, 0.5, 0.4, 0.3, 0.15), _LARGE_CONTRAST, _LARGE_CONTRAST, _LARGE_CONTRAST),
        # size of the shifts, sigma that smooths them, jitter of the affine map; all in pixels (244 is the authors')
        "elastic_transform": _sets(
            _elastic(32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
            _elastic(64, (0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
            _elastic(244, *_LARGE_ELASTIC),
            _elastic(360, *_LARGE_ELASTIC),
        ),
        # factor of the size
        "pixelate": _sets(
            (0.95, 0.9, 0.85, 0.75, 0.65),
            (0.9, 0.8, 0.7, 0.6, 0.5),
            (0.6, 0.5, 0.4, 0.3, 0.25),
            (0.5, 0.4, 0.3, 0.25, 0.2),
        ),
        # quality
        "jpeg_compression": _sets((80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7), (23, 16, 13, 8, 5)),
        # mean, standard deviation, sigma, threshold, strength, 0 for water and 1 for mud
        "spatter": _sets(
            (
                (0.62, 0.1, 0.7, 0.7, 0.5, 0),
                (0.65, 0.1, 0.8, 0.7, 0.5, 0),
                (0.65, 0.3, 1, 0.69, 0.5, 0),
                (0.65, 0.1, 0.7, 0.69, 0.6, 1),
                (0.65, 0.1, 0.5, 0.68, 0.6, 1),
            ),
            (
                (0.62, 0.1, 0.7, 0.7, 0.6, 0),
                (0.65, 0.1, 0.8, 0.7, 0.6, 0),
                (0.65, 0.3, 1, 0.69, 0.6, 0),
                (0.65, 0.1, 0.7, 0.68, 0.6, 1),
                (0.65, 0.1, 0.5, 0.67, 0.6, 1),
            ),
            (
                (0.65, 0.3, 4, 0.69, 0.6, 0),
                (0.65, 0.3, 3, 0.68, 0.6, 0),
                (0.65, 0.3, 2, 0.68, 0.5, 0),
                (0.65, 0.3, 1, 0.65, 1.5, 1),
                (0.67, 0.4, 1, 0.65, 1.5, 1),
            ),
            (
                (0.65, 0.3, 4, 0.69, 0.9, 0),
                (0.65, 0.3, 3.5, 0.68, 0.9, 0),
                (0.65, 0.3, 3, 0.68, 0.8, 0),
                (0.65, 0.3, 1.2, 0.65, 1.8, 1),
                (0.67, 0.4, 1.2, 0.65, 1.8, 1),
            ),
        ),
        # factor and shift of the saturation
        "saturate": _sets(
            ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
            (*_LARGE_SATURATE[:4], (30, 0.2)),
            _LARGE_SATURATE,
            _LARGE_SATURATE,
        ),
    }
)
"""By corruption, by set: the five constants. What each number means stands above it."""
