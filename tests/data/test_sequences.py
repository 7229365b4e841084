"""Perturbation sequences are read as arrays, videos and folders of frames."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import picture, tree
from shiftnorm.data.decode import UnreadableImage
from shiftnorm.data.open_corrupted import corrupted_layout
from shiftnorm.data.sequences import open_sequences, sequence_layout


def arrays(folder: Path, names: tuple[str, ...] = ("tilt", "gaussian_noise", "gaussian_noise_2"), n: int = 3) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (n, 5, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{name}.npy", pixels)
    return folder


def test_arrays(tmp_path: Path) -> None:
    folder = arrays(tmp_path / "CIFAR-10-P")
    assert sequence_layout(folder) == "arrays" and corrupted_layout(folder) is None
    found = open_sequences("cifar10-p", tmp_path)
    assert found.perturbations == ("gaussian_noise", "gaussian_noise_2", "tilt")  # as published, not by the alphabet
    assert (found.path, found.classes, found.count("tilt")) == (folder, 10, 3)
    read = list(found.read("tilt"))
    whole = torch.from_numpy(np.load(folder / "tilt.npy"))
    assert torch.equal(torch.stack(read), whole.permute(0, 1, 4, 2, 3)) and len(list(found.read("tilt", limit=2))) == 2
    assert found.checksum("tilt").startswith("sha256:") and found.checksum("tilt") != found.checksum("gaussian_noise")
    with pytest.raises(KeyError, match="has no 'scale'; it has gaussian_noise"):
        found.count("scale")
    with pytest.raises(FileNotFoundError, match=r"no cifar10-p in .*expected there: CIFAR-10-P/PERTURBATION.npy"):
        open_sequences("cifar10-p", tmp_path / "nowhere")


def test_arrays_of_another_shape(tmp_path: Path) -> None:
    folder = arrays(tmp_path / "p", ("tilt",))
    np.save(folder / "scale.npy", np.zeros((3, 1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"scale.npy must hold \(sequences, frames, H, W, 3\) uint8 .* got \(3, 1"):
        open_sequences(folder)
    with pytest.raises(ValueError, match="read as it is stored"):
        open_sequences(arrays(tmp_path / "q", ("tilt",)), preprocess="crop24")


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"{kind}/n01440764/{clip}/{frame}.png" for kind in ("snow", "shot_noise_2") for clip in "ab"
             for frame in (1, 2, 10)]  # fmt: skip
    root = tree(tmp_path / "ImageNet-P" / "weather", names, size=(40, 32)).parent
    assert sequence_layout(root) == "frames"
    for found in (open_sequences(root), open_sequences("imagenet-p", tmp_path)):
        assert found.perturbations == ("shot_noise_2", "snow") and found.count("snow") == 2
        first = next(found.read("snow"))
        expected = [np.asarray(Image.open(root / "weather/snow/n01440764/a" / f"{n}.png")) for n in (1, 2, 10)]
        assert torch.equal(first, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    cropped = open_sequences(root, preprocess="crop24")
    assert next(cropped.read("snow")).shape == (3, 3, 24, 24) and cropped.describe()["preprocess"] == "crop24"
    assert found.checksum("snow").startswith("names-and-sizes")


def test_damaged_sequences(tmp_path: Path) -> None:
    root = tree(tmp_path / "p", [f"tilt/{clip}/{frame}.png" for clip in "abc" for frame in range(3)])
    (root / "tilt" / "b" / "1.png").write_bytes(b"")
    picture(root / "tilt" / "c" / "1.png", (50, 50))
    with pytest.raises(UnreadableImage, match=r"cannot read .*tilt/b: the file is empty; .* on_error='skip'"):
        list(open_sequences(root).read("tilt"))
    found = open_sequences(root, on_error="skip")
    assert len(list(found.read("tilt"))) == len(list(found.read("tilt"))) == 1
    assert [item.reason for item in found.skipped] == [
        "the file is empty",
        "a sequence needs two frames or more of one size, it has 3 of 2 sizes",
    ]


class FFmpegError(Exception):
    pass


class Frame:
    def __init__(self, level: int) -> None:
        self.level = level

    def to_image(self) -> Image.Image:
        return Image.new("RGB", (24, 16), (self.level,) * 3)


class Container:
    """What PyAV opens, for files that hold a number of frames as text."""

    def __init__(self, path: str) -> None:
        text = Path(path).read_text()
        if not text.isdecimal():
            raise FFmpegError("Invalid data found when processing input")
        self.frames = int(text)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, video: int) -> list[Frame]:
        assert video == 0
        return [Frame(level) for level in range(self.frames)]


def videos(root: Path) -> Path:
    for seed, name in enumerate(("tilt/n01440764/a.mp4", "tilt/n01440764/b.mp4", "scale/n01440764/a.mp4")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(3 + seed))
    return root


def test_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=Container, FFmpegError=FFmpegError))
    root = videos(tmp_path / "ImageNet-P")
    found = open_sequences("imagenet-p", root)
    assert (found.layout, found.classes, found.perturbations) == ("videos", 1000, ("tilt", "scale"))
    assert [tuple(frames.shape) for frames in found.read("tilt")] == [(3, 3, 16, 24), (4, 3, 16, 24)]
    (root / "tilt" / "n01440764" / "b.mp4").write_text("broken")
    with pytest.raises(UnreadableImage, match=r"b.mp4: it is damaged or no video \(Invalid data"):
        list(found.read("tilt"))
    (root / "tilt" / "n01440764" / "b.mp4").write_text("0")
    with pytest.raises(UnreadableImage, match=r"b.mp4: it has no frame"):
        list(found.read("tilt"))


def test_videos_without_a_decoder_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"decoded by PyAV, .* pip install av; or unpack the frames"):
        open_sequences(videos(tmp_path / "ImageNet-P"))


def test_other_folders_are_no_sequences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    pets = tree(tmp_path / "pets", ["photo/cat/1.png", "sketch/cat/1.png"])
    assert sequence_layout(pets) is None and sequence_layout(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match=r"holds no perturbation sequences: expected PERTURBATION.npy"):
        open_sequences(pets)
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        open_sequences(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"a.txt is a file"):
        open_sequences(tmp_path / "a.txt")
    with pytest.raises(TypeError, match="root= belongs to a named data set"):
        open_sequences(pets, tmp_path)
