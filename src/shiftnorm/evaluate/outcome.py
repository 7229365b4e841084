"""What a network did on each image of one cell (a corruption at a severity), as compact tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from shiftnorm.evaluate.classification import brier_per_image, label_ranks, log_probabilities
from shiftnorm.tensor_file import safetensors_for, write_tensors

__all__ = ["CellOutcome", "merge", "read_metadata"]

_FORMAT: Final = "shiftnorm.cell/1"
_WHO: Final = "CellOutcome files"
_DTYPES: Final = {
    "index": torch.int64,
    "label": torch.int32,
    "predicted": torch.int32,
    "top5": torch.bool,
    "confidence": torch.float32,
    "nll": torch.float32,
    "brier": torch.float32,
}


@final
@dataclass(frozen=True, eq=False)
class CellOutcome:
    """Per image of one cell: what was predicted, how surely, and what it cost. 29 bytes an image.

    Example:
        >>> cell = CellOutcome.from_logits(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        >>> cell.error, cell.correct
        (50.0, tensor([ True, False]))

    Args:
        index: (N,) int64 number of each image in its data set.
        label: (N,) int32 class indices.
        predicted: (N,) int32 class with the largest score.
        top5: (N,) bool, whether the label is among the five largest scores; always with five classes or fewer.
        confidence: (N,) float32 largest probability.
        nll: (N,) float32 negative log-likelihood of the label, in nats.
        brier: (N,) float32 Brier score, 0 to 2.

    Raises: ValueError if the tensors are not of one length, or of other dtypes than these.
    """

    index: Tensor
    label: Tensor
    predicted: Tensor
    top5: Tensor
    confidence: Tensor
    nll: Tensor
    brier: Tensor

    def __post_init__(self) -> None:
        found = {name: (tuple(getattr(self, name).shape), getattr(self, name).dtype) for name in _DTYPES}
        if {shape for shape, _ in found.values()} != {(len(self.index),)} or any(
            dtype != _DTYPES[name] for name, (_, dtype) in found.items()
        ):
            raise ValueError(f"CellOutcome: expected tensors (N,) of dtypes {_DTYPES}, got {found}.")

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, start: int = 0) -> CellOutcome:
        """The outcome of a batch from its logits.

        Example:
            >>> CellOutcome.from_logits(torch.zeros(2, 3), torch.tensor([0, 1]), start=10).index
            tensor([10, 11])

        Args:
            logits: (N, classes) on any device.
            labels: (N,) class indices.
            index: (N,) number of each image in its data set; default: start, start + 1, ...
            start: number of the first image, where no index is given.

        Returns:
            The outcome, on the CPU.

        Raises:
            ValueError: if shapes do not belong together, a label is no class index, or a logit is NaN.
        """
        return cls._measured(logits, labels, index, start, probabilities=False)

    @classmethod
    def from_probabilities(
        cls, probabilities: Tensor, labels: Tensor, *, index: Tensor | None = None, start: int = 0
    ) -> CellOutcome:
        """The outcome of a batch from its class probabilities.

        Example:
            >>> CellOutcome.from_probabilities(torch.tensor([[0.25, 0.75]]), torch.tensor([1])).confidence
            tensor([0.7500])

        Args:
            probabilities: (N, classes) with rows that add up to 1.
            labels: as for `from_logits`, and so those that follow.
            index: see there.
            start: see there.

        Returns:
            The outcome, on the CPU.

        Raises:
            ValueError: as `from_logits` does, or if these are no probabilities.
        """
        return cls._measured(probabilities, labels, index, start, probabilities=True)

    @classmethod
    def _measured(
        cls, scores: Tensor, labels: Tensor, index: Tensor | None, start: int, *, probabilities: bool
    ) -> CellOutcome:
        labels = labels.to(scores.device)
        ranks = label_ranks(scores, labels)
        log = log_probabilities(scores, probabilities=probabilities)
        top, predicted = log.max(1)
        if index is None:
            index = torch.arange(start, start + len(labels))
        measured = {
            "index": index,
            "label": labels,
            "predicted": predicted,
            # the rank and the maximum may name different classes where scores tie
            "top5": (ranks < 5) | (predicted == labels),
            "confidence": top.exp(),
            "nll": log.gather(1, labels[:, None]).squeeze(1).abs(),
            "brier": brier_per_image(scores, labels, probabilities=probabilities),
        }
        return cls(**{name: tensor.detach().to("cpu", _DTYPES[name]) for name, tensor in measured.items()})

    @property
    def correct(self) -> Tensor:
        """(N,) bool, whether the prediction is the label.

        Example:
            >>> CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0])).correct
            tensor([ True, False])
        """
        return self.predicted == self.label

    @property
    def error(self) -> float:
        """Top-1 error in percent.

        Example:
            >>> CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0])).error
            50.0

        Raises:
            ValueError: if the cell has no image.
        """
        return self._percent_wrong(self.correct)

    @property
    def top5_error(self) -> float:
        """Top-5 error in percent.

        Example:
            >>> CellOutcome.from_logits(torch.eye(8), torch.tensor([7] * 7 + [0])).top5_error
            87.5

        Raises:
            ValueError: if the cell has no image.
        """
        return self._percent_wrong(self.top5)

    def _percent_wrong(self, right: Tensor) -> float:
        if len(self) == 0:
            raise ValueError("CellOutcome: a cell without images has no error.")
        return 100.0 * (len(self) - int(right.sum())) / len(self)

    def to_file(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the cell to a safetensors file, which appears whole or not at all.

        Example:
            >>> import tempfile
            >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
            >>> path = cell.to_file(Path(tempfile.mkdtemp()) / "fog-3.safetensors", {"severity": 3})
            >>> CellOutcome.from_file(path).error, read_metadata(path)
            (50.0, {'severity': 3})

        Args:
            path: the file; its folder is made.
            metadata: what JSON can hold, for `read_metadata`.

        Returns:
            The path.

        Raises:
            ModuleNotFoundError: if safetensors is not installed.
            TypeError: if JSON cannot hold the metadata.
        """
        header = {"format": _FORMAT, "metadata": json.dumps(dict(metadata or {}))}
        tensors = {name: getattr(self, name).contiguous() for name in _DTYPES}
        return write_tensors(Path(path), tensors, header, who=_WHO)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> CellOutcome:
        """Read a cell that `to_file` wrote; nothing in the file is executed.

        Example:
            >>> CellOutcome.from_file("no-such-file.safetensors")
            Traceback (most recent call last):
            ...
            FileNotFoundError: CellOutcome: no file no-such-file.safetensors.

        Args:
            path: the file.

        Returns:
            The cell.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, or is no cell.
        """
        read_metadata(path)
        tensors = safetensors_for(_WHO).load_file(str(path))
        if tensors.keys() != _DTYPES.keys():
            raise ValueError(
                f"CellOutcome: {Path(path).name} should hold {sorted(_DTYPES)}, it holds {sorted(tensors)}. "
                "Delete the file to measure the cell again."
            )
        return cls(**tensors)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that was passed to `CellOutcome.to_file`.

    Example:
        >>> import tempfile
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> read_metadata(cell.to_file(Path(tempfile.mkdtemp()) / "cell.safetensors"))
        {}

    Args:
        path: the file.

    Returns:
        The metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or is no cell.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"CellOutcome: no file {path}.")
    safetensors_for(_WHO)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        found = json.loads(header.get("metadata", "null"))
    except (SafetensorError, json.JSONDecodeError) as fault:
        raise ValueError(
            f"CellOutcome: {path.name} is damaged ({fault}). Delete the file to measure the cell again."
        ) from None
    if header.get("format") != _FORMAT or not isinstance(found, dict):
        raise ValueError(
            f"CellOutcome: expected a file of format {_FORMAT!r}, {path.name} has {header.get('format')!r}. "
            "Delete the file to measure the cell again."
        )
    return found


