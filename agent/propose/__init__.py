"""Who decides what to try next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from agent.records import History, Lesson, Mode, Proposal, Recipe, Trial

Check = Callable[[Recipe], list[str]]
"""Problems of a recipe, each one line that says what is wrong and what to write instead; empty if it may run."""


class Directive(msgspec.Struct, frozen=True):
    """What kind of attempt comes next, on which trial it builds (None: on none), and why, in words for the author."""

    mode: Mode
    parent: int | None
    why: str


Policy = Callable[[History], Directive]
"""Decides the next attempt's kind and parent from what was tried."""


class Proposer(Protocol):
    """Proposes; never scores. Raises `TrialFailed("proposal", ...)` where nothing valid came of it."""

    @property
    def name(self) -> str:
        """Who proposes, for people ("tpe", "llm:gpt-4")."""
        ...

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next proposal, given the finished trials and the proposals still running."""
        ...


@runtime_checkable
class Author(Proposer, Protocol):
    """A proposer that also writes: a language model."""

    def mend(self, proposal: Proposal, problem: str) -> Proposal:
        """The proposal with another data script, because of what went wrong with this one.

        Raises `TrialFailed("data", ...)` where it cannot be mended.
        """
        ...

    def reflect(self, history: History, trial: Trial, found: str) -> Lesson:
        """What the trial, which is not yet part of the history, teaches; `found` is what the harness's numbers say."""
        ...
