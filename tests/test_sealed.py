"""Nothing of a sealed test question reaches a prompt, a tool's answer or a lesson; the search for it can fail."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from agent.hardware import Hardware
from agent.library import StudyLibrary
from agent.llm import ChatModel, Endpoint
from agent.propose.brief import AllowedKey, StudyBrief
from agent.propose.writer import Writer
from agent.records import History, Mistake
from agent.store import StudyPaths
from tests.records_factory import make_failed, make_proposal, make_score, make_trial
from tests.sealed import find_leaks, texts_below
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer

SEALED = [
    "Tom has 12 apples and gives 5 of them to Ann. How many apples does Tom have left over at the end of the day?",
    "reverse 90817263",
    'A "quoted" question\nover two lines, with é and 漢字: what is it that nobody may ever be told before the end?',
]
SEARCH = ["Eve has 3 pears and gives 5 of them to Ann. How many apples does Tom have left over at the end of the day?"]
DRAFT = {"hypothesis": "h", "change": "c", "train": {"skill": 0.5}, "parent": None}


@pytest.mark.parametrize(
    "text",
    [
        f"... {SEALED[0]} ...",
        SEALED[0].upper().replace(" ", "   "),
        SEALED[0][:95],
        SEALED[0][20:],
        json.dumps({"prompt": SEALED[2]}),
        json.dumps(json.dumps({"prompt": SEALED[2]})),
        repr(SEALED[2]),
        "reverse:\t90817263",
    ],
)
def test_a_planted_question_is_found(text: str) -> None:
    leaks = find_leaks({"clean": "Nothing here.", "a log": text}, SEALED)
    assert len(leaks) == 1
    assert leaks[0].startswith("a log: ")


def test_what_is_no_question_is_not_found() -> None:
    clean = {"numbers": "90817263 reversed", "short": SEALED[0][:40], "search": SEARCH[0], "empty": ""}
    assert find_leaks(clean, SEALED, SEARCH) == []
    assert find_leaks({"search": SEARCH[0]}, SEALED), "unless it is said that this part is shared"
    assert find_leaks({"a": "b"}, [""]) == []


def test_a_directory_is_walked(tmp_path: Path) -> None:
    (tmp_path / "trials" / "test").mkdir(parents=True)
    (tmp_path / "trials" / "train.log").write_text("fine")
    (tmp_path / "trials" / "test" / "answers.jsonl").write_text(SEALED[1])
    assert find_leaks(texts_below(tmp_path, leave_out=("test",)), SEALED) == []
    assert find_leaks(texts_below(tmp_path), SEALED) == [f"trials/test/answers.jsonl: {SEALED[1]!r}"]


class Curious:
    """A model that looks up all that it can, and everything that it should not be able to."""

    CALLS = (
        ("look_at_rows", {"start": 1, "count": 20}),
        ("look_at_rows", {"start": 3, "count": 20}),
        ("column_statistics", {"column": "question"}),
        *(("log_tail", {"trial": 1, "stage": stage}) for stage in ("data", "mini-run", "train", "bench", "test")),
        ("log_tail", {"trial": 0, "stage": "train"}),
        ("error_samples", {"benchmark": "demo/reverse"}),
        ("error_samples", {"benchmark": "demo/reverse", "trial": 0}),
        ("earlier_recipe", {"trial": 1}),
    )

    def __call__(self, request: ChatRequest) -> ChatAnswer:
        if request.number > len(self.CALLS) or "tools" not in request.body:
            return ChatAnswer(json.dumps(DRAFT))
        name, arguments = self.CALLS[request.number - 1]
        function = {"name": name, "arguments": json.dumps(arguments)}
        return ChatAnswer(None, message={"tool_calls": [{"id": "c", "type": "function", "function": function}]})


def study(root: Path) -> StudyLibrary:
    """A study whose data hold sealed questions in rows 2 and 5, as the contamination scan has found, and whose jobs
    that see a benchmark have written them into their logs."""
    paths = StudyPaths(root)
    paths.data.mkdir(parents=True)
    rows = [f"harmless question {number}" for number in range(1, 7)]
    rows[1], rows[4] = SEALED[0], SEALED[2]
    file = paths.data / "train.jsonl"
    file.write_text("".join(json.dumps({"question": row, "answer": "a"}) + "\n" for row in rows))
    for number, stage in ((0, "bench"), (1, "bench"), (1, "test"), (1, "train"), (1, "mini-run")):
        log = paths.stage(number, stage) / "train.log"
        log.parent.mkdir(parents=True)
        log.write_text("a harmless line" if stage in ("train", "mini-run") else SEALED[1])
    return StudyLibrary(file, frozenset({2, 5}), paths, root / "tokenizer.json")


def history() -> History:
    score = msgspec.structs.replace(make_score(0.5), mistakes=(Mistake(question=SEARCH[0], response="7"),))
    trial = make_trial(1, scores=(score,), proposal=make_proposal(train={"skill": 0.1}), lesson="More steps help.")
    quoting = make_failed(2, "train:exit", f"cannot use {SEALED[0]!r}", SEALED[0])
    return History(base=(score,), trials=(trial, msgspec.structs.replace(quoting, lesson=SEALED[0])), best=1)


@pytest.mark.parametrize("logs", [False, True])
def test_a_curious_model_finds_nothing_sealed(tmp_path: Path, logs: bool) -> None:
    """With `logs`, words of a job that read sealed rows are told: that is what `StudyBrief.logs` is there to stop."""
    library = study(tmp_path / "study")
    transcript = tmp_path / "transcript.jsonl"
    brief = StudyBrief(
        dataset="lab/mine",
        rows=6,
        columns=("question", "answer"),
        model="coin",
        benchmarks=(),
        hardware=str(Hardware(cores=2, memory=4 << 30)),
        defaults=lambda train: {},
        examples=tuple(map(str, library.shown())),
        statistics=library.statistics().for_agent(),
        library=library,
        logs=logs,
    )
    with ChatServer(Curious()) as server:
        model = ChatModel(Endpoint(base_url=server.url, model="m"))
        agent = Writer(
            model, brief, lambda recipe: [], (AllowedKey(name="skill", type="float"),), transcript=transcript
        )
        agent.propose(history(), ())
    prompts = {f"request {request.number}": json.dumps(request.body) for request in server.requests}
    leaks = find_leaks(prompts | {"transcript": transcript.read_text()}, SEALED, SEARCH)
    assert bool(leaks) == logs, leaks
    last = server.requests[-1].text
    assert "harmless question 6" in last, "rows without gaps: nothing says which were left out"
    assert "5: " not in last.replace("harmless question 5", "")
    assert SEARCH[0] in last, "wrong answers of the search split are told"
    assert ("a harmless line" in last) == logs
