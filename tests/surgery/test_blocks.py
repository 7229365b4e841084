"""Blocks of torchvision, opened and closed again."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from shiftnorm.norms import SelfNorm
from shiftnorm.surgery.blocks import close_block, is_open, open_block

resnet = pytest.importorskip("torchvision").models.resnet

SLOTS = ["pre", "residual", "identity", "post"]


def _downsample(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


BUILDS = {
    "basic": lambda: resnet.BasicBlock(8, 8),
    "basic, strided": lambda: resnet.BasicBlock(8, 12, 2, _downsample(8, 12)),
    "bottleneck": lambda: resnet.Bottleneck(16, 4),
    "bottleneck, strided": lambda: resnet.Bottleneck(16, 8, 2, _downsample(16, 32)),
    "resnext": lambda: resnet.Bottleneck(16, 4, groups=2, base_width=64, dilation=2),
}


@pytest.fixture(params=BUILDS)
def block(request) -> nn.Module:
    block = BUILDS[request.param]()
    for name, parameter in block.named_parameters():
        if "bn" in name:
            nn.init.uniform_(parameter, 0.5, 1.0)
    return block


def images(block: nn.Module) -> torch.Tensor:
    return torch.randn(3, block.conv1.in_channels, 6, 6)


def step(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradients and buffers of one step."""
    x = x.clone().requires_grad_()
    out = block(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()]


@pytest.mark.parametrize("training", [True, False])
def test_empty_slots_change_no_bit(block, training):
    block.train(training)
    opened = copy.deepcopy(block)
    open_block(opened)
    x = images(block)
    for a, b in zip(step(block, x), step(opened, x), strict=True):
        assert torch.equal(a, b)


def test_slots_stand_where_they_should(block):
    block.eval()
    open_block(block)
    assert [name for name, _ in block.named_children()][-4:] == SLOTS
    x, seen = images(block), {}
    for name in SLOTS:  # a hook that returns something would replace the output
        getattr(block, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].clone()}))
    ended = []
    last = block.bn3 if hasattr(block, "bn3") else block.bn2
    last.register_forward_hook(lambda _, __, out: ended.append(out))
    out = block(x)
    assert torch.equal(seen["pre"], x)
    assert torch.equal(seen["residual"], ended[0])
    assert torch.equal(seen["identity"], x if block.downsample is None else block.downsample(x))
    assert torch.equal(seen["post"], ended[0] + seen["identity"])
    assert torch.equal(out, seen["post"].relu())


def test_a_module_in_each_slot(block):
    open_block(block.eval())
    x = images(block)
    total = []
    block.post.register_forward_hook(lambda _, args, __: total.append(args[0].clone()))
    block(x)
    for slot, expected in (
        ("post", torch.zeros_like(total[0])),
        ("residual", (x if block.downsample is None else block.downsample(x)).relu()),
        ("identity", (total[0] - (x if block.downsample is None else block.downsample(x))).relu()),
    ):
        opened = copy.deepcopy(block)
        setattr(opened, slot, nn.Threshold(float("inf"), 0.0))  # nothing passes
        torch.testing.assert_close(opened(x), expected)


def test_a_module_that_needs_its_output_for_its_gradient(block):
    open_block(block)
    block.residual = nn.Sigmoid()
    block.post = nn.Sigmoid()
    block.relu = nn.ReLU()
    block(images(block)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_closing_is_the_inverse(block):
    kind, state, keys = type(block), block.state_dict(), dict(block.__dict__)
    modules, text = list(block._modules), repr(block)
    calls = []
    block.register_forward_hook(lambda *_: calls.append(1))
    block.tag = "mine"
    open_block(block)
    assert isinstance(block, kind) and is_open(block) and block.tag == "mine"
    assert list(block.state_dict()) == list(state)
    assert type(block).__name__ == f"_Open{kind.__name__}"
    block(images(block))
    assert calls == [1]
    close_block(block)
    assert type(block) is kind and not is_open(block)
    assert list(block._modules) == modules and set(block.__dict__) == {*keys, "tag"}
    assert repr(block) == text
    assert all(block.state_dict()[name] is not None for name in state)


@pytest.mark.parametrize("training", [True, False])
def test_slots_follow_the_mode(block, training):
    open_block(block.train(training))
    assert [getattr(block, name).training for name in SLOTS] == [training] * 4


def test_copies_and_pickles(block):
    open_block(block)
    block.post = SelfNorm(block.downsample[0].out_channels if block.downsample else block.conv1.in_channels)
    block.eval()
    x = images(block)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert type(other) is type(block)
        assert torch.equal(other(x), block(x))


def test_a_pickle_is_read_by_a_process_that_opened_nothing(tmp_path):
    block = BUILDS["bottleneck"]().eval()
    open_block(block)
    torch.save(block, tmp_path / "block.pt")
    script = (
        "import sys, torch; block = torch.load(sys.argv[1], weights_only=False); "
        "print(type(block).__name__, tuple(block(torch.zeros(1, 16, 4, 4)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "block.pt")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["_OpenBottleneck", "(1, 16, 4, 4)\n"]


def test_compiles_without_a_graph_break(block):
    open_block(block.eval())
    block.post = SelfNorm(block.downsample[0].out_channels if block.downsample else block.conv1.in_channels).eval()
    x = images(block)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), block(x))
    torch._dynamo.reset()


def test_a_traced_graph():
    block = BUILDS["basic, strided"]().eval()
    open_block(block)
    x = images(block)
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.ReLU(), "torch.nn.modules.activation.ReLU"), (resnet.ResNet(resnet.BasicBlock, [1] * 4), "ResNet")],
)
def test_only_blocks_of_torchvision(module, name):
    with pytest.raises(TypeError, match=rf"open_block: expected a BasicBlock or Bottleneck .*{name}; use"):
        open_block(module)


def test_no_subclass():
    class Mine(resnet.BasicBlock):
        pass

    with pytest.raises(TypeError, match="Mine; use a place before or after"):
        open_block(Mine(4, 4))


def test_not_twice(block):
    open_block(block)
    with pytest.raises(ValueError, match="has slots already; put a module into one of them"):
        open_block(block)


def test_own_attributes_are_not_overwritten(block):
    block.post = nn.ReLU()
    with pytest.raises(ValueError, match="this object has its own post; remove that first"):
        open_block(block)
    del block.post
    block.forward = lambda x: x
    with pytest.raises(ValueError, match="this object has its own forward"):
        open_block(block)
    assert not is_open(block) and not hasattr(block, "pre")


def test_closing_refuses_to_lose_a_module(block):
    open_block(block)
    block.pre, block.post = nn.ReLU(), nn.ReLU()
    with pytest.raises(ValueError, match=r"expected empty slots, but pre, post of _Open.* hold modules or hooks"):
        close_block(block)
    block.pre = block.post = nn.Identity()
    handle = block.post.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="but pre, post of"):
        close_block(block)
    handle.remove()
    close_block(block)


def test_closing_what_is_not_open(block):
    with pytest.raises(TypeError, match="close_block: expected a block that open_block has changed, got B"):
        close_block(block)


def test_only_the_two_classes_are_made_on_demand():
    from shiftnorm.surgery import blocks

    assert issubclass(blocks._OpenBasicBlock, resnet.BasicBlock)
    assert issubclass(blocks._OpenBottleneck, resnet.Bottleneck)
    with pytest.raises(AttributeError, match="has no attribute '_OpenOther'"):
        _ = blocks._OpenOther
