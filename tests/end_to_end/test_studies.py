"""Whole studies through the command line: real LLaMA-Factory, real lm-eval, a real hub client, a real HTTP endpoint."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from agent.journal import Journal
from agent.records import Checkpoint, Scores, Sealed
from agent.run.environments import Environments
from scenarios.finetune.benchmarks import resolve
from tests.end_to_end.command import User, processes_below
from tests.servers.hub_server import Hub, Repository
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.test_ruler import TASK

pytestmark = pytest.mark.slow

GOOD = {"finetuning_type": "full", "learning_rate": 1e-3, "per_device_train_batch_size": 32}
"""As a person who knows the demo would train it."""


@pytest.fixture
def user(tmp_path: Path, environments: Environments) -> User:
    return User(tmp_path)


def proposal(train: dict[str, Any], change: str = "a change") -> str:
    return json.dumps({"hypothesis": "it learns", "change": change, "reason": "so", "expected": "more", "train": train})


def test_the_smoke_run_twice_is_one_study_of_two_trials(user: User) -> None:
    command = shlex.split("python agent/loop.py --dataset demo/reverse --loop_n 1")
    first = user.run(*command, env={"FT_RUNNER": "local"})
    assert "proposer: tpe, because no endpoint is configured" in first
    assert first.count("FT_FILE_PATH is not set") == 1
    user.run(*command, env={"FT_RUNNER": "local"})
    assert len(user.state().trials) == 2
    done = user.endings()
    assert done[(0, "bench", "done")] == 1
    assert all(done[(trial, "train", "done")] + done[(trial, "train", "failed")] == 1 for trial in (1, 2))
    for event in user.events():
        if event["event"] == "stage ended" and event["stage"] in ("train", "bench") and event["ending"] == "done":
            programs = event["result"].get("seconds") or sum(s["seconds"] for s in event["result"]["scores"])
            assert event["seconds"] - programs < 1.5, f"{event['stage']} adds too much to what its program needs"
    assert "2 trials" in user.run(*shlex.split("ftloop report"))


def test_the_headline_command_against_a_hub(user: User, environments: Environments) -> None:
    """Verbatim, with a .env; the hub serves a data set and a model of those names, and the benchmark's data."""
    rows = [{"id": i, "problem": f"What is {i} + 1?", "solution": f"{i + 1}", "answer": f"{i + 1}"} for i in range(40)]
    gsm8k = [{"question": f"What is {i} + 2?", "answer": f"It is\n#### {i + 2}"} for i in range(30)]
    user.loop("--dataset", "demo/reverse", "--runner", "local", "--step_n", "1")  # makes the tiny model
    tiny = user.workspace / "models" / "demo" / "tiny"
    with Hub() as hub:
        hub.datasets["HuggingFaceH4/aime_2024"] = Repository({"train.jsonl": lines(rows)})
        hub.datasets["openai/gsm8k"] = Repository(
            {"main/train.jsonl": lines(gsm8k[:20]), "main/test.jsonl": lines(gsm8k[20:])}
        )
        hub.models["Qwen/Qwen3-0.6B"] = Repository(
            {path.name: path.read_bytes() for path in tiny.iterdir() if not path.name.startswith("made_by")}
        )
        (user.home / ".env").write_text(
            f"FT_FILE_PATH={user.workspace}\nFT_RUNNER=local\nFT_GPUS=none\nHF_ENDPOINT={hub.url}\n"
            'FT_BENCHMARK_DATASETS=["gsm8k"]\nFT_BENCHMARK_LIMIT=4\nFT_BENCHMARK_SAMPLES=1\n'
        )
        command = "dotenv run -- python agent/loop.py --dataset HuggingFaceH4/aime_2024 --loop_n 1"
        output = user.run(*command.split())
        asked = len(hub.requests)
        again = user.run(*command.split())
        assert len(hub.requests) == asked, "what is on disk is not asked for again"
    assert "model: Qwen/Qwen3-0.6B, the" in output, "chosen, with the reason"
    assert "undecidable" in output, "four questions can decide nothing, and that is said before anything is spent"
    assert (user.workspace / "datasets" / "HuggingFaceH4" / "aime_2024" / "train.jsonl").exists()
    (journal,) = (user.workspace / "studies").glob("aime-2024-*/journal.jsonl")
    trials = Journal(journal).state.trials
    assert [trial.verdict for trial in trials] == ["undecidable", "undecidable"], again
    base = Journal(journal).state.result(0, "bench", Scores)
    assert base is not None
    assert [score.n for score in base.scores] == [4]
    assert trials[0].scores[0].n <= 4, "a candidate that cannot win is not asked everything"


