"""What the networks for small images and the densely connected ones put in the places that they leave open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

from torch import nn

from shiftnorm.models.slots import (
    SLOTS,
    NormFactory,
    build_norm,
    build_slot,
    build_slots,
    known_slots,
    known_stages,
    one_per_stage,
)

__all__ = ["Places"]


@final
class Places:
    """The arguments that fill a network's places, checked, and the modules they stand for.

    Example:
        >>> places = Places("WideResNet", (1, 2, 3), norm=nn.BatchNorm2d, slots={"post": nn.InstanceNorm2d})
        >>> places.norm(4), places.slot("post", 4), places.slot("pre", 4)
        (BatchNorm2d(4, ...), InstanceNorm2d(4, ...), Identity())

    Args:
        owner: the network, for the errors.
        stages: the numbers of its stages from 1, and 0 where a module can follow the stem too.
        slot_names: the slots that its blocks have.
        norm: builds every norm from its channel count.
        inner_norm: one entry per stage; builds some norms of each block instead of ``norm`` (None: use ``norm``).
        slots: builds a module for a place in every block, by the slot's name.
        stage_slots: builds a module that follows a whole stage, by the stage's number.
        dropout: probability of dropping a value where the blocks have a dropout.

    Raises:
        ValueError: an unknown slot or stage, another number of entries in ``inner_norm``, or ``dropout`` out of range.
            The methods raise TypeError as ``build`` does.
    """

    def __init__(
        self,
        owner: str,
        stages: Collection[int],
        slot_names: Collection[str] = SLOTS,
        *,
        norm: NormFactory,
        inner_norm: Sequence[NormFactory | None] | None = None,
        slots: Mapping[str, NormFactory] | None = None,
        stage_slots: Mapping[int, NormFactory] | None = None,
        dropout: float = 0.0,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"{owner}: dropout must be in [0, 1), got {dropout}")
        self.owner = owner
        self._norm = norm
        self._slots = known_slots(slots, slot_names, owner=owner)
        self._stage_slots = known_stages(stage_slots, stages, owner=owner)
        self._inner_norm = one_per_stage(
            inner_norm, max(stages), owner=owner, argument="inner_norm", otherwise="use norm"
        )
        self._dropout = dropout

    def norm(self, channels: int, *, inner: int | None = None) -> nn.Module:
        """Make a norm.

        Example:
            >>> places = Places("WideResNet", (1, 2), norm=nn.BatchNorm2d, inner_norm=[nn.InstanceNorm2d, None])
            >>> places.norm(4), places.norm(4, inner=1), places.norm(4, inner=2)
            (BatchNorm2d(4, ...), InstanceNorm2d(4, ...), BatchNorm2d(4, ...))

        Args:
            channels: its channel count.
            inner: number of the stage whose entry of ``inner_norm`` is for this norm; None if no entry is.

        Returns:
            The new module.
        """
        instead = None if inner is None else self._inner_norm[inner - 1]
        return build_norm(self._norm, instead, channels, owner=self.owner)

    def slot(self, name: str, channels: int) -> nn.Module:
        """Make the module of one slot, or an Identity for an empty one.

        Example:
            >>> Places("WideResNet", (1, 2), norm=nn.BatchNorm2d).slot("post", 4)
            Identity()

        Args:
            name: the slot.
            channels: channel count at this place.

        Returns:
            The new module.
        """
        return build_slot(self._slots, name, channels, owner=self.owner)

    def around(
        self, in_channels: int, out_channels: int, *, identity: bool = True
    ) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """Make the modules of the four slots around a residual branch.

        Example:
            >>> places = Places("WideResNet", (1, 2), norm=nn.BatchNorm2d, slots={"identity": nn.BatchNorm2d})
            >>> places.around(4, 8)
            (Identity(), Identity(), BatchNorm2d(8, ...), Identity())

        Args:
            in_channels: channels of the block's input.
            out_channels: channels of its output.
            identity: False leaves ``"identity"`` empty.

        Returns:
            The modules of ``"pre"``, ``"residual"``, ``"identity"`` and ``"post"``.
        """
        slots = {name: factory for name, factory in self._slots.items() if identity or name != "identity"}
        return build_slots(slots, in_channels, out_channels, owner=self.owner)

    def after(self, stage: int, channels: int) -> nn.Module:
        """Make the module that follows a whole stage, or an Identity where there is none.

        Example:
            >>> Places("WideResNet", (1, 2), norm=nn.BatchNorm2d, stage_slots={1: nn.InstanceNorm2d}).after(1, 4)
            InstanceNorm2d(4, ...)

        Args:
            stage: its number.
            channels: channels of its output.

        Returns:
            The new module.
        """
        return build_slot(self._stage_slots, stage, channels, owner=self.owner, argument="stage_slots")

    def dropout(self) -> nn.Module:
        """Make a dropout, or an Identity if its probability is 0.

        Example:
            >>> Places("WideResNet", (1, 2), norm=nn.BatchNorm2d, dropout=0.5).dropout()
            Dropout(p=0.5, inplace=False)

        Returns:
            The new module.
        """
        return nn.Dropout(self._dropout) if self._dropout > 0 else nn.Identity()
