"""The authors' numbers: every golden case through the plain formulas and through our norms.

``pytest tests -k golden --golden DIR``: DIR is the folder with ``layers/``, or one that holds npz files itself.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import golden_norms
import golden_reference
from golden_cases import FOLDERS, check_case, find_cases, load_case, run_case

DEFAULT = Path("..", "shared", "golden")  # from the repository root


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--golden", default=None)
    if given is None:
        directory = Path(__file__).resolve().parent.parent / DEFAULT
    else:
        directory = metafunc.config.invocation_params.dir / given
    cases = [pytest.param(path, id=f"golden-{path.stem}") for path in find_cases(directory)]
    if not cases:
        absent = pytest.mark.skip(reason=f"no golden layers in {directory}; give a folder with --golden DIR")
        # A folder that was asked for and is empty or not there is a failure; one of networks only is none.
        marks = [absent] if (given is None and not directory.exists()) or any(directory.rglob("*.npz")) else []
        cases = [pytest.param(directory, id="golden-none", marks=marks)]
    metafunc.parametrize("golden_path", cases)


def require_case(path: Path) -> None:
    if path.suffix != ".npz":
        state = "holds no *.npz, nor do its folders " + " and ".join(FOLDERS[1:]) if path.exists() else "does not exist"
        pytest.fail(f"--golden {path}: expected a folder with golden cases, but it {state}")


def test_golden(golden_path: Path) -> None:
    require_case(golden_path)
    case = load_case(golden_path)
    check_case(case, run_case(case, golden_norms.LAYERS))


def test_reference_matches_golden(golden_path: Path) -> None:
    require_case(golden_path)
    case = load_case(golden_path)
    check_case(case, run_case(case, golden_reference.LAYERS))


def test_golden_layers_are_the_same_in_both_tables() -> None:
    assert golden_norms.LAYERS.keys() == golden_reference.LAYERS.keys()


@pytest.fixture
def squeeze_excite_file(tmp_path: Path) -> Path:
    """A case made here: x times sigmoid(0) = 1/2, because the second weight is 0."""
    x = np.arange(24.0).reshape(1, 2, 3, 4)
    upstream = np.ones_like(x)
    meta = {"name": "half", "layer": "SELayer", "kw": {"channel": 2, "reduction": 1}, "mode": "train"}
    # The second weight's gradient: sigmoid'(0) = 1/4, times sum(g x), times the hidden values, which are the means.
    mean, total = x.mean((2, 3))[0], x.sum((2, 3))[0]
    np.savez(
        tmp_path / "half.npz",
        **{
            "meta": json.dumps(meta),
            "x": x,
            "g": upstream,
            "y": x / 2,
            "grad_x": upstream / 2,
            "param.fc.0.weight": np.eye(2),
            "param.fc.2.weight": np.zeros((2, 2)),
            "grad_fc.0.weight": np.zeros((2, 2)),
            "grad_fc.2.weight": 0.25 * np.outer(total, mean),
        },
    )
    return tmp_path / "half.npz"


def test_golden_folder_may_hold_the_files_itself(squeeze_excite_file: Path) -> None:
    assert find_cases(squeeze_excite_file.parent) == [squeeze_excite_file]


@pytest.mark.parametrize("table", [golden_norms.LAYERS, golden_reference.LAYERS], ids=["norms", "reference"])
def test_golden_case_with_other_numbers_fails(squeeze_excite_file: Path, table: dict) -> None:
    case = load_case(squeeze_excite_file)
    got = run_case(case, table)
    check_case(case, got)
    for key in case.expected:
        changed = {name: value.clone() for name, value in case.expected.items()}
        changed[key].view(-1)[0] += 1e-7
        with pytest.raises(AssertionError, match=f"{key}: differs by"):
            check_case(replace(case, expected=changed), got)


def test_golden_case_of_an_unknown_layer_fails(squeeze_excite_file: Path) -> None:
    case = replace(load_case(squeeze_excite_file), layer="NoSuchNorm")
    with pytest.raises(AssertionError, match="no layer 'NoSuchNorm' in the harness"):
        run_case(case, golden_norms.LAYERS)


def test_golden_case_that_overwrites_its_input_fails(squeeze_excite_file: Path) -> None:
    case = load_case(squeeze_excite_file)

    def overwrite(case):
        with torch.no_grad():
            case.x.add_(1)
        return golden_reference.LAYERS["SELayer"](case)

    with pytest.raises(AssertionError, match="changed its input in place"):
        run_case(case, {"SELayer": overwrite})


def test_golden_file_that_is_not_a_layer_case_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", meta="{}", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz: expected the keys x"):
        load_case(tmp_path / "other.npz")