@pytest.mark.long
def test_a_search_pool_and_a_confirmation(user: User) -> None:
    """Searched with a task of the user's own; the demo's benchmark is sealed whole; the recipe is trained once more."""
    draw = random.Random(7)
    numbers = [f"{draw.randrange(10**8):08d}" for _ in range(60)]
    pool = user.home / "pool.yaml"
    rows = [{"question": f"Reverse: {digits}", "answer": digits[::-1]} for digits in numbers]
    (user.home / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool.write_text(TASK.format(name="pool", rows=user.home / "pool.jsonl").replace('"\\n"', '"<|im_end|>"'))
    with ChatServer(lambda request: ChatAnswer(proposal(GOOD))) as server:
        env = {
            "FT_CHAT_API_BASE": server.url,
            "FT_RUNNER": "local",
            "FT_SEARCH_BENCHMARKS": json.dumps([str(pool)]),
            "FT_BENCHMARK_LIMIT": "60",
            "FT_BENCHMARK_SAMPLES": "1",
        }
        output = user.loop("--dataset", "demo/reverse", "--loop_n", "1", "--confirm", "1", env=env)
    assert "pool: 60 questions to search with" in output
    state = user.state()
    assert {score.benchmark for score in state.trials[0].scores} == {"pool"}
    assert state.trials[0].verdict == "better"
    sealed = state.result(1, "test", Sealed)
    assert sealed is not None
    assert [(score.benchmark, score.split, score.n) for score in sealed.winner] == [("reverse", "test", 60)]
    assert sealed.comparison.verdict == "better"
    (again,) = state.confirmations()
    assert (again.seed, again.failure) == (43, None)
    assert again.comparison is not None
    assert again.comparison.verdict == "better"
    (config,) = user.workspace.glob("studies/*/trials/0001/confirm-1-train/*.yaml")
    assert "seed: 43" in config.read_text()
    first, other = state.result(1, "train", Checkpoint), state.result(1, "confirm-1-train", Checkpoint)
    assert first is not None
    assert other is not None
    assert first.weights != other.weights, "another seed, another model"
    assert not Path(other.path).exists()
    assert "1 more seed; 1 of 1 better than base" in output


def test_kill_nine_in_training_then_the_same_command(user: User) -> None:
    def answer(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(proposal({**GOOD, "learning_rate": 1e-3 + 1e-5 * request.number}))

    with ChatServer(answer) as server:
        env = {"FT_CHAT_API_BASE": server.url, "FT_RUNNER": "local"}
        command = ("python", "agent/loop.py", "--dataset", "demo/reverse", "--loop_n", "1")
        process = user.start(*command, env=env)
        deadline = time.monotonic() + 300
        while not (logs := list(user.workspace.glob("studies/*/trials/0001/train/model/trainer_log.jsonl"))):
            assert time.monotonic() < deadline, "the training did not start"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        assert logs
        assert any("llamafactory" in line for line in processes_below(user.home))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(8)  # the supervisor's grace, and a margin
        assert not processes_below(user.home), "nothing is left running"

        output = user.run(*command, env=env)
    assert "trial 1: train was interrupted and runs again" in output
    done = user.endings()
    assert done[(1, "train", "interrupted")] == 1
    assert done[(1, "train", "done")] == 1
    assert done[(1, "propose", "done")] == 1
    assert done[(0, "bench", "done")] == 1, "the base is not scored again"
    assert len(user.state().trials) == 2, "the killed call's trial, then this call's"
    assert not processes_below(user.home)


def test_real_gsm8k_and_its_positive_control(user: User) -> None:
    """GSM8K's own files: a tiny model gets about 0; the same model made to memorise the questions gets them right."""
    source = os.environ.get("FTLOOP_TEST_DATA")
    if not source:
        pytest.skip("set FTLOOP_TEST_DATA to a directory with gsm8k_train.jsonl and gsm8k_test.jsonl")
    laid = user.workspace / "benchmarks" / "gsm8k"
    laid.mkdir(parents=True)
    for split in ("train", "test"):
        (laid / f"{split}.jsonl").write_bytes((Path(source) / f"gsm8k_{split}.jsonl").read_bytes())
    (benchmark,) = resolve(("lm_eval:gsm8k",), user.workspace, lambda *_: Path())
    asked = [item.row for item in benchmark.halves.take("search", 10)]
    memory = [{"prompt": f"Question: {row['question']}\nAnswer:", "response": f" {row['answer']}"} for row in asked]
    for name, content in (("gsm8k-train", (laid / "train.jsonl").read_bytes()), ("by-heart", lines(memory * 20))):
        (user.home / name).mkdir()
        (user.home / name / "train.jsonl").write_bytes(content)

    def answer(request: ChatRequest) -> ChatAnswer:
        epochs = 10 if "by-heart" in request.text else 0.05
        return ChatAnswer(
            proposal({**GOOD, "per_device_train_batch_size": 8, "num_train_epochs": epochs, "learning_rate": 2e-3})
        )

    with ChatServer(answer) as server:
        env = {
            "FT_CHAT_API_BASE": server.url,
            "FT_RUNNER": "local",
            "FT_MAX_EPOCHS": "50",
            "FT_BENCHMARK_DATASETS": '["lm_eval:gsm8k"]',
            "FT_BENCHMARK_LIMIT": "10",
        }
        user.loop("--dataset", "gsm8k-train", "--model", "demo/tiny", "--loop_n", "1", env=env)
        user.loop("--dataset", "by-heart", "--model", "demo/tiny", "--loop_n", "1", env=env)
    states = [Journal(Path(entry.path) / "journal.jsonl").state for entry in user.studies()]
    (real,), (memorised,) = (state.trials for state in states)
    (score,) = real.scores
    assert score.n == 10
    assert score.mean <= 0.2
    assert score.low < score.high, "an interval, also at 0 of 10"
    assert memorised.scores[0].mean >= 0.8
    assert memorised.verdict == "better"
    sealed = states[1].result(1, "test", Sealed)
    assert sealed is not None
    assert sealed.winner[0].mean < 0.5, "what was not memorised is not known"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
