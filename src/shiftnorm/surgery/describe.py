"""Which norms a model has, where, and in which mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from shiftnorm.norms import Chain, RunningMoments
from shiftnorm.surgery.sites import Selector, Site, find_norms, select

__all__ = ["Description", "NormRow", "describe"]


class NormRow(NamedTuple):
    """One norm of a model.

    Example:
        >>> describe(nn.BatchNorm2d(3)).rows[0].moments
        'batch, updates running'

    Args:
        path: dotted name; "" is the model itself.
        type: class name.
        kind: see ``kind_of``.
        channels: C, where known.
        stage: number of the stage, from 1; None outside the known blocks.
        training: whether it is in training mode.
        moments: what it normalizes by in this mode.
        learns: whether its own parameters require a gradient; None without parameters.
        chain: path of the Chain it is part of, or None.
    """

    path: str
    type: str
    kind: str
    channels: int | None
    stage: int | None
    training: bool
    moments: str
    learns: bool | None
    chain: str | None


@dataclass(frozen=True)
class Description:
    """All norms of a model; ``print`` it.

    Example:
        >>> print(describe(nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(8)).eval()))
        Sequential: 2 norms (1 BatchNorm2d, 1 LayerNorm); 32 parameters, 32 of them in norms.
        path  type         channels  stage  mode  moments       learns
        0     BatchNorm2d  8         -      eval  running       yes
        1     LayerNorm    8         -      eval  own           yes

    Args:
        model: class name of the model.
        rows: its norms, in order.
        parameters: number of parameters of the model.
        in_norms: how many of them are the norms'.
        edits: the conversions made, as data.
    """

    model: str
    rows: tuple[NormRow, ...]
    parameters: int
    in_norms: int
    edits: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        counts = Counter(row.type for row in self.rows)
        kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        norms = f"{len(self.rows)} norm{'' if len(self.rows) == 1 else 's'}{f' ({kinds})' if kinds else ''}"
        head = f"{self.model}: {norms}; {self.parameters:,} parameters, {self.in_norms:,} of them in norms."
        if not self.rows:
            return head
        table = [("path", "type", "channels", "stage", "mode", "moments", "learns")]
        for row in self.rows:
            table.append(
                (
                    f"{row.path}{' (chain)' if row.chain is not None else ''}",
                    row.type,
                    "-" if row.channels is None else str(row.channels),
                    "-" if row.stage is None else str(row.stage),
                    "train" if row.training else "eval",
                    row.moments,
                    {True: "yes", False: "no", None: "-"}[row.learns],
                )
            )
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return "\n".join([head, *(line.rstrip() for line in lines)])

    def to_json(self) -> dict[str, Any]:
        """The description as plain data.

        Example:
            >>> describe(nn.BatchNorm2d(3)).to_json()["norms"][0]["channels"]
            3
        """
        return {
            "model": self.model,
            "parameters": self.parameters,
            "in_norms": self.in_norms,
            "norms": [row._asdict() for row in self.rows],
            "edits": list(self.edits),
        }


def describe(model: nn.Module, where: Selector = None) -> Description:
    """List the norms of a model: which, where, in which mode, normalizing by what.

    Example:
        >>> from shiftnorm.norms import BatchNorm
        >>> norm = BatchNorm(3).eval()
        >>> norm.source = "blend"
        >>> describe(norm).rows[0].moments
        '0.5 running + 0.5 batch'

    Args:
        model: any model.
        where: restricts the rows, see :func:`select`.

    Raises:
        ValueError: if ``where`` matches nothing.
    """
    from shiftnorm.surgery.convert import edits_of

    chains = [(path, module) for path, module in model.named_modules() if isinstance(module, Chain)]
    sites = find_norms(model)
    rows = tuple(_row(site, chains) for site in (select(sites, where) if where is not None else sites))
    seen = {id(parameter): _size(parameter) for site in sites for parameter in site.module.parameters()}
    total = sum(map(_size, model.parameters()))
    edits = tuple(edit.to_json() for edit in edits_of(model))
    return Description(type(model).__name__, rows, total, sum(seen.values()), edits)


def _size(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()


def _row(site: Site, chains: Sequence[tuple[str, nn.Module]]) -> NormRow:
    module = site.module
    own = [parameter.requires_grad for parameter in module.parameters()]
    chain = next((path for path, chain in chains if any(part is module for part in chain.children())), None)
    return NormRow(
        site.path,
        type(module).__name__,
        site.kind.name if site.kind else "",
        site.channels,
        site.stage,
        module.training,
        _moments(module, site.kind.name if site.kind else ""),
        any(own) if own else None,
        chain,
    )


def _moments(module: nn.Module, kind: str) -> str:
    if isinstance(module, RunningMoments) and module.pools_batch:
        ranks = " over ranks" if module.process_group is not None else ""
        if module.source == "blend":
            return f"{module.source_weight:g} running + {1 - module.source_weight:g} batch{ranks}"
        if module.source == "ema":
            return f"running, updated first{ranks}"
        updates = module.source == "auto" and module.training and module.running_mean is not None
        return f"batch{ranks}, updates running" if updates else f"batch{ranks}" if module.uses_batch else "running"
    if kind in ("batch", "sync batch"):
        running = getattr(module, "running_mean", None) is not None
        if module.training or not running:
            return "batch, updates running" if running and module.training else "batch"
        return "running"
    return "constant" if kind == "frozen batch" else "own"
