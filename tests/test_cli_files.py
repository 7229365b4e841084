"""shiftnorm evaluate on images that are corrupted already, and on perturbation sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import one_clear_line
from pictures import tree
from shiftnorm.evaluate.cell_folder import read_cells
from shiftnorm.evaluate.measure import Measurer
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.stability_result import StabilityResult
from shiftnorm.surgery import build_model, save

Run = Callable[..., tuple[int, str, str]]
FEW = ["--corruptions", "fog", "contrast", "--severities", 1, 5]
LESS = ["--bootstrap", 20, "--normalize", "half"]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    return save(build_model("shiftnorm/wide_resnet16_4", num_classes=2), tmp_path / "net.safetensors")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return tree(tmp_path / "pets", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(4)], size=(32, 32))


def test_files_give_the_numbers_of_corruptions_made_here(run: Run, net: Path, pets: Path) -> None:
    """What shiftnorm corrupt wrote, in both layouts, is measured as what evaluate makes itself."""
    assert run("evaluate", net, "--data", pets, *FEW, *LESS, "--constants", "cifar32", "--out", "made")[0] == 0
    made = Result.load("made")
    for layout in ("cifar-c", "imagenet-c"):
        severities = [] if layout == "cifar-c" else ["--severities", 1, 5]
        words = ["--corruptions", "fog", "contrast", *severities, "--constants", "cifar32"]
        made_of = f"pets-{layout}"
        assert run("corrupt", pets, "--out", made_of, "--layout", layout, *words)[0] == 0
        status, out, _ = run("evaluate", net, "--data", made_of, "--clean", pets, *FEW, *LESS, "--out", f"r-{layout}")
        assert status == 0 and f"net on 8 images of {made_of}" in out
        assert "read from files in" in out and "made by shiftnorm corrupt with the strengths cifar32" in out
        found = Result.load(f"r-{layout}")
        ours, theirs = read_cells(Path("made")), read_cells(Path(f"r-{layout}"))
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key].nll, theirs[key].nll)
        assert found.errors == made.errors and found.clean == made.clean
        assert found.settings["source"] == "files" and found.settings["constants"] == "cifar32"
        assert found.data["corrupted path"] == made_of and found.data["clean"] == "pets"
        assert len(found.fingerprint["corrupted files"]) == 64
        assert all("sha256:" in value for value in found.data["corrupted checksums"].values())
        page = Path(f"r-{layout}/report.html").read_text()
        assert "read from files in" in page and "Data corrupted path" in page
    # pixels that were made and pixels from files may differ, so the two are shown side by side, not subtracted
    status, out, _ = run("report", "made", "r-cifar-c", "--out", "both.html")
    assert status == 0 and "not compared with net: corruptions made here and read from files" in out
    status, out, _ = run("report", "r-cifar-c", "r-cifar-c", "--out", "same.html")
    assert status == 0 and ", against net " in out


def test_again_measures_nothing_and_more_may_be_added(
    run: Run, net: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("corrupt", pets, "--out", "c", "--corruptions", "fog", "contrast", "--layout", "cifar-c")[0] == 0
    words = ["evaluate", net, "--data", "c", "--clean", "pets", *LESS, "--out", "r", "--severities", 5, "--corruptions"]
    first = run(*words, "fog")
    assert first[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", lambda *_: pytest.fail("nothing is to be measured"))
        assert run(*words, "fog")[1] == first[1]
    assert "contrast" in run(*words, "fog", "contrast")[1]
    array = np.load("c/fog.npy")
    np.save("c/fog.npy", array[::-1].copy())
    one_clear_line(run(*words, "fog"), "has fog 5 of other files (checksum sha256:", "Choose another folder for out")


def test_what_is_missing_is_an_error_or_named(run: Run, net: Path, pets: Path) -> None:
    run("corrupt", pets, "--out", "c", "--corruptions", "fog", "contrast", "--severities", 1)
    words = ["evaluate", net, "--data", "c", "--clean", "pets", *LESS, "--severities", 1]
    one_clear_line(run(*words), "c in c has no gaussian_noise, ", "It has fog (1), contrast (1)", "--partial")
    status, out, _ = run(*words, "--partial", "--out", "r")
    assert status == 0 and "note: Not in the files, and left out: gaussian_noise, " in out
    assert Result.load("r").corruptions == ["fog", "contrast"]
    few = run(*words, "--severities", 1, 2, "--partial")
    one_clear_line(few, "fog (lacks severity 2)", "with --corruptions and --severities, as none of them has every")
    one_clear_line(run(*words, "--corruptions", "fgo"), "unknown corruption 'fgo'; c in c has fog, contrast")
    one_clear_line(
        run(*words[:4], *LESS), "clean error needs the images as they were", "Give them by --clean, the folder"
    )
    one_clear_line(run(*words, "--constants", "cifar32"), "--constants is for corruptions that are made; c has them")
    one_clear_line(run(*words, "--storage", "jpeg85", "--corruptions", "fog"), "--storage jpeg85 is for corruptions")
    one_clear_line(run(*words, "--domain", "sketch"), "--domain has no meaning for c")
    one_clear_line(run(*words, "--severities", 7), "--severities from 1 to 5, got 7")


def test_a_limit_and_a_damaged_file(run: Run, net: Path, pets: Path) -> None:
    run("corrupt", pets, "--out", "c", "--corruptions", "fog", "contrast", "--severities", 1, 5)
    words = ["evaluate", net, "--data", "c", "--clean", "pets", *FEW, *LESS]
    assert run(*words, "--limit", 2, "--out", "few")[0] == 0
    assert Result.load("few").images == 4
    broken = Path("c/contrast/5/dog/1.JPEG")
    broken.write_bytes(broken.read_bytes()[:100])
    one_clear_line(run(*words), "c/contrast/5/dog/1.JPEG", "--on-error skip")
    status, out, _ = run(*words, "--on-error", "skip", "--out", "skipped")
    assert status == 0
    assert "1 of 8 images could not be read in every cell and is left out of all: 1.png (contrast 5)." in out
    result = Result.load("skipped")
    assert result.images == 7 and len(read_cells(Path("skipped"))["fog", 1]) == 7
    assert json.loads(Path("skipped/result.json").read_text())["clean"]["error"]["value"] == result.clean.error.value


def cifar_p(folder: Path) -> Path:
    folder.mkdir()
    for seed, name in enumerate(("tilt", "gaussian_noise", "gaussian_noise_2")):
        np.save(folder / f"{name}.npy", np.random.default_rng(seed).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8))
    return folder


def test_sequences(run: Run, net: Path, tmp_path: Path) -> None:
    words: list[Any] = ["evaluate", net, "--data", cifar_p(tmp_path / "P"), *LESS]
    one_clear_line(run(*words), "has no shot_noise, motion_blur", "--partial")
    status, out, _ = run(*words, "--partial", "--out", "r")
    assert status == 0 and out.startswith("net on 3 sequences of P") and "mean flip probability (mFP)" in out
    assert "left out: shot_noise" in out and "Result: r/stability.md" in out
    result = StabilityResult.load("r")
    assert list(result.flips) == ["gaussian_noise", "tilt"] and result.command.startswith("shiftnorm evaluate ")
    words += ["--perturbations", "gaussian-noise", "tilt", "--difficulty", 2, "--limit", 2]
    assert run(*words, "--out", "second")[0] == 0
    assert StabilityResult.load("second").rows[0].sequences == 2
    one_clear_line(run(*words, "--out", "r"), "r holds another evaluation, with another difficulty, limit")
    status, out, _ = run(*words, "--out", "third", "--baseline", "second")
    assert status == 0 and "mean flip rate (mFR)         100.00 % of net" in out
    one_clear_line(run("report", "r"), "is of perturbation sequences", "stability.json")


def test_imagenet_c_by_name(run: Run, tmp_path: Path) -> None:
    wnids = [f"n0000000{number}" for number in range(3)]
    cells = ("weather/fog/1", "weather/fog/3", "digital/contrast/1", "digital/contrast/3")
    tree(tmp_path / "data" / "ImageNet-C", [f"{cell}/{w}/{w}_1.JPEG" for cell in cells for w in wnids], size=(224, 224))
    (tmp_path / "wnids.txt").write_text("\n".join(f"n0000000{number} thing {number}" for number in range(5)))
    words = ["evaluate", "shiftnorm/resnet18", "--data", "imagenet-c", "--root", "data", "--severities", 1, 3, *LESS]
    words += ["--corruptions", "fog", "contrast", "--num-classes", 5]
    one_clear_line(run(*words), "has 3 class folders, so the outputs", "pass --wnids")
    words += ["--wnids", "wnids.txt"]
    one_clear_line(run(*words), "no imagenet in data. Give them by --clean, the val/WNID/FILE")
    tree(tmp_path / "data" / "imagenet" / "val", [f"{w}/{w}_1.JPEG" for w in wnids], size=(300, 260))
    status, out, _ = run(*words, "--out", "r")
    assert (
        status == 0
        and "on 3 images of imagenet-c" in out
        and "The clean images are imagenet in data/imagenet/val" in out
    )
    found = Result.load("r")
    assert found.data["class_subset"] == [0, 1, 2] and found.classes == ["thing 0", "thing 1", "thing 2"]
    assert found.corruptions == ["fog", "contrast"] and found.settings["storage"] == "jpeg85"
    assert set(found.data["corrupted checksums"]) == {"fog/1", "fog/3", "contrast/1", "contrast/3"}
    words[words.index(5)] = 2
    one_clear_line(
        run(*words), "the model has 2 outputs, but the 3 classes of imagenet are mapped to outputs up to number 2"
    )
