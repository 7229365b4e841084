"""Shades of a heat table: lightness alone orders them, and the number in a cell is legible on every one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["LEVELS", "Shade", "build_shades", "contrast_ratio", "find_top", "pick_shade", "write_rules"]

LEVELS = 21
# Lightness, chroma and hue (OKLCH) at no error and at the highest. Lightness changes steadily between them, so the
# order survives a grey printer and any colour blindness; hue only adds to it.
_LIGHT = ((0.985, 0.016, 95.0), (0.40, 0.165, 28.0))
_DARK = ((0.245, 0.014, 40.0), (0.88, 0.150, 88.0))


class Shade(NamedTuple):
    """Background of a cell and the colour of the number on it.

    Example:
        >>> Shade("#ffffff", "#000000").contrast
        21.0
    """

    background: str
    ink: str

    @property
    def contrast(self) -> float:
        """Contrast of the number to its cell; at least 4.5 is asked of text.

        Example:
            >>> min(shade.contrast for shade in build_shades()) >= 4.5
            True
        """
        return contrast_ratio(self.background, self.ink)


def build_shades(*, dark: bool = False) -> list[Shade]:
    """The shades from no error to the highest: from paper to brick, or from night to amber on a dark page.

    Example:
        >>> light, dark = build_shades(), build_shades(dark=True)
        >>> len(light), light[0].ink, light[-1].ink, dark[0].ink, dark[-1].ink
        (21, '#000000', '#ffffff', '#ffffff', '#000000')

    Args:
        dark: for a page in light letters on a dark ground.

    Returns:
        LEVELS shades. Black or white, whichever stands out more, is at least 4.58 to 1 on any colour.
    """
    start, end = _DARK if dark else _LIGHT
    shades: list[Shade] = []
    for level in range(LEVELS):
        part = level / (LEVELS - 1)
        lightness, _, hue = (a + (b - a) * part for a, b in zip(start, end, strict=True))
        # chroma rises fast, so that the middle of the scale is coloured and not grey
        background = _from_oklch(lightness, start[1] + (end[1] - start[1]) * math.sin(part * math.pi / 2), hue)
        ink = max(("#000000", "#ffffff"), key=lambda color, ground=background: contrast_ratio(ground, color))
        shades.append(Shade(background, ink))
    return shades


def contrast_ratio(first: str, second: str) -> float:
    """Contrast of two colours after WCAG 2: (lighter + 0.05) / (darker + 0.05), of relative luminances.

    Example:
        >>> contrast_ratio("#000000", "#ffffff"), round(contrast_ratio("#777777", "#ffffff"), 2)
        (21.0, 4.48)

    Args:
        first: as #rrggbb.
        second: as #rrggbb.

    Returns:
        1 to 21.
    """
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def find_top(values: Iterable[float]) -> float:
    """Where the scale ends: the next multiple of 10 above every value, so that tables that share it can be compared.

    Example:
        >>> find_top([3.0, 41.2]), find_top([]), find_top([100.0])
        (50.0, 10.0, 100.0)

    Args:
        values: errors in percent.

    Returns:
        10 to 100.
    """
    return 10.0 * max(math.ceil(max(values, default=0.0) / 10 - 1e-9), 1)


def pick_shade(value: float, top: float) -> int:
    """The level of a value on the scale from 0 to `top`.

    Example:
        >>> pick_shade(0.0, 50.0), pick_shade(25.0, 50.0), pick_shade(60.0, 50.0)
        (0, 10, 20)

    Args:
        value: error in percent.
        top: where the scale ends.

    Returns:
        0 to LEVELS - 1.
    """
    return min(max(round(value / top * (LEVELS - 1)), 0), LEVELS - 1)


def write_rules(*, dark: bool = False) -> str:
    """CSS rules of the classes h0, h1, ..., one for each level.

    Example:
        >>> write_rules().splitlines()[0]
        '.h0 { background: #fdfaee; color: #000000; }'

    Args:
        dark: for a page in light letters on a dark ground.

    Returns:
        One rule a line.
    """
    return "\n".join(
        f".h{level} {{ background: {shade.background}; color: {shade.ink}; }}"
        for level, shade in enumerate(build_shades(dark=dark))
    )


def _luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _from_oklch(lightness: float, chroma: float, hue: float) -> str:
    """The colour as #rrggbb, its chroma lowered until a screen can show it."""
    angle = math.radians(hue)
    while True:
        a, b = chroma * math.cos(angle), chroma * math.sin(angle)
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
        if all(-1e-4 <= c <= 1 + 1e-4 for c in linear) or chroma < 1e-3:
            break
        chroma *= 0.97
    clipped = [min(max(c, 0.0), 1.0) for c in linear]
    encoded = [12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in clipped]
    return "#" + "".join(f"{round(255 * c):02x}" for c in encoded)
