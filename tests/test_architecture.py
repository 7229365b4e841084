"""The rules of the house, checked on the code itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import shiftnorm

PACKAGE = Path(shiftnorm.__file__).parent
ROOT = PACKAGE.parent.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import from the others; a part may always import itself.
BELOW = {
    # Below all of them, as parts that must not know each other write such files.
    "tensor_file": set(),
    "result_folder": set(),
    "near_names": set(),
    "ops": set(),
    "models": set(),
    "data": {"result_folder"},
    "norms": {"ops"},
    "surgery": {"ops", "norms", "models", "tensor_file"},
    "adapt": {"ops", "norms", "surgery"},
    "evaluate": {"ops", "norms", "surgery", "data", "tensor_file", "result_folder"},
    "tasks": {"ops", "norms", "surgery", "adapt", "evaluate", "data", "models"},
}
PARTS = set(BELOW)
BELOW["variants"] = PARTS
BELOW["recipe_yaml"] = set()
BELOW["recipe_tree"] = {"near_names", "recipe_yaml"}
BELOW["recipe_files"] = {"near_names", "recipe_yaml", "recipe_tree"}
BELOW["recipe"] = PARTS | {"variants", "recipe_tree", "recipe_files"}
BELOW["train_parts"] = PARTS | {"recipe_tree"}
BELOW["optimizer_recipe"] = {"recipe_tree"}
BELOW["train_recipe"] = {"recipe_tree", "recipe_files", "train_parts", "optimizer_recipe"}
BELOW["tasks"] |= {"train_recipe"}  # its types, for annotations
BELOW["trained"] = PARTS | {"variants"}
BELOW["training"] = PARTS | {"variants", "recipe", "trained"}  # what a worker process does
BELOW["workers"] = PARTS | {"variants", "recipe", "training"}
BELOW["fit"] = PARTS | {"recipe_tree", "recipe_files", "train_parts", "train_recipe", "workers"}
BELOW["run"] = PARTS | {"variants", "recipe", "trained", "training", "workers"}
BELOW["cli_verb"] = set()
BELOW["cli_convert"] = PARTS
BELOW["cli_surgery"] = PARTS | {"cli_convert", "cli_verb"}
BELOW["cli_corrupt"] = PARTS | {"cli_verb"}
BELOW["cli_open"] = PARTS | {"cli_convert", "cli_corrupt", "cli_verb", "fit", "train_recipe"}
BELOW["cli_report"] = PARTS | {"cli_verb"}
BELOW["cli_evaluate"] = PARTS | {"variants", "recipe", "trained", "training"}
BELOW["cli_evaluate"] |= {"cli_convert", "cli_corrupt", "cli_open", "cli_report", "cli_verb"}
BELOW["cli_recipes"] = {"near_names", "recipe_tree", "recipe_files", "recipe", "train_recipe", "cli_verb"}
BELOW["cli_train"] = {"fit", "recipe_tree", "train_recipe", "cli_verb"}
BELOW["cli"] = PARTS | {"recipe", "run"}
BELOW["cli"] |= {"near_names", "cli_corrupt", "cli_evaluate", "cli_recipes", "cli_surgery", "cli_train", "cli_verb"}
BELOW["__main__"] = {"cli"}
BELOW["public"] = {"norms", "ops"}
BELOW["__init__"] = {"norms", "ops", "public"}

# Outside packages a part may import at the top of a file.
OUTSIDE = {
    "tensor_file": {"torch"},
    "ops": {"torch"},
    "models": {"torch"},
    "norms": {"torch"},
    "data": {"torch", "numpy", "torchvision"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names.add(node.module or "")
            if node.module == "shiftnorm":
                names |= {f"shiftnorm.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    for name in imports_of(path):
        pieces = name.split(".")
        if pieces[0] != "shiftnorm" or len(pieces) == 1 or pieces[1] not in BELOW:
            continue
        assert pieces[1] == part or pieces[1] in BELOW[part], f"{part} may not import {name}"
    assert part in BELOW, f"say in BELOW what {part} may import"
    if part in OUTSIDE:
        outside = {name.split(".")[0] for name in imports_of(path, top_level=True)}
        strangers = outside - set(sys.stdlib_module_names) - OUTSIDE[part] - {"shiftnorm", "__future__"}
        assert not strangers, f"{part} may not import {sorted(strangers)} at the top"


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_import_is_light() -> None:
    heavy = ("triton", "lightning", "torchvision", "matplotlib", "numpy.testing", "sklearn", "rich", "yaml")
    script = f"""
import torch, sys
before = set(sys.modules)
import shiftnorm.public
print([name for name in {heavy!r} if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def public_modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages([str(PACKAGE)], "shiftnorm.")]
    return [name for name in ["shiftnorm", *names] if not name.endswith("__main__")]


def public_things() -> dict[str, object]:
    found: dict[str, object] = {}
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            if not getattr(thing, "__module__", "").startswith("shiftnorm"):
                continue
            found[f"{thing.__module__}.{thing.__qualname__}"] = thing
            if not inspect.isclass(thing):
                continue
            for attribute, value in vars(thing).items():
                member = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if attribute.startswith("_") or not inspect.isfunction(member):
                    continue
                if getattr(member, "__isabstractmethod__", False) or getattr(thing, "_is_protocol", False):
                    continue
                found[f"{thing.__module__}.{thing.__qualname__}.{attribute}"] = member
    return found


THINGS = public_things()


@pytest.mark.parametrize("name", sorted(THINGS))
def test_every_public_name_shows_an_executed_example(name: str) -> None:
    documentation = inspect.getdoc(THINGS[name]) or ""
    assert documentation, f"{name} has no docstring"
    thing = THINGS[name]
    if getattr(thing, "_is_protocol", False) or name.startswith(EXAMPLE_ELSEWHERE):
        return
    assert ">>> " in documentation, f"{name} shows no example"


# A hook of lightning's is called by its trainer, so its example is the module's own.
EXAMPLE_ELSEWHERE = ("shiftnorm.tasks.",)


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(PACKAGE)) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_every_norm_is_final_or_abstract() -> None:
    from torch import nn

    from shiftnorm import norms

    bases = {norms.MomentNorm, norms.NormLayer, norms.RunningMoments}
    for name in norms.__all__:
        thing = getattr(norms, name)
        if inspect.isclass(thing) and issubclass(thing, nn.Module) and thing not in bases:
            assert "@final\nclass" in inspect.getsource(thing), f"{name} is neither abstract nor final"
