"""Blurs of the common corruptions: Gaussian, defocus and motion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _gaussian_matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    taps = torch.exp(-0.5 / (sigma * sigma) * offsets.to(like.dtype) ** 2)
    rows = torch.arange(size, device=like.device)[:, None]
    # Clamping the positions repeats the border pixels.
    sources = (rows + offsets).clamp(0, size - 1)
    weights = (taps / taps.sum()).expand(size, -1)
    return like.new_zeros(size, size).scatter_add_(1, sources, weights)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) by a Gaussian cut off at four sigmas, repeating the border."""
    height, width = x.shape[-2:]
    return _gaussian_matrix(height, sigma, x) @ x @ _gaussian_matrix(width, sigma, x).T


def _disk(radius: float, alias: float) -> list[list[float]]:
    reach = int(radius)
    inside = {
        (i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1) if i * i + j * j <= radius * radius
    }
    # The disk's rim is smoothed by a Gaussian of this reach.
    rim = 1 if radius <= 8 else 2
    taps = [math.exp(-0.5 * (i / alias) ** 2) for i in range(-rim, rim + 1)]
    total = sum(taps) ** 2 * len(inside)
    side = range(-reach - rim, reach + rim + 1)
    return [
        [
            sum(
                taps[rim + di] * taps[rim + dj]
                for di in range(-rim, rim + 1)
                for dj in range(-rim, rim + 1)
                if (i - di, j - dj) in inside
            )
            / total
            for j in side
        ]
        for i in side
    ]


def defocus(x: Tensor, radius: float, alias: float) -> Tensor:
    """Blur images (N, C, H, W) by a disk whose rim is smoothed by a Gaussian, mirroring at the border pixels."""
    height, width = x.shape[-2:]
    # Single precision, as OpenCV keeps its kernels: 1/9 rounds up there, so nine equal pixels stay what they are.
    kernel = torch.tensor(_disk(radius, alias), dtype=torch.float32)
    reach = len(kernel) // 2
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    out = torch.zeros_like(x)
    for i, row in enumerate(kernel.tolist()):
        for j, weight in enumerate(row):
            if weight > 1e-12:
                out += weight * padded[:, :, i : i + height, j : j + width]
    return out


def motion(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Blur images (N, C, H, W) along a line at ``angle`` degrees, (N,), repeating the border.

    Half a Gaussian that starts at the pixel, as ImageMagick has it, so the image moves as well.
    """
    n, _, height, width = x.shape
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * math.ceil(radius) + 1)]
    total = sum(taps)
    radians = angle * (math.pi / 180)
    which = torch.arange(n, device=x.device)[:, None, None]
    last = x.movedim(1, -1)
    out = torch.zeros_like(last)
    for i, tap in enumerate(taps):
        # Beyond this weight a tap moves no pixel by a thousandth of a level.
        if tap / total < 1e-6:
            break
        down = torch.ceil(i * torch.sin(radians) - 0.5).long()[:, None]
        right = torch.ceil(i * torch.cos(radians) - 0.5).long()[:, None]
        rows = (torch.arange(height, device=x.device) + down).clamp(0, height - 1)
        columns = (torch.arange(width, device=x.device) + right).clamp(0, width - 1)
        out += tap / total * last[which, rows[:, :, None], columns[:, None, :]]
    return out.movedim(-1, 1)
