"""Weights go in whole or not at all, and the report says what went where."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import IBN, BatchInstanceNorm, BatchNorm, SelfNorm, SwitchNorm
from shiftnorm.surgery import build_model, convert, save
from shiftnorm.surgery.weights import load_weights

State = dict[str, Tensor]


class Tiny(nn.Module):
    """A convolution, a norm and a linear layer."""

    def __init__(self, norm: nn.Module | None = None, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4) if norm is None else norm
        self.fc = nn.Linear(4, classes)


def state_of(model: nn.Module) -> State:
    """Random numbers for every tensor of a model."""
    return {
        name: torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else torch.tensor(7)
        for name, tensor in model.state_dict().items()
    }


def holds(model: nn.Module, state: State) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(own[key].equal(tensor) for key, tensor in state.items())


def under(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def test_a_converted_model_is_no_file_of_weights(tmp_path: Path) -> None:
    def plain() -> nn.Module:
        return build_model("shiftnorm/wide_resnet16_4", num_classes=3)

    path = save(convert(plain(), "selfnorm@post")[0], tmp_path / "a.safetensors")
    model = plain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"a\.safetensors is a converted model.*give it as MODEL.*Nothing was changed"):
        load_weights(model, path)
    assert holds(model, before)
    # into the same conversion it goes
    assert load_weights(convert(model, "selfnorm@post")[0], path).warnings == []
    # IBN's tensors are named as BatchNorm's: they go in, but the network is another
    path = save(convert(plain(), "ibn_a")[0], tmp_path / "b.safetensors")
    assert load_weights(convert(plain(), "ibn_a")[0], path).warnings == []
    assert "conversions are not made here; give it as MODEL" in load_weights(plain(), path).warnings[0]


def test_of_a_saved_model_without_conversions_the_names_are_listed(tmp_path: Path) -> None:
    path = save(build_model("shiftnorm/wide_resnet16_4", num_classes=3), tmp_path / "a.safetensors")
    assert load_weights(build_model("shiftnorm/wide_resnet16_4", num_classes=3), path).warnings == []
    with pytest.raises(ValueError, match=r"does not fit Tiny\. .*missing in the file"):
        load_weights(Tiny(), path)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module.model.", "model._orig_mod.module.", ""],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_prefixes_come_off_where_that_makes_names_fit(tmp_path: Path, prefix: str, ending: str) -> None:
    from safetensors.torch import save_file

    model = Tiny()
    state = state_of(model)
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(under(prefix, state), path)
    report = load_weights(model, path)
    assert holds(model, state)
    assert report.prefix == prefix.replace("_orig_mod.", "")
    assert (report.loaded, report.total, report.source) == (9, 9, str(path))
    assert bool(report.notes) == ("_orig_mod." in prefix)


def test_a_model_whose_own_names_begin_like_a_prefix_keeps_them() -> None:
    model = nn.Module()
    model.backbone = Tiny()
    model.encoder = Tiny()
    state = state_of(model)
    assert load_weights(model, under("module.", state)).prefix == "module."
    assert holds(model, state)
    assert load_weights(model, state).prefix == ""


def test_a_prefix_can_be_forced() -> None:
    model = Tiny()
    student, teacher = state_of(model), state_of(model)
    both = under("student.", student) | under("teacher.", teacher)
    report = load_weights(model, both, prefix="teacher")
    assert holds(model, teacher)
    assert report.prefix == "teacher." and len(report.skipped) == 9
    with pytest.raises(ValueError, match=r"begins with 'momentum\.'; names there begin with \['student', 'teacher'\]"):
        load_weights(model, both, prefix="momentum.")
    with pytest.raises(ValueError, match=r"no tensor fits"):
        load_weights(model, under("module.", student), prefix="")


def test_names_of_compiled_and_parallel_parts() -> None:
    model = Tiny()
    state = state_of(model)
    inside = {
        key.replace("conv.", "conv.module.").replace("fc.", "fc._orig_mod."): value for key, value in state.items()
    }
    report = load_weights(model, inside)
    assert holds(model, state)
    assert report.notes == ["took '_orig_mod.' out of all names"]
    assert report.renamed == [("conv.module.*", "conv.*")]


def test_a_wrapped_model_takes_weights_too() -> None:
    model = Tiny()
    state = state_of(model)
    load_weights(nn.DataParallel(model), under("module.", state))
    assert holds(model, state)


def test_averaged_weights_on_request() -> None:
    model = Tiny()
    plain, averaged = state_of(model), state_of(model)
    both = {"model": plain, "model_ema": under("module.", averaged)}
    assert "ema=True" in load_weights(model, both).notes[0]
    assert holds(model, plain)
    assert load_weights(model, both, ema=True).wrappers == ("model_ema",)
    assert holds(model, averaged)


def broken(state: State, change: str) -> State:
    if change == "missing":
        del state["conv.weight"]
    elif change == "unexpected":
        state["extra.weight"] = torch.ones(1)
    elif change == "shape":
        state["conv.weight"] = torch.ones(5, 3, 1, 1)
    elif change == "head":
        state |= {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}
    elif change == "kind":
        state["fc.weight"] = torch.ones(2, 4, dtype=torch.int8)
    elif change == "another model":
        state = under("features.", state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"the given state does not fit Tiny\. 1 missing in the file: conv\.weight; strict=False loads what",
        ),
        ("unexpected", r"1 not in the model: extra\.weight; strict=False"),
        ("shape", r"1 of another shape: conv\.weight \(5, 3, 1, 1\) in the file, \(4, 3, 1, 1\) in the model"),
        ("head", r"2 of another shape: fc\.weight \(10, 4\) in the file, \(2, 4\) in the model, .*head='skip' leaves"),
        ("kind", r"fc\.weight \(torch\.int8 in the file, torch\.float32 in the model\)"),
        ("another model", r"no tensor fits; 8 missing in the file: .*; 9 not in the model: features\.conv\.weight"),
    ],
)
def test_a_failed_load_changes_nothing(change: str, message: str) -> None:
    model = Tiny(SwitchNorm(4))
    before = copy.deepcopy(model.state_dict())
    marks = dict(vars(model.bn))
    official = {f"bn.{key}": value for key, value in SwitchNorm(4).to_official().items()}
    state = {key: value for key, value in state_of(model).items() if not key.startswith("bn.")} | official
    if change == "another model":
        model, before = Tiny(), copy.deepcopy(Tiny().state_dict())
        state = state_of(model)
        before = copy.deepcopy(model.state_dict())
    elif change == "missing":
        model = Tiny()
        before, state = copy.deepcopy(model.state_dict()), state_of(model)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(model, broken(state, change))
    assert str(caught.value).endswith("Nothing was changed.")
    assert holds(model, before)
    if isinstance(model.bn, SwitchNorm):
        assert vars(model.bn)["official_rank"] == marks["official_rank"]


def test_not_strict_loads_what_fits() -> None:
    model = Tiny()
    state = state_of(model)
    kept = model.conv.weight.detach().clone()
    report = load_weights(model, broken(broken(dict(state), "missing"), "unexpected"), strict=False)
    assert (report.missing, report.unexpected, report.loaded) == (["conv.weight"], ["extra.weight"], 8)
    assert model.conv.weight.equal(kept) and model.fc.weight.equal(state["fc.weight"])
    with pytest.raises(ValueError, match="of another shape"):
        load_weights(model, broken(dict(state), "shape"), strict=False)
    with pytest.raises(ValueError, match="no tensor fits"):
        load_weights(model, {"other.weight": torch.ones(1)}, strict=False)


@pytest.mark.parametrize("there", ["other count", "absent", "other name"])
def test_the_models_own_head_can_stay(there: str) -> None:
    model = Tiny()
    own = model.fc.weight.detach().clone()
    state = broken(state_of(model), "head")
    if there != "other count":
        weight, bias = state.pop("fc.weight"), state.pop("fc.bias")
        state |= {"classifier.1.weight": weight, "classifier.1.bias": bias} if there == "other name" else {}
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(model, state)
    report = load_weights(model, state, head="skip")
    assert model.fc.weight.equal(own) and model.conv.weight.equal(state["conv.weight"])
    if there == "other count":
        assert ("fc.weight", "10 outputs there, 2 here; the model's own stays") in report.skipped
    else:
        assert report.kept == ["fc.weight", "fc.bias"] and not report.missing
    # a body that differs is no head
    with pytest.raises(ValueError, match=r"bn\.weight \(6,\) in the file"):
        load_weights(model, state | {"bn.weight": torch.ones(6)}, head="skip")


def test_parameters_stay_the_same_objects_in_their_dtype() -> None:
    model = Tiny()
    state = {key: value.half() if value.is_floating_point() else value for key, value in state_of(model).items()}
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    report = load_weights(model, state)
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert all(model.get_buffer(name) is buffer for name, buffer in buffers.items())
    assert model.conv.weight.dtype == torch.float32
    assert model.conv.weight.equal(state["conv.weight"].float())
    assert report.converted == {"float16 → float32": 8}


def test_numbers_that_are_not_finite_are_warned_of() -> None:
    model = Tiny()
    state = state_of(model)
    assert not load_weights(model, state).warnings
    state["fc.bias"][0] = float("nan")
    state["conv.bias"][0] = float("-inf")
    assert load_weights(model, state).warnings == ["not all numbers are finite in 2 tensors: conv.bias, fc.bias"]
    # what overflows here was finite there
    state = state_of(model) | {"fc.bias": torch.full((2,), 1e6)}
    assert load_weights(model.half(), state).warnings == ["not all numbers are finite in 1 tensor: fc.bias"]


def test_files_without_counters_keep_the_models() -> None:
    for norm in (nn.BatchNorm2d(4), BatchNorm(4), IBN(4)):
        model = Tiny(norm)
        model.bn.num_batches_tracked.fill_(3)
        state = state_of(model)
        del state["bn.num_batches_tracked"]
        report = load_weights(model, state)
        assert model.bn.num_batches_tracked == 3
        assert (report.loaded, report.total, report.missing) == (8, 9, [])


def test_tied_weights_need_be_in_the_file_once() -> None:
    model = Tiny()
    model.again = model.fc
    state = state_of(model)
    state = {key: value for key, value in state.items() if not key.startswith("again.")}
    assert not load_weights(model, state).missing
    assert model.again.weight.equal(state["fc.weight"])


def test_what_a_plain_file_cannot_have_is_missing_from_one_that_has_it_elsewhere() -> None:
    model = nn.Sequential(Tiny(SelfNorm(4)), Tiny(SelfNorm(4)), Tiny(BatchInstanceNorm(4)))
    state = state_of(model)
    plain = {key: value for key, value in state.items() if "gate" not in key}
    report = load_weights(model, plain)
    assert len(report.kept) == 11 and not report.missing
    with pytest.raises(ValueError, match=r"5 missing in the file: 1\.bn\.gate\.fc"):
        load_weights(model, {key: value for key, value in state.items() if not key.startswith("1.bn.gate.")})


def test_axes_of_one_element_come_and_go() -> None:
    model = Tiny()
    state = state_of(model)
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    report = load_weights(model, state)
    assert report.reshaped == [("fc.weight", (2, 4, 1, 1), (2, 4))]
    assert model.fc.weight.equal(state["fc.weight"][:, :, 0, 0])


def test_the_report_reads_well_and_is_plain_data() -> None:
    model = Tiny(IBN(4))
    state = state_of(model)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        tensor = state.pop(f"bn.{name}")
        if name in ("weight", "bias"):
            state[f"bn.IN.{name}"] = tensor[:2]
        state[f"bn.BN.{name}"] = tensor[2:] if tensor.dim() else tensor
    state["fc.bias"] = state["fc.bias"].double()
    report = load_weights(model, {"epoch": 3, "state_dict": under("module.", state)})
    assert str(report).splitlines() == [
        "Tiny: 9 of 9 tensors from the given state under state_dict (without the prefix 'module.')",
        "  converted   1 tensor float64 → float32",
        "  renamed     bn.{BN,IN}* → bn.*",
    ]
    data = json.loads(json.dumps(report.to_json()))
    assert data["renamed"] == [["bn.{BN,IN}*", "bn.*"]]
    many = load_weights(model, state | {f"extra.{number}": torch.ones(1) for number in range(20)}, strict=False)
    assert "and 13 more" in str(many)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "expected a torch.nn.Module, got int"),
        ({"path_or_state": nn.Linear(1, 1)}, TypeError, "expected a path, or a mapping of tensors by name, got Linear"),
        ({"head": "keep"}, ValueError, "expected head 'error' or 'skip', got 'keep'"),
        ({"path_or_state": "nothing.pth"}, FileNotFoundError, r"there is no file nothing\.pth"),
        ({"model": Tiny().to("meta")}, ValueError, "the model is on the meta device"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": Tiny(), "path_or_state": Tiny().state_dict()} | arguments
    with pytest.raises(error, match=message):
        load_weights(given.pop("model"), given.pop("path_or_state"), **given)


def test_extra_state_and_lazy_layers_are_left_to_torch() -> None:
    class Counting(nn.Module):
        count = 0

        def get_extra_state(self) -> int:
            return self.count

        def set_extra_state(self, state: int) -> None:
            self.count = state

    model = Tiny()
    model.counting = Counting()
    state = state_of(Tiny())
    for count, prefix in ((5, ""), (6, "module.")):
        report = load_weights(model, under(prefix, state | {"counting._extra_state": count}) | {"note": "by hand"})
        assert model.counting.count == count
        assert report.skipped == [("note", "no tensor")]
    lazy = Tiny()
    lazy.fc = nn.LazyLinear(2)
    load_weights(lazy, state)
    assert lazy.fc.weight.equal(state["fc.weight"])
