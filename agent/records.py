"""The frozen records that everything else passes around; their invariants are checked when they are made.

They are msgspec structs: one declaration gives the type, the JSON form in the journal and its validation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]
Stage = Literal["propose", "check", "data", "mini-run", "train", "bench", "accept"]
STAGES: tuple[Stage, ...] = ("propose", "check", "data", "mini-run", "train", "bench", "accept")
REFLECT = "reflect"
"""The stage after a trial's last one, in which its lesson is written; no part of what the trial has to show."""
HOST_STAGES = ("propose", "check", "accept", REFLECT)
"""Stages without a job: they use no GPU."""
FailureKind = Literal[
    "proposal", "check", "data", "mini-run", "train:oom", "train:timeout", "train:exit", "bench", "judge"
]
Split = Literal["search", "test"]
Verdict = Literal["better", "tie", "worse", "unscored", "undecidable"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a language model consumed.

    `cost` is in US dollars; None means that the model's price is not known.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        unknown = self.cost is None or other.cost is None
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=None if unknown else (self.cost or 0.0) + (other.cost or 0.0),
        )


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What defines a training: LLaMA-Factory keys that a proposal may set, the data work, and the harness's seed.

    Attributes:
        script: A data script that makes the training data out of the study's; empty for none (docs/data-scripts.md).
        data: Declarative steps over the study's data, or over what the script wrote, in order.
    """

    train: dict[str, Value]
    seed: int = 42
    script: str = ""
    data: tuple[dict[str, Any], ...] = ()

    @property
    def prepares(self) -> bool:
        """Whether it trains on other rows than the study's own."""
        return bool(self.script or self.data)


