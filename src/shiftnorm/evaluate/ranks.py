"""The processes that share an evaluation, and how they fail together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, final

from torch import distributed

__all__ = ["Ranks"]

T = TypeVar("T")


@final
class Ranks:
    """The ranks of a torch.distributed group, or this process alone.

    Example:
        >>> alone = Ranks("alone")
        >>> alone.rank, alone.size, alone.agree("add", lambda: 1 + 1), alone.gather("x"), alone.share("y")
        (0, 1, 2, ['x'], 'y')

    Args:
        process_group: a group; None for the default group where torch.distributed is initialised, else this process;
            ``"alone"`` for this process whatever is initialised.

    Raises: TypeError for something else. ValueError if this process is not in the group.
    """

    def __init__(self, process_group: Any = None) -> None:
        running = distributed.is_available() and distributed.is_initialized()
        if isinstance(process_group, str):
            if process_group != "alone":
                raise TypeError(f"robustness: process_group must be a group, None or 'alone', got {process_group!r}.")
            running = False
        self._group: Any = process_group if running else None
        self._shared = running
        self.rank, self.size = 0, 1
        if running:
            self.rank, self.size = distributed.get_rank(self._group), distributed.get_world_size(self._group)
            if self.rank < 0:
                raise ValueError("robustness: this process is not in process_group; call robustness in its members.")

    def agree(self, what: str, action: Callable[[], T]) -> T:
        """Do something on every rank; if it fails on one, it fails on all, so that none waits for ever.

        Example:
            >>> Ranks("alone").agree("divide", lambda: 1 / 0)
            Traceback (most recent call last):
            ...
            ZeroDivisionError: division by zero

        Args:
            what: for the message of the other ranks.
            action: called once on each rank.

        Returns:
            The action's result on this rank.

        Raises:
            Exception: the action's own, on the rank where it failed.
            RuntimeError: on the other ranks; it names the rank that failed and why.
        """
        result: Any = None
        failure: Exception | None = None
        try:
            result = action()
        except Exception as fault:  # any: the other ranks must hear of it, or they wait for ever
            if not self._shared:
                raise
            failure = fault
        if self._shared:
            told = None if failure is None else f"{type(failure).__name__}: {failure}"
            everyone: list[Any] = [None] * self.size
            distributed.all_gather_object(everyone, told, group=self._group)
            if failure is not None:
                raise failure
            broken = [f"rank {rank}: {text}" for rank, text in enumerate(everyone) if text is not None]
            if broken:
                raise RuntimeError(f"robustness: {what} failed on {'; '.join(broken)}")
        return result

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on rank 0 in the order of ranks; elsewhere an empty list.

        Example:
            >>> Ranks("alone").gather(3)
            [3]
        """
        if not self._shared:
            return [value]
        root = distributed.get_global_rank(self._group, 0) if self._group is not None else 0
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, values, dst=root, group=self._group)
        return values or []

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank.

        Example:
            >>> Ranks("alone").share("settings")
            'settings'
        """
        if not self._shared:
            return value
        root = distributed.get_global_rank(self._group, 0) if self._group is not None else 0
        values: list[Any] = [value if self.rank == 0 else None]
        distributed.broadcast_object_list(values, src=root, group=self._group)
        return values[0]
