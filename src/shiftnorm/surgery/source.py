"""Models by name, from whatever library has them, and the memory of where a model came from."""

from __future__ import annotations

import contextlib
import copy
import difflib
import fnmatch
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from shiftnorm import models

__all__ = ["build_model", "list_sources", "rebuild", "source_of"]

LIBRARIES = ("shiftnorm", "torchvision", "timm")
EXTRAS = {"torchvision": "train", "timm": "timm"}
_ATTRIBUTE = "_shiftnorm_source"
# They read or fetch files; load_weights does that safely.
_REFUSED = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
# They bring weights, which are no part of what a model is built from.
_NOT_KEPT = ("weights", "weights_backbone", "pretrained_backbone")


def build_model(name: str, *, allow_code: bool = False, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build a model by the name of its library and its name there, such as "torchvision/resnet50".

    The model remembers its name and arguments, so that a saved one can be built again; see :func:`source_of`. Weights
    are no part of that: whoever saves the model saves them.

    Example:
        >>> model = build_model("shiftnorm/wide_resnet40_2", num_classes=7)
        >>> model.fc
        Linear(in_features=128, out_features=7, bias=True)

    Args:
        name: "shiftnorm/...", "torchvision/..." or "timm/...", as :func:`list_sources` has them; or "package.module:
            function", a function of your own that returns the model.
        allow_code: permit "package.module:function", which imports that module and runs the function. Leave it off for
            names that come from files of others.
        pretrained: the library's own weights, which it downloads.
        arguments: of the model; plain data, which can be written as JSON.

    Returns:
        The new model, in training mode, with random weights unless ``pretrained``.

    Raises:
        ValueError: for an unknown library or model (the text has near ones), code where it is not allowed, or
            ``pretrained`` where there are no weights.
        TypeError: if an argument cannot be written as JSON, or a function returns no module.
        OSError: if pretrained weights cannot be fetched.
        ModuleNotFoundError: if the library is not installed, or there is no such module.
    """
    if not isinstance(name, str):
        raise TypeError(f"build_model: expected a name such as 'timm/resnet50', got {name!r}.")
    if refused := [key for key in _REFUSED if key in arguments]:
        raise TypeError(f"build_model: {refused[0]} is not passed on. Build the model, then use load_weights.")
    kept = {key: value for key, value in _plain(arguments).items() if key not in _NOT_KEPT}
    library, slash, model_name = name.partition("/")
    if ":" in name and library not in LIBRARIES:
        model = _from_code(name, allow_code, {**arguments, "pretrained": True} if pretrained else arguments)
    elif not slash or library not in LIBRARIES:
        raise ValueError(f"build_model: unknown model {name!r}; {_advice(name)}")
    elif library == "shiftnorm":
        model = _from_ours(name, model_name, pretrained, arguments)
    elif library == "torchvision":
        model = _from_torchvision(name, model_name, pretrained, arguments)
    else:
        model = _from_timm(name, model_name, pretrained, arguments)
    if library == "torchvision" and (pretrained or arguments.keys() & set(_NOT_KEPT)):
        if model_name in _library("torchvision").models.list_models(module=_library("torchvision").models.detection):
            return model  # with weights its norms are of another class than without: it cannot be built again
        kept = _implied_by_weights(model) | kept
    setattr(model, _ATTRIBUTE, {"name": name, "arguments": kept})
    return model


def rebuild(source: Mapping[str, Any], *, allow_code: bool = False) -> nn.Module:
    """Build a model from what :func:`source_of` returned, possibly by way of a stranger's file.

    Example:
        >>> rebuild({"name": "shiftnorm/resnet18", "arguments": {"num_classes": 10}}).fc.out_features
        10
        >>> rebuild({"name": "os:getcwd", "arguments": {"allow_code": True}})
        Traceback (most recent call last):
        ...
        ValueError: rebuild: expected arguments of a model, got allow_code, ...

    Args:
        source: a name and arguments.
        allow_code: as in :func:`build_model`; whatever the source says, code runs only if it is True here.

    Returns:
        The model with random weights: nothing is downloaded.

    Raises:
        ValueError: if the source is not of this form, or as :func:`build_model` does.
    """
    name, arguments = source.get("name"), source.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping) or set(source) != {"name", "arguments"}:
        raise ValueError(f"rebuild: expected a source with name and arguments, got {dict(source)}.")
    if wrong := [key for key in arguments if key in ("allow_code", "pretrained", *_REFUSED, *_NOT_KEPT)]:
        raise ValueError(
            f"rebuild: expected arguments of a model, got {', '.join(wrong)}, which would run code or fetch files."
        )
    return build_model(name, allow_code=allow_code, **arguments)


def source_of(model: nn.Module) -> dict[str, Any] | None:
    """The name and arguments a model was built by, as plain data; None if :func:`build_model` did not build it.

    Example:
        >>> source_of(build_model("shiftnorm/resnet18", num_classes=10))
        {'name': 'shiftnorm/resnet18', 'arguments': {'num_classes': 10}}

    Args:
        model: the model itself, or a deep copy of it.

    Returns:
        A copy: ``build_model(source["name"], **source["arguments"])`` builds the same architecture.
    """
    return copy.deepcopy(getattr(model, _ATTRIBUTE, None))


def list_sources(pattern: str = "*") -> dict[str, list[str]]:
    """The models of each library that is installed.

    Example:
        >>> list_sources("wide_resnet50*")["torchvision"]
        ['wide_resnet50_2']
        >>> sorted(list_sources("shiftnorm/*"))
        ['shiftnorm']

    Args:
        pattern: a shell pattern, of names, or with a library in front.

    Returns:
        Sorted names by library; libraries without a match are left out.
    """
    found: dict[str, list[str]] = {}
    for library in LIBRARIES:
        if library != "shiftnorm" and importlib.util.find_spec(library) is None:
            continue
        names = [
            name
            for name in _names(library)
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f"{library}/{name}", pattern)
        ]
        if names:
            found[library] = sorted(names)
    return found


def _names(library: str) -> list[str]:
    if library == "shiftnorm":
        return models.list_models()
    module = _library(library)
    return module.list_models() if library == "timm" else module.models.list_models()


def _library(library: str) -> ModuleType:
    try:
        module = importlib.import_module(library)
        if library == "torchvision":
            importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ModuleNotFoundError(
            f'build_model: {library} is not installed. Install it with pip install "shiftnorm[{EXTRAS[library]}]".',
            name=library,
        ) from error
    return module


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"build_model: expected arguments that can be written as JSON, got {key}={value!r}. "
                "To fill slots or pass modules, call the constructor itself (shiftnorm.models.create_model), "
                "or put norms in with shiftnorm.surgery.convert."
            ) from error
    return json.loads(json.dumps(dict(arguments)))


def _advice(name: str) -> str:
    """What may have been meant by an unknown name."""
    library, slash, wanted = name.partition("/")
    if slash and library not in LIBRARIES:
        near = difflib.get_close_matches(library, LIBRARIES, n=1)
        if near:
            return f"did you mean {near[0]}/{wanted}?"
    wanted = wanted if slash else library
    searched = [library] if slash and library in LIBRARIES else list(LIBRARIES)
    near_names: list[str] = []
    for each in searched:
        names = list_sources(f"{each}/*").get(each, [])
        near_names += [f"{each}/{match}" for match in difflib.get_close_matches(wanted, names, n=3)]
    if near_names:
        return f"did you mean {', '.join(near_names)}?"
    return f"expected {', '.join(f'{library}/...' for library in LIBRARIES)}; list_sources() has all names."


def _from_ours(name: str, model_name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    if model_name not in models.list_models():
        raise ValueError(f"build_model: unknown model {name!r}; {_advice(name)}")
    if pretrained:
        raise ValueError(
            f"build_model: {name} comes without weights. Leave pretrained off and fill it with load_weights."
        )
    return models.create_model(model_name, **arguments)


def _from_torchvision(name: str, model_name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    library = _library("torchvision").models
    if model_name not in library.list_models():
        raise ValueError(f"build_model: unknown model {name!r}; {_advice(name)}")
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    # Detection and segmentation would download weights for their backbones otherwise.
    if not pretrained and "weights_backbone" in inspect.signature(library.get_model_builder(model_name)).parameters:
        options["weights_backbone"] = None
    with _fetching(name, lambda: library.get_model_weights(model_name).DEFAULT.url):
        return library.get_model(model_name, **{**options, **arguments})


def _implied_by_weights(model: nn.Module) -> dict[str, Any]:
    """What torchvision changes in a model where it comes with weights."""
    implied = {key: getattr(model, key, None) for key in ("transform_input", "aux_logits")}
    implied = {key: value for key, value in implied.items() if isinstance(value, bool)}
    if "aux_classifier" in dict(model.named_children()):
        implied["aux_loss"] = True
    return implied


def _from_timm(name: str, model_name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    library = _library("timm")
    # Only what timm has itself: "hf-hub:" and the like would fetch a stranger's configuration.
    if not library.is_model(model_name):
        raise ValueError(f"build_model: unknown model {name!r}; {_advice(name)}")
    with _fetching(name, lambda: f"https://huggingface.co/{library.get_pretrained_cfg(model_name).hf_hub_id}"):
        return library.create_model(model_name, pretrained=pretrained, **arguments)


@contextlib.contextmanager
def _fetching(name: str, address: Callable[[], str]) -> Iterator[None]:
    """Say which weights were to be fetched if they cannot be."""
    try:
        yield
    except OSError as fault:
        raise OSError(
            f"build_model: the weights of {name} could not be fetched from {address()} ({str(fault).rstrip('.')}). "
            "Without a network, get the file elsewhere and give it to load_weights, or as --weights FILE."
        ) from fault


def _from_code(name: str, allow_code: bool, arguments: dict[str, Any]) -> nn.Module:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise ValueError(
            f"build_model: expected 'package.module:function', a module that can be imported, got {name!r}. "
            "A file is not run: install it as a package, or put its folder on PYTHONPATH and leave out the folder."
        )
    if not allow_code:
        raise ValueError(
            f"build_model: {name!r} would import and run code. If you trust it, pass allow_code=True "
            "(never for a name from a stranger's file)."
        )
    module_name, _, path = name.partition(":")
    try:
        function: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # What the module itself does not find is its author's affair.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            f"build_model: there is no module {error.name!r}, which {name!r} needs. Install it as a package, or put "
            "the folder that holds it on PYTHONPATH (PYTHONPATH=. for the current one).",
            name=error.name,
        ) from error
    for part in path.split("."):
        if not hasattr(function, part):
            near = difflib.get_close_matches(part, [key for key in dir(function) if not key.startswith("_")], n=3)
            raise ValueError(
                f"build_model: there is no {path} in {module_name}" + (f"; near: {', '.join(near)}." if near else ".")
            )
        function = getattr(function, part)
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"build_model: expected {name} to return a torch.nn.Module, it returned {type(model).__name__}."
        )
    return model