Mode = Literal["", "draft", "improve", "debug"]


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What to try next, why, and who says so (`author`: "tpe", "llm:gpt-4", ...).

    `mode` says what kind of attempt it is: something new, a better version of its parent, or the mending of a parent
    that failed; empty where the proposer does not tell them apart.
    """

    hypothesis: str
    change: str  # in a few words: what differs from the parent
    recipe: Recipe
    author: str
    reason: str = ""
    expected: str = ""
    parent: int | None = None
    mode: Mode = ""
    usage: Usage = Usage()


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial teaches the next ones, in about 100 tokens; never a verdict, which is the harness's."""

    text: str
    usage: Usage = Usage()


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is too big for the journal, held there by its content."""

    path: str
    sha256: str


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One answered question of a benchmark; `score` is None where no verdict could be had (unscored is not 0).

    Attributes:
        score: The mean over the scored answers.
        scores: One an answer, where the question was answered several times.
        response, extracted: The first answer, and what was taken from it for scoring.
        formatted: False where no answer could be extracted (of several: from none of them): not asked-for form rather
            than a wrong answer.
    """

    id: str
    score: float | None
    response: str = ""
    extracted: str | None = None
    scores: tuple[float | None, ...] = ()
    formatted: bool = True


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """A question of the search split that was not answered right, shortened; what it says is untrusted text."""

    question: str
    response: str
    extracted: str | None = None


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """The score of one model on one split of one benchmark.

    Attributes:
        mean: Mean per-question score in [0, 1] over the scored questions.
        stderr: Its standard error (0 where all questions agree; the interval is never empty).
        low, high: 95% Wilson score interval (Wilson 1927).
        n: Scored questions. unscored: questions without a verdict.
        settings: How the answers were made: few-shot count, decoding, chat template, versions.
        key: Hash of everything that the score depends on; equal keys may share one score.
        samples: Answers a question. unformatted: questions from no answer of which anything could be extracted.
        asked, planned: Questions asked until a race was ended early, of so many; None where all of them were.
        marked: What makes the score less than it seems, said wherever it is shown ("contaminated: 12 rows ...").
        mistakes: Some wrong answers, for the next proposal; of the search split only.
    """

    benchmark: str
    split: Split
    n: int
    mean: float
    stderr: float
    low: float
    high: float
    unscored: int
    questions: FileRef
    settings: dict[str, Any]
    key: str
    seconds: float = 0.0
    samples: int = 1
    unformatted: int = 0
    asked: int | None = None
    planned: int | None = None
    marked: str = ""
    mistakes: tuple[Mistake, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1 or self.unscored < 0:
            raise ValueError(f"{self.benchmark}: a score needs at least one scored question, got n={self.n}")
        if (self.asked is None) != (self.planned is None) or (self.asked or 0) > (self.planned or 0):
            raise ValueError(f"{self.benchmark}: {self.asked} of {self.planned} questions asked")
        if self.mistakes and self.split != "search":
            raise ValueError(f"{self.benchmark}: nothing of the {self.split} split is kept for proposals")
        if not all(map(math.isfinite, (self.mean, self.stderr, self.low, self.high))):
            raise ValueError(f"{self.benchmark}: a score must be finite")
        if not 0.0 <= self.low <= self.mean <= self.high <= 1.0 or self.low == self.high:
            raise ValueError(f"{self.benchmark}: {self.mean} is not inside [{self.low}, {self.high}] in [0, 1]")


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate against the best so far, paired by question.

    Attributes:
        verdict: What the harness decided; nobody else does.
        difference: Mean per-question difference, candidate minus best; low, high: its interval.
        wins, losses: Questions that only the candidate, or only the best, got right.
        alpha: One-sided level of the test behind the verdict.
        detectable: Smallest true difference that would be found with 80% power.
        candidate: Which comparison of the study this is, from 1 on; its level depends on that.
        asked, planned: Questions asked before the candidate was dropped, of so many; None where all were.
    """

    verdict: Verdict
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    n: int
    p_value: float
    alpha: float
    detectable: float
    against: str
    candidate: int | None = None
    asked: int | None = None
    planned: int | None = None

    def __post_init__(self) -> None:
        if self.asked is not None and self.verdict == "better":
            raise ValueError("a candidate that was dropped early cannot be better")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a trial ended without a score."""

    kind: FailureKind
    reason: str
    tail: str = ""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe that passed every check that needs no job; `changed` names what differs from the defaults."""

    changed: tuple[str, ...] = ()


class TrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe's data work gave.

    Attributes:
        path: The directory that holds it as the trainer reads it. rows: How many.
        script: The script that made it, mended where it had to be. repairs: How often that was.
        summary: Its figures, for the next proposal: bounded, and without a row of any benchmark.
        reused: The same work had been done before.
    """

    path: str
    rows: int
    script: str = ""
    repairs: int = 0
    summary: str = ""
    reused: bool = False
    usage: Usage = Usage()


class MiniRun(msgspec.Struct, frozen=True, kw_only=True):
    """A few steps at the full sequence length: does it start, fit and learn at all?

    Attributes:
        shape: Equal where a mini-run would find the same (model, method, batch, lengths).
        seconds: Of the whole job. step_seconds: of one optimizer step on the longest rows.
        accumulation: Batches that such a step sums.
        startup: Seconds before and after the steps: imports, loading, tokenizing, saving.
        reused_from: The trial whose mini-run had the same shape.
        changed: Keys that had to be changed for it to fit into memory; the training keeps them. why: In words.
    """

    shape: str
    steps: int
    seconds: float
    step_seconds: float | None = None
    accumulation: int = 1
    startup: float = 0.0
    reused_from: int | None = None
    changed: dict[str, Value] = {}
    why: str = ""


class Loss(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One point of the loss history."""

    step: int
    loss: float


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Trained weights: a full model directory, or an adapter on top of the base.

    Attributes:
        path: The directory. weights: sha256 over its weight files.
        adapter: True where `path` holds a PEFT adapter and the base is needed beside it.
        versions: Versions of the packages that wrote it ("transformers", ...).
        changed: Keys that were trained with other values than the recipe's, for memory or time. why: In words.
    """

    path: str
    weights: str
    adapter: bool
    losses: tuple[Loss, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = {}
    changed: dict[str, Value] = {}
    why: str = ""


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One score a benchmark, in the study's order.

    `others` are the base's scores at the settings that were not the better ones (zero-shot beside few-shot).
    """

    scores: tuple[Score, ...]
    others: tuple[Score, ...] = ()

    @property
    def mean(self) -> float:
        """The mean over the benchmarks, for ranking only; verdicts are made per question."""
        return sum(score.mean for score in self.scores) / len(self.scores)


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
