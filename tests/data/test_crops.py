"""Random parts of images against one image at a time, Pillow and torchvision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pillow_operations import as_picture, as_tensor
from shiftnorm.data import Dataset
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.crops import CropDraw, crop_boxes, crop_files, draw_crops, resize_crops
from shiftnorm.data.pixels import FilePixels
from shiftnorm.data.preprocess import Preprocess
from shiftnorm.data.provenance import Provenance
from shiftnorm.tasks.loaded_batches import LoadedBatches

BILINEAR = Image.Resampling.BILINEAR


def draw(n: int, **arguments: tuple[float, float]) -> CropDraw:
    return draw_crops(Stream(0, "resized_crop", 0, torch.arange(n)), **arguments)


def pictures(n: int, height: int, width: int) -> Tensor:
    noise = torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(1))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.where(torch.arange(n)[:, None, None, None] % 2 == 0, noise, (x * 3 + y * 5) % 256).to(torch.uint8)


def by_pillow(image: Tensor, box: list[int], size: int) -> Tensor:
    top, left, height, width = box
    return as_tensor(as_picture(image).crop((left, top, left + width, top + height)).resize((size, size), BILINEAR))


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (50, 37, 24), (20, 28, 64), (300, 260, 224)])
def test_resizing_is_pillows(height: int, width: int, size: int) -> None:
    images = pictures(12, height, width)
    boxes = crop_boxes(draw(12), height, width)
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, width - 1, 1, 1])
    boxes[2] = torch.tensor([0, 3, height, 2])
    ours = resize_crops(images, boxes, size)
    theirs = torch.stack([by_pillow(image, box, size) for image, box in zip(images, boxes.tolist(), strict=True)])
    wrong = ours.int() - theirs.int()
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    # Pillow rounds after each axis, and which comes first depends on its version and on the sizes.
    assert wrong.abs().max() <= 1 and (wrong != 0).double().mean() < 0.1 and wrong.double().mean().abs() < 0.05
    for image, (top, left, high, wide), result in zip(images, boxes.tolist(), ours, strict=True):
        cut = image[None, :, top : top + high, left : left + wide].double()
        exact = F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]
        assert (result - exact).abs().max() <= 1 + 1e-4
    assert torch.equal(resize_crops(images[5:], boxes[5:], size), ours[5:])


def test_half_precision_around_it_changes_nothing() -> None:
    images, boxes = pictures(4, 32, 32), crop_boxes(draw(4), 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = resize_crops(images, boxes, 32)
    assert torch.equal(inside, resize_crops(images, boxes, 32))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 300), (10, 60), (60, 10), (1, 1), (3, 2)])
def test_boxes_against_one_at_a_time(height: int, width: int) -> None:
    one = draw(300)
    boxes = crop_boxes(one, height, width)
    fallbacks = 0
    for index, (top, left, high, wide) in enumerate(boxes.tolist()):
        assert 0 <= top <= height - high and 0 <= left <= width - wide and high > 0 and wide > 0
        for area, ratio in zip(one.areas[index].tolist(), one.ratios[index].tolist(), strict=True):
            w, h = round((height * width * area * ratio) ** 0.5), round((height * width * area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                y, x = one.places[index].tolist()
                assert [top, left, high, wide] == [int(y * (height - h + 1)), int(x * (width - w + 1)), h, w]
                break
        else:
            fallbacks += 1
            assert top == (height - high) // 2 and left == (width - wide) // 2
            assert high == height or wide == width
    assert (fallbacks > 0) == ((height, width) in ((10, 60), (60, 10)))


def test_boxes_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    crop, image = RandomResizedCrop(32), torch.empty(3, 48, 40)
    theirs = [crop.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[params[name] for name in ("top", "left", "height", "width")] for params in theirs]).double()
    ours = crop_boxes(draw(4000), 48, 40).double()
    for column in range(4):
        error = (theirs[:, column].var() / 2000).sqrt()
        assert (ours[:, column].mean() - theirs[:, column].mean()).abs() < 5 * error
        assert 0.9 < ours[:, column].std() / theirs[:, column].std() < 1.1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(4):
            image = pictures(2, 30 + 7 * number, 45 - 3 * number)[number % 2]
            as_picture(image).save(tmp_path / label / f"{number}.png")
    return tmp_path


def files_of(folder: Path) -> Dataset:
    paths = sorted(folder.glob("*/*.png"))
    pixels = FilePixels(paths, Preprocess(crop=16))
    labels = torch.tensor([path.parent.name == "dog" for path in paths]).long()
    return Dataset("pets", pixels, labels, ("cat", "dog"), torch.arange(8), Provenance(folder, (), ()))


def test_files_are_cut_out_of_whole_pictures(folder: Path) -> None:
    pets = files_of(folder).subset([5, 2, 7, 0])
    files = crop_files(pets.pixels, size=20, seed=3, epoch=2)
    assert files is not None and len(files) == 4
    one = draw_crops(Stream(3, "resized_crop", 2, torch.arange(4)))
    images, failures = files.read(torch.arange(4))
    assert not failures and images.shape == (4, 3, 20, 20)
    for place, file in enumerate([5, 2, 7, 0]):
        whole = as_tensor(Image.open(sorted(folder.glob("*/*.png"))[file]))
        box = crop_boxes(CropDraw(*(part[place : place + 1] for part in one)), *whole.shape[1:])[0].tolist()
        assert torch.equal(images[place], by_pillow(whole, box, 20))
        assert torch.equal(files.read(torch.tensor([place]))[0][0], images[place])


def test_batches_of_files(folder: Path) -> None:
    arguments = {"batch_size": 3, "resized": 20, "flip": True, "drop_last": False, "with_indices": True}
    batches = LoadedBatches(files_of(folder), **arguments)
    first, second = [*batches], [*batches]
    assert [len(labels) for _, labels, _ in first] == [3, 3, 2]
    again = LoadedBatches(files_of(folder), workers=2, **arguments)
    again.skip(1)
    for ours, theirs in zip([*again, *again], [*first[1:], *second], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(ours[1], (ours[2] >= 4).long())


def test_unreadable_files(folder: Path) -> None:
    path = sorted(folder.glob("*/*.png"))[3]
    path.write_bytes(b"no picture")
    pets = files_of(folder)
    with pytest.raises(ValueError, match=f"{path.name}: not an image"):
        list(LoadedBatches(pets, batch_size=4, resized=20))
    object.__setattr__(pets, "on_error", "skip")
    assert sum(len(labels) for _, labels in LoadedBatches(pets, batch_size=4, resized=20)) == 7
    with pytest.raises(RuntimeError, match=r"none of the images \[3\] of 'pets' can be read"):
        list(LoadedBatches(pets, batch_size=1, resized=20))


def test_images_in_memory_are_not_files() -> None:
    dataset = Dataset.of_images("held", pictures(3, 8, 8), torch.arange(3), ("a", "b", "c"))
    for one in (dataset, dataset.subset([1])):
        assert crop_files(one.pixels, size=20, seed=0, epoch=0) is None


def test_impossible_arguments() -> None:
    for arguments in ({"scale": (0.0, 1.0)}, {"scale": (0.5, 1.1)}, {"scale": (0.5, 0.4)}, {"ratio": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="draw_crops: expected 0 < scale <= 1"):
            draw(2, **arguments)
    images, boxes = pictures(2, 8, 8), torch.tensor([[0, 0, 8, 8]] * 2)
    for arguments in ((images.float(), boxes, 4), (images, boxes[:1], 4), (images, boxes, 0), (images[0], boxes, 4)):
        with pytest.raises(ValueError, match=r"resize_crops: expected \(N, C, H, W\) uint8"):
            resize_crops(*arguments)
