"""One argument of an experiment: its name, types, default and help, and how a value that was written down is read."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from agent.records import Scalar

Part = Literal["run", "recipe", "trainer", "call"]
"""What an argument belongs to: ftloop's own; a recipe's key, which an agent may set too; a key of the trainer that only
people set; or this call alone, which no snapshot keeps."""
Type = Literal["bool", "int", "float", "str", "list", "dict", "null"]

_NULL = ("null", "none", "~", "")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_WORDS: dict[str, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
    "null": "null",
}


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One argument.

    Attributes:
        types: What it may be, the first that fits being taken; with "null" it may be unset.
        help: For people; one sentence. choices: All allowed values; empty for any.
        low, high: Inclusive bounds of a number. parts: What a list or mapping may hold, as a type; None for anything.
    """

    name: str
    types: tuple[Type, ...]
    help: str
    default: Any = None
    choices: tuple[Scalar, ...] = ()
    low: float | None = None
    high: float | None = None
    parts: Any = None
    required: bool = False
    part: Part = "run"


def read_value(field: Field, value: Any, *, typed: bool) -> Any:
    """The value with one of the field's types.

    Args:
        value: As YAML gave it, or as it stood on the command line.
        typed: False for the command line, where everything is text.

    Raises:
        ValueError: It is of no such type, or none of the choices; the message says what was wanted.
    """
    if "null" in field.types and (value is None or (not typed and value.strip().lower() in _NULL)):
        return None
    read = [_READERS[name](value, typed) for name in field.types if name != "null"]
    found = next((one for one in read if one is not None), None)
    if found is None:
        wanted = " or ".join(_WORDS[name] for name in field.types)
        raise ValueError(f"wanted {wanted}, found {shown(value)}")
    if field.choices and found not in field.choices:
        near = nearest(str(found), map(str, field.choices))
        hint = f" (did you mean {near}?)" if near else ""
        raise ValueError(f"{shown(found)} is none of {', '.join(map(str, field.choices))}{hint}")
    if isinstance(found, int | float) and field.low is not None and found < field.low:
        raise ValueError(f"must be at least {field.low:.12g}, is {shown(found)}")
    if isinstance(found, int | float) and field.high is not None and found > field.high:
        raise ValueError(f"must be at most {field.high:.12g}, is {shown(found)}")
    require_parts(field, found)
    return found


def require_parts(field: Field, value: Any) -> None:
    """ValueError where a list or mapping holds what it may not."""
    if field.parts is not None and isinstance(value, list | dict):
        try:
            msgspec.convert(value, field.parts)
        except msgspec.ValidationError as error:
            raise ValueError(f"{shown(value)} holds something else than it may: {error}") from None


def read_scalar(text: str) -> Any:
    """A value below a dotted key, whose type no field says: a number, true, false, null, a list or mapping, a text."""
    import yaml

    from agent.experiments import yaml_text

    for name in ("int", "float"):
        if (number := _READERS[name](text, False)) is not None:
            return number
    try:
        return yaml_text.parse(text)[1]
    except (yaml.YAMLError, ValueError):
        return text


def nearest(word: str, known: Iterable[str], rarer: Collection[str] = ()) -> str | None:
    """The name that a word was probably meant to be; where it is only a part of it, a rarer name comes last."""
    word, names = word.lower().replace("-", "_")[:80], [*known, *rarer]
    if match := difflib.get_close_matches(word, names, n=1, cutoff=0.7):
        return match[0]
    longer = [name for name in names if len(word) > 3 and word in name]
    return min(longer, key=lambda name: (name in rarer, len(name)), default=None)


def shown(value: object) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bool(value: Any, typed: bool) -> bool | None:
    if isinstance(value, bool):
        return value
    if not typed and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    return None


def _float(value: Any, typed: bool) -> float | None:
    """A finite number; PyYAML reads `1e-6` as a text, so a text that spells a number is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip(), re.ASCII):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _int(value: Any, typed: bool) -> int | None:
    number = _float(value, typed)
    return int(number) if number is not None and number.is_integer() else None


def _str(value: Any, typed: bool) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: Any, typed: bool) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        found = _flow(value)
        return found if isinstance(found, list) else None
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [value] if isinstance(value, int | float) else None


def _dict(value: Any, typed: bool) -> dict[str, Any] | None:
    if isinstance(value, Mapping):
        return {str(key): cell for key, cell in value.items()}
    if isinstance(value, str) and value.lstrip().startswith("{"):
        found = _flow(value)
        return {str(key): cell for key, cell in found.items()} if isinstance(found, dict) else None
    return None


def _flow(text: str) -> Any:
    """A list or mapping as JSON or YAML write it in one line; None where it is neither."""
    import yaml

    from agent.experiments import yaml_text

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml_text.parse(text)[1]
    except (yaml.YAMLError, ValueError):
        return None


_READERS = {"bool": _bool, "int": _int, "float": _float, "str": _str, "list": _list, "dict": _dict}
