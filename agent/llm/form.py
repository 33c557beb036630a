"""How a request is written, and what is left out of it where an endpoint refuses it.

Endpoints differ: reasoning models take no temperature and count `max_completion_tokens`, local servers know fewer
response formats, some chat templates have no system role. The first answer of 400 teaches it; the form is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": ...}"""

_KEPT = ("model", "messages", "response_format")
_LIMITS = ("max_tokens", "max_completion_tokens")


class Form(msgspec.Struct, frozen=True):
    """How a request is written: the first URL, the first mode; what follows them is tried where they are refused.

    Attributes:
        without: Fields that this endpoint refuses.
        limit: The name of the field that bounds the reply's length.
        page: The beginning of a web page that another URL answered with.
        system: False where the model knows no system role: what it would say opens the first message of the user.
    """

    urls: tuple[str, ...]
    modes: tuple[Literal["json_schema", "json_object", "text"], ...] = ("json_schema", "json_object", "text")
    without: frozenset[str] = frozenset()
    limit: str = "max_tokens"
    system: bool = True
    page: str = ""

    def request(
        self, model: str, messages: Sequence[Message], schema: dict[str, Any] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The request's body."""
        named = {self.limit if name in _LIMITS else name: value for name, value in options.items()}
        request = {name: value for name, value in named.items() if name not in self.without}
        request |= {"model": model, "messages": list(messages) if self.system else _without_system(messages)}
        if self.modes[0] == "json_schema":
            described = {"name": "reply", "schema": schema, "strict": False}
            request["response_format"] = {"type": "json_schema", "json_schema": described}
        elif self.modes[0] == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request

    def easier(self, request: Mapping[str, Any], status: int, said: str) -> Form | None:
        """The form that asks less, where the endpoint refused `request` with these words; None if nothing is left."""
        words = said.lower()
        if status >= 500:  # some servers fail at a grammar that they cannot build
            return self._less_structure() if re.search(r"grammar|json.?schema|response_format", words) else None
        if status not in (400, 422):
            return None
        if self.limit in request and (form := self._other_limit(words)):
            return form
        for name in request:
            if name not in _KEPT and re.search(rf"\b{re.escape(name.lower())}\b", words):
                return msgspec.structs.replace(self, without=self.without | {name})
        if self.system and re.search(r"system\W+role|role\W.*\bsystem\b", words):
            return msgspec.structs.replace(self, system=False)
        return None if "context" in words else self._less_structure()

    def _less_structure(self) -> Form | None:
        return msgspec.structs.replace(self, modes=self.modes[1:]) if len(self.modes) > 1 else None

    def _other_limit(self, words: str) -> Form | None:
        """The reply's limit under its other name, or left out where the model's own is lower."""
        too_much = "context" in words or "too large" in words or "at most" in words
        if self.limit == "max_tokens" and "max_completion_tokens" in words and not too_much:
            return msgspec.structs.replace(self, limit="max_completion_tokens")
        if too_much or self.limit in words:
            return msgspec.structs.replace(self, without=self.without | {self.limit})
        return None


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with the system's message at the beginning of the first one of the user."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return [{**message, "role": "user"} if message["role"] == "system" else message for message in messages]
    opening = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": opening}, *messages[2:]]
