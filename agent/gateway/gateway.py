"""What becomes of a job's request: a verdict of the judge, or a completion; and the account of it all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agent.gateway.files import Transcript, VerdictStore
from agent.gateway.judge import UNSCORED, reminded, verdict
from agent.gateway.server import Door, Response, serving
from agent.gateway.upstream import Limits, Lost, Upstream
from agent.llm import Endpoint, Message, Price, Reply
from agent.records import Usage
from agent.run.lock import job_user

TOLERATED = 0.1
"""Share of the samples that may stay without an answer before the endpoint is reported as failing."""
QUOTE = 80  # characters of an answer that was no verdict, in the report


@dataclass(frozen=True)
class Judge:
    """The role of marking answers: each request is answered by one of these verdicts, or by UNSCORED.

    Attributes:
        verdicts: The words that count, as the benchmark registry gives them.
        store: Directory of verdicts that are given already; None keeps none.
    """

    verdicts: tuple[str, ...]
    store: Path | None = None


@dataclass(frozen=True)
class Chat:
    """The role of writing data: a completion is passed through, within the limits."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway did.

    Attributes:
        asked: Requests of the job: `answered` by the endpoint, `cached` verdicts of earlier runs, and `unscored`.
        failure: What is wrong with the endpoint and what to do, in one line; None where all is well, or nearly.
        unclear: An answer that was no verdict, where there was one.
        usage: Calls, tokens and cost of it all, attempts in vain included.
    """

    asked: int
    answered: int
    cached: int
    unscored: int
    failure: str | None
    unclear: str
    usage: Usage


class _Part(msgspec.Struct):
    type: Literal["text"]
    text: str


class _Said(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class _Asked(msgspec.Struct):
    """What a job may send; every other field is passed over."""

    messages: Annotated[list[_Said], msgspec.Meta(min_length=1)]
    stream: Literal[False] | None = None
    n: Literal[1] | None = None


class _Options(msgspec.Struct, omit_defaults=True):
    """What a job may choose in the role of writing data."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: dict[str, Any] | None = None


class Gateway:
    """The way out for one job: `open` it around the job, `report` at any time.

    Args:
        price: Of the endpoint's model. A money budget needs one, unless the endpoint is local.
        transcript: JSONL file that receives all that was asked and answered, without keys.
        user: uid and gid that jobs run as.

    Raises:
        UsageError: The endpoint's URL, key or price is none that can be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        price: Price,
        role: Judge | Chat,
        *,
        transcript: Path | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        user: tuple[int, int] | None = None,
    ) -> None:
        self._role, self._limits, self._user = role, limits, user or job_user()
        judging = isinstance(role, Judge)
        self._upstream = Upstream(endpoint, price, limits, temperature=0.0 if judging else 1.0)
        self._store = VerdictStore(role.store) if isinstance(role, Judge) and role.store else None
        self._transcript = Transcript(transcript, endpoint.redact)
        self._who = "judge" if judging else "model"
        self._lock = threading.Lock()
        self._counts = {"answered": 0, "cached": 0, "unscored": 0}
        self._unclear = ""
        self._disk: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Door]:
        """Serve until the block is left, once; then nothing of it is left. MachineError if no socket can be made."""
        with serving(self._respond, self._upstream.close, self._user, self._limits.body) as door:
            yield door

    def report(self) -> Judged:
        """The account so far."""
        with self._lock:
            return Judged(
                asked=sum(self._counts.values()),
                **self._counts,
                failure=self._failure(),
                unclear=self._unclear,
                usage=self._upstream.usage,
            )

    def _failure(self) -> str | None:
        health, asked = self._upstream.health, sum(self._counts.values())
        reason = self._disk
        if health.broken:
            reason = f"the {self._who} {health.broken}"
        elif health.lost > TOLERATED * asked:
            reason = f"{health.lost} of {asked} samples got no answer: the {self._who} {health.reason}"
        return reason and " ".join(self._upstream.endpoint.redact(reason).split())

    def _respond(self, method: str, path: str, body: bytes) -> Response:
        model = self._upstream.endpoint.model
        if (method, path) == ("GET", "/v1/models"):
            return Response(200, {"object": "list", "data": [{"id": model, "object": "model", "created": 0}]})
        if (method, path) != ("POST", "/v1/chat/completions"):
            return _refusal(404, "the gateway answers POST /v1/chat/completions and GET /v1/models")
        try:
            messages = [said.message() for said in msgspec.json.decode(body, type=_Asked).messages]
            chosen = None if isinstance(self._role, Judge) else msgspec.json.decode(body, type=_Options)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _refusal(400, str(error))
        try:
            if isinstance(self._role, Judge):
                return self._completion(self._judge(self._role, messages))
            return self._chat(messages, msgspec.to_builtins(chosen))
        except Lost as lost:
            self._count("unscored")
            self._note(messages=messages, error=str(lost))
            if isinstance(self._role, Judge):
                return self._completion(UNSCORED)
            return _refusal(503, self._upstream.endpoint.redact(str(lost)))

    def _judge(self, role: Judge, messages: list[Message]) -> str:
        """One of the verdicts, or UNSCORED. Raises Lost."""
        endpoint = self._upstream.endpoint
        key = VerdictStore.key((endpoint.address, endpoint.model), messages, role.verdicts)
        if self._store and (known := self._store.get(key)) in role.verdicts:
            self._count("cached")
            self._note(messages=messages, verdict=known, cached=True)
            return known
        with self._upstream.seat() as seat:
            for ask in range(self._limits.asks):
                sent = reminded(messages, role.verdicts) if ask else messages
                reply = seat.ask(sent)
                found = verdict(reply.content, role.verdicts) if reply.finished else None
                self._note(messages=sent, reply=reply.content, verdict=found, usage=reply.usage)
                if found is not None:
                    if self._store:
                        self._write(self._store.put, key, found)
                    self._count("answered")
                    return found
                self._unclear = " ".join(reply.content.split())[:QUOTE] or "(nothing)"
        self._count("unscored")
        return UNSCORED

    def _chat(self, messages: list[Message], options: dict[str, Any]) -> Response:
        with self._upstream.seat() as seat:
            reply = seat.ask(messages, options)
        self._note(messages=messages, options=options, reply=reply.content, usage=reply.usage)
        self._count("answered")
        return self._completion(reply.content, reply)

    def _completion(self, content: str, reply: Reply | None = None) -> Response:
        """A chat completion made anew: of the endpoint's own answer, headers included, nothing else passes."""
        usage = reply.usage if reply else Usage()
        tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop" if reply is None or reply.finished else "length",
        }
        completion = {
            "id": "gateway",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._upstream.endpoint.model,
            "choices": [choice],
            "usage": {**tokens, "total_tokens": sum(tokens.values())},
        }
        return Response(200, completion)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._counts[outcome] += 1

    def _note(self, **entry: Any) -> None:
        self._write(self._transcript.write, model=self._upstream.endpoint.model, **entry)

    def _write(self, write: Callable[..., None], *arguments: str, **fields: Any) -> None:
        """A full disk takes no verdict from the job; it is reported as what it is."""
        try:
            write(*arguments, **fields)
        except OSError as error:
            self._disk = f"{error.filename or 'a file'} cannot be written: {error.strerror}: free the disk"


def _refusal(status: int, reason: str) -> Response:
    return Response(status, {"error": {"message": reason, "type": "gateway"}})
