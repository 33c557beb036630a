"""Does the acceptance rule keep its promises? Simulated studies, decided by the rule's own code.

Questions differ in skill: p ~ Beta(.6 m, .6 (1 - m)) for the base; a candidate has its skill drawn anew on a share r of
them; a gain makes it p + c (1 - p), a loss p (1 - c). Nine scenarios: m in .2, .5, .8 and r in .1, .3, .6. All
candidates of a study share the base's one frozen score. Seeds are fixed.

False calls are counted without racing, which could only hide some; power and cost with racing on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent import accept
from agent.accept.distributions import mid_p, normal_quantile, t_quantile
from agent.accept.paired import reduced
from agent.accept.planning import voters
from agent.accept.race import drop_below
from agent.accept.verdict import WORSE_ON_ONE

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SIZES = (30, 100, 500, 1319)
SAMPLES = (1, 8)
LEARNED = 0.6  # how much skill is all or nothing: a + b of its Beta distribution
CHUNK = 300_000  # answers simulated at once: what fits the processor's cache
EQUAL = (0.0,) * accept.CANDIDATES
MANY = (0.0,) * 100
MIXTURE = (0.05, *(0.0,) * 4, *np.linspace(-0.05, -0.20, 5))
PLUS_5 = (0.05,) * 10


class Scenario(NamedTuple):
    """Mean skill of the base, and the share of questions on which a candidate's skill is drawn anew."""

    mean: float
    redrawn: float


SCENARIOS = tuple(Scenario(mean, redrawn) for mean in (0.2, 0.5, 0.8) for redrawn in (0.1, 0.3, 0.6))


