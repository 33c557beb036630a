"""What becomes of a job's request: a verdict of the judge, or a completion; and the account of it all."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agent.gateway.files import AnswerStore, Transcript, VerdictStore
from agent.gateway.judge import UNSCORED, reminded, verdict
from agent.gateway.server import Door, Response, serving
from agent.gateway.upstream import TOLERATED, Closed, Limits, Lost, Unfit, Unpaid, Upstream
from agent.llm import Endpoint, Message, Price
from agent.records import Usage
from agent.run.lock import job_user

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
    """The role of writing data: a completion is passed through, within the limits.

    Attributes:
        models: Name that a job asks for ("strong", "weak") -> endpoints and prices, tried in turn until one answers.
            Under any other name the gateway's own endpoint answers.
        store: Answers that are given already; None keeps none.
        replayed: Answers of a recorded study: they alone are given, and no endpoint is asked.
    """

    models: Mapping[str, Sequence[tuple[Endpoint, Price]]] = field(default_factory=dict)
    store: AnswerStore | None = None
    replayed: AnswerStore | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway did.

    Attributes:
        asked: Requests of the job: `answered` by the endpoint, `cached` from earlier runs, and `unscored`.
        pending: Requests that were still waiting when the job ended; they are no finding about anybody.
        waited: Seconds during which at least one request was waiting.
        failure: What is wrong with the endpoint and what to do, in one line; None where all is well, or nearly.
        unclear: An answer that was no verdict, where there was one.
        usage: Calls, tokens and cost of it all, attempts in vain included.
        unpaid: Why the study's money did not reach for a request; None where it always did.
    """

    asked: int
    answered: int
    cached: int
    unscored: int
    pending: int
    waited: float
    failure: str | None
    unclear: str
    usage: Usage
    unpaid: str | None = None


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
    model: str = ""
    stream: Literal[False] | None = None
    n: Literal[1] | None = None


_Tokens = Annotated[int, msgspec.Meta(ge=1)]  # to some servers, -1 or 0 is no limit at all


