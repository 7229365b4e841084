"""MNIST, USPS and MNIST-M in the layouts they are distributed in."""

from __future__ import annotations

import bz2
import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shiftnorm.data.dataset import Dataset
from shiftnorm.data.decode import image_tensor, import_pillow
from shiftnorm.data.labelled_files import LabelledFile, Reading, class_files, dataset_of_files, subfolders
from shiftnorm.data.locate import find_file, locate
from shiftnorm.data.preprocess import Preprocess, parse_preprocess
from shiftnorm.data.provenance import Provenance, Skipped

DIGITS = tuple("0123456789")
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
USPS_SIDE = 16


def digit_set(root: Path, split: str, reading: Reading, *, name: str) -> Dataset | None:
    """Read MNIST or USPS from idx files, plain or gzipped, or USPS from its libsvm text; None if it is not there."""
    part = "t10k" if name == "mnist" and split == "test" else split
    stems = [f"{name}-{part}"] + ([part] if name == "mnist" else [])
    wanted = [
        (f"{stem}-images-idx3-ubyte{ending}", f"{stem}-labels-idx1-ubyte{ending}")
        for stem in stems
        for ending in ("", ".gz")
    ]
    text = "usps.t.bz2" if split == "test" else "usps.bz2"

    def holds(folder: Path) -> bool:
        found = find_file(folder, [images for images, _ in wanted]) is not None
        return found or (name == "usps" and (folder / text).is_file())

    folder = locate(root, holds, reading)
    if folder is None:
        return None
    pair = next((pair for pair in wanted if (folder / pair[0]).is_file()), None)
    if pair is None:
        images, labels = _libsvm(folder / text)
        files = (folder / text,)
    else:
        files = (folder / pair[0], folder / pair[1])
        images, labels = _idx(files[0], IMAGES_MAGIC, 3), _idx(files[1], LABELS_MAGIC, 1).long()
        if len(images) != len(labels):
            raise ValueError(
                f"open_dataset: {files[0]} holds {len(images)} images and {files[1]} {len(labels)} labels; "
                "they are not of one set"
            )
    if len(labels) and int(labels.max()) > 9:
        raise ValueError(f"open_dataset: the labels of {files[-1]} must be 0..9, got up to {int(labels.max())}")
    preprocess = parse_preprocess("none" if reading.preprocess == "auto" else reading.preprocess)
    note = f"grey repeated to 3 channels, preprocess {preprocess.name}"
    source = Provenance(folder, files, (note,))
    return Dataset.of_images(name, _coloured(images, preprocess), labels, DIGITS, source, on_error=reading.on_error)


def _coloured(grey: Tensor, preprocess: Preprocess) -> Tensor:
    if preprocess == Preprocess():
        return grey[:, None].expand(-1, 3, -1, -1).contiguous()
    pillow = import_pillow()
    pictures = [preprocess(pillow.fromarray(each.numpy()).convert("RGB")) for each in grey]
    return torch.stack([image_tensor(picture) for picture in pictures])


def _idx(path: Path, magic: int, dimensions: int) -> Tensor:
    """Read an idx file of bytes: a magic number, the sizes, the values."""
    if not path.is_file():
        raise FileNotFoundError(f"open_dataset: {path} is missing; images and labels belong together")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"open_dataset: {path} is damaged ({error}); get it again") from error
    header = 4 * (1 + dimensions)
    found, *sizes = struct.unpack(f">{1 + dimensions}I", content[:header]) if len(content) >= header else (0,)
    if found != magic:
        raise ValueError(f"open_dataset: {path} is no idx file of {dimensions}-dimensional bytes (magic {found:#x})")
    if len(content) - header != math.prod(sizes):
        raise ValueError(
            f"open_dataset: {path} should hold {' x '.join(map(str, sizes))} values and holds "
            f"{len(content) - header}: truncated? get it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())


def _libsvm(path: Path) -> tuple[Tensor, Tensor]:
    """Read USPS's text, ``label 1:value ...`` with values in [-1, 1] and labels counted from 1."""
    rows: list[list[float]] = []
    labels: list[int] = []
    try:
        for line in bz2.decompress(path.read_bytes()).decode("ascii").splitlines():
            label, *entries = line.split()
            values = [float(entry.split(":")[1]) for entry in entries]
            if len(values) != USPS_SIDE**2:
                raise ValueError(f"line {len(rows) + 1} has {len(values)} values, not {USPS_SIDE**2}")
            rows.append(values)
            labels.append(int(label) - 1)
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise ValueError(f"open_dataset: {path} is damaged ({error}); get it again") from error
    if not labels or min(labels) < 0:
        raise ValueError(f"open_dataset: the labels of {path} must count from 1")
    # In double precision and truncated, as the images have always been made of this text.
    images = ((np.asarray(rows).reshape(-1, USPS_SIDE, USPS_SIDE) + 1) / 2 * 255).astype(np.uint8)
    return torch.from_numpy(images), torch.tensor(labels)


def mnist_m(root: Path, split: str, reading: Reading, *, name: str) -> Dataset | None:
    """Read MNIST-M: class folders of digits, or the release's folder of pictures with a list of labels."""
    part = f"mnist_m_{split}"
    folder = locate(
        root,
        lambda folder: folder.name == part and any(entry.name in DIGITS for entry in subfolders(folder)),
        reading,
        archives=(f"{part}.*",),
    )
    skipped: list[Skipped] = []
    if folder is not None:
        found = class_files(folder, reading, skipped)
        if strangers := sorted(found.keys() - set(DIGITS)):
            raise ValueError(f"open_dataset: {folder} holds folders that are no digits: {strangers}")
        files = [LabelledFile(path, int(digit)) for digit, paths in found.items() for path in paths]
        # By their number in MNIST, not digit by digit.
        files.sort(key=lambda file: file.path.name)
    else:
        labels = f"{part}_labels.txt"
        folder = locate(root, lambda folder: (folder / labels).is_file(), reading, archives=("mnist_m.*",))
        if folder is None:
            return None
        files = []
        for number, line in enumerate((folder / labels).read_text().splitlines(), 1):
            file, _, digit = line.strip().rpartition(" ")
            if not file or digit not in DIGITS:
                raise ValueError(f"open_dataset: line {number} of {folder / labels} must be 'FILE DIGIT', got {line!r}")
            files.append(LabelledFile(folder / part / file, int(digit)))
    pictures = dataset_of_files(name, folder, files, DIGITS, reading.unless_given("none"), skipped=skipped)
    return pictures.in_memory(workers=reading.workers)
