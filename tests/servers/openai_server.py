"""A real HTTP server on 127.0.0.1 that plays an OpenAI-compatible chat endpoint; a Python callable writes its answers.

def answer(request: ChatRequest) -> ChatAnswer:
    return ChatAnswer("...") if "what must be known" in request.text else ChatAnswer(status=429)

with ChatServer(answer) as server:
    ...  # point base_url at server.url
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

FEATURES = frozenset({"json_schema", "json_object", "temperature"})


@dataclass(frozen=True)
class ChatRequest:
    """A request as it arrived; `number` counts from 1; header names are in lower case."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def text(self) -> str:
        """All that the model is told."""
        return "\n".join(message["content"] for message in self.messages)

    @property
    def format(self) -> str:
        """ "json_schema", "json_object" or "text"."""
        return str(self.body.get("response_format", {}).get("type", "text"))


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """What the server does.

    Attributes:
        content: The message's text. message: Further fields of the message, as `refusal`.
        body: The whole response body, instead of a completion.
        error: The message of an error body.
        delay: Seconds before anything is sent.
        drip: Seconds before each byte of the body.
        drop: Close the connection: "now", or in the middle of the "body".
        usage: Reported token counts; None reports none.
    """

    content: Any = field(default="", kw_only=False)
    status: int = 200
    message: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = "stop"
    body: bytes | None = None
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    drop: str = ""
    usage: dict[str, Any] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20})

    def encoded(self) -> bytes:
        if self.body is not None:
            return self.body
        reported = {} if self.usage is None else {"usage": self.usage}
        if self.status != 200:
            error = {"message": self.error or f"status {self.status}", "type": "test"}
            return json.dumps({"error": error}).encode()
        message = {"role": "assistant", "content": self.content} | self.message
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        whole = {"id": "c1", "object": "chat.completion", "created": 0, "model": "test", "choices": [choice]}
        return json.dumps(whole | reported).encode()


class ChatServer:
    """Serves until it leaves its `with` block; `requests` holds all that arrived.

    Args:
        prefix: Where the endpoint lies; elsewhere it answers 404. None: every path is answered alike.
        supports: Features that it knows; a request that uses another one is refused with 400.
        key: The only API key that it accepts; None accepts all.
    """

    def __init__(
        self,
        answer: Callable[[ChatRequest], ChatAnswer],
        *,
        prefix: str | None = "/v1",
        supports: frozenset[str] = FEATURES,
        key: str | None = None,
    ) -> None:
        self.requests: list[ChatRequest] = []
        self._answer = answer
        self._prefix = prefix
        self._supports = supports
        self._key = key
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def root(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The base URL, as one would put it into FT_CHAT_API_BASE."""
        return f"{self.root}{'/v1' if self._prefix is None else self._prefix}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> ChatAnswer:
        """The answer to one request, after the checks that every endpoint makes."""
        with self._lock:
            request = ChatRequest(len(self.requests) + 1, path, headers, body)
            self.requests.append(request)
        if self._prefix is not None and path != f"{self._prefix}/chat/completions":
            return ChatAnswer(status=404, body=b'{"detail":"Not Found"}')
        sent = headers.get("authorization", "").removeprefix("Bearer ")
        if self._key is not None and sent != self._key:
            return ChatAnswer(status=401, error=f"Incorrect API key provided: {sent}")
        if request.format != "text" and request.format not in self._supports:
            return ChatAnswer(status=400, error=f"response_format {request.format} is not supported")
        if "temperature" in body and "temperature" not in self._supports:
            return ChatAnswer(status=400, error="Unsupported value: 'temperature' does not support 0.7 with this model")
        return self._answer(request)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = server.reply(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                server._closing.wait(answer.delay)
                try:
                    self._send(answer)
                except OSError:
                    self.close_connection = True  # the client has gone

            def _send(self, answer: ChatAnswer) -> None:
                if answer.drop == "now":
                    self._hang_up()
                    return
                body = answer.encoded()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if answer.drop == "body":
                    self.wfile.write(body[: len(body) // 2])
                    self._hang_up()
                elif answer.drip:
                    for byte in body:
                        if server._closing.is_set():
                            break
                        self.wfile.write(bytes([byte]))
                        time.sleep(answer.drip)
                else:
                    self.wfile.write(body)

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *args: Any) -> None:
                """Tests read `requests` instead."""

        return Handler