def answers(
    rng: np.random.Generator, scenario: Scenario, n: int, samples: int, gains: Sequence[float], studies: int
) -> Iterator[NDArray[np.int32]]:
    """Right answers of each candidate minus those of the base, in chunks of shape (studies, candidates, questions)."""
    mean, redrawn = scenario
    a, b = LEARNED * mean, LEARNED * (1 - mean)
    gain = np.asarray(gains)[:, None]
    up, down = np.where(gain > 0, gain / (1 - mean), 0.0), np.where(gain < 0, -gain / mean, 0.0)
    while studies > 0:
        count = min(studies, max(1, CHUNK // (n * len(gains))))
        studies -= count
        base = rng.beta(a, b, size=(count, 1, n))
        skill = np.repeat(base, len(gains), axis=1)
        if samples == 1:  # one answer depends on the expected skill only
            skill += redrawn * (mean - skill)
        else:
            anew = rng.random(skill.shape) < redrawn
            skill[anew] = rng.beta(a, b, size=int(anew.sum()))
        skill = (skill + up * (1 - skill)) * (1 - down)
        right = _draw(rng, skill, samples)
        yield right - _draw(rng, base, samples)


def _draw(rng: np.random.Generator, skill: Floats, samples: int) -> NDArray[np.int32]:
    if samples == 1:
        return (rng.random(skill.shape, dtype=np.float32) < skill.astype(np.float32)).astype(np.int32)
    return rng.binomial(samples, skill).astype(np.int32)


@cache
def p_better(wins: int, discordant: int) -> float:
    """The rule's own p-value, one computation for each pair that occurs."""
    return mid_p(wins, discordant)


def p_values(changes: NDArray[np.int32]) -> Floats:
    """The p-values of `better` for one answer a question, of shape (studies, candidates)."""
    wins, discordant = (changes > 0).sum(axis=2), (changes != 0).sum(axis=2)
    keys, where = np.unique(np.stack([wins.ravel(), discordant.ravel()]), axis=1, return_inverse=True)
    p = np.array([p_better(int(w), int(m)) for w, m in keys.T])
    return np.asarray(p[where.ravel()].reshape(wins.shape))


def better(changes: NDArray[np.int32], samples: int, levels: Floats) -> Bools:
    """Which candidates `accept.compare` calls better, asked all questions; `levels` has one entry a candidate."""
    if samples == 1:
        return np.asarray(p_values(changes) < levels)
    n = changes.shape[2]
    center, error = changes.mean(axis=2), changes.std(axis=2, ddof=1) / math.sqrt(n)
    cut = np.array([t_quantile(reduced(float(level)), n - 1) for level in levels])
    floor = 0.5 ** (changes != 0).sum(axis=2) < np.array([reduced(float(level)) for level in levels])
    return np.asarray((center > cut * error) & floor)


def share_asked(changes: NDArray[np.int32], levels: Floats) -> Floats:
    """Share of the questions that each candidate is asked in a race; 1 where it is never dropped."""
    n = changes.shape[2]
    looks = accept.looks(n)
    starts = (0, *looks[:-1])
    total = np.add.reduceat(changes, starts, axis=2).cumsum(axis=2)
    squares = np.add.reduceat(changes * changes, starts, axis=2).cumsum(axis=2)
    z = total / np.sqrt(np.maximum(squares, 1))
    asked = np.ones(changes.shape[:2])
    for index in reversed(range(len(looks) - 1)):
        share = looks[index] / n
        asked[z[:, :, index] < [drop_below(share, float(level)) for level in levels]] = share
    return asked


@dataclass(frozen=True)
class Outcome:
    """Of one scenario, each of shape (studies, candidates): with and without racing, and by "higher mean wins"."""

    better: Bools
    raced: Bools
    asked: Floats
    naive: Bools


def simulate(n: int, samples: int, gains: Sequence[float], studies: int, *, seed: int) -> dict[Scenario, Outcome]:
    """Studies of candidates with these true gains, for every scenario."""
    levels = np.array([accept.level(candidate) for candidate in range(1, len(gains) + 1)])
    outcomes = {}
    for index, scenario in enumerate(SCENARIOS):
        rng = np.random.Generator(np.random.SFC64([seed, index, n, samples]))
        parts = []
        for changes in answers(rng, scenario, n, samples, gains, studies):
            called, asked = better(changes, samples, levels), share_asked(changes, levels)
            parts.append((called, called & (asked == 1.0), asked, changes.sum(axis=2) > 0))
        outcomes[scenario] = Outcome(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return outcomes


# The figures


@dataclass(frozen=True)
class Figure:
    """A measured promise: its value, where it is worst, and what the rule "the higher mean wins" does there."""

    value: float
    worst: str
    naive: float


def _place(scenario: Scenario, n: int, samples: int) -> str:
    return f"n={n} K={samples} mean={scenario.mean} redrawn={scenario.redrawn}"


@cache
def equal_studies(n: int, samples: int, scale: float) -> dict[Scenario, Outcome]:
    """Studies of 30 candidates that equal the base; as many as their size allows in a minute altogether."""
    studies = (
        {30: 8000, 100: 8000, 500: 5000, 1319: 4000} if samples == 1 else {30: 5000, 100: 3000, 500: 1000, 1319: 600}
    )
    return simulate(n, samples, EQUAL, max(1, int(studies[n] * scale)), seed=1)


def false_better_rate(scale: float = 1.0) -> Figure:
    """How often one candidate that equals the base is called better."""
    return max(
        (
            Figure(float(o.better.mean()), _place(s, n, k), float(o.naive.mean()))
            for n in SIZES
            for k in SAMPLES
            for s, o in equal_studies(n, k, scale).items()
        ),
        key=lambda figure: figure.value,
    )


def study_false_better_rate(scale: float = 1.0) -> Figure:
    """How often a study of 30 candidates that equal the base calls any of them better."""
    return max(
        (
            Figure(float(o.better.any(axis=1).mean()), _place(s, n, k), float(o.naive.any(axis=1).mean()))
            for n in SIZES
            for k in SAMPLES
            for s, o in equal_studies(n, k, scale).items()
        ),
        key=lambda figure: figure.value,
    )


def study_of_100_false_better_rate(scale: float = 1.0) -> Figure:
    """The same for 100 candidates: the levels after the 30th are what keeps it near."""
    found = []
    for n, studies in zip(SIZES, (4000, 3000, 2000, 1000), strict=True):
        for s, o in simulate(n, 1, MANY, max(1, int(studies * scale)), seed=2).items():
            found.append(Figure(float(o.better.any(axis=1).mean()), _place(s, n, 1), float(o.naive.any(axis=1).mean())))
    return max(found, key=lambda figure: figure.value)


def combined_study_false_better_rate(scale: float = 1.0) -> Figure:
    """The same for 30 candidates on several benchmarks at once, one of them small."""
    found = []
    levels = np.array([accept.level(candidate) for candidate in range(1, len(EQUAL) + 1)])
    for sizes in ((15, 660), (30, 100, 500)):
        for index, scenario in enumerate(SCENARIOS):
            rng = np.random.Generator(np.random.SFC64([6, index, *sizes]))
            count = max(1, int(2000 * scale))
            each = [answers(rng, scenario, n, 1, EQUAL, count) for n in sizes]
            parts = [[(p_values(changes), changes.mean(axis=2)) for changes in one] for one in each]
            p = [np.concatenate([p for p, _ in one]) for one in parts]
            mean = np.sum([np.concatenate([mean for _, mean in one]) for one in parts], axis=0)
            spared = np.all([one <= 1 - WORSE_ON_ONE for one in p], axis=0)
            voting = [one for one, votes in zip(p, voters([accept.detectable(n) for n in sizes]), strict=True) if votes]
            called: Bools = np.asarray(spared & (stouffer(voting) > -normal_quantiles(levels)))
            place = f"n={'+'.join(map(str, sizes))} K=1 mean={scenario.mean} redrawn={scenario.redrawn}"
            found.append(Figure(float(called.any(axis=1).mean()), place, float((mean > 0).any(axis=1).mean())))
    return max(found, key=lambda figure: figure.value)


def stouffer(p: Sequence[Floats]) -> Floats:
    """The z-score that the declared rule makes of the benchmarks' p-values."""
    return np.asarray(sum(-normal_quantiles(one) for one in p) / math.sqrt(len(p)))


def normal_quantiles(p: Floats) -> Floats:
    """The quantiles of the standard normal, of any shape."""
    keys, where = np.unique(p, return_inverse=True)
    found = np.array([normal_quantile(min(max(float(key), 1e-300), 1 - 1e-16)) for key in keys])
    return np.asarray(found[where.ravel()].reshape(p.shape))


def power_5pt_k8(scale: float = 1.0) -> Figure:
    """How often a true gain of 5 points is found on 1,319 questions with 8 answers each; the worst scenario."""
    outcomes = simulate(1319, 8, PLUS_5, max(1, int(300 * scale)), seed=3)
    return min(
        (Figure(float(o.raced.mean()), _place(s, 1319, 8), float(o.naive.mean())) for s, o in outcomes.items()),
        key=lambda figure: figure.value,
    )


def power_5pt_k1_mean(scale: float = 1.0) -> Figure:
    """The same with one answer a question, averaged over the scenarios."""
    outcomes = simulate(1319, 1, PLUS_5, max(1, int(1000 * scale)), seed=4)
    power, scenario = min((float(o.raced.mean()), s) for s, o in outcomes.items())
    return Figure(
        float(np.mean([o.raced.mean() for o in outcomes.values()])),
        f"{_place(scenario, 1319, 1)}: {power:.3f}",
        float(np.mean([o.naive.mean() for o in outcomes.values()])),
    )


def racing_fraction(scale: float = 1.0) -> Figure:
    """Share of the questions asked of a mixture of candidates: 1 better by 5 points, 4 equal, 5 worse by 5 to 20."""
    found = []
    for n, studies in zip(SIZES, (2000, 2000, 1000, 500), strict=True):
        for samples in SAMPLES:
            count = max(1, int(studies * scale / (1 if samples == 1 else 5)))
            for s, o in simulate(n, samples, MIXTURE, count, seed=5).items():
                found.append(Figure(float(o.asked.mean()), _place(s, n, samples), 1.0))
    return max(found, key=lambda figure: figure.value)


FIGURES = {
    false_better_rate: 0.05,
    study_false_better_rate: 0.10,
    study_of_100_false_better_rate: 0.12,
    combined_study_false_better_rate: 0.10,
    power_5pt_k8: 0.80,
    power_5pt_k1_mean: 0.82,
    racing_fraction: 0.50,
}
"""Each with its goal: at least it for a power, at most it for the rest."""
