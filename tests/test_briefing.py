"""What the language model is told of a real study: the defaults that really hold, method by method."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from agent.briefing import allowed_keys, study_brief
from agent.hardware import Hardware
from agent.llm import ChatModel, Endpoint
from agent.propose.writer import StudyBrief, Writer, canonical
from agent.records import History, Recipe, Value
from scenarios.finetune import training
from scenarios.finetune.arguments import problems, schema
from scenarios.finetune.data import Prepared
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer


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
    return study_brief("demo/reverse", "demo/tiny", plan, (), Hardware(cores=2, memory=4 << 30), lambda: "8 minutes")


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
