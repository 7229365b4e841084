from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import shiftnorm
from pictures import tree
from shiftnorm.data import Dataset, corrupt, materialise, open_dataset
from shiftnorm.data.checksums import CHECKSUMS, Checksums, temporary_of
from shiftnorm.data.made_folder import MadeFolder, verify_folder
from shiftnorm.data.materialise import corrupt_cifar, corrupt_folder

TWO = {"corruptions": ["fog", "gaussian_noise"]}


def pets(count=6, size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Dataset.of_images("pets", images, torch.arange(count) % 2, ("cat", "dog"))


def contents(folder, start=None):
    return {
        file.relative_to(start or folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_cifar_layout_holds_what_corrupt_gives(tmp_path):
    data = pets()
    seen: list[tuple[int, int, str]] = []
    made = corrupt_cifar(data, tmp_path / "c", **TWO, seed=3, on_progress=lambda *each: seen.append(each))
    assert (made.made, made.found) == (60, 0)
    assert seen[0] == (0, 60, "") and seen[-1] == (60, 60, "gaussian_noise, severity 5")
    labels = np.load(tmp_path / "c" / "labels.npy")
    assert labels.dtype == np.uint8 and labels.tolist() == data.labels.tolist() * 5
    for name in TWO["corruptions"]:
        rows = np.load(tmp_path / "c" / f"{name}.npy")
        assert rows.shape == (30, 32, 32, 3) and rows.dtype == np.uint8
        for severity in (1, 5):
            want = corrupt(data.images(), name, severity, seed=3)
            got = torch.from_numpy(rows[6 * (severity - 1) : 6 * severity]).permute(0, 3, 1, 2)
            assert torch.equal(got, want)
    assert (tmp_path / "c" / CHECKSUMS).read_text().count("\n") == 3
    assert subprocess.run(["sha256sum", "-c", "--quiet", CHECKSUMS], cwd=tmp_path / "c").returncode == 0


def test_cifar_layout_is_read_as_cifar10_c(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 32, 32), generator=generator, dtype=torch.uint8)
    data = Dataset.of_images("tiny", images, torch.arange(10), tuple("abcdefghij"))
    corrupt_cifar(data, tmp_path / "CIFAR-10-C", corruptions=["contrast"])
    cell = open_dataset("cifar10-c", root=tmp_path / "CIFAR-10-C", corruption="contrast", severity=4)
    assert torch.equal(cell.images(), corrupt(images, "contrast", 4))
    assert torch.equal(cell.labels, data.labels)


@pytest.mark.parametrize(
    ("constants", "storage", "ending"), [("imagenet224", "default", ".JPEG"), ("cifar32", "default", ".png")]
)
def test_folder_layout_read_again_is_what_corrupt_gives(tmp_path, constants, storage, ending):
    source = tree(tmp_path / "in", ["cat/a.png", "cat/b.jpg", "dog/a.png"], size=(40, 40))
    data = open_dataset(source)
    made = corrupt_folder(data, tmp_path / "out", **TWO, severities=[2, 5], constants=constants, storage=storage)
    assert (made.made, made.severities) == (12, [2, 5])
    names = {file.relative_to(tmp_path / "out" / "fog" / "5").as_posix() for file in made.folder.glob("fog/5/*/*")}
    kept = "b.jpg" if ending == ".JPEG" else "b.png"
    assert names == {f"cat/a{ending if ending == '.JPEG' else '.png'}", f"cat/{kept}", f"dog/a{ending}"}
    for name in TWO["corruptions"]:
        again = open_dataset(made.folder / name / "5", preprocess="none")
        want = corrupt(data.images(), name, 5, constants=constants, storage=storage)
        assert again.classes == ("cat", "dog") and torch.equal(again.labels, data.labels)
        assert torch.equal(again.images(), want)
        assert subprocess.run(["sha256sum", "-c", "--quiet", CHECKSUMS], cwd=made.folder / name / "5").returncode == 0
    if ending == ".JPEG":
        from PIL import Image
        from PIL.JpegImagePlugin import get_sampling

        with Image.open(made.folder / "fog" / "2" / "cat" / "a.JPEG") as image:
            assert get_sampling(image) == 2  # 4:2:0


def test_settings_do_not_depend_on_batches(tmp_path):
    data = pets(5)
    first = corrupt_folder(data, tmp_path / "a", **TWO, severities=[1], batch_size=2)
    second = corrupt_folder(data, tmp_path / "b", **TWO, severities=[1], batch_size=5)
    a, b = contents(first.folder), contents(second.folder)
    assert a.keys() == b.keys()
    assert not [name for name in a if name.endswith("JPEG") and a[name] != b[name]]


def test_a_subset_keeps_numbers_and_files(tmp_path):
    source = tree(tmp_path / "in", [f"{each}/{n}.png" for each in ("cat", "dog") for n in range(4)], size=(32, 32))
    data = open_dataset(source)
    whole = corrupt_folder(data, tmp_path / "whole", corruptions=["gaussian_noise"], severities=[3])
    part = corrupt_folder(data.limit(2), tmp_path / "part", corruptions=["gaussian_noise"], severities=[3])
    a, b = contents(whole.folder), contents(part.folder)
    pictures = [name for name in b if name.endswith("JPEG")]
    assert len(pictures) == 4 and all(a[name] == b[name] for name in pictures)


def test_names_that_meet_and_names_no_folder_can_have(tmp_path):
    source = tree(tmp_path / "in", ["cat/x/a.png", "cat/y/a.png", "cat/y/a.bmp"], size=(32, 32))
    made = corrupt_folder(open_dataset(source), tmp_path / "out", corruptions=["fog"], severities=[1])
    names = {file.name for file in made.folder.rglob("*.JPEG")}
    assert len(names) == 3 and "a.JPEG" in names

    odd = Dataset.of_images("odd", torch.zeros(2, 3, 32, 32).byte(), torch.arange(2), ("../up", "a/b"))
    made = corrupt_folder(odd, tmp_path / "odd", corruptions=["fog"], severities=[1])
    assert {file.parent.name for file in made.folder.rglob("*.JPEG")} == {".._up", "a_b"}
    same = Dataset.of_images("odd", torch.zeros(2, 3, 32, 32).byte(), torch.arange(2), ("a/b", "A_b"))
    with pytest.raises(ValueError, match="two class names differ only in spelling"):
        corrupt_folder(same, tmp_path / "same", corruptions=["fog"])


def test_domains_are_folders(tmp_path):
    domains = {"domains": ("photo", "sketch"), "domain_labels": torch.tensor([0, 1, 1])}
    data = Dataset.of_images("d", torch.zeros(3, 3, 32, 32).byte(), torch.zeros(3).long(), ("cat",), **domains)
    made = corrupt_folder(data, tmp_path / "out", corruptions=["fog"], severities=[1])
    again = open_dataset(made.folder / "fog" / "1", layout="domains")
    assert again.domains == ("photo", "sketch") and len(again) == 3


@pytest.mark.parametrize("make", [corrupt_cifar, corrupt_folder])
def test_a_second_call_makes_nothing_and_can_add(tmp_path, monkeypatch, make):
    data = pets()
    first = make(data, tmp_path / "c", **TWO)
    before = contents(first.folder)
    with monkeypatch.context() as patch:
        patch.setattr(materialise, "corrupt", lambda *_, **__: pytest.fail("nothing is to be corrupted"))
        again = make(data, tmp_path / "c", **TWO)
    assert (again.made, again.found) == (0, 60)
    assert contents(first.folder) == before
    more = make(data, tmp_path / "c", corruptions=[*TWO["corruptions"], "brightness"])
    assert (more.made, more.found) == (30, 60)
    now = contents(first.folder)
    assert not [name for name in before if name not in ("manifest.json", CHECKSUMS) and now[name] != before[name]]
    assert verify_folder(first.folder).good


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"constants": "tiny64"}, "constants was 'cifar32', now 'tiny64'"),
        ({"storage": "jpeg85"}, "storage was 'none', now 'jpeg85'"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, text):
    corrupt_cifar(pets(), tmp_path / "c", corruptions=["fog"])
    with pytest.raises(ValueError, match=text):
        corrupt_cifar(pets(), tmp_path / "c", corruptions=["fog"], **change)
    with pytest.raises(ValueError, match=r"images was [0-9a-f]{8}…, now"):
        corrupt_cifar(pets(4), tmp_path / "c", corruptions=["fog"])


