"""YAML that a person wrote, read so that no file, however it is knotted, keeps the program busy or ends it."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 1 << 18
MOST_NODES = 20_000
DEEPEST = 50


def parse(text: str) -> tuple[yaml.Node | None, Any]:
    """The text as nodes, which know their lines, and what it says.

    Raises:
        yaml.YAMLError: It is no YAML.
        ValueError: It is too large or too deep, where an alias counts as all that it stands for.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS:,} characters")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _require_small(node)
        return node, yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _require_small(root: yaml.Node) -> None:
    """Walks the nodes as whoever prints or copies the values will: through every alias."""
    waiting, seen = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        if seen > MOST_NODES:
            raise ValueError(f"it holds more than {MOST_NODES:,} values")
        if isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]
