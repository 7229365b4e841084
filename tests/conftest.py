"""Options and fixtures of the whole suite."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Tensors here are small; threads that wait for each other on a busy machine would take most of the time.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_GOLDEN = ROOT.parent / "shared" / "golden"
DEFAULT_DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="directory of vectors computed by the authors' code")
    parser.addoption("--data", default=None, help="directory of real data sets")


def _directory(request: pytest.FixtureRequest, option: str, default: Path, what: str) -> Path:
    given = request.config.getoption(option)
    path = Path(given) if given else default
    if not path.is_dir():
        if given:
            pytest.fail(f"{option} {path} is not a directory")
        pytest.skip(f"no {what} here; name their directory with {option}")
    return path


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Path:
    """Where the authors' vectors lie."""
    return _directory(request, "--golden", DEFAULT_GOLDEN, "vectors of the authors' code")


@pytest.fixture
def real_data(request: pytest.FixtureRequest) -> Path:
    """Where the real data sets lie."""
    return _directory(request, "--data", DEFAULT_DATA, "real data sets")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in an empty directory; give back status, output and errors."""
    from shiftnorm import cli

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def signals_arrive() -> Iterator[None]:
    """Let the signals of a terminal arrive, also where the tests were started with them ignored (nohup, &)."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def threads() -> Iterator[None]:
    """Set the number of threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make uninitialised memory NaN, so that an element nobody writes is seen."""
    empty_like, empty = torch.empty_like, torch.empty

    def nan_like(*args, **kwargs):
        tensor = empty_like(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    def nan(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty_like", nan_like)
    monkeypatch.setattr(torch, "empty", nan)