class _Options(msgspec.Struct, omit_defaults=True):
    """What a job may choose in the role of writing data."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
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
        self._upstreams: dict[tuple[str, str], Upstream] = {}
        self._upstream = self._behind(endpoint, price)
        models = {} if isinstance(role, Judge) else role.models
        self._named = {name: [self._behind(*one) for one in several] for name, several in models.items()}
        self._asked: defaultdict[str, set[int]] = defaultdict(set)  # numbers of a job's equal questions
        self._store = VerdictStore(role.store) if isinstance(role, Judge) and role.store else None
        self._transcript = Transcript(transcript, self._redact)
        self._who = "judge" if judging else "model"
        self._lock = threading.Lock()
        self._counts = {"answered": 0, "cached": 0, "unscored": 0}
        self._pending = self._received = self._open = 0
        self._waited = self._since = 0.0
        self._most: int | None = None
        self._unclear = ""
        self._disk: str | None = None

    def _behind(self, endpoint: Endpoint, price: Price) -> Upstream:
        """The one upstream of a model, under whatever names it is asked."""
        known, judging = (endpoint.address, endpoint.model), isinstance(self._role, Judge)
        if known not in self._upstreams:
            warmth = 0.0 if judging else 1.0
            self._upstreams[known] = Upstream(endpoint, price, self._limits, warmth, various=not judging)
        return self._upstreams[known]

    def _redact(self, text: str) -> str:
        for upstream in self._upstreams.values():
            text = upstream.endpoint.redact(text)
        return text

    def _close(self) -> None:
        for upstream in self._upstreams.values():
            upstream.close()

    @contextlib.contextmanager
    def open(self, samples: int | None = None) -> Iterator[Door]:
        """Serve until the block is left, once; then nothing of it is left. MachineError if no socket can be made.

        Args:
            samples: That the job has to ask for, each `Limits.asks` times at most; what goes beyond is refused. None
                for any number.
        """
        self._most = samples * self._limits.asks if samples is not None else None
        with serving(self._respond, self._close, self._user, self._limits.body) as door:
            yield door

    def report(self) -> Judged:
        """The account so far."""
        with self._lock:
            return Judged(
                asked=sum(self._counts.values()),
                **self._counts,
                pending=self._pending,
                waited=self._waited + (time.monotonic() - self._since if self._open else 0.0),
                failure=self._failure(),
                unclear=self._unclear,
                usage=sum((upstream.usage for upstream in self._upstreams.values()), Usage()),
                unpaid=next(filter(None, (one.health.unpaid for one in self._upstreams.values())), None),
            )

    def _failure(self) -> str | None:
        health, asked = self._upstream.health, sum(self._counts.values())
        standing = list(self._named.values()) or [[self._upstream]]
        broken = [several[-1] for several in standing if all(one.health.broken for one in several)]
        reason = self._disk
        if broken:
            reason = f"the {self._who} {broken[0].health.broken}"
        elif isinstance(self._role, Judge) and health.lost > TOLERATED * asked:
            reason = f"{health.lost} of {asked} samples got no answer: the {self._who} {health.reason}"
        elif self._most is not None and self._received > self._most:
            reason = f"the job asked the {self._who} {self._received} times, and {self._most} are enough for it"
        return reason and " ".join(self._redact(reason).split())

    def _respond(self, method: str, path: str, body: bytes) -> Response:
        model = self._upstream.endpoint.model
        if (method, path) == ("GET", "/v1/models"):
            listed = [{"id": name, "object": "model", "created": 0} for name in self._named or (model,)]
            return Response(200, {"object": "list", "data": listed})
        if (method, path) != ("POST", "/v1/chat/completions"):
            return _refusal(404, "the gateway answers POST /v1/chat/completions and GET /v1/models")
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            messages = [said.message() for said in asked.messages]
            chosen = None if isinstance(self._role, Judge) else msgspec.json.decode(body, type=_Options)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _refusal(400, str(error))
        with self._waiting() as refused:
            if refused:
                return _refusal(429, "the job asks more often than it has samples")
            return self._answer(messages, chosen, asked.model)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[bool]:
        """A request of the job, while it is under way; whether it is one too many."""
        with self._lock:
            self._received += 1
            if not self._open:
                self._since = time.monotonic()
            self._open += 1
            refused = self._most is not None and self._received > self._most
        try:
            yield refused
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._waited += time.monotonic() - self._since

    def _answer(self, messages: list[Message], chosen: _Options | None, name: str) -> Response:
        try:
            if isinstance(self._role, Judge):
                return self._completion(self._judge(self._role, messages))
            return self._chat(self._role, messages, msgspec.to_builtins(chosen), name)
        except Lost as lost:
            if isinstance(lost, Closed):
                with self._lock:
                    self._pending += 1
            else:
                self._count("unscored")
            self._note(messages=messages, error=str(lost))
            if isinstance(self._role, Judge):
                return self._completion(UNSCORED)
            return _refusal(lost.status, self._redact(str(lost)))

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

    def _chat(self, role: Chat, messages: list[Message], options: dict[str, Any], name: str) -> Response:
        """An answer of the first model under that name that gives one; what was answered before is not asked again."""
        several = self._named.get(name, [self._upstream])
        whose = [
            (one, AnswerStore.key((one.endpoint.address, one.endpoint.model), messages, options)) for one in several
        ]
        by_name = AnswerStore.key((name,), messages, options)
        with self._numbered(by_name) as nth, self._numbered(whose[0][1]) as number:
            asked = by_name, nth
            if role.replayed:
                return self._recorded(role.replayed.get(*asked))
            for upstream, key in whose:
                if role.store and (kept := role.store.get(key, number)) is not None:
                    if role.store.get(*asked) is None:  # under this name it is new
                        self._write(role.store.put, key, number, kept[0], finished=kept[1], asked=asked)
                    self._count("cached")
                    self._note(upstream, messages=messages, options=options, reply=kept[0], cached=True)
                    return self._completion(kept[0], upstream, finished=kept[1])
            for upstream, key in whose:
                try:
                    with upstream.seat() as seat:
                        reply = seat.ask(messages, options)
                except Lost as lost:
                    if upstream is several[-1] or isinstance(lost, Closed | Unpaid):
                        raise
                    self._note(upstream, messages=messages, error=str(lost))
                    continue
                self._note(upstream, messages=messages, options=options, reply=reply.content, usage=reply.usage)
                if role.store and reply.content.strip():
                    self._write(role.store.put, key, number, reply.content, finished=reply.finished, asked=asked)
                self._count("answered")
                return self._completion(reply.content, upstream, reply.usage, finished=reply.finished)
        raise AssertionError("the last one raises")

    def _recorded(self, kept: tuple[str, bool] | None) -> Response:
        """An answer of a recorded study. Raises Lost."""
        if kept is None:
            raise Unfit("the recorded study holds no answer to this")
        self._count("cached")
        return self._completion(kept[0], finished=kept[1])

    @contextlib.contextmanager
    def _numbered(self, key: str) -> Iterator[int]:
        """Which of a job's equal questions this is, from 1 on; one without an answer does not count."""
        with self._lock:
            number = next(number for number in itertools.count(1) if number not in self._asked[key])
            self._asked[key].add(number)
        try:
            yield number
        except Lost:
            with self._lock:
                self._asked[key].discard(number)
            raise

    def _completion(
        self,
        content: str,
        upstream: Upstream | None = None,
        usage: Usage = Usage(),  # noqa: B008 - frozen
        *,
        finished: bool = True,
    ) -> Response:
        """A chat completion made anew: of the endpoint's own answer, headers included, nothing else passes."""
        tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop" if finished else "length",
        }
        completion = {
            "id": "gateway",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": (upstream or self._upstream).endpoint.model,
            "choices": [choice],
            "usage": {**tokens, "total_tokens": sum(tokens.values())},
        }
        return Response(200, completion)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._counts[outcome] += 1

    def _note(self, upstream: Upstream | None = None, **entry: Any) -> None:
        self._write(self._transcript.write, model=(upstream or self._upstream).endpoint.model, **entry)

    def _write(self, write: Callable[..., None], *arguments: Any, **fields: Any) -> None:
        """A full disk takes no verdict and no answer from the job; it is reported as what it is."""
        try:
            write(*arguments, **fields)
        except OSError as error:
            self._disk = f"{error.filename or 'a file'} cannot be written: {error.strerror}: free the disk"


def _refusal(status: int, reason: str) -> Response:
    return Response(status, {"error": {"message": reason, "type": "gateway"}})
