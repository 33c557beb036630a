"""The chat model over real HTTP: every way in which an endpoint may misbehave, and what the user is told."""

from __future__ import annotations

import json
import logging
import pickle
import random
import socket
import string
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import BudgetEnded, MachineError, UsageError
from agent.llm import ChatModel, Endpoint, EndpointError, Price, Secret
from agent.llm.reply import find_object, without_thinking
from agent.money import Money
from agent.settings import Endpoint as Configured
from tests.servers.openai_server import FEATURES, ChatAnswer, ChatRequest, ChatServer

KEY = "sk-test-0123456789abcdef"
ASK = [{"role": "user", "content": "Reply with JSON."}]
SCHEMA = {"type": "object"}
GOOD = ChatAnswer('{"a": 1}')


def always(answer: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    return lambda request: answer


def in_turn(*answers: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    """One answer a request; the last one for all that follow."""
    return lambda request: answers[min(request.number, len(answers)) - 1]


class Naps(list[float]):
    """A sleep that only takes notes."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def model(url: str | None, **options: Any) -> ChatModel:
    endpoint = Endpoint(base_url=url, key=options.pop("key", Secret(KEY)), model="test-model")
    settings: dict[str, Any] = {"sleep": Naps(), "timeout": 10.0}
    return ChatModel(endpoint, **(settings | options))


def test_data_text_and_usage() -> None:
    with ChatServer(always(GOOD), key=KEY) as server:
        reply = model(server.url).complete(ASK, SCHEMA)
    assert reply.data == {"a": 1}
    assert reply.text == '{"a": 1}'
    assert reply.problem == ""
    assert (reply.usage.calls, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 100, 20)
    sent = server.requests[0].body
    assert sent["model"] == "test-model"
    assert sent["messages"] == ASK
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA


def test_plain_text_without_a_schema() -> None:
    with ChatServer(always(ChatAnswer("Just words."))) as server:
        reply = model(server.url).complete(ASK)
    assert (reply.text, reply.data, reply.problem) == ("Just words.", None, "")
    assert "response_format" not in server.requests[0].body


# Base URLs


@pytest.mark.parametrize("prefix", ["/v1", "", "/api", "/api/v1"])
@pytest.mark.parametrize("form", ["/v1", "/v1/", "", "/", "/v1/chat/completions"])
def test_base_urls_with_and_without_v1(prefix: str, form: str) -> None:
    with ChatServer(always(GOOD), prefix=prefix) as server:
        chat = model(server.root + prefix.removesuffix("/v1") + form)
        assert chat.complete(ASK, SCHEMA).data == {"a": 1}
        tried = len(server.requests)
        chat.complete(ASK, SCHEMA)
    assert tried <= 2
    assert len(server.requests) == tried + 1, "the form that works is remembered"


def test_an_unknown_path_names_the_setting() -> None:
    with (
        ChatServer(always(GOOD), prefix="/elsewhere") as server,
        pytest.raises(EndpointError, match="no chat endpoint") as caught,
    ):
        model(server.root).complete(ASK)
    assert "FT_CHAT_API_BASE" in caught.value.hint
    assert [request.path for request in server.requests] == ["/v1/chat/completions", "/chat/completions"]


def test_a_web_page_is_no_endpoint() -> None:
    page = ChatAnswer(body=b"<!doctype html><title>Hello</title>")
    with ChatServer(always(page), prefix="") as server, pytest.raises(EndpointError, match="doctype"):
        model(server.root, retries=1).complete(ASK)


@pytest.mark.parametrize("url", ["not a url", "ftp://host/v1", "http://", "http://[::1", "http://host:99999"])
def test_a_base_url_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="FT_CHAT_API_BASE"):
        model(url)


def test_a_base_url_that_is_none_is_not_shown() -> None:
    configured = Configured(model="m", base_url=f"https://user:{KEY}@[host/v1", api_key=None)
    with pytest.raises(UsageError, match="FT_CHAT_API_BASE") as caught:
        Endpoint.of(configured)
    assert KEY not in str(caught.value)


def test_an_endpoint_is_what_the_settings_say() -> None:
    endpoint = Endpoint.of(Configured(model="m", base_url="http://127.0.0.1:8000", api_key=KEY))
    assert (endpoint.model, endpoint.base_url) == ("m", "http://127.0.0.1:8000")
    assert endpoint.key is not None
    assert endpoint.key.reveal() == KEY
    assert Endpoint.of(Configured(model="m", base_url=None, api_key=None)).key is None


def test_the_address_shows_no_credentials() -> None:
    endpoint = Endpoint(base_url="http://me:hunter2@127.0.0.1:8000/v1?token=abc", model="m")
    assert endpoint.address == "http://127.0.0.1:8000/v1"


# Structured output


@pytest.mark.parametrize(
    ("supports", "formats"),
    [
        (FEATURES, ["json_schema"]),
        (FEATURES - {"json_schema"}, ["json_schema", "json_object"]),
        (FEATURES - {"json_schema", "json_object"}, ["json_schema", "json_object", "text"]),
    ],
)
def test_less_structure_where_it_is_refused(supports: frozenset[str], formats: list[str]) -> None:
    with ChatServer(always(GOOD), supports=supports) as server:
        chat = model(server.url)
        assert chat.complete(ASK, SCHEMA).data == {"a": 1}
        assert [request.format for request in server.requests] == formats
        chat.complete(ASK)
        chat.complete(ASK, SCHEMA)
    assert [request.format for request in server.requests[len(formats) :]] == ["text", formats[-1]], "remembered"


def test_422_also_means_less_structure() -> None:
    with ChatServer(in_turn(ChatAnswer(status=422, error="extra field"), GOOD)) as server:
        assert model(server.url).complete(ASK, SCHEMA).data == {"a": 1}
    assert [request.format for request in server.requests] == ["json_schema", "json_object"]


def test_no_temperature_where_it_is_refused() -> None:
    with ChatServer(always(GOOD), supports=FEATURES - {"temperature"}) as server:
        chat = model(server.url)
        chat.complete(ASK, SCHEMA)
        chat.complete(ASK, SCHEMA)
    assert ["temperature" in request.body for request in server.requests] == [True, False, False]
    assert {request.format for request in server.requests} == {"json_schema"}


def test_a_request_refused_in_every_form() -> None:
    with (
        ChatServer(always(ChatAnswer(status=400, error="no such luck"))) as server,
        pytest.raises(EndpointError, match="refuses the request: 400 no such luck"),
    ):
        model(server.url).complete(ASK, SCHEMA)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}',
        '  {"a": 1}\n',
        'Here it is:\n```json\n{"a": 1}\n```\nGood luck with {that}.',
        '```\n{"a": 1}\n```',
        'I use {braces} a lot. The answer: {"a": 1}. {"a": 2}',
        '<think>Maybe {"a": 7}? No.</think>{"a": 1}',
        'Maybe {"a": 7}? No.</think>\n{"a": 1}',
        [{"type": "text", "text": '{"a"'}, {"type": "text", "text": ": 1}"}],
    ],
)
def test_json_is_found_in_text(content: Any) -> None:
    with ChatServer(always(ChatAnswer(content))) as server:
        assert model(server.url).complete(ASK, SCHEMA).data == {"a": 1}


def test_think_tags_inside_a_reply_are_kept() -> None:
    text = '{"a": "the model ends with </think> too early <think>"}'
    assert find_object(without_thinking(text)) == {"a": "the model ends with </think> too early <think>"}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (ChatAnswer("I would raise the learning rate."), "no JSON object"),
        (ChatAnswer('{"a": {"b": 1}, "c": "wh'), "Unterminated string"),
        (ChatAnswer('{"a": {"b": 1}, "c": '), "Expecting value: line 1"),
        (ChatAnswer('{"a": 1', finish_reason="length"), "cut off at the endpoint's length limit"),
        (ChatAnswer("{'a': 1}"), "double quotes"),
        (ChatAnswer("[1, 2]"), "no JSON object"),
        (ChatAnswer('{"a": NaN}'), "not a finite number"),
        (ChatAnswer('{"a": 1e999}'), "not a finite number"),
        (ChatAnswer('{"a": "\\ud800"}'), "surrogates"),
        (ChatAnswer('{"a":' * 50_000), "recursion"),
        (ChatAnswer("{" * 100_000), "double quotes"),
        (ChatAnswer("So: " + "{" * 100_000), "double quotes"),
        (ChatAnswer('So: {"a": 1 "b": {"c": 1}}'), "Expecting ',' delimiter"),
        (ChatAnswer(f'{{"a": {"9" * 5000}}}'), "integer"),
        (ChatAnswer(""), "empty"),
        (ChatAnswer(None), "empty"),
        (ChatAnswer("<think>Let me see ..."), "empty"),
        (ChatAnswer(None, message={"refusal": "I cannot help with that."}), "refused: I cannot help"),
        (ChatAnswer(None, message={"tool_calls": []}), "empty"),
    ],
)
def test_a_reply_without_data_says_why(answer: ChatAnswer, problem: str) -> None:
    with ChatServer(always(answer)) as server:
        started = time.monotonic()
        reply = model(server.url).complete(ASK, SCHEMA)
    assert time.monotonic() - started < 5
    assert reply.data is None
    assert problem in reply.problem
    assert len(server.requests) == 1


# Trouble that passes


def test_429_waits_as_long_as_it_is_told() -> None:
    naps = Naps()
    busy = ChatAnswer(status=429, error="slow down", headers={"Retry-After": "7"})
    long = ChatAnswer(status=503, headers={"Retry-After": "86400"})
    dated = ChatAnswer(status=429, headers={"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    nonsense = ChatAnswer(status=429, headers={"Retry-After": "soon"})
    with ChatServer(in_turn(busy, long, dated, nonsense, GOOD)) as server:
        reply = model(server.url, sleep=naps).complete(ASK, SCHEMA)
    assert reply.data == {"a": 1}
    assert reply.usage.calls == 5
    assert naps[:2] == [7.0, 60.0]
    assert 25 < naps[2] <= 30
    assert 0 < naps[3] <= 16


def test_pauses_grow_and_vary() -> None:
    def pauses() -> Naps:
        naps = Naps()
        with ChatServer(always(ChatAnswer(status=500))) as server, pytest.raises(EndpointError):
            model(server.url, sleep=naps, retries=4).complete(ASK)
        return naps

    first, second = pauses(), pauses()
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(first, start=1))
    assert first != second


@pytest.mark.parametrize(
    "answer",
    [
        ChatAnswer(status=500, error="it broke"),
        ChatAnswer(drop="now"),
        ChatAnswer("x" * 10_000, drop="body"),
        ChatAnswer(body=b'{"choices": [{"mess'),
        ChatAnswer(body=b'{"choices": []}'),
        ChatAnswer(body=b'{"error": {"message": "upstream is down", "code": 502}}'),
        ChatAnswer(body=b"\xff\xfe"),
        ChatAnswer(body=b""),
        ChatAnswer(body=b"[" * 100_000),
        ChatAnswer(body=b'"' + b"x" * 5_000_000 + b'"'),
    ],
)
def test_trouble_is_retried_and_then_told(answer: ChatAnswer) -> None:
    with ChatServer(in_turn(answer, answer, GOOD)) as server:
        assert model(server.url).complete(ASK, SCHEMA).data == {"a": 1}
        assert len(server.requests) == 3
    with ChatServer(always(answer)) as server:
        with pytest.raises(MachineError, match="in 3 attempts; the last problem: ") as caught:
            model(server.url, retries=2).complete(ASK, SCHEMA)
        assert len(server.requests) == 3
    assert server.url in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match="Connection refused"):
            model(url, retries=1).complete(ASK)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with ChatServer(always(GOOD)) as server:
        assert model(server.url).complete(ASK, SCHEMA).data == {"a": 1}


# Time


@pytest.mark.parametrize("answer", [ChatAnswer(delay=60), ChatAnswer("x" * 500, drip=0.05)])
def test_silence_and_dripping_end(answer: ChatAnswer) -> None:
    with ChatServer(always(answer)) as server:
        started = time.monotonic()
        with pytest.raises(EndpointError, match=r"2 attempts; the last problem: no complete answer within 0.4 s|timed"):
            model(server.url, timeout=0.4).complete(ASK)
        assert time.monotonic() - started < 3
        assert len(server.requests) == 2


def test_a_dripping_error_ends() -> None:
    with (
        ChatServer(always(ChatAnswer(status=500, error="x" * 500, drip=0.05))) as server,
        pytest.raises(EndpointError, match="2 attempts"),
    ):
        model(server.url, timeout=0.4).complete(ASK)


def test_after_a_timeout_the_model_can_be_asked_again() -> None:
    with ChatServer(in_turn(ChatAnswer(delay=60), GOOD)) as server:
        assert model(server.url, timeout=0.4).complete(ASK, SCHEMA).data == {"a": 1}


def test_a_slow_reply_is_waited_for() -> None:
    with ChatServer(always(ChatAnswer('{"a": 1}', delay=0.7))) as server:
        assert model(server.url, timeout=10).complete(ASK, SCHEMA).data == {"a": 1}


def test_no_request_outlasts_the_budget() -> None:
    ends = time.monotonic() + 0.5
    with ChatServer(always(ChatAnswer(delay=60))) as server, pytest.raises(BudgetEnded):
        model(server.url, timeout=300, left=lambda: ends - time.monotonic()).complete(ASK)
    assert len(server.requests) == 1
    assert time.monotonic() - ends < 2


def test_no_pause_outlasts_the_budget() -> None:
    naps, left = Naps(), iter([5.0, 3.0, 0.0])
    with (
        ChatServer(always(ChatAnswer(status=429, headers={"Retry-After": "50"}))) as server,
        pytest.raises(BudgetEnded),
    ):
        model(server.url, sleep=naps, left=lambda: next(left)).complete(ASK)
    assert naps == [3.0]


# What only the user can mend


@pytest.mark.parametrize(
    ("answer", "words", "setting"),
    [
        (ChatAnswer(status=401, error="bad key"), "refuses the API key", "FT_CHAT_API_KEY"),
        (ChatAnswer(status=403, error="not yours"), "forbids the model 'test-model'", "FT_CHAT_MODEL"),
        (ChatAnswer(status=404, error="The model `x` does not exist"), "does not know the model", "FT_CHAT_MODEL"),
        (ChatAnswer(status=402, error="no credit"), "does not serve this account", "credit"),
        (ChatAnswer(status=429, error="insufficient_quota"), "does not serve this account", "credit"),
        (ChatAnswer(status=400, error="maximum context length is 4096"), "maximum context", "FT_CHAT_MODEL"),
        (ChatAnswer(status=413), "refuses the request", "FT_CHAT_MODEL"),
    ],
)
def test_what_a_retry_cannot_mend_ends_at_once(answer: ChatAnswer, words: str, setting: str) -> None:
    with ChatServer(always(answer)) as server, pytest.raises(EndpointError, match=words) as caught:
        model(server.url).complete(ASK, SCHEMA)
    assert len(server.requests) == 1
    assert setting in caught.value.hint
    assert server.url in caught.value.message


def test_a_missing_key() -> None:
    with (
        ChatServer(always(GOOD), key=KEY) as server,
        pytest.raises(EndpointError, match="wants an API key and none is set"),
    ):
        model(server.url, key=None).complete(ASK)


def test_a_key_of_the_environment_is_not_sent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(always(GOOD)) as server:
        model(server.url, key=None).complete(ASK)
    assert KEY not in json.dumps(server.requests[0].headers)


# Keys


def test_a_key_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"you sent Bearer {KEY}"
    escaped = KEY.replace("-", "\\u002d")
    answers = [
        ChatAnswer(json.dumps({"a": echo, KEY: [KEY]})),
        ChatAnswer(f'{{"a": "{escaped}"}}'),
        ChatAnswer(None, message={"refusal": echo}),
        ChatAnswer("x" * 290 + KEY),
        *(ChatAnswer(status=status, error="x" * 280 + KEY) for status in (400, 401, 403, 404, 418, 429, 500)),
        ChatAnswer(status=500, body=echo.encode()),
        ChatAnswer(status=401, body=json.dumps({"error": {"message": "no", "code": KEY}}).encode()),
    ]
    shown: list[object] = []
    for answer in answers:
        with ChatServer(always(answer)) as server:
            chat = model(server.url, retries=1)
            shown += [chat.endpoint, chat.endpoint.key, str(chat.endpoint.key)]
            try:
                shown.append(chat.complete([{"role": "user", "content": f"my key is {KEY}"}], SCHEMA))
            except EndpointError as error:
                shown += [str(error), repr(error), error.__cause__, error.__context__]
            assert KEY not in json.dumps([request.body for request in server.requests])
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY[:12] not in repr(shown)
    assert KEY[:12] not in caplog.text
    assert len(shown) > 4 * len(answers) - 1


def test_a_secret_is_neither_pickled_nor_encoded() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(KEY))
    with pytest.raises(TypeError):
        msgspec.json.encode(Endpoint(key=Secret(KEY), model="m"))


def test_a_key_with_strange_characters_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="FT_CHAT_API_KEY") as caught:
        model(None, key=Secret("sk-1234\n5678"))
    assert "1234" not in str(caught.value)


def test_a_placeholder_key_hides_no_words() -> None:
    assert Endpoint(key=Secret("none"), model="m").redact("none of them") == "none of them"


# Money


def test_cost_by_price_also_of_failed_attempts() -> None:
    failed = ChatAnswer(status=500, body=b'{"error": "late", "usage": {"prompt_tokens": 1000, "completion_tokens": 0}}')
    with ChatServer(in_turn(failed, GOOD)) as server:
        usage = model(server.url, price=Price(input=2.0, output=10.0)).complete(ASK, SCHEMA).usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (2, 1100, 20)
    assert usage.cost == pytest.approx((1100 * 2 + 20 * 10) / 1e6)


def test_an_error_carries_what_was_spent() -> None:
    failed = ChatAnswer(status=500, body=b'{"error": "late", "usage": {"prompt_tokens": 1000}}')
    with ChatServer(always(failed)) as server, pytest.raises(EndpointError) as caught:
        model(server.url, retries=1).complete(ASK)
    assert caught.value.usage.prompt_tokens == 2000


def test_this_machine_is_free_unless_priced() -> None:
    silent = ChatAnswer("hi", usage=None)
    with ChatServer(always(silent)) as server:
        assert model(server.url).complete(ASK).usage.cost == 0.0
        assert model(server.url, price=Price(input=1.0, output=1.0)).complete(ASK).usage.cost is None, "not reported"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:11434", True),
        ("http://127.8.0.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://192.168.1.20:8000", True),
        ("http://10.1.2.3", True),
        ("http://host.docker.internal:8000", True),
        ("http://8.8.8.8", False),
        ("http://127.0.0.1.example.com", False),
        ("https://api.example.com/v1", False),
        (None, False),
    ],
)
def test_who_sends_bills(url: str | None, local: bool) -> None:
    assert Endpoint(base_url=url, model="m").local is local


def test_an_unknown_price_is_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint with a public name, reached through a proxy that is our server."""
    with ChatServer(always(GOOD)) as server:
        monkeypatch.setenv("HTTP_PROXY", server.root)
        monkeypatch.setattr(server, "_prefix", "http://llm.example.com/v1")
        assert model("http://llm.example.com").complete(ASK, SCHEMA).usage.cost is None


@pytest.mark.parametrize("usage", [{"prompt_tokens": "9"}, {"prompt_tokens": -5}, {"prompt_tokens": None}, [1], "x", 7])
def test_nonsense_counts_count_nothing(usage: Any) -> None:
    with ChatServer(always(ChatAnswer("hi", usage=usage))) as server:
        assert model(server.url).complete(ASK).usage.prompt_tokens == 0


# Everything else


def malformed() -> Iterator[bytes]:
    """Bodies of completions, broken in a few hundred ways; the same ones each time."""
    chance = random.Random(7)
    whole = ChatAnswer('{"hypothesis": "h", "train": {"learning_rate": 0.001}}').encoded()
    while True:
        body = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(body))
            match chance.randrange(4):
                case 0:
                    del body[place:]
                case 1:
                    body[place] = chance.randrange(256)
                case 2:
                    body[place:place] = bytes(chance.choices(b'{}[]",:\\nulltruefalse0123456789', k=5))
                case 3:
                    body[place:place] = "".join(chance.choices(string.printable + "é€\x00", k=9)).encode()
            if not body:
                break
        yield bytes(body)


def test_malformed_bodies_never_crash() -> None:
    bodies = malformed()
    with ChatServer(lambda request: ChatAnswer(body=next(bodies))) as server:
        chat = model(server.url, retries=2)
        outcomes = set()
        while (before := len(server.requests)) < 1_000:
            try:
                reply = chat.complete(ASK, SCHEMA)
                assert (reply.data is None) == bool(reply.problem)
                outcomes.add("data" if reply.data is not None else "problem")
            except EndpointError:
                outcomes.add("error")
            assert len(server.requests) - before <= 3
    assert outcomes == {"data", "problem", "error"}


def test_requests_leave_no_threads_and_files() -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with ChatServer(always(GOOD)) as server:
        chat = model(server.url)
        chat.complete(ASK, SCHEMA)
        before = open_files()
        for _ in range(20):
            chat.complete(ASK, SCHEMA)
        assert open_files() <= before + 2


# Endpoints that know less


REASONING = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
REFUSALS: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    (REASONING, lambda body: "max_tokens" in body),
    ("Unsupported value: 'temperature' does not support 0.7 with this model.", lambda body: "temperature" in body),
    ("Unrecognized request argument supplied: reasoning_effort", lambda body: "reasoning_effort" in body),
    ("top_p: Extra inputs are not permitted", lambda body: "top_p" in body),
    ("System role not supported", lambda body: body["messages"][0]["role"] == "system"),
    ("'response_format.type' must be 'text'", lambda body: "response_format" in body),
)


