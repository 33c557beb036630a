"""The gateway over its real socket, with a judge behind it that fails in every way there is."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import runpy
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from agent.errors import MachineError, UsageError
from agent.gateway import UNSCORED, AnswerStore, Chat, Door, Gateway, Judge, Judged, Limits
from agent.gateway import server as http_server
from agent.gateway.files import Transcript, VerdictStore
from agent.gateway.judge import verdict
from agent.llm import Endpoint, Price, Secret
from agent.money import Money
from agent.resources import resource
from agent.run import Mount
from tests.conformance.conftest import image
from tests.conformance.runners import make_runner, python_job
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer

__all__ = ["image"]

forwarding: Callable[[str], AbstractContextManager[str]] = runpy.run_path(str(resource("docker/bench/forward.py")))[
    "forwarding"
]

KEY = "sk-judge-0123456789abcdef"
QUICK = Limits(call=0.5, patience=4.0, retries=1, failures=2)
JUDGE = Judge(("A", "B"))


def always(answer: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    return lambda request: answer


def in_turn(*answers: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    return lambda request: answers[min(request.number, len(answers)) - 1]


def endpoint(url: str) -> Endpoint:
    return Endpoint(model="judge-1", base_url=url, key=Secret(KEY), settings="FT_JUDGE")


def question(number: int) -> str:
    return f"Question {number}: is 4 the answer?"


@contextmanager
def at_work(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """The client of a job, through the forwarder, as in a container."""
    with (
        gateway.open() as door,
        forwarding(str(door.socket)) as url,
        openai.OpenAI(base_url=url, api_key="the job has none", timeout=30, max_retries=0) as client,
    ):
        yield client


def ask(client: openai.OpenAI, text: str, **options: Any) -> str | None:
    messages: Any = [{"role": "user", "content": text}]
    content: str | None = (
        client.chat.completions.create(model="any", messages=messages, **options).choices[0].message.content
    )
    return content


def judged(gateway: Gateway, samples: int = 1) -> tuple[list[str | None], Judged]:
    """The verdicts of so many samples, asked one after another."""
    with at_work(gateway) as client:
        verdicts = [ask(client, question(number)) for number in range(samples)]
    return verdicts, gateway.report()


def raw(door: Door, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    """One request as a job could write it by hand: (status, content, headers)."""
    connection = http.client.HTTPConnection("gateway")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(door.socket))
    with connection.sock:
        with contextlib.suppress(BrokenPipeError):  # a body that is refused unread; the answer is there all the same
            connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.headers)


@dataclass(frozen=True)
class Row:
    """One way in which a judge behaves.

    `says`: the verdict of each sample. `failure`: what the report names; "" where nothing is wrong with the endpoint.
    `unclear`: quoted where the answer was no verdict. `within`: seconds. `calls`: requests that the judge received.
    """

    name: str
    answer: Callable[[ChatRequest], ChatAnswer] | None
    says: tuple[str, ...] = (UNSCORED,) * 3
    failure: tuple[str, ...] = ()
    unclear: str = ""
    within: float = 3.0
    calls: int | None = None
    limits: Limits = field(default=QUICK)


def every_second_fails(request: ChatRequest) -> ChatAnswer:
    number = int(request.text.split()[1].rstrip(":"))
    return ChatAnswer(status=500, error="overloaded") if number % 2 else ChatAnswer("A")


ONE_TRY = Limits(call=0.5, patience=3.0, retries=0, failures=2)
WAITS = ChatAnswer(status=429, error="slow down", headers={"Retry-After": "0.2"})
ROWS = (
    Row("a good verdict", always(ChatAnswer(" A\n")), ("A",) * 3, calls=3),
    Row("401", always(ChatAnswer(status=401, error=f"bad key {KEY}")), failure=("the judge http://127.0.0.1:",
        "refuses the API key: 401", "set FT_JUDGE_API_KEY"), calls=1, within=1),
    Row("403", always(ChatAnswer(status=403, error="no")), failure=("forbids", "FT_JUDGE_MODEL"), calls=1, within=1),
    Row("404 model", always(ChatAnswer(status=404, error="model judge-1 does not exist")),
        failure=("does not know the model 'judge-1'", "FT_JUDGE_MODEL"), calls=1, within=1),
    Row("no credit", always(ChatAnswer(status=429, error="insufficient_quota")), failure=("credit",), calls=1),
    Row("429", always(ChatAnswer(status=429, error="slow down")), failure=("429 slow down",), calls=4, within=5),
    Row("429, then it answers", in_turn(WAITS, ChatAnswer("B")), ("B",) * 3, calls=4),
    Row("429, come back in an hour", always(ChatAnswer(status=429, headers={"Retry-After": "3600"})),
        failure=("no usable answer in 1 s", "FT_JUDGE_API_BASE"), within=4,
        limits=Limits(call=0.5, patience=1.0, retries=1, failures=2)),
    Row("500", always(ChatAnswer(status=500, error="oops")), failure=("500 oops", "2 attempts"), calls=4, within=5),
    Row("refused", None, failure=("refused", "FT_JUDGE_API_BASE"), within=5),
    Row("hang", always(ChatAnswer("A", delay=30)), failure=("no usable answer in 2 attempts",), calls=4, within=8),
    Row("drips", always(ChatAnswer("A", drip=0.1)), failure=("no complete answer within 0.5 s",), calls=4, within=8),
    Row("drops the line", always(ChatAnswer("A", drop="body")), failure=("no usable answer",), limits=ONE_TRY),
    Row("bad JSON", always(ChatAnswer(body=b'{"choices": [{"mess')), failure=("unreadable",), within=2, limits=ONE_TRY),
    Row("HTML", always(ChatAnswer(body=b"<html>Sign in</html>")), failure=("no chat endpoint", "FT_JUDGE_API_BASE"),
        within=2, limits=ONE_TRY),
    Row("no choices", always(ChatAnswer(body=b'{"choices": []}')), failure=("unreadable",), limits=ONE_TRY),
    Row("empty", always(ChatAnswer("")), unclear="(nothing)", calls=9),
    Row("no content", always(ChatAnswer(None)), unclear="(nothing)", calls=9),
    Row("CORRECT", always(ChatAnswer("CORRECT")), unclear="CORRECT", calls=9),
    Row("prose with a verdict", always(ChatAnswer("After review, the prediction is wrong. B")), calls=9,
        unclear="After review, the prediction is wrong. B"),
    Row("lower case", always(ChatAnswer("a")), unclear="a"),
    Row("cut off", always(ChatAnswer("A", finish_reason="length")), unclear="A"),
    Row("prose at first", in_turn(ChatAnswer("It is B."), ChatAnswer("B")), ("B",) * 3, calls=4, unclear="It is B."),
    Row("thoughts", always(ChatAnswer("<think>A</think>B")), ("B",) * 3, calls=3),
    Row("thoughts without an opening", always(ChatAnswer("A? No.</think>\n\nB")), ("B",) * 3),
    Row("thoughts without an end", always(ChatAnswer("<think>A")), unclear="<think>A"),
    Row("thoughts beside the content", always(ChatAnswer("B", message={"reasoning_content": "A"})), ("B",) * 3),
    Row("thoughts and no content", always(ChatAnswer("", message={"reasoning_content": "A"})), unclear="(nothing)"),
    Row("every second sample fails", every_second_fails, ("A", UNSCORED) * 3, failure=("3 of 6 samples got no answer",
        "500 overloaded"), limits=ONE_TRY),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_judge_that_fails_is_named_in_time_and_never_scores(row: Row, tmp_path: Path) -> None:
    transcript = tmp_path / "transcript.jsonl"
    with ChatServer(row.answer or always(ChatAnswer("A"))) as server:
        url = server.url if row.answer else f"http://127.0.0.1:{free_port()}/v1"
        gateway = Gateway(endpoint(url), Price(), JUDGE, transcript=transcript, limits=row.limits)
        started = time.monotonic()
        verdicts, report = judged(gateway, len(row.says))
        assert time.monotonic() - started < row.within
        assert row.calls is None or len(server.requests) == row.calls
    assert tuple(verdicts) == row.says
    scored = sum(said != UNSCORED for said in row.says)
    assert (report.asked, report.answered, report.unscored) == (len(row.says), scored, len(row.says) - scored)
    assert report.unclear == row.unclear
    assert bool(report.failure) == bool(row.failure), report.failure
    assert all(part in str(report.failure) for part in row.failure), report.failure
    assert "\n" not in str(report.failure)
    assert KEY not in transcript.read_text() + repr(report) + repr(verdicts)
    assert len(transcript.read_text().splitlines()) >= len(row.says)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("A", "A"),
        (" B \n", "B"),
        ("<thinking>B</thinking> A", "A"),
        ("B or A?</think>A", "A"),
        ("<think>x</think>B</think>A", None),
        ("B <think>or</think> A", None),
        ("After review <think>hm</think>A", None),
        ("<think>A</think>", None),
        ("A</think>", None),
        ("AB", None),
        ("A.", None),
        ("**A**", None),
        ("", None),
    ],
)
def test_a_verdict_is_exactly_one_of_the_words(said: str, counts: str | None) -> None:
    assert verdict(said, ("A", "B")) == counts


def test_the_judge_is_reminded_after_an_answer_that_is_no_verdict() -> None:
    with ChatServer(in_turn(ChatAnswer("CORRECT"), ChatAnswer("A"))) as server:
        assert judged(Gateway(endpoint(server.url), Price(), JUDGE))[0] == ["A"]
    first, second = (request.messages for request in server.requests)
    assert first == [{"role": "user", "content": question(0)}]
    assert len(second) == 1
    assert second[0]["content"].startswith(question(0))
    assert second[0]["content"].endswith("exactly one of these and nothing else: A or B")


def test_a_second_run_judges_only_what_is_missing(tmp_path: Path) -> None:
    judge = Judge(("A", "B"), tmp_path / "store")
    with ChatServer(every_second_fails) as server:
        judged(Gateway(endpoint(server.url), Price(), judge, limits=ONE_TRY), 4)
        assert len(server.requests) == 4
        with (tmp_path / "store/verdicts.jsonl").open("a") as file:
            file.write('{"key": "torn')
        verdicts, report = judged(Gateway(endpoint(server.url), Price(), judge, limits=ONE_TRY), 4)
        assert len(server.requests) == 6
        assert verdicts == ["A", UNSCORED] * 2
        assert (report.cached, report.answered, report.unscored) == (2, 0, 2)
        with_words = Judge(("A", "B", "C"), tmp_path / "store")
        assert judged(Gateway(endpoint(server.url), Price(), with_words))[1].cached == 0
    with ChatServer(always(ChatAnswer("B"))) as other:
        verdicts, report = judged(Gateway(endpoint(other.url), Price(), judge), 4)
        assert (verdicts, report.cached) == (["B"] * 4, 0), "another judge's verdicts are not taken over"
    verdicts, report = judged(Gateway(endpoint(other.url), Price(), judge), 4)
    assert (verdicts, report.cached, report.failure) == (["B"] * 4, 4, None), "nor is anyone asked"


def test_a_store_is_shared_by_processes_that_write_at_a_time(tmp_path: Path) -> None:
    first, second = VerdictStore(tmp_path), VerdictStore(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: (first, second)[n % 2].put(f"key-{n}", "A"), range(400)))
    assert all(VerdictStore(tmp_path).get(f"key-{n}") == "A" for n in range(400))


def test_only_so_many_requests_at_a_time_and_in_a_minute() -> None:
    at_a_time, most, lock = 0, 0, threading.Lock()

    def answer(request: ChatRequest) -> ChatAnswer:
        nonlocal at_a_time, most
        with lock:
            at_a_time += 1
            most = max(most, at_a_time)
        time.sleep(0.1)
        with lock:
            at_a_time -= 1
        return ChatAnswer("A")

    with ChatServer(answer) as server:
        for limits, expected, seconds in (
            (Limits(concurrency=3), 3, 0.0),
            (Limits(concurrency=8, per_minute=600), 8, 1.0),
        ):
            gateway, most = Gateway(endpoint(server.url), Price(), JUDGE, limits=limits), 0
            started = time.monotonic()
            with at_work(gateway) as client, ThreadPoolExecutor(12) as threads:
                verdicts = list(threads.map(lambda n: ask(client, question(n)), range(12)))
            assert verdicts == ["A"] * 12
            assert 1 < most <= expected
            assert time.monotonic() - started > seconds


def test_a_dead_judge_costs_bounded_time_however_many_samples_wait() -> None:
    with ChatServer(always(ChatAnswer("A", delay=60))) as server:
        gateway = Gateway(endpoint(server.url), Price(), JUDGE, limits=QUICK)
        started = time.monotonic()
        with at_work(gateway) as client, ThreadPoolExecutor(40) as threads:
            verdicts = list(threads.map(lambda n: ask(client, question(n)), range(200)))
        assert time.monotonic() - started < 8
        assert verdicts == [UNSCORED] * 200
        at_most = QUICK.concurrency + QUICK.failures - 1  # one more starts after each loss that is not the last
        assert len(server.requests) <= (1 + QUICK.retries) * at_most
    assert gateway.report().unscored == 200


def test_a_judge_that_hangs_now_and_then_is_given_up_long_before_all_samples_were_tried() -> None:
    def every_third_hangs(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer("A", delay=0.0 if int(request.text.split()[1].rstrip(":")) % 3 else 30.0)

    limits = Limits(call=0.1, patience=1.0, retries=0, concurrency=1)
    with ChatServer(every_third_hangs) as server:
        verdicts, report = judged(Gateway(endpoint(server.url), Price(), JUDGE, limits=limits), 60)
        assert len(server.requests) == 22, "the first loss after twenty, of which too many were lost"
    assert verdicts == [UNSCORED, "A", "A"] * 7 + [UNSCORED] * 39
    assert "no complete answer" in str(report.failure) or "no usable answer" in str(report.failure)


def test_a_judge_that_fails_now_and_then_but_rarely_is_not_given_up() -> None:
    def every_twelfth_fails(request: ChatRequest) -> ChatAnswer:
        number = int(request.text.split()[1].rstrip(":"))
        return ChatAnswer("A") if (number + 1) % 12 else ChatAnswer(status=500, error="oops")

    limits = Limits(call=0.5, patience=1.0, retries=0, concurrency=1)
    with ChatServer(every_twelfth_fails) as server:
        verdicts, report = judged(Gateway(endpoint(server.url), Price(), JUDGE, limits=limits), 48)
    assert (verdicts.count("A"), report.failure) == (44, None)


def test_a_job_that_asks_without_end_is_refused() -> None:
    with ChatServer(always(ChatAnswer("A"))) as server:
        gateway = Gateway(endpoint(server.url), Price(), JUDGE, limits=Limits(asks=2))
        with gateway.open(samples=3) as door:
            answered = [raw(door, "POST", "/v1/chat/completions", CHAT + b"}")[0] for _ in range(9)]
        assert answered == [200] * 6 + [429] * 3
        assert len(server.requests) == 6
    report = gateway.report()
    assert (report.asked, report.failure) == (6, "the job asked the judge 9 times, and 6 are enough for it")


@pytest.mark.parametrize(
    ("usage", "calls", "failure"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 500}, 3, "0.006 of 0.007 US dollars are spent"),
        (None, 1, "does not say how many tokens"),
    ],
)
def test_the_money_budget_is_held(usage: dict[str, int] | None, calls: int, failure: str) -> None:
    price, limits = Price(input=1.0, output=2.0), Limits(cost=0.007)
    with ChatServer(always(ChatAnswer("A", usage=usage))) as server:
        gateway = Gateway(endpoint(server.url), price, JUDGE, limits=limits)
        verdicts, report = judged(gateway, 5)
        assert len(server.requests) == calls
    assert verdicts == ["A"] * calls + [UNSCORED] * (5 - calls)
    assert failure in str(report.failure)
    assert report.usage.calls == calls


def test_a_budget_without_a_price_is_refused_unless_nobody_sends_bills() -> None:
    with pytest.raises(UsageError, match="price of judge-1"):
        Gateway(endpoint("https://judge.example.org/v1"), Price(), JUDGE, limits=Limits(cost=1.0))
    Gateway(endpoint("http://127.0.0.1:1/v1"), Price(), JUDGE, limits=Limits(cost=1.0))
    Gateway(endpoint("https://judge.example.org/v1"), Price(), JUDGE)


def test_a_job_chooses_nothing_but_its_messages() -> None:
    with ChatServer(always(ChatAnswer("A")), key=KEY) as server:
        gateway = Gateway(endpoint(server.url), Price(), JUDGE)
        body = {
            "model": "another",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}],
            "temperature": 2,
            "max_tokens": "many",
            "base_url": "http://127.0.0.1:9/",
        }
        headers = {"Authorization": "Bearer mine", "Host": "evil", "X-Key": "x", "Content-Type": "application/json"}
        with gateway.open() as door:
            status, content, _ = raw(door, "POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
            assert (status, json.loads(content)["choices"][0]["message"]["content"]) == (200, "A")
            status, content, _ = raw(door, "GET", "/v1/models")
            assert (status, json.loads(content)["data"][0]["id"]) == (200, "judge-1")
    (request,) = server.requests
    assert request.body == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": "Which?"}],
        "temperature": 0.0,
    }
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "x-key" not in request.headers
    assert request.headers["host"] == server.root.removeprefix("http://")


CHAT = b'{"messages": [{"role": "user", "content": "x"}]'


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", "/v1/chat/completions", b"", 404),
        ("POST", "/v1/embeddings", CHAT + b"}", 404),
        ("POST", "http://127.0.0.1:9/v1/chat/completions", CHAT + b"}", 404),
        ("POST", "/v1/chat/completions?base=http://evil", CHAT + b"}", 404),
        ("POST", "/v1/../v1/chat/completions", CHAT + b"}", 404),
        ("DELETE", "/v1/models", b"", 501),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b"{}", 400),
        ("POST", "/v1/chat/completions", b'{"messages": []}', 400),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", b'{"messages": "\xff"}', 400),
        ("POST", "/v1/chat/completions", CHAT + b', "stream": true}', 400),
        ("POST", "/v1/chat/completions", CHAT + b', "n": 5}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "tool", "content": "x"}]}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400),
        ("POST", "/v1/chat/completions", b"x" * 2_000_000, 413),
    ],
)
def test_nothing_else_passes(method: str, path: str, body: bytes, status: int) -> None:
    with ChatServer(always(ChatAnswer("A"))) as server:
        gateway = Gateway(endpoint(server.url), Price(), JUDGE)
        with gateway.open() as door:
            assert raw(door, method, path, body)[0] == status
            good = raw(door, "POST", "/v1/chat/completions", CHAT + b"}")
            assert good[0] == 200, "the gateway lives on"
    assert len(server.requests) == 1
    assert gateway.report().asked == 1


@pytest.mark.parametrize("length", ["", "-1", "1e3", "²", "9" * 40])
def test_a_request_without_an_honest_length_is_refused(length: str) -> None:
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with gateway.open() as door, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(door.socket))
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(100).split()[1] in (b"411", b"413")


POST = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 4000\r\n\r\n"


def test_a_body_that_ends_too_early_is_refused() -> None:
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with gateway.open() as door, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(door.socket))
        connection.sendall(POST + CHAT + b"}")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    assert answer.split()[1] == b"400"
    assert b"ends after 48 of 4,000 bytes" in answer
    assert gateway.report().asked == 0


@pytest.mark.parametrize("sent", [b"", b"POST /v1", POST + CHAT])
def test_a_client_that_falls_silent_holds_no_thread(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http_server._Handler.timeout == http_server.PATIENCE
    monkeypatch.setattr(http_server._Handler, "timeout", 0.2)
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with gateway.open() as door, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(door.socket))
        connection.sendall(sent)
        assert connection.recv(100) == b"", "the connection is closed"


def test_without_threads_a_connection_is_refused_and_the_gateway_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "process_request_thread" in str(getattr(thread, "_target", "")):
            raise RuntimeError("can't start new thread")
        start(thread)

    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with gateway.open() as door:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                raw(door, "GET", "/v1/models")
        assert raw(door, "GET", "/v1/models")[0] == 200


def test_without_threads_behind_the_gateway_the_machine_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "llm":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with pytest.raises(MachineError, match="can't start new thread"), gateway.open() as door:
        assert raw(door, "POST", "/v1/chat/completions", CHAT + b"}")[0] == 500


def test_the_key_does_not_reach_the_job_even_if_the_endpoint_tells_it(tmp_path: Path) -> None:
    transcript = tmp_path / "transcript.jsonl"
    leak = ChatAnswer(f"your key is {KEY}", headers={"X-Key": KEY})
    with ChatServer(always(leak)) as server:
        gateway = Gateway(endpoint(server.url), Price(), Chat(), transcript=transcript)
        with gateway.open() as door:
            status, content, headers = raw(door, "POST", "/v1/chat/completions", CHAT + b"}")
    assert (status, json.loads(content)["choices"][0]["message"]["content"]) == (200, "your key is ***")
    assert KEY not in content + repr(headers) + transcript.read_text() + repr(gateway.report()) + repr(vars(gateway))


def test_in_the_role_of_writing_data_a_completion_passes() -> None:
    answers = (ChatAnswer("<think>hm</think>A rhyme"), ChatAnswer("Half", finish_reason="length"))
    with ChatServer(in_turn(*answers)) as server:
        gateway = Gateway(endpoint(server.url), Price(), Chat())
        with at_work(gateway) as client:
            said = ask(client, "Write.", temperature=0.3, max_tokens=50, seed=7, stop=["\n"], user="me")
            assert said == "<think>hm</think>A rhyme"
            messages: Any = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "More."}]
            second = client.chat.completions.create(model="x", messages=messages)
    assert (second.choices[0].finish_reason, second.model) == ("length", "judge-1")
    assert second.usage
    assert second.usage.total_tokens == 120
    sent = server.requests[0].body
    assert {"temperature": 0.3, "max_tokens": 50, "seed": 7, "stop": ["\n"]}.items() <= sent.items()
    assert "user" not in sent
    report = gateway.report()
    assert (report.asked, report.answered, report.usage.prompt_tokens) == (2, 2, 200)


def test_in_the_role_of_writing_data_a_failure_is_told_and_not_asked_again_by_the_client() -> None:
    with ChatServer(always(ChatAnswer(status=401, error=f"bad key {KEY}"))) as server:
        gateway = Gateway(endpoint(server.url), Price(), Chat(), limits=QUICK)
        with (
            at_work(gateway) as client,
            pytest.raises(openai.InternalServerError, match="refuses the API key") as caught,
        ):
            ask(client.with_options(max_retries=5), "Write.")
        assert len(server.requests) == 1
    assert KEY not in str(caught.value)
    assert str(gateway.report().failure).startswith("the model http://127.0.0.1:")


def test_answers_are_kept_by_what_was_asked_and_how_often(tmp_path: Path) -> None:
    def at_first_lost(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(status=500, error="oops") if request.number == 1 else ChatAnswer(f"answer {request.number}")

    def asked(**options: Any) -> list[str | None]:
        gateway = Gateway(endpoint(server.url), Price(), role, limits=ONE_TRY)
        with at_work(gateway) as client:
            return [ask(client, "Write.", **options) for _ in range(2)]

    with ChatServer(at_first_lost) as server:
        strong = {"strong": [(endpoint(server.url), Price())]}
        role = Chat(strong, AnswerStore(tmp_path))
        with pytest.raises(openai.InternalServerError):
            asked()
        first = asked()
        assert first == ["answer 2", "answer 3"], "the lost one has no number"
        assert asked() == first
        assert asked(temperature=0.5) == ["answer 4", "answer 5"], "another request"
        with (tmp_path / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "to')
        role = Chat(strong, AnswerStore(tmp_path))
        assert asked() == first, "read again, past a line that a crash tore"


def test_names_are_listed_and_a_money_limit_needs_a_price(tmp_path: Path) -> None:
    unpriced = (endpoint("https://models.example.org/v1"), Price())
    with pytest.raises(UsageError, match="so a money budget cannot be held"):
        Gateway(*unpriced, Chat({"weak": [unpriced]}), limits=Limits(money=Money(1.0)))
    with Gateway(*unpriced, Chat({"strong": [unpriced], "weak": [unpriced]})).open() as door:
        _, content, _ = raw(door, "GET", "/v1/models")
    assert [one["id"] for one in json.loads(content)["data"]] == ["strong", "weak"]


def test_the_socket_is_the_jobs_users_alone_and_is_gone_with_the_job() -> None:
    user = (1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid())
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE, user=user)
    with gateway.open() as door:
        assert len(os.fsencode(door.socket)) < 100
        for path, mode in ((door.socket, 0o600), (door.directory, 0o700)):
            status = path.stat()
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*user, mode)
    assert not door.directory.exists()


def test_a_long_path_for_temporary_files_is_gone_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE).open() as door:
        assert len(os.fsencode(door.socket)) < 100
    monkeypatch.setattr(http_server, "LONGEST_PATH", 10)
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with pytest.raises(MachineError, match="too long"), gateway.open():
        pass


def llm_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llm"]


def test_closing_ends_the_requests_under_way_and_leaves_no_thread() -> None:
    arrived = threading.Semaphore(0)

    def hang(request: ChatRequest) -> ChatAnswer:
        arrived.release()
        return ChatAnswer("A", delay=30)

    def wait_for(server: ChatServer) -> float:
        """Leave while two requests are with the judge and three wait; when that was."""
        body = json.dumps({"messages": [{"role": "user", "content": "Which?"}]})
        request = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        with gateway.open() as door:
            for _ in range(5):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(door.socket))
                connection.sendall(request)
            assert arrived.acquire(timeout=10)
            assert arrived.acquire(timeout=10)
            assert len(llm_threads()) == 2
            return time.monotonic()

    with ChatServer(hang) as server:
        gateway = Gateway(endpoint(server.url), Price(), JUDGE, limits=Limits(concurrency=2))
        left = wait_for(server)
        patience = left + 1.0
        assert time.monotonic() < patience
        while llm_threads() and time.monotonic() < patience:
            time.sleep(0.02)
        assert not llm_threads()
        assert not [thread for thread in threading.enumerate() if "Unix" in str(getattr(thread, "_target", ""))]
    report = gateway.report()
    assert (report.asked, report.unscored, report.failure) == (0, 0, None), "stopped is no fault of the judge"
    assert report.pending == 5
    assert 0 < report.waited < 5


def test_a_defect_is_no_silent_answer(tmp_path: Path) -> None:
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    gateway._upstream = None  # type: ignore[assignment]
    with pytest.raises(AttributeError), gateway.open() as door:
        assert raw(door, "GET", "/v1/models")[0] == 500


def test_a_disk_that_takes_nothing_is_reported(tmp_path: Path) -> None:
    with ChatServer(always(ChatAnswer("A"))) as server:
        gateway = Gateway(endpoint(server.url), Price(), JUDGE, transcript=Path("/dev/full"))
        verdicts, report = judged(gateway)
    assert verdicts == ["A"]
    assert "/dev/full" in str(report.failure) or "No space left" in str(report.failure)


def test_the_transcript_is_bounded(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "t.jsonl", lambda text: text.replace(KEY, "***"), most=50_000)
    for _ in range(10):
        transcript.write(messages=[{"content": KEY + "x" * 1_000_000}])
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["messages"][0]["content"].endswith("characters more")
    assert "full" in json.loads(lines[-1])["end"]
    assert KEY not in "".join(lines)


def test_the_forwarder_is_a_program_too(tmp_path: Path) -> None:
    code = (
        "import os, urllib.request as u\n"
        "print(u.urlopen(os.environ['OPENAI_BASE_URL'] + '/models').read().decode())\n"
        "raise SystemExit(7)"
    )
    gateway = Gateway(endpoint("http://127.0.0.1:9/v1"), Price(), JUDGE)
    with gateway.open() as door:
        program = [sys.executable, "-I", "-S", str(resource("docker/bench/forward.py")), str(door.socket)]
        done = subprocess.run([*program, sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
        assert (done.returncode, json.loads(done.stdout)["data"][0]["id"]) == (7, "judge-1"), done.stderr
    gone = subprocess.run([*program, sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert gone.returncode == 1
    assert "the gateway at" in gone.stderr


IN_THE_CONTAINER = """
import json, os, socket, sys, urllib.error, urllib.request
sys.path.insert(0, PROGRAMS)
from forward import forwarding

