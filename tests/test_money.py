"""Prices and budgets: what is known before a request is sent, and what is never spent."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.budget import Budget
from agent.chat import choose_model, left_in_words, study_budget
from agent.errors import BudgetEnded, UsageError
from agent.hardware import Hardware
from agent.journal import Call, CallEnded, CallStarted, Journal, StageEnded, State
from agent.llm import ChatModel, Endpoint, Price, quote
from agent.llm.client import MAX_OUTPUT
from agent.llm.prices import TABLE
from agent.loop import run_call
from agent.money import Money, dollars
from agent.options import parse
from agent.records import Usage
from agent.settings import load
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.toy import Listed, Toy, lab

ASK = [{"role": "user", "content": "x" * 2_000}]
PRICE = Price(input=10.0, output=30.0)
GOOD = ChatAnswer('{"a": 1}')


def always(answer: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    return lambda request: answer


def model(url: str, money: Money, **options: Any) -> ChatModel:
    endpoint = Endpoint(base_url=url, model="test-model")
    return ChatModel(endpoint, PRICE, timeout=options.pop("timeout", 10), sleep=lambda _: None, money=money, **options)


# Prices


@pytest.mark.parametrize(
    ("name", "url", "price"),
    [
        ("gpt-4o-mini", None, (0.15, 0.60)),
        ("gpt-4o-mini-2024-07-18", "https://api.openai.com/v1", (0.15, 0.60)),
        ("gpt-4-0613", None, (30.0, 60.0)),
        ("anything", "http://127.0.0.1:8000", (0.0, 0.0)),
        ("anything", "http://192.168.7.7/v1", (0.0, 0.0)),
        ("anything", "http://100.101.102.103/v1", (0.0, 0.0)),
        ("anything", "http://vllm:8000/v1", (0.0, 0.0)),
        ("anything", "http://gpu.local/v1", (0.0, 0.0)),
    ],
)
def test_what_is_known(name: str, url: str | None, price: tuple[float, float]) -> None:
    found = quote(Endpoint(model=name, base_url=url), Price())
    assert (found.price.input, found.price.output) == price


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("gpt-4o-minimal", None),
        ("gpt-4o-mini", "https://api.example.com/v1"),
        ("gpt-4o-mini", "https://api.openai.com.example.com/v1"),
        ("llama", "http://8.8.8.8"),
    ],
)
def test_what_is_not_known_stops(name: str, url: str | None) -> None:
    endpoint = Endpoint(model=name, base_url=url)
    with pytest.raises(UsageError, match="is not known") as caught:
        quote(endpoint, Price())
    assert "FT_PRICE_INPUT and FT_PRICE_OUTPUT" in caught.value.hint
    with pytest.raises(UsageError):
        quote(endpoint, Price(input=1.0))
    assert quote(endpoint, PRICE).price == PRICE
    with pytest.raises(UsageError) as judge:
        quote(endpoint, Price(), prefix="FT_JUDGE")
    assert "FT_JUDGE_PRICE_INPUT" in judge.value.hint


def test_the_user_overrides_the_table(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "api.openai.com: {date: 2026-11-01, models: {gpt-4o: {input: 7, output: 8}}}\n"
        "'*': {models: {own: {input: 1, output: 2}}}\n"
    )
    openai = Endpoint(model="gpt-4o")
    found = quote(openai, Price(), mine)
    assert (found.price, found.source) == (Price(input=7, output=8), "mine.yaml of 2026-11-01")
    assert quote(openai, Price(output=9.0), mine).price == Price(input=7, output=9.0)
    assert quote(openai, PRICE, mine).price == PRICE
    assert quote(Endpoint(model="gpt-4o-mini"), Price(), mine).price == Price(input=0.15, output=0.60)
    local = Endpoint(model="own", base_url="http://127.0.0.1:1/v1")
    assert quote(local, Price(), mine).price == Price(input=1, output=2), "priced, so it costs"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "Expected `object`"),
        ("a: {models: {m: {input: -1, output: 1}}}", "input"),
        ("a: {models: {m: {input: .nan, output: 1}}}", "input"),
        ("a: {models: {m: {input: 1}}}", "output"),
        ("a: {prices: {}}", "prices"),
        ("a: [", "no table"),
        ("\x00", "no table"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        quote(Endpoint(model="gpt-4o"), Price(), file)
    assert str(file) in str(caught.value)


def test_the_table_is_dated_and_sound() -> None:
    for host, listed in yaml.safe_load(TABLE.read_text()).items():
        assert isinstance(listed["date"], datetime.date), host
        for name, price in listed["models"].items():
            assert 0 < price["input"] <= price["output"] < 1_000, name


# Money


def test_money_is_reserved_before_it_is_spent() -> None:
    """A request costs 1,000 prompt tokens and 20 of completion; at worst it costs 16,384 of completion."""
    paid = ChatAnswer("words", usage={"prompt_tokens": 1000, "completion_tokens": 20})
    worst = (len(ASK[0]["content"]) / 2 * 10 + MAX_OUTPUT * 30) / 1e6
    money = Money(limit=worst + 0.03)
    with ChatServer(always(paid)) as server:
        chat = model(server.url, money)
        for _ in range(3):
            chat.complete(ASK)
        with pytest.raises(BudgetEnded, match=r"money is spent: \$0.032 of \$0.53 \(FT_MAX_COST\), .* cost \$0.5"):
            chat.complete(ASK)
    assert len(server.requests) == 3
    assert money.spent == pytest.approx(3 * 0.0106)
    assert {request.body["max_tokens"] for request in server.requests} == {MAX_OUTPUT}


def test_a_retry_is_reserved_too_and_what_was_spent_is_carried() -> None:
    broken = ChatAnswer(status=500, body=b'{"error": "x", "usage": {"prompt_tokens": 40000, "completion_tokens": 0}}')
    money = Money(limit=0.9)
    with ChatServer(always(broken)) as server, pytest.raises(BudgetEnded) as caught:
        model(server.url, money).complete(ASK)
    assert len(server.requests) == 1
    assert caught.value.usage.cost == pytest.approx(0.4)  # type: ignore[attr-defined]
    assert money.spent == pytest.approx(0.4)


@pytest.mark.parametrize("answer", [ChatAnswer("words", usage=None), ChatAnswer(delay=30)])
def test_what_is_not_reported_counts_in_full(answer: ChatAnswer) -> None:
    """Where tokens are not told, or a request is given up after it was sent, the worst case is taken."""
    money = Money(limit=0.6)
    with ChatServer(always(answer)) as server:
        chat = model(server.url, money, timeout=0.4)
        if answer.delay:
            with pytest.raises(BudgetEnded):
                chat.complete(ASK)
        else:
            assert chat.complete(ASK).usage.cost == money.spent
        with pytest.raises(BudgetEnded):
            chat.complete(ASK)
    assert len(server.requests) == 1
    assert 0.5 < money.spent < 0.6


def test_without_a_limit_nothing_is_reserved_and_no_reply_is_cut() -> None:
    with ChatServer(always(GOOD)) as server:
        money = Money()
        model(server.url, money).complete(ASK)
    assert "max_tokens" not in server.requests[0].body
    assert money.spent == pytest.approx((100 * 10 + 20 * 30) / 1e6)


def test_what_is_free_is_neither_counted_nor_cut() -> None:
    money = Money(limit=1e-9)
    with ChatServer(always(GOOD)) as server:
        chat = ChatModel(Endpoint(base_url=server.url, model="m"), Price(input=0.0, output=0.0), money=money)
        assert chat.complete(ASK, {}).usage.cost == 0.0
    assert "max_tokens" not in server.requests[0].body


def test_many_threads_spend_no_more_than_there_is() -> None:
    money, done = Money(limit=1.0), []

    def spend() -> None:
        for _ in range(100):
            try:
                money.reserve(0.01)
            except BudgetEnded:
                return
            money.spend(0.005, reserved=0.01)
            done.append(1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.9 < money.spent <= 1.0
    assert money.left() == pytest.approx(1.0 - money.spent)
    assert len(done) == pytest.approx(money.spent / 0.005)


def test_dollars_in_words() -> None:
    assert [dollars(x) for x in (0, 12.345, 1234.5, 0.15, 0.000421)] == [
        "$0.00",
        "$12.35",
        "$1,234.50",
        "$0.15",
        "$0.00042",
    ]


# Over the whole study


def budget_of(tmp_path: Path, state: State, gpus: int = 0, **environ: str) -> Budget:
    machine = Hardware(cores=2, memory=2**33, gpus=(2**34,) * gpus)
    return study_budget(parse(["--dataset", "d"]), load({}, None, environ, tmp_path), state, machine, None, None)


def test_earlier_calls_count(tmp_path: Path) -> None:
    budget = budget_of(tmp_path, State(usage=Usage(cost=3.0)), FT_MAX_COST="5")
    assert budget.money.left() == pytest.approx(2.0)
    assert "$2.00 for your own replies" in left_in_words(budget)
    with pytest.raises(UsageError, match="FT_MAX_COST cannot be held"):
        budget_of(tmp_path, State(usage=Usage(cost=None)), FT_MAX_COST="5")
    assert budget_of(tmp_path, State(usage=Usage(cost=None))).money.left() is None


def test_gpu_hours_are_time_times_gpus_of_the_stages_that_use_them(tmp_path: Path) -> None:
    state = State()
    state.apply(
        CallStarted(at=0, call=1, pid=1, runner="local", proposer="t", loop_n=1, step_n=None, timeout=None, gpus=4)
    )
    for stage, seconds in (("propose", 500.0), ("train", 900.0), ("bench", 100.0)):
        state.apply(StageEnded(at=0, trial=1, stage=stage, ending="stopped", seconds=seconds))
    state.apply(CallEnded(at=0, call=1, reason="", seconds=1500.0))
    assert state.gpu_seconds == 4000.0
    assert state.calls == [Call(1, 1, None, 4, ended="")]
    assert budget_of(tmp_path, state, gpus=4, FT_MAX_GPU_HOURS="2").left() == pytest.approx((7200 - 4000) / 4)
    assert budget_of(tmp_path, state, FT_MAX_GPU_HOURS="2").left() is None, "no GPU, nothing to count"


def test_gpu_hours_end_a_stage_and_keep_time_for_the_seal() -> None:
    now = 0.0
    budget = Budget(clock=lambda: now, gpus=2, gpu_seconds=200.0)
    budget.reserve(30.0)
    now = 500.0  # without GPUs
    assert budget.over() is None
    assert budget.left() == 70.0
    with budget.using_gpus():
        now = 560.0
        assert budget.left() == 10.0
        now = 571.0
        reason = budget.over()
    assert reason == "the study's GPU hours are used (FT_MAX_GPU_HOURS) (30 s are kept for the sealed test)"
    with pytest.raises(BudgetEnded, match="GPU hours"):
        budget.before_stage(counted=True)
    budget.release()
    assert budget.over() is None
    assert budget.left() == 29.0


def test_a_study_ends_when_its_gpu_hours_are_used(tmp_path: Path) -> None:
    """The toy's trainings take 30 seconds; its machine plays one with a GPU, and two seconds of it may be used."""
    with lab(tmp_path, proposer=Listed([0.5, 0.6, 0.7]), scenario=Toy(seconds=30)) as toy:
        toy.study.budget = Budget(gpus=1, gpu_seconds=2.0)
        started = time.monotonic()
        ending = run_call(toy)
    assert time.monotonic() - started < 20
    assert ending == "the study's GPU hours are used (FT_MAX_GPU_HOURS)"
    state = Journal(tmp_path / "studies" / "toy" / "journal.jsonl").state
    assert state.trials == [], "the training was stopped, and goes on when there are hours again"
    assert state.attempts[(1, "train")] == 1


def test_the_wired_model_holds_price_effort_and_money(tmp_path: Path) -> None:
    with ChatServer(always(GOOD)) as server:
        environ = {
            "FT_CHAT_API_BASE": server.url,
            "FT_PRICE_INPUT": "10",
            "FT_PRICE_OUTPUT": "30",
            "FT_MAX_COST": "0.3",
            "FT_REASONING_EFFORT": "low",
        }
        settings = load({}, None, environ, tmp_path)
        budget = budget_of(tmp_path, State(), 0, **environ)
        said: list[str] = []
        chat = choose_model(parse(["--dataset", "d"]), settings, budget, said.append)
        assert chat is not None
        with pytest.raises(BudgetEnded, match="FT_MAX_COST"):
            chat.complete(ASK)
        assert not server.requests
        budget.money.limit = 3.0
        chat.complete(ASK)
    assert server.requests[0].body["reasoning_effort"] == "low"
    assert "$10.00 + $30.00 per million tokens" in said[0]
