from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec
import pytest

from agent.errors import BudgetEnded, TrialFailed
from agent.propose import Check
from agent.propose.tpe import START, Tpe, design, sobol_pair, sweep
from agent.records import History, Proposal, Recipe, Trial
from agent.space import Choice, Float, Int, Parameter, Space
from scenarios.finetune.space import default_space
from tests.records_factory import make_comparison, make_failed, make_proposal, make_score, make_trial

Objective = Callable[[Recipe], float | None]


def allow(recipe: Recipe) -> list[str]:
    return []


def learning_rate(proposal: Proposal) -> float:
    rate = proposal.recipe.train["learning_rate"]
    assert isinstance(rate, float)
    return rate


def peak(recipe: Recipe) -> float:
    """Full marks at 2e-3, nothing a decade away from it."""
    rate = recipe.train["learning_rate"]
    assert isinstance(rate, float)
    return max(0.0, 1.0 - abs(math.log10(rate / 2e-3)))


def search(trials: int, objective: Objective, seed: int = 0) -> History:
    """What a study of the default space would see; None from the objective is a failed trial."""
    proposer = Tpe(default_space(), allow, seed)
    history = History()
    for number in range(1, trials + 1):
        proposal = proposer.propose(history, ())
        mean = objective(proposal.recipe)
        trial = (
            Trial(number=number, proposal=proposal, failure=make_failed(number).failure)
            if mean is None
            else make_trial(number, proposal=proposal, scores=(make_score(mean),))
        )
        history = History(trials=(*history.trials, trial))
    return history


def proposals(history: History) -> list[Proposal]:
    return [trial.proposal for trial in history.trials if trial.proposal]


def dropped(trial: Trial, difference: float, against: str = "base") -> Trial:
    """The trial as if its race had ended after 30 questions, with this paired difference on them."""
    comparison = msgspec.structs.replace(make_comparison(difference, "tie", against, n=30), asked=30, planned=150)
    return msgspec.structs.replace(trial, comparison=comparison)


def test_a_dropped_trial_is_ranked_by_its_paired_difference_and_not_by_the_questions_it_was_asked() -> None:
    full, easy = make_trial(1, 0.45), dropped(make_trial(2, 0.9), -0.1)  # 30 easy questions, of which the base has all
    history = History(base=(make_score(0.4),), trials=(full, easy))
    assert history.estimate(full) == pytest.approx(0.45)
    assert history.estimate(easy) == pytest.approx(0.3)
    later = dropped(make_trial(3, 0.9), -0.1, "trial 1")
    assert History(base=history.base, trials=(full, easy, later)).estimate(later) == pytest.approx(0.35)
    assert history.estimate(make_failed(4)) is None
    seen = search(START + 1, peak)
    lucky = dropped(msgspec.structs.replace(seen.trials[0], scores=(make_score(1.0),)), -0.3)
    told = History(base=(make_score(0.4),), trials=(lucky, *seen.trials[1:]))
    assert "scored 1.000" not in Tpe(default_space(), allow, 0).propose(told, ()).hypothesis


def test_the_same_seed_and_history_give_the_same_proposal() -> None:
    history = search(12, peak)
    for length in (0, 1, START, 12):
        known = History(trials=history.trials[:length])
        again = Tpe(default_space(), allow, 0)
        assert again.propose(known, ()) == again.propose(known, ())
        if length < 12:
            assert again.propose(known, ()) == history.trials[length].proposal


def test_another_seed_gives_other_proposals() -> None:
    assert len({str(Tpe(default_space(), allow, seed).propose(History(), ())) for seed in range(20)}) == 20


def test_the_start_covers_every_third_of_the_learning_rates_for_every_seed() -> None:
    for seed in range(50):
        rates = [learning_rate(proposal) for proposal in proposals(search(START, lambda _: 0.0, seed))]
        assert {min(int(math.log10(rate / 1e-5)), 2) for rate in rates} == {0, 1, 2}, (seed, rates)


@pytest.mark.parametrize("first", [2, 4, START])
def test_a_design_has_one_point_in_each_stratum_at_every_power_of_two(first: int) -> None:
    space = Space((Parameter("a", Float(0.0, 1.0, digits=9)), Parameter("b", Choice(("x", "y")))))
    for seed in range(50):
        points = list(itertools.islice(design(space, seed), first))
        assert {int(float(str(point["a"])) * first) for point in points} == set(range(first))
        assert len({(int(float(str(point["a"])) * first / 2), point["b"]) for point in points}) == first


def test_while_all_scores_are_equal_the_gaps_are_filled() -> None:
    for seed in range(10):
        rates = sorted(math.log10(learning_rate(p)) for p in proposals(search(2 * START, lambda _: 0.0, seed)))
        gaps = [high - low for low, high in itertools.pairwise(rates)]
        assert max(gaps) < 0.25  # three decades in 16 even steps of 0.19


