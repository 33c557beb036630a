"""Trials, and what a study consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from agent.records.recipes import Proposal, Recipe, Usage
from agent.records.scores import Comparison, Score
from agent.records.stages import Checkpoint, Failure, TrainingData


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One finished attempt, whatever became of it."""

    number: int
    proposal: Proposal | None
    scores: tuple[Score, ...] = ()
    comparison: Comparison | None = None
    checkpoint: Checkpoint | None = None
    failure: Failure | None = None
    data: TrainingData | None = None
    lesson: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError("trials are numbered from 1")
        if (self.failure is None) == (self.comparison is None):
            raise ValueError(f"trial {self.number} must have either a comparison or a failure")
        if self.comparison is not None and not (self.scores and self.proposal and self.checkpoint):
            raise ValueError(f"trial {self.number} has a comparison without proposal, checkpoint or scores")

    @property
    def trained(self) -> Recipe | None:
        """What was really trained: the proposal's recipe, its script mended, with what memory or time had changed."""
        if self.proposal is None:
            return None
        recipe = self.proposal.recipe
        changed = self.checkpoint.changed if self.checkpoint else {}
        script = self.data.script if self.data else recipe.script
        return msgspec.structs.replace(recipe, train=recipe.train | changed, script=script)

    @property
    def mean(self) -> float | None:
        """Mean score on the search split; None for a failed trial."""
        return sum(s.mean for s in self.scores) / len(self.scores) if self.scores else None

    @property
    def verdict(self) -> str:
        """The comparison's verdict, or "failed (kind)"."""
        return self.comparison.verdict if self.comparison else f"failed ({self.failure.kind if self.failure else '?'})"


SEARCHED = "searched with"
"""The entry in an identity's `generation` that names a search pool's benchmarks."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two calls the same study. Budgets, runner, proposer and keys are no part of it.

    Attributes:
        benchmarks: What is aimed at: halved, or sealed whole where `pool` stands in for the search halves.
        generation: How each benchmark is asked, and further settings that make scores comparable.
    """

    dataset: str
    dataset_fingerprint: str
    model: str
    model_fingerprint: str
    benchmarks: tuple[str, ...]
    limit: int | None
    generation: dict[str, Any]

    @property
    def pool(self) -> str:
        """The names of the search pool's benchmarks; empty without one."""
        return str(self.generation.get(SEARCHED, ""))


class Contamination(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of the training data hold questions of the benchmarks, and what was done; no proposer sees it.

    Attributes:
        key: Hash of the data, the benchmarks and the rules. rows: of the data before anything was removed.
        found: Rows by benchmark, where there are any. flagged: rows that hold a question of any benchmark.
        action: "kept" where the rows were to be removed, but too few would have been left.
    """

    key: str
    rows: int
    found: dict[str, int]
    flagged: int
    action: Literal["none", "removed", "marked", "kept"]

    @property
    def summary(self) -> str:
        """ "12 of 7,473 rows hold questions of gsm8k"."""
        several = len(self.found) > 1
        names = ", ".join(f"{name} ({rows:,})" if several else name for name, rows in self.found.items())
        return f"{self.flagged:,} of {self.rows:,} rows hold questions of {names or 'no benchmark'}"

    @property
    def done(self) -> str:
        """What became of these rows."""
        return {
            "none": "nothing to do",
            "removed": "removed (FT_CONTAMINATION=remove)",
            "marked": "trained on, and every score is marked (FT_CONTAMINATION=mark)",
            "kept": f"NOT removed, because only {self.rows - self.flagged:,} rows would be left. This data set is the "
            "benchmark: every score is marked, and says nothing about what was learned",
        }[self.action]

    def mark(self, benchmark: str) -> str:
        """What is wrong with a score of a model that was trained on these rows; empty where nothing is."""
        if self.action in ("none", "removed") or benchmark not in self.found:
            return ""
        return f"contaminated: {self.found[benchmark]:,} of {self.rows:,} rows of the training data hold its questions"


def estimate(trial: Trial, base: Sequence[Score], trials: Sequence[Trial]) -> float | None:
    """Mean score of a trial on the whole search split; None for a failed one.

    Where its race was ended early, its own mean is that of other questions than the others' means are. Then it is the
    mean of whom it was compared with, plus the paired difference on the questions that were asked.
    """
    found = trial.comparison
    if found is None or found.asked is None:
        return trial.mean
    rivals = {"base": tuple(base)} | {f"trial {one.number}": one.scores for one in trials}
    if not (scores := rivals.get(found.against, ())):
        return trial.mean
    rival = sum(score.mean for score in scores) / len(scores)
    return min(max(rival + found.difference, 0.0), 1.0)


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What a proposer may know: the base's scores and the finished trials, search split only.

    `best` is the number of the best trial, None while the base is unbeaten; `fresh` are its scores from a second
    sampling, where that was made.
    """

    base: tuple[Score, ...] = ()
    trials: tuple[Trial, ...] = ()
    best: int | None = None
    fresh: tuple[Score, ...] = ()

    @property
    def incumbent(self) -> tuple[str, tuple[Score, ...]]:
        """Who is to be beaten ("base", "trial 3"), and its scores."""
        if self.best is None:
            return "base", self.base
        return f"trial {self.best}", self.fresh or self.trials[self.best - 1].scores

    def estimate(self, trial: Trial) -> float | None:
        """A trial's mean score, as `estimate` takes it where its race was ended early."""
        return estimate(trial, self.base, self.trials)

    @property
    def compared(self) -> int:
        """How many candidates have been compared so far."""
        return sum(trial.comparison is not None for trial in self.trials)


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What the sealed test split said, opened for the winner and the base after the search ended.

    `others` are the base's scores at settings that were not its better ones, where it was scored at several.
    """

    winner: tuple[Score, ...]
    base: tuple[Score, ...]
    comparison: Comparison
    others: tuple[Score, ...] = ()


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """The winner's recipe trained again from another seed, and scored on the search split from fresh seeds.

    `comparison` is with the base; None where the training or its scoring failed.
    """

    seed: int
    scores: tuple[Score, ...] = ()
    comparison: Comparison | None = None
    failure: Failure | None = None

    @property
    def mean(self) -> float | None:
        """Mean score on the search split; None where it has no score."""
        return sum(s.mean for s in self.scores) / len(self.scores) if self.scores else None


class StudyReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that a report shows; a pure function of the journal.

    Attributes:
        base: The incumbent that the first candidate had to beat: the base's better setting, a score a benchmark.
        others: The base's scores at its other settings, where it was scored at several.
        sealed: None while no candidate won, or while the test split is still sealed.
        openings: How many winners the test split has been opened for (1 is a clean, single look).
        output: Directory of the winner's weights, once copied there.
        active_seconds: Time spent in stages, over all calls.
        contamination: What the scan of the training data found; None where none was made.
        confirmations: The winner's recipe trained again (--confirm), in the order of their seeds.
        usage, judging: What the proposer's language model consumed, and the judge.
    """

    study: str
    directory: str
    identity: Identity
    base: tuple[Score, ...]
    trials: tuple[Trial, ...]
    best: int | None
    sealed: Sealed | None
    openings: int
    output: str | None
    usage: Usage
    active_seconds: float
    ending: str
    contamination: Contamination | None = None
    others: tuple[Score, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()
    judging: Usage = Usage()
