"""What the language model is told of a real study: the defaults that really hold, method by method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from agent.briefing import allowed_keys, study_brief
from agent.hardware import Hardware
from agent.llm import ChatModel, Endpoint
from agent.propose.brief import StudyBrief
from agent.propose.context import Asked, TokenMeasure, opening
from agent.propose.digest import trials_text
from agent.propose.duplicates import canonical
from agent.propose.writer import Writer
from agent.records import Contamination, History, Recipe, Value
from agent.store import StudyPaths
from scenarios.finetune import training
from scenarios.finetune.arguments import problems, schema
from scenarios.finetune.data import Dataset, Prepared
from scenarios.finetune.data_stage import DataWork
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan
from tests.records_factory import make_failed
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.test_scoring import lay_benchmark

NOWHERE = StudyPaths(Path("no-study"))


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    (tmp_path / "train.jsonl").write_text('{"instruction": "reverse 123", "output": "321"}\n')
    model = ModelInfo(
        path="/files/models/tiny",
        architecture="LlamaForCausalLM",
        parameters=700_000,
        bytes=2_800_000,
        dtype="float32",
        context=512,
        layers=4,
        chat_template=True,
    )
    return TrainingPlan(
        model=model,
        data=Prepared(directory=str(tmp_path), name="train", rows=1, dropped=0, fingerprint="f", format="alpaca"),
        cutoff_len=256,
        template=None,
        default_epochs=3,
        max_epochs=5,
        debug_timeout=60,
        full_timeout=600,
    )


@pytest.fixture
def brief(plan: TrainingPlan) -> StudyBrief:
    return study_brief(
        "demo/reverse", "demo/tiny", plan, (), Hardware(cores=2, memory=4 << 30), lambda: "8 minutes", NOWHERE
    )


@pytest.mark.parametrize(
    "train",
    [{}, {"finetuning_type": "full"}, {"finetuning_type": "freeze"}, {"warmup_steps": 5}, {"bf16": False}],
)
def test_the_defaults_are_those_of_the_training(train: dict[str, Value], brief: StudyBrief, plan: TrainingPlan) -> None:
    assert brief.defaults(train) == training.defaults(Recipe(train=train), plan)


def test_recipes_that_train_at_different_rates_are_different(brief: StudyBrief) -> None:
    full: dict[str, Value] = {"finetuning_type": "full"}
    assert canonical(full, brief.defaults) != canonical(full | {"learning_rate": 1e-4}, brief.defaults)
    assert canonical(full, brief.defaults) == canonical(full | {"learning_rate": 1e-5}, brief.defaults)


def test_the_model_is_told_one_default_a_key_and_what_each_method_changes(
    brief: StudyBrief, plan: TrainingPlan
) -> None:
    train = {"learning_rate": 0.002}
    draft = {"hypothesis": "h", "reason": "r", "expected": "e", "change": "c", "parent": None, "train": train}

    def answer(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(json.dumps(draft))

    with ChatServer(answer) as server:
        model = ChatModel(Endpoint(base_url=server.url, model="test-model"))
        writer = Writer(model, brief, lambda recipe: problems(recipe.train, plan.bounds), allowed_keys())
        assert writer.propose(History(), ()).recipe.train == train
    prompt = server.requests[0].text
    assert '"finetuning_type": "lora", "learning_rate": 0.0001, ' in prompt
    for method in ("full", "freeze"):
        only = json.dumps({"finetuning_type": method})
        assert f'  - with {only}: {{"finetuning_type": "{method}", "learning_rate": 1e-05}}\n' in prompt
    lines = {line.split(" (")[0]: line for line in prompt.splitlines()}
    for key in training.defaults(Recipe(train={}), plan):
        assert "default " not in lines[key].partition(")")[0], "the harness's own default holds"
    assert "default 8 " in lines["lora_rank"]


def test_only_keys_of_the_version_that_trains_are_offered() -> None:
    newer = {name: argument for name, argument in schema().items() if name != "use_dora"}
    newer["lora_rank"] = msgspec.structs.replace(newer["lora_rank"], default=9)
    offered = {key.name: key.default for key in allowed_keys(newer)}
    assert "use_dora" not in offered
    assert offered["lora_rank"] == 9
    assert {key.name: key.default for key in allowed_keys()} == {**offered, "use_dora": False, "lora_rank": 8}


def contaminated(plan: TrainingPlan, directory: Path, action: Literal["marked", "kept", "removed"]) -> StudyBrief:
    """The brief of a plan over six rows, of which 1, 2 and 4 hold questions of a benchmark."""
    rows = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(1, 7)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Contamination(key="k", rows=6, found={"gsm8k": 3}, flagged=3, action=action)
    plan = msgspec.structs.replace(plan, data=msgspec.structs.replace(plan.data, rows=6, contamination=found))
    machine = Hardware(cores=2, memory=4 << 30)
    return study_brief("lab/mine", "demo/tiny", plan, (), machine, lambda: "", StudyPaths(directory))


@pytest.mark.parametrize("action", ["marked", "kept"])
def test_no_row_that_holds_a_question_of_a_benchmark_is_an_example(
    plan: TrainingPlan, tmp_path: Path, action: Literal["marked", "kept"]
) -> None:
    listing = tmp_path / "contamination.jsonl"
    listing.write_text("".join(f'{{"row": {row}, "benchmark": "gsm8k"}}\n' for row in (1, 2, 2, 4)))
    brief = contaminated(plan, tmp_path, action)
    assert [example.split("'")[3] for example in brief.examples] == ["question 3", "question 5", "question 6"]
    assert brief.columns == ("instruction", "output")
    assert not brief.logs
    listing.unlink()
    assert contaminated(plan, tmp_path, action).examples == (), "nothing says which rows they are"
    listing.write_text("".join(f'{{"row": {row}}}\n' for row in (1, 2)))
    assert contaminated(plan, tmp_path, action).examples == (), "a listing of something else"


def test_where_such_rows_were_removed_the_first_ones_are_shown(plan: TrainingPlan, tmp_path: Path) -> None:
    brief = contaminated(plan, tmp_path, "removed")
    assert [example.split("'")[3] for example in brief.examples] == ["question 1", "question 2", "question 3"]
    assert brief.logs


def test_what_a_script_printed_of_a_benchmark_is_not_looked_up(plan: TrainingPlan, tmp_path: Path) -> None:
    question = "Tom has 12 apples and gives 5 of them to Ann. How many apples does Tom have left over after that?"
    benchmark = lay_benchmark(tmp_path, [{"question": question, "answer": "7"}, {"question": "?", "answer": "1"}])
    paths, machine = StudyPaths(tmp_path / "study"), Hardware(cores=2, memory=4 << 30)
    brief = study_brief("lab/mine", "demo/tiny", plan, (benchmark,), machine, lambda: "", paths)
    log = paths.stage(1, "data") / "script-1" / "debug" / "job.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"asked\n{question}\ndone")
    assert brief.library is not None
    assert brief.library.log(1, "data") == "asked\n(left out)\ndone"


def test_the_words_of_a_failed_training_are_not_told_where_its_data_hold_questions() -> None:
    quoted = "ValueError: cannot use 'sealed question 7'"
    trial = msgspec.structs.replace(make_failed(1, "train:exit", quoted, quoted), lesson=quoted)
    checked = msgspec.structs.replace(make_failed(2, "check", "lora_rank: must be at least 1"), lesson="")
    history = History(trials=(trial, checked))
    for limit in (10_000, 300):
        told = trials_text(history, lambda _: {}, limit, logs=False)
        assert "sealed question 7" not in told
        assert "failed (train:exit)" in told
    assert "lora_rank: must be at least 1" in trials_text(history, lambda _: {}, 10_000, logs=False)
    assert "sealed question 7" in trials_text(history, lambda _: {}, 10_000)


def test_data_model_and_keys_are_told_in_figures_and_in_llama_factorys_own_words(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "pad_token": "<p>"})
    )
    plan = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, path=str(model)))
    work = DataWork(
        dataset=Dataset(root="d", files=(), format="alpaca", columns={}),
        columns=("instruction", "output", "topic"),
        directory=tmp_path / "work",
        benchmarks=(),
        no_scripts="they cannot be confined here",
    )
    machine = Hardware(cores=2, memory=4 << 30)
    told = study_brief("demo/reverse", "demo/tiny", plan, (), machine, lambda: "", StudyPaths(tmp_path), work=work)
    assert told.model_facts["special tokens"] == "eos <|im_end|>, pad <p>"
    assert told.model_facts["template"] == "the model's own chat template"
    assert told.model_facts["context"] == "512 tokens"
    assert "duplicates: 0 of 1 rows" in told.statistics
    assert "row:" not in told.statistics, "rows are told as examples"
    assert told.work_columns == ("instruction", "output", "topic")
    assert told.steps["type"] == "array"
    assert not told.scripts_allowed
    keys = {key.name: key for key in allowed_keys()}
    assert keys["lora_rank"].manual == "The intrinsic dimension for LoRA fine-tuning."
    found = opening(Asked(brief=told, allowed=allowed_keys(), history=History()), 24_000, TokenMeasure())
    assert not found.shortened
    assert TokenMeasure().of(found.messages) < 12_000, "half of the room is left for the history"
    assert "The intrinsic dimension for LoRA fine-tuning." in found.messages[0]["content"]


def test_without_data_work_none_is_offered(brief: StudyBrief) -> None:
    assert (brief.steps, brief.scripts_allowed, brief.work_columns) == ({}, False, ())
