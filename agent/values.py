"""Reads the values of settings, which are text in the environment and may be native in YAML and on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

NO_LIMIT = ("", "none", "null")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(I?))?B?", re.IGNORECASE)
_GPU = r"(?:\d+|(?:GPU|MIG)-[\w/-]+)"


def json_value(kind: type[list[Any]] | type[dict[str, Any]], form: str) -> Callable[[Any], Any]:
    """A reader of JSON text of one kind; `form` says in its error what was expected."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"must be {form}; {error.msg} at character {error.pos + 1}") from None
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"must be {form}")
        return value

    return read


def limit(value: Any) -> Any:
    """A number, or None where the text says that there is no limit."""
    return None if isinstance(value, str) and value.strip().lower() in NO_LIMIT else value


def text(value: Any) -> Any:
    """Text, also where YAML has read a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def gpus(value: str | None) -> str | None:
    """A list of GPUs without spaces, "none", or None for all; ValueError for anything else."""
    value = value and re.sub(r"\s", "", value)
    if value and not re.fullmatch(f"none|{_GPU}(,{_GPU})*", value):
        raise ValueError("must be indices or UUIDs as in 0,1, or none")
    return value


def size(value: str) -> str:
    """A size that `size_in_bytes` reads; ValueError for anything else."""
    if value.strip().lower() not in NO_LIMIT and not (_SIZE.fullmatch(value.strip()) and size_in_bytes(value)):
        raise ValueError("must be a size as in 20GB, 20GiB or 20000000000, or none")
    return value.strip()


def size_in_bytes(value: str) -> int | None:
    """20GB, 20GiB or 20000000000 in bytes; None for no limit."""
    if value.strip().lower() in NO_LIMIT:
        return None
    found = _SIZE.fullmatch(value.strip())
    assert found, value
    number, unit, binary = found.groups()
    power = "KMGT".index(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def names(value: str | None) -> str | None:
    """A list of names with commas between them, without blanks; ValueError for an empty name."""
    if value is None:
        return None
    found = [name.strip() for name in value.split(",")]
    if not all(found):
        raise ValueError("write names with commas between them, none of them empty, as in gpt-4o,gpt-4o-mini")
    return ",".join(dict.fromkeys(found))
