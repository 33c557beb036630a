"""Random search, and the hybrid: structures from an author, numbers from TPE; a whole study over real HTTP."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import dry_run
from agent.chat import chosen_endpoint, require_proposer
from agent.errors import BudgetEnded, TrialFailed, UsageError
from agent.journal import Journal
from agent.llm import ChatModel, Endpoint
from agent.loop import run_call
from agent.options import parse
from agent.propose import Author
from agent.propose.brief import AllowedKey
from agent.propose.hybrid import Hybrid, asked_for, numeric
from agent.propose.policy import DEBUGS, DRAFTS
from agent.propose.random_search import Random
from agent.propose.writer import Writer
from agent.records import Failure, History, Lesson, Mode, Proposal, Recipe, TrainingData, Trial, Value
from agent.settings import Settings, load
from agent.space import Choice, Float, Int, Parameter, Space
from scenarios.finetune.space import default_space
from tests.records_factory import make_comparison, make_score, make_trial
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.toy import BRIEF, Toy, lab

SPACE = default_space()
NUMBERS = {"learning_rate", "lora_rank", "per_device_train_batch_size", "warmup_ratio"}
LORA: dict[str, Value] = {"finetuning_type": "lora", "lr_scheduler_type": "cosine"}
FULL: dict[str, Value] = {"finetuning_type": "full", "lr_scheduler_type": "linear"}


def allow(recipe: Recipe) -> list[str]:
    return []


class Listed:
    """An author with a list of recipes."""

    name = "llm:listed"

    def __init__(self, *recipes: Recipe) -> None:
        self.recipes = recipes
        self.asked = 0

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        self.asked += 1
        recipe = self.recipes[(self.asked - 1) % len(self.recipes)]
        return Proposal(hypothesis="h", change="c", recipe=recipe, author=self.name, mode="draft", reason="so.")

    def mend(self, proposal: Proposal, problem: str) -> Proposal:
        recipe = msgspec.structs.replace(proposal.recipe, script="mended")
        return msgspec.structs.replace(proposal, recipe=recipe)

    def reflect(self, history: History, trial: Trial, found: str) -> Lesson:
        return Lesson(text=f"{found}, reflected")


def author(*trains: dict[str, Value], **fields: Any) -> Listed:
    return Listed(*(Recipe(train=train, **fields) for train in trains))


def peak(recipe: Recipe) -> float:
    """Full marks at 2e-3 with LoRA; half of them with anything else."""
    rate = recipe.train["learning_rate"]
    assert isinstance(rate, float)
    best = 1.0 if recipe.train["finetuning_type"] == "lora" else 0.5
    return max(0.0, best - abs(math.log10(rate / 2e-3)) / 2)


def run(proposer: Hybrid | Random, trials: int, failing: Sequence[int] = ()) -> History:
    """What a study would see: a trial is better where its score is above all before; those in `failing` fail."""
    history = History(base=(make_score(0.0),))
    for number in range(1, trials + 1):
        proposal = proposer.propose(history, ())
        if number in failing:
            failure = Failure(kind="train:oom", reason=f"out of memory {number}")
            trial = Trial(number=number, proposal=proposal, failure=failure)
        else:
            mean = peak(proposal.recipe)
            better = mean > (history.incumbent[1][0].mean)
            found = msgspec.structs.replace(make_comparison(0.0, "better" if better else "tie"), p_value=0.4)
            trial = make_trial(number, mean, comparison=found, proposal=proposal, scores=(make_score(mean),))
        best = number if trial.verdict == "better" else history.best
        history = History(base=history.base, trials=(*history.trials, trial), best=best)
    return history


def proposed(history: History) -> list[Proposal]:
    return [trial.proposal for trial in history.trials if trial.proposal]


# Random search


def test_random_draws_are_uniform_in_the_logarithm_new_and_decided_by_the_seed() -> None:
    drawn = proposed(run(Random(SPACE, allow, 0), 60))
    assert len({json.dumps(one.recipe.train, sort_keys=True) for one in drawn}) == 60
    rates = [math.log10(float(str(one.recipe.train["learning_rate"]))) for one in drawn]
    thirds = [sum(low <= rate < low + 1 for rate in rates) for low in (-5, -4, -3)]
    assert min(thirds) >= 10, thirds
    assert all((one.recipe.train["finetuning_type"] == "lora") == ("lora_rank" in one.recipe.train) for one in drawn)
    assert proposed(run(Random(SPACE, allow, 0), 5)) == drawn[:5]
    assert proposed(run(Random(SPACE, allow, 1), 5)) != drawn[:5]


def test_random_passes_over_what_may_not_run_and_ends_with_the_space() -> None:
    space = Space((Parameter("batch", Choice((1, 2, 3))),))

    def odd(recipe: Recipe) -> list[str]:
        return ["no even batch"] if recipe.train["batch"] == 2 else []

    pending: list[Proposal] = []
    for _ in range(2):
        pending.append(Random(space, odd, 0).propose(History(), pending))
    assert {one.recipe.train["batch"] for one in pending} == {1, 3}
    with pytest.raises(BudgetEnded, match="every valid recipe"):
        Random(space, odd, 0).propose(History(), pending)
    with pytest.raises(TrialFailed, match="never"):
        Random(space, lambda recipe: ["never"], 0).propose(History(), ())


# The hybrid


def test_it_is_an_author_and_the_authors_words_are_passed_on() -> None:
    hybrid = Hybrid(author(LORA), SPACE, allow, 0)
    assert isinstance(hybrid, Author)
    assert hybrid.name == "hybrid:listed"
    proposal = hybrid.propose(History(), ())
    assert hybrid.mend(proposal, "p").recipe.script == "mended"
    assert hybrid.reflect(History(), make_trial(), "found").text == "found, reflected"


def test_the_authors_own_numbers_are_a_warm_start_and_what_it_left_open_is_filled() -> None:
    hybrid = Hybrid(author({**LORA, "learning_rate": 0.05, "num_train_epochs": 2}), SPACE, allow, 0)
    proposal = hybrid.propose(History(), ())
    assert proposal.recipe.train["learning_rate"] == 0.05, "outside of the space, and the author's to say"
    assert proposal.recipe.train["num_train_epochs"] == 2
    assert proposal.recipe.train.keys() == {*LORA, *NUMBERS, "num_train_epochs"}
    assert proposal.reason.startswith("so. Numbers left open: lora_rank ")
    assert (proposal.author, proposal.mode, proposal.hypothesis) == ("llm:listed", "draft", "h")
    whole = {**LORA, "learning_rate": 1e-3, "lora_rank": 8, "per_device_train_batch_size": 16, "warmup_ratio": 0.0}
    assert Hybrid(author(whole), SPACE, allow, 0).propose(History(), ()).recipe.train == whole


def test_drafts_are_the_authors_and_improvements_vary_the_numbers_of_the_best_structure() -> None:
    writer = author(
        {**LORA, "learning_rate": 1e-3}, {**FULL, "learning_rate": 1e-3}, LORA | {"lr_scheduler_type": "linear"}
    )
    history = run(Hybrid(writer, SPACE, allow, 0), 12)
    assert [one.mode for one in proposed(history)[:DRAFTS]] == ["draft"] * DRAFTS
    varied = [one for one in proposed(history) if one.author == "tpe"]
    assert len(varied) == 12 - writer.asked >= 6
    for one in varied:
        assert one.mode == "improve"
        assert one.parent is not None
        parent = proposed(history)[one.parent - 1].recipe
        kept = {key: value for key, value in parent.train.items() if key not in NUMBERS}
        assert {key: value for key, value in one.recipe.train.items() if key not in NUMBERS} == kept
        assert one.recipe.train.keys() == parent.train.keys()
        assert one.recipe != parent
        assert "its structure is kept" in one.reason


def test_it_comes_closer_to_the_best_numbers() -> None:
    late = [
        abs(math.log10(float(str(one.recipe.train["learning_rate"])) / 2e-3))
        for seed in range(4)
        for one in proposed(run(Hybrid(author(LORA), SPACE, allow, seed), 24))[-8:]
        if one.author == "tpe"
    ]
    assert sum(distance < 0.5 for distance in late) / len(late) > 0.6  # a third of the range, by chance


def test_the_numbers_of_all_drafts_together_fill_the_range() -> None:
    """Each new structure goes on where the last one stopped, rather than beginning at the same point."""
    structures = [{**LORA, "lr_scheduler_type": name} for name in ("cosine", "linear", "constant_with_warmup")]
    for seed in range(10):
        drafts = proposed(run(Hybrid(author(*structures), SPACE, allow, seed), DRAFTS))
        rates = sorted(math.log10(float(str(one.recipe.train["learning_rate"]))) for one in drafts)
        assert rates[-1] - rates[0] > 1, (seed, rates)


def test_another_structures_trials_teach_tpe_nothing() -> None:
    """The full structure does well at 1e-5; LoRA's numbers stay where LoRA did well."""
    trials = []
    for number in range(1, 25):
        lora = number % 2 == 0
        rate = 10 ** -(2 + number / 10)
        train = {
            **(LORA if lora else FULL),
            "learning_rate": rate,
            "per_device_train_batch_size": 16,
            "warmup_ratio": 0.0,
        }
        train |= {"lora_rank": 8} if lora else {}
        mean = max(0.0, 0.9 - abs(math.log10(rate / (2e-3 if lora else 1e-5))))
        mean += 0.05 if lora else 0.0
        parent = None if number < 4 else 2 if lora else 1
        mode: Mode = "draft" if number < 4 else "improve"
        proposal = Proposal(
            hypothesis="h", change="c", recipe=Recipe(train=train), author="a", mode=mode, parent=parent
        )
        found = msgspec.structs.replace(make_comparison(0.1, "better"), p_value=0.001)
        trials.append(make_trial(number, mean, comparison=found, proposal=proposal, scores=(make_score(mean),)))
    history = History(base=(make_score(0.0),), trials=tuple(trials), best=24)
    near = 0
    for seed in range(10):
        proposal = Hybrid(author(LORA), SPACE, allow, seed).propose(history, ())
        assert proposal.recipe.train["finetuning_type"] == "lora"
        near += abs(math.log10(float(str(proposal.recipe.train["learning_rate"])) / 2e-3)) < 0.7
    assert near >= 7


