"""HTTP/1.1 on a Unix socket that nobody but the job's user can open; what a request means is not decided here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import MachineError

LONGEST_PATH = 99  # bytes of a socket's path; the kernel takes 107
CONNECTIONS = 128  # at a time; each has a thread


@dataclass(frozen=True)
class Door:
    """The socket that a job is given; its directory is what is mounted, read-only."""

    socket: Path

    @property
    def directory(self) -> Path:
        """Holds the socket and nothing else."""
        return self.socket.parent


class Response(msgspec.Struct, frozen=True):
    """What a request is answered; `content` becomes JSON."""

    status: int
    content: Any


Respond = Callable[[str, str, bytes], Response]
"""Method, path and body of a request to its response; called in a thread of its own."""


@contextlib.contextmanager
def serving(respond: Respond, stop: Callable[[], None], user: tuple[int, int], longest_body: int) -> Iterator[Door]:
    """Answer requests until the block is left; no thread, connection or file outlives it.

    Args:
        stop: Makes every `respond` under way return soon.
        user: uid and gid that may connect.
        longest_body: In bytes; a longer request is refused unread.

    Raises:
        MachineError: No socket can be made. Whatever `respond` raised is raised at the end.
    """
    directory = _runtime_directory()
    try:
        server = _Server(directory / "gateway.sock", respond, longest_body)
        try:
            _hand_over(directory, user)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield Door(directory / "gateway.sock")
            finally:
                stop()
                server.shutdown()
                server.hang_up()
                thread.join()
        finally:
            server.server_close()  # waits for the threads of all connections
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if server.defects:
        raise server.defects[0]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 128

    def __init__(self, path: Path, respond: Respond, longest_body: int) -> None:
        self.respond, self.longest_body = respond, longest_body
        self.defects: list[Exception] = []
        self._open: set[socket.socket] = set()
        super().__init__(str(path), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no concern of ours; anything else is a defect."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.defects.append(error)

    def hang_up(self) -> None:
        """Wake the threads that wait for a client's next request."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "ftloop"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "a request needs a Content-Length")
        elif len(length) > 12 or int(length) > self.server.longest_body:
            self._refuse(413, f"a request may have {self.server.longest_body:,} bytes")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        try:
            response = self.server.respond(self.command, self.path, body)
        except Exception as error:  # raised again where the gateway is closed
            self.server.defects.append(error)
            response = Response(500, {"error": {"message": "the gateway failed"}})
        self._send(response)

    def _refuse(self, status: int, reason: str) -> None:
        self.close_connection = True  # the body is still unread
        self._send(Response(status, {"error": {"message": reason}}))

    def _send(self, response: Response) -> None:
        body = msgspec.json.encode(response.content)
        self.send_response(response.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-should-retry", "false")  # OpenAI's client would ask again; the gateway has done so
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "the job"  # a Unix socket has no address

    def log_message(self, format: str, *args: Any) -> None:
        """The transcript says more."""


def _runtime_directory() -> Path:
    """A new directory with a short path that only we can enter."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - made with mkdtemp
        if len(os.fsencode(f"{parent}/ftloop-12345678/gateway.sock")) <= LONGEST_PATH:
            return Path(tempfile.mkdtemp(prefix="ftloop-", dir=parent))
    raise MachineError(f"{tempfile.gettempdir()} is too long a path for a socket", "set TMPDIR to a shorter one")


def _hand_over(directory: Path, user: tuple[int, int]) -> None:
    uid, gid = user
    for path, mode in ((directory / "gateway.sock", 0o600), (directory, 0o700)):
        path.chmod(mode)
        if os.getuid() != uid:
            os.chown(path, uid, gid)
