"""Is the candidate better than the best so far? Paired statistics, question by question; the only judge of a trial.

With one right-or-wrong answer a question, the exact one-sided McNemar test: of the questions on which the two models
disagree, as many would go either way by chance, so the wins follow Binomial(wins + losses, 1/2). It needs no
approximation at any sample size and stays valid where the questions are not alike.

A study compares many candidates with one base, and each comparison is a chance to mistake noise for progress. `ALPHA`
is the level of one comparison: .10 shared out over 30 candidates (Bonferroni), so that a study of 30 candidates that
all equal the base calls any of them better in at most 10% of such studies. A mid-p test at a higher level would find
more, but its promise was only simulated; this one is proved.

Graded scores (anything in [0, 1]) use the paired t-test on question means. Pooling answers, sign tests on means and
percentile bootstraps do not keep their level there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.records import Comparison, Verdict

STUDY_ERROR = 0.10
CANDIDATES = 30
ALPHA = STUDY_ERROR / CANDIDATES
"""One-sided level of one comparison."""
MAX_UNSCORED = 0.10
"""Share of the questions that may lack a verdict before the comparison has none either."""
POWER = 0.80
LOSS_RATE = 0.05
"""Share of the questions that a truly better candidate is taken to lose, where `detectable` plans ahead."""

Answers = Mapping[str, float | None]
"""Question id -> score in [0, 1]; None where the question is unscored."""


@dataclass(frozen=True)
class Paired:
    """One benchmark's questions, answered by the candidate and by the best so far."""

    benchmark: str
    candidate: Answers
    best: Answers


@dataclass(frozen=True)
class _Test:
    """One benchmark's result; `p_better` and `p_worse` are one-sided."""

    verdict: Verdict
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    n: int
    p_better: float
    p_worse: float
    detectable: float


def compare(pairs: Sequence[Paired], *, against: str, alpha: float = ALPHA) -> Comparison:
    """Decide about a candidate.

    Several benchmarks share `alpha`; the candidate is better if it is better on one of them and worse on none, and
    the differences and their bounds are averaged.

    Args:
        pairs: One entry a benchmark, with the same questions on both sides.
        against: Who the best so far is ("base", "trial 3").
        alpha: One-sided level of the whole comparison.

    Returns:
        The verdict: "better" if and only if the paired lower bound is above 0 (for one benchmark), "worse" likewise,
        "unscored" where more than `MAX_UNSCORED` of a benchmark's questions have no score, "undecidable" where too few
        questions are left to win for any candidate to be called better, else "tie".

    Raises:
        ValueError: No benchmark, different questions on the two sides, or a score outside [0, 1].
    """
    if not pairs:
        raise ValueError("nothing to compare: no benchmark")
    share = alpha / len(pairs)
    tests = [_test(pair, share) for pair in pairs]
    return Comparison(
        verdict=_combine([test.verdict for test in tests]),
        difference=_mean(test.difference for test in tests),
        low=_mean(test.low for test in tests),
        high=_mean(test.high for test in tests),
        wins=sum(test.wins for test in tests),
        losses=sum(test.losses for test in tests),
        n=sum(test.n for test in tests),
        p_value=min(1.0, len(tests) * min(test.p_better for test in tests)),
        alpha=alpha,
        detectable=_mean(test.detectable for test in tests),
        against=against,
    )


def can_improve(best: Sequence[Answers], *, alpha: float = ALPHA) -> bool:
    """Whether any candidate could still be called better: winning every question that is not fully solved yet.

    Args:
        best: The best model's answers, one mapping a benchmark.
        alpha: One-sided level of the whole comparison.
    """
    return any(_reachable(_room(answers.values()), alpha / len(best)) for answers in best)


