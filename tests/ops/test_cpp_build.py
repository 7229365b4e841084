"""Everything that can go wrong between a C++ compiler and a norm."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shiftnorm.ops import Affine, cpp, dispatch, normalize
from shiftnorm.ops.cpp import CppBackend

REASON = CppBackend().unsupported(torch.zeros(1, 1, 2))
compiled = pytest.mark.skipif(REASON is not None, reason=f"the C++ backend {REASON}")

QUICK = tuple("-O0" if flag == "-O3" else flag for flag in cpp._FLAGS)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the kernels of this process, before and after, and compile quickly in between."""
    monkeypatch.setattr(cpp, "_FLAGS", QUICK)
    cpp._library.cache_clear()
    yield
    cpp._library.cache_clear()


def written(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shiftnorm"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    backend, x = CppBackend(), torch.randn(2, 3, 4)
    assert backend.unsupported(x) == "no C++ compiler found (tried c++, g++, clang++)"
    monkeypatch.setattr(dispatch, "BACKENDS", (backend, *dispatch.BACKENDS))
    y = normalize(x, lambda m: Affine(torch.rsqrt(m.var + 1e-5), 0 * m.mean))  # the next backend runs
    torch.testing.assert_close(y, torch.nn.functional.instance_norm(x))
    assert dispatch.explain(x).startswith("cpp: declines, no C++ compiler found")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler found"):
        backend.moments(x)
    monkeypatch.setenv("CXX", "my-compiler --fast")
    cpp._library.cache_clear()
    assert backend.unsupported(x) == "no C++ compiler found (tried my-compiler --fast)"


BROKEN = {
    "error": ("echo 'kernels.cpp:1: error: cannot' >&2; exit 1", "compiling failed: kernels.cpp:1: error: cannot"),
    "silent": ("exit 3", "returned 3"),
    "empty": ("exit 0", "loading the compiled kernels failed"),
    "hangs": ("exec sleep 20", "took longer than 1 s"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_compiler(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path) -> None:
    script, reason = BROKEN[case]
    calls = tmp_path / "calls"
    compiler = written(
        tmp_path / "cxx", f'[ "$1" = --version ] && {{ echo g++ 1; exit 0; }}\necho >> {calls}\n{script}'
    )
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(cpp, "_TIMEOUT", 1.0)
    for _ in range(2):  # the failure is remembered, the compiler not asked again
        assert reason in (CppBackend().unsupported(torch.zeros(2, 3, 4)) or "")
    assert calls.read_text().count("\n") == (2 if case == "empty" else 1)
    assert case == "empty" or not list(empty_cache.iterdir())


BUILD = f"""
import torch
from shiftnorm.ops import cpp
from shiftnorm.ops.cpp import CppBackend
cpp._FLAGS = {QUICK!r}
x = torch.tensor([[[1.0, 3.0]]])
assert CppBackend().unsupported(x) is None, CppBackend().unsupported(x)
assert CppBackend().moments(x)[1].item() == 1.0
"""


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
    )


@compiled
def test_several_processes_build_at_once_and_later_ones_reuse(tmp_path: Path) -> None:
    for process in [start(tmp_path), start(tmp_path)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(list((tmp_path / "shiftnorm").iterdir())) == 1  # nothing temporary left
    refuse = "\nfrom shiftnorm.ops import cpp\ncpp._compile = None\n"
    done = subprocess.run(
        [sys.executable, "-c", refuse + BUILD],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@compiled
@pytest.mark.parametrize("trouble", ["a file in the way", "no home", "damaged file"])
def test_without_a_usable_cache_it_builds_for_the_process(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    # permissions do not stop root, a file in the way does
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if trouble == "a file in the way":
        (tmp_path / "shiftnorm").write_text("")
    elif trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", home)
    else:
        assert CppBackend().unsupported(torch.zeros(1, 1, 2)) is None
        (file,) = (tmp_path / "shiftnorm").iterdir()
        file.unlink()  # the loaded one lives on, its name gets another file
        file.write_text("damaged")
        cpp._library.cache_clear()
    x = torch.tensor([[[1.0, 3.0]]])
    assert CppBackend().unsupported(x) is None
    assert CppBackend().moments(x)[1].item() == 1.0


@compiled
def test_with_another_openmp_it_runs_on_one_thread_only(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, threads: None
) -> None:
    monkeypatch.setattr(cpp, "_foreign_openmp", lambda: "torch does not run on GNU OpenMP")
    x = torch.tensor([[[1.0, 3.0]]])
    torch.set_num_threads(2)
    assert CppBackend().unsupported(x) == (
        "runs on one thread here (torch does not run on GNU OpenMP), torch is set to 2"
    )
    torch.set_num_threads(1)
    assert CppBackend().unsupported(x) is None
    assert CppBackend().moments(x)[1].item() == 1.0
