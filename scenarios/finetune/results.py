"""What a bench job wrote, checked, and made a score.

It was written by a job that read untrusted weights and questions, so nothing in it is taken on trust.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.prompts import one_line
from agent.records import FileRef, Mistake, Question, Score, Split
from agent.run import written
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.score_cache import decode_questions
from scenarios.finetune.splits import Item

Z95 = 1.959963984540054
LARGEST_ANSWER = 256 * 1024
"""Bytes of questions.jsonl allowed a question."""
MISTAKES, SHOWN = 4, 400
"""Wrong answers kept for the next proposal, and characters of each text of theirs."""
ASKED_IN = ("question", "problem", "prompt", "input")
"""Columns that may hold a question as text."""


class Result(msgspec.Struct, frozen=True):
    """The result.json of a program in docker/bench."""

    n: int
    mean: float | None
    settings: dict[str, Any]


class Unusable(Exception):
    """The job ended well, but what it wrote is no result."""


class NothingScored(Unusable):
    """Not one question has a score."""

    def __init__(self) -> None:
        super().__init__("not one question has a score")


def read_result(output: Path, items: Sequence[Item], samples: int = 1) -> tuple[Result, tuple[Question, ...]]:
    """The job's result, checked against the questions that it was given.

    Raises:
        Unusable: Missing or malformed, another number of predictions than questions, other questions, a score that is
            no number in [0, 1] or not the mean of its samples, or a mean that is not that of the scores.
    """
    try:
        result = msgspec.json.decode(read_bounded(output / "result.json", 1024**2), type=Result)
        questions = decode_questions(read_bounded(output / "questions.jsonl", LARGEST_ANSWER * len(items)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(f"the scoring program wrote no valid result ({error})") from error
    if not len(questions) == result.n == len(items):
        raise Unusable(f"{len(items)} questions gave {len(questions)} predictions (the summary says {result.n})")
    _check(questions, items, samples)
    scores = _scores(questions)
    if not scores:
        raise NothingScored
    if result.mean is None or not math.isclose(result.mean, math.fsum(scores) / len(scores), abs_tol=1e-9):
        raise Unusable(f"the summary's mean {result.mean} is not that of the questions")
    return result, questions


def read_answers(output: Path, items: Sequence[Item], samples: int = 1) -> tuple[Question, ...]:
    """What a running job has answered so far, in the order of the questions; Unusable as in `read_result`."""
    content = read_bounded(output / "answers.jsonl", LARGEST_ANSWER * len(items))
    try:
        questions = decode_questions(content[: content.rfind(b"\n") + 1])  # the last line may be half-written
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(f"the scoring program wrote no valid answers ({error})") from error
    _check(questions, items[: len(questions)], samples)
    return questions


def read_bounded(path: Path, limit: int) -> bytes:
    """A file that the job wrote; Unusable where it is missing, larger than `limit` bytes, or no plain file."""
    try:
        return written.read(path.parent, path.name, limit)
    except OSError as error:
        raise Unusable(f"{path.name} cannot be read: {error.strerror}") from error


def _check(questions: Sequence[Question], items: Sequence[Item], samples: int) -> None:
    if [question.id for question in questions] != [item.id for item in items]:
        raise Unusable("the predictions are not for the questions that were asked")
    for question in questions:
        for score in (question.score, *question.scores):
            if score is not None and not 0.0 <= score <= 1.0:
                raise Unusable(f"question {question.id} has the score {score}, which is not in [0, 1]")
        if samples > 1:
            _check_samples(question, samples)


def _check_samples(question: Question, samples: int) -> None:
    if len(question.scores) != samples:
        raise Unusable(f"question {question.id} has {len(question.scores)} answers, not {samples}")
    scored = [score for score in question.scores if score is not None]
    mean = math.fsum(scored) / len(scored) if scored else None
    if (mean is None) != (question.score is None) or abs((mean or 0.0) - (question.score or 0.0)) > 1e-9:
        raise Unusable(f"question {question.id} has the score {question.score}, but its answers {mean}")


def unscored_share(questions: Sequence[Question]) -> float:
    """The share of the answers that lack a verdict."""
    scores = [score for question in questions for score in (question.scores or (question.score,))]
    return sum(score is None for score in scores) / len(scores)


def mistakes(questions: Sequence[Question], items: Sequence[Item]) -> tuple[Mistake, ...]:
    """The first questions that were answered wrong, shortened for a prompt."""
    wrong = (
        (question, item)
        for question, item in zip(questions, items, strict=False)  # fewer questions than items where a race ended
        if question.score == 0.0
    )
    return tuple(
        Mistake(
            question=one_line(_asked(item), SHOWN),
            response=one_line(question.response, SHOWN),
            extracted=None if question.extracted is None else one_line(question.extracted, SHOWN // 4),
        )
        for question, item in itertools.islice(wrong, MISTAKES)
    )


def _asked(item: Item) -> str:
    """The question's text; empty where no column is known to hold it, as another could hold its answer."""
    return next((str(item.row[name]) for name in ASKED_IN if isinstance(item.row.get(name), str)), "")


def _scores(questions: Sequence[Question]) -> list[float]:
    return [question.score for question in questions if question.score is not None]


def summarize(
    benchmark: Benchmark,
    split: Split,
    questions: Sequence[Question],
    file: FileRef,
    settings: dict[str, Any],
    *,
    key: str,
    seconds: float,
    samples: int = 1,
    planned: int | None = None,
    wrong: tuple[Mistake, ...] = (),
) -> Score:
    """Mean, standard error and interval over the scored questions, of which there must be one.

    `planned` is how many questions a race that ended early would have asked.
    """
    scores = _scores(questions)
    mean = min(1.0, math.fsum(scores) / len(scores))
    variance = sum((value - mean) ** 2 for value in scores) / max(len(scores) - 1, 1)
    low, high = wilson(mean, len(scores))
    return Score(
        benchmark=benchmark.name,
        split=split,
        n=len(scores),
        mean=mean,
        stderr=math.sqrt(variance / len(scores)),
        low=low,
        high=high,
        unscored=len(questions) - len(scores),
        questions=file,
        settings=settings,
        key=key,
        seconds=seconds,
        samples=samples,
        unformatted=sum(not question.formatted for question in questions),
        asked=None if planned is None else len(questions),
        planned=planned,
        mistakes=wrong,
    )


def wilson(mean: float, n: int) -> tuple[float, float]:
    """95% score interval of a mean in [0, 1] over n questions; never empty, also at 0 and 1 (Wilson 1927)."""
    centre = mean + Z95**2 / (2 * n)
    reach = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    # Rounding must not push a mean of exactly 0 or 1 out of its interval.
    return max(0.0, min(mean, (centre - reach) / scale)), min(1.0, max(mean, (centre + reach) / scale))
