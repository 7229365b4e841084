"""CIFAR in every layout it is published in, without trusting its pickles."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import pixels_of, tree
from shiftnorm.data import open_dataset
from shiftnorm.data.cifar import CIFAR10, CIFAR100, COARSE

RANDOM = np.random.default_rng(0)


def rows(count: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8)


def python_cifar10(root: Path, protocol: int = 2) -> dict[str, np.ndarray]:
    """Write the files of CIFAR-10's python version with a few images each; return their pixels."""
    root.mkdir(parents=True)
    written: dict[str, np.ndarray] = {}
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        written[name] = rows(4)
        content = {b"batch_label": name.encode(), b"labels": [9, 0, 3, 3], b"data": written[name], b"filenames": [b"x"]}
        (root / name).write_bytes(pickle.dumps(content, protocol=protocol))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [each.encode() for each in CIFAR10]}, protocol=2))
    return written


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_python(tmp_path: Path, packed: bool, protocol: int) -> None:
    written = python_cifar10(tmp_path / "data" / "cifar-10-batches-py", protocol)
    root = tmp_path / "data"
    if packed:
        root = tmp_path / "packed"
        root.mkdir()
        with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "data" / "cifar-10-batches-py", "cifar-10-batches-py")
    test = open_dataset("cifar10", root, cache=tmp_path / "cache")
    assert np.array_equal(test.images().numpy(), written["test_batch"].reshape(4, 3, 32, 32))
    assert test.labels.tolist() == [9, 0, 3, 3] and test.classes == CIFAR10
    train = open_dataset("cifar10", root, "train", cache=tmp_path / "cache")
    assert len(train) == 20 and np.array_equal(train[4][0].numpy().ravel(), written["data_batch_2"][0])
    assert (train.provenance.path.name == "cifar-10-python.tar.gz") == packed


def as_python2_wrote(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Return a pickle as the published files are: byte strings of Python 2, arrays by numpy's old names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    shape = b"(" + b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape) + b"t"
    dtype = (
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\0K\1tR(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    raw = pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + text(b"b") + b"tR"
    array += b"(K\1" + shape + dtype + b"I00\n" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"l"
    return b"\x80\x02}" + b"(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def test_the_images_are_those_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    python_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(as_python2_wrote(rows(3), [7, 0, 2]))
    meta = b"\x80\x02}(U\x0blabel_names(" + b"".join(b"U" + bytes([len(n)]) + n.encode() for n in CIFAR10) + b"lu."
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    theirs = datasets.CIFAR10(tmp_path, train=False)
    ours = open_dataset("cifar10", tmp_path)
    assert np.array_equal(ours.images().permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets


def test_cifar100(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    pixels = rows(3)
    content = {b"fine_labels": [99, 0, 5], b"coarse_labels": [19, 4, 1], b"data": pixels}
    for name in ("train", "test", "meta"):
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    fine, coarse = (open_dataset("cifar100", tmp_path, labels=kind) for kind in ("fine", "coarse"))
    assert (fine.labels.tolist(), fine.classes[99], len(CIFAR100)) == ([99, 0, 5], "worm", 100)
    assert (coarse.labels.tolist(), coarse.classes[19], len(COARSE)) == ([19, 4, 1], "vehicles_2", 20)
    assert sorted(CIFAR100) == list(CIFAR100) and sorted(COARSE) == list(COARSE)
    assert np.array_equal(fine.images().numpy().reshape(3, -1), pixels)
    with pytest.raises(ValueError, match=r"labels must be 'fine' or 'coarse', got 'rough'"):
        open_dataset("cifar100", tmp_path, labels="rough")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch it-ran",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Evil()), "asks for (posix|nt|os).system, which a data file has no need of"),
        (pickle.dumps({b"data": Evil(), b"labels": [1]}), "asks for"),
        (pickle.dumps({b"data": np.array([Evil()]), b"labels": [1]}), "array of 'O8'|asks for"),
        (pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}), "array of 'f8', but images are bytes"),
        (pickle.dumps([1, 2]), "holds a list instead of a dictionary"),
        (pickle.dumps({b"data": rows(2), b"labels": [1]}), "must hold 2 whole-number labels, got"),
        (pickle.dumps({b"data": rows(1), b"labels": [10]}), r"must be in 0..9, got 10..10"),
        (pickle.dumps({b"data": rows(1)[:, :9], b"labels": [1]}), r"must hold 'data' \(N, 3072\) .* got \(1, 9\)"),
        (pickle.dumps({b"labels": [1]}), "must hold 'data'"),
        (pickle.dumps({b"data": rows(5), b"labels": [1] * 5})[:5000], "is damaged or no data file of CIFAR"),
        (b"", "is damaged or no data file of CIFAR"),
    ],
)
def test_damaged_and_hostile_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    python_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"test_batch.*{reason}"):
        open_dataset("cifar10", tmp_path)
    assert not (tmp_path / "it-ran").exists()


def test_a_missing_batch(tmp_path: Path) -> None:
    python_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3 is missing beside the other files"):
        open_dataset("cifar10", tmp_path, "train")


