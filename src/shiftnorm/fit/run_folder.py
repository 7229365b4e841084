"""The folder of a training run: which run it is of, what lies in it, and that one process at a time trains there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

import torch

from shiftnorm.evaluate.record import describe_machine, describe_versions, read_json, write_json, write_text
from shiftnorm.recipe_tree import to_mapping, to_yaml
from shiftnorm.result_folder import TRAINING, check_owner, list_changes
from shiftnorm.train_recipe import TrainRecipe

__all__ = ["OUTSIDE_A_RUN", "RunFolder", "evaluation_of", "identify", "identity_of"]

FORMAT: Final = "shiftnorm.train/1"
RECIPE_FILE: Final = "recipe.yaml"
RECORD_FILE: Final = "record.json"
MODEL_FILE: Final = "model.safetensors"
IDENTITY_FILE: Final = "identity.json"
ENVIRONMENT_FILE: Final = "environment.json"

# Fields that say where and how the work is done, or what is done with the trained network, and change no weight beyond
# the order in which a machine adds numbers. Data are known by their pixels, wherever they lie.
OUTSIDE_A_RUN: Final = (
    "summary", "source", "data.root", "loop.device", "loop.threads", "loop.images_on_device", "loop.checkpoint_every",
    "evaluate",
)  # fmt: skip


def identity_of(recipe: TrainRecipe, data_sha256: str) -> dict[str, Any]:
    """Everything that decides the trained weights, as plain values by dotted path.

    Example:
        >>> identity = identity_of(TrainRecipe(summary="mine"), "0f")
        >>> identity["loop.epochs"], identity["data.sha256"], "loop.threads" in identity
        (100, '0f', False)

    Args:
        recipe: of the run.
        data_sha256: digest of the images.

    Returns:
        The values.
    """
    flat = {path: value for path, value in _flat(to_mapping(recipe)) if not _is_outside(path)}
    return {**flat, "data.sha256": data_sha256}


def identify(identity: Mapping[str, Any]) -> str:
    """Digest of an identity.

    Example:
        >>> identify({"loop.epochs": 2}) == identify({"loop.epochs": 3})
        False
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def evaluation_of(evaluate: Mapping[str, Any], test_sha256: str, *, step: int | None = None) -> Path:
    """Where a run keeps one way of measuring it, within its folder; more corruptions and severities go to the same one.

    Example:
        >>> asked = {"corruptions": ["fog"], "severities": [5], "seed": 0, "constants": "cifar32", "limit": None}
        >>> evaluation_of(asked, "0f").parent.name, evaluation_of(asked, "0f", step=5).parent.name
        ('evaluation', 'evaluation-step5')
        >>> evaluation_of(asked, "0f") == evaluation_of({**asked, "severities": [1, 5]}, "0f")
        True
        >>> evaluation_of(asked, "0f") == evaluation_of({**asked, "seed": 1}, "0f")
        False

    Args:
        evaluate: the recipe's part, as plain data.
        test_sha256: digest of the test images.
        step: at which the network was stopped early; None for a finished one.

    Returns:
        The relative path.
    """
    apart = {key: value for key, value in evaluate.items() if key not in ("corruptions", "severities")}
    digest = identify({"evaluate": apart, "test": test_sha256})
    return Path("evaluation" if step is None else f"evaluation-step{step}", digest)


