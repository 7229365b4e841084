"""Frost: with photographs of the user's, and made by computation."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from golden_corruptions import golden_file
from shiftnorm.data import corrupt
from shiftnorm.data.corruptions import CORRUPTIONS, SEVERITIES
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.frost import PHOTOS, FrostDraw, frost_from_photos, lay_frost
from shiftnorm.data.corruptions.frost_plates import SIDE, plates

# (height, width); the first is the lowest that a crop of 32 fits in after the authors' reduction to a fifth.
SIZES = ((165, 260), (185, 205), (185, 205), (220, 190), (240, 300))
PROCEDURAL = CORRUPTIONS["frost_procedural"]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    generator = np.random.RandomState(0)
    pictures = [generator.randint(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    pictures[2] = pictures[1]
    return pictures


@pytest.fixture(scope="module")
def frost_dir(photos: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frost")
    for name, photo in zip(PHOTOS, photos, strict=True):
        # Pillow goes by the content: as PNG, the two named .jpg keep their pixels.
        Image.fromarray(photo).save(directory / name, format="PNG")
    return directory


def pictures(n: int, size: int = 32) -> Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def drawn(n: int, size: int, frost_dir: Path, constant: tuple[float, ...]) -> FrostDraw:
    stream = Stream(0, "frost", 1, torch.arange(n))
    return frost_from_photos(frost_dir).sample(stream, torch.Size([n, 3, size, size]), constant)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("constants", "size"), [("cifar32", 32), ("imagenet224", 128)])
def test_the_sum_of_image_and_photograph(
    frost_dir: Path, photos: list[np.ndarray], constants: str, size: int, severity: int
) -> None:
    clean = pictures(24, size)
    frost = frost_from_photos(frost_dir)
    image_weight, frost_weight, factor = frost.constant(constants, severity)
    every = round(1 / factor)
    draw = frost.sample(Stream(5, "frost", severity, torch.arange(24)), clean.shape, (1, 1, factor))
    expected = []
    for i, (photo, row, column) in enumerate(zip(*(part.tolist() for part in draw), strict=True)):
        overlay = photos[photo][every // 2 :: every, every // 2 :: every][row : row + size, column : column + size]
        total = image_weight * clean[i].movedim(0, -1).numpy() + frost_weight * overlay
        expected.append(np.uint8(np.clip(total, 0, 255)))
    ours = corrupt(clean, "frost", severity, seed=5, constants=constants, storage="none", frost_dir=frost_dir)
    np.testing.assert_array_equal(ours.movedim(1, -1).numpy(), np.stack(expected))


def test_the_reduction_to_three_tenths(frost_dir: Path, photos: list[np.ndarray]) -> None:
    draw = FrostDraw(torch.tensor([4]), torch.tensor([3]), torch.tensor([5]))
    black = torch.zeros(1, 3, 64, 64)
    ours = frost_from_photos(frost_dir).apply(black, (1, 1, 0.3), draw) * 255
    photo = torch.from_numpy(photos[4]).movedim(-1, 0)[None].double()
    smaller = F.interpolate(photo, size=(72, 90), mode="bilinear", align_corners=False)[:, :, 3:67, 5:69]
    torch.testing.assert_close(ours.double(), smaller, rtol=0, atol=0.501)


def test_the_draw(frost_dir: Path) -> None:
    draw = drawn(20_000, 32, frost_dir, (1, 0.2, 0.2))
    counts = torch.bincount(draw.photo, minlength=5)
    assert ((counts - 4000).abs() < 5 * (20_000 * 0.2 * 0.8) ** 0.5).all()
    for photo, (height, width) in enumerate(SIZES):
        mine = draw.photo == photo
        for start, side in ((draw.row[mine], height), (draw.column[mine], width)):
            possible = round(side * 0.2) - 32
            times = torch.bincount(start, minlength=possible)
            assert len(times) == possible
            mean = len(start) / possible
            assert (((times - mean) ** 2 / mean).sum() - possible + 1) < 6 * (2 * possible) ** 0.5
    rows, columns = draw.row[draw.photo == 4].double(), draw.column[draw.photo == 4].double()
    assert abs(float(torch.corrcoef(torch.stack([rows, columns]))[0, 1])) < 5 / len(rows) ** 0.5


@pytest.mark.parametrize("size", [185, 400])
def test_images_larger_than_a_photograph(frost_dir: Path, size: int) -> None:
    clean = torch.zeros(12, 3, size, size, dtype=torch.uint8)
    frosted = corrupt(clean, "frost", 1, constants="imagenet224", storage="none", frost_dir=frost_dir)
    # The photographs fill the images: no black rim is left.
    assert frosted[:, :, -8:, -8:].float().mean((1, 2, 3)).min() > 20
    assert frosted[:, :, :8, :8].float().mean((1, 2, 3)).min() > 20


def test_without_photographs() -> None:
    clean = pictures(2)
    with pytest.raises(ValueError, match=r"not part of this package; pass frost_dir=.*frost5\.jpg.*'frost_procedural'"):
        corrupt(clean, "frost", 1)
    assert corrupt(clean, "frost_procedural", 1).shape == clean.shape


def test_a_wrong_directory(frost_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing in .*: frost1\.png, frost2\.png, .*'frost_procedural'"):
        frost_from_photos(tmp_path)
    for name in PHOTOS[:4]:
        (tmp_path / name).write_bytes((frost_dir / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"missing in .*: frost5\.jpg; copy"):
        corrupt(pictures(1), "frost", 1, frost_dir=tmp_path)
    (tmp_path / PHOTOS[4]).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"frost: cannot read .*frost5\.jpg: .*copy it again"):
        corrupt(pictures(1), "frost", 1, frost_dir=tmp_path)


def test_photographs_that_change_are_read_again(frost_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    def write(pixels: list[np.ndarray]) -> None:
        for name, photo in zip(PHOTOS, pixels, strict=True):
            # Not compressed, so that only the time tells the new file from the old.
            Image.fromarray(photo).save(tmp_path / name, format="BMP")

    write(photos)
    clean = pictures(8)
    before = corrupt(clean, "frost", 5, frost_dir=tmp_path)
    assert torch.equal(before, corrupt(clean, "frost", 5, frost_dir=str(frost_dir)))
    write([255 - photo for photo in photos])
    for name in PHOTOS:
        os.utime(tmp_path / name, ns=(1, 1))
    assert not torch.equal(before, corrupt(clean, "frost", 5, frost_dir=tmp_path))


def test_golden_crops_of_one_photograph_agree(golden: Path) -> None:
    """The stored outputs, crops of one photograph: some pixel values of the photograph explain all of them."""
    with np.load(golden_file(golden, "frost_cifar.npz")) as z:
        stored = {key: z[key] for key in z.files if key.startswith("draw") or key == "exact_out"}
    with np.load(golden_file(golden, "clean_cifar.npz")) as z:
        clean = torch.from_numpy(z["images"][:2]).movedim(-1, 1)
    values = torch.arange(256, dtype=torch.uint8)
    possible: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for severity in SEVERITIES:
        constant = CORRUPTIONS["frost"].constant("cifar32", severity)
        for image in range(2):
            photo, row, column = (int(stored[f"draw.s{severity}.i{image}.0{i}.randint"]) for i in range(3))
            photo = 1 if photo == 2 else photo  # they are the same
            x = (clean[image] / 255).reshape(1, 3, 1024, 1).expand(1, 3, 1024, 256)
            laid = lay_frost(x, constant, values.expand(1, 3, 1024, 256))[0].mul(255).round()
            out = torch.from_numpy(stored["exact_out"][severity - 1, image]).movedim(-1, 0).reshape(3, 1024, 1)
            explains = (laid == out).view(3, 32, 32, 256)
            assert explains.any(-1).all()
            part = (slice(None), slice(row, row + 32), slice(column, column + 32))
            possible.setdefault(photo, torch.ones(3, 150, 200, 256, dtype=torch.bool))[part] &= explains
            seen.setdefault(photo, torch.zeros(3, 150, 200))[part] += 1
    shared = [possible[photo][seen[photo] > 1].any(-1) for photo in possible]
    assert sum(len(pixels) for pixels in shared) > 1000
    assert all(pixels.all() for pixels in shared)


# What was measured of the authors' photographs, one of two equal ones left out.
MEAN = ((75, 147, 164), (198, 202, 212), (144, 159, 172), (101, 112, 124))
SPREAD_IN_CROPS = (15, 20, 26, 35)
SLOPE = (-1.74, -1.92, -1.39, -1.98)


def test_plates_have_the_measured_statistics() -> None:
    made = plates()
    assert (made.shape, made.dtype) == ((4, 3, SIDE, SIDE), torch.uint8)
    rows, columns = torch.fft.fftfreq(SIDE, 1 / SIDE)[:, None], torch.fft.rfftfreq(SIDE, 1 / SIDE)
    ring = ((rows**2 + columns**2).sqrt() + 0.5).long().flatten()
    frequency = torch.arange(3, 300)
    for plate, mean, spread, slope in zip(made.float(), MEAN, SPREAD_IN_CROPS, SLOPE, strict=True):
        torch.testing.assert_close(plate.mean((1, 2)), torch.tensor(mean).float(), rtol=0, atol=1.0)
        grey = plate.mean(0)
        crops = grey.unfold(0, 224, 62).unfold(1, 224, 62).std((2, 3)).mean()
        assert float(crops) == pytest.approx(spread, rel=0.05)
        power = torch.zeros(int(ring.max()) + 1).index_add_(
            0, ring, (torch.fft.rfft2(grey - grey.mean()).abs() ** 2).flatten()
        ) / torch.bincount(ring)
        x, y = frequency.log(), power[frequency].log()
        assert float(torch.cov(torch.stack([x, y]))[0, 1] / x.var()) == pytest.approx(slope, abs=0.08)
    red, green, _ = torch.corrcoef(made[0].float().flatten(1))
    assert 0.45 < float(red[1]) < 0.7
    assert float(green[2]) > 0.93
    assert all(torch.corrcoef(plate.float().flatten(1)).min() > 0.98 for plate in made[1:])
    bright = made[1].float().mean(0)
    assert float((((bright - bright.mean()) / bright.std()) ** 3).mean()) == pytest.approx(-1, abs=0.1)


def test_plates_are_tori_with_crystals() -> None:
    for plate in plates().float():
        # Opposite borders differ no more than neighbours elsewhere.
        assert (plate[:, 0] - plate[:, -1]).abs().mean() < 1.5 * plate.diff(dim=1).abs().mean()
        assert (plate[:, :, 0] - plate[:, :, -1]).abs().mean() < 1.5 * plate.diff(dim=2).abs().mean()
        # Lines, not noise: bent differences are mostly small and sometimes large.
        bent = (plate.mean(0).diff(n=2, dim=0)).flatten()
        assert float(((bent / bent.std()) ** 4).mean()) > 3.5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_golden_statistics_are_near(golden: Path, severity: int) -> None:
    """Not the same pictures, but the same strength."""
    with np.load(golden_file(golden, "frost_cifar.npz")) as z:
        stored = {name: z[f"summary.{name}"][severity - 1] for name in ("out_mean", "out_std", "psnr", "frac_changed")}
        colour = {name: z[name][severity - 1].mean(0) for name in ("res_mean_rgb", "res_std_rgb")}
        power = z["power_mean"][severity - 1]
    with np.load(golden_file(golden, "clean_cifar.npz")) as z:
        clean = torch.from_numpy(z["images"]).movedim(-1, 1).contiguous().repeat(4, 1, 1, 1)
    out = corrupt(clean, "frost_procedural", severity).double()
    residual = out - clean
    ours = {
        "out_mean": out.mean((1, 2, 3)),
        "out_std": out.std((1, 2, 3)),
        "psnr": 10 * torch.log10(255**2 / residual.square().mean((1, 2, 3))),
        "frac_changed": (residual != 0).double().mean((1, 2, 3)),
    }
    for name, values in ours.items():
        # Five standard errors of the difference of the two means, and a little for being other pictures.
        allowed = 5 * stored[name][1] * (1 / 128 + 1 / 512) ** 0.5 * 0.5 + 0.02 * stored[name][0]
        assert abs(float(values.mean()) - stored[name][0]) < allowed, name
    np.testing.assert_allclose(residual.mean((0, 2, 3)).numpy(), colour["res_mean_rgb"], atol=4)
    np.testing.assert_allclose(residual.std((2, 3)).mean(0).numpy(), colour["res_std_rgb"], rtol=0.1)
    frequency = torch.fft.fftfreq(32, 1 / 32)
    ring = ((frequency[:, None] ** 2 + frequency**2).sqrt() + 0.5).long()
    spectrum = (torch.fft.fft2(residual / 255).abs() ** 2 / 1024).mean((0, 1))
    radial = torch.stack([spectrum[ring == k].mean() for k in range(1, 17)])
    np.testing.assert_allclose(radial.numpy(), power[1:], rtol=0.35)


@pytest.mark.parametrize(("constants", "size"), [("cifar32", 32), ("tiny64", 64), ("imagenet224", 760)])
def test_procedural_frost_takes_any_size(constants: str, size: int) -> None:
    clean = torch.full((3, 3, size, size + 1), 60, dtype=torch.uint8)
    frosted = corrupt(clean, "frost_procedural", 3, constants=constants, storage="none")
    assert (frosted.float().std((1, 2, 3)) > 5).all()
    assert not torch.equal(frosted[0], frosted[1])
    parts = [
        corrupt(clean[i : i + 1], "frost_procedural", 3, constants=constants, storage="none", indices=[i])
        for i in (2, 0, 1)
    ]
    assert torch.equal(torch.cat(parts)[[1, 2, 0]], frosted)


def test_frost_goes_to_workers_and_leaves_its_input(frost_dir: Path) -> None:
    x = pictures(4) / 255
    before = x.clone()
    constant = PROCEDURAL.constant("cifar32", 2)
    for corruption in (PROCEDURAL, frost_from_photos(frost_dir)):
        sample, apply = pickle.loads(pickle.dumps((corruption.sample, corruption.apply)))
        draw = corruption.sample(Stream(0, corruption.name, 2, torch.arange(4)), x.shape, constant)
        again = sample(Stream(0, corruption.name, 2, torch.arange(4)), x.shape, constant)
        assert torch.equal(apply(x, constant, again), corruption.apply(x, constant, draw))
        assert torch.equal(x, before)
        assert corruption.apply(x[:0], constant, FrostDraw(*(part[:0] for part in draw))).shape == (0, 3, 32, 32)
