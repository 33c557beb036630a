"""The client that data scripts ask models with, in a process of its own, against an HTTP server on a Unix socket."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from agent.gateway import Chat, Gateway
from agent.llm import Endpoint, Price, Secret
from tests.servers.openai_server import ChatAnswer, ChatServer

PROGRAMS = Path(__file__).resolve().parent.parent / "docker" / "train"
Reply = tuple[int, Any]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers like the gateway: `reply` makes status and content of a request."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply: Callable[[dict[str, Any]], Reply | None] = lambda request: completion(said(request).upper())
        self.path = path
        self.now = self.most = 0
        super().__init__(str(path), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append({"path": self.path, **request})
        server.now += 1
        server.most = max(server.most, server.now)
        answer = server.reply(request)
        server.now -= 1
        if answer is None:
            return  # hangs up without a word
        body = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "job"

    def log_message(self, format: str, *args: Any) -> None:
        pass


def said(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def completion(content: Any) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}}]}


@pytest.fixture
def server() -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="ftl-"))  # a socket's path must be short
    with Server(directory / "llm.sock") as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield running
        running.shutdown()
    shutil.rmtree(directory)


def script(code: str, socket: Path | None) -> subprocess.CompletedProcess[str]:
    """Runs code as a data script would be: the client lies beside it."""
    variables = {"PYTHONPATH": str(PROGRAMS)} | ({"FTLOOP_LLM_SOCKET": str(socket)} if socket else {})
    code = "from ftloop_llm import *\nfrom ftloop_llm import LLMError\n" + code
    argv = [sys.executable, "-S", "-c", code]
    return subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_one_answer(server: Server) -> None:
    done = script(
        "print(ask('hello'), ask([{'role': 'user', 'content': 'you'}], role='weak', max_tokens=5))", server.path
    )
    assert done.stdout == "HELLO YOU\n", done.stderr
    assert server.requests == [
        {"path": "/v1/chat/completions", "model": "strong", "messages": [{"role": "user", "content": "hello"}]},
        {
            "path": "/v1/chat/completions",
            "model": "weak",
            "messages": [{"role": "user", "content": "you"}],
            "max_tokens": 5,
        },
    ]


def test_many_answers_come_in_order_and_so_many_are_asked_at_a_time(server: Server) -> None:
    def slow(request: dict[str, Any]) -> Reply:
        time.sleep(0.05 if said(request).endswith("0") else 0.02)
        return completion(said(request))

    server.reply = slow
    done = script("print(*ask_many([str(n) for n in range(60)], concurrency=6))", server.path)
    assert done.stdout.split() == [str(number) for number in range(60)], done.stderr
    assert 3 <= server.most <= 6


def test_a_failure_ends_the_rest_unless_something_stands_for_it(server: Server) -> None:
    server.reply = lambda request: (
        (400, {"error": {"message": "too long"}}) if said(request) == "3" else completion("ok")
    )
    done = script("ask_many([str(n) for n in range(6)])", server.path)
    assert "LLMError: the gateway refused (400): too long" in done.stderr
    done = script("print(ask_many([str(n) for n in range(6)], missing=''))", server.path)
    assert done.stdout == "['ok', 'ok', 'ok', '', 'ok', 'ok']\n", done.stderr


def test_without_money_no_further_question_is_asked(server: Server) -> None:
    server.reply = lambda request: (402, {"error": {"message": "the study's money is spent (FT_MAX_COST)"}})
    done = script("ask_many(['x'] * 500, missing='', concurrency=2)", server.path)
    assert "LLMError: the gateway refused (402): the study's money is spent (FT_MAX_COST)" in done.stderr
    assert len(server.requests) < 50


def test_a_busy_gateway_is_asked_again(server: Server) -> None:
    server.reply = lambda request: completion("late") if len(server.requests) == 3 else (503, {"error": "busy"})
    assert script("print(ask('x'))", server.path).stdout == "late\n"
    server.reply = lambda request: (503, {"error": "busy"})
    assert "LLMError: the gateway refused (503): busy" in script("ask('x')", server.path).stderr


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((200, b"<html>"), "the gateway's answer is no completion: b'<html>'"),
        ((200, {"choices": []}), "no completion"),
        ((200, ["x"]), "no completion"),
        (completion("  "), "the model answered nothing"),
        (completion(None), "the model answered nothing"),
        ((200, {"choices": ["x"]}), "no completion"),
        ((200, {"choices": [{"message": {"content": "half an"}, "finish_reason": "length"}]}), "was cut off"),
        ((500, b"\xff broken"), "the gateway refused (500)"),
        (None, "the gateway broke off: Remote end closed connection without response"),
    ],
)
def test_what_goes_wrong_is_said(reply: Reply | None, words: str, server: Server) -> None:
    server.reply = lambda request: reply
    done = script("try: ask('x')\nexcept LLMError as error: print(error)", server.path)
    assert words in done.stdout, done.stderr


def test_the_real_gateway_answers_and_its_refusal_is_final() -> None:
    endpoint = partial(Endpoint, model="writer", key=Secret("sk-0123456789abcdef"), settings="FT_STRONG")
    with ChatServer(lambda request: ChatAnswer(request.text.upper())) as model:
        with Gateway(endpoint(base_url=model.url), Price(), Chat()).open() as door:
            done = script("print(*ask_many(['a', 'b', 'c']), ask('d', temperature=0.3))", door.socket)
        assert done.stdout == "A B C D\n", done.stderr
    with ChatServer(lambda request: ChatAnswer(status=401, error="bad key")) as model:
        with Gateway(endpoint(base_url=model.url), Price(), Chat()).open() as door:
            done = script("ask('x')", door.socket)
        assert "LLMError: the gateway refused (503)" in done.stderr
        assert "refuses the API key" in done.stderr
        assert len(model.requests) == 1


def test_no_gateway(tmp_path: Path) -> None:
    assert (
        "no language model is offered to this script (FTLOOP_LLM_SOCKET is not set)" in script("ask('x')", None).stderr
    )
    gone = script("ask_many(['x', 'y'], missing='')", tmp_path / "gone")
    assert "LLMError: the gateway broke off" in gone.stderr


@pytest.mark.parametrize("call", ["ask([])", "ask(3)", "ask([{'role': 'user'}])", "ask('x', role='boss')"])
def test_what_cannot_be_asked_is_refused_at_once(call: str, server: Server) -> None:
    assert "ValueError" in script(call, server.path).stderr
    assert server.requests == []


def test_the_client_needs_the_standard_library_only() -> None:
    code = "import sys, ftloop_llm; print(*{name.split('.')[0] for name in sys.modules})"
    argv = [sys.executable, "-S", "-c", code]
    loaded = subprocess.run(argv, env={"PYTHONPATH": str(PROGRAMS)}, capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) <= {*sys.stdlib_module_names, "ftloop_llm", "__main__"}
    assert os.environ.get("FTLOOP_LLM_SOCKET") is None
