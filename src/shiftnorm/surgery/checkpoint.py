"""Files of weights: read without running anything in them, and taken out of their wrappings."""

from __future__ import annotations

import argparse
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Checkpoint", "read_checkpoint", "unwrap"]

PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "network", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")


class Checkpoint(NamedTuple):
    """The tensors of a checkpoint, and what they lay in.

    Example:
        >>> unwrap({"epoch": 3, "state_dict": {"fc.bias": torch.zeros(2)}}, name="a.pth").wrappers
        ('state_dict',)

    Args:
        state: tensors by name.
        others: names in the same place that are no tensors.
        wrappers: the keys under which the tensors were found, from the outside.
        notes: what the reader should know about the choice.
    """

    state: dict[str, Tensor]
    others: dict[str, Any]
    wrappers: tuple[str, ...]
    notes: tuple[str, ...]


class _Discarded:
    """Stands in for a number of numpy's beside the weights (a best accuracy, say), which nobody needs here."""

    def __init__(self, *arguments: object) -> None:
        del arguments

    def __setstate__(self, state: object) -> None:
        del state


# Plain data that training scripts write beside the weights. Building them runs no code of the file's.
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    (_Discarded, "numpy.dtype"),
    (_Discarded, "numpy.core.multiarray.scalar"),
    (_Discarded, "numpy._core.multiarray.scalar"),
    *((_Discarded, f"numpy.dtypes.{kind}DType") for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
)


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of safetensors or torch's, whatever it is called, on the CPU.

    Nothing in the file is executed: torch reads it with ``weights_only=True``. Beyond tensors and plain Python data,
    only argparse's Namespace and single numbers of numpy's, which training scripts leave there, are let through;
    the numbers are thrown away.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"bias": torch.zeros(2)}, f"{folder}/weights.pth")
        ...     read_checkpoint(f"{folder}/weights.pth")
        {'bias': tensor([0., 0.])}

    Args:
        path: the file; the ending does not matter, except that .safetensors must be safetensors.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder, empty, cut off, no checkpoint, or would run code to be read; the text names the
            code.
        ModuleNotFoundError: if safetensors is needed and not installed.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"read_checkpoint: expected a file, got the folder {path}. Name the file in it.")
    if not path.exists():
        hint = " Download it first." if str(path).startswith(("http:", "https:")) else ""
        raise FileNotFoundError(f"read_checkpoint: there is no file {path}.{hint}")
    if not path.stat().st_size:
        raise ValueError(f"read_checkpoint: {path} is empty. Get it again.")
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    if zipfile.is_zipfile(path):
        return False
    # a length in eight bytes, then JSON
    fits = len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    return fits or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'read_checkpoint: {path} needs safetensors. Install it with pip install "shiftnorm[train]".'
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"read_checkpoint: {path} is no complete safetensors file ({error}). Get it again, or rename it if it is "
            "of another format."
        ) from error


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    f"read_checkpoint: {path} is a scripted model, which is code. If you trust it, save its weights: "
                    "torch.save(torch.jit.load(path).state_dict(), ...)."
                )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_HARMLESS)):
            # torch's guesses at why a file is odd; the error below says it
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything; that it can be opened was seen above
        wanted = sorted(set(_strange_names(path)))
        if wanted:
            shown = ", ".join(wanted[:6]) + (f" and {len(wanted) - 6} more" if len(wanted) > 6 else "")
            raise ValueError(
                f"read_checkpoint: {path} is more than weights: to read it, {shown} would have to be run. Nothing was. "
                "If you trust the file, load it with torch.load(path, weights_only=False) and save its state_dict."
            ) from error
        if tarfile.is_tarfile(path):
            raise ValueError(
                f"read_checkpoint: {path} is a tar archive. If weights lie in it, unpack them first; if torch before "
                "0.1.10 wrote it, load and save it again with torch."
            ) from error
        if not _begins_with(path, b"PK\x03\x04", _PICKLE):
            raise ValueError(
                f"read_checkpoint: {path} is no file of torch or safetensors. Name the file of weights; if this should "
                "be one, get it again."
            ) from error
        if isinstance(error, RuntimeError):
            reason = str(error).splitlines()[0].split(". ")[0]
        else:
            reason = f"it does not read as a pickle of torch's: {type(error).__name__}"
        raise ValueError(
            f"read_checkpoint: {path} is no checkpoint, or is damaged ({reason}). Get it again; expected are "
            "safetensors, or what torch.save writes."
        ) from error


