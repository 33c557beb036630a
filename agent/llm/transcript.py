"""The transcript of all that a language model was asked and said, and its replay without network.

One JSON object a line: `role` is what was asked for ("propose", "mend", "reflect"), `turn` of `turns` says where in a
conversation it was said, `calls` which tools the reply wants first, `problems` why it is of no use. No key is kept.

A replay answers by order and role: the n-th question of a role gets the n-th recorded reply; tools are run again, and
what they say goes into the next prompt. What was broken off (an endpoint that failed, Ctrl-C, a kill) was asked again
when it was recorded, so it is passed over; but no lesson is asked for twice: there the failure is replayed. The prompts
need not be equal, since they hold times and what is left of the budget; but a reply to a first question never answers a
second one, and a prompt that differs in more than its numbers is told, with the first line that does.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import BudgetEnded, MachineError, StudyError, UsageError
from agent.llm.endpoint import Endpoint, EndpointError
from agent.llm.form import Message
from agent.llm.reply import Reply, ToolCall, find_object
from agent.records import REFLECT, Usage

QUOTE = 160  # characters of a line that differs
AGENT = ("propose", "mend", REFLECT)
"""What the model that proposes is asked for."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call, or several to an endpoint that had to be asked again.

    Attributes:
        time: Seconds since the epoch. turn: from 1 on. turns: the most that this conversation may have.
        calls: Tools that the reply asks for before it answers.
        problem: Why the reply held no data. problems: why it was of no use, as the model was told.
        error: Why there is no reply.
    """

    time: float
    model: str
    messages: list[Message]
    role: str = "propose"
    turn: int = 1
    turns: int = 1
    reply: str | None = None
    calls: list[ToolCall] = []
    problem: str = ""
    problems: list[str] = []
    usage: Usage = Usage()
    error: str = ""

    @property
    def last(self) -> bool:
        """Whether its conversation ended with it."""
        return not self.calls and (not self.problems or self.turn >= self.turns)


class Transcript:
    """Writes a transcript; without a path it writes nothing."""

    def __init__(self, path: Path | None, endpoint: Endpoint) -> None:
        self._path = path
        self._endpoint = endpoint

    def write(self, messages: Sequence[Message], **entry: Any) -> None:
        """Append one entry, without the endpoint's key; MachineError where the file cannot be written."""
        if self._path is None:
            return
        said = self._endpoint.redacted(list(messages))
        line = msgspec.json.encode(Entry(time=time.time(), model=self._endpoint.model, messages=said, **entry))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            raise MachineError(f"{self._path}: cannot be written: {error.strerror}", "free the disk") from error


class Replay:
    """Answers as the recorded model did in some roles; takes the place of `agent.llm.ChatModel`.

    Args:
        path: A transcript, as a study leaves it (`transcript.jsonl`).
        say: Told which prompts differ from the recorded ones.

    Raises:
        UsageError: The file is no transcript, or holds no reply to these roles.
    """

    def __init__(self, path: Path, roles: Sequence[str] = AGENT, say: Callable[[str], None] = lambda _: None) -> None:
        self._path = path
        self._say = say
        self._entries = _whole((line, entry) for line, entry in read(path) if entry.role in roles)
        self._asked: Counter[str] = Counter()
        if not self._entries:
            names = ", ".join(map(repr, roles))
            raise UsageError(f"{path} holds no reply for {names}", "name the transcript.jsonl of a study")
        self.endpoint = Endpoint(model=self._entries[0][1].model, base_url="http://replay.localhost")

    @property
    def calls(self) -> int:
        """How many replies it has."""
        return len(self._entries)

    def complete(
        self,
        messages: Sequence[Message],
        schema: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] = (),
        role: str = AGENT[0],
    ) -> Reply:
        """The next reply that was recorded in a role, which costs nothing.

        Raises: BudgetEnded where none is left; StudyError where it answers another turn of a conversation;
            EndpointError where no lesson could be had when it was recorded.
        """
        recorded = [found for found in self._entries if found[1].role == role]
        if (asked := self._asked[role]) == len(recorded):
            raise BudgetEnded(f"the replay of {self._path} is at its end, after {asked} replies")
        line, entry = recorded[asked]
        self._asked[role] += 1
        self._compare(f"call {asked + 1} of {self._path} (line {line})", entry.messages, messages)
        if entry.error:
            raise EndpointError(f"as when it was recorded: {entry.error}")
        text = entry.reply or ""
        counted = entry.usage.prompt_tokens if entry.usage.calls == 1 else 0
        if schema is None or entry.calls:
            return Reply(
                text=text,
                data=None,
                usage=Usage(),
                content=text,
                calls=tuple(entry.calls),
                prompt_tokens=counted,
            )
        try:
            data, problem = (None, entry.problem) if entry.problem else (find_object(text), "")
        except ValueError as error:
            data, problem = None, str(error)
        return Reply(text=text, data=data, usage=Usage(), problem=problem, prompt_tokens=counted)

    def _compare(self, call: str, recorded: Sequence[Message], asked: Sequence[Message]) -> None:
        if len(recorded) != len(asked):
            raise StudyError(
                f"{call} was asked in {len(recorded)} messages, and now in {len(asked)}: the last one asks "
                f"{_quoted(asked[-1]['content'])} in place of {_quoted(recorded[-1]['content'])}",
                "replay it with the data, the model, the benchmarks and the version of ftloop that it was recorded "
                "with, in a new workspace",
            )
        for before, now in zip(recorded, asked, strict=True):
            if (lines := _first_difference(before["content"], now["content"])) is not None:
                was, is_now = map(_quoted, lines)
                self._say(f"replay: {call}: the prompt differs: recorded {was}, now {is_now}")
                return


def read(path: Path) -> list[tuple[int, Entry]]:
    """A transcript's lines and entries; a last line that a crash tore is left out. UsageError where it is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "name the transcript.jsonl of a study") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                found.append((number, _DECODER.decode(line)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if number == len(lines):
                break
            raise UsageError(
                f"{path}, line {number}: no line of a transcript: {error}", "name the transcript.jsonl of a study"
            ) from None
    return found


_DECODER = msgspec.json.Decoder(Entry)


def _whole(entries: Iterable[tuple[int, Entry]]) -> list[tuple[int, Entry]]:
    """The conversations that were brought to their end, each entry with its line."""
    whole: list[tuple[int, Entry]] = []
    under_way: list[tuple[int, Entry]] = []
    for line, entry in entries:
        if entry.turn == 1:
            under_way = []
        under_way.append((line, entry))
        if (entry.reply is not None and entry.last) or (entry.error and entry.role == REFLECT):
            whole, under_way = [*whole, *under_way], []
    return whole


def _first_difference(before: str, now: str) -> tuple[str, str] | None:
    """The first lines that differ in more than numbers."""
    for was, is_now in itertools.zip_longest(before.splitlines(), now.splitlines(), fillvalue=""):
        if _without_numbers(was) != _without_numbers(is_now):
            return was, is_now
    return None


def _without_numbers(line: str) -> str:
    """A line in which numbers, and units of time with them, do not count."""
    return re.sub(
        r"(?:[+-]?\d[\d.,:]*(?:e[+-]?\d+)?\s*(?:(?:ms|s|seconds?|min|minutes?|h|hours?|d|days?)\b\s*)?)+", "#", line
    )


def _quoted(line: str) -> str:
    words = " ".join(line.split())
    return repr(words if len(words) <= QUOTE else f"{words[:QUOTE]}…")
