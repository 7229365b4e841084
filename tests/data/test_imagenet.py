"""ImageNet and its relatives: which output every folder belongs to, and what is missing when that is not known."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pictures import pixels_of, tree
from shiftnorm.data import open_dataset
from shiftnorm.data.imagenet import CORRUPTIONS, wnid_list

# In another order than sorted, as some published lists are.
WNIDS = ("n03000000", "n01000000", "n04000000", "n02000000", "n09000000")


@pytest.fixture
def val(tmp_path: Path) -> Path:
    tree(tmp_path / "imagenet" / "val", [f"{wnid}/{n}.png" for wnid in WNIDS for n in range(2)], (300, 260))
    return tmp_path / "imagenet"


def test_val_and_the_index_rule(val: Path) -> None:
    clean = open_dataset("imagenet", val, wnids=val / "val")
    assert clean.classes == tuple(sorted(WNIDS)) and clean.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert clean.class_subset is None and clean.images([0]).shape == (1, 3, 224, 224)
    assert clean.provenance.notes[-1] == "preprocess resize256-crop224, decoded as stored"
    assert open_dataset("imagenet", val / "val", wnids=WNIDS).labels.tolist() == clean.labels.tolist()


def test_a_subset_knows_its_outputs(val: Path, tmp_path: Path) -> None:
    tree(tmp_path / "imagenet-r", ["n02000000/art_0.png", "n09000000/toy_0.png", "n09000000/toy_1.png"], (300, 260))
    (tmp_path / "imagenet-r" / "README.txt").write_text("Renditions")
    part = open_dataset("imagenet-r", tmp_path, wnids=val / "val")
    assert part.class_subset is not None and part.class_subset.tolist() == [1, 4]
    assert part.labels.tolist() == [0, 1, 1] and part.classes == ("n02000000", "n09000000")
    with pytest.raises(ValueError, match=r"has 2 class folders, so the outputs .* pass wnids="):
        open_dataset("imagenet-r", tmp_path)
    with pytest.raises(ValueError, match=r"1 class folders .* not among the 4 of wnids=, for instance n09000000"):
        open_dataset("imagenet-r", tmp_path, wnids=WNIDS[:4])
    # Sets side by side are told apart by their folders' names.
    with pytest.raises(FileNotFoundError, match=r"no imagenet-a.*imagenet-a/WNID/FILE.*natural-adv-examples"):
        open_dataset("imagenet-a", tmp_path, wnids=WNIDS)


@pytest.mark.parametrize("top", ["imagenet-a", "."])
def test_a_subset_in_an_archive(val: Path, tmp_path: Path, top: str) -> None:
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "imagenet-a.tar", "w") as tar:
        for wnid in ("n01000000", "n04000000"):
            tar.add(val / "val" / wnid, f"{top}/{wnid}")
    for root in (tmp_path / "packed", tmp_path / "packed" / "imagenet-a.tar"):
        part = open_dataset("imagenet-a", root, wnids=WNIDS, cache=tmp_path / "cache")
        assert part.class_subset is not None and part.class_subset.tolist() == [0, 3] and len(part) == 4
        assert part.provenance.path.name == "imagenet-a.tar"


def test_ways_to_give_the_classes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("n02000000 crane, a bird\nn01000000 tench, Tinca\nn03000000 crane\n")
    index = {"0": ["n01000000", "tench"], "1": ["n02000000", "crane"], "2": ["n03000000", "crane"]}
    (tmp_path / "a.json").write_text(json.dumps(index))
    for path in (tmp_path / "a.txt", tmp_path / "a.json"):
        assert wnid_list(path) == {"n01000000": "tench", "n02000000": "crane", "n03000000": "crane"}
    tree(tmp_path / "sketch", ["n02000000/1.png", "n01000000/1.png", "n03000000/1.png"])
    named = open_dataset("imagenet-sketch", tmp_path, wnids=tmp_path / "a.txt")
    assert named.classes == ("tench", "crane (n02000000)", "crane (n03000000)") and named.class_subset is None
    for wrong, message in (
        (["n1"], "must give WordNet numbers such as n01440764, got 'n1'"),
        ([], "got 'none'"),
        (["n01000000"] * 2, "gives n01000000 more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            wnid_list(wrong)
    with pytest.raises(FileNotFoundError, match=r"there is nothing at wnids='nowhere'"):
        wnid_list("nowhere")


def test_the_classes_that_timm_has() -> None:
    pytest.importorskip("timm")
    outputs = wnid_list("timm")
    assert len(outputs) == 1000 and list(outputs) == sorted(outputs)
    assert next(iter(outputs.items())) == ("n01440764", "tench")


def test_v2_folders_are_numbers(tmp_path: Path) -> None:
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    tree(root, [f"{number}/{number}.png" for number in (0, 1, 2, 10, 100)])
    natural = open_dataset("imagenet-v2", tmp_path, preprocess="none")
    # Sorted as text, 10 and 100 would come before 2.
    assert natural.class_subset is not None and natural.class_subset.tolist() == [0, 1, 2, 10, 100]
    assert natural.classes == ("0", "1", "2", "10", "100")
    assert np.array_equal(natural.images([2])[0].numpy(), pixels_of(root / "2" / "2.png"))
    with pytest.raises(FileNotFoundError, match=r"variant='top-images'"):
        open_dataset("imagenet-v2", tmp_path, variant="top-images")
    with pytest.raises(ValueError, match=r"variant must be one of matched-frequency"):
        open_dataset("imagenet-v2", tmp_path, variant="best")
    with pytest.raises(ValueError, match=r"holds the folder 100, but a model has outputs 0..4"):
        open_dataset("imagenet-v2", tmp_path, wnids=WNIDS)
    tree(root, ["01/x.png"])
    with pytest.raises(ValueError, match=r"the class folders '01' and '1' .* are one number"):
        open_dataset("imagenet-v2", tmp_path)
    shutil.rmtree(root / "01")
    tree(root, ["dog/x.png"])
    with pytest.raises(ValueError, match=r"no numbers, for instance 'dog'"):
        open_dataset("imagenet-v2", tmp_path)


@pytest.mark.parametrize("group", ["", "blur"])
def test_c_is_not_resized(tmp_path: Path, group: str) -> None:
    names = [f"defocus_blur/{severity}/{wnid}/1.png" for severity in (1, 5) for wnid in WNIDS]
    tree(tmp_path / group, names, (224, 224))
    cell = open_dataset("imagenet-c", tmp_path, corruption="defocus_blur", severity=5, wnids=WNIDS)
    assert cell.name == "imagenet-c/defocus_blur/5" and len(cell) == 5
    assert cell.provenance.notes[-1] == "preprocess none, decoded as stored"
    expected = pixels_of(tmp_path / group / "defocus_blur" / "5" / "n04000000" / "1.png")
    assert np.array_equal(cell[3][0].numpy(), expected)
    options = {"corruption": "defocus_blur", "severity": 1, "wnids": WNIDS}
    again = open_dataset("imagenet-c", tmp_path, preprocess="resize256-crop224", **options)
    assert again.provenance.notes[-1] == "preprocess resize256-crop224, decoded as stored"
    assert not (again[0][0] == open_dataset("imagenet-c", tmp_path, **options)[0][0]).all()
    with pytest.raises(ValueError, match=r"needs severity=, one of those in .*defocus_blur \(1, 5\), got 3"):
        open_dataset("imagenet-c", tmp_path, corruption="defocus_blur", severity=3)
    with pytest.raises(ValueError, match=r"needs corruption=.*\(defocus_blur\), got 'blur'"):
        open_dataset("imagenet-c", tmp_path, corruption="blur", severity=3)
    with pytest.raises(FileNotFoundError, match=r"no imagenet-c, split='test', corruption='fog', severity=3"):
        open_dataset("imagenet-c", tmp_path, corruption="fog", severity=3)


def test_c_from_the_archive_of_its_group(tmp_path: Path) -> None:
    tree(tmp_path / "made", [f"{name}/1/{WNIDS[0]}/1.png" for name in ("fog", "snow")], (224, 224))
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "weather.tar", "w") as tar:
        for name in ("fog", "snow"):
            tar.add(tmp_path / "made" / name, name)
    options = {"severity": 1, "wnids": WNIDS, "cache": tmp_path / "cache"}
    cell = open_dataset("imagenet-c", tmp_path / "root", corruption="fog", **options)
    assert len(cell) == 1 and cell.class_subset is not None and cell.class_subset.tolist() == [2]
    assert cell.provenance.path.name == "weather.tar" and len(CORRUPTIONS) == 19


def test_val_without_class_folders(tmp_path: Path) -> None:
    tree(tmp_path / "val", ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(ValueError, match=r"without class folders; sort them into one folder per WordNet number"):
        open_dataset("imagenet", tmp_path)


def test_strange_folders_and_missing_sets(val: Path) -> None:
    (val / "val" / "n123").mkdir()
    tree(val / "val" / "n123", ["1.png"])
    with pytest.raises(ValueError, match=r"no WordNet numbers, for instance 'n123'"):
        open_dataset("imagenet", val, wnids=WNIDS)
    with pytest.raises(FileNotFoundError, match=r"no imagenet, split='train'.*it cannot be downloaded by a program"):
        open_dataset("imagenet", val, "train")
    with pytest.raises(ValueError, match=r"imagenet has no split 'all', only train, val, test"):
        open_dataset("imagenet", val, "all")


def test_of_how_many_outputs_the_classes_are(val: Path, tmp_path: Path) -> None:
    tree(tmp_path / "imagenet-r", ["n02000000/art_0.png", "n09000000/toy_0.png"], (300, 260))
    part = open_dataset("imagenet-r", tmp_path, wnids=[*WNIDS, "n09000001"])
    assert part.outputs == part.limit(1).outputs == part.subset([1]).outputs == 6
    assert open_dataset("imagenet", val, wnids=val / "val").outputs == 5
    tree(tmp_path / "imagenetv2-matched-frequency-format-val", ["0/a.png", "3/b.png"])
    assert open_dataset("imagenet-v2", tmp_path, preprocess="none").outputs == 1000
    assert open_dataset("imagenet-v2", tmp_path, preprocess="none", wnids=WNIDS).outputs == 5
