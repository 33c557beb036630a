"""Data scripts in real containers: the contract holds there, and what is not the script's stays out of its reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.gateway import AnswerStore, Chat, Gateway
from agent.llm import Endpoint, Price
from agent.run import Runner
from scenarios.finetune import data
from scenarios.finetune.data_script import Limits, Patience, ScriptInput, ScriptRun, lay_out, run
from scenarios.finetune.rows import read
from tests.conformance.runners import make_runner
from tests.data_scripts import GOOD, HEAD, WRONG
from tests.servers.openai_server import ChatAnswer, ChatServer

pytestmark = pytest.mark.docker
LIMITS = Limits(cutoff_len=1000)
ESCAPES = {
    "the network": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)",
    "another study": "open({other!r}).read()",
    "the data set's own directory": "open({source!r}).read()",
    "all rows, in the debug run": "open({full!r}).read()",
    "its own program": "open(__file__, 'a')",
    "its input": "(args.input / 'train.jsonl').open('a')",
    "the system": "open('/etc/x', 'w')",
}


@pytest.fixture
def runner(image: str) -> Runner:
    return make_runner("docker", image, disk=100_000_000)


def test_an_engine_that_can_hold_it_refuses_no_script(runner: Runner) -> None:
    assert runner.refuses() == ""


@pytest.fixture
def given(tmp_path: Path) -> ScriptInput:
    (tmp_path / "source").mkdir()
    lines = [f"what is {n} + 1?,{n + 1},{'hard' if n % 2 else 'easy'}" for n in range(250)]
    (tmp_path / "source" / "train.csv").write_text("question,answer,level\n" + "\n".join(lines) + "\n")
    (tmp_path / "other.txt").write_text("another study's")
    return lay_out(data.recognise(tmp_path / "source"), tmp_path / "input")


@pytest.fixture
def attempt(runner: Runner, given: ScriptInput, tmp_path: Path) -> Callable[..., ScriptRun]:
    """Runs a script, always in the same place."""
    stage, cache = tmp_path / "stage", tmp_path / "cache"
    return partial(run, given=given, limits=LIMITS, execute=runner.run, stage=stage, cache=cache, name="data")


def test_a_good_script(attempt: Callable[..., ScriptRun]) -> None:
    done = attempt(GOOD)
    assert (done.report.usable, done.report.kept) == (True, 125), done.report.for_agent()
    assert attempt(GOOD).reused


@pytest.mark.parametrize("what", ESCAPES)
def test_what_is_out_of_reach(what: str, attempt: Callable[..., ScriptRun], given: ScriptInput, tmp_path: Path) -> None:
    code = ESCAPES[what].format(
        other=str(tmp_path / "other.txt"),
        source=str(tmp_path / "source" / "train.csv"),
        full=f"{given.full}/train.jsonl",
    )
    script = f"{HEAD}try:\n    {code}\nexcept OSError as error:\n    print('kept out:', error)\n    sys.exit(7)\n"
    report = attempt(script).report
    assert "ended with exit code 7" in report.for_agent(), report.for_agent()
    assert "kept out:" in report.tail


@pytest.mark.parametrize("what", ["a typo", "a link for a result", "closed directories", "emits 1 row", "loops"])
def test_what_is_wrong_with_a_script_is_told(what: str, attempt: Callable[..., ScriptRun]) -> None:
    script, found_by, words = WRONG[what]
    patience = Patience(debug=2, full=2) if what == "loops" else Patience()
    report = attempt(script, patience=patience).report
    assert (report.usable, report.run) == (False, found_by)
    assert words in report.for_agent()
    assert attempt(GOOD).report.usable, "the next turn repairs it"


def test_models_are_asked_through_the_gateways_socket(attempt: Callable[..., ScriptRun], tmp_path: Path) -> None:
    script = HEAD + (
        "from ftloop_llm import ask_many\n"
        "replies = ask_many([row['question'] for row in rows], role='weak', concurrency=4)\n"
        "emit({'instruction': row['question'], 'output': reply} for row, reply in zip(rows, replies))\n"
    )
    with ChatServer(lambda request: ChatAnswer(request.text.upper())) as server:
        model = (Endpoint(model="small", base_url=server.url), Price())
        role = Chat({"weak": [model]}, AnswerStore(tmp_path))

        @contextmanager
        def door() -> Iterator[Path]:
            with Gateway(*model, role).open() as opened:
                yield opened.socket

        done = attempt(script, door=door)
        asked = len(server.requests)
    assert done.report.usable, done.report.for_agent()
    assert next(read(Path(str(done.data))))["output"] == "WHAT IS 0 + 1?"
    assert asked == 250, "what the debug run was answered is not asked again"
