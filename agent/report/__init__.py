"""What a person sees: a live terminal or a plain log while it runs, a summary and report.md when it pauses."""

from __future__ import annotations

from typing import Protocol

from agent.records import Scores, Trial


class View(Protocol):
    """Told what happens, in order, by one thread. Trial 0 is the base."""

    def say(self, message: str) -> None:
        """One line that should be seen once (what was chosen and why, a warning)."""
        ...

    def plan(self, rows: list[tuple[str, str]]) -> None:
        """The header of a call: ("data set", "demo/reverse, 3,000 rows"), ("budget", "10 min"), ..."""
        ...

    def budget(self, seconds_left: float | None) -> None:
        """Remaining active time of this call; None where it has no time limit."""
        ...

    def stage_started(self, trial: int, stage: str, attempt: int) -> None:
        """A stage begins (attempt 2 and above: it was interrupted before)."""
        ...

    def progress(self, fraction: float, words: str) -> None:
        """How far the running stage is, in [0, 1]."""
        ...

    def stage_ended(self, trial: int, stage: str, outcome: str, seconds: float) -> None:
        """`outcome`: "done", "failed", "stopped", or "kept" for one that an earlier call completed."""
        ...

    def base(self, scores: Scores) -> None:
        """The score to beat."""
        ...

    def trial_ended(self, trial: Trial, best: int | None) -> None:
        """A trial was recorded; `best` is the best trial's number so far, None while the base is unbeaten."""
        ...

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        ...
