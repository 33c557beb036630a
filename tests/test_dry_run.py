"""`--dry-run` says where the language model answers, and gives nothing away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import dry_run
from agent.errors import UsageError
from agent.options import parse
from agent.settings import load
from scenarios.finetune import demo

ROOT = Path(__file__).parent.parent


def proposer(tmp_path: Path, **environ: str) -> str:
    settings = load({}, None, environ, tmp_path)
    return dict(dry_run.rows(parse(["--dataset", "demo/reverse"]), settings))["proposer"]


def test_credentials_in_a_base_url_are_not_shown(tmp_path: Path) -> None:
    said = proposer(
        tmp_path, FT_CHAT_API_BASE="https://user:a-secret@host:8443/v1?api-key=another", FT_CHAT_MODEL="gpt-x"
    )
    assert said == "gpt-x at https://host:8443/v1, free (a private address)"


def test_the_usual_endpoint_is_named(tmp_path: Path) -> None:
    said = proposer(tmp_path, OPENAI_API_KEY="a-secret")
    assert said.startswith("gpt-4o-mini at https://api.openai.com/v1, $0.15 + $0.6 per million tokens (prices.yaml of ")


def test_a_price_that_is_not_known_is_said_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the price of gpt-x at https://api\.openai\.com/v1 is not known") as caught:
        proposer(tmp_path, OPENAI_API_KEY="a-secret", FT_CHAT_MODEL="gpt-x")
    assert "FT_PRICE_INPUT" in caught.value.hint
    assert "FT_PRICES" in caught.value.hint
    mine = "api.openai.com:\n  models: {gpt-x: {input: 1, output: 2}}\n"
    (tmp_path / "mine.yaml").write_text(mine)
    named = {"OPENAI_API_KEY": "a-secret", "FT_CHAT_MODEL": "gpt-x", "FT_PRICES": "mine.yaml"}
    assert proposer(tmp_path, **named).endswith("$1.00 + $2.00 per million tokens (mine.yaml)")


def test_models_that_data_scripts_ask_are_named_and_priced_where_scripts_can_run(tmp_path: Path) -> None:
    def scripts(*argv: str, **environ: str) -> str | None:
        options = parse(["--dataset", "demo/reverse", *argv])
        settings = load(options.settings(), None, {"OPENAI_API_KEY": "a-secret", **environ}, tmp_path)
        return dict(dry_run.rows(options, settings)).get("scripts")

    assert scripts("--unsafe-local") is None, "none are named"
    assert scripts("--proposer", "tpe", FT_STRONG_MODELS="gpt-x") is None
    assert scripts("--runner", "local", FT_STRONG_MODELS="gpt-x") == "none without --unsafe-local"
    assert scripts(FT_STRONG_MODELS="gpt-x") == "none without --unsafe-local or an engine"
    assert scripts("--unsafe-local", FT_STRONG_MODELS="gpt-4o") == "may ask models, strong: gpt-4o; weak: gpt-4o-mini"
    with pytest.raises(UsageError, match="FT_STRONG_MODELS: the price of gpt-x"):
        scripts("--runner", "docker", FT_STRONG_MODELS="gpt-x")


def test_a_replay_needs_no_endpoint_but_a_transcript(tmp_path: Path) -> None:
    file = tmp_path / "transcript.jsonl"
    options = parse(["--dataset", "demo/reverse", "--llm", f"replay:{file}"])
    settings = load({}, None, {}, tmp_path)
    for content, words in ((None, "cannot be read"), ("nonsense\n", "line 1"), ("", "no reply")):
        if content is not None:
            file.write_text(content)
        with pytest.raises(UsageError, match=words):
            list(dry_run.rows(options, settings))
    file.write_text('{"time":0,"model":"m","messages":[],"reply":"{}"}\n')
    assert dict(dry_run.rows(options, settings))["proposer"] == f"a language model, replayed from {file}"


def test_a_base_url_that_is_none_is_refused_here_already(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FT_CHAT_API_BASE") as caught:
        proposer(tmp_path, FT_CHAT_API_BASE="https://user:a-secret@[host/v1")
    assert "a-secret" not in str(caught.value)


def data_set(tmp_path: Path, *argv: str) -> list[tuple[str, str]]:
    """The lines on the data of a data set `lab/mine` that lies in the workspace, or at a path."""
    settings = load(
        {"columns": parse(["--dataset", "x", *argv]).columns},
        None,
        {"FT_FILE_PATH": str(tmp_path), "FT_BENCHMARK_DATASETS": '["gsm8k"]'},
        tmp_path,
    )
    lines = list(dry_run.rows(parse(["--dataset", "lab/mine", *argv]), settings))
    return lines[: [name for name, _ in lines].index("model")]


def test_data_on_disk_are_read_and_nothing_is_written(tmp_path: Path) -> None:
    mine = tmp_path / "datasets" / "lab" / "mine"
    mine.mkdir(parents=True)
    rows = ['{"question": "1+1?", "answer": "2"}'] * 3 + ['{"question": "", "answer": "nothing"}']
    (mine / "train.jsonl").write_text("\n".join(rows))
    (mine / "test.jsonl").write_text(rows[0])
    before = sorted(tmp_path.rglob("*"))
    lines = data_set(tmp_path)
    assert lines[0] == ("data set", f"lab/mine, on disk in {mine}")
    assert lines[1] == ("rows", "3, read as question/answer (prompt=question,response=answer); 1 empty row dropped")
    assert "test.jsonl" in lines[2][1]
    assert sorted(tmp_path.rglob("*")) == before


def test_columns_that_are_not_recognised_are_refused_before_a_night_is_planned(tmp_path: Path) -> None:
    mine = tmp_path / "datasets" / "lab" / "mine"
    mine.mkdir(parents=True)
    (mine / "train.jsonl").write_text('{"a": "1+1?", "b": "2"}\n')
    with pytest.raises(UsageError, match=r"train\.jsonl") as caught:
        data_set(tmp_path)
    assert "--columns" in caught.value.hint
    assert data_set(tmp_path, "--columns", "prompt=a,response=b")[1] == (
        "rows",
        "1, read as columns (prompt=a,response=b)",
    )
    (mine / "train.jsonl").write_text('{"question": " ", "answer": "2"}\n')
    with pytest.raises(UsageError, match="all 1 rows have an empty prompt or response"):
        data_set(tmp_path, "--columns", "prompt=question,response=answer")


def test_data_that_are_not_there_are_said_to_be_downloaded(tmp_path: Path) -> None:
    assert data_set(tmp_path) == [("data set", "lab/mine, to be downloaded from the Hugging Face hub")]


def test_the_demo_is_said_to_be_made_until_it_is_on_disk(tmp_path: Path) -> None:
    def said() -> dict[str, str]:
        settings = load({}, None, {"FT_FILE_PATH": str(tmp_path)}, tmp_path)
        return dict(dry_run.rows(parse(["--dataset", "demo/reverse"]), settings))

    assert said()["data set"] == "demo/reverse, to be made on the spot (reverse eight digits)"
    assert said()["model"] == "demo/tiny, to be made on the spot"
    demo.make_data(tmp_path / "datasets" / "demo" / "reverse")
    assert said()["data set"].startswith(f"demo/reverse, on disk in {tmp_path}/datasets/demo/reverse (")
    assert said()["model"] == "demo/tiny, to be made on the spot"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "agent/loop.py", "--dataset", "demo/reverse", "--dry-run"]
    env = {**os.environ, "FT_FILE_PATH": str(tmp_path), "FT_PROPOSER": "tpe"}
    ended = subprocess.run(command, cwd=ROOT, env=env, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("argv", [("--dataset", "./nothing"), ("--dataset", "demo/reverse", "--model", "a/b/c")])
def test_a_path_at_which_nothing_lies_is_no_name_on_the_hub(tmp_path: Path, argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="is neither a directory nor a name on the Hugging Face hub"):
        list(dry_run.rows(parse(argv), load({}, None, {}, tmp_path)))
