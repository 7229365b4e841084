"""A model whose outputs are not the classes of the data is refused at the start, with both counts and a remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pictures import tree
from shiftnorm.cli_open import match_classes
from shiftnorm.data import Dataset, ImageSet, open_dataset
from shiftnorm.evaluate.outputs import check_outputs
from shiftnorm.evaluate.robustness import robustness


class Counting(nn.Module):
    """Counts the images it was shown."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head, self.shown = nn.Linear(3, classes), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown += len(x)
        return self.head(x.mean((2, 3)))


def pets(classes: int, n: int = 40) -> Dataset:
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # sorted by class, as in a folder: the first batches say nothing of the last class
    labels = torch.arange(n) * classes // n
    return Dataset.of_images("pets", images, labels, tuple(f"class{number}" for number in range(classes)))


def run(model: nn.Module, data: Any) -> Any:
    return robustness(
        model,
        data,
        ["contrast"],
        [5],
        normalize="half",
        progress=False,
        bootstrap=0,
        batch_size=4,
        process_group="alone",
    )


@pytest.mark.parametrize(
    ("outputs", "classes", "parts"),
    [
        (10, 20, ["10 outputs", "pets has 20 classes", "labels from 0 to 19", "--num-classes 20"]),
        (
            1000,
            20,
            ["1000 outputs", "pets has 20 classes", "class_subset", "wnids=", "--classes FILE", "another data set"],
        ),
    ],
)
def test_it_is_told_at_the_start(outputs: int, classes: int, parts: list[str]) -> None:
    model = Counting(outputs)
    with pytest.raises(ValueError, match=r"^robustness: the model has") as caught:
        run(model, pets(classes))
    assert all(part in str(caught.value) for part in parts)
    assert model.shown <= 4 + 40  # one batch, and the look at the normalization


def test_a_mapping_of_classes_to_outputs() -> None:
    data = replace(pets(3), class_subset=torch.tensor([1, 5, 8]))
    assert run(Counting(9), data).images == 40
    with pytest.raises(
        ValueError, match=r"has 8 outputs, but the 3 classes of pets are mapped to outputs up to number 8"
    ):
        run(Counting(8), data)


def test_images_and_labels_alone_may_lack_the_last_classes() -> None:
    data = pets(3)
    assert run(Counting(9), (data.images(), data.labels)).images == 40
    with pytest.raises(ValueError, match=r"2 outputs, but images has 3 classes"):
        run(Counting(2), (data.images(), data.labels))
    with pytest.raises(ValueError, match="9 outputs, but pets has 3 classes"):
        run(Counting(9), ImageSet(data.images(), data.labels, data.classes, "pets"))


def test_the_folder_above_the_classes(tmp_path: Path) -> None:
    tree(tmp_path / "all" / "deep" / "photos", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(2)])
    with pytest.raises(ValueError, match=r"2 folders below .*photos: if these are the classes, pass that folder\.$"):
        check_outputs(7, open_dataset(tmp_path / "all"))
    with pytest.raises(ValueError, match=r"--num-classes 2\)\.$"):
        check_outputs(7, open_dataset(tmp_path / "all" / "deep" / "photos"))
    with pytest.raises(ValueError, match=r"--num-classes 1\)\.$"):
        check_outputs(7, pets(1))


def test_right_ones_pass() -> None:
    check_outputs(20, pets(20))
    check_outputs(25, pets(20), named=False)


def test_a_mapping_holds_for_models_of_one_size() -> None:
    data = replace(pets(3), class_subset=torch.tensor([1, 5, 8]), outputs=1000)
    check_outputs(1000, data)
    for outputs in (999, 1001, 21_841):
        with pytest.raises(ValueError, match=rf"has {outputs} outputs.* up to number 8 of 1000.* exactly 1000 outputs"):
            check_outputs(outputs, data)
    with pytest.raises(ValueError, match="exactly 1000 outputs"):
        run(Counting(1001), data)


def test_names_that_are_fewer_than_the_outputs() -> None:
    named = match_classes(pets(2), ["class1", "eel", "class0"])
    assert named.class_subset is not None and named.class_subset.tolist() == [2, 0]
    check_outputs(3, named)
    with pytest.raises(ValueError, match=r"1000 outputs.* exactly 3 outputs.* a line for every output"):
        check_outputs(1000, named)


@pytest.mark.parametrize(
    ("subset", "outputs", "classes"),
    [
        ([1, 2], 3, ["class1", "eel", "class0"]),  # another order
        ([1, 2], 4, ["eel", "class0", "class1"]),  # another number
        ([1, 2], 3, ["class0", "class1"]),  # those of the data, as if there were no more
        ([1, 2], None, ["class0"]),
        (None, 2, ["class1", "class0"]),
        (None, 2, ["class0", "class1", "eel"]),
    ],
)
def test_names_and_a_mapping_that_say_otherwise(subset: Any, outputs: int | None, classes: list[str]) -> None:
    data = replace(pets(2), class_subset=None if subset is None else torch.tensor(subset), outputs=outputs)
    with pytest.raises(ValueError, match=r"classes of pets are is known already \(from --wnids.*Leave out --classes"):
        match_classes(data, classes)


def test_names_and_a_mapping_that_agree() -> None:
    data = replace(pets(2), class_subset=torch.tensor([1, 2]), outputs=3)
    assert match_classes(data, ["eel", "class0", "class1"]) is data
    whole = replace(pets(2), outputs=2)
    assert match_classes(whole, ["class0", "class1"]) is whole