def merge(shards: Sequence[CellOutcome], *, expected: int | None = None) -> CellOutcome:
    """Join what several processes or batches measured of one cell, in the order of the images.

    An image that occurs in several shards, as the padding of a distributed sampler does, counts once: the first one.

    Example:
        >>> even = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 1]), index=torch.tensor([0, 2]))
        >>> odd = CellOutcome.from_logits(torch.eye(2), torch.tensor([1, 1]), index=torch.tensor([1, 2]))
        >>> merge([even, odd]).correct
        tensor([ True, False,  True])

    Args:
        shards: at least one.
        expected: size of the data set; the joint cell must then hold the images 0 to expected - 1.

    Returns:
        The cell, sorted by index.

    Raises:
        ValueError: if there is no shard, an image has two labels, or images are missing or too many.
    """
    if not shards:
        raise ValueError("merge: expected at least one shard, got none.")
    joined = {name: torch.cat([getattr(shard, name) for shard in shards]) for name in _DTYPES}
    order = joined["index"].argsort(stable=True)
    joined = {name: tensor[order] for name, tensor in joined.items()}
    again = joined["index"][1:] == joined["index"][:-1]
    if bool((again & (joined["label"][1:] != joined["label"][:-1])).any()):
        raise ValueError("merge: an image has different labels in two shards; they are not of the same data set.")
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = ~again
    cell = CellOutcome(**{name: tensor[first] for name, tensor in joined.items()})
    if expected is not None and not torch.equal(cell.index, torch.arange(expected)):
        span = f", numbered {int(cell.index[0])} to {int(cell.index[-1])}" if len(cell) else ""
        raise ValueError(f"merge: expected the images 0 to {expected - 1}, got {len(cell)}{span}.")
    return cell
