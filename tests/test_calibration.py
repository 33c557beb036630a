"""The simulation behind docs/statistics.md decides as the rule does, and a small run of it keeps the promises."""

from __future__ import annotations

import numpy as np
import pytest

from agent.accept import Paired, compare, futile, level, looks
from tests import calibration
from tests.calibration import SCENARIOS, Scenario

RARE = 0.05
"""Levels that the twins are compared at, besides the real one: at .004 almost everything would be a tie."""


def changes(
    scenario: Scenario, n: int, samples: int, gains: tuple[float, ...]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], list[Paired]]:
    """One simulated study, and the same as the rule takes it."""
    rng = np.random.default_rng([n, samples])
    (found,) = calibration.answers(rng, scenario, n, samples, gains, 1)
    pairs = []
    for row in found[0]:
        best = np.where(row < 0, samples, 0) if samples == 1 else np.maximum(-row, 0)
        candidate = best + row
        pairs.append(
            Paired(
                "b",
                {f"{i:04}": float(score) / samples for i, score in enumerate(candidate)},
                {f"{i:04}": float(score) / samples for i, score in enumerate(best)},
                samples,
                samples,
            )
        )
    return found, pairs


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("n", [30, 97, 400])
def test_the_simulation_decides_as_the_rule_does(n: int, samples: int) -> None:
    gains = tuple(np.linspace(-0.1, 0.4, 60))
    found, pairs = changes(Scenario(0.5, 0.3), n, samples, gains)
    for alpha in (level(1), RARE):
        theirs = [compare([pair], against="base", alpha=alpha).p_value < alpha for pair in pairs]
        assert calibration.better(found, samples, np.full(60, alpha))[0].tolist() == theirs
        assert 5 < sum(theirs) < 60


@pytest.mark.parametrize("samples", [1, 8])
def test_the_simulation_drops_as_the_rule_does(samples: int) -> None:
    n, gains = 150, tuple(np.linspace(-0.1, 0.2, 60))
    found, pairs = changes(Scenario(0.5, 0.3), n, samples, gains)
    levels = np.array([level(candidate) for candidate in range(1, 61)])
    asked = calibration.share_asked(found, levels)[0]
    for candidate, pair in enumerate(pairs, 1):
        for count in looks(n):
            seen = list(pair.best)[:count]
            part = Paired("b", {q: pair.candidate[q] for q in seen}, {q: pair.best[q] for q in seen}, samples, samples)
            if dropped := futile([part], [n], candidate=candidate):
                break
        assert asked[candidate - 1] == pytest.approx(count / n)
        assert dropped == (asked[candidate - 1] < 1)
    assert 5 < sum(asked < 1) < 60


def test_the_simulation_combines_as_the_rule_does() -> None:
    gains = tuple(np.linspace(-0.1, 0.3, 60))
    small, large = changes(Scenario(0.5, 0.3), 40, 1, gains), changes(Scenario(0.5, 0.3), 300, 1, gains)
    z = calibration.stouffer([calibration.p_values(found) for found, _ in (small, large)])[0]
    mine = calibration.normal_quantiles(
        np.array(
            [c.p_value for c in (compare([a, b], against="base") for a, b in zip(small[1], large[1], strict=True))]
        )
    )
    np.testing.assert_allclose(np.minimum(z, 6), np.minimum(-mine, 6), atol=1e-6)  # beyond, cdf rounds


def test_equal_candidates_are_rarely_better_and_a_lax_level_is_noticed() -> None:
    outcomes = [calibration.equal_studies(n, 1, 0.03) for n in (30, 100)]
    rates = [np.mean([o.better.any(axis=1).mean() for o in outcome.values()]) for outcome in outcomes]
    assert max(rates) <= 0.10
    assert min(np.mean([o.naive.any(axis=1).mean() for o in outcome.values()]) for outcome in outcomes) > 0.9
    rng = np.random.default_rng(1)
    lax = [
        calibration.better(found, 1, np.full(30, 0.05)).any(axis=1).mean()
        for scenario in SCENARIOS
        for found in calibration.answers(rng, scenario, 100, 1, calibration.EQUAL, 100)
    ]
    assert np.mean(lax) > 0.3


def test_a_gain_of_5_points_is_found_and_racing_saves_half() -> None:
    assert calibration.power_5pt_k1_mean(0.04).value >= 0.80
    assert calibration.power_5pt_k8(0.04).value >= 0.80
    assert calibration.racing_fraction(0.04).value <= 0.50


def test_racing_takes_nothing_but_a_little_power() -> None:
    for outcome in calibration.simulate(500, 1, calibration.PLUS_5, 60, seed=9).values():
        assert not (outcome.raced & ~outcome.better).any()
        assert outcome.raced.mean() >= outcome.better.mean() - 0.04
        assert (outcome.asked[outcome.raced] == 1).all()
