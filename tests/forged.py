"""Files of `surgery.save` whose recipe is not what `save` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from shiftnorm.surgery import read_recipe


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The file with its recipe changed in place."""
    recipe = read_recipe(path)
    change(recipe)
    return with_text(path, json.dumps(recipe))


def with_text(path: Path, text: str) -> Path:
    """The file with another text in the place of its recipe."""
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata={"shiftnorm": text})
    return path
