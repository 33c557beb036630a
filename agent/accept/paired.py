"""One benchmark, answered by the candidate and by the best so far.

One right-or-wrong answer a question: McNemar's test. Of the questions on which the two disagree as many would go either
way by chance, so the wins follow Binomial(wins + losses, 1/2) at any sample size and however unlike the questions are.
The tail is the mid-p one, which counts the result itself by half: the exact tail is proved but so cautious that a true
gain is missed more often; the level of mid-p is simulated (docs/statistics.md).

Graded scores, and means over several answers a question: the paired t-test on question means. Pooling the answers, sign
tests on means and percentile bootstraps do not keep their level there; nor does the t-test quite, because few questions
change much, so its p-value is taken `T_EXCESS` times as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.accept.distributions import mid_p, mid_p_lower_bound, t_quantile, t_tail

MAX_UNSCORED = 0.10
"""Share of the questions that may lack a score before the comparison has no verdict either."""
T_EXCESS = 4 / 3
"""How much larger a p-value of the t-test is taken, where it is small."""

Answers = Mapping[str, float | None]
"""Question id -> score in [0, 1], the mean of its answers; None where the question is unscored."""


@dataclass(frozen=True)
class Paired:
    """One benchmark's questions, the same on both sides.

    Attributes:
        samples, best_samples: Answers a question that the scores are means of.
    """

    benchmark: str
    candidate: Answers
    best: Answers
    samples: int = 1
    best_samples: int = 1


@dataclass(frozen=True)
class Result:
    """What one benchmark says; `p_better` and `p_worse` are one-sided.

    `low` and `high` bound the mean difference, each at the test's one-sided level: low > 0 where p_better is below it.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    n: int
    p_better: float
    p_worse: float


def scored(pair: Paired) -> list[tuple[float, float]]:
    """The (candidate, best) scores of the questions that both have a score for.

    Raises:
        ValueError: Different questions or numbers of answers on the two sides, or a score outside [0, 1].
    """
    if pair.candidate.keys() != pair.best.keys() or not pair.best:
        odd = sorted(pair.candidate.keys() ^ pair.best.keys())[:3]
        raise ValueError(f"{pair.benchmark}: the two sides must answer the same questions; they differ in {odd}")
    if pair.samples != pair.best_samples:
        raise ValueError(
            f"{pair.benchmark}: {pair.samples} answers a question cannot be compared with {pair.best_samples}: "
            f"they are decoded differently"
        )
    both = [(pair.candidate[question], pair.best[question]) for question in sorted(pair.best)]
    found = [(new, old) for new, old in both if new is not None and old is not None]
    if not all(0.0 <= score <= 1.0 for answers in found for score in answers):
        raise ValueError(f"{pair.benchmark}: a score lies outside [0, 1]")
    return found


def test(scores: list[tuple[float, float]], samples: int, alpha: float) -> Result:
    """Test (candidate, best) scores, one pair a question, at the one-sided level alpha."""
    binary = samples == 1 and all(score in (0.0, 1.0) for answers in scores for score in answers)
    return _mcnemar(scores, alpha) if binary else _paired_t(scores, alpha)


def unknown(scores: list[tuple[float, float]]) -> Result:
    """No result, and the widest interval there is; the difference of what was scored is only shown."""
    difference = mean(new - old for new, old in scores) if scores else 0.0
    return Result(difference, -1.0, 1.0, *_wins_losses(scores), len(scores), 1.0, 1.0)


def _mcnemar(scores: list[tuple[float, float]], alpha: float) -> Result:
    n = len(scores)
    wins, losses = _wins_losses(scores)
    discordant = wins + losses
    if discordant:
        # Bounds of the win probability among the discordant, inverted from the same test.
        theta_low = mid_p_lower_bound(wins, discordant, alpha)
        theta_high = 1 - mid_p_lower_bound(losses, discordant, alpha)
        low, high = ((2 * theta - 1) * discordant / n for theta in (theta_low, theta_high))
    else:
        low, high = _no_change(n, alpha)
    p_better, p_worse = mid_p(wins, discordant), mid_p(losses, discordant)
    return Result((wins - losses) / n, low, high, wins, losses, n, p_better, p_worse)


def _paired_t(scores: list[tuple[float, float]], alpha: float) -> Result:
    n = len(scores)
    wins, losses = _wins_losses(scores)
    differences = [new - old for new, old in scores]
    center = mean(differences)
    error = math.sqrt(math.fsum((d - center) ** 2 for d in differences) / max(n - 1, 1) / n)
    t = center / error if error else math.copysign(math.inf, center) if center else 0.0
    # The t-test knows no smallest p; among m changed questions chance alone makes all of them wins once in 2**m.
    floor = 0.5 ** (wins + losses)
    p_better, p_worse = (enlarged(max(t_tail(sign * t, n - 1), floor)) for sign in (1, -1))
    if wins + losses == 0:
        low, high = _no_change(n, alpha)
    else:
        reach = t_quantile(reduced(alpha), n - 1) * error if error else 0.0
        low, high = max(center - reach, -1.0), min(center + reach, 1.0)
        low, high = low if p_better < alpha else min(low, 0.0), high if p_worse < alpha else max(high, 0.0)
    return Result(center, low, high, wins, losses, n, p_better, p_worse)


def enlarged(p: float) -> float:
    """p with its odds times `T_EXCESS`, so that it stays a probability."""
    return T_EXCESS * p / (1 + (T_EXCESS - 1) * p)


def reduced(alpha: float) -> float:
    """The p that `enlarged` turns into alpha."""
    return alpha / (T_EXCESS - (T_EXCESS - 1) * alpha)


def _wins_losses(scores: list[tuple[float, float]]) -> tuple[int, int]:
    return sum(new > old for new, old in scores), sum(new < old for new, old in scores)


def _no_change(n: int, alpha: float) -> tuple[float, float]:
    """Bounds where no question changed: the largest rate of change that n questions may all have missed."""
    rate = 1 - alpha ** (1 / n)
    return -rate, rate


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    listed = list(values)
    return math.fsum(listed) / len(listed)
