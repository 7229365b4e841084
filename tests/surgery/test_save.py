"""A saved model comes back as it was, from its file alone; a file that is not right is refused and runs nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forged import rewritten, with_text
from shiftnorm.models import WideResNet
from shiftnorm.norms import IBN, BatchNorm, RunningMoments
from shiftnorm.surgery import build_model, convert, edits_of, fold, insert, load, read_recipe, replace, revert, save

safetensors = pytest.importorskip("safetensors.torch")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A small network with a tied norm and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3.weight = self.conv2.weight
        self.again = self.bn1
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv3(self.conv2(x))))
        return self.head(self.again(x).mean((2, 3)))


def used(model: nn.Module, x: Tensor = X) -> nn.Module:
    """Running moments of some training."""
    model.train()
    for _ in range(2):
        model(x)
    return model.eval()


def wide(**arguments: Any) -> nn.Module:
    return build_model("shiftnorm/wide_resnet40_2", num_classes=4, **arguments)


CONVERSIONS: list[tuple[str, Callable[[nn.Module], Any]]] = [
    ("none", lambda model: model),
    ("ibn_a", lambda model: convert(model, "ibn_a", where="stages:1", ratio=0.25)),
    ("slots", lambda model: convert(model, "cnsn@post", where="blocks:last")),
    ("stages", lambda model: convert(model, "mixstyle", p=0.25)),
    ("chain", lambda model: insert(model, "SelfNorm", after="block3.*.bn2", start="identity")),
    ("hook", lambda model: insert(model, "SelfNorm", before="fc", after=None, channels=128)),
    ("twice", lambda model: convert(convert(model, "rbn")[0], "selfnorm", where="stages:2")),
]


@pytest.mark.parametrize(("name", "change"), CONVERSIONS, ids=[name for name, _ in CONVERSIONS])
def test_round_trip(tmp_path: Path, name: str, change: Callable[[nn.Module], Any]) -> None:
    del name
    model = wide()
    plain = {key: tensor.shape for key, tensor in model.state_dict().items()}
    change(model)
    used(model)
    path = save(model, tmp_path / "folder" / "model.safetensors")
    again, report = load(path)
    assert not again.training and again is not model
    assert torch.equal(again(X), model(X))
    assert list(again.state_dict()) == list(model.state_dict())
    assert [edit.to_json() for edit in report.edits] == [edit.to_json() for edit in edits_of(model)]
    assert save(again, tmp_path / "second").stat().st_size == path.stat().st_size
    reverted = revert(again, report)
    assert {key: tensor.shape for key, tensor in reverted.state_dict().items()} == plain and not edits_of(reverted)
    assert torch.equal(reverted.fc.weight, model.fc.weight) and reverted(X).shape == (4, 4)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["model.safetensors", "second"]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/efficientnet_b0", "timm/resnet18"])
def test_foreign_models(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name.partition("/")[0])
    model = build_model(name, num_classes=3)
    names = list(model.state_dict())
    convert(model, "selfnorm@post", where="stages:1")
    convert(model, "batch")
    x = torch.randn(2, 3, 64, 64)
    used(model, x)
    again, report = load(save(model, tmp_path / "model.safetensors"))
    assert torch.equal(again(x), model(x))
    types = {type(module) for module in build_model(name, num_classes=3).modules()}
    reverted = revert(again, report)
    assert list(reverted.state_dict()) == names and {type(module) for module in reverted.modules()} == types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_mixed_ones(tmp_path: Path, dtype: torch.dtype) -> None:
    model, _ = convert(wide().to(dtype), "selfnorm", where="stages:1")
    model.block1.layer[0].residual.float()
    again, _ = load(save(model, tmp_path / "model"))
    for (key, mine), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), key


def test_sources_of_moments_survive(tmp_path: Path) -> None:
    model, _ = convert(wide(), "batch")
    convert(model, "selfnorm", where="stages:1")
    norms = [module for module in model.modules() if isinstance(module, RunningMoments)]
    norms[0].source, norms[0].source_weight = "blend", 0.875
    norms[1].source, norms[2].source = "batch", "ema"
    model.block1.layer[0].residual.gate.source = "running"
    again, _ = load(save(used(model), tmp_path / "model"))
    for mine, theirs in zip(model.modules(), again.modules(), strict=True):
        if isinstance(mine, RunningMoments):
            assert (mine.source, mine.source_weight) == (theirs.source, theirs.source_weight)


def test_ties_and_models_of_ones_own(tmp_path: Path) -> None:
    model = Net()
    convert(model, "rbn")
    used(model)
    path = save(model, tmp_path / "model")
    assert "conv3.weight" not in safetensors.load_file(path) and "again.weight" not in safetensors.load_file(path)
    with pytest.raises(ValueError, match=r"holds a Net that was not made by build_model.*pass it as model="):
        load(path)
    again, _ = load(path, Net())
    assert torch.equal(again(X), model(X)) and again.again is again.bn1 and again.conv3.weight is again.conv2.weight
    with pytest.raises(ValueError, match=r"as it was before conversion.*revert first"):
        load(path, again)


def test_a_model_that_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    path = save(convert(Net(), "rbn")[0], tmp_path / "model")
    other = Net()
    other.head = nn.Linear(8, 5)
    state = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"does not fit the model.*head.weight \(4, 8\) for \(5, 8\)"):
        load(path, other)
    assert type(other.bn1) is nn.BatchNorm2d and not edits_of(other) and other.training
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    with pytest.raises(ValueError, match="no module"):
        load(path, nn.Sequential(nn.Conv2d(3, 8, 3)))


class Scaled(nn.BatchNorm2d):
    """A user's own norm."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__(channels)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


