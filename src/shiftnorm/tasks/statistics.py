"""What extra forward passes do to running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, final

from torch import Tensor, nn

__all__ = ["PassStatistics"]


@final
class PassStatistics(nn.Module):
    """Decide whether a network's running statistics learn from extra forward passes on augmented images.

    A consistency loss passes the same images through the network several times in training mode, and every pass moves
    the running moments of its norms, by which the network is evaluated. Three choices:

    * "shared": every pass counts, as in the authors' code.
    * "frozen": extra passes read the statistics and leave them as the clean pass made them.
    * "separate": extra passes have running statistics of their own; evaluation uses those of the clean passes.

    A pass over clean and AugMix images together, as AugMix trains, is one pass and no extra one.

    It holds for every buffer called ``running_...`` or ``num_batches_tracked``: all norms of this package (gates of
    SelfNorm included), torch's BatchNorm, InstanceNorm and SyncBatchNorm, and modules that follow their names.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1, momentum=1.0)
        >>> statistics = PassStatistics(norm, "frozen")
        >>> _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> with statistics.extra_pass():
        ...     _ = norm(torch.tensor([[100.0], [300.0]]))
        >>> norm.running_mean
        tensor([2.])

    Args:
        model: the network; build this after the last edit of it.
        choice: "shared", "frozen" or "separate".

    State: with "separate" the second set, under the names it has in the model; nothing otherwise.
    Raises: ValueError for an unknown choice.
    Cost: a copy of (C,) tensors per extra pass with "frozen", nothing otherwise.
    """

    def __init__(self, model: nn.Module, choice: Literal["shared", "frozen", "separate"] = "shared") -> None:
        super().__init__()
        if choice not in ("shared", "frozen", "separate"):
            raise ValueError(f"PassStatistics: expected 'shared', 'frozen' or 'separate', got {choice!r}.")
        self.choice: Literal["shared", "frozen", "separate"] = choice
        owners: list[tuple[nn.Module, nn.Module, str]] = []
        for path, module in [] if choice == "shared" else model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name.startswith("running_") or name == "num_batches_tracked":
                    place = self._place(path) if choice == "separate" else self
                    if choice == "separate":
                        place.register_buffer(name, buffer.detach().clone())
                    owners.append((module, place, name))
        # In a tuple, so that the network does not become a part of this module.
        self._owners = tuple(owners)

    def _place(self, path: str) -> nn.Module:
        place: nn.Module = self
        for piece in path.split(".") if path else ():
            if piece not in dict(place.named_children()):
                place.add_module(piece, nn.Module())
            place = place.get_submodule(piece)
        return place

    @contextmanager
    def extra_pass(self) -> Iterator[None]:
        """Let the forward passes inside be extra ones.

        Buffers change places rather than values: autograd may still need the values, and a compiled network sees
        tensors of the same kind and does not compile again.

        Example:
            >>> import torch
            >>> norm = nn.BatchNorm1d(1, momentum=1.0)
            >>> statistics = PassStatistics(norm, "separate")
            >>> with statistics.extra_pass():
            ...     _ = norm(torch.tensor([[1.0], [3.0]]))
            >>> norm.running_mean, statistics.running_mean
            (tensor([0.]), tensor([2.]))
        """
        clean: list[Tensor] = []
        for module, place, name in self._owners:
            own = module.get_buffer(name)
            clean.append(own)
            module._buffers[name] = place.get_buffer(name) if self.choice == "separate" else own.clone()
        try:
            yield
        finally:
            for (module, place, name), own in zip(self._owners, clean, strict=True):
                if self.choice == "separate":
                    place._buffers[name] = module.get_buffer(name)
                module._buffers[name] = own
