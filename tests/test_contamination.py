"""Finding benchmark questions in training data, and what is then done with the rows."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from agent.errors import UsageError
from agent.journal import DataScanned, Journal
from agent.report import words
from agent.report.markdown import report_text
from agent.report.summary import summary
from agent.study import study_report
from scenarios.finetune import contamination, demo
from scenarios.finetune.benchmarks import Benchmark, resolve
from scenarios.finetune.contamination import Mode, index, prepare
from scenarios.finetune.data import Prepared, recognise
from scenarios.finetune.overlap import Held, Index, Known, find
from tests.records_factory import make_report, make_score
from tests.test_journal import opened
from tests.word_problems import problems

ASKED = 400
CLEAN = [list(pair) for pair in islice(problems(1), 2000)]
BENCHMARK = list(islice(problems(2), ASKED))
INDEX = Index(
    [
        Known(str(number), text, role)  # type: ignore[arg-type]
        for number, pair in enumerate(BENCHMARK)
        for role, text in zip(("question", "solution"), pair, strict=True)
    ]
)
SENTENCES = re.compile(r"(?<=[.?!])\s+")


def rows_with(held: Iterable[Held]) -> set[int]:
    return {one.row for one in held}


def respaced(question: str, draw: random.Random) -> str:
    return re.sub(r" ", lambda _: draw.choice(["  ", "\n", "\t", "\u00a0 ", ""]), question).replace(",", " ,")


def renumbered(question: str, draw: random.Random) -> str:
    return re.sub(r"\d+", lambda _: str(draw.randint(1, 5000)), question)


def framed(question: str, draw: random.Random) -> str:
    return f"Solve this, step by step.\n\nProblem: {question.upper()}\nAnswer:"


def one_sentence(question: str, draw: random.Random) -> str:
    sentences = SENTENCES.split(draw.choice(CLEAN)[0])
    sentences.insert(draw.randint(0, len(sentences)), draw.choice(SENTENCES.split(question)[:-1]))
    return " ".join(sentences)


def exact(question: str, draw: random.Random) -> str:
    return question


@pytest.mark.parametrize("plant", [exact, respaced, renumbered, framed, one_sentence])
def test_planted_questions_are_found(plant: Callable[[str, random.Random], str]) -> None:
    draw = random.Random(0)
    planted = [[plant(question, draw), "whatever"] for question, _ in BENCHMARK]
    (held,) = find([*CLEAN, *planted], [INDEX])
    right = {(one.row - len(CLEAN), one.item) for one in held}
    found = sum((number, str(number)) in right for number in range(ASKED))
    assert found >= 0.95 * ASKED, f"{found} of {ASKED}"
    assert len([row for row in rows_with(held) if row < len(CLEAN)]) < 0.01 * len(CLEAN)


def test_a_solution_is_found_without_its_question() -> None:
    solutions = [
        "First we notice that the orbit of the lamp closes after nine flips, since every third switch undoes the one "
        f"before it; thus the {word} lamp is lit in exactly those rounds that no divisor reaches."
        for word in ("green", "blue")
    ]
    only = Index([Known("a", "Which lamps?", "question"), Known("a", solutions[0], "solution")])
    (held,) = find([["Tell me about lamps.", f"Sure! {solutions[1]}"], ["Which lamps, please", "These."]], [only])
    assert held == [Held(0, "a", "copy")]


def test_questions_that_differ_by_their_numbers_are_told_apart() -> None:
    asked = Index([Known(str(number), f"Reverse: {number}", "question") for number in range(10_000_000, 10_000_300)])
    rows = [["Reverse: 10000007", "70000001"], ["Reverse: 99999999", "9"], ["Q. reverse 100000071", "?"]]
    (held,) = find([*rows, ["Please do this:\n reverse  10000009 !\nNow", "-"]], [asked])
    assert held == [Held(0, "10000007", "same"), Held(3, "10000009", "same")]


def test_very_short_questions_count_with_their_punctuation() -> None:
    asked = Index([Known("sum", "2+2=", "question"), Known("capital", "Capital of France?", "question")])
    rows = [["22", "four"], ["2 + 2 =", "4"], ["What is the\ncapital of  France", "Paris"], ["2-2=", "0"]]
    (held,) = find([*rows, ["the capital of France", "x"], ["Easy one: capital of France?", "y"]], [asked])
    assert {(one.row, one.item) for one in held} == {(1, "sum"), (2, "capital"), (5, "capital")}


def test_a_stock_phrase_is_nobodys_question_but_its_copies_are() -> None:
    phrase = "where m and n are relatively prime positive integers find the remainder"
    question = f"A wheel with twelve spokes meets a smaller wheel that has only five of them, {phrase}."
    asked = Index([Known("wheel", question, "question")])
    others = [[f"{words} {phrase}.", "0"] for words, _ in islice(problems(3), 50)]
    assert find(others, [asked]) == [[]]
    (few,) = find(others[:5], [asked])
    assert rows_with(few) == set(range(5)), "in five rows it may well be this question's"
    (copies,) = find([*others, *[[question, str(number)] for number in range(50)]], [asked])
    assert rows_with(copies) == set(range(50, 100))
    same = [others[0]] * 40
    (again,) = find(same, [asked])
    assert rows_with(again) == set(range(40)), "copies of one row count once"


def test_what_two_questions_share_says_nothing() -> None:
    frame = "Read the following passage with care and then choose the one answer that fits it best of all: "
    asked = Index([Known(word, frame + text, "question") for word, text in (("a", "the moon"), ("b", "the sun"))])
    (held,) = find([[frame + "a teapot", "no"], [frame + "the sun", "yes"]], [asked])
    assert {(one.row, one.item) for one in held} == {(1, "b")}


def test_other_scripts_and_odd_bytes() -> None:
    asked = Index([Known("zh", "小明有十二个苹果,他吃了三个。请问他还剩下几个苹果?", "question")])
    rows = [["題: 小明有十二个苹果,他吃了三个。 请问他还剩下几个苹果?", "9"], ["\x1e\ud83d", "\u2028"], ["", ""]]
    (held,) = find(rows, [asked])
    assert rows_with(held) == {0}
    assert find([], [asked]) == [[]]
    assert find(rows, [Index([])]) == [[]]


def test_a_text_longer_than_a_chunk_is_searched_to_its_end() -> None:
    filler = " ".join(question for question, _ in islice(problems(4), 8000))
    assert len(filler) > 1 << 20
    middle = len(filler) // 2
    (held,) = find([["short", "one"], [filler[:middle] + BENCHMARK[7][0] + filler[middle:], "x"]], [INDEX])
    assert Held(1, "7", "copy") in held


# What is done with the rows


def lines(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    lines(tmp_path / "benchmarks/gsm8k/test.jsonl", [asked(*pair) for pair in BENCHMARK[:100]])
    lines(tmp_path / "benchmarks/gsm8k/train.jsonl", [asked(*pair) for pair in islice(problems(5), 20)])
    return resolve(["gsm8k"], tmp_path, lambda name: pytest.fail(name))[0]


class Desk:
    """A study's directory and what was said."""

    def __init__(self, root: Path, benchmark: Benchmark, rows: list[dict[str, str]]) -> None:
        self.root, self.benchmark = root, benchmark
        self.source = lines(root / "source.jsonl", rows)
        self.said: list[str] = []

    def prepare(self, mode: Mode = "remove") -> Prepared:
        listing = self.root / "contamination.jsonl"
        return prepare(recognise(self.source), self.root / "data", [self.benchmark], mode, listing, self.said.append)

    def rows(self, name: str = "train") -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.root / f"data/{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path, benchmark: Benchmark) -> Desk:
    clean = [asked(*pair) for pair in CLEAN[:200]]
    planted = [asked(renumbered(question, random.Random(0)), "no") for question, _ in BENCHMARK[:12]]
    return Desk(tmp_path / "study", benchmark, [*clean[:100], *planted, *clean[100:]])


