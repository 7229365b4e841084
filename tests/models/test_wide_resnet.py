"""WideResNet: shapes, names, slots, errors, and parity with the authors' numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models import WideResNet
from shiftnorm.models.wide_resnet import SLOTS


class Scale(nn.Module):
    """A slot filler that multiplies: the place it stands in shows in the output."""

    def __init__(self, channels: int, factor: float = 0.0) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.factor * x


class PlainSelfNorm(nn.Module):
    """One-gate SelfNorm as published, to fill slots with something that has state."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g_fc = nn.Conv1d(channels, channels, 2, bias=False, groups=channels)
        self.g_bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        plane = x.flatten(2)
        moments = torch.stack([plane.mean(2), (plane.var(2) + 1e-12).sqrt()], 2)
        return x * torch.sigmoid(self.g_bn(self.g_fc(moments)))[..., None]


class PlainCrossNorm(nn.Module):
    """Two-instance CrossNorm as published, without crops; the identity until a permutation is set."""

    partner: Tensor | None = None

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if self.partner is None:
            return x
        mean, std = x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt()
        return (x - mean) / std * std[self.partner] + mean[self.partner]


def unit_draws(k: int, count: int) -> Tensor:
    """The numbers in [-1, 1) that the golden weights are made of, by their formula in 64-bit integers."""
    with np.errstate(over="ignore"):
        z = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        z += np.uint64(0xBF58476D1CE4E5B9) * np.uint64(k)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return torch.from_numpy(2 * ((z >> np.uint64(11)).astype(np.float64) / 2**53) - 1)


def formula_tensor(name: str, like: Tensor, k: int) -> Tensor:
    s = unit_draws(k, like.numel()).reshape(like.shape)
    if like.ndim >= 2:
        return 1.4 * np.sqrt(3 / like[0].numel()) * s
    if name.endswith("running_var"):
        return 1 + 0.5 * s
    return 1 + 0.4 * s if name.endswith(".weight") else 0.2 * s


def formula_images(n: int) -> Tensor:
    shape = (n, 3, 32, 32)
    i, c, h, w = np.indices(shape)
    base = 0.8 * np.sin(0.3 * (h + 1) * (1 + 0.5 * c) + 0.7 * i) * np.cos(0.2 * (w + 1) + 0.1 * c)
    noise = unit_draws(1000003, i.size).numpy().reshape(shape)
    return torch.from_numpy(0.4 * ((i + 2 * c) % 3 - 1) + (0.5 + 0.25 * ((i + c) % 4)) * (base + noise))


def listing(golden: Path, name: str) -> list[dict[str, object]]:
    file = golden / "models" / f"{name}.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    return json.loads(file.read_text())["tensors"]


def archive(golden: Path, name: str) -> dict[str, np.ndarray]:
    file = golden / "models" / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with np.load(file) as arrays:
        return dict(arrays)


def golden_model(
    golden: Path, name: str, slots: dict[str, Callable[[int], nn.Module]]
) -> tuple[WideResNet, dict[str, str], dict[str, int]]:
    """The model with formula weights, the authors' name of each of our tensors, and each one's k."""
    model = WideResNet(slots=slots).double()
    k = {str(entry["name"]): entry["k"] for entry in listing(golden, name)}
    official = {key: re.sub(rf"\.({'|'.join(SLOTS)})\.", ".cnsn.selfnorm.", key) for key in model.state_dict()}
    model.load_state_dict(
        {
            key: torch.tensor(0) if k[official[key]] is None else formula_tensor(key, value, int(k[official[key]]))
            for key, value in model.state_dict().items()
        }
    )
    return model, official, k


def test_names_and_shapes_are_the_authors(golden: Path) -> None:
    expected = [(entry["name"], tuple(entry["shape"])) for entry in listing(golden, "wrn40_2_cn_post_neither")]
    assert [(name, tuple(value.shape)) for name, value in WideResNet().state_dict().items()] == expected


