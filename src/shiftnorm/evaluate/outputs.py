"""Whether a model's outputs can be the classes of a data set."""

from __future__ import annotations

import os
from pathlib import Path

from shiftnorm.data.dataset import Dataset
from shiftnorm.evaluate.progress import plural

__all__ = ["check_outputs"]


def check_outputs(outputs: int, data: Dataset, *, named: bool = True) -> None:
    """Refuse a model whose outputs are not the classes of the data; their errors would mean nothing.

    Example:
        >>> import torch
        >>> pets = Dataset.of_images("pets", torch.zeros(2, 3, 8, 8).byte(), torch.arange(2), ("cat", "dog"))
        >>> check_outputs(2, pets)
        >>> check_outputs(1000, pets)
        Traceback (most recent call last):
        ...
        ValueError: robustness: the model has 1000 outputs, but pets has 2 classes, and which outputs ...

    Args:
        outputs: how many the model has.
        data: the images with their classes, and the outputs that these are if they are not all. How many outputs there
            were when these were looked up (``outputs``) must be the model's: else they are other classes' outputs.
        named: whether the classes are known; else there may be more than the labels show.

    Raises:
        ValueError: if a label has no output, it is not known which outputs the classes are, or they are outputs of a
            model with another number of them.
    """
    classes = len(data.classes)
    has = f"{outputs} {plural('output', outputs)}"
    known = f"{classes} class{'' if classes == 1 else 'es'}"
    if data.class_subset is not None:
        last = int(data.class_subset.max()) if classes else -1
        if last < outputs and data.outputs in (None, outputs):
            return
        expected = f"at least {last + 1} outputs" if data.outputs is None else f"exactly {data.outputs} outputs"
        among = "" if data.outputs is None else f" of {data.outputs}"
        raise ValueError(
            f"robustness: the model has {has}, but the {classes} classes of {data.name} are mapped to "
            f"outputs up to number {last}{among}. Measure a model with {expected}, or correct the mapping "
            "(class_subset and outputs of the data set, wnids=... of ImageNet's relatives, --classes FILE on the "
            "command line, with a line for every output)."
        )
    if outputs < classes:
        raise ValueError(
            f"robustness: the model has {has}, but {data.name} has {known}, labels from 0 to "
            f"{classes - 1}. Is it the data set that the model was trained for? If it is, build the model with a head "
            f"for these classes (num_classes={classes}, --num-classes {classes}) and fill it with weights trained so."
        )
    if outputs > classes and named:
        raise ValueError(
            f"robustness: the model has {has}, but {data.name} has {known}, and which outputs "
            "these are is not known. If they are among the model's classes, say which (class_subset of the data set, "
            "wnids=... of ImageNet's relatives, --classes FILE on the command line); if not, it is another data set "
            f"than the model was trained for, or the model needs a head for them (--num-classes {classes})."
            f"{_above_classes(data)}"
        )


def _above_classes(data: Dataset) -> str:
    """What to say of a single class of many folders: likely a folder above the one of the classes was given."""
    below = {Path(file).parent for file in data.files() or []}
    if len(data.classes) != 1 or len(below) < 2:
        return ""
    return (
        f" Its images lie in {len(below)} folders below {os.path.commonpath(below)}: if these are the classes, pass "
        "that folder."
    )
