"""Which CrossNorm layers of a network act in a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiftnorm.norms.cross_norm import CrossNorm

__all__ = ["CrossNormController"]


class CrossNormController:
    """Draw, once per training step, the CrossNorm layers that act in it.

    With probability ``p`` a step is augmented, and then ``active_num`` layers, uniformly without replacement, act. The
    decision is a tensor on the layers' device, written into their ``active`` flags: no synchronisation, no Python
    branch, no recompilation. Call :meth:`step` before the forward pass; layers stay inactive until the first call, and
    :meth:`clear` makes them so for a clean pass.

    Example:
        >>> from shiftnorm.norms import CNSN
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), CNSN(8), nn.Conv2d(8, 8, 3), CNSN(8))
        >>> controller = CrossNormController(net, active_num=1, p=1.0, seed=0)
        >>> controller.step().sum()
        tensor(1)

    Args:
        model: the network; its CrossNorm layers are found in module order.
        active_num: how many layers act in an augmented step.
        p: probability that a step is augmented.
        seed: equal seeds draw equal layers.
        per_rank: False draws the same layers on every rank of a distributed job; True draws anew on each.

    Raises:
        ValueError: if the model has no CrossNorm, fewer than ``active_num``, or p is outside [0, 1].

    Source: Tang et al., ICCV 2021, the ``active_num`` and ``cnsn_prob`` of the released scripts.
    Differences: the authors keep the flags as Python attributes, which DataParallel replicas and compiled graphs lose.
    """

    def __init__(
        self, model: nn.Module, active_num: int = 1, p: float = 0.5, *, seed: int = 0, per_rank: bool = False
    ) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, CrossNorm)]
        if not self.layers:
            raise ValueError("CrossNormController: expected a model with CrossNorm layers, found none.")
        if not 1 <= active_num <= len(self.layers):
            raise ValueError(
                f"CrossNormController: expected active_num from 1 to the model's {len(self.layers)} CrossNorm layers, "
                f"got {active_num}."
            )
        if not 0 <= p <= 1:
            raise ValueError(f"CrossNormController: expected p in [0, 1], got {p}.")
        self.active_num, self.p = active_num, p
        self.seed, self.per_rank = seed, per_rank
        self.steps = 0
        self.clear()

    def step(self) -> Tensor:
        """Draw the layers that act from now on.

        Example:
            >>> net = nn.Sequential(CrossNorm(), CrossNorm(), CrossNorm())
            >>> int(CrossNormController(net, active_num=2, p=1.0).step().sum())
            2

        Returns:
            (L,) bool tensor on the device of the first layer: which of ``self.layers`` act.
        """
        device = self.layers[0].active.device
        # Seeded anew for every step, so that the state is a number that means the same on every rank and device kind.
        generator = torch.Generator(device).manual_seed(_mix(self.seed, self._rank(), self.steps))
        self.steps += 1
        order = torch.rand(len(self.layers), device=device, generator=generator).argsort().argsort()
        augmented = torch.rand((), device=device, generator=generator) < self.p
        active = (order < self.active_num) & augmented
        torch._foreach_copy_([layer.active for layer in self.layers], list(active.unbind()))  # pyright: ignore
        return active

    def _rank(self) -> int:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_rank() if self.per_rank and distributed else 0

    def clear(self) -> None:
        """Make every layer inactive.

        Example:
            >>> net = nn.Sequential(CrossNorm())
            >>> CrossNormController(net).clear()
            >>> net[0].active
            tensor(False)
        """
        for layer in self.layers:
            layer.active.fill_(False)

    def state_dict(self) -> dict[str, Any]:
        """Seed and step, so that a resumed run draws on as if it had not stopped; the same on every rank.

        Example:
            >>> controller = CrossNormController(nn.Sequential(CrossNorm()))
            >>> controller.load_state_dict(controller.state_dict())
        """
        return {"seed": self.seed, "steps": self.steps, "active": [bool(layer.active) for layer in self.layers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state :meth:`state_dict` returned.

        Example:
            >>> first, second = (CrossNormController(nn.Sequential(CrossNorm(), CrossNorm())) for _ in range(2))
            >>> _ = first.step()
            >>> second.load_state_dict(first.state_dict())
            >>> torch.equal(first.step(), second.step())
            True

        Raises:
            ValueError: if the state is of a model with another number of CrossNorm layers.
        """
        if len(state["active"]) != len(self.layers):
            raise ValueError(
                f"CrossNormController: expected the state of {len(self.layers)} CrossNorm layers, "
                f"got one of {len(state['active'])}."
            )
        self.seed, self.steps = state["seed"], state["steps"]
        for layer, active in zip(self.layers, state["active"], strict=True):
            layer.active.fill_(active)


def _mix(*numbers: int) -> int:
    # One well-spread 63-bit seed from several small numbers (the finaliser of SplitMix64 after each).
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = ((state ^ (state >> shift)) * factor) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
