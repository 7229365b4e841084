"""Where slots are in blocks of torchvision and timm, checked by putting numbers there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.models import create_model
from shiftnorm.surgery.blocks import open_block
from shiftnorm.surgery.families import (
    Block,
    Place,
    channels_at,
    find_blocks,
    place_of,
    stages,
)
from shiftnorm.surgery.kinds import kind_of

timm = pytest.importorskip("timm")
tv = pytest.importorskip("torchvision").models


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Spy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return x


def put(block: nn.Module, place: Place, module: nn.Module) -> None:
    """Put a module at a place by the plainest means."""
    child = None if place.how in ("slot", "fill") else block.get_submodule(place.child)
    if place.how == "before":
        child.register_forward_pre_hook(lambda _, args: (module(args[0]), *args[1:]))
    elif place.how == "after":
        child.register_forward_hook(lambda _, args, out: module(out))
    elif place.how == "fill":
        parent, _, name = place.child.rpartition(".")
        setattr(block.get_submodule(parent), name, module)
    else:
        open_block(block)
        block.add_module(place.child, module)


def randomise(model: nn.Module) -> nn.Module:
    """No branch may vanish: norms that start at zero and layer scales of 1e-6 would make every check pass."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1.0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    for module in model.modules():
        if getattr(module, "skipinit_gain", None) is not None:
            nn.init.ones_(module.skipinit_gain)
    return model.double().eval()


def calls(model: nn.Module, blocks: list[Block], x: Tensor) -> dict[str, tuple[tuple, dict]]:
    """What each block is called with in a forward of the model."""
    found: dict[str, tuple[tuple, dict]] = {}

    def keep(path: str) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            found[path] = copy.deepcopy((args, kwargs))

        return hook

    handles = [block.module.register_forward_pre_hook(keep(block.path), with_kwargs=True) for block in blocks]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


class Kind(NamedTuple):
    """A block class: how to build a model with it, and what its forward computes without its branch."""

    build: Callable[[], nn.Module]
    shortcut: str | Callable[..., Tensor | None] = ""
    activation: str = ""
    slots: str = "pre residual identity post"
    size: int = 64


def skips(flag: str) -> Callable[..., Tensor | None]:
    return lambda block, x: x if getattr(block, flag) else None


def timm_net(name: str, **kwargs) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=3, **kwargs)


def _preact(block: nn.Module, x: Tensor) -> Tensor:
    return x if block.downsample is None else block.downsample(block.norm1(x))


def _nf(block: nn.Module, x: Tensor) -> Tensor:
    return x if block.downsample is None else block.downsample(block.act1(x) * block.beta)


