"""Splits: exact, disjoint, the same whatever the order, and honest about duplicates and tiny benchmarks."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UsageError
from scenarios.finetune.rows import Row
from scenarios.finetune.splits import halve


def rows(count: int) -> list[Row]:
    return [{"question": f"What is {i}?", "answer": str(i)} for i in range(count)]


@given(st.integers(2, 60), st.randoms(use_true_random=False))
def test_halves_are_exact_disjoint_and_independent_of_order(count: int, order: random.Random) -> None:
    questions = rows(count)
    shuffled = list(questions)
    order.shuffle(shuffled)
    halves = halve(questions, name="b", question="question")
    assert halve(shuffled, name="b", question="question") == halves
    search, test = {item.id for item in halves.search}, {item.id for item in halves.test}
    assert not search & test
    assert len(search) + len(test) == count
    assert len(search) - len(test) in (0, 1)


def test_dealing_is_by_the_hash_of_the_question() -> None:
    halves = halve(rows(7), name="b", question="question")
    order = sorted(hashlib.sha256(row["question"].encode()).hexdigest() for row in rows(7))
    assert [item.id for item in halves.search] == [digest[:16] for digest in order[0::2]]
    assert [item.id for item in halves.test] == [digest[:16] for digest in order[1::2]]


def test_a_known_split_never_moves() -> None:
    """A change here would unseal the test questions of every existing study."""
    halves = halve(rows(5), name="b", question="question")
    assert [item.row["answer"] for item in halves.search] == ["0", "4", "1"]
    assert [item.row["answer"] for item in halves.test] == ["2", "3"]


def test_limit_applies_to_each_half_and_takes_the_first_by_hash() -> None:
    halves = halve(rows(20), name="b", question="question")
    assert halves.take("search", 4) == halves.search[:4]
    assert halves.take("test", 4) == halves.test[:4]
    assert halves.take("test", None) == halves.test
    assert halves.take("test", 1000) == halves.test
    with pytest.raises(UsageError, match="at least 1"):
        halves.take("search", 0)


def test_duplicated_questions_are_kept_once_and_counted() -> None:
    again = [*rows(6), {"question": "What is 3?", "answer": "another"}, rows(6)[1]]
    halves = halve(again, name="b", question="question")
    assert halves.duplicates == 2
    assert (halves.search, halves.test) == (
        halve(rows(6), name="b", question="question").search,
        halve(rows(6), name="b", question="question").test,
    )


def test_without_a_question_column_the_whole_row_counts() -> None:
    same_question = [{"question": "Which?", "choices": ["a", "b"]}, {"question": "Which?", "choices": ["b", "c"]}]
    halves = halve(same_question, name="b", question=None)
    assert halves.duplicates == 0
    assert len(halves.search) == len(halves.test) == 1
    assert halve([{"b": 1, "a": 2}, {"a": 2, "b": 1}, {"a": 3}], name="b", question=None).duplicates == 1


@pytest.mark.parametrize("number", ["id", "idx", "index", "ID"])
def test_a_row_under_another_number_is_the_same_question(number: str) -> None:
    twice = [{number: place, **row} for place, row in enumerate(rows(6) * 2)]
    halves = halve(twice, name="b", question=None)
    assert halves.duplicates == 6
    search, test = ([item.row["question"] for item in half] for half in (halves.search, halves.test))
    assert not set(search) & set(test)
    assert {item.id for item in halves.search} == {item.id for item in halve(rows(6), name="b", question=None).search}


@pytest.mark.parametrize("questions", [[], rows(1), rows(1) * 5])
def test_fewer_than_two_questions_cannot_be_halved(questions: list[Row]) -> None:
    with pytest.raises(UsageError, match=r"benchmark tiny has [01] distinct"):
        halve(questions, name="tiny", question="question")


def test_text_that_no_encoding_can_hold_is_no_crash() -> None:
    broken = [{"question": "\ud800 one"}, {"question": "two"}]
    assert len(halve(broken, name="b", question="question").search) == 1


def test_the_same_stem_with_other_choices_is_another_question() -> None:
    stems = [{"question": "Which is true?", "A": f"{i}", "B": "none", "answer": "A"} for i in range(6)]
    halves = halve(stems, name="b", question="question", choices=("A", "B"))
    assert halves.duplicates == 0
    assert len(halves.search) == len(halves.test) == 3
    other_answer = halve([*stems, {**stems[2], "answer": "B"}], name="b", question="question", choices=("A", "B"))
    assert (other_answer.duplicates, other_answer.search) == (1, halves.search)
