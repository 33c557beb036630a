"""The way from a container without a network to the gateway: 127.0.0.1:<free port> to a mounted Unix socket.

    python forward.py SOCKET PROGRAM [ARGUMENT ...]

runs the program with OPENAI_BASE_URL set, and ends with its exit code. As a library: `with forwarding(socket) as url`.
It passes bytes on and knows nothing of what they mean; it imports nothing of ftloop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator

CHUNK = 1 << 16


class _Forwarder(socketserver.ThreadingTCPServer):
    """One thread a connection, and a second one for the way back."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, target: str) -> None:
        self._target = target
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)

    def finish_request(self, request: object, client_address: object) -> None:
        """Pump both ways until both ends have said all; called in the connection's thread."""
        assert isinstance(request, socket.socket)
        with socket.socket(socket.AF_UNIX) as gateway:
            self._open |= {request, gateway}
            try:
                gateway.connect(self._target)
                back = threading.Thread(target=_pump, args=(gateway, request), daemon=True)
                back.start()
                _pump(request, gateway)
                back.join()
            finally:
                self._open -= {request, gateway}

    def handle_error(self, request: object, client_address: object) -> None:
        """One line: the client sees its connection closed, and tries again or says so."""
        print(f"the gateway at {self._target} cannot be reached: {sys.exc_info()[1]}", file=sys.stderr)

    def hang_up(self) -> None:
        """End the connections that are still open."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def forwarding(socket: str) -> Iterator[str]:
    """Forward to this Unix socket; yields the base URL for an OpenAI client, http://127.0.0.1:PORT/v1."""
    with _Forwarder(socket) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.hang_up()
            thread.join()


def main(target: str, *program: str) -> int:
    """Run a program that finds the gateway where an OpenAI client looks for it; its exit code."""
    with forwarding(target) as url:
        environment = os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
        return subprocess.run(program, env=environment, check=False).returncode


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # either end may go at any time
        while chunk := source.recv(CHUNK):
            sink.sendall(chunk)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: forward.py SOCKET PROGRAM [ARGUMENT ...]")
    sys.exit(main(*sys.argv[1:]))
