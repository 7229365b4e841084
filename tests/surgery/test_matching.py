"""Files of other projects load into our models, value for value, or nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden_weights import formula_images, formula_state
from shiftnorm import norms
from shiftnorm.models import create_model
from shiftnorm.norms import CNSN, IBN, BatchNorm, Chain, InstanceNorm, SelfNorm
from shiftnorm.surgery.weights import load_weights

State = dict[str, Tensor]


def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation, every tensor of it random and none of them alike."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and (tensor.dim() == 1 or "gate" in name):
            tensor.uniform_(-0.5, 0.5)
        elif not tensor.is_floating_point():
            tensor.fill_(7)
    return model.eval()


def small(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, classes: int = 5, **options: Any) -> nn.Module:
    return create_model("wide_resnet16_4", num_classes=classes, norm=norm, **options).eval()


def instance_norm(channels: int) -> nn.Module:
    return InstanceNorm(channels, affine=True)


DENSE_IBN = partial(IBN, ratio=0.4, order="batch_first")
IBN_A: dict[str, Any] = {"inner_norm": (IBN, IBN, IBN, None)}
IBN_B: dict[str, Any] = {"stem_norm": instance_norm, "stage_end": (instance_norm, instance_norm, None, None)}
OFFICIAL: dict[str, Callable[[], nn.Module]] = {
    "resnet18_ibn_a": lambda: create_model("resnet18", **IBN_A),
    "resnet50_ibn_b": lambda: create_model("resnet50", **IBN_B),
    "se_resnet50_ibn_a": lambda: create_model("se_resnet50", **IBN_A),
    "densenet121_ibn_a": lambda: create_model("densenet121", inner_norm=(DENSE_IBN, DENSE_IBN, DENSE_IBN, None)),
    "resnet50_sn_residual": lambda: create_model("resnet50", slots={"residual": CNSN}),
    "wrn40_2_sn_residual": lambda: create_model("wide_resnet40_2", slots={"residual": SelfNorm}),
    "wrn40_2_sn_post": lambda: create_model("wide_resnet40_2", slots={"post": CNSN}),
    "resnext29_sn_pre": lambda: create_model("resnext29_4x32", slots={"pre": SelfNorm}),
    "allconv_sn_pos1": lambda: create_model("all_conv", slots={"conv": SelfNorm}),
    "densenet40_sn_conv1_post": lambda: create_model("densenet40_12", slots={"conv1_post": SelfNorm}),
}
# A forward of the larger ones in float64 takes seconds, and the harness of the golden models does it.
RUN = ("resnet18_ibn_a", "wrn40_2_sn_residual", "wrn40_2_sn_post", "resnext29_sn_pre", "allconv_sn_pos1")


@pytest.mark.parametrize("name", RUN)
def test_the_authors_file_gives_the_authors_logits(golden: Path, tmp_path: Path, name: str) -> None:
    import numpy as np

    listing = json.loads((golden / "models" / f"{name}.json").read_text())["tensors"]
    state = formula_state({entry["name"]: tuple(entry["shape"]) for entry in listing})
    with np.load(golden / "models" / f"{name}_eval.npz") as case:
        state |= {
            key.removeprefix("running."): torch.from_numpy(case[key]).double()
            for key in case.files
            if key.startswith("running.")
        }
        logits, meta = torch.from_numpy(case["logits"]), json.loads(str(case["meta"]))
    # as CNSN's authors save it: epoch and accuracy beside the weights of a DataParallel, no ending
    content = {"epoch": 89, "best_acc": torch.tensor(70.0), "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(content, tmp_path / "model_best")
    model = OFFICIAL[name]().double().eval()
    report = load_weights(model, tmp_path / "model_best")
    assert (report.prefix, report.wrappers, report.unexpected, report.kept) == ("module.", ("state_dict",), [], [])
    with torch.no_grad():
        ours = model(formula_images(meta["N"], meta["HW"]))
    assert (ours - logits).abs().max() <= 1e-9 * max(1.0, logits.abs().max().item())


def filled_by_hand(model: nn.Module, official: State) -> State:
    """What the model's state must be, worked out without the layers' own translations."""
    expected: State = {}
    for key in model.state_dict():
        path, _, name = key.rpartition(".")
        if key in official:
            expected[key] = official[key]
        elif f"{path}.BN.{name}" in official:
            batch = official[f"{path}.BN.{name}"]
            count = official[f"{path}.IN.weight"].numel()
            fill = torch.full((count,), 1.0 if name == "running_var" else 0.0)
            parts = [official.get(f"{path}.IN.{name}", fill), batch]
            if batch.dim():
                batch = torch.cat(parts[::-1] if "denselayer" in key else parts)
            expected[key] = batch
        elif key.split(".post.")[0] + f".IN.{name}" in official:
            expected[key] = official[key.split(".post.")[0] + f".IN.{name}"]
        else:
            slot = next(part for part in (".residual.", ".post.", ".pre.", ".conv1_post.") if part in key)
            block, _, rest = key.partition(slot)
            rest = rest.removeprefix("1.").removeprefix("gate.")
            theirs = "g_fc.weight" if rest == "fc" else f"g_bn.{rest}"
            expected[key] = official[f"{block}.cnsn.selfnorm.{theirs}"].reshape(model.state_dict()[key].shape)
    return expected


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "allconv_sn_pos1"])
def test_every_tensor_of_the_authors_file_lands_where_it_belongs(golden: Path, name: str) -> None:
    listing = json.loads((golden / "models" / f"{name}.json").read_text())["tensors"]
    official: State = {}
    for place, entry in enumerate(listing):
        shape = entry["shape"]
        tensor = torch.rand(shape) + 0.5 if shape else torch.tensor(place)
        official[entry["name"]] = nn.init.kaiming_normal_(tensor) if len(shape) > 1 else tensor
    model = OFFICIAL[name]()
    report = load_weights(model, official)
    expected = filled_by_hand(model, official)
    assert all(tensor.equal(expected[key]) for key, tensor in model.state_dict().items())
    assert report.loaded == report.total == len(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.device("meta"):
        again = OFFICIAL[name]()
    again.load_state_dict(expected, assign=True)
    with torch.no_grad():
        logits = model.eval()(images)
        assert logits.isfinite().all() and logits.equal(again.eval()(images))


@pytest.mark.parametrize("slot", ["pre", "residual", "identity", "post"])
@pytest.mark.parametrize("norm", [SelfNorm, CNSN])
def test_a_selfnorm_is_found_in_every_slot(slot: str, norm: Callable[[int], nn.Module]) -> None:
    theirs = randomised(small(slots={slot: SelfNorm}))
    official: State = {}
    for path, module in theirs.named_modules():
        if isinstance(module, SelfNorm):
            block = path.removesuffix(f".{slot}")
            official |= {f"module.{block}.cnsn.selfnorm.{key}": value for key, value in module.to_official().items()}
    official |= {f"module.{key}": value for key, value in theirs.state_dict().items() if f".{slot}." not in key}
    ours = small(slots={slot: norm})
    report = load_weights(ours, official)
    images = torch.randn(2, 3, 16, 16)
    assert ours(images).equal(theirs(images))
    assert any(old.endswith("cnsn.selfnorm.*") and f".{slot}." in new for old, new in report.renamed)
    assert all(key.endswith("gate.fc") and len(old) == 3 for key, old, _ in report.reshaped) and report.reshaped


def test_two_selfnorms_for_one_place_are_not_guessed() -> None:
    ours = small(slots={"pre": SelfNorm, "post": SelfNorm})
    official = {key: value for key, value in ours.state_dict().items() if ".pre." not in key and ".post." not in key}
    for path, module in ours.named_modules():
        if isinstance(module, SelfNorm) and path.endswith(".post"):
            prefix = path.removesuffix("post") + "cnsn.selfnorm."
            official |= {prefix + key: value for key, value in module.to_official().items()}
    with pytest.raises(ValueError, match=r"cnsn\.selfnorm\.\* could be for any of .*\.pre, .*\.post"):
        load_weights(ours, official)


def test_another_split_of_ibn_says_so() -> None:
    model = nn.Sequential()
    model.bn1 = IBN(4, ratio=0.75)
    with pytest.raises(ValueError, match=r"bn1: IBN\.from_official: expected .* of shape .*ratio=0\.75"):
        load_weights(model, {f"bn1.{key}": value for key, value in IBN(4).to_official().items()})


@pytest.mark.parametrize(
    "layer", [norms.SelfNorm(4, start="identity"), norms.RepresentativeBatchNorm(4, start="batch")]
)
def test_the_authors_numbers_do_not_go_into_another_function(layer: norms.NormLayer) -> None:
    model = nn.Sequential(layer)
    theirs = {f"0.{key}": value for key, value in type(layer)(4).to_official().items()}
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"0 scales its gates so as to start as an identity, .*preserve=False"):
            load_weights(model, theirs, strict=strict)
    load_weights(model, nn.Sequential(type(layer)(4)).state_dict())


def test_the_authors_other_layers_are_translated_at_their_own_names() -> None:
    for layer in (norms.SwitchNorm(4), norms.RepresentativeBatchNorm(4), norms.SqueezeExcite(16), norms.DomainNorm(4)):
        theirs = nn.Sequential(randomised(layer))
        ours = nn.Sequential(type(layer)(layer.num_features))
        load_weights(ours, {f"0.{key}": value for key, value in layer.to_official().items()})
        x = torch.randn(2, layer.num_features, 5, 5)
        assert ours.eval()(x).equal(theirs.eval()(x)), type(layer).__name__


@pytest.mark.parametrize(
    ("slot", "offset", "width"), [("conv", 1, 4), ("norm", 2, 4), ("activation", 3, 4), (None, 0, 3)]
)
def test_the_numbers_in_the_authors_all_conv_are_understood(slot: str | None, offset: int, width: int) -> None:
    def built() -> nn.Module:
        return create_model("all_conv", width=4, slots={slot: SelfNorm} if slot else None)

    theirs, ours = randomised(built()), built().eval()
    official = {key: value for key, value in theirs.state_dict().items() if key.startswith("classifier.")}
    for unit in range(9):
        module, start = theirs.get_submodule(f"stage{unit // 3 + 1}.{unit % 3}"), width * unit + 2 * (unit // 3)
        numbers = {"conv": start, "norm": start + (2 if slot == "conv" else 1)}
        for name, number in numbers.items():
            part = module.get_submodule(name)
            official |= {f"features.{number}.{key}": value for key, value in part.state_dict().items()}
        if slot:
            layer = module.get_submodule(f"after_{slot}")
            prefix = f"features.{start + offset}.selfnorm."
            official |= {prefix + key: value for key, value in layer.to_official().items()}
    load_weights(ours, official)
    images = torch.randn(2, 3, 32, 32)
    assert ours(images).equal(theirs(images))


def test_shortcuts_that_the_authors_normalise_in_vain_are_skipped() -> None:
    build = partial(create_model, "resnext29_4x32", slots={"identity": SelfNorm})
    official: State = {}
    for path, module in build().named_modules():
        if isinstance(module, SelfNorm):
            prefix = path.removesuffix("identity") + "cnsn.selfnorm."
            official |= {prefix + key: value for key, value in module.to_official().items()}
    ours = build(identity_in_downsample=False)
    official |= {key: value for key, value in ours.state_dict().items() if ".identity." not in key}
    report = load_weights(ours, official)
    blocks = {key.partition(".cnsn.")[0] for key, _ in report.skipped}
    assert blocks == {"stage_1.0", "stage_2.0", "stage_3.0"}
    assert all("throws the result away" in reason for _, reason in report.skipped)


@pytest.mark.parametrize(
    "norm",
    [IBN, norms.BatchInstanceNorm, norms.RepresentativeBatchNorm, norms.SwitchNorm, BatchNorm],
    ids=lambda norm: norm.__name__,
)
def test_a_batch_norm_checkpoint_fits_norms_that_took_its_place(norm: Callable[[int], nn.Module]) -> None:
    state = randomised(small()).state_dict()
    model = small(norm)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = load_weights(model, state)
    after = model.state_dict()
    assert all(after[key].equal(tensor) for key, tensor in state.items())
    own = after.keys() - state.keys()
    assert all(after[key].equal(before[key]) for key in own)
    assert set(report.kept) == own and not report.missing


def test_a_batch_norm_checkpoint_fits_chains_that_took_its_place() -> None:
    state = randomised(small()).state_dict()
    model = small(lambda channels: Chain(BatchNorm(channels), norms.CrossNorm(channels), SelfNorm(channels)))
    report = load_weights(model, state)
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        ours = f"{path}.0.{name}" if "bn" in path else key
        assert model.state_dict()[ours].equal(tensor)
    assert ("bn1.*", "bn1.0.*") in report.renamed
    assert all(".2.gate." in key for key in report.kept) and report.kept
    # the first norm that can take all of them does: an InstanceNorm without running moments cannot
    model = small(lambda channels: Chain(InstanceNorm(channels, affine=True), BatchNorm(channels)))
    load_weights(model, state, strict=False)
    assert model.state_dict()["bn1.1.weight"].equal(state["bn1.weight"])


def test_a_batch_norm_checkpoint_fits_instance_norms_without_its_running_moments() -> None:
    state = randomised(small()).state_dict()
    for norm in (instance_norm, partial(nn.InstanceNorm2d, affine=True), partial(nn.GroupNorm, 2)):
        report = load_weights(small(norm), state)
        assert {key.rpartition(".")[2] for key, _ in report.skipped} == {
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }
        assert report.skipped[0][1] == "the norm there keeps none"


def test_an_ibn_file_of_the_authors_fits_a_chain() -> None:
    layer = randomised(IBN(6))
    model = nn.Sequential()
    model.bn1 = Chain(IBN(6), SelfNorm(6))
    load_weights(model, {f"bn1.{key}": value for key, value in layer.to_official().items()})
    x = torch.randn(2, 6, 4, 4)
    assert model.bn1[0].eval()(x).equal(layer(x))


def test_norms_hung_behind_a_module_leave_its_names_alone() -> None:
    state = randomised(small()).state_dict()
    model = small()
    model.bn1.add_module("after_norm", SelfNorm(256))
    model.conv1.add_module("before_norm", norms.RepresentativeBatchNorm(3))
    report = load_weights(
        model,
        state
        | {f"conv1.before_norm.{key}": value for key, value in norms.RepresentativeBatchNorm(3).state_dict().items()},
    )
    assert model.state_dict()["bn1.weight"].equal(state["bn1.weight"])
    assert all(key.startswith("bn1.after_norm.gate.") for key in report.kept) and len(report.kept) == 5


def test_old_names_of_torchvisions_densenet() -> None:
    theirs = randomised(create_model("densenet121", num_classes=2))
    old = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    ours = create_model("densenet121", num_classes=2)
    report = load_weights(ours, old)
    assert ("features.denseblock1.denselayer1.norm.1.*", "features.denseblock1.denselayer1.norm1.*") in report.renamed
    assert all(ours.state_dict()[key].equal(value) for key, value in theirs.state_dict().items() if value.dim())


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_files_of_other_libraries_fit_our_resnet(library: str) -> None:
    if library == "torchvision":
        theirs = pytest.importorskip("torchvision").models.resnet18(num_classes=3)
    else:
        theirs = pytest.importorskip("timm").create_model("resnet18", num_classes=3)
    ours = create_model("resnet18", num_classes=3).eval()
    load_weights(ours, randomised(theirs).state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-6, rtol=1e-5)
