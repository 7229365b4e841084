"""Models are built by name, run nobody's code unasked, and remember where they came from."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from shiftnorm.surgery.source import build_model, list_sources, rebuild, source_of

needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shiftnorm/resnet18", {"num_classes": 3, "stem": "cifar"}),
        pytest.param("torchvision/resnet18", {"num_classes": 3}, marks=needs_torchvision),
        pytest.param("timm/resnet18", {"num_classes": 3, "in_chans": 1}, marks=needs_timm),
        pytest.param("timm/resnet18.a1_in1k", {"num_classes": 3}, marks=needs_timm),
    ],
)
def test_a_model_is_built_and_remembers_how(name: str, arguments: dict[str, Any]) -> None:
    model = build_model(name, **arguments)
    assert model.fc.out_features == 3 and model.training
    assert source_of(model) == {"name": name, "arguments": arguments}
    assert source_of(copy.deepcopy(model)) == source_of(model)
    assert "_shiftnorm_source" not in "".join(model.state_dict())
    again = rebuild(json.loads(json.dumps(source_of(model))))
    again.load_state_dict(model.state_dict())
    assert source_of(again) == source_of(model)


def test_the_memory_survives_pickling_and_cannot_be_changed_from_outside() -> None:
    model = build_model("shiftnorm/all_conv", width=4)
    source_of(model)["arguments"]["width"] = 8
    assert source_of(pickle.loads(pickle.dumps(model))) == {"name": "shiftnorm/all_conv", "arguments": {"width": 4}}
    assert source_of(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shiftnorm/resnet5", r"unknown model 'shiftnorm/resnet5'; did you mean shiftnorm/resnet"),
        ("shiftnrom/resnet50", r"did you mean shiftnorm/resnet50\?"),
        ("wide_resnet40_2", r"did you mean shiftnorm/wide_resnet40_2"),
        ("shiftnorm/qqqqqqqq", r"expected shiftnorm/\.\.\., torchvision/\.\.\., timm/\.\.\.; list_sources\(\) has all"),
        ("", r"unknown model ''"),
        pytest.param("torchvision/resnet5", r"did you mean torchvision/resnet", marks=needs_torchvision),
        pytest.param("timm/resnet5", r"did you mean timm/resnet", marks=needs_timm),
        pytest.param("timm/hf-hub:someone/model", r"unknown model 'timm/hf-hub:someone/model'", marks=needs_timm),
        pytest.param("timm/local-dir:/tmp/x", r"unknown model", marks=needs_timm),
    ],
)
def test_an_unknown_name_is_met_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name)


def test_what_is_built_must_be_plain_data() -> None:
    with pytest.raises(
        TypeError, match=r"arguments that can be written as JSON, got slots=.*shiftnorm\.surgery\.convert"
    ):
        build_model("shiftnorm/resnet18", slots={"post": nn.BatchNorm2d})
    with pytest.raises(TypeError, match="got dropout=nan"):
        build_model("shiftnorm/all_conv", dropout=float("nan"))
    with pytest.raises(TypeError, match=r"checkpoint_path is not passed on\. Build the model, then use load_weights"):
        build_model("timm/resnet18", checkpoint_path="weights.pth")
    with pytest.raises(TypeError, match="expected a name such as 'timm/resnet50', got 3"):
        build_model(3)
    with pytest.raises(ValueError, match=r"comes without weights\. Leave pretrained off"):
        build_model("shiftnorm/resnet18", pretrained=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported and leaves a file when it is."""
    proof = tmp_path / "imported"
    (tmp_path / "somebodys_model.py").write_text(
        f"import pathlib\npathlib.Path({str(proof)!r}).touch()\nfrom torch import nn\n"
        "def build(width=2): return nn.Linear(width, 1)\nclass Nets:\n    small = staticmethod(build)\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somebodys_model", raising=False)
    yield proof
    sys.modules.pop("somebodys_model", None)


