"""Use of somebody's model that leaves it exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Borrowed", "borrowed", "device_of", "find_device"]


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU for a model without.

    Example:
        >>> device_of(nn.ReLU())
        device(type='cpu')
    """
    first = next(model.parameters(), None)
    first = next(model.buffers(), None) if first is None else first
    return torch.device("cpu") if first is None else first.device


def find_device(given: str | torch.device, *, who: str, what: str = "device") -> torch.device:
    """A device by its name, which must be one of this machine's.

    Example:
        >>> find_device("gpu", who="robustness")
        Traceback (most recent call last):
        ...
        ValueError: robustness: expected device such as cpu, cuda or cuda:1, got 'gpu'.

    Args:
        given: the device or its name.
        who: who asks.
        what: what the caller knows it by.

    Raises:
        ValueError: if there is no such kind of device, or none of its number here.
    """
    try:
        device = torch.device(given)
    except RuntimeError as fault:
        raise ValueError(f"{who}: expected {what} such as cpu, cuda or cuda:1, got {given!r}.") from fault
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"{who}: there is no {given} here, only {torch.cuda.device_count()} CUDA devices; use cpu.")
    return device


@final
class Borrowed:
    """A model in eval mode, whose buffers can be set back.

    Example:
        >>> with borrowed(nn.BatchNorm2d(2)) as loan:
        ...     _ = loan.model.running_mean.fill_(5.0)
        ...     loan.reset()
        ...     loan.model.running_mean
        tensor([0., 0.])

    Args:
        model: on the device it is used on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._held = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def reset(self) -> None:
        """Give every buffer the value it had at first; an adapting norm starts each cell anew.

        Example:
            >>> Borrowed(nn.BatchNorm2d(2)).reset()
        """
        for module, name, buffer, value in self._held:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextmanager
def borrowed(
    model: nn.Module, *, device: torch.device | None = None, channels_last: bool = False
) -> Iterator[Borrowed]:
    """Put a model into eval mode and onto a device for a while.

    At the end every module has its mode, and every parameter, gradient and buffer the very tensor it had, on its device
    and in its memory format; the states of torch's random generators are set back too.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
        >>> with borrowed(model, channels_last=True) as loan:
        ...     model.training, model[0].weight.is_contiguous(memory_format=torch.channels_last)
        (False, True)
        >>> model.training, model[0].weight.is_contiguous()
        (True, True)

    Args:
        model: the model.
        device: to use it on; default: where it is.
        channels_last: with weights in that memory format.

    Yields:
        The model, with its buffers' values.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors: list[tuple[Tensor, Tensor]] = []
    for parameter in model.parameters():
        tensors.append((parameter, parameter.data))
        if parameter.grad is not None:
            tensors.append((parameter.grad, parameter.grad.data))
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    used = torch.cuda.is_initialized() or (device is not None and device.type == "cuda")
    cuda = list(range(torch.cuda.device_count())) if used else []
    with torch.random.fork_rng(devices=cuda):
        try:
            if device is not None and device != device_of(model):
                model.to(device)
            if channels_last:
                model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (not in the stub)
            model.eval()
            loan = Borrowed(model)
            try:
                yield loan
            finally:
                loan.reset()
        finally:
            for tensor, data in tensors:
                tensor.data = data
            for module, held in buffers:
                module._buffers.update(held)
            for module, training in modes:
                module.training = training
