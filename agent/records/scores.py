"""What was measured: questions, scores, and how two of them compare."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

Split = Literal["search", "test"]
Verdict = Literal["better", "tie", "worse", "unscored", "undecidable"]


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
