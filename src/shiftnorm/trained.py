"""Networks that `shiftnorm compare` trained, kept as files from which they can be built again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from shiftnorm.data.checksums import write_whole
from shiftnorm.variants import build

__all__ = ["FOLDER", "find_network", "is_network", "load_network", "pack_network", "write_network"]

FOLDER: Final = "networks"
SUFFIX: Final = ".safetensors"
_KEY: Final = "shiftnorm.compare"
_FORMAT: Final = 1
_FIELDS: Final[dict[str, type]] = {
    "format": int,
    "norm": str,
    "seed": int,
    "depth": int,
    "widen_factor": int,
    "num_classes": int,
    "classes": list,
    "mean": list,
    "std": list,
    "images": dict,
}
# Of a stranger's file: a network must not be built that could not be in it.
_LARGEST: Final = {"depth": 400, "widen_factor": 64, "num_classes": 1_000_000}


def pack_network(
    model: nn.Module,
    *,
    norm: str,
    seed: int,
    depth: int,
    widen_factor: int,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    images: Mapping[str, Any],
) -> bytes:
    """Turn a network of a comparison into the bytes of a safetensors file, with all that is needed to build it again.

    Example:
        >>> model = build("BatchNorm", depth=10, widen_factor=1, num_classes=2).model
        >>> facts = {"seed": 0, "depth": 10, "widen_factor": 1, "mean": [0.5] * 3, "std": [0.25] * 3, "images": {}}
        >>> content = pack_network(model, norm="BatchNorm", classes=["cat", "dog"], **facts)
        >>> len(content) > 300_000
        True

    Args:
        model: as `variants.build` made it.
        norm: the variant.
        seed: of the run.
        depth: of the wide residual net.
        widen_factor: of its width.
        classes: names of the classes.
        mean: of the training images in [0, 1], which the network's inputs are normalized by.
        std: likewise.
        images: what it was trained on, to find the images that were held back.

    Returns:
        The content of a file.
    """
    import safetensors.torch

    facts = {
        "format": _FORMAT,
        "norm": norm,
        "seed": seed,
        "depth": depth,
        "widen_factor": widen_factor,
        "num_classes": len(classes),
        "classes": list(classes),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "images": dict(images),
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors, {_KEY: json.dumps(facts)})


def write_network(path: Path, content: bytes) -> None:
    """Write what `pack_network` gave; the file appears whole or not at all.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "networks" / "a.safetensors"
        >>> write_network(file, b"content")
        >>> file.read_bytes()
        b'content'

    Args:
        path: the file; its folder is made.
        content: all of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, synced=True)


def find_network(where: str | os.PathLike[str]) -> Path | None:
    """Find the file of a run's network.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for norm in ("CNSN", "DSU"):
        ...     write_network(folder / "networks" / f"{norm}-seed0-0123456789abcdef.safetensors", b"")
        >>> find_network(folder / "DSU").name
        'DSU-seed0-0123456789abcdef.safetensors'
        >>> find_network(folder)
        Traceback (most recent call last):
        ...
        ValueError: .../tmp... holds the networks of 2 runs; name one of them: .../CNSN-seed0, .../DSU-seed0.

    Args:
        where: the folder of a comparison, where it has one run only; FOLDER/NORM or FOLDER/NORM-seedN for one of
            several; the record or the network of a run itself.

    Returns:
        The file; None if it is none of these.

    Raises:
        ValueError: if several runs could be meant, or the run kept no network.
    """
    path = Path(where)
    if path.is_file():
        if path.suffix == SUFFIX:
            return path
        if path.suffix != ".json" or path.parent.name != "records":
            return None
        folder, name = path.parent.parent, path.stem
    elif (path / FOLDER).is_dir() or (path / "records").is_dir():
        folder, name = path, ""
    elif (path.parent / FOLDER).is_dir() or (path.parent / "records").is_dir():
        folder, name = path.parent, path.name
    else:
        return None
    files = sorted((folder / FOLDER).glob(f"*{SUFFIX}"))
    # a name may go on with the seed, or the key of the recipe, but not with more of the norm's own name
    found = [file for file in files if not name or file.stem.casefold().split("-seed")[0] == name.casefold()]
    found = found or [file for file in files if f"{file.stem}-".casefold().startswith(f"{name}-".casefold())]
    if len(found) == 1:
        return found[0]
    if not files or (name and not found and (folder / "records" / f"{name}.json").is_file()):
        raise ValueError(
            f"{where}: the run kept no network, as those of older versions. Move its record away and run "
            "`shiftnorm compare` again."
        )
    names = _short_names(found or files)
    listed = ", ".join(str(folder / each) for each in names[:8]) + (", ..." if len(names) > 8 else "")
    if found:
        raise ValueError(f"{where} holds the networks of {len(found)} runs; name one of them: {listed}.")
    raise ValueError(f"there is no run {name!r} in {folder}; it has {listed}.")


