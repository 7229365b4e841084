"""Files of tensors appear whole or not at all, for everyone whom the umask lets read them."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shiftnorm.tensor_file import safetensors_for, write_tensors

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_the_umask_decides_who_reads_the_file(tmp_path: Path, umask: int) -> None:
    path = write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {}, who="files")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.umask(umask) == umask, "the process's own is as it was"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"made": "first"}, who="files")
    before = path.read_bytes()
    shared = torch.zeros(2)
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(path, {"x": shared, "y": shared}, {}, who="files")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_without_safetensors_it_says_who_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r'^these files need safetensors: pip install "shiftnorm\[train\]"$'):
        safetensors_for("these files")
    with pytest.raises(ModuleNotFoundError, match=r"^these files need"):
        write_tensors(tmp_path / "new" / "a.safetensors", {}, {}, who="these files")
    assert not list(tmp_path.iterdir())
