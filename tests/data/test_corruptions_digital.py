"""Digital corruptions against Pillow and against the formulas in double precision."""

from __future__ import annotations

import colorsys
import io
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from shiftnorm.data import corrupt
from shiftnorm.data.corruptions import CORRUPTIONS
from shiftnorm.data.corruptions.constants import CONSTANT_SETS, CONSTANTS
from shiftnorm.data.corruptions.digital import through_jpeg

Image = pytest.importorskip("PIL.Image")
SEVERITIES = range(1, 6)


def pictures(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 6, generator=generator)
    fine = torch.rand(n, 3, height, width, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * (0.8 * smooth + 0.2 * fine)).to(torch.uint8)


def to_pillow(image: Tensor):
    return Image.fromarray(image.movedim(0, -1).contiguous().numpy())


def from_pillow(image) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (224, 224), (299, 299), (37, 50)])
def test_pixelate_is_pillows_box_filter(height: int, width: int) -> None:
    images = pictures(2, height, width)
    for constants in CONSTANT_SETS:
        for severity in SEVERITIES:
            factor = CONSTANTS["pixelate"][constants][severity - 1]
            ours = corrupt(images, "pixelate", severity, constants=constants, storage="none")
            for image, out in zip(images, ours, strict=True):
                small = to_pillow(image).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
                expected = from_pillow(small.resize((width, height), Image.Resampling.BOX))
                assert torch.equal(out, expected)


@pytest.mark.parametrize("size", [32, 64, 75])
def test_jpeg_is_pillows(size: int) -> None:
    images = pictures(2, size, size)
    for quality in (7, 25, 40, 85):
        for image, out in zip(images, through_jpeg(images, quality), strict=True):
            file = io.BytesIO()
            to_pillow(image).save(file, "JPEG", quality=quality, optimize=True)
            assert torch.equal(out, from_pillow(Image.open(file)))
    ours = corrupt(images, "jpeg_compression", 5)
    assert torch.equal(ours, through_jpeg(images, 40))


def test_jpeg_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"JPEG needs Pillow; .* \"shiftnorm\[train\]\""):
        corrupt(pictures(1, 32, 32), "jpeg_compression", 1)


def by_hsv(images: Tensor, change) -> Tensor:
    """Every pixel through Python's own conversion, in double precision."""
    out = [
        [change(*colorsys.rgb_to_hsv(*(value / 255 for value in pixel))) for pixel in image.flatten(1).T.tolist()]
        for image in images
    ]
    rgb = torch.tensor([[colorsys.hsv_to_rgb(*hsv) for hsv in image] for image in out], dtype=torch.float64)
    return (rgb.movedim(-1, 1).reshape(images.shape) * 255).clamp(0, 255)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("constants", CONSTANT_SETS)
def test_brightness_and_saturate_in_hsv(severity: int, constants: str) -> None:
    images = pictures(1, 24, 24)
    images[0, :, :4] = torch.tensor([[0, 128, 255, 0], [0, 128, 255, 200], [0, 128, 255, 200]])[:, :, None]
    added = CONSTANTS["brightness"][constants][severity - 1]
    scale, shift = CONSTANTS["saturate"][constants][severity - 1]
    for name, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + added, 1))),
        ("saturate", lambda h, s, v: (h, min(s * scale + shift, 1), v)),
    ):
        ours = corrupt(images, name, severity, constants=constants, storage="none").double()
        difference = by_hsv(images, change) - ours
        # Cut off to whole levels; a last bit decides where the exact result is a whole level.
        assert float(difference.min()) > -1e-6 and float(difference.max()) < 1 + 1e-6


def test_saturate_turns_grey_red() -> None:
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    assert corrupt(grey, "saturate", 4)[0, :, 0, 0].tolist() == [128, 115, 115]
    assert corrupt(grey, "saturate", 5)[0, :, 0, 0].tolist() == [128, 102, 102]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_keeps_the_mean_of_each_channel(severity: int) -> None:
    images = pictures(3, 40, 30)
    factor = CONSTANTS["contrast"]["imagenet224"][severity - 1]
    exact = images.double() / 255
    mean = exact.mean((2, 3), keepdim=True)
    expected = ((exact - mean) * factor + mean) * 255
    ours = CORRUPTIONS["contrast"].apply(images.float() / 255, factor, None) * 255
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4)
