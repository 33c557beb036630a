"""Which kind of attempt comes next, by table; parents by score and novelty; a plateau changes the strategy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.propose.policy import DEBUGS, DRAFTS, PLATEAU, direct, distance, strategy, without_progress
from agent.records import Failure, FailureKind, History, Mode, Proposal, Recipe, Trial
from tests.records_factory import make_comparison, make_score, make_trial

BASE = (make_score(0.1),)


def proposal(mode: Mode, parent: int | None = None, script: str = "", **train: Any) -> Proposal:
    recipe = Recipe(train={"finetuning_type": "lora", **train}, script=script)
    return Proposal(hypothesis="h", change="c", recipe=recipe, author="llm", mode=mode, parent=parent)


def scored(
    number: int, mean: float, verdict: Any = "tie", mode: Mode = "draft", parent: int | None = None, **train: Any
) -> Trial:
    comparison = msgspec.structs.replace(make_comparison(0.0, verdict), p_value=0.4)
    return make_trial(number, mean, verdict, comparison=comparison, proposal=proposal(mode, parent, **train))


def failed(
    number: int, kind: FailureKind = "train:oom", mode: Mode = "draft", parent: int | None = None, reason: str = ""
) -> Trial:
    failure = Failure(kind=kind, reason=reason or f"reason {number}")
    return Trial(number=number, proposal=None if kind == "proposal" else proposal(mode, parent), failure=failure)


def history(*trials: Trial) -> History:
    best = [trial.number for trial in trials if trial.verdict == "better"]
    return History(base=BASE, trials=trials, best=best[-1] if best else None)


DRAFTED = (scored(1, 0.2), scored(2, 0.6, "better", learning_rate=1e-3), scored(3, 0.3))


@pytest.mark.parametrize(
    ("trials", "mode", "parent", "why"),
    [
        pytest.param((), "draft", None, "nothing was tried", id="the first"),
        pytest.param((scored(1, 0.2),), "draft", None, f"draft 2 of {DRAFTS}", id="a second strategy"),
        pytest.param((failed(1),), "debug", 1, "failed (train:oom); repair 1", id="a failed draft"),
        pytest.param((failed(1, "proposal"),), "draft", None, "nothing was tried", id="no recipe to mend"),
        pytest.param((scored(1, 0.2), failed(2, "judge")), "draft", None, "draft 3", id="not the recipe's doing"),
        pytest.param((failed(1), failed(2, mode="debug", parent=1)), "debug", 2, "repair 2", id="a failed repair"),
        pytest.param(
            (failed(1), failed(2, mode="debug", parent=1), failed(3, mode="debug", parent=2)),
            "draft", None, "draft 2", id="given up",
        ),
        pytest.param(
            (failed(1, reason="same"), failed(2, mode="debug", parent=1, reason="same")),
            "draft", None, "draft 2", id="a repair that changed nothing",
        ),
        pytest.param((failed(1), failed(2, "proposal")), "debug", 1, "repair 1", id="no proposal in between"),
        pytest.param(DRAFTED, "improve", 2, "trial 2 scored 0.600", id="the best draft"),
        pytest.param((*DRAFTED, failed(4, mode="improve", parent=2)), "debug", 4, "", id="a failed improvement"),
        pytest.param(
            tuple(failed(n, "judge") for n in range(1, DRAFTS + 1)),
            "draft", None, "no trial has a score", id="no score",
        ),
    ],
)  # fmt: skip
def test_the_next_attempt(trials: tuple[Trial, ...], mode: str, parent: int | None, why: str) -> None:
    found = direct(history(*trials))
    assert (found.mode, found.parent) == (mode, parent)
    assert why in found.why
    assert found == direct(history(*trials)), "the same for the same history"


def test_no_line_is_mended_without_end() -> None:
    trials: list[Trial] = []
    for number in range(1, 30):
        directive = direct(history(*trials))
        trials.append(failed(number, mode=directive.mode, parent=directive.parent))
    modes = [trial.proposal.mode for trial in trials if trial.proposal]
    assert modes[: DEBUGS + 2] == ["draft", *["debug"] * DEBUGS, "draft"]
    assert "improve" not in modes


def test_a_good_parent_of_another_kind_gets_its_turn_once_the_best_has_children() -> None:
    near = scored(3, 0.58, learning_rate=1e-5, lora_rank=64)
    child = scored(4, 0.55, mode="improve", parent=2, learning_rate=2e-3)
    assert direct(history(*DRAFTED[:2], near)).parent == 2
    assert direct(history(*DRAFTED[:2], near, child)).parent == 3


def test_a_copy_of_the_best_is_no_second_parent() -> None:
    """Of two equally good ones behind the best, the one that is unlike it is taken."""
    child = scored(5, 0.2, mode="improve", parent=2)
    copy, other = scored(3, 0.58, learning_rate=1.01e-3), scored(4, 0.58, learning_rate=1e-5)
    assert direct(history(DRAFTED[0], DRAFTED[1], copy, other, child)).parent == 4
    other, copy = scored(3, 0.58, learning_rate=1e-5), scored(4, 0.58, learning_rate=1.01e-3)
    assert direct(history(DRAFTED[0], DRAFTED[1], other, copy, child)).parent == 3


def test_a_poor_trial_is_not_improved_however_novel() -> None:
    children = [scored(number, 0.55, mode="improve", parent=2, learning_rate=1e-3) for number in (4, 5)]
    assert direct(history(*DRAFTED, *children)).parent not in (1, 3)


def fruitless(count: int, first: int = 4, mode: Mode = "improve") -> list[Trial]:
    return [scored(number, 0.5, mode=mode, parent=2) for number in range(first, first + count)]


def test_a_plateau_changes_the_strategy_and_a_draft_ends_it() -> None:
    assert direct(history(*DRAFTED, *fruitless(PLATEAU - 2))).mode == "improve"
    stuck = (*DRAFTED, *fruitless(PLATEAU - 1))  # the last draft's own comparison is one of them
    found = direct(history(*stuck))
    assert (found.mode, found.parent) == ("draft", None)
    assert f"{PLATEAU} comparisons in a row brought nothing beyond trial 2" in found.why
    assert f"lora: {len(stuck)} trials" in found.why, "it is told what was tried"
    after = (*stuck, scored(len(stuck) + 1, 0.5, finetuning_type="full"))
    assert direct(history(*after)).mode == "improve"


def test_a_promising_tie_is_no_plateau() -> None:
    """The paired estimate counts, not the verdict alone: a tie that is almost better is progress."""
    almost = msgspec.structs.replace(make_comparison(0.05, "tie"), p_value=0.02)
    hopeful = [msgspec.structs.replace(trial, comparison=almost) for trial in fruitless(2 * PLATEAU)]
    assert without_progress(history(*DRAFTED, *hopeful)) == 1
    assert without_progress(history(*DRAFTED, *fruitless(3), scored(7, 0.9, "better", "improve", 2))) == 0


def test_distance() -> None:
    one = Recipe(train={"learning_rate": 1e-3, "finetuning_type": "lora"})
    assert distance(one, one) == 0.0
    assert distance(one, Recipe(train={"learning_rate": 1e-2, "finetuning_type": "lora"})) == pytest.approx(0.5)
    assert distance(one, Recipe(train={"learning_rate": 1e-3, "finetuning_type": "full"})) == pytest.approx(0.5)
    assert 0 < distance(one, Recipe(train={"learning_rate": 1.1e-3, "finetuning_type": "lora"})) < 0.05
    assert distance(one, msgspec.structs.replace(one, script="print()")) == pytest.approx(1 / 3)
    assert distance(Recipe(train={}), Recipe(train={})) == 0.0
    assert distance(Recipe(train={"warmup_ratio": 0.0}), Recipe(train={"warmup_ratio": 0.1})) == 1.0


def test_a_strategy_in_words() -> None:
    recipe = Recipe(train={"stage": "dpo", "finetuning_type": "lora", "use_dora": True, "use_galore": False})
    assert strategy(recipe) == "dpo lora dora"
    assert strategy(Recipe(train={}, script="s", data=({"step": "shuffle"},))) == (
        "the default method, with a data script and data steps"
    )
