"""The acceptance rule: its deciding splits, its level, its power, and what it refuses to decide."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import accept
from agent.accept import Answers, Paired, can_improve, compare, futile, level, looks
from agent.accept import detectable as detectable_difference
from agent.accept.distributions import incomplete_beta, mid_p, mid_p_lower_bound, t_quantile
from agent.records import Comparison


def paired(wins: int, losses: int, both: int = 0, neither: int = 0, name: str = "b") -> Paired:
    """A benchmark with that many questions of each kind."""
    answers = [(1.0, 0.0)] * wins + [(0.0, 1.0)] * losses + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    return Paired(
        name, {str(i): new for i, (new, _) in enumerate(answers)}, {str(i): old for i, (_, old) in enumerate(answers)}
    )


def decide(wins: int, losses: int, n: int) -> Comparison:
    return compare([paired(wins, losses, neither=n - wins - losses)], against="base")


# The level is .004 and the mid-p tail of Binomial(m, 1/2) a fraction of 2**(m + 1), so these can be checked by hand:
# 7-0: 1/256 = .0039; 10-1: (12 + 1)/4096 = .0032; 12-2: (106 + 15)/32768 = .0037; 14-3: (834 + 154)/262144 = .0038.
@pytest.mark.parametrize(("wins", "losses"), [(7, 0), (10, 1), (12, 2), (14, 3)])
def test_smallest_deciding_splits_at_30_questions(wins: int, losses: int) -> None:
    assert decide(wins, losses, 30).verdict == "better"
    assert decide(wins - 1, losses, 30).verdict == "tie"
    assert decide(losses, wins, 30).verdict == "worse"


def test_the_level_of_a_study_of_unknown_length() -> None:
    assert level(1) == level(30) == accept.ALPHA == 0.004
    assert level(60) == pytest.approx(0.004 / 8)
    assert sum(level(i) for i in range(1, 31)) == pytest.approx(0.12)
    assert sum(level(i) for i in range(1, 100_000)) < 0.18
    with pytest.raises(ValueError, match="counted from 1"):
        level(0)
    pair = paired(7, 0, neither=23)
    assert compare([pair], against="base", candidate=30).verdict == "better"
    late = compare([pair], against="base", candidate=31)
    assert (late.verdict, late.candidate, late.alpha) == ("tie", 31, level(31))


def test_a_comparison_that_stands_for_itself_has_a_level_of_its_own() -> None:
    sealed = compare([paired(60, 40, neither=400)], against="base", alpha=accept.SINGLE)
    assert (sealed.verdict, sealed.alpha, sealed.candidate) == ("better", 0.025, None)
    assert compare([paired(60, 40, neither=400)], against="base").verdict == "tie"


def test_record_of_a_comparison() -> None:
    result = decide(20, 5, 100)
    assert (result.wins, result.losses, result.n, result.against) == (20, 5, 100, "base")
    assert result.difference == pytest.approx(0.15)
    assert result.p_value == pytest.approx((0.0020387 + 0.0004553) / 2, abs=1e-6)  # binom.sf(19 and 20, 25, .5)
    assert (result.alpha, result.candidate, result.asked, result.planned) == (0.004, 1, None, None)
    assert 0 < result.low < 0.15 < result.high < 0.25


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_verdict_and_interval_say_the_same_and_swap_sides(wins: int, losses: int, both: int, neither: int) -> None:
    if wins + losses + both + neither < 30:  # fewer decide nothing
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


def test_15_questions_can_decide_nothing_and_that_is_known_beforehand() -> None:
    assert decide(15, 0, 15).verdict == "undecidable"  # luck may look like that in one of many candidates
    assert decide(0, 15, 15).verdict == "undecidable"
    assert not accept.decidable(15)
    assert not accept.decidable(15, samples=8)
    assert accept.decidable(30)
    assert accept.decidable(20, samples=8)
    assert detectable_difference(6) == 1.0  # six wins out of six: mid-p 1/128
    # Two such benchmarks together are as good as 30 questions.
    assert accept.together([detectable_difference(15)] * 2) > 0.5
    assert accept.together([detectable_difference(15, samples=8)] * 2) < 0.4
    assert accept.together([1.0, 1.0]) == 1.0


def test_more_answers_where_there_are_few_questions() -> None:
    assert [accept.default_samples(n) for n in (1, 15, 49, 50, 99, 100, 1319)] == [8, 8, 8, 4, 4, 1, 1]
    assert detectable_difference(30, samples=8) < 0.6 * detectable_difference(30)


def test_a_best_near_its_ceiling_cannot_be_beaten() -> None:
    at_ceiling = paired(wins=2, losses=0, both=94, neither=4)
    assert compare([at_ceiling], against="trial 2").verdict == "undecidable"
    assert not can_improve([at_ceiling.best])
    assert can_improve([at_ceiling.best, {str(i): 0.0 for i in range(40)}])
    assert not can_improve([at_ceiling.best, {str(i): 0.0 for i in range(11)}])  # too few to have a vote
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


def test_unlike_numbers_of_answers_are_refused() -> None:
    pair = paired(30, 0, neither=70)
    with pytest.raises(ValueError, match="1 answers a question cannot be compared with 8"):
        compare([Paired("b", pair.candidate, pair.best, samples=1, best_samples=8)], against="base")


def test_several_benchmarks_combine_by_the_mean_of_normalised_differences() -> None:
    nine, tie = paired(9, 0, neither=21, name="a"), paired(2, 2, neither=26, name="b")
    assert compare([nine], against="base").verdict == "better"  # p = 1/1024, z = 3.10
    assert compare([nine, tie], against="base").verdict == "tie"  # z = 3.10 / sqrt(2) = 2.19: p = .014
    assert compare([nine, tie], against="base").p_value == pytest.approx(0.0142, abs=1e-4)
    won = compare([nine, paired(6, 1, neither=23, name="b")], against="base")  # z of 6-1 is 1.81: 4.91 / sqrt(2)
    assert won.verdict == "better"
    assert (won.n, won.wins, won.losses) == (60, 15, 1)
    assert 5 / 30 < won.difference < 9 / 30
    assert 0 < won.low < won.difference < won.high


def test_a_small_benchmark_neither_drowns_nor_outweighs_a_large_one() -> None:
    large, unlucky = paired(90, 40, neither=530, name="large"), paired(1, 3, neither=11, name="small")
    both = compare([large, unlucky], against="base")
    assert both.verdict == "better"
    assert both.p_value == compare([large], against="base").p_value  # a plain mean of the differences is below 0
    assert (both.wins, both.losses, both.n) == (91, 43, 675)
    assert compare([large, paired(0, 5, neither=10, name="small")], against="base").verdict == "tie"  # its veto
    lucky = paired(7, 0, neither=8, name="small")
    assert compare([paired(40, 40, neither=580, name="large"), lucky], against="base").verdict == "tie"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=3))
def test_the_combined_bound_agrees_with_the_verdict(splits: list[tuple[int, int]]) -> None:
    pairs = [paired(wins, losses, neither=40) for wins, losses in splits]
    forth = compare(pairs, against="x")
    back = compare([Paired("b", pair.best, pair.candidate) for pair in pairs], against="x")
    assert (forth.low > 0) == (forth.p_value < forth.alpha)
    assert forth.verdict != "better" or forth.low > 0
    assert (forth.high < 0) == (forth.verdict == "worse")
    assert -1 <= forth.low <= forth.difference <= forth.high <= 1
    assert forth.low == pytest.approx(-back.high, abs=1e-9)


def test_better_on_one_benchmark_and_worse_on_another_is_no_win() -> None:
    up, down = paired(60, 0, neither=40, name="a"), paired(2, 10, neither=88, name="b")
    result = compare([up, down], against="base")
    assert result.p_value < 0.004
    assert result.verdict == "tie"
    assert compare([down, paired(0, 15, neither=85, name="c")], against="base").verdict == "worse"


def graded(differences: list[float]) -> Paired:
    best = {str(i): 0.4 for i in range(len(differences))}
    return Paired("judged", {str(i): 0.4 + d for i, d in enumerate(differences)}, best)


def test_graded_scores_use_the_paired_t_test() -> None:
    # mean .05, standard deviation .10127, n = 40: t = 3.1225, p = .0016865 (scipy.stats.ttest_rel, one-sided);
    # the odds of that are taken 4/3 as large
    mixed = graded([0.15, -0.05] * 20)
    result = compare([mixed], against="base")
    assert result.difference == pytest.approx(0.05)
    assert result.p_value == pytest.approx(4 / 3 * 0.0016865 / (1 + 0.0016865 / 3), abs=1e-6)
    assert result.verdict == "better"
    assert 0 < result.low < 0.05 < result.high
    assert compare([Paired("judged", mixed.best, mixed.candidate)], against="base").verdict == "worse"
    assert compare([graded([0.15, -0.15] * 20)], against="base").verdict == "tie"
    # A t-test alone would be certain of five equal gains; chance makes five signs agree once in 32.
    five = compare([graded([0.1] * 5 + [0.0] * 35)], against="base")
    assert five.verdict == "tie"
    assert five.p_value > 0.5**5
    assert compare([graded([0.1] * 5)], against="base").verdict == "undecidable"


def test_means_of_several_answers_use_the_t_test_even_where_all_are_whole() -> None:
    pair = paired(7, 0, neither=33)
    assert compare([pair], against="base").verdict == "better"
    several = Paired("b", pair.candidate, pair.best, samples=4, best_samples=4)
    assert compare([several], against="base").p_value >= 0.5**7
    assert compare([several], against="base").verdict == "tie"


def test_a_race_is_looked_at_from_a_fifth_on() -> None:
    assert looks(100) == (20, 30, 40, 50, 60, 70, 80, 90, 100)
    assert looks(15) == (3, 5, 6, 8, 9, 11, 12, 14, 15)
    assert looks(3) == (1, 2, 3)
    assert looks(1) == (1,)


def test_who_cannot_win_any_more_is_dropped_and_who_can_is_not() -> None:
    assert not futile([paired(0, 10)], [100])  # too early to say
    assert futile([paired(0, 5, neither=15)], [100])
    assert not futile([paired(5, 5, neither=10)], [100])
    assert futile([paired(10, 10, neither=30)], [100])  # half-time, and level
    assert not futile([paired(20, 10, neither=20)], [100])
    assert futile([paired(12, 9, neither=69)], [100])
    assert not futile([paired(0, 90, neither=10)], [100])  # finished: `compare` says what it is
    # A later candidate has to win more clearly.
    assert not futile([paired(10, 6, neither=34)], [100])
    assert futile([paired(10, 6, neither=34)], [100], candidate=100)


def test_a_race_over_several_benchmarks() -> None:
    whole, begun = paired(30, 10, neither=60, name="a"), paired(0, 4, neither=16, name="b")
    assert not futile([whole, begun], [100, 100])
    assert futile([paired(20, 20, neither=60, name="a"), begun], [100, 100])
    nothing: Answers = {}
    assert not futile([whole, Paired("b", nothing, nothing)], [100, 100])
    assert futile([paired(10, 30, neither=60, name="a"), Paired("b", nothing, nothing)], [100, 100])


def test_a_dropped_candidate_is_never_better() -> None:
    dropped = compare([paired(15, 0, neither=15)], against="base", planned=[100])
    assert (dropped.verdict, dropped.asked, dropped.planned) == ("tie", 30, 100)
    assert compare([paired(0, 20, neither=10)], against="base", planned=[100]).verdict == "worse"
    finished = compare([paired(15, 0, neither=15)], against="base", planned=[30])
    assert (finished.verdict, finished.asked) == ("better", None)


def test_distributions_against_published_values() -> None:
    assert t_quantile(0.025, 10) == pytest.approx(2.228139, abs=1e-5)
    assert t_quantile(0.005, 3) == pytest.approx(5.840909, abs=1e-5)
    assert incomplete_beta(2, 3, 0.4) == pytest.approx(0.5248, abs=1e-10)
    assert mid_p(10, 11) == pytest.approx(13 / 4096)
    assert mid_p_lower_bound(0, 20, 0.025) == 0.0
    bound = mid_p_lower_bound(7, 20, 0.025)
    assert 0.153909 < bound < 0.2  # inside Clopper-Pearson's
    assert mid_p(7, 20, bound) == pytest.approx(0.025)


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
    sizes = [detectable_difference(n) for n in (7, 30, 100, 500, 1319)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 1.0
    assert 0.03 < sizes[-1] < 0.06
