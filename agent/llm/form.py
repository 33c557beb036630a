"""How a request is written, and what is left out of it where an endpoint refuses it.

Endpoints differ: reasoning models take no temperature and count `max_completion_tokens`, local servers know fewer
response formats, some chat templates have no system role. The first answer of 400 teaches it; the form is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": a text, ...}, as the endpoint reads it."""

_KEPT = ("model", "messages", "response_format")
LIMITS = ("max_tokens", "max_completion_tokens")
"""What the field that bounds a reply's length is called."""
_TOOLS = re.compile(r"\btools?\b|\bfunction.?call")  # in a refusal: "does not support tools", "auto" tool choice ...
_OVERFLOW = re.compile(
    r"context.{0,20}(?:length|size|window|limit)|exceed_context|prompt is too long|too many (?:input )?tokens"
    r"|input (?:token count|is too long|length)|reduce the length|maximum number of tokens"
)


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
        self,
        model: str,
        messages: Sequence[Message],
        schema: dict[str, Any] | None,
        options: Mapping[str, Any],
        tools: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        """The request's body.

        Tools and a response format are never asked for together: several endpoints refuse that, and others then never
        call a tool. Without tools, what they said before is told as plain text, which every endpoint takes.
        """
        named = {self.limit if name in LIMITS else name: value for name, value in options.items()}
        request = {name: value for name, value in named.items() if name not in self.without}
        offered = () if "tools" in self.without else tools
        said = list(messages) if offered else _without_tools(messages)
        request |= {"model": model, "messages": said if self.system else _without_system(said)}
        if offered:
            request["tools"] = list(offered)
        elif self.modes[0] == "json_schema":
            described = {"name": "reply", "schema": schema, "strict": False}
            request["response_format"] = {"type": "json_schema", "json_schema": described}
        elif self.modes[0] == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request

    def easier(self, request: Mapping[str, Any], status: int, said: str) -> Form | None:
        """The form that asks less, where the endpoint refused `request` with these words; None if nothing is left."""
        words = said.lower()
        if overflows(status, said):
            return self._other_limit(words) if self.limit in request else None
        if "tools" in request and status in (400, 404, 422, 500, 501) and _TOOLS.search(words):
            return msgspec.structs.replace(self, without=self.without | {"tools"})
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
        if "tools" in request:  # a server may refuse them in words of its own: a plain request shows whether it did
            return msgspec.structs.replace(self, without=self.without | {"tools"})
        return self._less_structure()

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


def overflows(status: int, said: str) -> bool:
    """Whether an endpoint refuses a request because it is longer than the model's context."""
    return status in (400, 413, 422, 500) and _OVERFLOW.search(said.lower()) is not None


def share_that_fits(said: str) -> float:
    """The share of a prompt that fits into the context, by the numbers of tokens in a refusal; else a half."""
    words = said.lower().replace(",", "")
    limit = re.search(r"(?:maximum|limit|at most|context (?:length|size|window)|> ?)\D{0,60}?(\d{3,9})\b", words)
    numbers = [int(number) for number in re.findall(r"\b\d{3,9}\b", words)]
    if limit is None or int(limit[1]) >= max(numbers):
        return 0.5
    return min(max(0.8 * int(limit[1]) / max(numbers), 0.1), 0.8)


def _without_tools(messages: Sequence[Message]) -> list[Message]:
    """The same conversation as plain text: calls by the assistant, and what the tools said by the user."""
    if not any(message["role"] == "tool" for message in messages):
        return list(messages)
    told: list[Message] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if calls := message.get("tool_calls"):
            named = (f"(looked up: {call['function']['name']} {call['function']['arguments']})" for call in calls)
            text = "\n".join(filter(None, (text, *named)))
        role = "user" if role == "tool" else role
        if told and told[-1]["role"] == role:  # some chat templates want roles to alternate
            told[-1] = {"role": role, "content": f"{told[-1]['content']}\n\n{text}"}
        else:
            told.append({"role": role, "content": text})
    return told


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with the system's message at the beginning of the first one of the user."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return [{**message, "role": "user"} if message["role"] == "system" else message for message in messages]
    opening = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": opening}, *messages[2:]]