def test_class_folders_of_pictures(tmp_path: Path) -> None:
    tree(tmp_path / "test", [f"{name}/{number}.png" for name in CIFAR10 for number in range(2)], (32, 32))
    test = open_dataset("cifar10", tmp_path)
    assert test.classes == CIFAR10 and test.labels.bincount().tolist() == [2] * 10
    assert np.array_equal(test.images()[5].numpy(), pixels_of(tmp_path / "test" / "bird" / "1.png"))
    (tmp_path / "test" / "unicorn").mkdir()
    tree(tmp_path / "test" / "unicorn", ["0.png"])
    with pytest.raises(ValueError, match=r"does not know: \['unicorn'\]"):
        open_dataset("cifar10", tmp_path)


def corrupted(root: Path, labels: np.ndarray, count: int = 4) -> np.ndarray:
    root.mkdir(parents=True)
    images = RANDOM.integers(0, 256, (5 * count, 32, 32, 3), dtype=np.uint8)
    np.save(root / "fog.npy", images)
    np.save(root / "labels.npy", labels)
    return images


@pytest.mark.parametrize("repeated", [True, False])
def test_cifar10_c(tmp_path: Path, repeated: bool) -> None:
    labels = np.array([3, 8, 8, 0], dtype=np.uint8 if repeated else np.int64)
    images = corrupted(tmp_path / "CIFAR-10-C", np.tile(labels, 5) if repeated else labels)
    for severity in (1, 5):
        cell = open_dataset("cifar10-c", tmp_path, corruption="fog", severity=severity)
        expected = images[4 * (severity - 1) : 4 * severity].transpose(0, 3, 1, 2)
        assert np.array_equal(cell.images().numpy(), expected) and cell.labels.tolist() == [3, 8, 8, 0]
        assert cell.name == f"cifar10-c/fog/{severity}" and cell.numbers.tolist() == [0, 1, 2, 3]
    assert torch.equal(next(cell.batches(4, workers=1)).images, cell.images())
    assert cell.describe()["checksum"].startswith("sha256:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "frog", "severity": 1}, r"needs corruption=, one of those in .*CIFAR-10-C \(fog\), got 'frog'"),
        ({}, "needs corruption="),
        ({"corruption": "fog"}, "needs severity= from 1 to 5, got None"),
        ({"corruption": "fog", "severity": 6}, "needs severity= from 1 to 5, got 6"),
        ({"corruption": "fog", "severity": 1, "preprocess": "crop8"}, "preprocess must be 'none'"),
    ],
)
def test_cells_that_do_not_exist(tmp_path: Path, options: dict[str, object], message: str) -> None:
    corrupted(tmp_path / "CIFAR-10-C", np.zeros(20, dtype=np.uint8))
    with pytest.raises(ValueError, match=message):
        open_dataset("cifar10-c", tmp_path, **options)


def test_the_two_corrupted_sets_side_by_side(tmp_path: Path) -> None:
    ten = corrupted(tmp_path / "CIFAR-10-C", np.zeros(20, dtype=np.uint8))
    hundred = corrupted(tmp_path / "CIFAR-100-C", np.full(20, 99, dtype=np.uint8))
    for name, images in (("cifar10-c", ten), ("cifar100-c", hundred)):
        cell = open_dataset(name, tmp_path, corruption="fog", severity=1)
        assert np.array_equal(cell.images().numpy(), images[:4].transpose(0, 3, 1, 2)), name
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.full(20, 99))
    with pytest.raises(ValueError, match=r"labels.npy must be in 0..9, got 99..99"):
        open_dataset("cifar10-c", tmp_path, corruption="fog", severity=1)


def test_a_corruption_with_a_length_of_its_own(tmp_path: Path) -> None:
    corrupted(tmp_path / "c", np.zeros(20, dtype=np.uint8))
    np.save(tmp_path / "c" / "fog.npy", np.zeros((7, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"fog.npy holds 7 images, which are not 5 severities"):
        open_dataset("cifar10-c", tmp_path, corruption="fog", severity=1)


def test_cifar10_1(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "cifar10.1_v6_data.npy", images)
    with pytest.raises(FileNotFoundError, match=r"cifar10.1_v6_labels.npy is missing beside"):
        open_dataset("cifar10.1", tmp_path)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.array([1, 2, 9], dtype=np.int32))
    natural = open_dataset("cifar10.1", tmp_path)
    assert np.array_equal(natural.images().numpy(), images.transpose(0, 3, 1, 2))
    assert natural.labels.tolist() == [1, 2, 9] and natural.classes == CIFAR10
    with pytest.raises(FileNotFoundError, match=r"no cifar10.1, split='test', version='v4' in .*modestyachts"):
        open_dataset("cifar10.1", tmp_path, version="v4")
    with pytest.raises(ValueError, match=r"version must be 'v4' or 'v6', got 'v5'"):
        open_dataset("cifar10.1", tmp_path, version="v5")


def test_the_real_archive(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "cifar10" / "cifar10_test.tar.xz").exists():
        pytest.skip("no CIFAR-10 archive among the real data")
    test = open_dataset("cifar10", real_data, cache=tmp_path)
    assert test.labels.bincount().tolist() == [1000] * 10 and test.images([0]).shape == (1, 3, 32, 32)
    assert "JPEG q75 (the first file)" in test.provenance.notes
    mean = test.images().double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.494, 0.485, 0.450], dtype=torch.float64), atol=2e-3)
    stated = (real_data / "cifar10" / "DATA.md").read_text()
    assert test.provenance.checksum.removeprefix("sha256:") in stated