def test_the_data_work_is_part_of_the_structure_and_the_mended_script_is_what_is_kept() -> None:
    writer = author({**LORA, "learning_rate": 2e-3}, script="broken", data=({"step": "shuffle"},))
    history = run(Hybrid(writer, SPACE, allow, 0), DRAFTS)
    made = TrainingData(path="p", rows=9, script="mended", repairs=1)
    history = msgspec.structs.replace(
        history, trials=tuple(msgspec.structs.replace(trial, data=made) for trial in history.trials)
    )
    proposal = Hybrid(writer, SPACE, allow, 0).propose(history, ())
    assert (proposal.author, proposal.recipe.script, proposal.recipe.data) == ("tpe", "mended", ({"step": "shuffle"},))


def test_numbers_that_fail_are_followed_by_others_and_a_structure_that_fails_by_its_author() -> None:
    writer = author(LORA)
    history = run(Hybrid(writer, SPACE, allow, 0), DRAFTS + 2, failing=(DRAFTS + 1,))
    failed, after = proposed(history)[-2:]
    assert (failed.author, after.author) == ("tpe", "tpe")
    assert writer.asked == DRAFTS
    run(Hybrid(writer, SPACE, allow, 0), DRAFTS + DEBUGS + 2, failing=range(DRAFTS + 1, 99))
    assert writer.asked == 2 * DRAFTS + 1, "numbers that fail again and again are the author's to mend as well"
    run(Hybrid(writer := author(LORA), SPACE, allow, 0), 2, failing=(1,))
    assert writer.asked == 2, "a draft that failed is the author's to mend"


