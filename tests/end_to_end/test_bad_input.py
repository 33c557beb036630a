"""What a user can get wrong: one message that says what to do, the documented exit code, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import StudyError, UsageError
from tests.end_to_end.command import User
from tests.servers.hub_server import Hub

GSM8K = {"FT_BENCHMARK_DATASETS": '["gsm8k"]', "FT_RUNNER": "local"}


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def refused(user: User, *options: str, code: int = UsageError.exit_code, env: dict[str, str] | None = None) -> str:
    output = user.loop(*options, code=code, env={**GSM8K, **(env or {})})
    assert "Traceback" not in output
    return output


def folder(user: User, name: str, **files: str) -> str:
    (user.home / name).mkdir()
    for file, content in files.items():
        (user.home / name / file.replace("_", ".")).write_text(content)
    return name


def test_no_data_set(user: User) -> None:
    assert "--dataset is required" in refused(user)


def test_an_unknown_demo(user: User) -> None:
    assert "demo/reverse" in refused(user, "--dataset", "demo/revers")


def test_an_unknown_data_set(user: User) -> None:
    with Hub() as hub:
        output = refused(user, "--dataset", "nobody/nothing", env={"HF_ENDPOINT": hub.url})
    assert "nobody/nothing" in output
    assert "->" in output


def test_a_hub_that_is_out_of_reach(user: User) -> None:
    output = refused(user, "--dataset", "some/data", code=3, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "some/data" in output
    offline = refused(user, "--dataset", "some/data", code=3, env={"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in offline or "offline" in offline


def test_a_directory_without_data(user: User) -> None:
    assert "empty" in refused(user, "--dataset", folder(user, "empty"))


def test_a_file_that_is_no_json(user: User) -> None:
    output = refused(user, "--dataset", folder(user, "broken", train_jsonl='{"question": "a", "answer": "b"}\nhello\n'))
    assert "train.jsonl" in output
    assert "2" in output


def test_no_usable_columns(user: User) -> None:
    output = refused(user, "--dataset", folder(user, "odd", train_jsonl='{"left": "a", "right": "b"}\n'))
    assert "left" in output
    assert "--columns" in output


@pytest.mark.parametrize("value", ["aime25", '{"a": 1}', '["gsm8k"', "[]"])
def test_benchmarks_that_are_no_array(user: User, value: str) -> None:
    output = refused(user, "--dataset", "demo/reverse", env={"FT_BENCHMARK_DATASETS": value})
    assert "FT_BENCHMARK_DATASETS" in output
    assert "environment" in output


def test_an_unknown_benchmark_and_one_that_would_run_code(user: User) -> None:
    unknown = refused(user, "--dataset", "demo/reverse", env={"FT_BENCHMARK_DATASETS": '["gsm9k"]'})
    assert "did you mean gsm8k" in unknown
    code = refused(user, "--dataset", "demo/reverse", env={"FT_BENCHMARK_DATASETS": '["humaneval"]'})
    assert "running code that the model wrote" in code
    assert "gsm8k" in code


def test_an_unknown_setting(user: User) -> None:
    output = refused(user, "--dataset", "demo/reverse", env={"FT_BENCHMARK_LIMITS": "3"})
    assert "FT_BENCHMARK_LIMIT?" in output


def test_a_workspace_that_cannot_be_written(user: User) -> None:
    output = refused(user, "--dataset", "demo/reverse", env={"FT_FILE_PATH": "/dev/null/lab"})
    assert "FT_FILE_PATH" in output


def test_a_model_that_is_none(user: User) -> None:
    data = folder(user, "data", train_jsonl='{"question": "a", "answer": "b"}\n')
    rows = "".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(8))
    laid = user.workspace / "benchmarks" / "gsm8k"
    laid.mkdir(parents=True)
    for split in ("train", "test"):
        (laid / f"{split}.jsonl").write_text(rows)
    assert "config.json" in refused(user, "--dataset", data, "--model", folder(user, "nomodel"))


def test_a_language_model_without_an_endpoint_is_refused_before_anything_is_built(user: User) -> None:
    assert "FT_CHAT_API_BASE" in refused(user, "--dataset", "demo/reverse", "--proposer", "llm", "--dry-run")


def test_a_corrupt_journal_is_refused_and_kept(user: User) -> None:
    study = user.workspace / "studies" / "some-study"
    study.mkdir(parents=True)
    (study / "journal.jsonl").write_text('{"event": "study op\n{"event": "call ended"}\n')
    entry = {"id": "some-study", "kind": "study", "path": str(study), "created": 0.0, "dataset": "d", "model": "m"}
    (user.workspace / "index.jsonl").write_text(json.dumps({**entry, "benchmarks": []}) + "\n")
    output = user.run("ftloop", "report", code=StudyError.exit_code)
    assert "journal.jsonl, line 1" in output
    assert (study / "journal.jsonl").read_text().startswith('{"event": "study op\n')