def test_the_sobol_points_are_the_published_ones() -> None:
    points = [(0, 0), (1, 1), (0.5, 1.5), (1.5, 0.5), (0.25, 1.25), (1.25, 0.25), (0.75, 0.75), (1.75, 1.75)]
    assert [sobol_pair(i) for i in range(8)] == [(a / 2, b / 2) for a, b in points]


def test_after_the_start_tpe_comes_closer_to_the_best() -> None:
    late = [learning_rate(p) for seed in range(5) for p in proposals(search(40, peak, seed))[-20:]]
    near = sum(abs(math.log10(rate / 2e-3)) < 0.5 for rate in late) / len(late)
    assert near > 0.6  # a third of the range, by chance


def test_recipes_that_fail_are_avoided() -> None:
    def small_batches_only(recipe: Recipe) -> float | None:
        return None if recipe.train["per_device_train_batch_size"] == 32 else peak(recipe) / 2

    late = [p for seed in range(4) for p in proposals(search(40, small_batches_only, seed))[-20:]]
    share = sum(p.recipe.train["per_device_train_batch_size"] == 32 for p in late) / len(late)
    assert share < 0.3  # half of them, by chance


def test_a_study_whose_trials_all_fail_goes_on() -> None:
    assert len(proposals(search(2 * START, lambda _: None))) == 2 * START


def test_no_recipe_is_proposed_twice() -> None:
    recipes = [str(sorted(p.recipe.train.items())) for p in proposals(search(60, peak))]
    assert len(set(recipes)) == 60


def test_pending_proposals_are_not_repeated_and_repel_the_next() -> None:
    history = search(12, peak)
    proposer = Tpe(default_space(), allow, 0)
    for known in (History(), history):
        pending: list[Proposal] = []
        for _ in range(6):
            pending.append(proposer.propose(known, pending))
        assert len({str(p.recipe) for p in pending}) == 6


def test_lora_keys_come_with_lora_only_and_both_methods_appear() -> None:
    found = proposals(search(30, peak))
    for proposal in found:
        assert ("lora_rank" in proposal.recipe.train) == (proposal.recipe.train["finetuning_type"] == "lora")
    assert {p.recipe.train["finetuning_type"] for p in found} == {"lora", "full"}


def test_invalid_points_are_passed_over() -> None:
    def no_lora(recipe: Recipe) -> list[str]:
        return ["finetuning_type: lora does not fit here"] if recipe.train["finetuning_type"] == "lora" else []

    proposer = Tpe(default_space(), no_lora, 3)
    for history in (History(), search(3, peak), search(12, peak)):
        assert proposer.propose(history, ()).recipe.train["finetuning_type"] == "full"


def test_a_space_without_valid_points_ends_the_trial_with_the_reason() -> None:
    with pytest.raises(TrialFailed, match="lora_rank: 7 is odd") as caught:
        Tpe(default_space(), lambda recipe: ["lora_rank: 7 is odd"], 0).propose(History(), ())
    assert caught.value.kind == "proposal"


def exhaust(
    space: Space, check: Check = allow, mean: Callable[[int], float] = lambda _: 0.0
) -> tuple[History, BudgetEnded]:
    """All that a space proposes, and what ends that."""
    proposer, history = Tpe(space, check, 0), History()
    for number in itertools.count(1):
        try:
            proposal = proposer.propose(history, ())
        except BudgetEnded as end:
            return history, end
        trial = make_trial(number, proposal=proposal, scores=(make_score(mean(number)),))
        history = History(trials=(*history.trials, trial))
    raise AssertionError


def test_an_exhausted_space_ends_the_search() -> None:
    history, end = exhaust(Space((Parameter("per_device_train_batch_size", Choice((1, 2))),)))
    assert [p.recipe.train["per_device_train_batch_size"] for p in proposals(history)] in ([1, 2], [2, 1])
    assert end.reason == "the search space is exhausted: every recipe in it was tried"
    assert not end.pause, "the search is over: the sealed split may be opened"


def test_pending_recipes_exhaust_a_space_too() -> None:
    proposer = Tpe(Space((Parameter("per_device_train_batch_size", Choice((1, 2))),)), allow, 0)
    pending: list[Proposal] = []
    for _ in range(2):
        pending.append(proposer.propose(History(), pending))
    with pytest.raises(BudgetEnded, match="every recipe in it was tried"):
        proposer.propose(History(), pending)