def test_without_further_numbers_the_author_is_asked() -> None:
    space = Space((Parameter("method", Choice(("a", "b"))), Parameter("batch", Choice((1, 2)))))
    whole = [Recipe(train={"method": "a", "batch": batch}) for batch in (1, 2)]
    trials = [
        make_trial(n, 0.5, proposal=Proposal(hypothesis="h", change="c", recipe=recipe, author="a", mode="draft"))
        for n, recipe in enumerate([*whole, whole[0]], 1)
    ]
    writer = author({"method": "b", "batch": 1})
    history = History(base=(make_score(0.1),), trials=tuple(trials), best=2)
    assert Hybrid(writer, space, allow, 0).propose(history, ()).recipe.train == {"method": "b", "batch": 1}
    assert writer.asked == 1


def test_what_counts_as_a_number() -> None:
    space = Space(
        (
            Parameter("method", Choice(("a", "b"))),
            Parameter("packing", Choice((True, False))),
            Parameter("rank", Choice((8, 16)), when=("method", "a")),
            Parameter("rate", Float(0.1, 1.0)),
            Parameter("steps", Int(1, 9)),
        )
    )
    assert [one.key for one in numeric(space, {"method": "a"})] == ["rank", "rate", "steps"]
    assert [one.key for one in numeric(space, {"method": "b"})] == ["rate", "steps"]
    said = asked_for(space)(History())
    assert said.mode == "draft"
    assert "TPE searches rank, rate, steps" in said.why


