"""What can be trained and measured. Each scenario is a package here; the loop knows only this Protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.records import Checked, Checkpoint, Comparison, MiniRun, Recipe, Score, Scores, Sealed, TrainingData, Usage
from agent.run import Job, Outcome

Progress = Callable[[], tuple[float, str] | None]
"""How far a running job is: a fraction in [0, 1] and a few words ("step 40/200, loss 1.32"); None if not known yet."""
Stop = Callable[[], str | None]
"""Asked about twice a second while a job runs; a returned reason ends the job early."""
Mend = Callable[[str, str], str]
"""Asks a data script's author for a better one: (script, problem) -> script. Raises TrialFailed("data", ...)."""


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

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        """Count what a language model consumed in this stage, whatever becomes of the stage.

        `paid` where the study's money (`agent.money`) was charged by whoever asked.
        """
        ...

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        """Run a job under the call's budget; raises BudgetEnded where that stopped it, and not where `stop` did."""
        ...

    def say(self, message: str) -> None:
        """Tell the person at the terminal."""
        ...

    def left(self) -> float | None:
        """Seconds that this call has left for the stage; None where they are not limited."""
        ...

    def whole(self) -> float | None:
        """Seconds that a new call of the same length would have for it; None where they are not limited."""
        ...


class Scenario(Protocol):
    """One kind of experiment: how a recipe is checked, trained and scored."""

    def problems(self, recipe: Recipe) -> list[str]:
        """Why this recipe may not run; empty if it may. Fast: no job."""
        ...

    def check(self, recipe: Recipe) -> Checked:
        """The same as a stage: raises TrialFailed("check", ...)."""
        ...

    def prepare(self, bench: Bench, recipe: Recipe, mend: Mend) -> TrainingData:
        """Do the recipe's data work: its script, then its steps; raises TrialFailed("data", ...).

        A script that fails, or whose rows cannot be trained on, is mended a few times.
        """
        ...

    def mini_run(
        self,
        bench: Bench,
        recipe: Recipe,
        earlier: Sequence[tuple[int, MiniRun]],
        trained: Sequence[float],
        data: TrainingData | None = None,
    ) -> MiniRun:
        """A few steps at full length.

        `data` is what the recipe's own data work gave; None for the study's data. `earlier` are the study's successful
        mini-runs, by trial number; `trained` the seconds of its trainings.
        """
        ...

    def train(self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None) -> Checkpoint:
        """Train, knowing what the mini-run measured; raises TrialFailed("train:...").

        BudgetEnded where the call has too little time left for it, and another one would have enough.
        """
        ...

    def baseline(self, bench: Bench) -> Scores:
        """The base model's search scores, at its better setting of each benchmark; raises TrialFailed("bench", ...)."""
        ...

    def score(self, bench: Bench, checkpoint: Checkpoint, incumbent: Sequence[Score], number: int) -> Scores:
        """A candidate's search scores, cut short where it cannot be expected to win against the incumbent's.

        `number` is that of the comparison that follows. Raises TrialFailed("bench" or "judge", ...).
        """
        ...

    @property
    def sampled(self) -> bool:
        """Whether scoring once more would give other answers, so that an adopted best is scored afresh."""
        ...

    def rescore(self, bench: Bench, checkpoint: Checkpoint, fresh: int = 1) -> Scores:
        """The full search scores from seeds that no score with another `fresh` had part in; raises as `score` does."""
        ...

    def compare(
        self, candidate: Sequence[Score], incumbent: Sequence[Score], against: str, number: int | None = None
    ) -> Comparison:
        """The paired verdict, question by question.

        `number` counts the comparisons of the search from 1 on, and decides the level of this one; None for one that
        stands for itself, such as the sealed test.
        """
        ...

    def open_seal(self, bench: Bench, checkpoint: Checkpoint, base: Sequence[Score]) -> Sealed:
        """Score the winner and the base (at its better settings) on the sealed test split."""
        ...

    def seal_seconds(self, base: Scores, candidate: float) -> float:
        """What `open_seal` will take, as far as can be told.

        `candidate` is what a candidate's search scores took.
        """
        ...

    def ceiling(self, incumbent: Sequence[Score], number: int) -> str | None:
        """Why the study's `number`-th candidate could not be called better than this incumbent; None if it could."""
        ...
