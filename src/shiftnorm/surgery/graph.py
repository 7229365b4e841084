"""Whose output a norm normalizes: by tracing the model symbolically, or by watching one run of it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from shiftnorm.norms import MomentNorm
from shiftnorm.surgery.kinds import kind_of

__all__ = ["Feed", "feeds_of_run", "feeds_of_trace", "has_hooks", "trace"]


class Feed(NamedTuple):
    """What feeds a norm.

    Example:
        >>> Feed("conv1").producer
        'conv1'

    Args:
        producer: path of the module whose output the norm normalizes; None if it is no convolution, linear layer or
            norm.
        objection: why the norm and its producer cannot be taken as one; None if they can.
    """

    producer: str | None
    objection: str | None = None


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs more than its forward.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> handle = layer.register_forward_hook(lambda module, args, output: None)
        >>> has_hooks(layer), has_hooks(nn.Linear(2, 2))
        (True, False)
    """
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in tables)


def trace(model: nn.Module) -> fx.Graph:
    """The graph of the model's forward under the defaults of its optional arguments; norms and layers stay whole.

    Example:
        >>> [node.op for node in trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))).nodes]
        ['placeholder', 'call_module', 'call_module', 'output']

    Raises:
        TypeError: if another forward was set on the model itself, which torch.fx would not see.
        Exception: whatever the model's forward raises when it is given symbols instead of tensors.
    """
    if "forward" in vars(model):
        raise TypeError("the forward of its class is not the one it runs: another was set on the instance")
    parameters = inspect.signature(model.forward).parameters.values()
    # A symbol is never None: without this, ``if mask is None`` would be traced as if a mask were passed.
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    own = set(vars(model))
    try:
        return _Tracer().trace(model, concrete_args=defaults or None)
    finally:
        for name in set(vars(model)) - own:  # constants of the forward, which the tracer parks on the model
            delattr(model, name)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_producer(m) or super().is_leaf_module(m, module_qualified_name)


def feeds_of_trace(model: nn.Module) -> dict[str, Feed]:
    """What feeds every norm that the traced forward reaches, in the order of the calls.

    Example:
        >>> feeds_of_trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        {'1': Feed(producer='0', objection=None)}

    Args:
        model: in evaluation mode.

    Raises:
        Exception: as :func:`trace`.
    """
    graph = trace(model)
    path_of = {module: path for path, module in model.named_modules()}
    module_of = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(module_of.values())
    reads = {id(_attribute(model, str(node.target))) for node in graph.nodes if node.op == "get_attr"}

    def read_directly(module: nn.Module) -> bool:
        return any(id(parameter) in reads for parameter in module.parameters(recurse=False))

    def feed(node: fx.Node, norm: nn.Module) -> Feed:
        arguments = node.all_input_nodes
        if len(arguments) != 1 or len(node.args) != 1 or node.kwargs:
            return Feed(None, "it is called with more than one argument")
        source, users = arguments[0], len(arguments[0].users)
        while source in module_of and _passes(module_of[source]) and len(source.all_input_nodes) == 1:
            source = source.all_input_nodes[0]
            users = max(users, len(source.users))
        producer = module_of.get(source)
        if producer is None or not _is_producer(producer):
            return Feed(None, f"its input comes from {_name(source, producer)}")
        path = path_of[producer]
        if users > 1:
            return Feed(path, f"the output of {path} has other users too")
        return Feed(path, _objection(path, calls[producer], calls[norm], read_directly(producer), read_directly(norm)))

    return {path_of[norm]: feed(node, norm) for node, norm in module_of.items() if kind_of(norm) and not _passes(norm)}


def feeds_of_run(model: nn.Module, run: Callable[[], Any]) -> dict[str, Feed]:
    """What feeds every norm that one run of the model reaches, in the order of the calls.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        >>> feeds_of_run(model, lambda: model(torch.ones(3, 2)))
        {'1': Feed(producer='0', objection=None)}

    Args:
        model: in evaluation mode.
        run: calls the model on an example.
    """
    watch = _Watch(model)
    with torch.inference_mode(False), torch.no_grad(), watch.attached(), watch:
        output = run()
    for tensor in _tensors(output):
        watch.see_use(tensor)
    return watch.feeds()


