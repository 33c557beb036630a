"""The verdict: better, tie, worse, unscored or undecidable.

Several benchmarks combine by one declared rule. Each benchmark's difference is normalised: put in units of its own
noise, as the z-score of its p-value. The candidate is better if the lower bound of the mean of these is above 0
(Stouffer's test; for one benchmark it is that benchmark's own test) and no benchmark is significantly worse
(`WORSE_ON_ONE`). Each benchmark has one vote, but one that is too small to decide anything alone has none beside one
that can (`planning.voters`): 15 questions can forbid a "better", yet their noise cannot drown 660 others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from agent.accept.distributions import NORMAL, normal_quantile
from agent.accept.levels import ALPHA, level
from agent.accept.paired import MAX_UNSCORED, Paired, Result, mean, scored, test, unknown
from agent.accept.planning import HOPELESS, LOSS_RATE, detectable, reachable, room, together, voters
from agent.records import Comparison, Verdict

WORSE_ON_ONE = 0.05
"""One-sided level at which a benchmark is significantly worse and forbids "better", where there are several."""
_LEAST = sys.float_info.epsilon


def compare(
    pairs: Sequence[Paired],
    *,
    against: str,
    candidate: int = 1,
    alpha: float | None = None,
    planned: Sequence[int] | None = None,
) -> Comparison:
    """Decide about a candidate.

    Args:
        pairs: One entry a benchmark, with the same questions on both sides.
        against: Who the best so far is ("base", "trial 3").
        candidate: Which comparison of the study this is, counted from 1: it sets the level (`level`).
        alpha: One-sided level, where the comparison is none of the search's (`SINGLE` for the sealed test).
        planned: Questions that each benchmark would have been asked, where the candidate was dropped in a race.

    Returns:
        "better" only if the lower bound is above 0; "worse" if the upper one is below 0; "unscored" where more than
        `MAX_UNSCORED` of a benchmark's questions have no score; "undecidable" where the questions are so few, or so few
        of them are left to win, that only luck could tell; else "tie". A candidate that was dropped is never "better".
        For several benchmarks, `difference` is the mean over those that vote, weighted by 1 / the width of the
        interval of each, and the p-value is the combined one.

    Raises:
        ValueError: No benchmark, different questions or numbers of answers on the two sides, a score outside [0, 1].
    """
    if not pairs:
        raise ValueError("nothing to compare: no benchmark")
    chosen = level(candidate) if alpha is None else alpha
    scores = [scored(pair) for pair in pairs]
    missing = any(len(p.best) - len(s) > MAX_UNSCORED * len(p.best) for p, s in zip(pairs, scores, strict=True))
    results = [
        unknown(answers) if missing else test(answers, pair.samples, chosen)
        for pair, answers in zip(pairs, scores, strict=True)
    ]
    sizes = [result.n for result in results] if planned is None else list(planned)
    shown = [
        detectable(max(n, 1), samples=pair.samples, alpha=max(chosen, ALPHA))
        for n, pair in zip(sizes, pairs, strict=True)
    ]
    voting = [index for index, votes in enumerate(voters(shown)) if votes]
    combined = _combine([results[index] for index in voting], chosen)
    asked = sum(len(pair.candidate) for pair in pairs)
    dropped = planned is not None and asked < sum(planned)
    verdict: Verdict
    if missing:
        verdict = "unscored"
    elif together(shown) > HOPELESS:
        verdict = "undecidable"
    elif combined.p_better < chosen:
        verdict = "tie" if dropped or _worse_on_one(results) else "better"
    elif combined.p_worse < chosen:
        verdict = "worse"
    else:
        winnable = reachable([room(old for _, old in scores[index]) for index in voting], chosen)
        verdict = "tie" if dropped or winnable else "undecidable"
    each = [_detectable(answers, pair.samples, chosen) for answers, pair in zip(scores, pairs, strict=True)]
    return Comparison(
        verdict=verdict,
        difference=combined.difference,
        low=combined.low,
        high=combined.high,
        wins=sum(result.wins for result in results),
        losses=sum(result.losses for result in results),
        n=sum(result.n for result in results),
        p_value=combined.p_better,
        alpha=chosen,
        detectable=1.0 if missing else together(each),
        against=against,
        candidate=candidate if alpha is None else None,
        asked=asked if dropped else None,
        planned=sum(sizes) if dropped else None,
    )


def _combine(results: Sequence[Result], alpha: float) -> Result:
    """Several benchmarks' results as one: p-values by Stouffer's test, difference and interval in score points.

    The weights are those that average differences in units of their noise; the reach of each benchmark's interval is
    added in quadrature (Zou and Donner 2008, Stat. Med. 27:1693). The test decides: where this approximation puts a
    bound on the other side of 0, it is moved to 0's right side.
    """
    if len(results) == 1:
        return results[0]
    p_better, p_worse = _stouffer([r.p_better for r in results]), _stouffer([r.p_worse for r in results])
    inverse = [1 / (r.high - r.low) for r in results]
    weighted = [(one / sum(inverse), r) for one, r in zip(inverse, results, strict=True)]
    difference = math.fsum(w * r.difference for w, r in weighted)
    low = difference - math.hypot(*(w * (r.difference - r.low) for w, r in weighted))
    high = difference + math.hypot(*(w * (r.high - r.difference) for w, r in weighted))
    return Result(
        difference=difference,
        low=max(low, _LEAST) if p_better < alpha else max(min(low, 0.0), -1.0),
        high=min(high, -_LEAST) if p_worse < alpha else min(max(high, 0.0), 1.0),
        wins=sum(r.wins for r in results),
        losses=sum(r.losses for r in results),
        n=sum(r.n for r in results),
        p_better=p_better,
        p_worse=p_worse,
    )


def _stouffer(p_values: Sequence[float]) -> float:
    """One p-value of several: of the sum of their z-scores, which varies sqrt(k) times as much as one."""
    z = [-normal_quantile(min(max(p, 1e-300), 1 - 1e-16)) for p in p_values]
    return NORMAL.cdf(-sum(z) / math.sqrt(len(z)))


def _worse_on_one(results: Sequence[Result]) -> bool:
    return len(results) > 1 and any(result.p_worse < WORSE_ON_ONE for result in results)


def _detectable(scores: list[tuple[float, float]], samples: int, alpha: float) -> float:
    """`detectable`, where the best's own score limits what can be lost and won."""
    if not scores:
        return 1.0
    old = [best for _, best in scores]
    n = len(old)
    difference = detectable(n, samples=samples, losses=min(LOSS_RATE, mean(old)), alpha=alpha)
    return difference if difference <= room(old) / n else 1.0
