"""Asks language models from inside a data script: `from ftloop_llm import ask, ask_many`.

A job has no network and no key. What it has is a Unix socket, behind which the host asks the study's own models, counts
the money, and answers from memory what it was asked before. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

SOCKET = "FTLOOP_LLM_SOCKET"
"""The environment variable that holds the socket's path."""
ROLES = ("strong", "weak")
PATIENCE = 900.0  # seconds for one answer; the host gives up earlier, and says why
ATTEMPTS = 3
LONGEST_ANSWER = 16 << 20  # bytes
_BUSY = (429, 502, 503, 504)
_THIS_QUESTION = (400, 408, 413, 422, *_BUSY)  # another question may fare better

Messages = str | Sequence[Mapping[str, str]]
"""A user's question, or a conversation: [{"role": "system", "content": ...}, {"role": "user", "content": ...}]."""


class LLMError(RuntimeError):
    """A model gave no answer; the text says why.

    Attributes:
        hopeless: True where no other question would be answered either (no socket, no money left, no such model).
    """

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


def ask(
    messages: Messages, role: str = "strong", *, temperature: float | None = None, max_tokens: int | None = None
) -> str:
    """One answer of the study's "strong" or "weak" model.

    Raises:
        LLMError: There is no answer.
        ValueError: The messages or the role are not what they must be.
    """
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    request: dict[str, Any] = {"model": role, "messages": _conversation(messages)}
    options = {"temperature": temperature, "max_tokens": max_tokens}
    request |= {name: value for name, value in options.items() if value is not None}
    body = json.dumps(request).encode()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            status, content, final = _post(body)
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS:
                raise LLMError(f"the gateway broke off: {error or type(error).__name__}", hopeless=True) from None
        else:
            if final or status not in _BUSY or attempt == ATTEMPTS:
                return _answer(status, content)
        time.sleep(0.5 * attempt)
    raise AssertionError("unreachable")


def ask_many(
    conversations: Sequence[Messages],
    role: str = "strong",
    *,
    concurrency: int = 8,
    missing: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> list[str]:
    """One answer for each conversation, in their order; `concurrency` are asked at a time.

    Args:
        conversations: As for `ask`.
        role: "strong" or "weak".
        concurrency: How many at a time; the host may allow fewer.
        missing: Stands for an answer that could not be had ("", say); without it the first failure is raised.
        temperature, max_tokens: As for `ask`.

    Raises:
        LLMError: One has no answer and `missing` is not given, or no further one would have any.
    """

    def one(messages: Messages) -> str:
        try:
            return ask(messages, role, temperature=temperature, max_tokens=max_tokens)
        except LLMError as error:
            if missing is None or error.hopeless:
                raise
            return missing

    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        asked = [pool.submit(one, messages) for messages in conversations]
        try:
            return [future.result() for future in asked]
        except BaseException:
            for future in asked:
                future.cancel()
            raise


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """To the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _post(body: bytes) -> tuple[int, bytes, bool]:
    """Status and content of the response, and whether the gateway says that asking again is of no use."""
    path = os.environ.get(SOCKET)
    if not path:
        raise LLMError(f"no language model is offered to this script ({SOCKET} is not set)", hopeless=True)
    connection = _Connection(path)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read(LONGEST_ANSWER + 1)
    finally:
        connection.close()
    if len(content) > LONGEST_ANSWER:
        raise LLMError(f"the answer is longer than {LONGEST_ANSWER >> 20} MiB")
    return response.status, content, response.getheader("x-should-retry") == "false"


def _answer(status: int, content: bytes) -> str:
    try:
        reply = json.loads(content)
    except ValueError:
        reply = None
    if status != 200:
        error = reply.get("error") if isinstance(reply, dict) else None
        said = error.get("message") if isinstance(error, dict) else error or content[:200].decode("utf-8", "replace")
        raise LLMError(f"the gateway refused ({status}): {said}", hopeless=status not in _THIS_QUESTION)
    try:
        choice = reply["choices"][0]
        said, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise LLMError(f"the gateway's answer is no completion: {content[:200]!r}") from None
    if not isinstance(said, str) or not said.strip():
        raise LLMError("the model answered nothing")
    if cut:
        raise LLMError("the answer was cut off at its longest; ask for a shorter one, or raise max_tokens")
    return said


def _conversation(messages: object) -> list[dict[str, str]]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not messages:
        raise ValueError("messages must be a text, or a list of objects with role and content")
    for number, message in enumerate(messages, 1):
        good = isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not good:
            raise ValueError(f"message {number} must be an object with role and content, both text")
    return [dict(message) for message in cast("Sequence[Mapping[str, str]]", messages)]
