"""Decoding: every mode becomes the right RGB picture, every damaged file a reason."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shiftnorm.data.decode import UnreadableImage, decode_image, fit_image, image_tensor

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def pixel(path: Path) -> tuple[int, ...]:
    image = decode_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def palette_with_transparency() -> object:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 100, 50])
    return image


def sixteen_bit(value: int) -> object:
    return Image.fromarray(np.full((4, 4), value, dtype=np.uint16))


@pytest.mark.parametrize(
    ("make", "name", "options", "expected", "tolerance"),
    [
        (lambda: Image.new("RGB", (4, 4), (250, 100, 50)), "rgb.png", {}, (250, 100, 50), 0),
        (lambda: Image.new("L", (4, 4), 77), "grey.png", {}, (77, 77, 77), 0),
        (lambda: Image.new("1", (4, 4), 1), "bits.png", {}, (255, 255, 255), 0),
        (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "cmyk.tif", {}, (255, 0, 0), 1),
        (lambda: Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "cmyk.jpg", {"quality": 95}, (255, 0, 0), 6),
        (palette_with_transparency, "palette.png", {}, (250, 100, 50), 0),
        (palette_with_transparency, "seethrough.png", {"transparency": 1}, (255, 255, 255), 0),
        (palette_with_transparency, "palette.gif", {}, (250, 100, 50), 0),
        (lambda: Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "clear.png", {}, (255, 255, 255), 0),
        (lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "half.png", {}, (127, 127, 127), 1),
        (lambda: Image.new("LA", (4, 4), (30, 255)), "opaque.png", {}, (30, 30, 30), 0),
        (lambda: sixteen_bit(65535), "white16.png", {}, (255, 255, 255), 0),
        (lambda: sixteen_bit(257 * 77), "grey16.png", {}, (77, 77, 77), 0),
        (lambda: sixteen_bit(257 * 77), "grey16.tif", {}, (77, 77, 77), 0),
        (lambda: Image.new("I", (4, 4), 257 * 12), "int.tif", {}, (12, 12, 12), 0),
        (lambda: Image.new("YCbCr", (16, 16), (76, 85, 255)), "ycbcr.jpg", {"quality": 95}, (254, 0, 0), 4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_modes(
    tmp_path: Path,
    make: Callable[[], object],
    name: str,
    options: dict[str, object],
    expected: tuple[int, ...],
    tolerance: int,
) -> None:
    make().save(tmp_path / name, **options)
    assert np.abs(np.subtract(pixel(tmp_path / name), expected)).max() <= tolerance


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_first_frame_of_an_animation(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(pixel(path), (255, 0, 0))).max() <= 3


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert decode_image(tmp_path / "turned.jpg").size == (10, 20)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def encoded(tmp_path: Path, ending: str) -> bytes:
    path = tmp_path / f"whole.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda _: b"", "the file is empty"),
        (lambda _: b"hello, I am a text", "not an image"),
        (lambda _: bytes(range(100, 200)), "not an image"),
        (lambda tmp: encoded(tmp, "jpg")[:1500], "damaged .*truncated"),
        (lambda tmp: encoded(tmp, "png")[:1500], "damaged .*truncated"),
        (lambda tmp: encoded(tmp, "png")[:20], "not an image|damaged"),
        (lambda tmp: encoded(tmp, "gif")[:1500], "damaged"),
        (lambda tmp: encoded(tmp, "png").replace(b"IDAT", b"XXXX", 1), "not an image"),
        (lambda _: png_header(11000, 11000), "decompression bomb"),
        (lambda _: png_header(50000, 50000), "decompression bomb"),
        (lambda _: png_header(64, 64), "damaged"),
    ],
    ids=["empty", "text", "random", "jpg", "png", "stub", "gif", "chunk", "bomb", "big bomb", "too few rows"],
)
def test_damaged_files(tmp_path: Path, content: Callable[[Path], bytes], reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content(tmp_path))
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(path)


def test_values_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableImage, match="floating-point values have no known range"):
        decode_image(tmp_path / "float.tif")
    Image.new("I", (4, 4), 70000).save(tmp_path / "int.tif")
    with pytest.raises(UnreadableImage, match="70000 have no known range"):
        decode_image(tmp_path / "int.tif")


def test_missing_file_and_broken_link(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UnreadableImage, match="broken link"):
        decode_image(tmp_path / "link.png")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "locked.png")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # File modes do not stop the superuser, whom containers run tests as.
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UnreadableImage, match="no permission to read it"):
        decode_image(tmp_path / "locked.png")


def test_fit_scales_the_shorter_side_and_cuts_the_centre() -> None:
    array = np.zeros((40, 120, 3), dtype=np.uint8)
    array[:, 40:80] = 200
    wide, tall = (image_tensor(fit_image(Image.fromarray(a), 20)) for a in (array, array.swapaxes(0, 1)))
    assert wide.shape == (3, 20, 20) and wide.dtype == torch.uint8 and wide.is_contiguous()
    assert torch.equal(wide.mT, tall)
    # The middle third fills the square; only the outermost pixels feel their neighbours.
    assert (wide[:, :, 2:-2] == 200).all() and (wide > 150).all()
    same = Image.fromarray(array[:, 40:80])
    assert fit_image(same, 40) is same


def test_missing_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install 'shiftnorm\[train\]'"):
        decode_image(tmp_path / "any.png")
