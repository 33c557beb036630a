"""A chat model behind any OpenAI-compatible endpoint: bounded in time, retries and size; tokens and cost counted.

the endpoint ...                            then ...
answers 429 or 5xx, or drops the line       it is asked again after a pause (Retry-After is honoured, up to a minute)
is silent, or its reply never ends          it is cut off after `timeout` seconds and asked once more
refuses the key, the model or the URL       EndpointError at once, which says what to set
refuses a field of the request, or tools    it is asked without that, now and from then on
has a smaller context than the prompt       ContextOverflow: a shorter prompt may do
writes prose, cut-off JSON or a refusal     the Reply has no data; its `problem` says why
"""

from __future__ import annotations

import contextlib
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import msgspec

from agent.errors import BudgetEnded, UsageError
from agent.llm.endpoint import ContextOverflow, Endpoint, EndpointError, Price, charge
from agent.llm.form import LIMITS, Form, Message, overflows, share_that_fits
from agent.llm.reply import Reply, find_object, first_line, plain_text, tool_calls, without_thinking
from agent.money import Money
from agent.records import Usage

if TYPE_CHECKING:
    from openai import OpenAI

MAX_BODY = 4_000_000  # bytes of one answer; a proposal needs a few thousand
MAX_QUOTE = 300  # characters of what an endpoint says, in an error
MAX_PAUSE = 60.0  # seconds, whatever Retry-After asks for
MAX_OUTPUT = 16_384  # tokens of one reply, where money is limited
CHARACTERS = 2  # bytes of a prompt that make a token, at least; for its cost before it is sent

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what msgspec raises on any bytes


class _Answer(msgspec.Struct, frozen=True):
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Lost(msgspec.Struct, frozen=True):
    """No HTTP response."""

    reason: str
    timed_out: bool = False