def _short_names(files: Sequence[Path]) -> list[str]:
    """Names without the key of the recipe, where that is enough to tell them apart."""
    short = [file.stem.rpartition("-")[0] for file in files]
    return [name if short.count(name) == 1 else file.stem for name, file in zip(short, files, strict=True)]


def is_network(path: Path) -> bool:
    """Whether a file holds a network of a comparison.

    Example:
        >>> is_network(Path("nowhere.safetensors"))
        False
    """
    if path.suffix != SUFFIX or not path.is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except SafetensorError:
        return False


def load_network(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network of a comparison with its weights.

    Example:
        >>> import torch
        >>> model = build("SelfNorm", depth=10, widen_factor=1, num_classes=2).model.eval()
        >>> facts = {"seed": 0, "depth": 10, "widen_factor": 1, "mean": [0.5] * 3, "std": [0.25] * 3, "images": {}}
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_network(file, pack_network(model, norm="SelfNorm", classes=["cat", "dog"], **facts))
        >>> (again, about), x = load_network(file), torch.randn(2, 3, 16, 16)
        >>> torch.equal(again(x), model(x)), again.input_normalization, about["classes"]
        (True, ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]), ['cat', 'dog'])

    Args:
        path: the file.

    Returns:
        The network in eval mode, whose ``input_normalization`` is the mean and std of its inputs; and what was packed
        with it, by the names of the arguments of `pack_network`.

    Raises:
        ValueError: if the file holds no such network, or is damaged.
    """
    import safetensors.torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as fault:
        raise ValueError(f"{path} is damaged ({fault}); run `shiftnorm compare` again.") from fault
    facts = _checked(text, path)
    size = {key: facts[key] for key in _LARGEST}
    model: Any = build(facts["norm"], **size, seed=facts["seed"]).model
    try:
        model.load_state_dict(tensors)
    except RuntimeError as fault:
        raise ValueError(f"{path} does not hold the weights of {facts['norm']}: {fault}") from fault
    model.input_normalization = (facts["mean"], facts["std"])
    return model.eval(), facts


def _checked(text: str | None, path: Path) -> dict[str, Any]:
    if text is None:
        raise ValueError(f"{path} holds no network of `shiftnorm compare`.")
    try:
        facts = json.loads(text)
    except ValueError as fault:
        raise ValueError(f"{path} is damaged ({fault}); run `shiftnorm compare` again.") from fault
    wrong = isinstance(facts, dict) and [key for key, kind in _FIELDS.items() if type(facts.get(key)) is not kind]
    if not isinstance(facts, dict) or wrong or facts["format"] > _FORMAT:
        raise ValueError(f"{path} was written by another version of shiftnorm, or is damaged ({wrong or 'format'}).")
    large = [key for key, most in _LARGEST.items() if not 0 < facts[key] <= most]
    if large or len(facts["classes"]) != facts["num_classes"]:
        raise ValueError(f"{path} is damaged: {', '.join(large) or 'classes'} cannot be as it says.")
    return facts