with forwarding(SOCKET) as url:
    body = json.dumps({"messages": [{"role": "user", "content": "Which?"}]}).encode()
    request = urllib.request.Request(url + "/chat/completions", body, {"Content-Type": "application/json"})
    print("verdict", json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
print("uid", os.getuid())
for name, address in (("the judge itself", JUDGE), ("outside", ("192.0.2.1", 80))):
    try:
        socket.create_connection(address, timeout=2)
        print("reached", name)
    except OSError as error:
        print("no way to", name)
for attempt in (lambda: os.unlink(SOCKET), lambda: open(os.path.dirname(SOCKET) + "/x", "w")):
    try:
        attempt()
        print("changed the door")
    except OSError as error:
        print("read-only")
print("key" if KEY[3:] in repr(os.environ) else "no key")
"""


@pytest.mark.docker
def test_a_container_without_a_network_reaches_the_gateway_and_nothing_else(image: str, tmp_path: Path) -> None:
    programs = str(resource("docker/bench"))
    with ChatServer(always(ChatAnswer("B")), key=KEY) as server:
        address = ("127.0.0.1", int(server.root.rpartition(":")[2]))
        gateway = Gateway(endpoint(server.url), Price(), JUDGE)
        with gateway.open() as door:
            facts = f"PROGRAMS, SOCKET, JUDGE, KEY = {programs!r}, {str(door.socket)!r}, {address!r}, 'sk-{'j' * 9}'\n"
            mounts = (Mount(str(tmp_path), writable=True), Mount(programs), Mount(str(door.directory)))
            outcome = make_runner("docker", image).run(
                python_job(tmp_path, facts + IN_THE_CONTAINER, mounts=mounts, name="judged")
            )
    assert outcome.kind == "ok", outcome
    uid = 1000 if os.getuid() == 0 else os.getuid()
    assert outcome.tail.splitlines() == [
        "verdict B",
        f"uid {uid}",
        "no way to the judge itself",
        "no way to outside",
        "read-only",
        "read-only",
        "no key",
    ]
    assert gateway.report().answered == 1
