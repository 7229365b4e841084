"""What decides the pixels of an evaluation: how corruptions are made, or which files hold them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from shiftnorm.data.corrupted_set import CorruptedSet
from shiftnorm.data.corruptions import CONSTANT_SETS, CORRUPTIONS, STORAGES
from shiftnorm.data.corruptions.constants import JPEG_STORED
from shiftnorm.evaluate.fingerprint import digest_corruptions, digest_files

__all__ = ["Pixels", "make_pixels", "read_pixels"]

_BY_SIZE: Final = {32: "cifar32", 64: "tiny64", 224: "imagenet224", 299: "inception299"}
# What the published files were made with.
_PUBLISHED: Final = {
    "cifar10-c": ("cifar32", "none"),
    "cifar100-c": ("cifar32", "none"),
    "imagenet-c": ("imagenet224", "jpeg85"),
}


@final
@dataclass(frozen=True)
class Pixels:
    """How the corrupted images come about.

    Example:
        >>> make_pixels(["fog"], 32, 32).settings["constants"]
        'cifar32'

    Args:
        constants: named set of strengths; None where that is not known.
        storage: "jpeg85" or "none"; None where that is not known.
        settings: for the result.
        identity: what decides the pixels, as plain data.
        notes: for the result.
    """

    constants: str | None
    storage: str | None
    settings: dict[str, Any]
    identity: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make_pixels(
    names: list[str],
    height: int,
    width: int,
    *,
    constants: str | None = None,
    storage: str = "default",
    frost_dir: str | Path | None = None,
) -> Pixels:
    """Of corruptions that are made.

    Example:
        >>> make_pixels(["fog"], 40, 40)
        Traceback (most recent call last):
        ...
        ValueError: robustness: there is no published set of strengths for 40x40 images. Name one, constants= ...

    Args:
        names: of the corruptions.
        height: of the images.
        width: of the images.
        constants: as for `robustness`.
        storage: as for `robustness`.
        frost_dir: as for `robustness`.

    Raises:
        ValueError: for an unknown set or storage, a size that no set was published for, or frost without photographs.
    """
    if storage not in STORAGES:
        raise ValueError(f"robustness: storage must be one of {', '.join(STORAGES)}, got {storage!r}.")
    if "frost" in names and frost_dir is None:
        raise ValueError(
            "robustness: 'frost' needs the authors' photographs: pass frost_dir, or use 'frost_procedural'."
        )
    chosen, notes = _constants(constants, height, width)
    for corruption in names:
        CORRUPTIONS[corruption].constant(chosen, 1)
    stored = ("jpeg85" if chosen in JPEG_STORED else "none") if storage == "default" else storage
    frost = "photos" if "frost" in names else "procedural" if "frost_procedural" in names else "none"
    notes += _of_frost(frost)
    notes.append(
        f"Images are {height}x{width}; stored {'as JPEG of quality 85' if stored == 'jpeg85' else 'without loss'}."
    )
    identity = {"corruption code": digest_corruptions(), "constants": chosen, "storage": stored}
    if "frost" in names and frost_dir is not None:
        identity["frost photographs"] = digest_files(sorted(Path(frost_dir).glob("frost*")))
    return Pixels(chosen, stored, {"constants": chosen, "storage": stored, "frost": frost}, identity, notes)


def read_pixels(
    files: CorruptedSet,
    names: list[str],
    severities: list[int],
    *,
    constants: str | None = None,
    storage: str = "default",
    frost_dir: str | Path | None = None,
) -> Pixels:
    """Of corruptions that lie in files, which are looked at as far as that is quick.

    Example:
        >>> import torch
        >>> from shiftnorm.data import Dataset
        >>> clean = Dataset.of_images("pets", torch.zeros(1, 3, 8, 8).byte(), torch.tensor([0]), ("cat",))
        >>> files = CorruptedSet("c", Path("c"), {"fog": (1,)}, lambda *_: clean, clean, published="cifar10-c")
        >>> read_pixels(files, ["fog"], [1]).settings
        {'source': 'files', 'published': 'cifar10-c', 'constants': 'cifar32', 'storage': 'none', 'frost': 'none',
         'preprocess': 'none'}

    Args:
        files: the images.
        names: of the corruptions.
        severities: that are measured.
        constants: as for `robustness`; only None has a meaning here, and so for what follows.
        storage: only "default".
        frost_dir: only None.

    Raises:
        ValueError: for settings of corruptions that are made, or damaged files.
    """
    for what, value, default in (("constants", constants, None), ("storage", storage, "default")):
        if value != default:
            raise ValueError(
                f"robustness: {what}={value!r} is for corruptions that are made; {files.name} has them in its files. "
                "Leave it out."
            )
    if frost_dir is not None:
        raise ValueError(f"robustness: frost_dir is for frost that is made; {files.name} has it in its files.")
    files.check([(name, severity) for name in names for severity in severities])
    stated: tuple[str | None, str | None] = _PUBLISHED.get(files.published or "", (None, None))
    frost = "photos" if "frost" in names else "procedural" if "frost_procedural" in names else "none"
    if files.made is not None:
        stated = (files.made.get("constants"), files.made.get("storage"))
    settings = {
        "source": "files",
        "published": files.published,
        "constants": stated[0],
        "storage": stated[1],
        "frost": frost,
        "preprocess": files.preprocess,
    }
    identity = {"source": "files", "images of a cell": len(files), "preprocess": files.preprocess}
    notes = [*files.notes, *(_of_frost(frost) if files.published is None else [])]
    return Pixels(*stated, settings, identity, notes)


def _of_frost(frost: str) -> list[str]:
    if frost != "procedural":
        return []
    return ["Frost is procedural, not the authors' photographs: not comparable with published tables."]


def _constants(constants: str | None, height: int, width: int) -> tuple[str, list[str]]:
    published = _BY_SIZE.get(height) if height == width else None
    if constants is None:
        if published is None:
            raise ValueError(
                f"robustness: there is no published set of strengths for {height}x{width} images. Name one, constants= "
                f"{', '.join(CONSTANT_SETS)}, or open the images at a size that has one, such as "
                'preprocess="resize256-crop224".'
            )
        return published, [f"The corruptions' strengths are {published}, the set published for images of this size."]
    if constants not in CONSTANT_SETS:
        near = difflib.get_close_matches(str(constants), CONSTANT_SETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"robustness: constants must be one of {', '.join(CONSTANT_SETS)}, got {constants!r}{hint}")
    if constants == published:
        return constants, [f"The corruptions' strengths are {constants}."]
    return constants, [f"The corruptions' strengths are {constants}, made for images of another size."]
