"""What the card (README.md) of a downloaded model or data set states about it, in the YAML before its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

LONGEST = 1 << 16


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Empty where nothing is stated. `tags` holds tags and task categories, `licence` is lower case."""

    licence: str = ""
    tags: tuple[str, ...] = ()


def card(directory: Path) -> Card:
    """The card of a directory; what cannot be read says nothing, since anybody may have written it."""
    import yaml

    try:
        with (directory / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(LONGEST)
        head = re.match(r"\ufeff?---\r?\n(.*?)\n---\s", text, re.DOTALL)
        stated = yaml.safe_load(head[1]) if head else None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return Card()
    if not isinstance(stated, Mapping):
        return Card()
    tags = [tag for key in ("tags", "task_categories") for tag in _texts(stated.get(key))]
    return Card(licence=_licence(stated), tags=tuple(tags))


def _licence(stated: Mapping[object, object]) -> str:
    """Its name where the card gives one to a licence of its own ("other")."""
    names = _texts(stated.get("license_name")) or _texts(stated.get("license"))
    return " ".join(", ".join(names).split())[:60].lower()


def _texts(value: object) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str)]