class _Made(NamedTuple):
    tensor: Tensor  # kept alive, so that its id stays its own
    path: str
    version: int


class _Watch(TorchFunctionMode):
    """Notes which module made which tensor object, and what else than the norm behind it uses that tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = {path: module for path, module in model.named_modules() if _is_producer(module)}
        self.parameters = {
            id(each): path for path, module in self.modules.items() for each in module.parameters(recurse=False)
        }
        self.passing = {path for path, module in self.modules.items() if _passes(module)}  # before they get hooks
        self.made: dict[int, _Made] = {}
        self.depth = 0
        self.calls: Counter[str] = Counter()
        self.normalized: Counter[str] = Counter()  # by producer
        self.shared: set[str] = set()
        self.read: set[str] = set()
        self.found: dict[str, Feed] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        for path, module in self.modules.items():
            handles += [
                module.register_forward_pre_hook(self._entering(path), with_kwargs=True),
                # before hooks of others, which may exchange the output
                module.register_forward_hook(self._leaving(path), prepend=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls[path] += 1
            if self.depth == 0 and kind_of(module) and path not in self.passing:
                self.found[path] = self._feed(args, kwargs)
            elif self.depth == 0 and path not in self.passing:
                for tensor in _tensors((args, kwargs)):
                    self.see_use(tensor)
            self.depth += 1

        return enter

    def _leaving(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            self.depth -= 1
            if isinstance(output, Tensor) and path not in self.passing and self.depth == 0:
                self.made[id(output)] = _Made(output, path, output._version)

        return leave

    def _feed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Feed:
        if len(args) != 1 or kwargs:
            for tensor in _tensors((args, kwargs)):
                self.see_use(tensor)
            return Feed(None, "it is called with more than one argument")
        made = self.made.get(id(args[0]))
        if made is None or made.version != args[0]._version:
            return Feed(None, "its input is not, as it is, the output of a convolution or a linear layer")
        self.normalized[made.path] += 1
        return Feed(made.path)

    def see_use(self, tensor: Tensor) -> None:
        made = self.made.get(id(tensor))
        if made is not None:
            self.shared.add(made.path)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in _tensors((args, kwargs)) if self.depth == 0]
        versions = [each._version for each in given]
        output = func(*args, **(kwargs or {}))
        made = _tensors(output)
        for tensor, version in zip(given, versions, strict=True):
            if id(tensor) in self.parameters:
                self.read.add(self.parameters[id(tensor)])
            # Sizes and types are no uses, nor is a call that hands its argument back (dropout in evaluation).
            if made and not (any(tensor is each for each in made) and tensor._version == version):
                self.see_use(tensor)
        return output

    def feeds(self) -> dict[str, Feed]:
        def judged(norm: str, feed: Feed) -> Feed:
            path = feed.producer
            if path is None or feed.objection:
                return feed
            calls = self.calls[path], self.calls[norm]
            objection = _objection(path, *calls, path in self.read, norm in self.read)
            if objection is None and (path in self.shared or self.normalized[path] > 1):
                objection = f"the output of {path} has other users too"
            return Feed(path, objection)

        return {norm: judged(norm, feed) for norm, feed in self.found.items()}


def _objection(path: str, calls: int, norm_calls: int, is_read: bool, norm_is_read: bool) -> str | None:
    if norm_calls > 1:
        return f"it is called {norm_calls} times"
    if calls > 1:
        return f"{path} is called {calls} times"
    if is_read or norm_is_read:
        return f"the parameters of {path if is_read else 'the norm'} are also read directly in a forward"
    return None


def _is_producer(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear)) or kind_of(module) is not None


def _passes(module: nn.Module) -> bool:
    """Whether the module hands its input on, so that a norm behind it sees what is in front of it."""
    if has_hooks(module):
        return False
    if isinstance(module, MomentNorm):
        return module.is_identity
    dropouts = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    return type(module) is nn.Identity or (type(module) in dropouts and not module.training)


def _name(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    if node.op == "placeholder":
        return f"the model's argument {str(node.target)!r}"
    return str(getattr(node.target, "__name__", node.target))


def _attribute(model: nn.Module, path: str) -> Any:
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):  # also the mappings that pytree takes for leaves
        value = dict(value)
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