def test_what_is_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for make in (corrupt_cifar, corrupt_folder):
        with pytest.raises(FileExistsError, match=r"has files of its own, such as notes\.txt"):
            make(pets(), tmp_path, corruptions=["fog"])
        with pytest.raises(NotADirectoryError, match="is a file"):
            make(pets(), tmp_path / "notes.txt", corruptions=["fog"])
    assert contents(tmp_path) == {"notes.txt": b"mine"}

    corrupt_cifar(pets(), tmp_path / "c", corruptions=["fog"])
    (tmp_path / "c" / "contrast.npy").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"contrast\.npy is there and was not made by this command"):
        corrupt_cifar(pets(), tmp_path / "c", corruptions=["contrast"])
    assert (tmp_path / "c" / "contrast.npy").read_bytes() == b"mine"

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(ValueError, match="is not from `shiftnorm corrupt`"):
        corrupt_cifar(pets(), tmp_path / "d", corruptions=["fog"])
    source = tree(tmp_path / "in", ["cat/a.png"], size=(32, 32))
    with pytest.raises(ValueError, match=r"is inside .*, where the images come from"):
        corrupt_folder(open_dataset(source), source / "out", corruptions=["fog"])


def test_mistakes(tmp_path):
    for change, text in (
        ({"severities": [0]}, "severities must be numbers from 1 to 5"),
        ({"severities": []}, "severities must be"),
        ({"constants": "cifar"}, "constants must be one of cifar32"),
        ({"storage": "png"}, "storage must be one of default"),
        ({"corruptions": ["frog"]}, "unknown corruption 'frog'; did you mean one of fog"),
    ):
        with pytest.raises(ValueError, match=text):
            corrupt_folder(pets(), tmp_path / "c", **change)
    with pytest.raises(FileNotFoundError, match=r"frost1\.png"):
        corrupt_folder(pets(), tmp_path / "c", corruptions=["frost"], frost_dir=tmp_path)
    with pytest.raises(ValueError, match="pets has no images"):
        corrupt_cifar(pets().subset([]), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_damage_is_found_and_named(tmp_path):
    made = corrupt_folder(pets(), tmp_path / "c", corruptions=["fog"], severities=[1, 2])
    counted: list[int] = []
    good = verify_folder(made.folder, counted.append)
    assert good.good and good.files == 12 and counted[-1] == 12
    (made.folder / "fog" / "1" / "cat" / "00000000.JPEG").write_bytes(b"x")
    (made.folder / "fog" / "2" / "dog" / "00000001.JPEG").unlink()
    found = verify_folder(made.folder)
    assert found.damaged == ["fog/1/cat/00000000.JPEG: another content", "fog/2/dog/00000001.JPEG: missing"]
    # what is deleted is made again
    (made.folder / "fog" / "1" / "cat" / "00000000.JPEG").unlink()
    assert corrupt_folder(pets(), tmp_path / "c", corruptions=["fog"], severities=[1, 2]).made == 2
    assert verify_folder(made.folder).good
    shutil.rmtree(made.folder / "fog" / "2")
    assert verify_folder(made.folder).damaged == ["fog/2: not the files that the manifest names"]
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        verify_folder(tmp_path)


@pytest.mark.parametrize("make", [corrupt_folder, corrupt_cifar])
def test_an_image_damaged_in_the_middle_is_named_in_the_manifest(tmp_path, make):
    root = make_damaged(tmp_path / "pets", "cat/1.png")
    for _ in range(2):  # the second call makes nothing, and finds it anew
        data = open_dataset(root, on_error="skip")
        assert len(data) == 6 and data.skipped == []
        made = make(data, tmp_path / "c", corruptions=["fog"])
        told = json.loads((made.folder / "manifest.json").read_text())["data"]
        assert told["images"] == 5 and len(told["skipped"]) == 1 and "cat/1.png: damaged" in told["skipped"][0]
    assert verify_folder(made.folder).good


def make_damaged(root, *names):
    """Pictures that look whole from outside, of which these break while they are decoded."""
    tree(root, [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(3)], size=(32, 32))
    for name in names:
        content = bytearray((root / name).read_bytes())
        content[600:700] = bytes(100)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("make", [corrupt_folder, corrupt_cifar])
def test_a_failure_before_anything_was_made_leaves_nothing(tmp_path, make):
    data = open_dataset(make_damaged(tmp_path / "pets", "cat/0.png"))
    for out in (tmp_path / "new" / "deep", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        with pytest.raises(ValueError, match=r"cat/0\.png"):
            make(data, out, corruptions=["fog"])
        assert not (tmp_path / "new").exists() and contents(tmp_path) == contents(tmp_path / "pets", tmp_path)
        # other options are free then
        made = make(open_dataset(data.provenance.path, on_error="skip"), out, corruptions=["fog"], seed=1)
        assert made.made == 25 and verify_folder(out).good
        shutil.rmtree(tmp_path / out.relative_to(tmp_path).parts[0])


def test_a_failure_after_something_was_made_keeps_it(tmp_path):
    root = make_damaged(tmp_path / "pets", "dog/2.png")
    with pytest.raises(ValueError, match=r"dog/2\.png"):
        corrupt_folder(open_dataset(root), tmp_path / "c", corruptions=["fog"], severities=[1], batch_size=2)
    assert len(list((tmp_path / "c").rglob("*.JPEG"))) == 4 and not list((tmp_path / "c").glob(".*.tmp"))
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        corrupt_folder(open_dataset(root), tmp_path / "c", corruptions=["fog"], severities=[1], seed=1)
    skipping = open_dataset(root, on_error="skip")
    made = corrupt_folder(skipping, tmp_path / "c", corruptions=["fog"], severities=[1])
    assert (made.made, made.found) == (1, 4) and verify_folder(tmp_path / "c").good


@pytest.mark.parametrize("left", ["nothing", "labels", "a folder", "work", "another process", "a user's file"])
def test_what_a_killed_call_left_bare_may_be_taken_over(tmp_path, left):
    out = tmp_path / "c"
    MadeFolder(out, {"seed": 0}, {})
    if left == "labels":
        sums = Checksums(out)
        sums.put("labels.npy", b"labels")
        sums.flush()
    elif left == "a folder":
        (out / "fog" / "1").mkdir(parents=True)
    elif left == "work":
        (out / "fog.npy").write_bytes(b"pixels")
    elif left == "a user's file":
        (out / "labels.npy").write_bytes(b"mine")
    elif left == "another process":
        sign = temporary_of(out / "begun")
        sign.with_name(sign.name.replace(str(os.getpid()), str(os.getppid()))).touch()
    before = contents(out)
    if left in ("nothing", "labels", "a folder"):
        MadeFolder(out, {"seed": 1}, {})
        assert contents(out).keys() == {"manifest.json"} and len(list(out.iterdir())) == 1
        assert json.loads((out / "manifest.json").read_text())["identity"] == {"seed": 1}
        return
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        MadeFolder(out, {"seed": 1}, {})
    with pytest.raises(KeyError), MadeFolder(out, {"seed": 0}, {}):
        raise KeyError
    assert contents(out) == before


def test_a_torn_line_is_dropped(tmp_path):
    sums = Checksums(tmp_path)
    sums.put("a", b"1")
    sums.put("b", b"2")
    sums.flush()
    whole = sums.file.read_text()
    sums.file.write_text(whole[:-5])
    again = Checksums(tmp_path)
    assert again.has("a") and not again.has("b")
    assert not again.put("b", b"2")  # there already, with the very content
    again.flush()
    assert sums.file.read_text() == whole
    assert again.sums["a"] == hashlib.sha256(b"1").hexdigest()


SCRIPT = """
import sys, torch
from pathlib import Path
from shiftnorm.data import materialise, Dataset
torch.set_num_threads(1)
images = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
data = Dataset.of_images("pets", images, torch.arange(40) % 2, ("cat", "dog"))
make = getattr(materialise, sys.argv[1])
made = make(data, Path(sys.argv[2]), corruptions=["fog", "contrast", "glass_blur", "snow"])
print(made.made, made.found)
"""


@pytest.mark.parametrize("make", ["corrupt_cifar", "corrupt_folder"])
def test_killed_at_any_moment_it_goes_on(tmp_path, make):
    environment = {**os.environ, "PYTHONPATH": str(Path(shiftnorm.__file__).parents[1])}
    reference = subprocess.run(
        [sys.executable, "-c", SCRIPT, make, str(tmp_path / "ref")], env=environment, capture_output=True, text=True
    )
    assert reference.stdout == "800 0\n", reference.stderr
    out = tmp_path / "out"
    kills = 0
    for wait in (0.0, 0.05, 0.15):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, make, str(out)], env=environment, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (out / "manifest.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, make, str(out)], env=environment, capture_output=True, text=True
    )
    assert sum(map(int, done.stdout.split())) == 800, done.stderr
    a = {name: text for name, text in contents(tmp_path / "ref").items() if "SUMS" not in name}
    b = {name: text for name, text in contents(out).items() if "SUMS" not in name and not name.endswith(".tmp")}
    assert a.keys() == b.keys()
    assert json.loads(a.pop("manifest.json")) == json.loads(b.pop("manifest.json"))
    assert a == b
    assert verify_folder(out).good
    assert not list(out.glob(".*.tmp"))
