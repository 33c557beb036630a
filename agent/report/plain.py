"""The view for logs, pipes and dumb terminals: one timestamped line an event."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from agent.records import Scores, Trial
from agent.report import words

QUIET = 10.0  # seconds between two lines of progress, at least
STEP = 0.1  # of a stage between them, unless PATIENCE has passed
PATIENCE = 300.0  # seconds after which a slow stage says again that it lives


class PlainView:
    """Writes lines to `stream`, flushed; a stream that is gone (a closed pipe) is not worth the study.

    Args:
        stream: Where the lines go.
        clock: Seconds since the epoch; gives the timestamps, in local time.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._left: float | None = None
        self._stage = ""
        self._told = (0.0, 0.0)  # when, and at which fraction, progress was last written
        self._means: dict[int, str] = {}

    def say(self, message: str) -> None:
        """One line that should be seen once."""
        self._write(words.clean_block(message, lines=20, width=500))

    def plan(self, rows: list[tuple[str, str]]) -> None:
        """The header of a call."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self._write(f"{name:<{width}}  {words.clean(value, 500)}")

    def budget(self, seconds_left: float | None) -> None:
        """Remaining active time; written with the next stage."""
        self._left = seconds_left

    def stage_started(self, trial: int, stage: str, attempt: int) -> None:
        """A stage begins."""
        self._stage = f"{words.subject(trial)}, {words.clean(stage, 40)}"
        self._told = (self._clock(), 0.0)
        again = f" again (attempt {attempt})" if attempt > 1 else ""
        left = "" if self._left is None else f", {words.clock(self._left)} left"
        self._write(f"{self._stage}: started{again}{left}")

    def progress(self, fraction: float, message: str) -> None:
        """At most one line in 10 seconds, and then only for another 10% or after five minutes."""
        now, (then, before) = self._clock(), self._told
        if now - then < QUIET or (fraction - before < STEP and now - then < PATIENCE):
            return
        self._told = (now, fraction)
        self._write(f"{self._stage}: {fraction:.0%}, {words.clean(message, 120)}")

    def stage_ended(self, trial: int, stage: str, outcome: str, seconds: float) -> None:
        """A stage is over."""
        after = "" if outcome == "kept" else f" after {words.duration(seconds)}"
        said = "kept from an earlier call" if outcome == "kept" else words.clean(outcome, 40)
        self._write(f"{words.subject(trial)}, {words.clean(stage, 40)}: {said}{after}")

    def base(self, scores: Scores) -> None:
        """The score to beat."""
        self._means[0] = words.mean(scores.scores)
        for score in scores.scores:
            self._write(f"base: {words.clean(score.benchmark, 60)} {words.score(score)}")

    def trial_ended(self, trial: Trial, best: int | None) -> None:
        """A trial was recorded."""
        self._means[trial.number] = words.mean(trial.scores)
        for line in (words.change(trial.proposal), words.hypothesis(trial.proposal)):
            if line:
                self._write(f"trial {trial.number}: {line}")
        if trial.comparison:
            found = f"{words.mean(trial.scores)}, {words.verdict(trial)} {words.difference(trial.comparison)}"
        else:
            found = f"failed: {words.failure(trial.failure)}" if trial.failure else "failed"
        self._write(f"trial {trial.number}: {found}, {words.duration(trial.seconds)}")
        self._write(f"best so far: {words.best(best, self._means)}")

    def close(self) -> None:
        """Nothing to give back; every line is flushed."""

    def _write(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._clock()))
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        lines = "".join(f"{stamp}  {line}\n" for line in text.split("\n"))
        try:
            self._stream.write(lines.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, or a closed file
            return
