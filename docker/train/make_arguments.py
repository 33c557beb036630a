"""Write the schema of every argument that this environment's LLaMA-Factory takes for training, as JSON.

The host has neither torch nor LLaMA-Factory, so it checks recipes against the file made here:

    python docker/train/make_arguments.py scenarios/finetune/arguments.json

Without a file it prints it. One argument a line, sorted: {"class", "types", "default", "help", "choices" where there
are any}. `types` are JSON's and YAML's names (bool, int, float, str, list, dict, null), as in the dataclasses' hints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLAIN = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", type(None): "null"}


def members(hint: Any) -> Iterator[Any]:
    """The members of a union, flattened; the hint itself if it is none."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from members(member)
    else:
        yield hint


def describe(hint: Any) -> tuple[list[str], list[Any]]:
    """JSON types and choices of one hint; classes that YAML cannot express are left out."""
    names: set[str] = set()
    choices: list[Any] = []
    for member in members(hint):
        origin = typing.get_origin(member)
        if origin is typing.Literal:
            choices += typing.get_args(member)
            names.add("str")
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            choices += [str(item.value) for item in member]
            names.add("str")
        elif (plain := PLAIN.get(origin or member)) is not None:
            names.add(plain)
    return sorted(names), choices


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default as JSON can hold it; an enum's is its value."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, enum.Enum):
        return str(value.value)
    return None if value is dataclasses.MISSING else value


def schema() -> dict[str, dict[str, Any]]:
    """Argument name -> its description, over all classes that training parses."""
    from llamafactory.hparams.parser import _TRAIN_ARGS

    found: dict[str, dict[str, Any]] = {}
    for owner in _TRAIN_ARGS:
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            if not field.init:
                continue
            names, choices = describe(hints[field.name])
            entry: dict[str, Any] = {"class": owner.__name__, "types": names, "default": default_of(field)}
            if choices := choices or list(field.metadata.get("choices") or ()):
                entry["choices"] = choices
            entry["help"] = " ".join(str(field.metadata.get("help", "")).split())
            found[field.name] = entry
    return found


def main(file: str | None = None) -> None:
    """Write the schema to `file`, or print it; whatever the imports print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        found = schema()
    lines = (f"{json.dumps(name)}: {json.dumps(found[name], ensure_ascii=False)}" for name in sorted(found))
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if file:
        Path(file).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
