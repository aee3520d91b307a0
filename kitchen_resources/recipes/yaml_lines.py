"""Safe YAML with the line of every value."""

import re
import typing
from pathlib import Path
from typing import Any

import yaml

from kitchen_resources.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2e-4 is a number, as everyone but YAML 1.1 reads it, and 2024-01-01 is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789.":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(
        0, ("tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"))
    )


def read_mapping(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Values of a YAML mapping, and the line of each of its keys and list items by dotted path.

    Raises:
        ConfigError: It can't be read, isn't a mapping of texts, or gives a key twice.
    """
    lines: dict[str, int] = {}
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("a recipe is a mapping of fields", where=f"{path}:1", fix="workflow: supervised")
        # Before the values are made, which merges `<<` into the nodes.
        _index_lines(node, "", lines, path, (node,))
        values = loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't be read: {error}", where=str(path), fix="save it as UTF-8 text") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"not valid YAML: {said}",
            where=f"{path}:{mark.line + 1 if mark else 1}",
            fix="correct the indentation or quoting",
        ) from error
    return typing.cast(dict[str, Any], values), lines


def _index_lines(
    node: yaml.MappingNode, prefix: str, lines: dict[str, int], path: Path, within: tuple[yaml.Node, ...]
) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise ConfigError(
                f"{key_node.value!r} is read as something else than text",
                where=f"{path}:{line}",
                fix="write the key in quotes",
            )
        if key in lines:
            raise ConfigError(
                f"{key!r} is given twice, first in line {lines[key]}",
                where=f"{path}:{line}",
                fix="remove one of them",
            )
        lines[key] = line
        _index_value(value_node, key, lines, path, within)


def _index_value(node: yaml.Node, key: str, lines: dict[str, int], path: Path, within: tuple[yaml.Node, ...]) -> None:
    if node in within:
        raise ConfigError(f"{key!r} contains itself", where=f"{path}:{lines[key]}", fix="remove the alias (*)")
    if isinstance(node, yaml.MappingNode):
        _index_lines(node, f"{key}.", lines, path, (*within, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[f"{key}.{index}"] = item.start_mark.line + 1
            _index_value(item, f"{key}.{index}", lines, path, (*within, node))
