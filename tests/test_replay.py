"""A study is replayed from its transcript without network: the same recipes, byte for byte."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import BudgetEnded, StudyError, UsageError
from agent.journal import Journal
from agent.llm import ChatModel, Endpoint, EndpointError, Replay, Secret, Transcript
from agent.llm.transcript import read
from agent.loop import run_call
from agent.options import parse
from agent.propose.brief import AllowedKey
from agent.propose.writer import Writer
from agent.records import Proposal, Recipe
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.toy import BRIEF, Toy, lab

KEY = "sk-test-0123456789abcdef"


def check(recipe: Recipe) -> list[str]:
    return Toy().problems(recipe) if isinstance(recipe.train.get("skill"), int | float) else ["skill: set a number"]


def study(root: Path, model: ChatModel | Replay, trials: int, left: str = "8 min") -> str:
    """Trials of the toy, proposed by the writer over `model`; what was said."""
    out = StringIO()
    brief = msgspec.structs.replace(BRIEF, budget=lambda: left)
    transcript = None if isinstance(model, Replay) else root / "transcript.jsonl"
    allowed = (AllowedKey(name="skill", type="float"),)
    with lab(root, proposer=Writer(model, brief, check, allowed, transcript=transcript), loop_n=trials, out=out) as toy:
        out.write(run_call(toy))
    return out.getvalue()


def proposals(root: Path) -> list[Proposal | None]:
    return [trial.proposal for trial in Journal(root / "studies" / "toy" / "journal.jsonl").state.trials]


def recipes(root: Path) -> list[bytes]:
    return [msgspec.json.encode(found.recipe) if found else b"" for found in proposals(root)]


def reply(skill: Any) -> ChatAnswer:
    draft = {"hypothesis": "h", "reason": "r", "expected": "e", "change": f"skill {skill}", "train": {"skill": skill}}
    return ChatAnswer(json.dumps(draft))


LESSON = ChatAnswer('{"lesson": "Try more skill."}')


class Recording:
    """Repairs, a reply that thinks aloud, an endpoint that dies in the middle of a proposal, and five bad replies."""

    answers = (
        ChatAnswer("I would think first."),
        reply(0.5),
        LESSON,
        reply("much"),
        ChatAnswer(status=401, error="bad key"),
        reply(2.0),
        reply(0.25),
        LESSON,
        *[ChatAnswer("no")] * 4,
        ChatAnswer("<think>0.75?</think>" + reply(0.75).content),
        LESSON,
    )

    def __call__(self, request: ChatRequest) -> ChatAnswer:
        return self.answers[request.number - 1]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded")
    with ChatServer(Recording()) as server:
        model = ChatModel(Endpoint(base_url=server.url, key=Secret(KEY), model="gpt-test"))
        with pytest.raises(EndpointError):
            study(root, model, 4)
        study(root, model, 3)
    assert len(server.requests) == len(Recording.answers)
    assert len(recipes(root)) == 4
    return root


def test_the_same_recipes_byte_for_byte(recorded: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model = Replay(recorded / "transcript.jsonl", say=said.append)
    assert model.calls == 12, "what was said before the endpoint died was asked again"
    study(tmp_path, model, 4, left="2 h 05 min")
    assert recipes(tmp_path) == recipes(recorded)
    for before, now in zip(proposals(recorded), proposals(tmp_path), strict=True):
        assert (before is None) == (now is None)
        if before and now:
            assert (before.author, before.hypothesis, before.change) == (now.author, now.hypothesis, now.change)
    assert not said, "times and what is left of the budget are no difference"
    assert not (tmp_path / "transcript.jsonl").exists()
    state = Journal(tmp_path / "studies" / "toy" / "journal.jsonl").state
    assert (state.usage.calls, state.usage.cost) == (0, 0.0), "a replay asks nobody"


def test_the_end_of_the_recording_ends_the_call(recorded: Path, tmp_path: Path) -> None:
    said = study(tmp_path, Replay(recorded / "transcript.jsonl"), 9)
    assert recipes(tmp_path) == recipes(recorded)
    assert "is at its end, after 9 replies" in said


def test_a_prompt_that_differs_is_told_with_its_first_line(recorded: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (recorded / "transcript.jsonl").read_text().splitlines()]
    lines[1]["messages"][0]["content"] = lines[1]["messages"][0]["content"].replace("- Hardware: 2", "- Hardware: an")
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    study(tmp_path / "again", Replay(changed, say=said.append), 4)
    assert said == [
        f"replay: call 2 of {changed} (line 2): the prompt differs: recorded '- Hardware: an cores', "
        "now '- Hardware: 2 cores'"
    ]
    assert recipes(tmp_path / "again") == recipes(recorded)


def test_a_reply_never_answers_another_turn(recorded: Path, tmp_path: Path) -> None:
    lines = (recorded / "transcript.jsonl").read_text().splitlines(keepends=True)
    repaired = json.loads(lines[1])
    cut = tmp_path / "cut.jsonl"
    cut.write_text(json.dumps(repaired | {"turn": 1}) + "\n" + lines[5])
    with pytest.raises(StudyError, match=r"call 1 of .*cut.jsonl \(line 1\) was asked in 4 messages, and now in 2"):
        study(tmp_path / "again", Replay(cut), 1)


def test_a_torn_last_line_is_left_out_and_a_bad_one_named(recorded: Path, tmp_path: Path) -> None:
    whole = (recorded / "transcript.jsonl").read_bytes()
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(whole[:-20])
    assert len(read(torn)) == len(read(recorded / "transcript.jsonl")) - 1
    torn.write_bytes(b"\xff{}\n" + whole)
    with pytest.raises(UsageError, match="line 1: no line of a transcript"):
        Replay(torn)


def test_nothing_left_is_a_budget_that_ended(recorded: Path) -> None:
    replayed = Replay(recorded / "transcript.jsonl")
    asked = [entry.messages for _, entry in replayed._entries if entry.role == "propose"]
    for messages in asked:
        replayed.complete(messages, {})
    with pytest.raises(BudgetEnded):
        replayed.complete(asked[0], {})


def test_another_role_is_not_answered(recorded: Path) -> None:
    with pytest.raises(UsageError, match="no reply for 'critic'"):
        Replay(recorded / "transcript.jsonl", roles=("critic",))


def test_the_option() -> None:
    assert parse(["--dataset", "d", "--llm", "replay:a/b.jsonl"]).replay == Path("a/b.jsonl")
    assert parse(["--dataset", "d"]).replay is None
    for bad in ("replay:", "gpt-4", ""):
        with pytest.raises(SystemExit):
            parse(["--dataset", "d", "--llm", bad])


def test_keys_are_not_kept(recorded: Path) -> None:
    text = (recorded / "transcript.jsonl").read_text()
    assert KEY not in text
    assert "refuses the API key" in text, "what failed is kept as well"


def test_each_role_is_answered_from_its_own_replies(tmp_path: Path) -> None:
    """A reflection that failed when it was recorded fails again: it takes no proposal's reply, nor the next one's."""
    ask = [{"role": "user", "content": "?"}]
    path = tmp_path / "transcript.jsonl"
    record = Transcript(path, Endpoint(base_url=None, model="m"))
    record.write(ask, role="propose", reply="first")
    record.write(ask, role="reflect", error="it was down")
    record.write(ask, role="propose", error="it was down")
    record.write(ask, role="propose", reply="second")
    record.write(ask, role="mend", reply="a script")
    record.write(ask, role="reflect", reply="a lesson")
    replayed = Replay(path)
    assert replayed.complete(ask).text == "first"
    with pytest.raises(EndpointError, match="it was down"):
        replayed.complete(ask, role="reflect")
    assert replayed.complete(ask, role="mend").text == "a script"
    assert replayed.complete(ask, role="reflect").text == "a lesson"
    assert replayed.complete(ask).text == "second"
