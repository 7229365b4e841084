"""What --data of evaluate names: clean images, images that were corrupted before, or perturbation sequences."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftnorm.cli_convert import TRAINED
from shiftnorm.cli_corrupt import CORRUPTED, GROUPS
from shiftnorm.cli_verb import speaking_of_options

if TYPE_CHECKING:
    from shiftnorm.data import Dataset
    from shiftnorm.data.corrupted_set import CorruptedSet
    from shiftnorm.data.sequences import SequenceSet

__all__ = [
    "add_file_options",
    "data_kind",
    "match_classes",
    "names_in_files",
    "open_files",
    "open_frames",
    "open_tested",
    "read_classes",
    "remark_on_size",
]

SEQUENCES = ("cifar10-p", "imagenet-p")


def add_file_options(verb: argparse.ArgumentParser) -> None:
    """Add the options for images that lie in files already corrupted, or as sequences.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_file_options(parser)
        >>> parser.parse_args(["--clean", "photos", "--partial"]).clean
        'photos'

    Args:
        verb: the parser of a verb.
    """
    group = verb.add_argument_group("images that are corrupted already (cifar10-c, imagenet-c, ...), and sequences")
    group.add_argument(
        "--clean", metavar="DATA", help="the images before corruption: a folder or a data set's name (default: the "
        "published set's original, looked for in --root and beside it)"
    )  # fmt: skip
    group.add_argument(
        "--partial", action="store_true", help="measure what is there of --corruptions or --perturbations, and name "
        "what is not (default: that is an error)"
    )  # fmt: skip
    group.add_argument(
        "--perturbations", nargs="+", metavar="NAME", default=["published"],
        help="of sequences (default: the ten that published means are over)",
    )  # fmt: skip
    group.add_argument(
        "--difficulty", type=int, choices=(1, 2, 3), default=1, help="of sequences: how far apart compared frames are"
    )


def data_kind(options: argparse.Namespace) -> str:
    """Whether ``--data`` is ``"images"``, ``"corrupted"`` images or ``"sequences"``.

    Example:
        >>> data_kind(argparse.Namespace(data="cifar10-c")), data_kind(argparse.Namespace(data=None))
        ('corrupted', 'images')
    """
    data: str | None = options.data
    if data is None or data in CORRUPTED or data in SEQUENCES:
        return "corrupted" if data in CORRUPTED else "sequences" if data in SEQUENCES else "images"
    path = _unpacked(data)
    if not path.is_dir():
        return "images"
    from shiftnorm.data.open_corrupted import corrupted_layout
    from shiftnorm.data.sequences import sequence_layout

    if corrupted_layout(path) is not None:
        return "corrupted"
    return "images" if sequence_layout(path) is None else "sequences"


def _unpacked(data: str) -> Path:
    """The folder that an archive holds, unpacked into the cache, where reading it would unpack it too."""
    from shiftnorm.data.labelled_files import Reading
    from shiftnorm.data.locate import is_archive, unpacked

    path = Path(data)
    return unpacked(path, Reading("none")) if is_archive(path) else path


def names_in_files(options: argparse.Namespace) -> str | list[str]:
    """The corruptions that ``--corruptions`` stands for where they lie in files, which may have others than the 19.

    Example:
        >>> names_in_files(argparse.Namespace(corruptions=["gaussian-noise", "fog"], severities=[1]))
        ['gaussian_noise', 'fog']

    Raises:
        ValueError: for a severity that there is not.
    """
    wrong = [each for each in options.severities if each not in range(1, 6)]
    if wrong:
        raise ValueError(f"expected --severities from 1 to 5, got {wrong[0]}.")
    given = [name.replace("-", "_") for name in options.corruptions]
    return given[0] if len(given) == 1 and given[0] in GROUPS else given


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    for name in ("domain", "split"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} has no meaning for {options.data}, whose files are of one kind.")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"expected --limit to be at least 1 image per class, got {options.limit}.")
    return {
        "preprocess": options.preprocess or "auto",
        "on_error": options.on_error,
        "download": options.download,
    }


def open_files(options: argparse.Namespace) -> CorruptedSet:
    """Open images that are corrupted already, and the clean ones.

    Example:
        >>> open_files(argparse.Namespace(data="photos-c", domain="sketch"))
        Traceback (most recent call last):
        ...
        ValueError: --domain has no meaning for photos-c, whose files are of one kind.

    Args:
        options: with ``data``, ``clean`` and ``partial``, and those of `add_data_options`.

    Raises:
        ValueError: for an option that has no meaning here, or damaged files.
        FileNotFoundError: if there is no such set, or no clean one.
    """
    from shiftnorm.data.open_corrupted import open_corrupted

    shared = _shared(options)
    for name in ("constants", "frost_dir"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for corruptions that are made; {options.data} has them in its files."
            )
    with speaking_of_options():
        found = open_corrupted(
            options.data,
            options.root,
            clean=options.clean,
            on_missing="skip" if options.partial else "raise",
            wnids=options.wnids,
            **shared,
        )
    return found if options.limit is None else found.limit(options.limit)


def open_tested(options: argparse.Namespace) -> Dataset | None:
    """The images that a recipe's run was measured on, if MODEL is one and its recipe says where they are.

    Example:
        >>> open_tested(argparse.Namespace(model="timm/resnet50")) is None
        True

    Args:
        options: with ``model`` and those of `add_data_options`.
    """
    recipe_file = Path(options.model).with_name("recipe.yaml")
    if not (Path(options.model).is_file() and recipe_file.is_file() and importlib.util.find_spec("lightning")):
        return None
    from shiftnorm.evaluate.progress import plural
    from shiftnorm.fit.data import load_fit_data
    from shiftnorm.train_recipe import load_train_recipe

    recipe = load_train_recipe(recipe_file)
    if recipe.data.name != "digits" and recipe.data.root is None:
        return None
    for name in ("domain", "split", "preprocess", "root", "wnids"):
        if getattr(options, name, None) is not None:
            raise ValueError(f"--{name} has no meaning for the images of a run; give --data too, for others.")
    data = load_fit_data(recipe.data, test_limit=recipe.evaluate.limit, part=recipe.evaluate.part)
    test = data.test if options.limit is None else data.test.limit(options.limit)
    print(f"{len(test):,} {plural('image', len(test))} of {test.name} that the run was measured on.", flush=True)
    return test


def remark_on_size(model: Path, images: Dataset) -> None:
    """Say so if the run of a recipe was trained on images of another size than these.

    Example:
        >>> import torch
        >>> from shiftnorm.data import Dataset
        >>> pets = Dataset.of_images("pets", torch.zeros(2, 3, 48, 64).byte(), torch.arange(2), ("cat", "dog"))
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> _ = (run / "record.json").write_text('{"recipe": {"data": {"size": 32}}}')
        >>> remark_on_size(run / "model.safetensors", pets)
        The run was trained on images of 32x32, these are 48x64; --preprocess resize32x32 makes them alike.

    Args:
        model: the file of the network, with the run's record beside it.
        images: that it is to be measured on.
    """
    from shiftnorm.evaluate.record import read_json

    record = model.with_name("record.json")
    if model.name != TRAINED or not record.is_file():
        return
    size = read_json(record).get("recipe", {}).get("data", {}).get("size")
    shapes = [tuple(batch.images.shape[2:]) for batch in images.batches(1, indices=range(min(len(images), 1)))]
    if size is not None and shapes and shapes[0] != (size, size):
        print(
            f"The run was trained on images of {size}x{size}, these are {shapes[0][0]}x{shapes[0][1]}; --preprocess "
            f"resize{size}x{size} makes them alike.",
            flush=True,
        )


def open_frames(options: argparse.Namespace) -> SequenceSet:
    """Open perturbation sequences.

    Example:
        >>> open_frames(argparse.Namespace(data="cifar10-p", domain="sketch"))
        Traceback (most recent call last):
        ...
        ValueError: --domain has no meaning for cifar10-p, whose files are of one kind.

    Args:
        options: with ``data`` and those of `add_data_options`.

    Raises:
        ValueError: for an option that has no meaning here, or damaged files.
        FileNotFoundError: if there are none.
    """
    from shiftnorm.data.sequences import open_sequences

    shared = _shared(options)
    with speaking_of_options():
        return open_sequences(options.data, options.root, **shared)


def match_classes(dataset: Dataset, classes: list[str]) -> Dataset:
    """Let the labels point at a model's outputs, by the names of the classes.

    Example:
        >>> import torch
        >>> from shiftnorm.data import Dataset
        >>> pets = Dataset.of_images("pets", torch.zeros(2, 3, 8, 8).byte(), torch.arange(2), ("cat", "dog"))
        >>> match_classes(pets, ["dog", "eel", "cat"]).class_subset
        tensor([2, 0])

    Args:
        dataset: the images.
        classes: the outputs' names, in their order.

    Raises:
        ValueError: if the data have a class that the model does not have, or other outputs by ``--wnids`` already.
    """
    import torch

    if list(dataset.classes) == classes and dataset.class_subset is None:
        return dataset
    if dataset.class_subset is not None or dataset.outputs is not None:
        known = range(len(dataset.classes)) if dataset.class_subset is None else dataset.class_subset.tolist()
        alike = dataset.outputs in (None, len(classes)) and all(
            output < len(classes) and classes[output] == name
            for output, name in zip(known, dataset.classes, strict=True)
        )
        if alike:
            return dataset
        among = "" if dataset.outputs is None else f" {dataset.outputs}"
        raise ValueError(
            f"evaluate: which of a model's{among} outputs the classes of {dataset.name} are is known already (from "
            f"--wnids or folders called by numbers), but the {len(classes)} names of --classes, or of the network's "
            "training, say otherwise. Leave out --classes, or give --wnids as a folder or file that names the classes "
            "as the network does."
        )
    if strangers := [name for name in dataset.classes if name not in classes]:
        raise ValueError(
            f"evaluate: {dataset.name} has classes that the network was not trained on, such as {strangers[0]!r}; it "
            f"knows {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}."
        )
    subset = torch.tensor([classes.index(name) for name in dataset.classes])
    return replace(dataset, class_subset=subset, outputs=len(classes))


def read_classes(path: str) -> list[str]:
    """The names of a model's outputs from a text file, one a line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "classes.txt"
        >>> _ = file.write_text("cat\\ndog\\n")
        >>> read_classes(str(file))
        ['cat', 'dog']

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or names a class twice.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"evaluate: there is no file --classes {path}.")
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"evaluate: expected --classes with one name a line, each once, {path} has {len(names)} lines."
        )
    return names
