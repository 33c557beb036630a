"""What the gateway leaves on disk: verdicts and answers, so that none is paid for twice, and the transcript."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.llm import Message

CLIP = 20_000  # characters of one text in the transcript
TRANSCRIPT = 256_000_000  # bytes of all of it


class _Line(msgspec.Struct):
    key: str
    verdict: str


class VerdictStore:
    """Verdicts by the content that they depend on: one line each in `verdicts.jsonl`, appended when they are given.

    Several processes may append at a time. A line that a crash tore is as if it were not there.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "verdicts.jsonl"
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if self._file.exists():
            for line in self._file.read_bytes().splitlines():
                try:
                    entry = msgspec.json.decode(line, type=_Line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue
                self._known[entry.key] = entry.verdict

    @staticmethod
    def key(judge: Sequence[str], messages: Sequence[Message], allowed: Sequence[str]) -> str:
        """The hash of what a verdict depends on; `judge` is its address and its model."""
        content = msgspec.json.encode((judge, messages, allowed), order="deterministic")
        return hashlib.sha256(content).hexdigest()

    def get(self, key: str) -> str | None:
        """The verdict given earlier, None if there is none."""
        return self._known.get(key)

    def put(self, key: str, verdict: str) -> None:
        """Keep a verdict. OSError if the disk does not take it."""
        with self._lock:
            self._known[key] = verdict
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _append(self._file, msgspec.json.encode(_Line(key, verdict)))


class _Answer(msgspec.Struct):
    key: str
    number: int
    content: str
    finished: bool = True
    asked: str = ""
    nth: int = 0


class AnswerStore:
    """Answers of models that write data, by the content that they depend on: one line each in `answers.jsonl`.

    Who asks the same thing several times wants several answers, so they are numbered from 1. Used by one process; a
    line that a crash tore is as if it were not there. Read when it is first needed.

    Each is also known by what was asked alone (`asked`, `nth`), whichever model answered: by that a replay finds it.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "answers.jsonl"
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], tuple[str, bool]] | None = None

    @staticmethod
    def key(model: Sequence[str], messages: Sequence[Message], options: Any) -> str:
        """The hash of what an answer depends on; `model` is its address and its name."""
        return hashlib.sha256(msgspec.json.encode((model, messages, options), order="deterministic")).hexdigest()

    def get(self, key: str, number: int) -> tuple[str, bool] | None:
        """The answer given earlier, and whether it is whole; None if there is none."""
        with self._lock:
            return self._read().get((key, number))

    def put(self, key: str, number: int, content: str, *, finished: bool, asked: tuple[str, int] = ("", 0)) -> None:
        """Keep an answer. OSError if the disk does not take it."""
        with self._lock:
            self._read()[key, number] = self._read()[asked] = content, finished
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _append(self._file, msgspec.json.encode(_Answer(key, number, content, finished, *asked)))

    def _read(self) -> dict[tuple[str, int], tuple[str, bool]]:
        if self._known is None:
            self._known = {}
            if self._file.exists():
                with self._file.open("rb") as lines:
                    for line in lines:
                        try:
                            entry = msgspec.json.decode(line, type=_Answer)
                        except (msgspec.MsgspecError, UnicodeDecodeError):
                            continue
                        said = entry.content, entry.finished
                        self._known[entry.key, entry.number] = self._known[entry.asked, entry.nth] = said
        return self._known


class Transcript:
    """What was asked and answered: JSON lines without keys, each text clipped, the whole of it bounded.

    Args:
        file: None keeps none.
        redact: Takes the key out of a text.
    """

    def __init__(self, file: Path | None, redact: Callable[[str], str], most: int = TRANSCRIPT) -> None:
        self._file, self._redact, self._most = file, redact, most
        self._lock = threading.Lock()
        self._size = file.stat().st_size if file and file.exists() else 0

    def write(self, **entry: Any) -> None:
        """Append one line. OSError if the disk does not take it."""
        if self._file is None:
            return
        line = msgspec.json.encode({"time": time.time()} | self._bounded(entry))
        with self._lock:
            if self._size > self._most:
                return
            self._size += len(line) + 1
            if self._size > self._most:
                line = msgspec.json.encode({"time": time.time(), "end": f"it is full: {self._most:,} bytes"})
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _append(self._file, line)

    def _bounded(self, value: Any) -> Any:
        if isinstance(value, str):
            text = self._redact(value)
            return text if len(text) <= CLIP else f"{text[:CLIP]} ... {len(text) - CLIP:,} characters more"
        if isinstance(value, dict):
            return {key: self._bounded(inner) for key, inner in value.items()}
        return [self._bounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def _append(file: Path, line: bytes) -> None:
    """One write: what several processes append stays in whole lines. After a torn line a new one is begun."""
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + line + b"\n")
    finally:
        os.close(descriptor)