# How pickles of protocol 2 and later begin, those of torch before 1.6 among them.
_PICKLE = b"\x80"
# What a file of tensors names anyway.
_USUAL_MODULES = ("torch._utils", "torch.storage", "torch.serialization", "torch._tensor", "_codecs")
_USUAL_NAMES = {
    "__builtin__.set",
    "builtins.set",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
}


def _strange_names(path: Path) -> Iterator[str]:
    for module, name in _named_in(path):
        if module in _USUAL_MODULES or f"{module}.{name}" in _USUAL_NAMES:
            continue
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            continue
        yield f"{module}.{name}"


def _named_in(path: Path) -> Iterator[tuple[str, str]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".pkl"):
                    with archive.open(member) as file:
                        yield from _names_in_pickles(file)
        return
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                inside = archive.extractfile(member)
                if inside is not None:
                    yield from _names_in_pickles(inside)
        return
    if not _begins_with(path, _PICKLE) and not _is_text_pickle(path):
        return
    with path.open("rb") as file:
        yield from _names_in_pickles(file)


def _begins_with(path: Path, *beginnings: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(beginnings)


def _is_text_pickle(path: Path) -> bool:
    """Whether the file is a pickle of an early protocol: text may begin like one, a line "import os" for example."""
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                names = opcode.name in ("GLOBAL", "INST")
                if names and not re.fullmatch(r"[\w.-]+ [\w.<>-]+", str(argument)):
                    return False
    except (ValueError, IndexError, EOFError):
        return False  # it has no end
    return True


def _names_in_pickles(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Module and name of everything that pickles, one after the other, import; they are read, not run."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        while True:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST") and isinstance(argument, str):
                    module, _, name = argument.partition(" ")
                    yield module, name
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    yield strings[-2], strings[-1]
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT") and strings:
                    memo[int(argument or 0)] = strings[-1]
                elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                    strings.append(memo.get(int(argument or 0), ""))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, IndexError, EOFError):
        return  # here the pickles end, and tensors, or something else, begin


def unwrap(checkpoint: object, *, name: str, ema: bool = False) -> Checkpoint:
    """Find the tensors of a checkpoint under the keys that training scripts use.

    Example:
        >>> both = {"model": {"bias": torch.zeros(1)}, "model_ema": {"bias": torch.ones(1)}}
        >>> unwrap(both, name="a.pth", ema=True).state
        {'bias': tensor([1.])}

    Args:
        checkpoint: what the file holds.
        name: of the file, for errors.
        ema: take the averaged weights; otherwise they are taken only if there are no others.

    Raises:
        ValueError: if there are no tensors, no averaged ones where they are asked for, or several sets to choose from.
    """
    wrappers: list[str] = []
    notes: list[str] = []
    averaged_taken = False
    while True:
        if not isinstance(checkpoint, Mapping):
            raise ValueError(
                f"load_weights: expected tensors by name in {name}, got {type(checkpoint).__name__}. "
                "Save module.state_dict()."
            )
        plain = [key for key in PLAIN if _holds_tensors(checkpoint.get(key))]
        averaged = [key for key in AVERAGED if _holds_tensors(checkpoint.get(key))]
        if averaged and (ema or not plain):
            key, averaged_taken = averaged[0], True
            if not ema:
                notes.append(f"{name} has averaged weights only, under {key!r}")
        elif len(plain) > 1:
            raise ValueError(
                f"load_weights: {name} has several sets of weights: {plain}. Pass the one you mean, "
                f"read_checkpoint(path)[{plain[0]!r}]."
            )
        elif plain:
            key = plain[0]
            if averaged:
                notes.append(f"{name} also has averaged weights under {averaged[0]!r}; ema=True takes them")
        else:
            break
        wrappers.append(key)
        checkpoint = checkpoint[key]
    if ema and not averaged_taken:
        raise ValueError(f"load_weights: {name} has no averaged weights (looked for {', '.join(AVERAGED)}).")
    state = {key: value.detach() for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        nested = [key for key, value in checkpoint.items() if _holds_tensors(value)]
        hint = f" There are some under {nested}: pass the mapping you mean." if nested else ""
        raise ValueError(f"load_weights: {name} holds no tensors by name; it has {list(checkpoint)[:8]}.{hint}")
    wrong = [key for key in state if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"load_weights: expected names of tensors in {name} to be strings, got {wrong[:5]}.")
    others = {key: value for key, value in checkpoint.items() if not isinstance(value, Tensor)}
    return Checkpoint(state, others, tuple(wrappers), tuple(notes))


def _holds_tensors(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    if any(isinstance(tensor, Tensor) and isinstance(key, str) for key, tensor in value.items()):
        return True
    return any(_holds_tensors(value.get(key)) for key in (*PLAIN, *AVERAGED))
