"""What can be trained and measured. Each scenario is a package here; the loop knows only this Protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.records import Checked, Checkpoint, Comparison, MiniRun, Recipe, Score, Scores, Sealed
from agent.run import Job, Outcome

Progress = Callable[[], tuple[float, str] | None]
"""How far a running job is: a fraction in [0, 1] and a few words ("step 40/200, loss 1.32"); None if not known yet."""


class Bench(Protocol):
    """What a stage may use of the loop: a directory of its own, a way to run jobs, and a voice."""

    @property
    def directory(self) -> Path:
        """The stage's own directory; empty when the stage starts."""
        ...

    @property
    def name(self) -> str:
        """Unique job name of this stage."""
        ...

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        """Run a job under the call's budget; raises BudgetEnded where that stopped it."""
        ...

    def say(self, message: str) -> None:
        """Tell the person at the terminal."""
        ...


class Scenario(Protocol):
    """One kind of experiment: how a recipe is checked, trained and scored."""

    def problems(self, recipe: Recipe) -> list[str]:
        """Why this recipe may not run; empty if it may. Fast: no job."""
        ...

    def check(self, recipe: Recipe) -> Checked:
        """The same as a stage: raises TrialFailed("check", ...)."""
        ...

    def mini_run(
        self, bench: Bench, recipe: Recipe, earlier: Sequence[tuple[int, MiniRun]], trained: Sequence[float]
    ) -> MiniRun:
        """A few steps at full length.

        `earlier` are the study's successful mini-runs, by trial number; `trained` the seconds of its trainings.
        """
        ...

    def train(self, bench: Bench, recipe: Recipe) -> Checkpoint:
        """Train; raises TrialFailed("train:...")."""
        ...

    def baseline(self, bench: Bench) -> Scores:
        """The base model's search scores, at its better setting of each benchmark; raises TrialFailed("bench", ...)."""
        ...

    def score(self, bench: Bench, checkpoint: Checkpoint) -> Scores:
        """A candidate's search scores; raises TrialFailed("bench", ...)."""
        ...

    def compare(self, candidate: Sequence[Score], incumbent: Sequence[Score], against: str) -> Comparison:
        """The paired verdict, question by question."""
        ...

    def open_seal(self, bench: Bench, checkpoint: Checkpoint, base: Sequence[Score]) -> Sealed:
        """Score the winner and the base (at the settings of its search scores) on the sealed test split."""
        ...

    def ceiling(self, incumbent: Sequence[Score]) -> str | None:
        """Why no candidate could be called better than this incumbent any more; None while one could."""
        ...