class _Again(msgspec.Struct, frozen=True):
    """The same request may succeed later."""

    reason: str
    after: float | None = None  # seconds that the endpoint asked for
    timed_out: bool = False


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class ChatModel:
    """One model at one endpoint, asked one thing at a time.

    Args:
        timeout: Seconds for one request, from the first byte sent to the last byte read.
        retries: Further attempts after 429, 5xx or a lost connection.
        effort: How much a reasoning model thinks ("low", "high"); None leaves it to the endpoint.
        money: What may be spent; what a request may cost at worst is reserved before it is sent.
        left: Seconds of the call's budget; no request and no pause outlasts it (None: no limit).
        say: Told why and when a request is tried again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        price: Price = Price(),  # noqa: B008 - frozen
        timeout: float = 300.0,
        retries: int = 5,
        sleep: Callable[[float], None] = time.sleep,
        *,
        temperature: float = 0.7,
        effort: str | None = None,
        money: Money | None = None,
        left: Callable[[], float | None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        if endpoint.key and not (endpoint.key.reveal().isascii() and endpoint.key.reveal().isprintable()):
            raise UsageError(f"{endpoint.settings}_API_KEY holds characters that no key has", "copy the key again")
        self.endpoint = endpoint
        self._price = price
        self._timeout = timeout
        self._retries = retries
        self._sleep = sleep
        self._options = {"temperature": temperature} | ({"reasoning_effort": effort} if effort else {})
        self._money = money or Money()
        self._left = left
        self._say = say
        self._form = Form(endpoint.urls())
        self._clients: dict[str, OpenAI] = {}
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()  # of the request under way
        self._abandoned = False

    def complete(
        self,
        messages: Sequence[Message],
        schema: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] = (),
        role: str = "",
    ) -> Reply:
        """Ask once; with `schema`, the reply's data is a JSON object (which the caller still has to validate).

        `options` are further fields of the request, as `max_tokens`. Where the endpoint knows `tools`, the reply may
        ask for some of them (`Reply.calls`) in place of an answer. `role` is for a replay in this one's place.

        Raises: EndpointError where the endpoint cannot be used, ContextOverflow where the prompt is too long for it;
            BudgetEnded where the call's time is over or the study's money spent. These, and KeyboardInterrupt too,
            carry in `usage` what all attempts consumed.
        """
        form = self._form if schema else msgspec.structs.replace(self._form, modes=("text",))
        said = [self.endpoint.redacted(message) for message in messages]
        asked = self._options | self._bounded(options or {})
        usage, failures, timeouts = Usage(), 0, 0
        try:
            while True:
                request = form.request(self.endpoint.model, said, schema, asked, tools)
                answer, used = self._paid(form, request, asked)
                usage += used
                match self._judge(answer, form, request, wants_data=schema is not None):
                    case Reply() as reply:
                        self._form = form if schema else msgspec.structs.replace(form, modes=self._form.modes)
                        return msgspec.structs.replace(reply, usage=usage, prompt_tokens=used.prompt_tokens)
                    case Form() as form:
                        continue
                    case EndpointError() as refusal:
                        raise refusal
                    case _Again() as again:
                        failures, timeouts = failures + 1, timeouts + again.timed_out
                        if failures > self._retries or timeouts > 1:
                            raise self._gave_up(failures, again.reason)
                        self._pause(failures, again)
        except BaseException as error:
            charge(error, usage)
            raise

    def abandon(self) -> None:
        """End the request under way, from another thread, and send no more: `complete` raises BudgetEnded."""
        self._abandoned = True
        self._done.set()

    def _send(self, form: Form, request: dict[str, Any]) -> _Answer | _Lost:
        """One HTTP request, in a thread of its own: no socket timeout ends a reply that drips in byte by byte."""
        done = self._done = threading.Event()
        left = self._left()
        if self._abandoned or (left is not None and left <= 0):
            raise BudgetEnded("the call's time is over")
        seconds = self._timeout if left is None else min(self._timeout, left)
        client = self._client(form.urls[0])
        results: list[_Answer | _Lost | Exception] = []

        def exchange() -> None:
            results.append(_exchange(client, request, seconds))
            done.set()

        threading.Thread(target=exchange, daemon=True, name="llm").start()
        try:
            done.wait(seconds)
        finally:
            result = results[0] if results else None
            if result is None:
                self._hang_up(form.urls[0])
        if isinstance(result, Exception):
            raise result
        return result or _Lost(f"no complete answer within {seconds:.4g} s", timed_out=True)

    def _hang_up(self, url: str) -> None:
        """Wake the thread that waits for the endpoint, which closing its connection alone does not."""
        for open_socket in self._sockets:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()
        self._clients.pop(url).close()

    def _client(self, url: str) -> OpenAI:
        if url not in self._clients:
            import openai

            # A proxy for the world outside must not stand before this machine's own servers.
            http = openai.DefaultHttpxClient(
                trust_env=not self.endpoint.local, event_hooks={"request": [self._note_sockets]}
            )
            key = self.endpoint.key.reveal() if self.endpoint.key else "none"
            self._clients[url] = openai.OpenAI(api_key=key, base_url=url, max_retries=0, http_client=http)
        return self._clients[url]

    def _note_sockets(self, request: Any) -> None:
        """Have the transport tell which sockets it opens for this request (its `trace` extension)."""

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                self._sockets.append(info["return_value"].get_extra_info("socket"))

        request.extensions["trace"] = trace

    def _bounded(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, with a longest reply where its cost is limited: as asked, but no longer than `MAX_OUTPUT`."""
        if self._money.limit is None or not self._price.output:
            return dict(options)
        limits = {name: min(options[name], MAX_OUTPUT) for name in LIMITS if options.get(name)}
        return {**options, **(limits or {"max_tokens": MAX_OUTPUT})}

    def _paid(self, form: Form, request: dict[str, Any], asked: Mapping[str, Any]) -> tuple[_Answer | _Lost, Usage]:
        """One HTTP request, whose highest cost is reserved before it is sent, and what it consumed."""
        written = max(asked.get("max_tokens") or 0, asked.get("max_completion_tokens") or 0)
        prompt = len(msgspec.json.encode(request)) / CHARACTERS
        most = (prompt * (self._price.input or 0.0) + written * (self._price.output or 0.0)) / 1e6
        self._money.reserve(most)
        cost: float | None = most  # of a request that was broken off
        try:
            answer = self._send(form, request)
            used = self._consumed(answer)
            unknown = used.cost is None or (isinstance(answer, _Lost) and answer.timed_out)
            if self._money.limit is not None and unknown:
                used = msgspec.structs.replace(used, cost=most)
            cost = used.cost
            return answer, used
        except BudgetEnded:  # nothing was sent
            cost = 0.0
            raise
        finally:
            self._money.spend(cost or 0.0, reserved=most)

    def _consumed(self, answer: _Answer | _Lost) -> Usage:
        """Tokens and cost of one attempt, as far as the endpoint reports them."""
        counts = _json_object(answer.body).get("usage") if isinstance(answer, _Answer) else None
        given, written = _count(counts, "prompt_tokens"), _count(counts, "completion_tokens")
        price, cost = self._price, None
        if price.input is not None and price.output is not None and isinstance(counts, dict):
            cost = (given * price.input + written * price.output) / 1e6
        elif isinstance(answer, _Lost) or answer.status != 200 or (self.endpoint.local and price == Price()):
            cost = 0.0
        return Usage(calls=1, prompt_tokens=given, completion_tokens=written, cost=cost)

    def _judge(
        self, answer: _Answer | _Lost, form: Form, request: Mapping[str, Any], *, wants_data: bool
    ) -> Reply | Form | _Again | EndpointError:
        """What an answer means: a reply, another way to ask, another time to ask, or the end."""
        if isinstance(answer, _Lost):
            return _Again(self.endpoint.redact(answer.reason), timed_out=answer.timed_out)
        said = self.endpoint.redact(_error_text(answer.body))[:MAX_QUOTE]
        if answer.status != 200 and (easier := form.easier(request, answer.status, said)):
            return easier
        misplaced = answer.status in (404, 405) and "model" not in said.lower()
        web_page = answer.status == 200 and answer.body.lstrip().startswith(b"<")
        if (misplaced or web_page) and len(form.urls) > 1:
            return msgspec.structs.replace(form, urls=form.urls[1:], page=said if web_page else "")
        if answer.status == 200:
            return self._reply(answer.body, wants_data, tools="tools" in request) or _Again(
                f"an unreadable answer: {said}"
            )
        if overflows(answer.status, said):
            return self._too_long(answer.status, said)
        passing = answer.status in (408, 409, 425, 429) or answer.status >= 500
        if passing and "insufficient_quota" not in said:
            return _Again(f"{answer.status} {said}", after=_retry_after(answer.headers))
        refusal = self._refusal(answer.status, said, misplaced=misplaced, page=form.page)
        refusal.status = answer.status
        return refusal

    def _reply(self, body: bytes, wants_data: bool, *, tools: bool) -> Reply | None:
        """The reply in a chat completion; None if it is none."""
        try:
            choice = msgspec.json.decode(body, type=_Completion).choices[0]
        except (*_UNREADABLE, IndexError):
            return None
        content = self.endpoint.redact(plain_text(choice.message.content))
        text = without_thinking(content)
        if tools and (calls := tool_calls(self.endpoint.redacted(choice.message.tool_calls))):
            return Reply(text=text, data=None, usage=Usage(), calls=calls)
        if not wants_data:
            finished = choice.finish_reason != "length"
            return Reply(text=text, data=None, usage=Usage(), content=content, finished=finished)
        problem = ""
        try:
            return Reply(text=text, data=self.endpoint.redacted(find_object(text)), usage=Usage())
        except ValueError as error:
            problem = str(error)
        if refusal := choice.message.refusal:
            problem = f"the model refused: {self.endpoint.redact(refusal)[:MAX_QUOTE]}"
        elif choice.finish_reason == "length":
            problem += " (the reply was cut off at the endpoint's length limit)"
        return Reply(text=text, data=None, usage=Usage(), problem=problem)

    def _too_long(self, status: int, said: str) -> ContextOverflow:
        prefix = self.endpoint.settings
        error = ContextOverflow(
            f"the prompt is too long for {self.endpoint.model!r} at {self.endpoint.address}: {status} {said}",
            f"set {prefix}_MODEL to a model with a longer context, or FT_CONTEXT_TOKENS to less",
        )
        error.status, error.fits = status, share_that_fits(said)
        return error

    def _refusal(self, status: int, said: str, *, misplaced: bool, page: str) -> EndpointError:
        where, prefix = self.endpoint.address, self.endpoint.settings
        if misplaced:
            hint = f"set {prefix}_API_BASE to the endpoint's base URL, as in https://host/v1"
            found = f"a web page, {page}" if page else f"{status} with and without /v1: {said}"
            return EndpointError(f"{where} is no chat endpoint: {found}", hint)
        if status == 404:
            hint = f"set {prefix}_MODEL to a model that it serves, or {prefix}_API_BASE to the endpoint that does"
            return EndpointError(f"{where} does not know the model {self.endpoint.model!r}: {said}", hint)
        if status == 401:
            how = "refuses the API key" if self.endpoint.key else "wants an API key and none is set"
            return EndpointError(f"{where} {how}: 401 {said}", f"set {prefix}_API_KEY to a key of this endpoint")
        if status == 403:
            hint = f"set {prefix}_API_KEY to a key that may use it, or {prefix}_MODEL to another model"
            return EndpointError(f"{where} forbids the model {self.endpoint.model!r}: 403 {said}", hint)
        if status in (402, 429):
            hint = f"check the account's credit, or set {prefix}_API_KEY and {prefix}_API_BASE to another one"
            return EndpointError(f"{where} does not serve this account: {status} {said}", hint)
        hint = f"check that {prefix}_MODEL={self.endpoint.model} is a chat model with enough context"
        return EndpointError(f"{where} refuses the request: {status} {said}", hint)

    def _gave_up(self, attempts: int, reason: str) -> EndpointError:
        return EndpointError(
            f"{self.endpoint.address} gave no usable answer in {attempts} attempt{'' if attempts == 1 else 's'}; "
            f"the last problem: {reason}",
            f"check that it is up and that {self.endpoint.settings}_API_BASE is right, then run the same command again",
        )

    def _pause(self, failures: int, again: _Again) -> None:
        """Exponential back-off with jitter, or what the endpoint asked for; never more than a minute."""
        jitter = secrets.SystemRandom().uniform(0.5, 1.0)
        seconds = min(again.after if again.after is not None else jitter * 2.0 ** min(failures, 10), MAX_PAUSE)
        left = self._left()
        self._say(self.endpoint.redact(f"{self.endpoint.address}: {again.reason}; trying again in {seconds:.0f} s"))
        self._sleep(seconds if left is None else max(0.0, min(seconds, left)))


