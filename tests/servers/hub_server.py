"""A small Hugging Face hub over real HTTP, for the real client (HF_ENDPOINT must be set before its import).

It answers what huggingface_hub 2.4.0 asks for a snapshot, and breaks transfers where a `Fault` says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with the next `times` GET requests whose path ends in `path`.

    Attributes:
        kind: "reset" (TCP reset after `after` bytes), "close" (orderly close after them), "corrupt" (the file's byte at
            `after` flipped), "stall" (nothing more after them, until the hub stops), "slow" (0.1 s after every MB),
            "status" (that HTTP status).
    """

    path: str
    kind: Literal["reset", "close", "corrupt", "stall", "slow", "status"]
    times: int = 1
    after: int = 0
    status: int = 503


@dataclass(frozen=True)
class Repository:
    """Files of one repository at its only revision; `git_ids` may replace the right ones."""

    files: Mapping[str, bytes]
    lfs: frozenset[str] = frozenset()
    gated: bool = False
    git_ids: Mapping[str, str] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()

    def entry(self, path: str) -> dict[str, object]:
        """The file as the tree listing shows it."""
        content = self.files[path]
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": self.git_id(path)}
        if path in self.lfs:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def git_id(self, path: str) -> str:
        content = self.files[path]
        return self.git_ids.get(path) or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def etag(self, path: str) -> str:
        return hashlib.sha256(self.files[path]).hexdigest() if path in self.lfs else self.git_id(path)


class Hub:
    """A running hub; use it in a `with` block.

    Attributes:
        url: What HF_ENDPOINT must be set to.
        requests: (method, path) of every request so far.
        stalled: Set when a "stall" fault has been reached.
    """

    def __init__(self) -> None:
        self.datasets: dict[str, Repository] = {}
        self.models: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.stalled = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            def __init__(self, *args: object) -> None:
                self.hub = hub
                super().__init__(*args)  # type: ignore[arg-type]

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering; may be called twice."""
        if not self.closing.is_set():
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()

    def downloads(self, path: str) -> int:
        """How often a file was asked for with GET."""
        return sum(method == "GET" and "/resolve/" in asked and asked.endswith(path) for method, asked in self.requests)

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and path.endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub._lock:
            self.hub.requests.append((self.command, path))
        fault = self.hub.take_fault(path) if self.command == "GET" else None
        if fault is not None and fault.kind == "status":
            self._send(fault.status, b"the hub has a bad day")
            return
        if matched := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/revision/[^/]+)?", path):
            repositories = self.hub.models if matched[1] == "models" else self.hub.datasets
            if matched[2] in repositories:
                self._info(matched[2], repositories[matched[2]])
                return
        if matched := re.fullmatch(r"/api/(models|datasets)/(.+?)/tree/([^/]+)", path):
            repositories = self.hub.models if matched[1] == "models" else self.hub.datasets
            if matched[2] in repositories:
                repository = repositories[matched[2]]
                self._json([repository.entry(name) for name in repository.files])
                return
        if matched := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            repositories = self.hub.datasets if matched[1] else self.hub.models
            if matched[2] in repositories:
                self._file(repositories[matched[2]], matched[4], fault)
                return
        self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def _info(self, name: str, repository: Repository) -> None:
        if repository.gated:
            self._send(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
            return
        siblings = [{"rfilename": path} for path in repository.files]
        self._json({"id": name, "sha": repository.revision, "siblings": siblings})

    def _file(self, repository: Repository, path: str, fault: Fault | None) -> None:
        if path not in repository.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, status, start = repository.files[path], 200, 0
        headers = {"ETag": f'"{repository.etag(path)}"', "X-Repo-Commit": repository.revision, "Accept-Ranges": "bytes"}
        if fault is not None and fault.kind == "corrupt":
            content = content[: fault.after] + bytes([content[fault.after] ^ 1]) + content[fault.after + 1 :]
            fault = None
        if matched := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(matched[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers, fault)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(body)
            return
        if fault.kind == "slow":
            for at in range(0, len(body), 1_000_000):
                self.wfile.write(body[at : at + 1_000_000])
                self.hub.closing.wait(0.1)
            return
        self.wfile.write(body[: fault.after])
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall":
            self.hub.stalled.set()
            self.hub.closing.wait()
        elif fault.kind == "reset":
            # A linger time of zero turns close() into a TCP reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
