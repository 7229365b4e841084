"""The numbers that the golden networks are made of: weights, images and probes follow from a formula."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

IMAGE_NOISE = 1000003  # the k of the noise in the images
IMAGE_GRADIENT = 7777777  # the k of the probe of the images' gradient


def unit_draws(k: int, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), as 64-bit integer arithmetic gives them for place ``k``."""
    # In numpy, whose unsigned integers wrap around; the start is reduced here, because numpy warns about scalars.
    start = (0x9E3779B97F4A7C15 + 0xBF58476D1CE4E5B9 * k) % 2**64
    z = np.arange(count, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(start)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    z >>= np.uint64(11)
    draws = z.astype(np.float64)
    draws *= 2.0**-53
    return draws


def signed_draws(k: int, shape: Iterable[int]) -> Tensor:
    """Numbers in [-1, 1)."""
    shape = tuple(shape)
    draws = unit_draws(k, math.prod(shape))
    draws *= 2
    draws -= 1
    return torch.from_numpy(draws).reshape(shape)


def is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def places(names: Iterable[str]) -> dict[str, int]:
    """The k of every tensor of a network: its place among the sorted names, from which batch counters are left out."""
    return {name: k for k, name in enumerate(sorted(name for name in names if not is_counter(name)))}


def formula_tensor(name: str, shape: tuple[int, ...], k: int) -> Tensor:
    s = signed_draws(k, shape)
    if len(shape) >= 2:
        return s.mul_(1.4 * math.sqrt(3 / math.prod(shape[1:])))
    if name.endswith("running_mean"):
        return s.mul_(0.2)
    if name.endswith("running_var"):
        return s.mul_(0.5).add_(1)
    return s.mul_(0.4).add_(1) if name.endswith(".weight") else s.mul_(0.2)


def formula_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The state_dict of a network that has exactly these tensors, by the authors' names."""
    k = places(shapes)
    return {
        name: torch.tensor(0) if is_counter(name) else formula_tensor(name, shape, k[name])
        for name, shape in shapes.items()
    }


def formula_images(samples: int, side: int) -> Tensor:
    shape = (samples, 3, side, side)
    n, c, h, w = np.ogrid[tuple(slice(size) for size in shape)]
    base = 0.8 * np.sin(0.3 * (h + 1) * (1 + 0.5 * c) + 0.7 * n) * np.cos(0.2 * (w + 1) + 0.1 * c)
    noise = signed_draws(IMAGE_NOISE, shape).numpy()
    return torch.from_numpy(0.4 * ((n + 2 * c) % 3 - 1) + (0.5 + 0.25 * ((n + c) % 4)) * (base + noise))


def probe(tensor: Tensor, k: int) -> Tensor:
    """What is stored of a large tensor: sum, norm, and the scalar product with the draws of its place."""
    flat = tensor.detach().reshape(-1)
    return torch.stack([flat.sum(), flat.norm(), flat @ signed_draws(k, flat.shape)])