def test_rows_are_removed_counted_and_listed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = desk.prepare()
    found = prepared.contamination
    assert found is not None
    assert (prepared.rows, found.rows, found.flagged, found.found, found.action) == (
        200,
        212,
        12,
        {"gsm8k": 12},
        "removed",
    )
    assert desk.said == ["contamination: 12 of 212 rows hold questions of gsm8k: removed (FT_CONTAMINATION=remove)"]
    assert [row["prompt"] for row in desk.rows()] == [question for question, _ in CLEAN[:200]]
    assert all(row["response"] != "no" for row in desk.rows("longest"))
    assert found.mark("gsm8k") == ""
    listed = [json.loads(line) for line in (desk.root / "contamination.jsonl").read_text().splitlines()]
    assert {line["row"] for line in listed} == set(range(101, 113))
    assert {line["benchmark"] for line in listed} == {"gsm8k"}

    monkeypatch.setattr(contamination, "scan", lambda *_: pytest.fail("nothing has changed"))
    assert desk.prepare() == prepared
    assert desk.said[1:] == desk.said[:1], "it is said again in every call"


@pytest.mark.parametrize("where", ["prompt", "chosen", "rejected"])
def test_preferences_are_searched_wherever_they_hold_a_question(
    tmp_path: Path, benchmark: Benchmark, where: str
) -> None:
    clean = [{"prompt": question, "chosen": answer, "rejected": "No idea."} for question, answer in CLEAN[:60]]
    planted = [row | {where: question} for row, (question, _) in zip(clean, BENCHMARK[:5], strict=False)]
    desk = Desk(tmp_path / "study", benchmark, clean[10:] + planted)
    prepared = desk.prepare()
    assert prepared.contamination is not None
    assert (prepared.contamination.flagged, prepared.rows, prepared.supervised) == (5, 50, 50)
    for name in ("train", "supervised", "longest"):
        text = (desk.root / f"data/{name}.jsonl").read_text()
        assert not [question for question, _ in BENCHMARK[:5] if json.dumps(question) in text]