def detectable(n: int, *, losses: float = LOSS_RATE, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest true difference that n questions would show with the given power; 1.0 where none would be.

    Args:
        n: Questions, one right-or-wrong answer each.
        losses: Share of the questions that the better model loses all the same; it wins `losses` + difference.
        alpha: One-sided level.
        power: Probability of finding it.

    Source: sample size for McNemar's test (Connor 1987, Biometrics 43:207), with a continuity correction of one
    question. It errs to the safe side: the simulated power at the value returned is .80 to .87 with 5% losses, and
    .95 with none.
    """
    if not _reachable(n, alpha):
        return 1.0
    z_alpha, z_power = _normal_quantile(1 - alpha), _normal_quantile(power)

    def found(difference: float) -> bool:
        discordant = 2 * losses + difference
        spread = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - difference**2, 0.0))
        return (difference - 1 / n) * math.sqrt(n) >= spread

    largest = 1.0 - 2 * losses  # wins and losses cannot be more than all questions
    return _bisect(found, 0.0, largest) if largest > 0 and found(largest) else 1.0


# One benchmark


def _test(pair: Paired, alpha: float) -> _Test:
    if pair.candidate.keys() != pair.best.keys() or not pair.best:
        odd = sorted(pair.candidate.keys() ^ pair.best.keys())[:3]
        raise ValueError(f"{pair.benchmark}: the two sides must answer the same questions; they differ in {odd}")
    both = [(pair.candidate[question], pair.best[question]) for question in sorted(pair.best)]
    scored = [(new, old) for new, old in both if new is not None and old is not None]
    if not all(0.0 <= score <= 1.0 for answers in scored for score in answers):
        raise ValueError(f"{pair.benchmark}: a score lies outside [0, 1]")
    if len(both) - len(scored) > MAX_UNSCORED * len(both):
        return _unscored(scored)
    binary = all(score in (0.0, 1.0) for answers in scored for score in answers)
    return _mcnemar(scored, alpha) if binary else _paired_t(scored, alpha)


def _unscored(scored: list[tuple[float, float]]) -> _Test:
    """No verdict, and the widest interval there is; the difference of what was scored is only shown."""
    wins, losses = _wins_losses(scored)
    difference = _mean(new - old for new, old in scored) if scored else 0.0
    return _Test("unscored", difference, -1.0, 1.0, wins, losses, len(scored), 1.0, 1.0, 1.0)


def _mcnemar(scored: list[tuple[float, float]], alpha: float) -> _Test:
    n = len(scored)
    wins, losses = _wins_losses(scored)
    discordant = wins + losses
    p_better, p_worse = _tail(wins, discordant, 0.5), _tail(losses, discordant, 0.5)
    if discordant:
        # Clopper-Pearson bounds of the win probability among the discordant, inverted from the same test.
        theta_low, theta_high = _lower_bound(wins, discordant, alpha), 1 - _lower_bound(losses, discordant, alpha)
        low, high = ((2 * theta - 1) * discordant / n for theta in (theta_low, theta_high))
    else:
        low, high = _no_change(n, alpha)
    room = _room(old for _, old in scored)
    return _Test(
        verdict=_verdict(p_better, p_worse, room, alpha),
        difference=(wins - losses) / n,
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        n=n,
        p_better=p_better,
        p_worse=p_worse,
        detectable=_detectable(n, _mean(old for _, old in scored), room, alpha),
    )


def _paired_t(scored: list[tuple[float, float]], alpha: float) -> _Test:
    n = len(scored)
    wins, losses = _wins_losses(scored)
    differences = [new - old for new, old in scored]
    mean = _mean(differences)
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(n - 1, 1) / n)
    # The t-test knows no smallest p; among m changed questions chance alone makes all of them wins once in 2**m.
    floor = 0.5 ** (wins + losses)
    p_better, p_worse = (max(_t_tail(sign * mean, error, n - 1), floor) for sign in (1, -1))
    if wins + losses == 0:
        low, high = _no_change(n, alpha)
    else:
        reach = _t_quantile(alpha, n - 1) * error if error else 0.0
        low, high = max(mean - reach, -1.0), min(mean + reach, 1.0)
        low, high = low if p_better < alpha else min(low, 0.0), high if p_worse < alpha else max(high, 0.0)
    room = _room(old for _, old in scored)
    return _Test(
        verdict=_verdict(p_better, p_worse, room, alpha),
        difference=mean,
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        n=n,
        p_better=p_better,
        p_worse=p_worse,
        detectable=min(1.0, (_normal_quantile(1 - alpha) + _normal_quantile(POWER)) * error) or 1.0,
    )


def _verdict(p_better: float, p_worse: float, room: int, alpha: float) -> Verdict:
    if p_better < alpha:
        return "better"
    if p_worse < alpha:
        return "worse"
    return "tie" if _reachable(room, alpha) else "undecidable"


def _combine(verdicts: list[Verdict]) -> Verdict:
    found = set(verdicts)
    if "unscored" in found:
        return "unscored"
    if "better" in found:
        return "tie" if "worse" in found else "better"
    if "worse" in found:
        return "worse"
    return "tie" if "tie" in found else "undecidable"


def _wins_losses(scored: list[tuple[float, float]]) -> tuple[int, int]:
    return sum(new > old for new, old in scored), sum(new < old for new, old in scored)


def _room(best: Iterable[float | None]) -> int:
    """How many questions a candidate could win."""
    return sum(score is not None and score < 1.0 for score in best)


def _reachable(wins: int, alpha: float) -> bool:
    """Whether that many wins without a loss would be called better."""
    return 0.5**wins < alpha


def _no_change(n: int, alpha: float) -> tuple[float, float]:
    """Bounds where no question changed: the largest rate of change that n questions may all have missed."""
    rate = 1 - alpha ** (1 / n)
    return -rate, rate


def _detectable(n: int, mean: float, room: int, alpha: float) -> float:
    """`detectable`, where the best's own score limits what can be lost and won."""
    difference = detectable(n, losses=min(LOSS_RATE, mean), alpha=alpha)
    return difference if difference <= room / n else 1.0


# Distributions, in plain Python: the host stays free of scipy, and this module imports in a millisecond


def _tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    if k <= 0:
        return 1.0
    if p <= 0.0 or p >= 1.0:
        return 1.0 if p >= 1.0 else 0.0
    log_n, log_p, log_q = math.lgamma(n + 1), math.log(p), math.log1p(-p)
    terms = (
        math.exp(log_n - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
        for i in range(k, n + 1)
    )
    return min(1.0, math.fsum(terms))


def _lower_bound(k: int, n: int, alpha: float) -> float:
    """Clopper-Pearson lower bound of a proportion: the p at which k or more of n has probability alpha."""
    return _bisect(lambda p: _tail(k, n, p) >= alpha, 0.0, 1.0) if k else 0.0


def _normal_quantile(p: float) -> float:
    return _bisect(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)) >= p, -10.0, 10.0)


def _t_tail(mean: float, error: float, df: int) -> float:
    """P(T >= mean / error) with df degrees of freedom; 0 or 1 where the error is 0."""
    if df < 1:
        return 1.0
    if error == 0.0:
        return 0.0 if mean > 0 else 1.0
    t = mean / error
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return tail if t > 0 else 1 - tail


def _t_quantile(alpha: float, df: int) -> float:
    """The t that is exceeded with probability alpha."""
    return _bisect(lambda t: _t_tail(t, 1.0, df) <= alpha, 0.0, 1e6) if df >= 1 else math.inf


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function by its continued fraction (DLMF 8.17.22, modified Lentz)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-13:
            break
    return math.exp(log_front) * fraction / a


def _bisect(reached: Callable[[float], bool], low: float, high: float) -> float:
    """Smallest x in [low, high] for which the monotone predicate holds."""
    for _ in range(60):
        middle = (low + high) / 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
