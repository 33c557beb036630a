"""A race: a candidate is asked growing blocks of questions, and dropped as soon as it cannot win any more.

Dropping can never make a candidate "better", so the levels hold whatever the rule is; it costs a little power, and that
is simulated. Stopping early because a candidate seems to win would have to be paid for in level, and saves 1 to 2%.

The rule: at each look, the chance that the finished comparison says "better" is predicted from what was seen (normal
approximation, every true difference alike likely beforehand; Spiegelhalter, Freedman and Blackburn 1986). A candidate
whose chance is below `HOPE` is dropped. The questions must come in an order that has nothing to do with how hard they
are, the same for all candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.accept.distributions import normal_quantile
from agent.accept.levels import level
from agent.accept.paired import Paired
from agent.accept.planning import detectable, voters

HOPE = 0.02
"""Predicted chance of winning below which a candidate is dropped."""
FIRST_LOOK = 0.2
"""Share of the questions before which no candidate is dropped."""


def looks(n: int) -> tuple[int, ...]:
    """How many of n questions are answered at each look at a race: a fifth, then every tenth more; the last is n."""
    return tuple(sorted({math.ceil(n * tenths / 10) for tenths in range(2, 11)}))


def futile(pairs: Sequence[Paired], planned: Sequence[int], *, candidate: int = 1) -> bool:
    """Whether the candidate cannot be expected to win any more.

    Args:
        pairs: One entry a benchmark: the questions answered so far, the same on both sides; may be none.
        planned: How many each benchmark will have been asked at the end.
        candidate: Which comparison of the study this is, from 1 on.
    """
    shown = [detectable(total, samples=pair.samples) for pair, total in zip(pairs, planned, strict=True)]
    deciding = [(p, total) for p, total, votes in zip(pairs, planned, voters(shown), strict=True) if votes]
    seen = [min(len(pair.candidate) / total, 1.0) for pair, total in deciding]
    share = sum(seen) / len(seen)
    if share < FIRST_LOOK or share >= 1.0:
        return False
    # Each z-score on the scale on which it grows evenly with the questions (the B-value, Lan and Wittes 1988).
    grown = sum(_z(pair) * math.sqrt(part) for (pair, _), part in zip(deciding, seen, strict=True))
    return grown / math.sqrt(len(seen) * share) < drop_below(share, level(candidate))


def drop_below(share: float, alpha: float) -> float:
    """The z-score below which a candidate that answered that share of the questions is dropped."""
    return -normal_quantile(alpha) * math.sqrt(share) + normal_quantile(HOPE) * math.sqrt(1 - share)


def _z(pair: Paired) -> float:
    """(wins - losses) / sqrt(wins + losses), and what that is for graded scores; 0 where nothing changed."""
    both = ((pair.candidate[question], pair.best[question]) for question in pair.candidate)
    changes = [new - old for new, old in both if new is not None and old is not None]
    spread = math.sqrt(math.fsum(change * change for change in changes))
    return math.fsum(changes) / spread if spread else 0.0
