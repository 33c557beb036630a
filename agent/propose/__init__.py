"""Who decides what to try next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent.records import History, Proposal, Recipe

Check = Callable[[Recipe], list[str]]
"""Problems of a recipe, each one line that says what is wrong and what to write instead; empty if it may run."""


class Proposer(Protocol):
    """Proposes; never scores. Raises `TrialFailed("proposal", ...)` where nothing valid came of it."""

    @property
    def name(self) -> str:
        """Who proposes, for people ("tpe", "llm:gpt-4")."""
        ...

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next proposal, given the finished trials and the proposals still running."""
        ...
