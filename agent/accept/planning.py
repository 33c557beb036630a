"""What a number of questions can show, known before anything is spent on asking them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent.accept.distributions import bisect, normal_quantile, t_quantile
from agent.accept.levels import ALPHA
from agent.accept.paired import Answers

POWER = 0.80
LOSS_RATE = 0.05
"""Share of the questions that a truly better candidate is taken to lose."""
LASTING = 1 / 3
"""Share of the disagreement that more answers a question do not average out: changed skill, not the luck of a draw."""
HOPELESS = 0.50
"""A gain that has to be larger than this to be found is no gain to hope for: such questions decide nothing."""


def detectable(
    n: int, *, samples: int = 1, losses: float = LOSS_RATE, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Smallest true difference that n questions would show with the given power; 1.0 where none would be.

    Args:
        n: Questions.
        samples: Answers a question. One answer is right or wrong; of several the means are compared.
        losses: Share of the questions that the better model loses all the same; it wins `losses` + difference.
        alpha: One-sided level.
        power: Probability of finding it.

    Source: sample size for McNemar's test (Connor 1987, Biometrics 43:207), with a continuity correction of half a
    question; for several answers the t-test's, with `LASTING` of the disagreement left. A plan, not a promise: how much
    two models disagree is known only afterwards.
    """
    if not _reachable(n, alpha):
        return 1.0
    z_power, several = normal_quantile(power), samples > 1
    cut = t_quantile(alpha, n - 1) if several else -normal_quantile(alpha)
    left = LASTING + (1 - LASTING) / samples
    correction = 0.0 if several else 0.5 / n

    def found(difference: float) -> bool:
        discordant = (2 * losses + difference) * left
        under_gain = discordant if several else max(discordant - difference**2, 0.0)
        spread = cut * math.sqrt(discordant) + z_power * math.sqrt(under_gain)
        return (difference - correction) * math.sqrt(n) >= spread

    largest = 1.0 - 2 * losses  # wins and losses cannot be more than all questions
    return bisect(found, 0.0, largest) if largest > 0 and found(largest) else 1.0


def voters(shown: Sequence[float]) -> list[bool]:
    """Which benchmarks have a vote, from the smallest gain that each shows alone.

    One that is too small to decide anything (`HOPELESS`) has none beside one that can decide; alone among its like it
    has: two halves of AIME say together what neither can.
    """
    able = [difference <= HOPELESS for difference in shown]
    return able if any(able) else [True] * len(able)


def together(shown: Sequence[float]) -> float:
    """Smallest gain that several benchmarks show together, if it is the same on each, from what each shows alone.

    By the rule of `agent.accept.verdict`, where the differences in units of their own noise are averaged.
    """
    voting = [difference for difference, votes in zip(shown, voters(shown), strict=True) if votes]
    if len(voting) == 1:
        return voting[0]
    strength = sum(1 / difference for difference in voting if 0 < difference < 1.0)
    return min(1.0, math.sqrt(len(voting)) / strength) if strength else 1.0


def decidable(n: int, *, samples: int = 1, alpha: float = ALPHA) -> bool:
    """Whether n questions of one benchmark can tell a gain that anybody may hope for (`HOPELESS`) from luck."""
    return detectable(n, samples=samples, alpha=alpha) <= HOPELESS


def default_samples(n: int) -> int:
    """Answers a question: several where a benchmark is too small to say much with one, at bounded cost."""
    return 8 if n < 50 else 4 if n < 100 else 1


def can_improve(best: Sequence[Answers], *, samples: Sequence[int] | None = None, alpha: float = ALPHA) -> bool:
    """Whether any candidate could still be called better: winning every question that is not fully solved yet.

    Args:
        best: The best model's answers, one mapping a benchmark.
        samples: Answers a question, one number a benchmark; None: one answer on all of them.
        alpha: One-sided level of the whole comparison.
    """
    each = [1] * len(best) if samples is None else samples
    shown = [detectable(max(len(answers), 1), samples=k) for answers, k in zip(best, each, strict=True)]
    voting = [answers for answers, votes in zip(best, voters(shown), strict=True) if votes]
    return reachable([room(answers.values()) for answers in voting], alpha)


def reachable(wins: Sequence[int], alpha: float) -> bool:
    """Whether that many wins on each benchmark, without a loss, would be called better."""
    z = [-normal_quantile(max(0.5 ** (won + 1), 1e-300)) for won in wins]
    return sum(z) / math.sqrt(len(z)) > -normal_quantile(alpha)


def room(best: Iterable[float | None]) -> int:
    """How many questions a candidate could win."""
    return sum(score is not None and score < 1.0 for score in best)


def _reachable(wins: int, alpha: float) -> bool:
    return reachable([wins], alpha)