def test_code_runs_only_if_it_is_allowed(package: Path) -> None:
    with pytest.raises(ValueError, match=r"'somebodys_model:build' would import and run code.*allow_code=True"):
        build_model("somebodys_model:build", width=3)
    source = {"name": "somebodys_model:build", "arguments": {"width": 3}}
    for arguments in ({"allow_code": True}, {"allow_code": True, "width": 3}):
        with pytest.raises(ValueError, match="expected arguments of a model, got allow_code"):
            rebuild({"name": "somebodys_model:build", "arguments": arguments})
    with pytest.raises(ValueError, match="would import and run code"):
        rebuild(source)
    assert not package.exists()
    model = build_model("somebodys_model:build", allow_code=True, width=3)
    assert package.exists() and model.in_features == 3
    assert source_of(model) == source
    assert rebuild(source, allow_code=True).in_features == 3
    assert build_model("somebodys_model:Nets.small", allow_code=True).in_features == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("somebodys_model:bild", ValueError, r"there is no bild in somebodys_model; near: build"),
        ("somebodys_model:number", TypeError, r"to return a torch\.nn\.Module, it returned int"),
        ("./somebodys_model.py:build", ValueError, r"A file is not run"),
        ("/tmp/somebodys_model.py:build", ValueError, r"expected 'package\.module:function'"),
        ("somebodys_model:build()", ValueError, r"expected 'package\.module:function'"),
        ("no_such_module_here:build", ModuleNotFoundError, r"no module 'no_such_module_here', .*PYTHONPATH"),
        ("somebodys_model.deeper:build", ModuleNotFoundError, r"no module 'somebodys_model.deeper', .*PYTHONPATH"),
    ],
)
def test_wrong_functions_are_named(package: Path, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_model(name, allow_code=True)


@pytest.mark.parametrize(
    "source",
    [
        {"name": "torchvision/resnet18", "arguments": {"weights": "DEFAULT"}},
        {"name": "timm/resnet18", "arguments": {"pretrained": True}},
        {"name": "timm/resnet18", "arguments": {"checkpoint_path": "/etc/passwd"}},
        {"name": "timm/resnet18", "arguments": {"pretrained_cfg": {"url": "http://localhost"}}},
    ],
)
def test_a_strangers_source_fetches_nothing(source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="would run code or fetch files"):
        rebuild(source)


@pytest.mark.parametrize("source", [{}, {"name": 3, "arguments": {}}, {"name": "a", "arguments": [], "more": 1}])
def test_a_source_of_another_form_is_refused(source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a source with name and arguments"):
        rebuild(source)


@needs_torchvision
def test_what_torchvisions_weights_imply_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    small = models.googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: small)
    model = build_model("torchvision/googlenet", pretrained=True)
    assert source_of(model) == {
        "name": "torchvision/googlenet",
        "arguments": {"transform_input": True, "aux_logits": False},
    }
    again = rebuild({**source_of(model), "arguments": {**source_of(model)["arguments"], "init_weights": False}}).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert again(images).equal(model.eval()(images))


@needs_torchvision
def test_no_backbone_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", refuse)
    assert build_model("torchvision/lraspp_mobilenet_v3_large", num_classes=2)
    with pytest.raises(AssertionError, match="weights were asked for"):
        build_model("torchvision/resnet18", pretrained=True)


def test_lists_by_library(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list_sources("resnet50")
    assert set(found) == {
        name for name in ("shiftnorm", "torchvision", "timm") if importlib.util.find_spec(name) is not None
    }
    assert all(names == ["resnet50"] for names in found.values())
    assert list_sources("shiftnorm/wide_resnet16*") == {"shiftnorm": ["wide_resnet16_4"]}
    assert list_sources("no such model") == {}


@pytest.mark.parametrize(("library", "extra"), [("torchvision", "train"), ("timm", "timm")])
def test_a_library_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    searched = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == library else searched(name, *rest)
    )

    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=library)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=rf'{library} is not installed.*pip install "shiftnorm\[{extra}\]"'):
        build_model(f"{library}/resnet18")
    assert library not in list_sources()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        pytest.param(
            "torchvision/resnet18", r"https://download\.pytorch\.org/models/resnet18-\w+\.pth", marks=needs_torchvision
        ),
        pytest.param("timm/resnet18", r"https://huggingface\.co/timm/resnet18\.\w+", marks=needs_timm),
    ],
)
def test_weights_that_cannot_be_fetched_are_named(monkeypatch, name, address):
    def fail(*_, **__):
        raise URLError("Name or service not known.")

    library = importlib.import_module(name.partition("/")[0])
    target = (library.models, "get_model") if name.startswith("torchvision") else (library, "create_model")
    monkeypatch.setattr(*target, fail)
    text = rf"the weights of {name} could not be fetched from {address} \(.*not known.*\).*--weights FILE\."
    with pytest.raises(OSError, match=text):
        build_model(name, pretrained=True)


@pytest.mark.parametrize(
    "name",
    [
        "torchvsion/resnet18",
        "shiftnorm/resnet81",
        pytest.param("torchvision/resnet81", marks=needs_torchvision),
        pytest.param("timm/resnt18", marks=needs_timm),
    ],
)
def test_a_question_ends_once(name):
    with pytest.raises(ValueError, match=r"did you mean .*[^?.]\?$"):
        build_model(name)
    with pytest.raises(ValueError, match=r"list_sources\(\) has all names\.$"):
        build_model("qqqq")
