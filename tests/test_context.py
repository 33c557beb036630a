"""What the language model is told fits its context, whatever the study holds, and says what was left out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.propose import Directive
from agent.propose.brief import AllowedKey, BenchmarkBrief, StudyBrief
from agent.propose.context import Asked, Cut, Section, TokenMeasure, fit, opening
from agent.records import History, Mistake, Recipe, TrainingData
from tests.records_factory import make_failed, make_proposal, make_score, make_trial

MEASURE = TokenMeasure()
EMPTY = History()
BRIEF = StudyBrief(
    dataset="toy",
    rows=10,
    columns=("question", "answer"),
    model="coin",
    benchmarks=(BenchmarkBrief(name="coins", description="Coins.", answer_format="heads"),),
    hardware="2 cores",
    defaults=lambda train: {"learning_rate": 0.1},
    statistics="10 rows; duplicates: 3",
    steps={"type": "array"},
    work_columns=("question", "answer", "topic"),
    scripts_allowed=True,
)
KEYS = (AllowedKey(name="learning_rate", type="float", help="the first thing to tune", manual="Initial LR for AdamW."),)
SCRIPT = "import json\nprint('the script of trial 2')\n"


def asked(history: History = EMPTY, **fields: Any) -> Asked:
    return msgspec.structs.replace(Asked(brief=BRIEF, allowed=KEYS, history=history), **fields)


def text(what: Asked, tokens: int = 24_000) -> str:
    return "\n".join(message["content"] for message in opening(what, tokens, MEASURE).messages)


def story() -> History:
    mistaken = msgspec.structs.replace(make_score(0.4), mistakes=(Mistake(question="reverse 12", response="13"),))
    child = msgspec.structs.replace(make_proposal("child of two"), parent=2)
    data = TrainingData(path="/d", rows=7, script=SCRIPT, repairs=1, summary="7 rows\nlanguages: Latin")
    scripted = msgspec.structs.replace(make_proposal("script"), recipe=Recipe(train={}, script="print(0)"))
    trials = (
        make_failed(1),
        make_trial(2, 0.4, proposal=scripted, scores=(mistaken,), data=data, lesson="Repeats help."),
        make_trial(3, 0.3, "tie", proposal=child),
    )
    return History(base=(make_score(0.1),), trials=trials, best=2)


def test_everything_that_helps_is_told() -> None:
    directive = Directive("improve", 2, "it scored best")
    prompt = text(asked(story(), directive=directive))
    for part in (
        "learning_rate (float): the first thing to tune. Initial LR for AdamW.",
        "duplicates: 3",
        "columns question, answer, topic",
        "process_data.py --input DIR --output FILE",
        '{"step": "dedupe"',
        "stands for a column, `{{` for a brace",
        "CUDA out of memory at batch size 32",
        "the script of trial 2",
        "script: 2 lines",
        "data work: 7 rows, script mended 1 times",
        "    | languages: Latin",
        "Repeats help.",
        "reverse 12",
        "trial 3: child of two, score 0.300, tie",
        "`mode` improve, built on trial 2, because it scored best",
    ):
        assert part in prompt, part
    assert "print(0)" not in prompt, "the script that ran, not the one that was mended"
    assert "shortened or left out" not in prompt


def test_where_there_is_no_data_work_none_is_explained() -> None:
    prompt = text(asked(brief=msgspec.structs.replace(BRIEF, steps={}, scripts_allowed=False)))
    for part in ("process_data.py", '"script"', '"data"', "RE2"):
        assert part not in prompt


def monster() -> Asked:
    """A study in which everything is far too long."""
    wrong = Mistake(question="q" * 20_000, response="r" * 20_000, extracted="e" * 20_000)
    score = msgspec.structs.replace(make_score(0.4), mistakes=(wrong,) * 100)
    wordy = msgspec.structs.replace(
        make_proposal("change " * 5_000, "why " * 5_000),
        recipe=Recipe(
            train={f"k{n}": "v" * 500 for n in range(90)}, script="# 漢字\n" * 9_000, data=({"step": "x" * 9_000},)
        ),
        parent=1,
    )
    data = TrainingData(path="/d", rows=7, script="# 漢字\n" * 9_000, summary="s" * 20_000)
    trials = tuple(
        make_trial(n, 0.3, "tie", proposal=wordy, scores=(score,) * 30, data=data, lesson=f"{n} " * 9_000)
        if n % 2
        else make_failed(n, tail="é" * 20_000, reason="r" * 20_000)
        for n in range(1, 120)
    )
    brief = msgspec.structs.replace(
        BRIEF,
        dataset="d" * 9_000,
        columns=("c" * 9_000,) * 5_000,
        work_columns=("c" * 9_000,) * 5_000,
        model_facts={f"fact {n}": "f" * 9_000 for n in range(500)},
        benchmarks=(BenchmarkBrief(name="b", description="d" * 20_000, answer_format="a" * 20_000),) * 3,
        hardware="h" * 20_000,
        statistics="漢" * 20_000,
        examples=("e" * 20_000,) * 50,
    )
    keys = tuple(AllowedKey(name=f"key_{n}", type="int", help="help " * 99, manual="manual " * 99) for n in range(120))
    return Asked(
        brief=brief,
        allowed=keys,
        history=History(base=(score,) * 30, trials=trials, best=1),
        pending=(wordy,) * 20,
        directive=Directive("improve", 1, "why " * 30),
    )


@pytest.mark.parametrize(("tokens", "per_token"), [(12_000, 1.5), (24_000, 3.0), (60_000, 4.0)])
def test_the_bound_holds_for_monstrous_studies(tokens: int, per_token: float) -> None:
    measure = TokenMeasure(per_token)
    found = opening(monster(), tokens, measure)
    assert measure.of(found.messages) <= tokens * 1.02
    assert found.shortened
    prompt = found.messages[1]["content"]
    assert "shortened or left out: " in prompt
    assert "Propose the next trial" in prompt
    if tokens > 12_000:
        assert "key_119" in found.messages[0]["content"], "no key is lost before its help is"


def test_the_smallest_context_holds_an_ordinary_study() -> None:
    found = opening(asked(story()), 4_000, MEASURE)
    assert MEASURE.of(found.messages) <= 4_000 * 1.02
    assert "learning_rate (float)" in found.messages[0]["content"]
    assert "trial 2" in found.messages[1]["content"], "the best is told"


def test_what_matters_less_goes_first() -> None:
    sections = (
        Section("a", "first", "x" * 300, (Cut(2, "x" * 30),)),
        Section("b", "second", "y" * 300, (Cut(1, "y" * 200), Cut(3, ""))),
    )
    assert fit(sections, 200, MEASURE).shortened == ()
    assert fit(sections, 170, MEASURE).texts == {"a": "x" * 300, "b": "y" * 200}
    assert fit(sections, 120, MEASURE).texts == {"a": "x" * 30, "b": "y" * 200}
    assert fit(sections, 30, MEASURE).texts == {"a": "x" * 30, "b": ""}
    assert fit(sections, 30, MEASURE).shortened == ("first", "second")


def test_the_measure_learns_from_what_an_endpoint_counts() -> None:
    messages = [{"role": "user", "content": "x" * 4_000}]
    assert MEASURE.calibrated(messages, 0) == MEASURE
    assert MEASURE.calibrated(messages, 2_000).bytes_per_token == pytest.approx(1.92, abs=0.02)
    assert MEASURE.calibrated(messages, 1).bytes_per_token == 4.0, "an endpoint that counts nonsense is not believed"
    assert MEASURE.count("漢字") == 2
    assert MEASURE.calibrated(messages, 2_000).of(messages) > 2_000, "on the safe side"


def test_the_words_of_jobs_are_silent_where_their_data_hold_questions() -> None:
    quoted = "cannot use 'sealed question 7'"
    failed = msgspec.structs.replace(make_failed(1, "train:exit", quoted, quoted), lesson=quoted)
    brief = msgspec.structs.replace(BRIEF, logs=False)
    assert quoted in text(asked(History(trials=(failed,))))
    assert quoted not in text(asked(History(trials=(failed,)), brief=brief))
