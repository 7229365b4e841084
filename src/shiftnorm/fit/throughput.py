"""How fast a network could be trained if nothing but its forward and backward pass took time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["measure_bare"]

_PRECISIONS: dict[str, Any] = {"bf16": torch.bfloat16, "16": torch.float16}


def measure_bare(
    model: nn.Module,
    *,
    batch_size: int,
    size: int,
    classes: int,
    device: torch.device,
    precision: str = "32",
    channels_last: bool = True,
    seconds: float = 2.0,
) -> float:
    """Images per second of forward and backward passes on one batch that lies ready.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> measure_bare(model, batch_size=2, size=8, classes=2, device=torch.device("cpu"), seconds=0.01) > 0
        True

    Args:
        model: the network; its gradients and running statistics change.
        batch_size: images of the batch.
        size: side of the images.
        classes: of the labels.
        device: where to run.
        precision: "32", "bf16" or "16".
        channels_last: memory format.
        seconds: how long to measure; at least three passes are made.

    Returns:
        The median.
    """
    layout: Any = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout).train()
    images = torch.randn(batch_size, 3, size, size, device=device).contiguous(memory_format=layout)
    labels = torch.arange(batch_size, device=device) % classes
    kind = _PRECISIONS.get(precision)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return batch_size / statistics.median(times[1:])  # the first one warms up
