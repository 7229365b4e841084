"""Dataset: reading, batches, workers, subsets, and what happens when an image turns out unreadable."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import pixels_of, tree
from shiftnorm.data import Dataset, open_dataset
from shiftnorm.data.dataset import _Chunks
from shiftnorm.data.decode import UnreadableImage
from shiftnorm.data.pixels import ArrayPixels, FilePixels, TensorPixels
from shiftnorm.data.preprocess import Preprocess
from shiftnorm.data.provenance import Provenance


def numbered(count: int = 10, **more: object) -> Dataset:
    """Images whose pixels are their number."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()
    return Dataset.of_images("numbered", images, torch.arange(count) % 2, ("even", "odd"), **more)


@pytest.fixture
def files(tmp_path: Path) -> Dataset:
    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(4)]
    return open_dataset(tree(tmp_path / "pets", names))


@pytest.mark.parametrize("indices", [[3, 0, -1], torch.tensor([3, 0, 9]), np.array([3, 0, 9])])
def test_images_at_indices(indices: object) -> None:
    assert numbered().images(indices)[:, 0, 0, 0].tolist() == [3, 0, 9]
    assert numbered().images(slice(2, 4))[:, 0, 0, 0].tolist() == [2, 3]
    assert numbered().images([]).shape == (0, 3, 4, 4)


def test_it_is_printed_in_one_line(files: Dataset) -> None:
    assert str(files) == repr(files) == "Dataset('pets': 8 images in 2 classes)"


def test_items_are_a_map_style_dataset(files: Dataset) -> None:
    loader = torch.utils.data.DataLoader(files, batch_size=3, num_workers=2)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    assert torch.equal(images, files.images()) and torch.equal(labels, files.labels)
    assert files[-1][1] == 1 and torch.equal(files[-1][0], images[-1])
    with pytest.raises(IndexError, match=r"index 8 is not among its 8 images"):
        files[8]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_any_number_of_workers(files: Dataset, workers: int) -> None:
    batches = list(files.batches(3, workers=workers))
    assert [len(batch.images) for batch in batches] == [3, 3, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), files.images())
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(8))
    chosen = next(files.batches(8, indices=range(1, 8, 2), workers=workers))
    assert chosen.numbers.tolist() == [1, 3, 5, 7] and torch.equal(chosen.labels, files.labels[1::2])


def test_no_batches_of_nothing(files: Dataset) -> None:
    assert list(files.batches(3, indices=[])) == [] and len(files.subset([])) == 0


def test_batches_can_go_to_processes_that_share_nothing(files: Dataset) -> None:
    chunks = _Chunks(files.subset(range(7, -1, -1)).pixels, torch.arange(8), 3)
    copy = pickle.loads(pickle.dumps(chunks))
    assert len(copy) == 3 and torch.equal(copy[2][0], files.images([1, 0]))


def test_numbers_stay_with_their_images() -> None:
    part = numbered().subset([8, 2, 5]).subset([2, 0], name="two")
    assert part.numbers.tolist() == [5, 8] and part.images()[:, 0, 0, 0].tolist() == [5, 8] and part.name == "two"
    limited = numbered().limit(2, seed=3)
    assert limited.labels.bincount().tolist() == [2, 2]
    assert limited.numbers.tolist() == limited.images()[:, 0, 0, 0].tolist() == sorted(limited.numbers.tolist())
    assert limited.numbers.tolist() == numbered().limit(2, seed=3).numbers.tolist()
    assert {tuple(numbered().limit(2, seed=seed).numbers.tolist()) for seed in range(5)} != {(0, 1, 2, 3)}


def test_limit_counts_in_every_domain() -> None:
    domains = {"domains": ("a", "b"), "domain_labels": torch.tensor([0] * 6 + [1] * 4)}
    whole = numbered(**domains)
    assert whole.limit(2).domain_labels.bincount().tolist() == [4, 4]
    assert whole.of_domain("b").numbers.tolist() == [6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"no domain 'c'; it has a, b"):
        whole.of_domain("c")


def test_an_image_that_breaks_later_raises_or_is_skipped_by_choice(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(3)])
    strict, lenient = open_dataset(root), open_dataset(root, on_error="skip")
    (root / "cat" / "1.png").write_bytes((root / "cat" / "1.png").read_bytes()[:500])
    (root / "dog" / "0.png").unlink()
    for workers in (0, 1):
        with pytest.raises(UnreadableImage, match=r"cannot read .*cat/1.png: damaged.*leave them out with on_error"):
            list(strict.batches(2, workers=workers))
        batches = list(lenient.batches(2, workers=workers))
        assert [batch.numbers.tolist() for batch in batches] == [[0], [2], [4, 5]]
        assert torch.equal(batches[1].images[0], torch.from_numpy(pixels_of(root / "cat" / "2.png").copy()))
        assert [item.path.split("/")[-2:] for item in lenient.skipped] == [["cat", "1.png"], ["dog", "0.png"]]
    with pytest.raises(UnreadableImage, match=r"cat/1.png"):
        lenient.images()
    held = lenient.in_memory()
    assert held.numbers.tolist() == [0, 2, 4, 5] and len(held.image_set()) == 4
    described = lenient.describe()
    assert described["skipped"] == 2 and "does not exist" in described["skipped_files"][1]


