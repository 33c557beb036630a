"""What a language model said, and the JSON object in it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from agent.records import Usage

MAX_ATTEMPTS = 100  # braces in prose that are tried as the beginning of an object


MAX_CALLS = 8  # tools that one reply may ask for
MAX_ARGUMENTS = 4_000  # characters of one call's arguments


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model wants to be run; all of it is the model's text."""

    id: str
    name: str
    arguments: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said.

    Attributes:
        text: Without the model's `<think>` part.
        data: The JSON object in it, where a schema was asked for and one was found.
        usage: Of all attempts that this reply needed.
        problem: Why there is no data, in one line; empty where nothing is wrong.
        content: The whole content, the `<think>` part included; only where no data was asked for.
        finished: False where it was cut off at the endpoint's length limit; only where no data was asked for.
        calls: Tools that it wants first; then there is no data yet, and no problem either.
        prompt_tokens: What the endpoint counted for the prompt that was answered; 0 if it did not say.
    """

    text: str
    data: dict[str, Any] | None
    usage: Usage
    problem: str = ""
    content: str = ""
    finished: bool = True
    calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0


def tool_calls(value: object) -> tuple[ToolCall, ...]:
    """The calls in a message's `tool_calls`, which may hold anything; what is no call has an empty name.

    Arguments that are a JSON object, as some endpoints give them, are written as text.
    """
    found = []
    for number, entry in enumerate(value[:MAX_CALLS] if isinstance(value, list) else (), start=1):
        call = entry if isinstance(entry, dict) else {}
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments, id_ = function.get("name"), function.get("arguments"), call.get("id")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False, default=str)
        found.append(
            ToolCall(
                id=_clean(id_, 80) or f"call_{number}",
                name=_clean(name, 80),
                arguments=arguments[:MAX_ARGUMENTS].encode("utf-8", "replace").decode(),
            )
        )
    return tuple(found)


def _clean(value: object, limit: int) -> str:
    """A name as endpoints take it back: letters, digits, "_" and "-"."""
    return re.sub(r"[^A-Za-z0-9_-]", "", value)[:limit] if isinstance(value, str) else ""


def asked_tools(reply: Reply) -> dict[str, Any]:
    """The assistant's message that asks for tools, in a form that every endpoint reads back."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name or "unknown", "arguments": _an_object(call.arguments)},
        }
        for call in reply.calls
    ]
    return {"role": "assistant", "content": reply.text, "tool_calls": calls}


def _an_object(arguments: str) -> str:
    """`arguments`, or an empty object: chat templates fail at what is no JSON."""
    try:
        return arguments if isinstance(json.loads(arguments), dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"


def plain_text(content: str | list[Any] | None) -> str:
    """The text of a message, whose content may be a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def without_thinking(text: str) -> str:
    """`text` without a leading `<think>` part; some templates leave out its opening or never close it."""
    text = text.strip()
    if opened := re.match(r"<think(?:ing)?>", text):
        closed = re.compile(r"</think(?:ing)?>").search(text, opened.end())
        return text[closed.end() :].strip() if closed else ""
    if text.startswith(("{", "```")):
        return text
    return re.split(r"</think(?:ing)?>", text, maxsplit=1)[-1].strip()


def find_object(text: str) -> dict[str, Any]:
    """The JSON object in a model's reply: the whole of it, a fenced block, or the first balanced one in prose.

    Raises: ValueError: what is wrong with it, in one line.
    """
    text = text.strip()
    if not text:
        raise ValueError("the reply is empty")
    fenced = [] if text.startswith("{") else re.findall(r"```[a-zA-Z]*\s*(\{.*?)```", text, flags=re.DOTALL)
    problem, attempts = "the reply holds no JSON object", 0
    for part in [*fenced, text]:
        start = part.find("{")
        while start >= 0 and attempts < MAX_ATTEMPTS:
            attempts += 1
            try:
                found = _DECODER.raw_decode(part, start)[0]
                json.dumps(found, ensure_ascii=False).encode()  # refuses lone surrogates, which no file can hold
                return dict(found)
            except json.JSONDecodeError as error:
                problem = f"the reply is not valid JSON: {error}"
                # A brace of prose, as in {x}, is passed over; inside broken JSON no smaller object is looked for.
                prose = not part.startswith("{") and not part[start + 1 : error.pos].strip()
                start = part.find("{", start + 1) if prose else -1
            except (ValueError, RecursionError) as error:
                problem = f"the reply is not valid JSON: {first_line(error)}"
                start = -1
    raise ValueError(problem)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite, strict=False)
