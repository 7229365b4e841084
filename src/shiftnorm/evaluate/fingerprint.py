"""Digests of a model, a data set and the corruptions' code: equal for two measurements of the same thing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from shiftnorm.data import corruptions
from shiftnorm.data.dataset import Dataset
from shiftnorm.evaluate.progress import plural

__all__ = [
    "CONTENTS",
    "batch_remarks",
    "digest_corruptions",
    "digest_data",
    "digest_files",
    "digest_model",
    "norms_using_batch",
    "other_contents",
]

# What an identity has beside the digest of the data, where that takes files by their names and sizes.
CONTENTS: Final = "contents"

_BATCH = 1024


def digest_model(model: nn.Module) -> str:
    """SHA-256 of a model's structure, parameters, buffers, and the sources of its norms' moments.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> before = digest_model(model)
        >>> with torch.no_grad():
        ...     _ = model[0].bias.add_(1)
        >>> digest_model(model) == before
        False

    Args:
        model: any, on any device; training or eval mode makes no difference.

    Returns:
        64 hexadecimal digits.
    """
    model = getattr(model, "_orig_mod", model)
    sha = hashlib.sha256()
    # Functions show their addresses, which are others in each process.
    sha.update(re.sub(r"0x[0-9a-fA-F]+", "", repr(model)).encode())
    for path, module in model.named_modules():
        if isinstance(source := getattr(module, "source", None), str):
            sha.update(f"{path}:{source}:{getattr(module, 'source_weight', None)}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def digest_data(data: Dataset) -> str:
    """SHA-256 of the images, or of what their files' checksum says, with labels and numbers.

    Example:
        >>> from shiftnorm.data import Dataset
        >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
        >>> digest_data(pets) == digest_data(pets.subset([0, 1, 2]))
        False

    Args:
        data: images in memory are read, files are taken by their checksum (`Provenance.checksum`).

    Returns:
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for tensor in (data.labels, data.numbers, data.class_subset):
        sha.update(b"-" if tensor is None else _bytes(tensor))
    if data.provenance.files:
        # The notes name the preprocessing, and the pixels say which files and rows were chosen.
        sha.update(f"{data.provenance.checksum}:{data.provenance.notes}".encode())
    else:
        for start in range(0, len(data), _BATCH):
            sha.update(_bytes(data.images(slice(start, start + _BATCH))))
    return sha.hexdigest()


def other_contents(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of files that are alike in names and sizes, and not in contents.

    Example:
        >>> other_contents({"contents": "0f"}, {"contents": "f0"}), other_contents({"contents": "0f"}, {})
        (True, False)

    Args:
        first: of one result; one of an earlier version may not have the contents.
        second: of another.
    """
    return CONTENTS in first and CONTENTS in second and first[CONTENTS] != second[CONTENTS]


def digest_corruptions() -> str:
    """SHA-256 of the source of every corruption.

    Example:
        >>> len(digest_corruptions())
        64
    """
    folder = Path(corruptions.__file__).parent
    return digest_files(sorted(folder.glob("*.py")), contents=True)


def digest_files(files: list[Path], *, contents: bool = False) -> str:
    """SHA-256 of the files' names with their sizes, or with their contents.

    Example:
        >>> digest_files([])[:8]
        'e3b0c442'

    Args:
        files: the files, in this order.
        contents: read them.

    Returns:
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name}\n".encode())
        sha.update(file.read_bytes() if contents else str(file.stat().st_size).encode())
    return sha.hexdigest()


def norms_using_batch(model: nn.Module) -> list[str]:
    """Paths of the norms that, in the present mode, normalize by the moments of the batch.

    Example:
        >>> norms_using_batch(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)).eval())
        ['1']

    Args:
        model: in the mode it will be measured in.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        ours: Any = getattr(module, "uses_batch", False)
        torchs = isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        )
        if ours is True or torchs:
            found.append(path)
    return found


def batch_remarks(norms: list[str], batch_size: int) -> list[str]:
    """A sentence for a result on norms that `norms_using_batch` found; none without them.

    Example:
        >>> batch_remarks(["bn1"], 8)[0]
        "1 norm, such as 'bn1', uses the moments of each batch, so the numbers depend on the batch size (8) and ..."
    """
    if not norms:
        return []
    verb = "uses" if len(norms) == 1 else "use"
    return [
        f"{len(norms)} {plural('norm', len(norms))}, such as {norms[0]!r}, {verb} the moments of each batch, so the "
        f"numbers depend on the batch size ({batch_size}) and the order of the images."
    ]


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach()
    plain = plain.dequantize() if plain.is_quantized else plain
    plain = plain.to_dense() if plain.layout != torch.strided else plain
    return plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
