"""Brings wheels that only this machine's pip knows into an image's build: a CPU build of torch, most of all.

`pip config` may name folders of wheels (find-links), which a build cannot see. Where one of them holds the pinned
torch, its wheels are served on loopback while the image is built, to a build that shares the host's network. They are
not put into the build context, because a copied wheel would stay in the image as a layer of its own.
"""

from __future__ import annotations

import ast
import html
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

_FIRST_PORT, _PORTS = 20_000, 10_000


def pinned(requirements: Path) -> dict[str, Path]:
    """The wheels, by file name, of all find-links folders that hold a package which `requirements` pins."""
    lines = requirements.read_text("utf-8").split()
    wanted = tuple(
        f"{name.replace('-', '_')}-{version}" for name, _, version in (line.partition("==") for line in lines)
    )
    found: dict[str, Path] = {}
    for folder in find_links():
        wheels = {path.name: path for path in sorted(folder.glob("*.whl")) if path.is_file()}
        # "torch-2.13.0+cpu-cp311-...", "torch-2.13.0-cp311-...", but not "torch-2.13.01-..."
        if any(name.startswith(tuple(f"{prefix}{end}" for prefix in wanted for end in "+-")) for name in wheels):
            found = wheels | found
    return found


def find_links() -> list[Path]:
    """The folders that pip's configuration, files and PIP_FIND_LINKS alike, names as find-links."""
    try:
        argv = [sys.executable, "-m", "pip", "config", "list"]
        listed = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # an environment without pip has no find-links
        return []
    folders: dict[Path, None] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if not key.endswith(".find-links"):
            continue
        for place in str(ast.literal_eval(value)).split():
            folder = Path(unquote(urlsplit(place).path) if place.startswith("file:") else place).expanduser()
            if folder.is_dir():
                folders[folder.resolve()] = None
    return list(folders)


@contextmanager
def served(wheels: Mapping[str, Path]) -> Iterator[str]:
    """Serve these files, and nothing else, on loopback; the address is a page that links to them.

    Equal files get the same port if it is free: FIND_LINKS is part of what the engine's layer cache compares.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(self.path).lstrip("/")
            if name == "":
                self._start("text/html; charset=utf-8", len(page))
                self.wfile.write(page)
            elif name in wheels:
                with wheels[name].open("rb") as source:
                    self._start("application/octet-stream", wheels[name].stat().st_size)
                    shutil.copyfileobj(source, self.wfile, 1 << 20)
            else:
                self.send_error(404)

        def _start(self, content: str, length: int) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # the build says what it fetches
            pass

    page = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in wheels).encode()
    server = _listen(_FIRST_PORT + zlib.crc32(page) % _PORTS, Handler)
    thread = threading.Thread(target=server.serve_forever, name="wheels", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def _listen(port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:  # taken
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)
