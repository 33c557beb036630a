"""The language model looks things up before it proposes, over real HTTP: what it may see, and where it must end."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import BudgetEnded
from agent.llm import ChatModel, ContextOverflow, Endpoint, EndpointError, Replay, ToolCall
from agent.llm.form import share_that_fits
from agent.llm.transcript import read
from agent.propose.brief import AllowedKey
from agent.propose.tools import ALL_ANSWERS, ANSWER, ROUNDS, LogStage, Toolbox
from agent.propose.writer import ProposalFailed, Writer
from agent.records import History, Mistake, Proposal, Recipe
from tests import toy
from tests.records_factory import make_proposal, make_score, make_trial
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer

DRAFT = {"hypothesis": "h", "reason": "r", "expected": "e", "change": "c", "parent": None, "train": {"skill": 0.5}}
GOOD = ChatAnswer(json.dumps(DRAFT))
NO_TOOLS = ChatAnswer(status=400, error="registry/gemma:2b does not support tools")

WRONG = Mistake(question="reverse 12", response="12", extracted="12")
HISTORY = History(
    base=(make_score(0.1),),
    trials=(
        make_trial(
            1,
            0.5,
            scores=(msgspec.structs.replace(make_score(0.5), mistakes=(WRONG,)),),
            proposal=make_proposal("dedupe", train={"skill": 0.1}),
        ),
    ),
    best=1,
)


class Shelf:
    """A library of three rows."""

    ROWS = ("row one", "row two", "x" * 10_000)

    def rows(self, start: int, count: int) -> Sequence[str]:
        return self.ROWS[start - 1 : start - 1 + count]

    def column(self, name: str) -> str:
        if name != "question":
            raise ValueError(f"there is no column {name!r}; there is question")
        return "question: text, 100% filled"

    def log(self, trial: int, stage: LogStage) -> str:
        return f"{stage} of trial {trial}\n" + "noise\n" * 5_000 + "the end"


BRIEF = msgspec.structs.replace(toy.BRIEF, rows=3, columns=("question",), library=Shelf())
ALLOWED = (AllowedKey(name="skill", type="float"),)


def wants(*calls: tuple[str, Any], text: Any = None) -> ChatAnswer:
    """A reply that asks for tools; arguments that are no text are written as JSON."""
    entries = [
        {
            "id": f"call-{number}",
            "type": "function",
            "function": {"name": name, "arguments": args if isinstance(args, str) else json.dumps(args)},
        }
        for number, (name, args) in enumerate(calls)
    ]
    return ChatAnswer(text, message={"tool_calls": entries}, finish_reason="tool_calls")


def in_turn(*answers: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    return lambda request: answers[min(request.number, len(answers)) - 1]


def writer(server: ChatServer, **options: Any) -> Writer:
    model = ChatModel(
        Endpoint(base_url=server.url, model="m"), timeout=options.pop("timeout", 10), sleep=lambda _: None, retries=2
    )
    return Writer(model, options.pop("brief", BRIEF), lambda recipe: [], ALLOWED, **options)


def propose(answer: Callable[[ChatRequest], ChatAnswer], **options: Any) -> tuple[Proposal, list[ChatRequest]]:
    with ChatServer(answer) as server:
        proposal = writer(server, **options).propose(HISTORY, ())
    return proposal, server.requests


def told(request: ChatRequest) -> list[str]:
    """What the tools said in a request."""
    return [message["content"] for message in request.messages if message["role"] == "tool"]


def test_the_model_looks_things_up_and_then_proposes() -> None:
    first = wants(("look_at_rows", {"start": 2, "count": 1}), ("error_samples", {"benchmark": "demo/reverse"}))
    second = wants(("earlier_recipe", {"trial": 1}), ("column_statistics", {"column": "question"}), text="I see.")
    proposal, requests = propose(in_turn(first, second, GOOD))
    assert proposal.recipe == Recipe(train={"skill": 0.5})
    assert (proposal.usage.calls, proposal.usage.prompt_tokens) == (3, 300)
    offered = [tool["function"]["name"] for tool in requests[0].body["tools"]]
    assert offered == ["look_at_rows", "column_statistics", "log_tail", "error_samples", "earlier_recipe"]
    assert requests[0].format == "text", "tools and a response format are never asked for together"
    assert told(requests[1]) == [
        '<data of="look_at_rows">\nrow two\n</data>',
        '<data of="error_samples">\nquestion: reverse 12\n  answer: 12\n  taken as: 12\n</data>',
    ]
    recipe, column = told(requests[2])[2:]
    assert 'recipe: {"skill": 0.1}' in recipe
    assert "better: demo/reverse 0.500" in recipe
    assert "100% filled" in column
    asked = requests[2].messages[2]
    assert asked["tool_calls"][0]["function"] == {"name": "look_at_rows", "arguments": '{"start": 2, "count": 1}'}
    ids = [call["id"] for call in asked["tool_calls"]]
    assert [message["tool_call_id"] for message in requests[2].messages if message["role"] == "tool"][:2] == ids


def test_an_endless_loop_of_tools_is_ended_and_answered() -> None:
    def answer(request: ChatRequest) -> ChatAnswer:
        if "tools" in request.body:
            return wants(("look_at_rows", {"start": request.number, "count": 1}))
        return GOOD

    proposal, requests = propose(answer)
    assert proposal.recipe.train == {"skill": 0.5}
    assert len(requests) == ROUNDS + 1
    last = requests[-1]
    assert last.format == "json_schema"
    assert "Answer now" in last.messages[-1]["content"]
    assert {message["role"] for message in last.messages} == {"system", "user", "assistant"}, "as plain text"
    assert '(looked up: look_at_rows {"start": 1, "count": 1})' in last.text
    assert "row two" in last.text


def test_a_model_that_never_answers_fails_the_proposal_only() -> None:
    loop = wants(("look_at_rows", {"start": 1, "count": 1}))
    with ChatServer(in_turn(loop)) as server, pytest.raises(ProposalFailed, match="the reply is empty") as caught:
        writer(server, repairs=2).propose(HISTORY, ())
    assert len(server.requests) == ROUNDS + 3
    assert caught.value.usage.calls == ROUNDS + 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("rm_rf", {}), "error: there is no tool 'rm_rf'; there is look_at_rows, "),
        (("look_at_rows", '{"start": 1'), "error: the arguments of look_at_rows cannot be used: "),
        (("look_at_rows", "[" * 100_000), "error: the arguments of look_at_rows cannot be used: "),
        (("look_at_rows", {"start": 0}), "Expected `int` >= 1 - at `$.start`"),
        (("look_at_rows", {"count": 10_000}), "Expected `int` <= 20"),
        (("look_at_rows", {"path": "/etc/passwd"}), "unknown field `path`"),
        (("look_at_rows", {"start": 99}), "there is no row 99"),
        (("column_statistics", {"column": "answer"}), "error: there is no column 'answer'; there is question"),
        (("column_statistics", {}), "missing required field `column`"),
        (("log_tail", {"trial": 9}), "error: there is no finished trial 9 (finished: 1)"),
        (("log_tail", {"trial": 1, "stage": "test"}), "Invalid enum value 'test'"),
        (("log_tail", {"trial": 1, "stage": "bench"}), "Invalid enum value 'bench'"),
        (("log_tail", {"trial": 1, "stage": "../../base"}), "Invalid enum value"),
        (("log_tail", {"trial": 1}), "the end"),
        (("error_samples", {"benchmark": "gsm8k"}), "there is no score of 'gsm8k'; there is one of demo/reverse"),
        (("error_samples", {"benchmark": "demo/reverse", "trial": 0}), "no wrong answer was kept"),
        (("earlier_recipe", {"trial": "1"}), "Expected `int`, got `str`"),
        (("", ""), "error: there is no tool ''"),
        (("look at\nrows", {}), "row one"),
    ],
)
def test_whatever_is_wrong_with_a_call_is_said(call: tuple[str, Any], said: str) -> None:
    proposal, requests = propose(in_turn(wants(call), GOOD))
    assert proposal.recipe.train == {"skill": 0.5}
    (answer,) = told(requests[1])
    if call[0] != "look at\nrows":
        assert said in answer
    assert len(answer) <= ANSWER + 100
    for entry in requests[1].messages[2]["tool_calls"]:
        assert entry["function"]["name"].isidentifier()
        json.loads(entry["function"]["arguments"])


@pytest.mark.parametrize("calls", [None, [], {}, "x", [None], [{}], [{"function": None}], [{"function": {"name": 7}}]])
def test_empty_and_broken_tool_calls(calls: Any) -> None:
    """Without any call, the text counts; what is no call is answered as one of no tool."""
    answer = ChatAnswer(GOOD.content, message={"tool_calls": calls})
    proposal, requests = propose(in_turn(answer, GOOD))
    assert proposal.recipe.train == {"skill": 0.5}
    assert len(requests) == (2 if isinstance(calls, list) and calls else 1)


def test_the_same_question_is_answered_once() -> None:
    same = wants(("look_at_rows", {"start": 1, "count": 1}))
    _, requests = propose(in_turn(same, same, GOOD))
    assert "row one" in told(requests[2])[0]
    assert "asked exactly this before" in told(requests[2])[1]


def test_what_tools_say_is_bounded_in_all() -> None:
    box = Toolbox(HISTORY, Shelf(), logs=True)
    calls = [ToolCall(id="c", name="log_tail", arguments=f'{{"trial": 1}}{" " * n}') for n in range(40)]
    said = [box.answer(call) for call in calls]
    assert sum(map(len, said)) < ALL_ANSWERS + ANSWER + 40 * 120
    assert "the end" in said[0]
    assert "answer now" in said[-1]


def test_without_logs_and_library_there_is_less_to_look_up() -> None:
    def names(box: Toolbox) -> list[str]:
        return [tool["function"]["name"] for tool in box.schemas]

    assert "log_tail" not in names(Toolbox(HISTORY, Shelf(), logs=False))
    assert names(Toolbox(HISTORY, None, logs=True)) == ["error_samples", "earlier_recipe"]
    refused = Toolbox(HISTORY, Shelf(), logs=False).answer(ToolCall(id="c", name="log_tail", arguments='{"trial": 1}'))
    assert "there is no tool 'log_tail'" in refused


def test_every_tool_is_described() -> None:
    for tool in Toolbox(HISTORY, Shelf(), logs=True).schemas:
        function = tool["function"]
        assert function["description"]
        assert function["parameters"]["type"] == "object"
        assert function["parameters"]["additionalProperties"] is False


# Endpoints without tools


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "registry.ollama.ai/library/gemma:2b does not support tools"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (404, "No endpoints found that support tool use. Try disabling tools"),
        (500, "tools param requires --jinja flag"),
        (422, "body.tools: Extra inputs are not permitted"),
        (400, "bad request"),
    ],
)
def test_an_endpoint_without_tools_is_asked_without_them(status: int, words: str) -> None:
    def answer(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(status=status, error=words) if "tools" in request.body else GOOD

    with ChatServer(answer) as server:
        agent = writer(server)
        agent.propose(HISTORY, ())
        agent.propose(HISTORY, ())
    assert ["tools" in request.body for request in server.requests] == [True, False, False], "remembered"
    assert server.requests[1].format == "json_schema"


def test_a_brief_may_offer_no_tools() -> None:
    _, requests = propose(in_turn(GOOD), brief=msgspec.structs.replace(BRIEF, tools=False))
    assert "tools" not in requests[0].body
    assert "tools" not in requests[0].text


# Prompts that are too long, connections that fail


OVERFLOWS = (
    "This model's maximum context length is 4000 tokens. However, your messages resulted in 6000 tokens (5900 in the "
    "messages, 100 in the functions).",
    "the request exceeds the available context size, try increasing it; n_ctx",
    "prompt is too long: 6000 tokens > 4000 maximum",
    "The input token count (6000) exceeds the maximum number of tokens allowed (4000).",
)


@pytest.mark.parametrize("words", OVERFLOWS)
def test_a_prompt_that_is_too_long_is_trimmed_and_said_so(words: str) -> None:
    trials = tuple(make_trial(n, 0.3, "tie", proposal=make_proposal(f"c{n}", train={"skill": n})) for n in range(1, 99))
    history = History(base=HISTORY.base, trials=trials)
    said: list[str] = []

    def answer(request: ChatRequest) -> ChatAnswer:
        too_long = len(request.text) > 18_000 or "tools" in request.body
        return ChatAnswer(status=400, error=words) if too_long else GOOD

    with ChatServer(answer) as server:
        agent = writer(server, say=said.append)
        assert agent.propose(history, ()).recipe.train == {"skill": 0.5}
        before = len(server.requests)
        assert "shortened or left out: " in server.requests[-1].text
        agent.propose(history, ())
        assert len(server.requests[before].text) <= 18_000, "remembered"
    assert said
    assert all("is too long for 'm'" in line and "from now on a prompt has at most" in line for line in said)
    assert len(server.requests) < 12


def test_an_endpoint_that_finds_everything_too_long_ends_the_call() -> None:
    words = ChatAnswer(status=400, error=OVERFLOWS[0])
    with ChatServer(in_turn(words)) as server, pytest.raises(ContextOverflow, match="too long for 'm'") as caught:
        writer(server).propose(HISTORY, ())
    assert isinstance(caught.value, EndpointError)
    assert "FT_CONTEXT_TOKENS" in caught.value.hint
    assert caught.value.usage.calls == len(server.requests) < 10


@pytest.mark.parametrize(
    ("said", "share"),
    [
        (OVERFLOWS[0], 0.8 * 4000 / 6000),
        (OVERFLOWS[1], 0.5),
        (OVERFLOWS[2], 0.8 * 4000 / 6000),
        (OVERFLOWS[3], 0.8 * 4000 / 6000),
        ("maximum context length is 8,192 tokens, you requested 81,920 tokens", 0.1),
        ("context length exceeded", 0.5),
    ],
)
def test_how_much_of_a_prompt_fits(said: str, share: float) -> None:
    assert share_that_fits(said) == pytest.approx(share)


def test_a_connection_that_drops_between_tools_is_tried_again() -> None:
    look = wants(("look_at_rows", {"start": 1, "count": 1}))
    proposal, requests = propose(in_turn(look, ChatAnswer(drop="body"), ChatAnswer(drop="now"), GOOD), timeout=5)
    assert proposal.recipe.train == {"skill": 0.5}
    assert requests[1].messages == requests[3].messages


def test_a_slow_stream_is_cut_off() -> None:
    look = wants(("look_at_rows", {"start": 1, "count": 1}))
    with (
        ChatServer(in_turn(look, ChatAnswer(GOOD.content, drip=0.05))) as server,
        pytest.raises(EndpointError) as caught,
    ):
        writer(server, timeout=0.4).propose(HISTORY, ())
    assert caught.value.usage.calls == 3, "the look, and two attempts at an answer"


# The transcript


def test_rounds_of_tools_are_recorded_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    look = wants(("look_at_rows", {"start": 1, "count": 1}), text="First a look.")
    again = wants(("log_tail", {"trial": 1}))
    with ChatServer(in_turn(look, ChatAnswer("prose"), GOOD, again, GOOD)) as server:
        agent = writer(server, transcript=path)
        recorded = [agent.propose(HISTORY, ()), agent.propose(HISTORY, ())]
    entries = [entry for _, entry in read(path)]
    assert [(entry.turn, entry.turns, len(entry.calls)) for entry in entries] == [
        (1, 4, 1),
        (2, 5, 0),
        (3, 5, 0),
        (1, 4, 1),
        (2, 5, 0),
    ]
    assert entries[0].calls[0] == ToolCall(id="call-0", name="look_at_rows", arguments='{"start": 1, "count": 1}')
    assert entries[0].reply == "First a look."
    said: list[str] = []
    replay = Replay(path, say=said.append)
    again_agent = Writer(replay, BRIEF, lambda recipe: [], ALLOWED)
    replayed = [again_agent.propose(HISTORY, ()), again_agent.propose(HISTORY, ())]
    assert [one.recipe for one in replayed] == [one.recipe for one in recorded]
    assert not said, "the tools say the same"
    with pytest.raises(BudgetEnded):
        again_agent.propose(HISTORY, ())


def test_a_conversation_whose_last_repair_failed_is_replayed_whole(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    look = wants(("look_at_rows", {"start": 1, "count": 1}))
    bad = ChatAnswer("no")
    with ChatServer(in_turn(look, bad, bad, GOOD)) as server:
        agent = writer(server, transcript=path, repairs=1)
        with pytest.raises(ProposalFailed):
            agent.propose(HISTORY, ())
        agent.propose(HISTORY, ())
    replayed = Writer(Replay(path), BRIEF, lambda recipe: [], ALLOWED, repairs=1)
    with pytest.raises(ProposalFailed):
        replayed.propose(HISTORY, ())
    assert replayed.propose(HISTORY, ()).recipe.train == {"skill": 0.5}


# Fuzz


def wild_calls(count: int) -> list[ChatAnswer]:
    """Replies whose tool calls are broken in many ways; the same ones each time."""
    chance = random.Random(5)
    names = ["look_at_rows", "log_tail", "error_samples", "earlier_recipe", "column_statistics", "", "é", None, 3]

    def value(depth: int) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: None,
            lambda: chance.choice([True, 0, -1, 10**30, 1.5]),
            lambda: "".join(chance.choices(string.printable + "é\u202e\x1b\ud800", k=chance.randrange(12))),
            lambda: [value(depth - 1) for _ in range(chance.randrange(3))],
            lambda: {
                chance.choice(["start", "trial", "stage", "x"]): value(depth - 1) for _ in range(chance.randrange(3))
            },
        ]
        return chance.choice(kinds if depth else kinds[:3])()

    def call() -> Any:
        arguments = chance.choice([value(2), json.dumps(value(2)), json.dumps({"trial": 1})])
        whole = {"id": value(0), "function": {"name": chance.choice(names), "arguments": arguments}}
        return chance.choice([whole, whole, whole, value(2)])

    return [
        ChatAnswer(
            chance.choice([None, "", "words", GOOD.content]),
            message={"tool_calls": [call() for _ in range(chance.randrange(12))]},
        )
        for _ in range(count)
    ]


def test_no_tool_call_crashes_and_rounds_are_bounded() -> None:
    answers = wild_calls(1_000)
    with ChatServer(lambda request: answers[request.number % len(answers)]) as server:
        agent = writer(server, repairs=1)
        valid = 0
        while (before := len(server.requests)) < len(answers):
            try:
                agent.propose(HISTORY, ())
                valid += 1
            except (ProposalFailed, EndpointError):  # what is not even JSON is asked for again, twice
                pass
            assert len(server.requests) - before <= 3 * (ROUNDS + 2)
    assert valid > 10