GOLDEN_EVAL = {
    "wrn40_2_cn_post_neither": {},
    "wrn40_2_sn_post": {"post": PlainSelfNorm},
    "wrn40_2_sn_residual": {"residual": PlainSelfNorm},
}
# The authors' train files of this model have two CrossNorms active, whose draws are stored.
GOLDEN_TRAIN = GOLDEN_EVAL | {"wrn40_2_cn_post_neither": {"post": PlainCrossNorm}}


@pytest.mark.parametrize("name", GOLDEN_EVAL)
def test_golden_eval(golden: Path, name: str) -> None:
    stored = archive(golden, f"{name}_eval")
    model, official, _ = golden_model(golden, name, GOLDEN_EVAL[name])
    for key, buffer in model.named_buffers():
        if "num_batches" not in key:
            buffer.copy_(torch.from_numpy(stored[f"running.{official[key]}"]))
    features: dict[str, Tensor] = {}
    for stage in ("conv1", "block1", "block2", "block3", "bn1"):
        getattr(model, stage).register_forward_hook(lambda _, __, out, stage=stage: features.update({stage: out}))
    logits = model.eval()(formula_images(2))
    torch.testing.assert_close(logits, torch.from_numpy(stored["logits"]), rtol=0, atol=1e-9)
    for stage, feature in features.items():
        mean = torch.from_numpy(stored[f"stage.{stage}.mean"])
        torch.testing.assert_close(feature.mean((2, 3)), mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GOLDEN_TRAIN)
