"""Reads cells of foreign data as text, and as conversations of a user and an assistant."""

from __future__ import annotations

import re
from collections.abc import Mapping

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
DIALOGUE = re.compile(r"\n\n(Human|Assistant):")
"""What stands before each turn where a whole conversation is one text (Anthropic's HH-RLHF)."""


def text(cell: object) -> str:
    """A cell as text: numbers as they are written, empty where it holds no text."""
    if isinstance(cell, str):
        return cell
    return str(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) and cell == cell else ""


def messages(cell: object, system: str = "") -> list[Message] | None:
    """A conversation as LLaMA-Factory wants it: a system message, then user and assistant in turn.

    None where it is none: other roles, no text, turns out of order (LLaMA-Factory would skip it with a warning).
    """
    found = spoken(cell, system)
    if found is None:
        return None
    turns = roles(found)
    return found if turns and turns == ["user", "assistant"] * (len(turns) // 2) else None


def spoken(cell: object, system: str = "") -> list[Message] | None:
    """Messages with a known role and content, in whatever order; None where one is neither."""
    if not isinstance(cell, list):
        return None
    found: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for message in cell:
        if not isinstance(message, Mapping):
            return None
        role = SPEAKERS.get(str(message.get("role", message.get("from"))).lower())
        content = text(message.get("content", message.get("value")))
        if role is None or not content.strip():
            return None
        if role == "system" and found and found[0]["role"] == "system":
            found = []  # the conversation's own system message is the better one
        found.append({"role": role, "content": content})
    return found


def roles(found: list[Message]) -> list[str]:
    """Who speaks in turn, without a system message at the start."""
    start = 1 if found and found[0]["role"] == "system" else 0
    return [message["role"] for message in found[start:]]


def dialogue(said: str) -> list[Message] | None:
    """The messages of a text that holds a whole conversation; None where it does not begin as one."""
    begin, *parts = DIALOGUE.split(said if said.startswith("\n\n") else f"\n\n{said}")
    if begin or not parts:
        return None
    speakers, contents = parts[::2], parts[1::2]
    return [
        {"role": SPEAKERS.get(speaker.lower(), speaker.lower()), "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]