def _dla(_: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    return x if shortcut is None else shortcut


def _rex(block: nn.Module, x: Tensor) -> Tensor | None:
    if not block.use_shortcut:
        return None
    return torch.cat([x, x.new_zeros(x.shape[0], block.out_channels - block.in_channels, *x.shape[2:])], 1)


def _xception(block: nn.Module, x: Tensor) -> Tensor:
    return x if block.skip is None else block.skipbn(block.skip(x))


def _regnet(block: nn.Module, x: Tensor) -> Tensor:
    return block.downsample(x)


def _pre_regnet(block: nn.Module, x: Tensor) -> Tensor:
    return block.downsample(block.norm1(x))


def _byob(block: nn.Module, x: Tensor) -> Tensor | None:
    return None if block.shortcut is None else block.shortcut(x)


_MOBILE = "pre residual post"
_NO_POST = "pre residual identity"

KINDS: dict[str, Kind] = {
    "tv resnet18": Kind(lambda: tv.resnet18(num_classes=3), "downsample", "relu"),
    "tv resnext50": Kind(lambda: tv.resnext50_32x4d(num_classes=3), "downsample", "relu"),
    "tv r3d": Kind(lambda: tv.video.mc3_18(num_classes=3), "downsample", "relu", size=-32),
    "tv regnet": Kind(lambda: tv.regnet_y_400mf(num_classes=3), "proj", "activation"),
    "tv mobilenetv2": Kind(lambda: tv.mobilenet_v2(num_classes=3), skips("use_res_connect"), "", _MOBILE),
    "tv mobilenetv3": Kind(lambda: tv.mobilenet_v3_small(num_classes=3), skips("use_res_connect"), "", _MOBILE),
    "tv mnasnet": Kind(lambda: tv.mnasnet0_5(num_classes=3), skips("apply_residual"), "", _MOBILE),
    "tv efficientnet": Kind(lambda: tv.efficientnet_b0(num_classes=3), skips("use_res_connect"), "", _MOBILE),
    "tv efficientnetv2": Kind(
        lambda: tv.efficientnet.EfficientNet(
            [
                tv.efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
                tv.efficientnet.FusedMBConvConfig(4, 3, 2, 8, 16, 2),
            ],
            dropout=0.0,
            last_channel=32,
            num_classes=3,
        ),
        skips("use_res_connect"),
        "",
        _MOBILE,
    ),
    "tv convnext": Kind(lambda: tv.convnext.ConvNeXt([tv.convnext.CNBlockConfig(8, None, 2)]), "", "", _MOBILE),
    "resnet": Kind(timm_net("test_resnet"), "downsample", "act2"),
    "seresnext": Kind(timm_net("seresnext26d_32x4d"), "downsample", "act3"),
    "res2net": Kind(timm_net("res2net50_26w_4s"), "downsample", "relu", _NO_POST),
    "senet": Kind(timm_net("legacy_seresnet18"), "downsample", "relu", _NO_POST),
    "resnest": Kind(timm_net("resnest14d"), "downsample", "act3"),
    "sknet": Kind(timm_net("skresnet18"), "downsample", "act"),
    "tresnet": Kind(timm_net("tresnet_m"), "downsample", "act"),
    "regnetx": Kind(timm_net("regnetx_002"), _regnet, "act3"),
    "regnetz preact": Kind(timm_net("regnetv_040"), _pre_regnet),
    "resnetv2": Kind(timm_net("resnetv2_50", layers=(1, 2)), _preact),
    "resnetv2 18": Kind(timm_net("resnetv2_18"), _preact),
    "nfnet": Kind(timm_net("test_nfnet") if timm.is_model("test_nfnet") else timm_net("nf_resnet26"), _nf),
    "efficientnet": Kind(timm_net("test_efficientnet"), skips("has_skip"), "", _MOBILE),
    "mobilenetv3": Kind(timm_net("mobilenetv3_small_050"), skips("has_skip"), "", _MOBILE),
    "mobilenetv4": Kind(timm_net("mobilenetv4_hybrid_medium"), skips("has_skip"), "", _MOBILE),
    "rexnet": Kind(timm_net("rexnet_100"), _rex, "", _MOBILE),
    "ghostnet": Kind(timm_net("ghostnet_050"), "shortcut"),
    "ghostnetv3": Kind(timm_net("ghostnetv3_050"), "shortcut"),
    "repghost": Kind(timm_net("repghostnet_050"), "shortcut"),
    "convnext": Kind(timm_net("test_convnext"), "shortcut"),
    "vovnet": Kind(timm_net("ese_vovnet19b_slim_dw"), skips("residual"), "", "residual post"),
    "hgnet": Kind(timm_net("hgnetv2_b0"), skips("residual"), "", "residual post"),
    "cspresnet": Kind(timm_net("cspresnet50"), "", "act3", "pre residual post"),
    "cspdarknet": Kind(timm_net("cspdarknet53"), "", "", "pre residual post"),
    "byobnet": Kind(timm_net("test_byobnet"), _byob, "act"),
    "xception": Kind(timm_net("legacy_xception"), _xception),
    "fasternet": Kind(timm_net("fasternet_t0"), "", "", "pre residual post"),
    "starnet": Kind(timm_net("starnet_s050"), "", "", "pre residual post"),
    "convmixer": Kind(lambda: timm.models.convmixer.ConvMixer(16, 2, num_classes=3), "", "", "pre residual post"),
    "inception next": Kind(timm_net("inception_next_atto"), "", "", "pre residual post"),
    "dla": Kind(
        timm_net("dla46_c"), lambda _, x, shortcut=None: x if shortcut is None else shortcut, "relu", "pre residual"
    ),
    "cspnext": Kind(timm_net("cspnext_tiny"), skips("add_identity"), "", "pre residual post"),
    "own resnet18": Kind(lambda: create_model("resnet18", num_classes=3), "downsample", "relu"),
}


def images(kind: Kind) -> Tensor:
    size = abs(kind.size)
    return torch.randn(2, 3, *((4,) if kind.size < 0 else ()), size, size, dtype=torch.float64)


def samples(kind: Kind) -> list[tuple[Block, tuple, dict]]:
    """One block of each class and shape, with a call of it."""
    torch.manual_seed(0)
    model = randomise(kind.build())
    blocks = find_blocks(model)
    called = calls(model, blocks, images(kind))
    chosen: dict[tuple, Block] = {}
    for block in blocks:
        key = (type(block.module), str(block.family), block.channels_in == block.channels_out)
        chosen.setdefault(key, block)
    return [(block, *called[block.path]) for block in chosen.values()]


def with_modules(block: Block, modules: dict[str, nn.Module]) -> nn.Module:
    """A copy of the block with modules in its slots."""
    changed = copy.deepcopy(block.module)
    places = {slot: place_of(block, slot) for slot in modules}
    for slot, module in modules.items():
        assert places[slot] is not None, slot
        put(changed, places[slot], module)
    return changed


@torch.no_grad()
def run(block: Block, args: tuple, kwargs: dict, **modules: nn.Module) -> Tensor:
    return with_modules(block, modules)(*copy.deepcopy(args), **kwargs)


@torch.no_grad()
def without_branch(kind: Kind, block: Block, x: Tensor, *more: Tensor) -> Tensor | None:
    module = copy.deepcopy(block.module)
    if callable(kind.shortcut):
        return kind.shortcut(module, x.clone(), *more)
    projection = getattr(module, kind.shortcut, None) if kind.shortcut else None
    return x.clone() if projection is None else projection(x.clone())


def activated(kind: Kind, block: Block, x: Tensor) -> Tensor:
    # The block classes of one timm net name their last activation alike, but for a Bottleneck's third.
    for name in (kind.activation, "act3" if kind.activation == "act2" else ""):
        if name and hasattr(block.module, name) and not (name == "act2" and hasattr(block.module, "act3")):
            return copy.deepcopy(getattr(block.module, name))(x.clone())
    return x


@pytest.mark.parametrize("name", KINDS)
def test_slots_are_where_they_should_be(name):
    kind = KINDS[name]
    for block, args, kwargs in samples(kind):
        wanted = kind.slots.split()
        x, base = args[0], run(block, args, kwargs)
        shortcut = without_branch(kind, block, *args[:2])
        if shortcut is None or place_of(block, "identity") is None:
            wanted = [slot for slot in wanted if slot != "identity"]
        assert [slot for slot in ("pre", "residual", "identity", "post") if place_of(block, slot)] == wanted

        alone = torch.zeros_like(base) if shortcut is None else shortcut
        assert not torch.allclose(base, activated(kind, block, alone)), "the branch of this test does nothing"
        zero, spies = Scale(0.0), {slot: Spy() for slot in wanted}
        torch.testing.assert_close(run(block, args, kwargs, **spies), base, rtol=0, atol=0)
        for slot in wanted:
            assert len(spies[slot].seen) == 1, slot
            place = place_of(block, slot)
            assert channels_at(block, place) == spies[slot].seen[0].shape[1], (block.path, slot)

        # The branch ends at `residual`: with nothing from there the shortcut is left.
        torch.testing.assert_close(run(block, args, kwargs, residual=zero), activated(kind, block, alone))
        if "pre" in wanted:
            # The branch begins at `pre`, and the shortcut does not see it.
            torch.testing.assert_close(run(block, args, kwargs, residual=zero, pre=zero), activated(kind, block, alone))
            seen = []
            for other in (x, torch.randn_like(x)):
                spy = Spy()
                run(block, (other, *args[1:]), kwargs, residual=spy, pre=Scale(0.0))
                seen += spy.seen
            torch.testing.assert_close(seen[0], seen[1])
        if "identity" in wanted:
            torch.testing.assert_close(spies["identity"].seen[0], alone)
            none = run(block, args, kwargs, identity=zero, residual=zero)
            torch.testing.assert_close(none, activated(kind, block, torch.zeros_like(base)))
        if "post" in wanted:
            total = spies["post"].seen[0]
            torch.testing.assert_close(activated(kind, block, total), base)
            tripled = run(block, args, kwargs, post=Scale(3.0))
            torch.testing.assert_close(tripled, activated(kind, block, 3 * total))
            if "identity" in wanted:
                branch = run(block, args, kwargs, identity=zero)
                torch.testing.assert_close(branch, activated(kind, block, total - alone))


@pytest.mark.parametrize("name", KINDS)
def test_inner_is_the_first_norm_of_the_branch(name):
    for block, args, kwargs in samples(KINDS[name]):
        paths = [path for path in block.family.inner if _there(block.module, path)]
        if not block.family.inner:
            continue
        assert paths, block.family.inner
        module = copy.deepcopy(block.module)
        order: list[str] = []
        for path, part in module.named_modules():
            if kind_of(part) is not None:
                part.register_forward_hook(lambda _, __, ___, path=path, order=order: order.append(path))
        with torch.no_grad():
            module(*copy.deepcopy(args), **kwargs)
        shared = ("downsample", "proj", "shortcut", "norm1" if paths[0] == "norm2" else "downsample")
        if type(module).__name__ == "Bottleneck" and "resnetv2" in type(module).__module__:
            shared = ("downsample",)
        assert next(path for path in order if not path.startswith(shared)) == paths[0]


def _there(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize("build", [lambda: tv.DenseNet(8, (2, 3), 16), timm_net("densenet121", block_config=(2, 3))])
def test_dense_layers(build):
    model = randomise(build())
    blocks = find_blocks(model)
    assert [len(stage) for stage in stages(model)] == [2, 3]
    called = calls(model, blocks, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    for block in blocks:
        args, kwargs = called[block.path]
        joined = torch.cat(args[0], 1)
        spies = {"pre": Spy(), "residual": Spy()}
        base = run(block, args, kwargs, **spies)
        assert torch.equal(spies["pre"].seen[0], joined)  # on all that came before, as one tensor
        assert torch.equal(spies["residual"].seen[0], base)
        assert (block.channels_in, block.channels_out) == (joined.shape[1], base.shape[1])
        assert place_of(block, "post") == place_of(block, "residual")
        assert place_of(block, "identity") is None
        torch.testing.assert_close(run(block, args, kwargs, post=Scale(2.0)), 2 * base)


def test_shufflenet_units_join_a_branch_and_what_passes_by():
    model = randomise(tv.shufflenet_v2_x0_5(num_classes=3))
    blocks = find_blocks(model)
    assert [len(stage) for stage in stages(model)] == [4, 8, 4]
    called = calls(model, blocks, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    for block in blocks[:2]:
        (x,), kwargs = called[block.path]
        half = block.channels_out // 2
        spies = {slot: Spy() for slot in ("pre", "residual", "post")}
        base = run(block, (x,), kwargs, **spies)
        for slot, spy in spies.items():
            assert channels_at(block, place_of(block, slot)) == spy.seen[0].shape[1]
        without = run(block, (x,), kwargs, residual=Scale(0.0))
        assert torch.equal(without[:, 0::2], base[:, 0::2])  # the shuffle interleaves the two
        assert without[:, 1::2].abs().max() == 0 and without.shape[1] == 2 * half
        strided = block.index == 0
        assert (place_of(block, "identity") is not None) is strided
        if strided:
            assert run(block, (x,), kwargs, identity=Scale(0.0))[:, 0::2].abs().max() == 0