def test_removed_rows_come_back_where_the_mode_changes(desk: Desk) -> None:
    assert desk.prepare("remove").rows == 200
    marked = desk.prepare("mark")
    assert marked.rows == len(desk.rows()) == 212
    assert marked.contamination is not None
    assert marked.contamination.mark("gsm8k") == "contaminated: 12 of 212 rows of the training data hold its questions"
    assert marked.contamination.mark("math") == ""
    assert desk.prepare("remove").rows == len(desk.rows()) == 200


def test_refusing_says_how_many_where_and_what_to_set(desk: Desk) -> None:
    with pytest.raises(UsageError) as error:
        desk.prepare("refuse")
    assert str(desk.source) in error.value.message
    assert "12 of 212 rows hold questions of gsm8k" in error.value.message
    assert str(desk.root / "contamination.jsonl") in error.value.message
    assert "FT_CONTAMINATION" in error.value.hint
    with pytest.raises(UsageError):
        desk.prepare("refuse")
    assert desk.prepare("remove").rows == 200


def test_a_data_set_that_is_the_benchmark_is_left_whole_and_marked(tmp_path: Path, benchmark: Benchmark) -> None:
    desk = Desk(tmp_path / "study", benchmark, [asked(*pair) for pair in BENCHMARK[:100] + BENCHMARK[200:230]])
    prepared = desk.prepare()
    assert prepared.rows == len(desk.rows()) == 130
    assert prepared.contamination is not None
    assert prepared.contamination.action == "kept"
    assert prepared.contamination.mark("gsm8k").startswith("contaminated: 100 of 130 rows")
    assert "NOT removed" in desk.said[0]


def test_clean_data_is_left_alone_and_nothing_is_said(tmp_path: Path, benchmark: Benchmark) -> None:
    desk = Desk(tmp_path / "study", benchmark, [asked(*pair) for pair in CLEAN[:300]])
    prepared = desk.prepare("refuse")
    assert prepared.contamination is not None
    assert (prepared.rows, prepared.contamination.action, desk.said) == (300, "none", [])


def test_the_finding_is_in_the_journal_the_report_and_beside_every_score(desk: Desk, tmp_path: Path) -> None:
    found = desk.prepare("mark").contamination
    assert found is not None
    journal = Journal(tmp_path / "journal.jsonl")
    for event in opened():
        journal.append(event)
    journal.append(DataScanned(at=journal.now(), contamination=found))
    journal.close()
    reread = Journal(tmp_path / "journal.jsonl")
    assert reread.state.contamination == found
    score = msgspec.structs.replace(make_score(0.5), marked=found.mark("gsm8k"))
    report = make_report(base=(score,), contamination=study_report(reread, tmp_path).contamination)
    for text in (summary(report), report_text(report)):
        assert "12 of 212 rows hold questions of gsm8k" in text
    assert "contaminated: 12 of 212 rows of the training data hold its questions" in report_text(report)
    assert words.mean([score]).endswith("!")