def test_defaults_decide_what_a_structure_is() -> None:
    hybrid = Hybrid(author({"lr_scheduler_type": "linear"}), SPACE, allow, 0, lambda train: {"finetuning_type": "lora"})
    assert "lora_rank" in hybrid.propose(History(), ()).recipe.train, "LoRA is the default, so it has a rank"


# A study


class Structures:
    """A language model that names a method and reflects; the toy's skill is TPE's."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, request: ChatRequest) -> ChatAnswer:
        if "lesson" in request.body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get(
            "required", []
        ):
            return ChatAnswer(json.dumps({"lesson": "More skill helps."}))
        self.told.append(request.text)
        method = "abcdef"[(len(self.told) - 1) % 6]
        said = {"hypothesis": f"{method} is right", "reason": "r", "expected": "e", "change": f"method {method}"}
        return ChatAnswer(json.dumps({**said, "parent": None, "mode": "draft", "train": {"method": method}}))


def test_a_hybrid_study_over_real_http(tmp_path: Path) -> None:
    space = Space((Parameter("skill", Float(0.01, 1.0)),))

    def check(recipe: Recipe) -> list[str]:
        return Toy().problems(recipe) if "skill" in recipe.train else []

    answer, out = Structures(), StringIO()
    with ChatServer(answer) as server:
        model = ChatModel(Endpoint(base_url=server.url, model="stub"))
        allowed = (AllowedKey(name="skill", type="float"), AllowedKey(name="method", type="str"))
        writer = Writer(model, BRIEF, check, allowed, policy=asked_for(space))
        with lab(tmp_path, proposer=Hybrid(writer, space, check, 0), loop_n=8, out=out) as toy:
            run_call(toy)
    state = Journal(tmp_path / "studies" / "toy" / "journal.jsonl").state
    authors = [trial.proposal.author for trial in state.trials if trial.proposal]
    assert authors[:DRAFTS] == ["llm:stub"] * DRAFTS
    assert "tpe" in authors[DRAFTS:]
    assert len(answer.told) == authors.count("llm:stub")
    assert "TPE searches skill in it" in answer.told[0], "its author is told what it need not do"
    assert all(trial.trained and "skill" in trial.trained.train for trial in state.trials)
    assert all(trial.lesson.endswith("Its author: More skill helps.") for trial in state.trials)
    assert state.usage.calls == len(answer.told) + len(state.trials), "each reply is counted"
    assert state.best is not None


# What is set


def given(tmp_path: Path, **environ: str) -> Settings:
    return load({}, None, {"FT_FILE_PATH": str(tmp_path), **environ}, tmp_path)


def test_a_hybrid_needs_an_endpoint_and_random_search_ignores_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--proposer hybrid needs an endpoint"):
        chosen_endpoint(given(tmp_path, FT_PROPOSER="hybrid"))
    local = {"FT_CHAT_API_BASE": "http://127.0.0.1:9"}
    assert chosen_endpoint(given(tmp_path, FT_PROPOSER="hybrid", **local)) is not None
    assert chosen_endpoint(given(tmp_path, FT_PROPOSER="random", **local)) is None
    options = parse(["--dataset", "demo/reverse", "--llm", "replay:t.jsonl"])
    with pytest.raises(UsageError, match="the proposer is random search"):
        require_proposer(options, given(tmp_path, FT_PROPOSER="random"))


def test_a_dry_run_names_the_proposer(tmp_path: Path) -> None:
    def said(**environ: str) -> str:
        return dict(dry_run.rows(parse(["--dataset", "demo/reverse"]), given(tmp_path, **environ)))["proposer"]

    assert said(FT_PROPOSER="random") == "random"
    local = {"FT_CHAT_API_BASE": "http://127.0.0.1:9", "FT_CHAT_MODEL": "m"}
    assert said(FT_PROPOSER="hybrid", **local).startswith("m at ")
    assert said(FT_PROPOSER="hybrid", **local).endswith("; numbers by TPE")
