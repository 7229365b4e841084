"""Give the blocks of torchvision's ResNets named slots, in place, and take them away again."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

__all__ = ["close_block", "is_open", "open_block"]

SLOTS = ("pre", "residual", "identity", "post")


def open_block(block: nn.Module) -> None:
    """Give a BasicBlock or Bottleneck of torchvision empty slots, by exchanging its class.

        y = relu(post(residual(branch(pre(x))) + identity(shortcut(x))))

    The block stays the same object with the same weights, buffers, hooks and attributes, is an instance of its former
    class, and computes the same bits while the slots are empty.

    Example:
        >>> from torchvision.models.resnet import BasicBlock
        >>> block = BasicBlock(4, 4)
        >>> open_block(block)
        >>> [name for name, module in block.named_children() if isinstance(module, nn.Identity)]
        ['pre', 'residual', 'identity', 'post']
        >>> isinstance(block, BasicBlock)
        True

    Args:
        block: a ``torchvision.models.resnet.BasicBlock`` or ``Bottleneck``, not a subclass.

    Raises:
        TypeError: if it is another module.
        ValueError: if it has slots already, or its ``forward`` or the name of a slot has been put on the object.
    """
    if is_open(block):
        raise ValueError(f"open_block: {type(block).__name__} has slots already; put a module into one of them.")
    kinds = _classes() if _is_of_torchvision(type(block)) else {}
    if type(block) not in kinds:
        raise TypeError(
            "open_block: expected a BasicBlock or Bottleneck of torchvision.models.resnet, got "
            f"{type(block).__module__}.{type(block).__qualname__}; use a place before or after one of its modules."
        )
    taken = [name for name in SLOTS if hasattr(block, name)]
    if taken or "forward" in vars(block):
        raise ValueError(
            f"open_block: expected a {type(block).__name__} as torchvision builds it, but this object has its own "
            f"{', '.join(taken) or 'forward'}; remove that first."
        )
    block.__class__ = kinds[type(block)]
    for name in SLOTS:
        block.add_module(name, nn.Identity().train(block.training))


def close_block(block: nn.Module) -> None:
    """Take the empty slots of an open block away: the inverse of ``open_block``.

    Example:
        >>> from torchvision.models.resnet import BasicBlock
        >>> block = BasicBlock(4, 4)
        >>> open_block(block)
        >>> close_block(block)
        >>> type(block) is BasicBlock, hasattr(block, "post")
        (True, False)

    Args:
        block: a block that ``open_block`` has changed.

    Raises:
        TypeError: if it is not open.
        ValueError: if a slot holds a module, or its Identity has hooks.
    """
    if not is_open(block):
        raise TypeError(f"close_block: expected a block that open_block has changed, got {type(block).__name__}.")
    filled = [name for name in SLOTS if not _is_untouched(getattr(block, name))]
    if filled:
        raise ValueError(
            f"close_block: expected empty slots, but {', '.join(filled)} of {type(block).__name__} "
            f"{'hold modules' if len(filled) > 1 else 'holds a module'} or hooks; put an nn.Identity there first."
        )
    for name in SLOTS:
        delattr(block, name)
    block.__class__ = type(block).__mro__[1]


def is_open(block: nn.Module) -> bool:
    """Whether ``open_block`` has given a block slots.

    Example:
        >>> is_open(nn.ReLU())
        False
    """
    return type(block).__module__ == __name__


def _is_of_torchvision(kind: type) -> bool:
    # So that a block of another library does not make torchvision needed.
    return kind.__module__ == "torchvision.models.resnet"


def _is_untouched(slot: object) -> bool:
    if type(slot) is not nn.Identity:
        return False
    return not (slot._forward_hooks or slot._forward_pre_hooks or slot._backward_hooks or slot._backward_pre_hooks)


# Sums are new tensors, not written into the branch's: a module in a slot may need its output for its gradient.


def _forward_basic(self, x: Tensor) -> Tensor:
    out = self.relu(self.bn1(self.conv1(self.pre(x))))
    out = self.residual(self.bn2(self.conv2(out)))
    shortcut = self.identity(x if self.downsample is None else self.downsample(x))
    return self.relu(self.post(out + shortcut))


def _forward_bottleneck(self, x: Tensor) -> Tensor:
    out = self.relu(self.bn1(self.conv1(self.pre(x))))
    out = self.relu(self.bn2(self.conv2(out)))
    out = self.residual(self.bn3(self.conv3(out)))
    shortcut = self.identity(x if self.downsample is None else self.downsample(x))
    return self.relu(self.post(out + shortcut))


@cache
def _classes() -> dict[type, type]:
    try:
        from torchvision.models.resnet import BasicBlock, Bottleneck
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'surgery: blocks of torchvision need torchvision; pip install "shiftnorm[train]"', name=error.name
        ) from error
    pairs = ((BasicBlock, _forward_basic), (Bottleneck, _forward_bottleneck))
    classes: dict[type, type] = {}
    for kind, forward in pairs:
        contents = {
            "__module__": __name__,
            "__doc__": f"{kind.__name__} of torchvision with a module before, behind and beside its branch.",
            "forward": forward,
        }
        classes[kind] = type(f"_Open{kind.__name__}", (kind,), contents)
    return classes


def __getattr__(name: str) -> type:
    # pickle finds the classes here, also in a process that has opened no block yet.
    if name in ("_OpenBasicBlock", "_OpenBottleneck"):
        return next(kind for kind in _classes().values() if kind.__name__ == name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
