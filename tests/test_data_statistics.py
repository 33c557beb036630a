"""The statistics of a data set: right figures, bounded text, whatever is in the rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.finetune.data_statistics import describe, percentiles, shown_row


def test_small_data_is_described_as_it_is() -> None:
    rows: list[dict[str, Any]] = [
        {"question": "x" * 40, "answer": "y" * 4, "level": 1},
        {"question": "X" * 40, "answer": "z" * 8, "level": 2},
        {"question": "при" * 10, "answer": None, "level": 2},
        {"question": "w" * 400, "answer": "", "extra": ["a", "b"]},
    ]
    found = describe(rows, {"prompt": "question", "response": "answer"})
    assert (found.rows, found.sampled, found.duplicates, found.counted) == (4, 4, 1, 4)
    assert found.scripts == {"Latin": 0.75, "Cyrillic": 0.25}
    columns = {column.name: column for column in found.columns}
    assert columns["question"].tokens == (10, 10, 100, 100)
    assert (columns["answer"].kind, columns["answer"].filled, columns["answer"].values) == ("text", 0.5, 2)
    assert (columns["level"].kind, columns["level"].values) == ("number", 2)
    assert (columns["extra"].kind, columns["extra"].filled) == ("list", 0.25)
    assert describe(rows).duplicates == 0, "whole rows differ"
    told = found.for_agent()
    assert 'column "question": text, 100% filled, 4 different, tokens (p5, p50, p95, max): 10, 10, 100, 100' in told
    assert "duplicates: 1 of 4 rows (25.0%)" in told
    assert told.count("\nrow: ") == 3
    assert "(100 characters more)" in describe(rows[3:]).for_agent(), "samples are cut"


def test_no_rows() -> None:
    assert describe([]).for_agent() == "no rows"


def test_percentiles_are_nearest_ranks() -> None:
    assert percentiles(range(1, 101)) == (5, 50, 95, 100)
    assert percentiles([7]) == (7, 7, 7, 7)
    assert percentiles([]) == ()


def test_a_sample_is_drawn_from_everywhere_by_its_seed() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        return ({"n": str(number), "late": "yes" if number >= 50_000 else None} for number in range(100_000))

    found = describe(rows(), seed=1, sample=1000)
    assert (found.rows, found.sampled) == (100_000, 1000)
    assert found == describe(rows(), seed=1, sample=1000)
    assert found.samples != describe(rows(), seed=2, sample=1000).samples
    late = next(column for column in found.columns if column.name == "late")
    assert late.filled == pytest.approx(0.5, abs=0.07), "four standard errors"


def test_a_hundred_thousand_rows_take_about_a_second() -> None:
    rows = ({"question": f"{number} " + "word " * 40, "answer": "x" * 200} for number in range(100_000))
    started = time.monotonic()
    assert describe(rows).rows == 100_000
    assert time.monotonic() - started < 5


CELL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(), CELL, max_size=60), max_size=8))
def test_any_rows_can_be_told_and_the_text_is_bounded(rows: list[dict[str, Any]]) -> None:
    told = describe(rows).for_agent()
    assert len(told) < 60_000
    told.encode()


def test_a_shown_row_is_one_line_of_json() -> None:
    shown = shown_row({"a\n": "first\nsecond\x1b[31m", "b": "x" * 1000, "c": [{"role": "user"}]})
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert json.loads(shown)["b"].endswith("... (700 characters more)")