@final
class RunFolder:
    """Where a run keeps everything: its recipe, metrics, checkpoints, network, evaluation, record and report.

    It belongs to one recipe and one set of images. Another one is refused and nothing is overwritten.

    Example:
        >>> import tempfile
        >>> recipe = TrainRecipe(summary="mine")
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run", identity_of(recipe, "0f"))
        >>> with folder.claim(recipe, say=print):
        ...     sorted(file.name for file in folder.path.iterdir())
        ['.lock', 'environment.json', 'identity.json', 'recipe.yaml']
        >>> (folder.path / "checkpoints").mkdir()
        >>> RunFolder(folder.path, {**folder.identity, "loop.epochs": 3}).check()
        Traceback (most recent call last):
        ...
        ValueError: train: .../run holds the run of another recipe: loop.epochs was 100, now 3. ...

    Args:
        path: of the folder.
        identity: as `identity_of` gives it.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path, self.identity = Path(path), dict(identity)
        self.key = identify(self.identity)

    def check(self) -> None:
        """Refuse a folder that belongs to something else.

        Example:
            >>> RunFolder("nowhere", {}).check()

        Raises:
            ValueError: if it holds the run of another recipe, or of other images; it names what differs; or results
                of another kind.
            NotADirectoryError: if a file is in its place.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"train: the run's folder {self.path} is a file; choose another --out.")
        check_owner(self.path, TRAINING, "train")
        file = self.path / IDENTITY_FILE
        taken = [name for name in (RECORD_FILE, MODEL_FILE, "checkpoints") if (self.path / name).exists()]
        if not file.is_file():
            if taken:
                raise ValueError(
                    f"train: {self.path} has {' and '.join(taken)} but no {IDENTITY_FILE}, so it is not known of which "
                    "run they are; choose another --out."
                )
            return
        content = read_json(file)
        before = content.get("identity")
        if content.get("format") != FORMAT or not isinstance(before, dict):
            raise ValueError(f"train: {file} is not from a training run; choose another --out.")
        changed = list_changes(before, self.identity)
        if changed and taken:  # a run that ended before its first checkpoint has nothing to lose
            raise ValueError(
                f"train: {self.path} holds the run of another recipe: {'; '.join(changed)}. Choose another --out, or "
                "go back to the same recipe and images to go on with it."
            )

    def claim(self, recipe: TrainRecipe, *, say: Callable[[str], object]) -> _Lock:
        """Check the folder, make it the run's, and keep other processes out of it while the context lasts.

        Example:
            >>> import tempfile
            >>> recipe = TrainRecipe(summary="mine")
            >>> folder = RunFolder(tempfile.mkdtemp(), identity_of(recipe, "0f"))
            >>> with folder.claim(recipe, say=print), folder.claim(recipe, say=print):
            ...     pass
            Traceback (most recent call last):
            ...
            BlockingIOError: train: another process is training in ...; wait for it, or choose another --out.

        Args:
            recipe: is written there, with every default.
            say: is told if versions have changed since the run began.

        Returns:
            A context; it is left when the run ends, and by the system when the process is killed.

        Raises:
            ValueError, NotADirectoryError: as :meth:`check`.
            BlockingIOError: if another process trains there.
        """
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = _Lock(self.path)
        for file in self.path.glob(".*.tmp"):  # what a killed process began to write
            file.unlink(missing_ok=True)
        environment = {
            "versions": describe_versions(),
            "machine": describe_machine(recipe.loop.device, recipe.loop.threads or torch.get_num_threads()),
        }
        file = self.path / ENVIRONMENT_FILE
        if not file.is_file():
            write_json(file, environment)
        else:
            before = read_json(file).get("versions", {})
            news = [
                f"{name} {before.get(name)} -> {version}"
                for name, version in environment["versions"].items()
                if before.get(name) != version
            ]
            if news:
                say(f"The run began with other versions and goes on with these: {', '.join(news)}.")
        write_text(self.path / RECIPE_FILE, to_yaml(recipe))
        # the last one: it says that the folder is the run's
        write_json(self.path / IDENTITY_FILE, {"format": FORMAT, "key": self.key, "identity": self.identity})
        return lock


class _Lock:
    """A file lock, which the system gives back whatever becomes of the process."""

    def __init__(self, folder: Path) -> None:
        self._stream = (folder / ".lock").open("ab")
        try:
            import fcntl
        except ModuleNotFoundError:  # no such locks on this system; there the user has to see to it
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise BlockingIOError(
                f"train: another process is training in {folder}; wait for it, or choose another --out."
            ) from None

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _is_outside(path: str) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in OUTSIDE_A_RUN)
