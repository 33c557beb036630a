"""A conversation with the language model until its reply can be used: tools, repair turns, prompts too long for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from agent.errors import BudgetEnded
from agent.llm import ChatModel, ContextOverflow, EndpointError, Message, Replay, Reply, Transcript, asked_tools, charge
from agent.prompts import clip, render
from agent.propose.context import TokenMeasure
from agent.propose.tools import ROUNDS, Toolbox
from agent.records import Usage

T = TypeVar("T")

BAD_REPLY = 4_000  # characters of an unusable reply, when it is quoted back
PROBLEMS, PROBLEM = 8, 500  # problems named in a repair turn, characters of each
TRIMS = 4  # times that a prompt is made shorter for an endpoint that finds it too long
SHORTEST = 1_000  # tokens; a prompt of fewer says too little

Begin = Callable[[int, TokenMeasure], list[Message]]
"""The first messages, within so many tokens."""
Read = Callable[[Reply], tuple[T | None, list[str]]]
"""What a reply says, or the problems that the model is told."""


class Unusable(Exception):
    """No reply could be used; `text` is the last one, `problems` are what is wrong with it."""

    def __init__(self, text: str, problems: Sequence[str], replies: int) -> None:
        super().__init__("; ".join(clip(problem, PROBLEM) for problem in problems[:PROBLEMS]))
        self.text = text
        self.replies = replies
        self.usage = Usage()


class Dialogue:
    """Talks with one model; remembers how long a prompt its endpoint takes, and how it counts tokens.

    Args:
        repairs: Further attempts after an unusable reply.
        tokens: Most tokens of a prompt, before what is said in the conversation.
        say: Told where a prompt had to be made shorter.
    """

    def __init__(
        self,
        model: ChatModel | Replay,
        transcript: Transcript,
        repairs: int,
        tokens: int,
        say: Callable[[str], None],
    ) -> None:
        self._model = model
        self._transcript = transcript
        self._repairs = repairs
        self._tokens = tokens
        self._say = say
        self._measure = TokenMeasure()

    def hold(
        self,
        role: str,
        begin: Begin,
        schema: dict[str, Any],
        read: Read[T],
        toolbox: Toolbox | None = None,
        *,
        trims: int = TRIMS,
    ) -> tuple[T, Usage]:
        """What the model said once it could be used, and what that consumed.

        Args:
            trims: Times that `begin` is asked for fewer tokens where the endpoint finds them too many.

        Raises: Unusable, EndpointError, BudgetEnded; whatever leaves it, KeyboardInterrupt included, carries in `usage`
            what was consumed until then.
        """
        spent: list[Usage] = []
        for trim in range(1 + trims):
            messages = begin(self._tokens, self._measure)
            try:
                value = self._talk(role, messages, schema, read, toolbox, spent)
                return value, sum(spent, Usage())
            except ContextOverflow as error:
                if trim == trims or not self._shorten(messages, error):
                    charge(error, sum(spent, Usage()))
                    raise
                spent.append(error.usage)
                toolbox = None  # what it said may be what was too long
            except BaseException as error:
                charge(error, sum(spent, Usage()))
                raise
        raise AssertionError("the last trim raises")

    def ask(
        self,
        messages: list[Message],
        schema: dict[str, Any] | None,
        where: Mapping[str, Any],
        tools: Sequence[dict[str, Any]] = (),
    ) -> Reply:
        """One reply; a failure is written to the transcript, the reply by the caller, who knows what it is worth."""
        try:
            reply = self._model.complete(messages, schema, tools=tools, role=where["role"])
        except (EndpointError, BudgetEnded) as error:
            usage = getattr(error, "usage", Usage())
            self._transcript.write(messages, **where, error=str(error), usage=usage)
            raise
        self._measure = self._measure.calibrated([*messages, {"tools": list(tools)}], reply.prompt_tokens)
        return reply

    def _talk(
        self,
        role: str,
        messages: list[Message],
        schema: dict[str, Any],
        read: Read[T],
        toolbox: Toolbox | None,
        spent: list[Usage],
    ) -> T:
        messages = list(messages)
        looks = failures = 0
        while True:
            where = {"role": role, "turn": 1 + looks + failures, "turns": 1 + looks + self._repairs}
            tools = toolbox.schemas if toolbox and looks < ROUNDS and not failures else []
            reply = self.ask(messages, schema, where, tools)
            spent.append(reply.usage)
            if toolbox and reply.calls and tools:
                self._transcript.write(messages, **where, reply=reply.text, calls=list(reply.calls), usage=reply.usage)
                looks += 1
                messages += _looked_up(reply, toolbox, last=looks == ROUNDS)
                continue
            value, problems = read(reply)
            self._transcript.write(
                messages, **where, reply=reply.text, problem=reply.problem, problems=problems, usage=reply.usage
            )
            if value is not None and not problems:
                return value
            failures += 1
            if failures > self._repairs:
                raise Unusable(reply.text, problems, failures)
            messages += _repair_turn(reply.text, problems, last=failures == self._repairs)

    def _shorten(self, messages: Sequence[Message], error: ContextOverflow) -> bool:
        """Take in that the endpoint's context is smaller; False where a shorter prompt would say too little."""
        tokens = int(error.fits * min(self._tokens, self._measure.of(messages)))
        if tokens < SHORTEST:
            return False
        self._say(f"{error.message}; from now on a prompt has at most about {tokens:,} tokens")
        self._tokens = tokens
        return True


def _looked_up(reply: Reply, toolbox: Toolbox, *, last: bool) -> list[Message]:
    """What the model asked of the tools, and what they said."""
    asked = asked_tools(reply)
    said: list[Message] = [
        {"role": "tool", "tool_call_id": call.id, "content": toolbox.answer(call)} for call in reply.calls
    ]
    return [asked, *said, *([{"role": "user", "content": render("answer_now")}] if last else [])]


def _repair_turn(text: str, problems: Sequence[str], *, last: bool) -> list[Message]:
    quoted = "\n".join(f"- {clip(problem, PROBLEM)}" for problem in problems[:PROBLEMS])
    return [
        {"role": "assistant", "content": clip(text, BAD_REPLY) or "(an empty reply)"},
        {"role": "user", "content": render("repair", problems=quoted, last=last)},
    ]
