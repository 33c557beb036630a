"""The acceptance rule: its deciding splits, its level, its power, and what it refuses to decide."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accept import Paired, _incomplete_beta, _lower_bound, _t_quantile, _tail, can_improve, compare
from agent.accept import detectable as detectable_difference
from agent.records import Comparison


def paired(wins: int, losses: int, both: int = 0, neither: int = 0, name: str = "b") -> Paired:
    """A benchmark with that many questions of each kind."""
    answers = [(1.0, 0.0)] * wins + [(0.0, 1.0)] * losses + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    return Paired(
        name, {str(i): new for i, (new, _) in enumerate(answers)}, {str(i): old for i, (_, old) in enumerate(answers)}
    )


def decide(wins: int, losses: int, n: int) -> Comparison:
    return compare([paired(wins, losses, neither=n - wins - losses)], against="base")


# The level is .10/30 and the tail of Binomial(m, 1/2) is a fraction of 2**m, so these can be checked by hand:
# 9-0: 1/512 = .0020; 11-1: 13/4096 = .0032; 14-2: 137/65536 = .0021; 16-3: 1160/524288 = .0022.
@pytest.mark.parametrize(("wins", "losses"), [(9, 0), (11, 1), (14, 2), (16, 3)])
def test_smallest_deciding_splits_at_30_questions(wins: int, losses: int) -> None:
    assert decide(wins, losses, 30).verdict == "better"
    assert decide(wins - 1, losses, 30).verdict == "tie"
    assert decide(losses, wins, 30).verdict == "worse"


@pytest.mark.parametrize(("wins", "losses"), [(7, 0), (10, 1), (12, 2), (14, 3)])
def test_splits_that_satisfy_only_a_mid_p_rule_are_ties(wins: int, losses: int) -> None:
    result = decide(wins, losses, 30)
    mid_p = result.p_value - 0.5 * (_tail(wins, wins + losses, 0.5) - _tail(wins + 1, wins + losses, 0.5))
    assert mid_p <= 0.0045
    assert result.verdict == "tie"


def test_record_of_a_comparison() -> None:
    result = decide(20, 5, 100)
    assert (result.wins, result.losses, result.n, result.against) == (20, 5, 100, "base")
    assert result.difference == pytest.approx(0.15)
    assert result.p_value == pytest.approx(0.002039, abs=1e-6)  # binom.sf(19, 25, .5)
    assert result.alpha == pytest.approx(0.1 / 30)
    assert 0 < result.low < 0.15 < result.high < 0.25


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_verdict_and_interval_say_the_same_and_swap_sides(wins: int, losses: int, both: int, neither: int) -> None:
    if wins + losses + both + neither == 0:
        return
    pair = paired(wins, losses, both, neither)
    forth = compare([pair], against="x")
    back = compare([Paired("b", pair.best, pair.candidate)], against="x")
    assert (forth.low > 0) == (forth.verdict == "better") == (back.verdict == "worse")
    assert (forth.high < 0) == (forth.verdict == "worse") == (back.verdict == "better")
    assert -1 <= forth.low <= forth.difference <= forth.high <= 1
    assert forth.low < forth.high
    assert forth.low == pytest.approx(-back.high, abs=1e-9)
    assert forth.difference == pytest.approx(-back.difference)


@given(st.integers(0, 40), st.integers(1, 40))
def test_one_more_win_never_hurts(wins: int, losses: int) -> None:
    fewer, more = decide(wins, losses, 100), decide(wins + 1, losses - 1, 100)
    rank = {"worse": 0, "tie": 1, "better": 2}
    assert rank[more.verdict] >= rank[fewer.verdict]
    assert more.p_value <= fewer.p_value
    assert more.low >= fewer.low


def test_eight_questions_can_decide_nothing() -> None:
    assert decide(8, 0, 8).verdict == "undecidable"
    assert decide(8, 0, 8).detectable == 1.0
    assert decide(9, 0, 9).verdict == "better"


def test_a_best_near_its_ceiling_cannot_be_beaten() -> None:
    at_ceiling = paired(wins=3, losses=0, both=92, neither=5)
    assert compare([at_ceiling], against="trial 2").verdict == "undecidable"
    assert not can_improve([at_ceiling.best])
    assert can_improve([at_ceiling.best, {"q": 0.0} | {str(i): 0.0 for i in range(10)}])
    assert not can_improve([{str(i): None for i in range(50)}])
    # It can still lose.
    assert compare([paired(wins=0, losses=20, both=79, neither=1)], against="trial 2").verdict == "worse"


def test_too_many_unscored_questions_give_no_verdict() -> None:
    pair = paired(wins=40, losses=0, neither=60)

    def without(count: int) -> Comparison:
        candidate = dict(pair.candidate) | {str(i): None for i in range(count)}
        return compare([Paired("b", candidate, pair.best)], against="base")

    assert without(10).verdict == "better"
    assert (without(10).n, without(10).wins) == (90, 30)  # unscored is not wrong
    assert without(11).verdict == "unscored"
    assert without(100).verdict == "unscored"


@pytest.mark.parametrize(
    ("candidate", "best", "words"),
    [
        ({"a": 1.0}, {"b": 1.0}, "same questions"),
        ({}, {}, "same questions"),
        ({"a": 1.5}, {"a": 0.0}, "outside"),
        ({"a": float("nan")}, {"a": 0.0}, "outside"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    candidate: Mapping[str, float], best: Mapping[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        compare([Paired("b", candidate, best)], against="base")


def test_several_benchmarks_share_the_level() -> None:
    nine = paired(9, 0, neither=21, name="a")  # p = .00195: enough alone, not for half the level
    tie = paired(2, 2, neither=26, name="b")
    assert compare([nine], against="base").verdict == "better"
    assert compare([nine, tie], against="base").verdict == "tie"
    ten = paired(10, 0, neither=20, name="a")
    won = compare([ten, tie], against="base")
    assert won.verdict == "better"
    assert won.difference == pytest.approx((10 / 30 + 0) / 2)
    assert (won.n, won.wins, won.losses) == (60, 12, 2)
    assert won.p_value == pytest.approx(2 * 0.5**10)


def test_better_on_one_benchmark_and_worse_on_another_is_no_win() -> None:
    up, down = paired(30, 0, neither=70, name="a"), paired(0, 30, neither=70, name="b")
    assert compare([up, down], against="base").verdict == "tie"
    assert compare([down, paired(1, 1, neither=98, name="c")], against="base").verdict == "worse"


def graded(differences: list[float]) -> Paired:
    best = {str(i): 0.4 for i in range(len(differences))}
    return Paired("judged", {str(i): 0.4 + d for i, d in enumerate(differences)}, best)


def test_graded_scores_use_the_paired_t_test() -> None:
    # mean .05, standard deviation .10127, n = 40: t = 3.1225, p = .0016865 (scipy.stats.ttest_rel, one-sided)
    mixed = graded([0.15, -0.05] * 20)
    result = compare([mixed], against="base")
    assert result.difference == pytest.approx(0.05)
    assert result.p_value == pytest.approx(0.0016865, abs=1e-6)
    assert result.verdict == "better"
    assert 0 < result.low < 0.05 < result.high
    assert compare([Paired("judged", mixed.best, mixed.candidate)], against="base").verdict == "worse"
    assert compare([graded([0.15, -0.15] * 20)], against="base").verdict == "tie"
    # A t-test alone would be certain of five equal gains; chance makes five signs agree once in 32.
    assert compare([graded([0.1] * 5)], against="base").verdict == "undecidable"


def test_distributions_against_published_values() -> None:
    assert _t_quantile(0.025, 10) == pytest.approx(2.228139, abs=1e-5)
    assert _t_quantile(0.005, 3) == pytest.approx(5.840909, abs=1e-5)
    assert _incomplete_beta(2, 3, 0.4) == pytest.approx(0.5248, abs=1e-10)
    assert _lower_bound(7, 20, 0.025) == pytest.approx(0.153909, abs=1e-6)  # Clopper-Pearson, 7 of 20
    assert _lower_bound(0, 20, 0.025) == 0.0


@cache
def verdict(wins: int, losses: int, n: int) -> str:
    return decide(wins, losses, n).verdict


def called_better(n: int, seed: int, gain: float, repeats: int, losses: float = 0.1) -> float:
    """Share of simulated comparisons that say "better"; the questions differ in difficulty."""
    rng = random.Random(seed)
    better = 0
    for _ in range(repeats):
        wins = lost = 0
        for _ in range(n):
            draw = rng.random()
            if draw < losses + gain:
                wins += 1
            elif draw < 2 * losses + gain:
                lost += 1
        better += verdict(wins, lost, n) == "better"
    return better / repeats


@pytest.mark.parametrize("n", [30, 100, 500])
def test_equal_models_are_rarely_called_better(n: int) -> None:
    assert called_better(n, seed=n, gain=0.0, repeats=2000 if n < 500 else 500) <= 0.008


@pytest.mark.parametrize("n", [50, 150, 500])
def test_the_detectable_difference_is_found_with_80_percent_power(n: int) -> None:
    found = called_better(n, seed=7, gain=detectable_difference(n, losses=0.1), repeats=600, losses=0.1)
    assert 0.77 <= found <= 0.90


def test_detectable_difference_shrinks_with_questions_and_knows_its_limits() -> None:
    sizes = [detectable_difference(n) for n in (9, 30, 100, 500, 1319)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 1.0
    assert 0.03 < sizes[-1] < 0.06