def picky(request: ChatRequest) -> ChatAnswer:
    """Refuses everything that some endpoint was seen to refuse, one thing at a time."""
    for words, refused in REFUSALS:
        if refused(request.body):
            return ChatAnswer(status=400, error=words)
    return GOOD


def test_all_that_is_refused_is_left_out_and_remembered() -> None:
    asked = [{"role": "system", "content": "You are."}, {"role": "user", "content": "Say."}]
    with ChatServer(picky) as server:
        chat = model(server.url, effort="low", price=Price(input=1.0, output=1.0), money=Money(limit=1.0))
        assert chat.complete(asked, SCHEMA, {"top_p": 0.9}).data == {"a": 1}
        assert len(server.requests) <= 8
        before = len(server.requests)
        assert chat.complete(asked, SCHEMA, {"top_p": 0.9}).data == {"a": 1}
        assert len(server.requests) == before + 1, "remembered"
    last = server.requests[-1].body
    assert last["messages"] == [{"role": "user", "content": "You are.\n\nSay."}]
    assert last["max_completion_tokens"] > 0
    assert set(last) == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 16384. This model supports at most 4096 completion tokens.",
        "This model's maximum context length is 8192 tokens. However, you requested 17000 (16384 in completion).",
        "'max_tokens' or 'max_completion_tokens' is too large: 16384. The maximum context length is 8192",
    ],
)
def test_a_limit_above_the_models_own_is_left_to_the_model(words: str) -> None:
    def answer(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(status=400, error=words) if "max_tokens" in request.body else GOOD

    with ChatServer(answer) as server:
        chat = model(server.url, price=Price(input=1.0, output=1.0), money=Money(limit=1.0))
        assert chat.complete(ASK, SCHEMA).data == {"a": 1}
    assert len(server.requests) == 2


def test_a_server_that_breaks_at_a_grammar_is_asked_for_less() -> None:
    def answer(request: ChatRequest) -> ChatAnswer:
        broken = request.format == "json_schema"
        return ChatAnswer(status=500, error="failed to parse grammar of json_schema") if broken else GOOD

    with ChatServer(answer) as server:
        assert model(server.url).complete(ASK, SCHEMA).data == {"a": 1}
    assert [request.format for request in server.requests] == ["json_schema", "json_object"]


def test_a_model_that_is_still_being_loaded_is_waited_for() -> None:
    loading = ChatAnswer(status=503, error="Loading model")
    with ChatServer(in_turn(loading, loading, GOOD)) as server:
        assert model(server.url).complete(ASK, SCHEMA).data == {"a": 1}
