"""YAML text of recipes: read with nothing that could be overlooked, and written such that it reads back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PLAIN", "parse", "parse_value", "write"]

PLAIN = (str, int, float, bool, type(None))


def parse(text: str, source: str) -> dict[str, Any]:
    """Read YAML text as a mapping; repeated keys, keys that are no text, and aliases are refused at every depth.

    Example:
        >>> parse("loop: {epochs: 3, epochs: 4}", "mine.yaml")
        Traceback (most recent call last):
        ...
        ValueError: mine.yaml: the key 'loop.epochs' appears more than once; keep one.

    Args:
        text: the YAML.
        source: what errors call it.

    Returns:
        Plain data.

    Raises:
        ValueError: for text that is no YAML mapping, or has what is refused.
    """
    content = parse_value(text, source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected 'key: value' lines, got {type(content).__name__}.")
    return content


def parse_value(text: str, source: str) -> Any:
    """Read YAML text as any value.

    Example:
        >>> parse_value("[1, 0.5, cnsn@post]", "mine")
        [1, 0.5, 'cnsn@post']

    Args:
        text: the YAML.
        source: what errors call it.

    Returns:
        Plain data; None for no text.

    Raises:
        ValueError: for text that is no YAML, or has repeated keys, keys that are no text, or aliases.
    """
    yaml = _import_yaml()

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        _check_node(node, source, "", set())
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as fault:
        raise ValueError(f"{source}: expected YAML, got text that is not: {' '.join(str(fault).split())}") from fault


def _import_yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'recipes need PyYAML, which is not installed. Install with: pip install "shiftnorm[train]"', name="yaml"
        ) from error
    return yaml


def _check_node(node: Any, source: str, path: str, seen: set[int]) -> None:
    yaml = _import_yaml()

    if id(node) in seen:
        raise ValueError(f"{source}: {path}: expected values written out, got an alias; write what it stands for.")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check_node(item, source, f"{path}[{index}]", seen)
    elif isinstance(node, yaml.MappingNode):
        known: set[str] = set()
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise ValueError(
                    f"{source}: expected a name as a key, got {key.value!r}; write it in quotes if it is one."
                )
            inner = f"{path}.{key.value}" if path else key.value
            if key.value in known:
                raise ValueError(f"{source}: the key {inner!r} appears more than once; keep one.")
            known.add(key.value)
            _check_node(value, source, inner, seen)


def write(mapping: Mapping[str, Any]) -> str:
    """Write plain data as YAML, lists of numbers and words on one line.

    Example:
        >>> print(write({"loop": {"epochs": 3}, "severities": [1, 2]}))
        loop:
          epochs: 3
        severities: [1, 2]

    Args:
        mapping: the data.

    Returns:
        The text.
    """
    yaml = _import_yaml()

    class Dumper(yaml.SafeDumper):
        """One that knows lists by what is in them."""

    def write_list(dumper: Any, items: list[Any]) -> Any:
        flow = all(isinstance(item, PLAIN) for item in items)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)

    Dumper.add_representer(list, write_list)
    return yaml.dump(dict(mapping), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
