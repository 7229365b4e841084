"""Pictures of frost on glass made by computation, with the colours, contrast and spectra of the authors' photographs.

Each plate is a torus: ridged multifractal noise with feathers of ice grown over it, brought to a power law of the
frequency, to a skewness and to the contrast that the photograph has within a crop of 224 pixels.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.data.corruptions.draws import Stream

__all__ = ["SIDE", "plates"]

SIDE = 720
CROP, BETWEEN_CROPS = 224, 80
OCTAVES, PERSISTENCE = 6, 0.6
SIXTY_DEGREES = math.pi / 3
BRANCHES, TWIGS = 40, 12


class _Look(NamedTuple):
    """What one photograph looks like: the first four facts are measured, the rest is chosen by eye."""

    mean: tuple[int, int, int]
    # Of red, green and blue within a crop, and the share of each that is common to all (as a correlation).
    deviation: tuple[int, int, int]
    shared: tuple[float, float, float]
    slope: float
    skewness: float
    feathers: int
    length: int
    # Of the feathers against the ridges, and the ridges' lowest frequency.
    weight: float
    coarsest: int


LOOKS = (
    _Look((75, 147, 164), (20, 14, 16), (0.6, 1, 0.96), -1.74, 0.3, 22, 260, 0.9, 5),
    _Look((198, 202, 212), (20, 20, 21), (1, 1, 1), -1.92, -1.0, 40, 170, 0.9, 9),
    _Look((144, 159, 172), (26, 26, 27), (1, 1, 0.995), -1.39, 0.6, 100, 90, 0.9, 14),
    _Look((101, 112, 124), (35, 35, 35), (1, 1, 1), -1.98, 0.5, 14, 330, 1.1, 5),
)


def _frequencies() -> Tensor:
    rows, columns = torch.fft.fftfreq(SIDE, 1 / SIDE), torch.fft.rfftfreq(SIDE, 1 / SIDE)
    return (rows[:, None] ** 2 + columns**2).sqrt()


def _filtered(field: Tensor, gain: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(field) * gain, s=(SIDE, SIDE))


def _standard(field: Tensor) -> Tensor:
    return (field - field.mean()) / field.std()


def _ridges(white: Tensor, coarsest: int, frequency: Tensor) -> Tensor:
    """A ridged multifractal: sharp crests where noise passes 0, finer ones on the crests only."""
    total, before = torch.zeros_like(white), torch.ones_like(white)
    for octave in range(OCTAVES):
        distance = (frequency.clamp(min=0.5) / (coarsest * 2**octave)).log2()
        noise = _standard(_filtered(white, torch.exp(-8 * distance**2)))
        crest = (1 - noise.abs() / 1.5).clamp(min=0) ** 2 * before
        total += crest * PERSISTENCE**octave
        before = (2 * crest).clamp(max=1)
    return total


def _feathers(stream: Stream, count: int, length: int) -> Tensor:
    """Feathers of ice: bent stems with branches at sixty degrees, which have twigs at sixty degrees."""
    canvas = torch.zeros(SIDE * SIDE)

    def uniform(*shape: int) -> Tensor:
        return stream.uniform(*shape)[0]

    def line(y: Tensor, x: Tensor, angle: Tensor, size: Tensor, points: int, light: float) -> None:
        along = torch.linspace(0, 1, points)
        rows = (y[..., None] + (size * angle.sin())[..., None] * along).round().long() % SIDE
        columns = (x[..., None] + (size * angle.cos())[..., None] * along).round().long() % SIDE
        brightness = light * size[..., None] / points * (1 - 0.8 * along)
        canvas.index_add_(0, (rows * SIDE + columns).flatten(), brightness.flatten())

    root_y, root_x = uniform(2, count, 1) * SIDE
    heading, bend = uniform(count, 1) * 2 * math.pi, (uniform(count, 1) - 0.5) * 1.6
    stem = (0.5 + uniform(count, 1)) * length
    part = (torch.arange(BRANCHES) + uniform(count, BRANCHES)) / BRANCHES
    chord = heading + bend * part / 2
    y, x = root_y + stem * part * chord.sin(), root_x + stem * part * chord.cos()
    step = stem.expand_as(part) / BRANCHES
    line(y, x, heading + bend * part, 1.5 * step, 24, 1.2)

    sides = torch.tensor([-1.0, 1.0])
    angle = (heading + bend * part)[..., None] + sides * SIXTY_DEGREES + (uniform(count, BRANCHES, 2) - 0.5) * 0.3
    size = 0.45 * (stem * (1 - part))[..., None] * (0.25 + 0.75 * uniform(count, BRANCHES, 2))
    y, x = y[..., None].expand_as(size), x[..., None].expand_as(size)
    line(y, x, angle, size, 128, 0.8)

    part = (torch.arange(TWIGS) + uniform(count, BRANCHES, 2, TWIGS)) / TWIGS
    y, x = y[..., None] + (size * angle.sin())[..., None] * part, x[..., None] + (size * angle.cos())[..., None] * part
    angle = angle[..., None, None] + sides * SIXTY_DEGREES + (uniform(count, BRANCHES, 2, TWIGS, 2) - 0.5) * 0.4
    size = 0.4 * (size[..., None] * (1 - part))[..., None] * (0.3 + 0.7 * uniform(count, BRANCHES, 2, TWIGS, 2))
    line(y[..., None].expand_as(size), x[..., None].expand_as(size), angle, size, 28, 0.5)
    return canvas.view(SIDE, SIDE)


def _with_slope(field: Tensor, slope: float, frequency: Tensor) -> Tensor:
    """The field with its phases kept and its power, averaged over directions, made to fall as frequency ** slope."""
    spectrum = torch.fft.rfft2(field)
    ring = (frequency + 0.5).long()
    weight = torch.full_like(frequency, 2.0)
    weight[:, [0, -1]] = 1.0
    count = int(ring.max()) + 1
    power = torch.zeros(count).index_add_(0, ring.flatten(), (spectrum.abs() ** 2 * weight).flatten())
    power /= torch.zeros(count).index_add_(0, ring.flatten(), weight.flatten())
    gain = (torch.arange(count).clamp(min=1) ** slope / power).sqrt()
    gain[0] = 0
    return _standard(torch.fft.irfft2(spectrum * gain[ring], s=(SIDE, SIDE)))


def _with_skewness(field: Tensor, skewness: float) -> Tensor:
    """The field bent by an exponential, of the strength that gives the skewness if more bending can."""
    sign = math.copysign(1, skewness)
    low, high = 1e-3, 1.0
    field = (field * sign).clamp(-4, 4)
    for _ in range(16):
        middle = (low + high) / 2
        bent = _standard(torch.expm1(middle * field))
        enough = float((bent**3).mean()) >= abs(skewness)
        low, high = (low, middle) if enough else (middle, high)
    return _standard(torch.expm1(low * field)) * sign


def _contrast_in_crops(field: Tensor) -> Tensor:
    return field.unfold(0, CROP, BETWEEN_CROPS).unfold(1, CROP, BETWEEN_CROPS).std((2, 3)).mean()


def _plate(number: int, look: _Look) -> Tensor:
    stream = Stream(0, "frost_procedural", number, torch.zeros(1, dtype=torch.int64))
    frequency = _frequencies()
    white, tint = stream.normal(2, SIDE, SIDE)[0]
    # A pen half a pixel wide, and less light where lines cross than the sum.
    pen = torch.exp(-2 * (math.pi * 0.6 * frequency / SIDE) ** 2)
    feathers = _filtered(torch.log1p(2 * _feathers(stream, look.feathers, look.length)), pen)
    ice = _standard(_ridges(white, look.coarsest, frequency)) + look.weight * _standard(feathers)
    for _ in range(2):
        ice = _with_skewness(_with_slope(ice, look.slope, frequency), look.skewness)
    tint = _with_slope(tint, look.slope, frequency)
    ice, tint = ice / _contrast_in_crops(ice), tint / _contrast_in_crops(tint)
    channels = [
        mean + deviation * (shared * ice + math.sqrt(1 - shared**2) * tint)
        for mean, deviation, shared in zip(look.mean, look.deviation, look.shared, strict=True)
    ]
    return torch.stack(channels).round().clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=1)
def plates() -> Tensor:
    """Four pictures of frost, in the place of the authors' frost1, frost2 (and frost3), frost4 and frost5.

    Made once in a process, from fixed random numbers, on the CPU, so that they are the same on every device.

    Example:
        >>> plates().shape, plates().dtype
        (torch.Size([4, 3, 720, 720]), torch.uint8)
        >>> plates().float().mean((2, 3)).round().int().tolist()[1]  # the measured mean colour of frost2.png
        [198, 202, 212]

    Returns:
        (4, 3, 720, 720) uint8 RGB, on the CPU; opposite borders fit each other. Do not change it.
    """
    return torch.stack([_plate(number, look) for number, look in enumerate(LOOKS)])
