"""Compares two models' scores, question by question, also where a race left some of the questions unasked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent import accept
from agent.accept import Answers, Paired
from agent.records import Comparison, Score

Load = Callable[[Score], Answers]
"""Reads the answers behind a score, by question."""


def compare(
    candidate: Sequence[Score], incumbent: Sequence[Score], against: str, number: int | None, load: Load
) -> Comparison:
    """The verdict on a candidate.

    Args:
        candidate: Its scores; fewer than the incumbent's where a race ended before all benchmarks were asked.
        incumbent: The scores of the best so far, in the same order.
        against: Who that is.
        number: Which comparison of the study this is, from 1 on, for its level; None for the sealed test, which is a
            single one.
        load: Reads answers.

    Returns:
        The verdict on the questions that were asked; never "better" where a race ended early.
    """
    alpha = accept.SINGLE if number is None else accept.level(number)
    pairs = [paired(new, old, load) for new, old in zip(candidate, incumbent, strict=False)]
    planned = [total(score) for score in incumbent]
    found = accept.compare(pairs, against=against, alpha=alpha, planned=planned[: len(pairs)])
    found = msgspec.structs.replace(found, candidate=number)
    asked = sum(len(pair.candidate) for pair in pairs)
    if asked == sum(planned):
        return found
    # What would have been found is a matter of all the questions.
    whole = accept.compare([paired(score, score, load) for score in incumbent], against=against, alpha=alpha)
    return msgspec.structs.replace(
        found,
        verdict="tie" if found.verdict == "better" else found.verdict,
        detectable=whole.detectable,
        asked=asked,
        planned=sum(planned),
    )


def paired(new: Score, old: Score, load: Load) -> Paired:
    """Both sides' answers to the questions that the new one was asked."""
    answers, best = load(new), load(old)
    if new.asked is not None:
        best = {question: best[question] for question in answers}
    return Paired(new.benchmark, answers, best, samples=new.samples, best_samples=old.samples)


def total(score: Score) -> int:
    """How many questions a score would have in full."""
    return score.planned or score.n + score.unscored
