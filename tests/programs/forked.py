"""Runs many programs that share one costly import, each in a process of its own: a server that forks for each.

    python forked.py serve SOCKET MODULE ...         imports the modules, then waits; says "ready"
    python forked.py run SOCKET PROGRAM [ARGUMENT ...]  as `python PROGRAM ARGUMENT ...` would; ends with its exit code

The program gets the asker's directory, environment and output, and ends with it. What a module read of the environment
when it was imported is the server's, so start the server with what its programs need.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import sys
import threading
import traceback
from pathlib import Path


def serve(path: str, *modules: str) -> None:
    """Fork for each request, until killed."""
    for module in modules:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _answer(connection)
            while _reap():
                pass


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _answer(connection: socket.socket) -> None:
    """Become the program; never returns."""
    code = 1
    try:
        message, streams, *_ = socket.recv_fds(connection, 1 << 20, 2)
        for descriptor, stream in enumerate(streams, 1):
            os.dup2(stream, descriptor)
        asked = json.loads(message)
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        sys.argv = asked["argv"]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code & 0xFF]))
    finally:
        os._exit(code)


def _end_with(connection: socket.socket) -> None:
    """End this process when its asker has ended, who says nothing else."""
    connection.recv(1)
    os._exit(1)


def run(path: str, *argv: str) -> int:
    """Have a program run by the server; its exit code, 1 if it died."""
    asked = {"argv": argv, "directory": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109 - imports little
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(asked).encode()], [1, 2])
        return (connection.recv(1) or b"\1")[0]


if __name__ == "__main__":
    sys.exit({"serve": serve, "run": run}[sys.argv[1]](*sys.argv[2:]))