def _exchange(client: OpenAI, request: dict[str, Any], seconds: float) -> _Answer | _Lost | Exception:
    """Send and read to the end; exceptions are returned, because this runs in a thread."""
    import openai

    create: Any = client.chat.completions.with_streaming_response.create
    try:
        with create(**request, timeout=seconds) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY:
                    return _Lost(f"the answer is longer than {MAX_BODY:,} bytes")
            return _Answer(response.status_code, dict(response.headers), bytes(body))
    except openai.APIStatusError as error:
        return _Answer(error.status_code, dict(error.response.headers), error.response.content[:MAX_BODY])
    except openai.APIConnectionError as error:
        return _Lost(first_line(error.__cause__ or error), isinstance(error, openai.APITimeoutError))
    except Exception as error:
        # The transport's own exceptions, while the body is read; anything else is a defect and raised by the caller.
        transport = type(error).__module__.partition(".")[0] in ("httpx2", "httpcore2", "h11")
        return _Lost(first_line(error)) if transport or isinstance(error, OSError) else error


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3)."""
    value = {name.lower(): text for name, text in headers.items()}.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(body)
    except _UNREADABLE:
        return {}
    return data if isinstance(data, dict) else {}


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _error_text(body: bytes) -> str:
    """What an error body says, in one line, whichever of the usual shapes it has."""
    data = _json_object(body)
    error = data.get("error") or data.get("message") or data.get("detail") or body.decode("utf-8", "replace")
    if isinstance(error, dict):
        error = " ".join(str(error[key]) for key in ("message", "code") if error.get(key)) or error
    return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