def test_golden_train_with_gradients(golden: Path, name: str) -> None:
    stored = archive(golden, f"{name}_train")
    meta = json.loads(str(stored["meta"]))
    model, official, k = golden_model(golden, name, GOLDEN_TRAIN[name])
    crossnorms = [module for module in model.modules() if isinstance(module, PlainCrossNorm)]
    active = sorted(stored["draw.00.np.random.choice"]) if crossnorms else []
    for order, index in enumerate(active, start=1):
        crossnorms[index].partner = torch.from_numpy(stored[f"draw.{order:02}.randperm"])
    images = formula_images(4).requires_grad_()
    logits = model.train()(images)
    loss = F.cross_entropy(logits, torch.from_numpy(stored["labels"]))
    loss.backward()
    torch.testing.assert_close(logits, torch.from_numpy(stored["logits"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(loss, torch.from_numpy(stored["loss"]), rtol=1e-10, atol=0)

    def probe(value: Tensor, position: int) -> Tensor:
        flat = value.detach().flatten()
        return torch.stack([flat.sum(), flat.norm(), (flat * unit_draws(position, flat.numel())).sum()])

    ours = {official[key]: value for key, value in model.named_parameters()}
    buffers = {official[key]: value for key, value in model.named_buffers()}
    assert set(meta["grad_names"]) == set(ours)
    for key, expected in zip(meta["grad_names"], torch.from_numpy(stored["grad_probe"]), strict=True):
        gradient = ours[key].grad
        assert gradient is not None
        torch.testing.assert_close(probe(gradient, k[key]), expected, rtol=1e-7, atol=1e-8, msg=key)
    for key, expected in zip(meta["buffer_names"], torch.from_numpy(stored["buffer_after_probe"]), strict=True):
        torch.testing.assert_close(probe(buffers[key], k[key]), expected, rtol=1e-9, atol=1e-9, msg=key)
    assert images.grad is not None
    torch.testing.assert_close(
        probe(images.grad, 7777777), torch.from_numpy(stored["grad_x_probe"]), rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize(
    ("depth", "widen", "parameters"), [(10, 1, 77_850), (16, 1, 175_066), (40, 2, 2_243_546), (28, 10, 36_479_194)]
)
def test_parameter_counts(depth: int, widen: int, parameters: int) -> None:
    with torch.device("meta"):
        model = WideResNet(depth, widen)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (31, 45), (32, 32), (64, 64)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    model = WideResNet(10, 1, 7, in_channels=2).eval()
    assert model(torch.zeros(2, 2, *size)).shape == (2, 7)


@pytest.mark.parametrize("width", [1, 2])
def test_slots_stand_where_they_say(width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)

    def block(**slots: Callable[[int], nn.Module]) -> nn.Module:
        torch.manual_seed(1)
        return WideResNet(10, width, slots=slots).block1.layer[0].eval()

    plain = block()
    activated = F.relu(plain.bn1(x))
    shortcut = x if width == 1 else plain.conv_shortcut(activated)
    branch = plain.conv2(F.relu(plain.bn2(plain.conv1(activated))))
    assert isinstance(plain.conv_shortcut, nn.Identity) == (width == 1)
    same = torch.testing.assert_close
    same(plain(x), shortcut + branch)
    same(block(residual=Scale)(x), shortcut)
    same(block(identity=Scale)(x), branch)
    same(block(post=lambda channels: Scale(channels, 3.0))(x), 3 * (shortcut + branch))
    # A branch that starts from zeros: before bn1 where the width stays, after bn1 and ReLU where it changes.
    zero = torch.zeros_like(x)
    start = F.relu(plain.bn1(zero)) if width == 1 else zero
    same(block(pre=Scale)(x), shortcut + plain.conv2(F.relu(plain.bn2(plain.conv1(start)))))
    everywhere = block(**dict.fromkeys(("pre", "residual", "identity", "post"), lambda c: Scale(c, 1.0)))
    same(everywhere(x), plain(x))


def test_norms_per_stage_and_stage_slots() -> None:
    def group(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels)

    model = WideResNet(
        16, 1, norm=group, inner_norm=[nn.InstanceNorm2d, nn.InstanceNorm2d, None], stage_slots={2: Scale}
    )
    for number, inner in ((1, nn.InstanceNorm2d), (2, nn.InstanceNorm2d), (3, nn.GroupNorm)):
        for block in getattr(model, f"block{number}").layer:
            assert isinstance(block.bn1, nn.GroupNorm)
            assert type(block.bn2) is inner
    assert isinstance(model.bn1, nn.GroupNorm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    # Zeros after stage 2 leave nothing of the image.
    logits = model.eval()(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(logits[0], logits[1])
    assert [name for name, module in model.named_modules() if isinstance(module, Scale)] == ["after_block2"]


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = WideResNet(16, 4, slots={"post": lambda channels: nn.Conv2d(channels, channels, 1)})
    weight = model.block3.layer[1].conv1.weight
    assert abs(weight.std().item() / np.sqrt(2 / (9 * 256)) - 1) < 0.01
    assert not model.fc.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in); a normal one is not.
    assert model.block3.layer[0].post.weight.abs().max() <= 1 / np.sqrt(256)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = WideResNet(10, 1, dropout=0.5), torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 18}, ValueError, r"6n \+ 4 .* got 18; the nearest are 16 and 22"),
        ({"depth": 4}, ValueError, "nearest are 10 and 16"),
        ({"widen_factor": 0}, ValueError, "widen_factor must be at least 1"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        (
            {"slots": {"after": Scale}},
            ValueError,
            r"unknown slots \['after'\]; a block has pre, residual, identity, post",
        ),
        ({"stage_slots": {4: Scale}}, ValueError, r"unknown stages \[4\]"),
        ({"inner_norm": [None, None]}, ValueError, "one entry for each of the 3 stages .* got 2"),
        ({"norm": nn.BatchNorm2d(16)}, TypeError, r"norm must be a function .* got BatchNorm2d\(16"),
        ({"slots": {"post": nn.Identity()}}, TypeError, r"slots\['post'\] must be a function"),
        ({"norm": lambda channels: None}, TypeError, "norm must return an nn.Module, returned None for 16 channels"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WideResNet(**({"depth": 10, "widen_factor": 1} | arguments))  # type: ignore[arg-type]  (wrong on purpose)


def test_compiles_without_a_graph_break_and_exports() -> None:
    model, x = WideResNet(10, 1, slots={"post": Scale}, dropout=0.1).eval(), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
