"""Files are read without running anything in them, and errors name the file and what is wrong with it."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shiftnorm.surgery.checkpoint import read_checkpoint, unwrap


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 0", "protocol 2", "protocol 4", "tar"])
def test_a_malicious_file_is_refused_by_name_and_never_run(tmp_path: Path, form: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / "weights.pth"
    content = {"weight": torch.ones(2), "extra": Malicious(proof)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        text = pickle.dumps({"extra": Malicious(proof)}, protocol=2 if form == "tar" else int(form[-1]))
        if form == "tar":
            with tarfile.open(path, "w") as archive:
                member = tarfile.TarInfo("pickle")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        else:
            path.write_bytes(text)
    with pytest.raises(ValueError, match=r"weights\.pth is more than weights: .*posix\.system .*Nothing was"):
        read_checkpoint(path)
    assert not proof.exists()
    # the file is what it should be: reading it carelessly runs it
    if form.startswith("protocol"):
        pickle.loads(path.read_bytes())
        assert proof.exists()


def test_a_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*save its state_dict"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_scripted_model_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated; files of it are around
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
        torch.jit.save(scripted, str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match=r"model\.pt is a scripted model, which is code"):
        read_checkpoint(tmp_path / "model.pt")


def test_numpy_arrays_are_refused_but_single_numbers_are_let_through(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(2)}, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}, path)
    assert read_checkpoint(path)["args"].lr == 0.1
    torch.save({"a": np.ones(2)}, path)
    with pytest.raises(ValueError, match="numpy"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"weights\.pth is no checkpoint, or is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", r"a\.pth is empty"),
        ("a.safetensors", b"", r"a\.safetensors is empty"),
        ("a.pth", b"<html>404</html>", r"a\.pth is no file of torch or safetensors"),
        ("a.txt", b"hello world, weights to come", r"a\.txt is no file of torch or safetensors"),
        ("a.py", b"import os\nimport sys\n\nprint(os.getcwd())\n", r"a\.py is no file of torch or safetensors"),
        ("a.py", b"class Net:\n    pass\n", r"a\.py is no file of torch or safetensors"),
        ("a.py", b"import os\n.\n", r"a\.py is no file of torch or safetensors"),
        ("a.safetensors", b"no header of safetensors", r"a\.safetensors is no complete safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a file, got the folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.pth\.$"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="Download it first"):
        read_checkpoint("https://example.org/nothing.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar", "a.bin", "a"])
def test_the_ending_does_not_matter(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    state = {"a": torch.arange(3.0)}
    torch.save(state, tmp_path / name)
    assert read_checkpoint(tmp_path / name)["a"].equal(state["a"])
    save_file(state, tmp_path / name)
    assert read_checkpoint(str(tmp_path / name))["a"].equal(state["a"])
    save_file(state, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors")["a"].equal(state["a"])


def test_a_truncated_safetensors_file_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"a\.safetensors is no complete safetensors file .*Get it again"):
        read_checkpoint(path)


ONE, TWO = {"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}


@pytest.mark.parametrize(
    ("checkpoint", "ema", "wrappers", "value"),
    [
        (ONE, False, (), 1),
        ({"state_dict": ONE, "epoch": 3, "optimizer": {"state": {}}}, False, ("state_dict",), 1),
        ({"state_dict": ONE, "best_acc": torch.tensor(0.5)}, False, ("state_dict",), 1),
        ({"model": ONE, "model_ema": TWO}, False, ("model",), 1),
        ({"model": ONE, "model_ema": TWO}, True, ("model_ema",), 2),
        ({"state_dict": ONE, "state_dict_ema": TWO}, True, ("state_dict_ema",), 2),
        ({"state_dict_ema": TWO, "arch": "resnet50"}, False, ("state_dict_ema",), 2),
        ({"state_dict": {"model_state_dict": ONE}}, False, ("state_dict", "model_state_dict"), 1),
        ({"network": ONE}, False, ("network",), 1),
        ({"net": ONE, "model": "resnet50"}, False, ("net",), 1),
    ],
)
def test_wrappers(checkpoint: dict, ema: bool, wrappers: tuple[str, ...], value: float) -> None:
    found = unwrap(checkpoint, name="a.pth", ema=ema)
    assert found.wrappers == wrappers
    assert found.state["a"].item() == value


def test_the_choice_between_plain_and_averaged_weights_is_said() -> None:
    assert "ema=True takes them" in unwrap({"model": ONE, "model_ema": TWO}, name="a.pth").notes[0]
    assert "averaged weights only" in unwrap({"model_ema": TWO}, name="a.pth").notes[0]


@pytest.mark.parametrize(
    ("checkpoint", "ema", "message"),
    [
        ({}, False, r"a\.pth holds no tensors by name"),
        ([torch.ones(2)], False, r"expected tensors by name in a\.pth, got list"),
        (torch.ones(2), False, r"got Tensor"),
        ({"state_dict": {}}, False, r"holds no tensors by name; it has \['state_dict'\]"),
        ({"teacher": ONE}, False, r"There are some under \['teacher'\]"),
        ({"model": ONE, "net": TWO}, False, r"several sets of weights: \['model', 'net'\]"),
        ({"model": ONE}, True, r"a\.pth has no averaged weights"),
        ({0: torch.ones(1)}, False, r"names of tensors in a\.pth to be strings, got \[0\]"),
    ],
)
def test_what_holds_no_weights_is_named(checkpoint: object, ema: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrap(checkpoint, name="a.pth", ema=ema)
