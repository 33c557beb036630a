"""The end of a job's log. What it holds was written by a program that may be hostile."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.run import written

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_OUT_OF_MEMORY = re.compile(
    r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory"
    r"|DefaultCPUAllocator: can't allocate memory|^MemoryError\b",
    re.MULTILINE,
)


def create(path: Path) -> int:
    """A descriptor of a new, empty log, whatever lay there before; never written through a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


def tail(path: Path, lines: int = 40, limit: int = 8_000) -> str:
    """The last `lines` lines, at most `limit` characters, as a terminal would show them; "" if there is no log.

    Progress bars leave only their last state; terminal escapes and empty lines are left out.
    """
    text = _end_of(path, limit * 8).decode("utf-8", "replace").replace("\r\n", "\n")
    kept = [shown for shown in map(plain, text.split("\n")) if shown]
    return "\n".join(kept[-lines:])[-limit:]


def out_of_memory(text: str) -> bool:
    """Whether the end of a failed program's log says that host or CUDA memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def plain(line: str) -> str:
    """One line as a terminal would leave it: the last state of a progress bar, without escapes."""
    states = [state for state in line.split("\r") if state.strip()]
    return _CONTROL.sub("", _ESCAPE.sub("", states[-1])).rstrip() if states else ""


def _end_of(path: Path, size: int) -> bytes:
    # A job may have replaced its log by a link to one of the host's files, or by a pipe that never answers.
    try:
        return written.read_end(path.parent, path.name, size)
    except OSError:
        return b""
