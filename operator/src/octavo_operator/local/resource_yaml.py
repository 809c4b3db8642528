"""YAML as kubectl reads it: JSON's types only, text keys, and no key twice.

Python's own reader makes dates of what looks like one, and lets the last of two equal keys win.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import yaml

_TAG: Final = "tag:yaml.org,2002:"
_JSON_TAGS: Final = frozenset(
    f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)


def parse_documents(text: str) -> list[Any]:
    """The documents in `text` that are not empty; ValueError with a sentence fragment."""
    try:
        documents = list(yaml.load_all(text, Loader=_JsonLoader))
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return [document for document in documents if document is not None]


class _JsonLoader(yaml.SafeLoader):
    """Of the safe loader's types those that JSON has."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"key {key.value!r} is there twice", key.start_mark
                )
            seen.add(str(key.value))
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        return {_text(key): value for key, value in super().construct_mapping(node, deep).items()}


_JsonLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in _JSON_TAGS
}
_JsonLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _text(key: object) -> str:
    if isinstance(key, bool):
        return str(key).lower()
    return "null" if key is None else str(key)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} at line {mark.line + 1}" if mark is not None else str(problem)
