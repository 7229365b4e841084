"""Which images make which batch of which epoch, and how far a run has come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from shiftnorm.data.corruptions.draws import Stream

__all__ = ["EpochOrder"]


@final
class EpochOrder:
    """The order of the images in every epoch, cut into batches for one of ``world`` processes.

    The order is a function of (seed, epoch) alone: images are sorted by random words of their own. A batch of all
    processes together is a run of ``batch_size * world`` images of it, of which every process takes its own part, so
    that 2 processes with 64 images each see the batches of one process with 128. All processes have the same number
    of batches of the same size, and no image comes twice in an epoch. What does not fill a batch is left out, or with
    ``drop_last=False`` makes a smaller one, shared equally; then fewer than ``world`` images are left out.

    Each pass is the next epoch. The position moves on when a batch is handed out, and with the last batch of an epoch
    it is the beginning of the next.

    Example:
        >>> order = EpochOrder(10, batch_size=4, drop_last=False)
        >>> [(epoch, len(chosen)) for epoch, chosen in order]
        [(0, 4), (0, 4), (0, 2)]
        >>> order.state_dict()["epoch"], order.state_dict()["batches"]
        (1, 0)

    Args:
        count: images.
        batch_size: images of a batch in each process; where there are fewer, one batch holds them all.
        seed: of the order.
        rank: number of this process.
        world: how many there are.
        drop_last: leave out an incomplete last batch.
        device: of the indices.

    State: the epoch and the number of its batches that were handed out.
    Raises: ValueError if there are fewer images than processes, or for an impossible batch_size, rank or world.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or count < world:
            raise ValueError(
                "EpochOrder: expected at least one image for each process, batch_size >= 1 and 0 <= rank < world, "
                f"got {count} images, batch_size {batch_size}, rank {rank}, world {world}."
            )
        self.count, self.seed, self.rank, self.world, self.drop_last = count, seed, rank, world, drop_last
        self.batch_size = min(batch_size, count // world)
        self.device = torch.device(device)
        self.epoch, self.done = 0, 0
        # Whether a pass over the present epoch has begun: then the next pass is another epoch.
        self._begun = False

    def __len__(self) -> int:
        """Batches in one epoch."""
        full, left = divmod(self.count, self.batch_size * self.world)
        return full + (not self.drop_last and left >= self.world)

    def of_epoch(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, as indices.

        Example:
            >>> one = torch.cat(EpochOrder(8, batch_size=4).of_epoch(3))
            >>> two = [EpochOrder(8, batch_size=2, rank=rank, world=2).of_epoch(3) for rank in (0, 1)]
            >>> torch.equal(one, torch.cat([two[0][0], two[1][0], two[0][1], two[1][1]]))
            True

        Args:
            epoch: its number, from 0.

        Returns:
            As many (batch,) int64 tensors as there are batches.
        """
        images = torch.arange(self.count, device=self.device)
        # Whole numbers are the same on every device.
        order = Stream(self.seed, "order", epoch, images).bits(1)[:, 0].argsort(stable=True)
        batches = []
        for together in order.split(self.batch_size * self.world)[: len(self)]:
            share = len(together) // self.world
            batches.append(together[self.rank * share : (self.rank + 1) * share])
        return batches

    def upcoming(self) -> tuple[int, list[Tensor]]:
        """The epoch of the next pass and the batches it will have, without beginning it.

        Example:
            >>> order = EpochOrder(8, batch_size=4)
            >>> order.skip(1)
            >>> epoch, batches = order.upcoming()
            >>> epoch, len(batches)
            (0, 1)

        Returns:
            The epoch's number and the indices of its batches, less those that are skipped.
        """
        epoch, first = (self.epoch + 1, 0) if self._begun else (self.epoch, self.done)
        return epoch, self.of_epoch(epoch)[first:]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the epoch and the indices of each remaining batch of the next pass."""
        if self._begun:
            self._begin(self.epoch + 1)
        epoch, first = self.epoch, self.done
        self._begun = True
        if first == len(self):
            self._begin(epoch + 1)
        for number, chosen in enumerate(self.of_epoch(epoch)[first:], first + 1):
            self.done = number
            # A trainer that counts batches never asks for one after the last.
            if number == len(self):
                self._begin(epoch + 1)
            yield epoch, chosen

    def _begin(self, epoch: int) -> None:
        self.epoch, self.done, self._begun = epoch, 0, False

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass one of ``epoch``.

        Where the next pass is one of that epoch already, nothing changes, so that batches which `skip` or
        `load_state_dict` leave out stay left out.

        Example:
            >>> order = EpochOrder(8, batch_size=4)
            >>> order.set_epoch(7)
            >>> [epoch for epoch, _ in order]
            [7, 7]

        Args:
            epoch: its number, from 0.

        Raises:
            ValueError: if it is negative.
        """
        if epoch < 0:
            raise ValueError(f"EpochOrder.set_epoch: expected an epoch >= 0, got {epoch}.")
        if epoch != self.epoch or self._begun:
            self._begin(epoch)

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the next pass, because they have been trained on.

        Example:
            >>> order = EpochOrder(8, batch_size=2)
            >>> order.skip(3)
            >>> len(list(order)), len(list(order))
            (1, 4)

        Args:
            batches: how many, counted from the beginning of the epoch.

        Raises:
            ValueError: if an epoch has fewer batches.
        """
        if not 0 <= batches <= len(self):
            raise ValueError(f"EpochOrder.skip: expected 0 to {len(self)} batches of an epoch, got {batches}.")
        if self._begun:
            self._begin(self.epoch + 1)
        self.done = batches

    def state_dict(self) -> dict[str, int | bool]:
        """The position, and what it depends on, in whole numbers; the same in every process.

        Example:
            >>> EpochOrder(8, batch_size=2, seed=5).state_dict()
            {'epoch': 0, 'batches': 0, 'images': 8, 'together': 2, 'seed': 5, 'drop_last': True}
        """
        return {"epoch": self.epoch, "batches": self.done, **self._identity()}

    def _identity(self) -> dict[str, int | bool]:
        together = self.batch_size * self.world
        return {"images": self.count, "together": together, "seed": self.seed, "drop_last": self.drop_last}

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Continue where another run stopped; it may have had other processes that made the same batches together.

        Example:
            >>> first, second = EpochOrder(8, batch_size=4), EpochOrder(8, batch_size=2, world=2)
            >>> _ = next(iter(first))
            >>> second.load_state_dict(first.state_dict())
            >>> len(list(second))
            1

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: if it is the position in another order.
        """
        for name, expected in self._identity().items():
            if state.get(name) != expected:
                raise ValueError(
                    f"EpochOrder.load_state_dict: the position is one in an order with {name}={state.get(name)}, this "
                    f"one has {name}={expected}; resume with the settings of the first run."
                )
        self._begin(int(state["epoch"]))
        self.done = int(state["batches"])