@pytest.mark.parametrize(
    ("ranks", "mean"), [(14, lambda _: 0.0), (4, lambda number: number % 7 / 10)], ids=["equal", "different"]
)
def test_a_space_is_not_called_exhausted_while_a_recipe_is_left(ranks: int, mean: Callable[[int], float]) -> None:
    """Chance and TPE alone would leave some points out."""
    space = Space(
        (
            Parameter("finetuning_type", Choice(("lora", "full"))),
            Parameter("lora_rank", Int(1, ranks), when=("finetuning_type", "lora")),
            Parameter("per_device_train_batch_size", Choice((1, 2, 4, 8, 16, 32))),
        )
    )
    history, _ = exhaust(space, mean=mean)
    assert (
        len({str(sorted(p.recipe.train.items())) for p in proposals(history)}) == (ranks + 1) * 6 == len(history.trials)
    )
    assert len(list(sweep(space, 0))) == len(history.trials)


def test_what_is_refused_does_not_keep_a_space_from_its_end() -> None:
    def no_two(recipe: Recipe) -> list[str]:
        return ["2 is too many"] if recipe.train["per_device_train_batch_size"] == 2 else []

    history, end = exhaust(Space((Parameter("per_device_train_batch_size", Choice((1, 2, 4))),)), no_two)
    assert len(history.trials) == 2
    assert end.reason == "the search space is exhausted: every valid recipe in it was tried"


def test_trials_of_another_proposer_are_avoided_but_do_not_mislead() -> None:
    foreign = make_trial(1, 0.9, "better", proposal=make_proposal(train={"optim": "sgd"}))
    history = History(trials=(foreign, make_failed(2)), best=1)
    proposal = Tpe(default_space(), allow, 0).propose(history, ())
    assert proposal.hypothesis.startswith("Space-filling start 1 of 8: learning_rate ")
    assert proposal.parent == 1


def test_foreign_scores_do_not_start_the_model_of_equal_ones() -> None:
    equal = search(START, lambda _: 0.0)
    foreign = make_trial(START + 1, 0.9, proposal=make_proposal(train={"optim": "sgd"}))
    proposal = Tpe(default_space(), allow, 0).propose(History(trials=(*equal.trials, foreign)), ())
    assert proposal.hypothesis.startswith("Space-filling, point 9: no score stands out yet: ")


def test_the_texts_say_how_the_recipe_was_found_and_what_changed() -> None:
    history = search(9, peak)
    third, ninth = proposals(history)[2], proposals(history)[8]
    assert third.hypothesis.startswith("Space-filling start 3 of 8: learning_rate ")
    assert ninth.hypothesis.startswith("TPE, after 8 trials (the best, trial ")
    best = max(history.trials, key=lambda trial: trial.mean or 0.0)
    after = Tpe(default_space(), allow, 0).propose(History(trials=history.trials, best=best.number), ())
    assert after.parent == best.number
    assert best.proposal is not None
    for key, value in after.recipe.train.items():
        assert (f"{key} " in after.change) == (best.proposal.recipe.train.get(key) != value)
    assert (third.author, third.recipe.seed) == ("tpe", 42)


def test_fixed_keys_are_part_of_every_recipe() -> None:
    space = Space((Parameter("learning_rate", Float(1e-5, 1e-2, log=True)),), fixed={"optim": "adafactor"})
    assert Tpe(space, allow, 0).propose(History(), ()).recipe.train["optim"] == "adafactor"


def test_whole_numbers_are_searched_too() -> None:
    space = Space(
        (Parameter("learning_rate", Float(1e-5, 1e-2, log=True)), Parameter("lora_rank", Int(1, 64, log=True)))
    )
    proposer = Tpe(space, allow, 0)
    history = History()
    for number in range(1, 15):
        proposal = proposer.propose(history, ())
        assert isinstance(proposal.recipe.train["lora_rank"], int)
        trial = make_trial(number, proposal=proposal, scores=(make_score(peak(proposal.recipe)),))
        history = History(trials=(*history.trials, trial))


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_a_design_needs_no_particular_number_of_parameters(count: int) -> None:
    space = Space(tuple(Parameter(f"key{i}", Float(0.0, 1.0)) for i in range(count)))
    points = design(space, 0)
    drawn = [next(points) for _ in range(START)]
    for i in range(count):
        assert sorted(int(float(str(point[f"key{i}"])) * START - 1e-2) for point in drawn)[0] == 0
        assert len({point[f"key{i}"] for point in drawn}) == START


def test_a_proposal_with_100_trials_behind_it_takes_a_fraction_of_the_loops_own_time() -> None:
    history = search(100, peak)
    proposer = Tpe(default_space(), allow, 0)
    seconds = []
    for _ in range(7):
        begun = time.process_time()
        proposer.propose(history, ())
        seconds.append(time.process_time() - begun)
    assert min(seconds) < 0.05


def test_optuna_is_imported_only_when_it_proposes_and_stays_silent() -> None:
    code = (
        "import sys, agent.propose.tpe, scenarios.finetune.space as s; assert 'optuna' not in sys.modules;"
        "from tests.test_tpe import search, peak; search(10, peak); assert 'optuna' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