def test_images_of_other_sizes_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path, ["cat/a.png", "dog/b.png"])
    pixels = FilePixels([root / "cat" / "a.png", root / "dog" / "b.png"], Preprocess())
    tree(tmp_path, ["dog/b.png"], size=(9, 7))
    with pytest.raises(ValueError, match=r"a.png is 40x32 and .*b.png 9x7 after preprocess='none'"):
        pixels.read(torch.arange(2))


def test_too_many_images_for_memory(files: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Dataset.in_memory.__globals__, "MEMORY_LIMIT", 100)
    with pytest.raises(ValueError, match=r"8 images of \(32, 40\) need .* GiB"):
        files.in_memory()


def test_array_pixels_are_read_from_the_disk(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", array)
    pixels = ArrayPixels(tmp_path / "fog.npy", range(2, 6))
    assert np.array_equal(pixels.read(torch.tensor([3, 0]))[0].numpy(), array[[5, 2]].transpose(0, 3, 1, 2))
    copy = pickle.loads(pickle.dumps(pixels))
    assert len(pickle.dumps(pixels)) < 500 and torch.equal(
        copy.read(torch.arange(4))[0], pixels.read(torch.arange(4))[0]
    )
    with pytest.raises(ValueError, match=r"holds 6 images, not the rows 5 to 6"):
        ArrayPixels(tmp_path / "fog.npy", range(5, 7))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "truncated or holds no plain array"),
        (lambda path: path.write_bytes(b""), "truncated or holds no plain array"),
        (lambda path: path.write_bytes(b"hello" * 99), "no plain array"),
        (lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "no plain array"),
        (lambda path: np.save(path, np.zeros((2, 3, 4, 4), dtype=np.uint8)), r"must hold \(N, H, W, 3\) uint8"),
        (lambda path: np.save(path, np.zeros((2, 4, 4, 3))), "float64"),
    ],
)
def test_damaged_arrays(tmp_path: Path, make: object, reason: str) -> None:
    path = tmp_path / "fog.npy"
    np.save(path, np.zeros((2, 8, 8, 3), dtype=np.uint8))
    make(path)
    with pytest.raises(ValueError, match=f"fog.npy .*{reason}"):
        ArrayPixels(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3).long()}, r"labels must be \(2,\) int64 for 2 images, got \(3,\)"),
        ({"labels": torch.tensor([0, 2])}, r"labels must be in 0..1 for 2 names, got 0..2"),
        ({"numbers": torch.zeros(2)}, "numbers must be .* torch.float32"),
        ({"domains": ("a",)}, "domains and domain_labels belong together"),
        ({"class_subset": torch.tensor([1])}, r"class_subset must be \(2,\) int64"),
        ({"class_subset": torch.tensor([1, 5]), "outputs": 5}, "class_subset goes up to 5, but outputs is 5"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_parts_that_do_not_fit_together(change: dict[str, object], message: str) -> None:
    whole: dict[str, object] = {
        "name": "odd",
        "pixels": TensorPixels(torch.zeros(2, 3, 4, 4).byte()),
        "labels": torch.tensor([0, 1]),
        "classes": ("a", "b"),
        "numbers": torch.arange(2),
        "provenance": Provenance(Path("odd"), ()),
    }
    with pytest.raises(ValueError, match=message):
        Dataset(**{**whole, **change})


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be at least 1"):
        numbered().batches(0)
    with pytest.raises(ValueError, match=r"workers at least 0"):
        numbered().batches(2, workers=-1)
    with pytest.raises(IndexError, match=r"indices 0..10 are not all among its 10 images"):
        numbered().images([0, 10])
    with pytest.raises(TypeError, match=r"indices must be integers, got booleans"):
        numbered().images(torch.ones(10, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"at least 1 image per class, got 0"):
        numbered().limit(0)


def test_checksums(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abcd"]
    for file in files:
        file.write_bytes(b"same size")
    few, many = Provenance(tmp_path, tuple(files[:2])), Provenance(tmp_path, tuple(files))
    assert few.checksum.startswith("sha256:") and many.checksum.startswith("names-and-sizes-sha256:")
    before = few.checksum, many.checksum
    files[0].write_bytes(b"different")
    after = Provenance(tmp_path, tuple(files[:2])).checksum, Provenance(tmp_path, tuple(files)).checksum
    # Of many files only names and sizes count, and the name of the checksum says so.
    assert before[0] != after[0] and before[1] == after[1]
    files[0].unlink()
    assert Provenance(tmp_path, tuple(files[:2])).checksum.startswith("names-and-sizes-sha256:")
    assert Provenance(tmp_path, tuple(files)).checksum != before[1]
