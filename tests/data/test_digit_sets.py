"""MNIST, USPS and MNIST-M: idx files, libsvm text, lists, and damage to each."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pictures import picture, pixels_of, tree
from shiftnorm.data import open_dataset


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
LABELS = np.array([7, 0, 9, 7])


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("prefix", ["", "mnist-"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist(tmp_path: Path, folder: str, prefix: str, ending: str) -> None:
    pack = gzip.compress if ending else bytes
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / f"{prefix}t10k-images-idx3-ubyte{ending}").write_bytes(pack(idx(IMAGES)))
    (tmp_path / folder / f"{prefix}t10k-labels-idx1-ubyte{ending}").write_bytes(pack(idx(LABELS)))
    test = open_dataset("mnist", tmp_path)
    assert test.labels.tolist() == LABELS.tolist() and test.classes == tuple("0123456789")
    assert np.array_equal(test.images().numpy(), np.repeat(IMAGES[:, None], 3, 1))
    with pytest.raises(FileNotFoundError, match=r"no mnist, split='train'.*or pass download=True"):
        open_dataset("mnist", tmp_path, "train")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(IMAGES)[:-5], idx(LABELS), "should hold 4 x 28 x 28 values and holds 3131: truncated"),
        (idx(IMAGES), idx(LABELS[:3]), "holds 4 images and .* 3 labels"),
        (idx(LABELS), idx(LABELS), "is no idx file of 3-dimensional bytes"),
        (b"", idx(LABELS), "is no idx file"),
        (idx(IMAGES), idx(LABELS + 1), "must be 0..9, got up to 10"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match=message):
        open_dataset("mnist", tmp_path)


def test_damaged_gzip_and_missing_labels(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(IMAGES)))
    with pytest.raises(FileNotFoundError, match=r"labels-idx1-ubyte.gz is missing; images and labels belong together"):
        open_dataset("mnist", tmp_path)
    for content in (path.read_bytes()[:-2000], b"no gzip at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is damaged"):
            open_dataset("mnist", tmp_path)


def test_usps_text_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (3, 256)).round(4)
    values[0, :2] = -1, 1
    texts = [" ".join(f"{i + 1}:{value}" for i, value in enumerate(row)) for row in values]
    lines = [f"{label} {text}" for label, text in zip((1, 10, 4), texts, strict=True)]
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    test = open_dataset("usps", tmp_path)
    assert test.labels.tolist() == [0, 9, 3] and test.images().shape == (3, 3, 16, 16)
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.usps, "download_url", lambda *_, **__: None)
    theirs = datasets.USPS(str(tmp_path), train=False, download=True)
    assert np.array_equal(test.images()[:, 0].numpy(), theirs.data) and test.labels.tolist() == list(theirs.targets)
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(lines[0].rpartition(" ")[0].encode()))
    with pytest.raises(ValueError, match=r"usps.t.bz2 is damaged .line 1 has 255 values, not 256"):
        open_dataset("usps", tmp_path)


def test_mnist_m_in_both_layouts(tmp_path: Path) -> None:
    tree(tmp_path / "a" / "mnist_m_test", ["7/00000000.png", "0/00000002.png", "7/00000001.png"], (32, 32))
    by_class = open_dataset("mnist-m", tmp_path / "a")
    assert by_class.labels.tolist() == [7, 7, 0] and by_class.images().shape == (3, 3, 32, 32)
    release = tmp_path / "b" / "mnist_m"
    for number in range(2):
        picture(release / "mnist_m_test" / f"{number:08}.png", (32, 32), number)
    (release / "mnist_m_test_labels.txt").write_text("00000000.png 4\n00000001.png 2\n")
    listed = open_dataset("mnist-m", tmp_path / "b")
    assert listed.labels.tolist() == [4, 2]
    assert np.array_equal(listed[1][0].numpy(), pixels_of(release / "mnist_m_test" / "00000001.png"))
    (release / "mnist_m_test_labels.txt").write_text("00000000.png four\n")
    with pytest.raises(ValueError, match=r"line 1 of .* must be 'FILE DIGIT', got '00000000.png four'"):
        open_dataset("mnist-m", tmp_path / "b")


def test_digits_of_one_size(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    test = open_dataset("mnist", tmp_path, preprocess="resize32x32")
    assert test.images().shape == (4, 3, 32, 32) and "resize32x32" in test.provenance.notes[0]
    assert abs(float(test.images().float().mean()) - IMAGES.mean()) < 2


def test_the_real_files(real_data: Path) -> None:
    if not (real_data / "digits").is_dir():
        pytest.skip("no digits among the real data")
    mnist, usps = (open_dataset(name, real_data) for name in ("mnist", "usps"))
    assert mnist.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert usps.labels.bincount().tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    assert mnist.images([0]).shape == (1, 3, 28, 28) and usps.images([0]).shape == (1, 3, 16, 16)
