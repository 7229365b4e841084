"""What the pages say is executed, and their tables are those of the records."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cases import roster
from shiftnorm.models import list_models
from shiftnorm.surgery import list_placements

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{index}")
    for page in PAGES
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str) -> None:
    exec(compile(block, "block", "exec"), {"__name__": "block"})


def test_tables_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_layer_has_its_row() -> None:
    table = (ROOT / "docs" / "norms.md").read_text()
    missing = [name for name in roster() if f"| `{name}` |" not in table]
    assert not missing


@pytest.mark.parametrize(("page", "names"), [("surgery.md", list_placements()), ("models.md", list_models())])
def test_every_placement_and_model_has_its_row(page: str, names: list[str]) -> None:
    table = (ROOT / "docs" / page).read_text()
    assert names
    assert not [name for name in names if f"| `{name}` |" not in table]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds to it
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SURGERY_RECORDS", tmp_path)
    return module


def trial(model: str, placement: str, outcome: str, reason: str = "", *silent: str) -> dict[str, Any]:
    kept = outcome == "converted" and not silent
    return {
        "model": model,
        "placement": placement,
        "outcome": outcome,
        "reason": reason,
        "kept": kept,
        "silent": silent,
    }


def test_the_record_of_a_surgery_benchmark_is_counted(generate: ModuleType, tmp_path: Path) -> None:
    absent = "convert: no residual blocks that are known were found in Flat, and this placement goes by blocks."
    rows = [
        trial("net", "rbn", "converted"),
        trial("net", "cnsn", "converted", "", "revert: it is gone"),
        trial("flat", "rbn", "failed", "KeyError: 'x'"),
        trial("flat", "cnsn", "refused", absent),
        trial("flat", "ibn_a", "refused", absent.replace("Flat", "Other")),
        trial("flat", "se", "refused", "Flat has 3 | 4 corners. Give it none."),
        trial("big", "", "not run", "RuntimeError: too big"),
    ]
    record = {"date": "2020-01-02T03:04", "commit": "abc", "versions": {"torch": "2"}, "rows": rows}
    (tmp_path / "surgery-timm.json").write_text(json.dumps(record))
    table = generate.make_surgery_table()
    assert "| timm: the smallest model of every family | 2 | 6 | 2 | 3 | 1 | 1 |" in table
    assert "| torchvision: every classification model | not run yet | – | – | – | – | – |" in table
    assert "| no residual blocks that are known, and the placement goes by blocks | 2 |" in table
    assert "| Flat has … \\| … corners | 1 |" in table
    assert "- timm: net, cnsn: silently, revert: it is gone" in table
    assert "- timm: flat, rbn: KeyError: 'x'" in table
    assert "- timm: not run, because the model itself does not: 1 (big)" in table
    assert table.endswith("timm: 2020-01-02, commit abc, torch 2.")
    summary = generate.make_surgery_summary()
    assert "; 1 in 6 conversions of 2 models (timm: the smallest model of every family); not run yet (" in summary
    placements = generate.make_placements_table()
    assert re.search(r"`rbn` .* yes, in 1 of 1 conversions \|", placements)
    assert re.search(r"`cnsn` .* yes, in 0 of 1 conversions \|", placements)
    assert re.search(r"`ibn_a` .* no \|", placements)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make ([a-z ]+?)(?:\s{2,}|\s#|$)", page.read_text(), re.MULTILINE):
            for name in target.split():
                assert f"\n{name}:" in makefile, f"{page.name}: make {name}"