def test_norms_of_ones_own_are_passed_again(tmp_path: Path) -> None:
    model, _ = replace(wide(), Scaled, "block1.*", scale=0.5)
    path = save(used(model), tmp_path / "model")
    name = f"{__name__}.Scaled"
    assert read_recipe(path)["edits"][0]["norm"] == name
    with pytest.raises(ValueError, match=rf"{name} is no norm of shiftnorm; pass it.*norms="):
        load(path)
    again, _ = load(path, norms={name: Scaled})
    assert torch.equal(again(X), model(X)) and again.block1.layer[0].bn1.scale == 0.5
    with pytest.raises(ValueError, match="missing"):
        load(path, norms={name: lambda channels, scale: nn.Identity()})


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, float("nan"), torch.zeros(2), object(), {"a"}])
def test_arguments_that_are_no_json_are_named(tmp_path: Path, value: Any) -> None:
    model, _ = convert(Net(), lambda channels, thing: nn.BatchNorm2d(channels), where="bn2", thing=value)
    with pytest.raises(ValueError, match=r"at 'bn2' cannot be written as JSON.*thing"):
        save(model, tmp_path / "model")
    circle: list[Any] = []
    circle.append(circle)
    model, _ = convert(Net(), lambda channels, thing: nn.BatchNorm2d(channels), where="bn2", thing=circle)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_old_file_stays_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(wide(), tmp_path / "model")
    before = path.read_bytes()

    def fail(tensors: Any, file: str, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(convert(wide(), "rbn")[0], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is on the meta device"):
        save(nn.Linear(2, 2, device="meta"), tmp_path / "model")

    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    with pytest.raises(ValueError, match="expected a state_dict of tensors, got dict at '_extra_state'"):
        save(Extra(2, 2), tmp_path / "model")


def test_folded_models_are_neither_saved_nor_reverted(tmp_path: Path) -> None:
    # pre-activation: what a convolution feeds is bn2 alone
    model, report = convert(used(WideResNet(10, 1, num_classes=3)), "ibn_a")
    folded, folds = fold(model)
    assert folds.folded and not edits_of(folded) and edits_of(model)
    with pytest.raises(ValueError, match=r"save: the model is folded.*Save before fold"):
        save(folded, tmp_path / "model")
    with pytest.raises(ValueError, match=r"revert: the model is folded.*Revert before fold"):
        revert(folded, report)
    with pytest.raises(ValueError, match="folded"):
        save(copy.deepcopy(folded), tmp_path / "model")
    save(model, tmp_path / "model")
    assert type(revert(model, report).block1.layer[0].bn2) is nn.BatchNorm2d
    unfolded, folds = fold(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval())
    assert not folds.folded
    save(unfolded, tmp_path / "model")  # nothing was folded


def edit(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda recipe: recipe["edits"][0].update(changes)


FORM = "not of the form that save writes"
FORGED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda r: r.update(format=2), "later version"),
    (lambda r: r.update(edits={}), FORM),
    (lambda r: r.update(edits=[3]), FORM),
    (lambda r: r.update(aliases={"a": 1}), FORM),
    (lambda r: r.update(moments={"bn1": "batch"}), FORM),
    (lambda r: r.update(moments={"bn1": ["batch", "x"]}), FORM),
    (lambda r: r.update(source="timm/resnet18"), FORM),
    (lambda r: r.pop("edits"), FORM),
    (lambda r: r.update(source={"name": "x"}), "expected a source with name and arguments"),
    (lambda r: r.update(source={"name": "shiftnorm/nothing", "arguments": {}}), "unknown model"),
    (lambda r: r.update(source={"name": "marker:run", "arguments": {}}), "allow_code"),
    (lambda r: r.update(source={"name": "marker:run", "arguments": {"allow_code": True}}), "allow_code"),
    (lambda r: r.update(source={"name": "torchvision/resnet18", "arguments": {"pretrained": True}}), "pretrained"),
    (lambda r: r.update(moments={"block9": ["batch", 0.5]}), "'block9', which is not there"),
    (lambda r: r.update(moments={"fc": ["batch", 0.5]}), "'fc', which is Linear"),
    (lambda r: r.update(moments={"block1.layer.0.bn2": ["all", 0.5]}), "expected one of"),
    (lambda r: r.update(aliases={"fc.weight": "nothing"}), r"names tensors that are not in it: \['nothing'\]"),
    (edit(norm="SelfNorm"), "does not fit.*missing.*gate"),
    (edit(norm="marker.run"), "is no norm of shiftnorm"),
    (edit(norm="NormLayer"), "is no norm of shiftnorm"),
    (edit(norm="__loader__"), "is no norm of shiftnorm"),
    (edit(norm="draws"), "is no norm of shiftnorm"),
    (edit(path="block9.bn"), "no module 'block9.bn'"),
    (edit(path="block1.layer.0.conv1"), "expected a norm at"),
    (edit(how="burn"), "expected an edit with path, how"),
    (edit(how="open", path="fc.post", channels=8), "cannot be made.*open_block"),
    (edit(how="open", path="fc.own", channels=8), "expected one of pre, residual"),
    (edit(how="fill", path="fc.own", channels=8), "expected an empty place"),
    (edit(how="fill", path="fc.forward", channels=8), "expected an empty place"),
    (edit(how="fill", path="block1.layer.0.conv1.bias", channels=8), "cannot be made"),
    (edit(how="fill", path="block1.layer.0.post"), "expected the channels"),
    (edit(how="fill", path="block1.layer.0.post", channels=True), "whole number"),
    (edit(how="fill", path="block1.layer.0.post", channels=-1), "whole number"),
    (edit(how="fill", path="block1.layer.0.post", channels=10**12), "does not fit the file"),
    (edit(how="after", path="block1.layer.0.conv1", norm="SelfNorm", arguments={"reduction": 10**15}), "fit the file"),
    (edit(arguments={"ratio": 1e400}), r"ratio in \[0, 1\]|damaged"),
    (edit(arguments={"colour": "red"}), "cannot be made.*colour"),
    (edit(arguments={"ratio": "half"}), "cannot be made"),
    (edit(arguments=[1]), "expected an edit"),
    (edit(more=1), "expected an edit"),
    (edit(norm="GroupNorm", arguments={"num_groups": 0}), "cannot be made|num_groups"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = build_model("shiftnorm/wide_resnet16_4", num_classes=2)
    path = save(convert(model, "ibn_a", where="block1.layer.0")[0], tmp_path_factory.mktemp("small") / "model")
    return path.read_bytes()


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_forged_recipes_are_refused(
    tmp_path: Path, small: bytes, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], message: str
) -> None:
    (tmp_path / "marker.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "model"
    path.write_bytes(small)
    with pytest.raises(ValueError, match=message):
        load(rewritten(path, change))


def test_damaged_files_are_refused(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "model"
    for data in (b"", b"x" * 100, small[:200], small[: len(small) // 2], b"\xff" * 8 + small[8:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is none or is damaged"):
            load(path)
    path.write_bytes(small)
    for text in ("{", "[" * 100_000, '{"format": ' + "9" * 5000 + "}"):
        with pytest.raises(ValueError, match="is damaged"):
            load(with_text(path, text))
    safetensors.save_file(safetensors.load_file(path), path)
    with pytest.raises(ValueError, match=r"not written by shiftnorm's save; use load_weights"):
        load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path)


def test_numbers_of_another_kind_are_refused(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(small)
    text = json.dumps(read_recipe(path))
    tensors = safetensors.load_file(path)
    tensors["fc.weight"] = tensors["fc.weight"].long()
    safetensors.save_file(tensors, path, metadata={"shiftnorm": text})
    with pytest.raises(ValueError, match=r"fc\.weight torch\.int64 for torch\.float32"):
        load(path)


def test_the_root_may_be_a_norm(tmp_path: Path) -> None:
    model, _ = convert(nn.BatchNorm2d(3), "ibn")
    again, report = load(save(model, tmp_path / "model"), nn.BatchNorm2d(3))
    assert isinstance(again, IBN) and isinstance(revert(again, report), nn.BatchNorm2d)
    assert not isinstance(again, BatchNorm)
