"""The declarative steps: what they do, what they refuse, and that nothing in them hangs or grows without bound."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import TrialFailed, UsageError
from scenarios.finetune import step_rows, steps
from scenarios.finetune.step_rows import apply, for_agent
from scenarios.finetune.steps import KINDS, parse, problems, schema

ROWS: list[dict[str, Any]] = [
    {"question": "What is 1+1?", "answer": "2", "level": "easy"},
    {"question": "what is  1+1?", "answer": "two", "level": "easy"},
    {"question": "What is 17*3?", "answer": "17*3 = 51", "level": "hard"},
    {"question": "Prove it.", "answer": "", "level": "hard"},
    {"question": "Why? " * 100, "answer": "because", "level": "easy"},
]


def left(*wanted: dict[str, Any], rows: list[dict[str, Any]] = ROWS) -> list[dict[str, Any]]:
    return list(apply(parse(wanted), iter(rows)))


def answers(*wanted: dict[str, Any]) -> list[str]:
    return [row["answer"] for row in left(*wanted)]


@pytest.mark.parametrize(
    ("test", "kept"),
    [
        ({"columns": "answer", "not_empty": True}, ["2", "two", "17*3 = 51", "because"]),
        ({"columns": "question", "max_characters": 100}, ["2", "two", "17*3 = 51", ""]),
        ({"columns": "question", "max_tokens": 5, "min_tokens": 4}, ["two", "17*3 = 51"]),
        ({"columns": ["question", "answer"], "min_characters": 200}, ["because"]),
        ({"columns": "answer", "contains": ["=", "TWO"]}, ["17*3 = 51"]),
        ({"columns": "answer", "contains": ["=", "TWO"], "ignore_case": True}, ["two", "17*3 = 51"]),
        ({"columns": "answer", "lacks": "2"}, ["two", "17*3 = 51", "", "because"]),
        ({"columns": "answer", "pattern": r"^\d+$"}, ["2"]),
        ({"columns": "answer", "pattern": "^TW", "ignore_case": True}, ["two"]),
    ],
)
def test_filter(test: dict[str, Any], kept: list[str]) -> None:
    assert answers({"step": "filter", **test}) == kept


def test_dedupe_by_what_is_said() -> None:
    assert answers({"step": "dedupe", "columns": "question"}) == ["2", "17*3 = 51", "", "because"]


def test_sample_by_stratum_is_drawn_by_its_seed_and_keeps_the_order() -> None:
    rows = [{"level": "easy" if number % 10 else "hard", "n": number} for number in range(1000)]
    drawn = left({"step": "sample", "column": "level", "n": 50}, rows=rows)
    assert [row["level"] for row in drawn].count("hard") == 50
    assert len(drawn) == 100
    assert drawn == sorted(drawn, key=lambda row: int(row["n"]))
    assert drawn == left({"step": "sample", "column": "level", "n": 50}, rows=rows)
    assert drawn != left({"step": "sample", "column": "level", "n": 50, "seed": 1}, rows=rows)
    assert len(left({"step": "sample", "n": 50}, rows=rows)) == 50
    assert left({"step": "sample", "n": 5000}, rows=rows) == rows


def test_shuffle_and_limit() -> None:
    rows = [{"n": number} for number in range(100)]
    shuffled = left({"step": "shuffle", "seed": 3}, rows=rows)
    assert shuffled != rows
    assert sorted(shuffled, key=lambda row: int(row["n"])) == rows
    assert left({"step": "shuffle", "seed": 3}, {"step": "limit", "n": 7}, rows=rows) == shuffled[:7]


def test_template_composes_the_only_columns() -> None:
    step = {
        "step": "template",
        "columns": {"instruction": "{{Q}}: {question}", "output": "{ answer }!"},
        "keep": "level",
    }
    assert left(step)[2] == {"instruction": "{Q}: What is 17*3?", "output": "17*3 = 51!", "level": "hard"}


def test_a_row_without_the_column_counts_as_empty() -> None:
    rows = [{"a": "x", "b": "y"}, {"a": "z"}]
    assert left({"step": "filter", "columns": "b", "not_empty": True}, rows=rows) == rows[:1]
    assert left({"step": "template", "columns": {"c": "{a}{b}"}}, rows=rows) == [{"c": "xy"}, {"c": "z"}]


def test_the_statistics_tell_what_became_of_the_rows() -> None:
    applied = apply(
        parse(
            [
                {"step": "filter", "columns": "answer", "not_empty": True},
                {"step": "filter", "columns": "question", "max_tokens": 50, "pattern": "1"},
                {"step": "dedupe", "columns": "question"},
                {"step": "limit", "n": 1},
            ]
        ),
        ROWS,
    )
    assert len(list(applied)) == 1
    assert for_agent(applied.statistics) == (
        "1. filter: 5 -> 4 rows (1 empty)\n"
        "2. filter: 4 -> 3 rows (1 longer than 50 tokens)\n"
        "3. dedupe: 3 -> 2 rows (1 duplicates)\n"
        "4. limit: 2 -> 1 rows (1 beyond the limit)"
    )


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("filter", "data: wanted a list of steps, found str"),
        ([3], 'data, step 1: wanted an object such as {"step": "shuffle"}, found 3'),
        ([{"columns": "answer"}], 'data, step 1: "step" must say which one it is'),
        ([{"step": "filtre", "columns": "answer"}], "data, step 1: no step 'filtre'; did you mean filter?"),
        ([{"step": "run", "code": "rm"}], "data, step 1: no step 'run'; there is filter, dedupe"),
        (
            [{"step": "filter", "columns": "answer", "max_token": 3}],
            "step 1: (filter) no key 'max_token'; did you mean max_tokens?",
        ),
        ([{"step": "filter", "columns": "answer"}], "step 1 (filter): tests nothing; give one or more of min_tokens"),
        ([{"step": "filter", "not_empty": True}], "(filter) step: Object missing required field `columns`"),
        ([{"step": "sample", "n": 0}], "(sample) n: Expected `int` >= 1"),
        ([{"step": "sample", "n": "5"}], "(sample) n: Expected `int`, got `str`"),
        ([{"step": "dedupe", "columns": "qestion"}], "step 1 (dedupe): no column 'qestion'; did you mean question?"),
        ([{"step": "dedupe", "columns": "zzz"}], "no column 'zzz'; there is question, answer, level"),
        (
            [{"step": "template", "columns": {"output": "{answr}"}}],
            "step 1 (template): no column 'answr'; did you mean answer?",
        ),
        ([{"step": "template", "columns": {"output": "{answer"}}], "output: a brace without its partner"),
        ([{"step": "template", "columns": {"output": "{answer}" * 51}}], "output: the template is too long"),
        ([{"step": "template", "columns": {"output": "x" * 20_001}}], "output: the template is too long"),
        (
            [{"step": "template", "columns": {"output": "{answer}"}}, {"step": "dedupe", "columns": "answer"}],
            "step 2 (dedupe): no column 'answer'; there is output",
        ),
        ([{"step": "template", "columns": {"level": "x"}, "keep": "level"}], "level: both composed and kept"),
        ([{"step": "shuffle"}] * 21, "data: 21 steps, at most 20 are allowed"),
        ([{"step": "filter", "columns": "answer", "min_tokens": 9, "max_tokens": 3}], "min_tokens 9 is more than"),
        ([{"step": "filter", "columns": "answer", "pattern": "("}], "pattern: missing ): ( (RE2 syntax"),
        ([{"step": "filter", "columns": "answer", "pattern": "(?=a)"}], "(RE2 syntax: no look-around"),
        ([{"step": "filter", "columns": "answer", "pattern": "a" * 201}], "201 characters, at most 200"),
        ([{"step": "filter", "columns": "answer", "pattern": "((a{1,30}){9})b"}], "multiply to more than 100"),
        ([{"step": "filter", "columns": "answer", "pattern": "\ud800"}], "pattern: "),
    ],
)
def test_what_is_wrong_is_named(wanted: object, said: str) -> None:
    found = problems(wanted, ["question", "answer", "level"])
    assert any(said in line for line in found), found
    with pytest.raises(UsageError, match=re.escape(said)):
        parse(wanted, ["question", "answer", "level"])


def test_the_columns_are_checked_against_the_rows_too() -> None:
    with pytest.raises(UsageError, match=r"data, step 1 \(dedupe\): no column 'qestion'; did you mean question\?"):
        apply(parse([{"step": "dedupe", "columns": "qestion"}]), ROWS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
KEYS = st.sampled_from([*{field for kind in KINDS.values() for field in kind.__struct_fields__}, "step", "x"])


@given(st.lists(st.dictionaries(KEYS, JSON | st.sampled_from([*KINDS, "question"]), max_size=5) | JSON, max_size=4))
def test_any_reply_is_parsed_or_refused(wanted: list[object]) -> None:
    found = problems(wanted, ["question"])
    if not found:
        list(apply(parse(wanted), [{"question": "x"}]))


def test_the_schema_describes_what_is_taken() -> None:
    content = schema()
    assert {"Filter", "Dedupe", "Sample", "Shuffle", "Limit", "Template"} <= content["$defs"].keys()
    assert content["$defs"]["Filter"]["additionalProperties"] is False
    json.dumps(content)


def test_steps_survive_a_record() -> None:
    wanted = parse([{"step": "template", "columns": {"output": "{answer}"}}, {"step": "shuffle", "seed": 2}])
    kept = msgspec.json.encode(wanted)
    assert msgspec.json.decode(kept, type=tuple[steps.Step, ...]) == wanted


# What is untrusted


def test_a_pattern_that_makes_others_hang_is_quick() -> None:
    rows = [{"answer": "a" * 20_000 + "!"}] * 50
    started = time.monotonic()
    assert left({"step": "filter", "columns": "answer", "pattern": "(a+)+$"}, rows=rows) == []
    assert time.monotonic() - started < 10


def test_a_giant_is_not_matched_at_all() -> None:
    applied = apply(parse([{"step": "filter", "columns": "a", "pattern": "x"}]), [{"a": "x" * 200_001}, {"a": "x"}])
    assert list(applied) == [{"a": "x"}]
    assert "1 longer than the 200,000 characters" in for_agent(applied.statistics)


def test_a_slow_pattern_is_stopped() -> None:
    rows = ({"answer": "x" * 20_000} for _ in range(1000))
    wanted = parse([{"step": "filter", "columns": "answer", "pattern": "((a|x){1,9}){1,9}b"}])
    with pytest.raises(TrialFailed, match=r"data, step 1 \(filter\): the pattern takes more than 0.01 s"):
        list(apply(wanted, rows, patience=0.01))


def test_a_template_that_feeds_on_itself_is_stopped() -> None:
    doubling = {"step": "template", "columns": {"a": "{a}" * 50}}
    with pytest.raises(TrialFailed, match=r"data, step 4 \(template\): row 1: 'a' has more than 1,000,000 characters"):
        left(*[doubling] * 20, rows=[{"a": "x"}])


def test_a_template_is_no_program() -> None:
    assert problems([{"step": "template", "columns": {"a": "{a.__class__}"}}], ["a"]) == [
        "data, step 1 (template): no column 'a.__class__'; there is a"
    ]


def test_too_many_strata_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_rows, "MOST_STRATA", 10)
    with pytest.raises(TrialFailed, match="column 'n' has more than 10 different values"):
        left({"step": "sample", "column": "n", "n": 1}, rows=[{"n": number} for number in range(100)])


def test_many_rows_need_little_memory() -> None:
    """In a process of its own, whose peak above the imports is measured."""
    code = """
import resource
from scenarios.finetune.step_rows import apply
from scenarios.finetune.steps import parse
import pyarrow.compute
wanted = parse([
    {"step": "filter", "columns": "q", "max_tokens": 100, "pattern": "1"},
    {"step": "dedupe", "columns": "q"},
    {"step": "shuffle"},
    {"step": "sample", "column": "level", "n": 1000},
])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
rows = ({"q": f"{n} 1 " + "x" * 200, "level": n % 3} for n in range(300_000))
assert sum(1 for _ in apply(wanted, rows)) == 3000
print(peak() - before)
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 80, "300,000 rows of 200 bytes: 90 MB if they were held"