def test_conversations_are_searched_in_every_turn(tmp_path: Path, benchmark: Benchmark) -> None:
    def talk(*turns: str) -> dict[str, object]:
        roles = ["user", "assistant"] * len(turns)
        return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}

    desk = Desk(tmp_path / "study", benchmark, [])
    talks = [talk("Hello", "Hi", question, answer) for question, answer in CLEAN[:30]]
    desk.source.write_text("".join(json.dumps(row) + "\n" for row in [*talks, talk("Hi", "Yes", *BENCHMARK[3])]))
    assert desk.prepare().rows == 30


def test_the_demos_own_data_is_clean(tmp_path: Path) -> None:
    demo.make_data(tmp_path / "reverse")
    (reverse,) = resolve(["reverse"], tmp_path, lambda name: pytest.fail(name), demo=tmp_path / "reverse")
    rows = [json.loads(line) for line in (tmp_path / "reverse/train.jsonl").read_text().splitlines()]
    texts = [[row["question"], row["answer"]] for row in rows]
    assert find(texts, [index(reverse)]) == [[]]
    item = reverse.halves.test[0]
    (held,) = find([*texts, [item.row["question"], "?"]], [index(reverse)])
    assert held == [Held(len(texts), item.id, "same")]


def test_a_text_for_a_proposer_loses_the_lines_that_hold_a_question(benchmark: Benchmark) -> None:
    first, second = (item.row["question"] for item in benchmark.halves.test[:2])
    chinese = "小明有十二个苹果,他吃了三个。请问他还剩下几个苹果?"
    text = f"3 rows\nrow: {json.dumps({'question': first, 'why': chinese})}\n{second}\nthe end"
    assert contamination.without_questions(text, [benchmark]) == "3 rows\n(left out)\n(left out)\nthe end"
    broken = first.replace(" ", "\n")
    assert contamination.without_questions(f"3 rows\n{broken}\nthe end", [benchmark]) == "3 rows\n(left out)"
    assert contamination.without_questions("3 rows\nthe end", [benchmark]) == "3 rows\nthe end"


def test_fifty_thousand_rows_take_seconds() -> None:
    rows = CLEAN * 25
    started = time.perf_counter()
    (held,) = find(rows, [INDEX])
    assert time.perf_counter() - started < 30
    assert len(rows_with(held)) < 0.01 * len(rows)


def test_gsm8k_train_against_its_test() -> None:
    source = os.environ.get("FTLOOP_TEST_DATA")
    if not source:
        pytest.skip("set FTLOOP_TEST_DATA to a directory with gsm8k_train.jsonl and gsm8k_test.jsonl")
    train, test = (
        [json.loads(line) for line in (Path(source) / f"gsm8k_{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    known = Index(
        [
            Known(str(number), row[column], role)  # type: ignore[arg-type]
            for number, row in enumerate(test)
            for column, role in (("question", "question"), ("answer", "solution"))
        ]
    )
    rows = [[row["question"], row["answer"]] for row in train]
    (held,) = find(rows, [known])
    assert len(rows_with(held)) < 0.01 * len(rows)
    draw = random.Random(0)
    sentences = [draw.choice(SENTENCES.split(row["question"].strip())) for row in test]
    longer = [f"{draw.choice(rows)[0]} {sentence} {draw.choice(rows)[0]}" for sentence in sentences]
    for kind, planted in (
        ("exact", [row["question"] for row in test]),
        ("respaced", [respaced(row["question"], draw) for row in test]),
        ("renumbered", [renumbered(row["question"], draw) for row in test]),
        ("one sentence", longer),
    ):
        (held,) = find([*rows, *([text] for text in planted)], [known])
        right = {(one.row - len(rows), one.item) for one in held}
        found = sum((number, str(number)) in right for number in range(len(test))) / len(test)
        assert found >= 0.95, f"{kind}: {found:.1%}"
