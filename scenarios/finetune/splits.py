"""Halves a benchmark into the search split and the sealed test split, always in the same way.

A question's half depends on nothing but its own text (and choices) and category and the other questions': order by
sha256 of the text, within each category, deal alternately. So the halves do not move when a file is shuffled, and
nobody chose them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import UsageError
from agent.records import Split
from scenarios.finetune.rows import Row

NUMBERS = ("id", "idx", "index")
"""Columns that number a row and ask nothing."""
CHOICES = (*"ABCDEFGHIJ", "choices", "options", "endings")
"""Columns that hold what can be chosen from. Benchmarks repeat a stem ("Which is true?") with other choices."""


@dataclass(frozen=True)
class Item:
    """One question: the start of its hash, which is its name everywhere, and its row as the benchmark has it."""

    id: str
    row: Row


@dataclass(frozen=True)
class Halves:
    """Both halves, each in hash order; `duplicates` counts the rows left out because their question came before."""

    search: tuple[Item, ...]
    test: tuple[Item, ...]
    duplicates: int

    def take(self, split: Split, limit: int | None) -> tuple[Item, ...]:
        """The first `limit` questions of a half in hash order; the whole half where it has fewer, or without limit."""
        if limit is not None and limit < 1:
            raise UsageError(
                f"a benchmark limit must be at least 1, got {limit}", "set FT_BENCHMARK_LIMIT to 1 or more"
            )
        half = self.search if split == "search" else self.test
        return half[:limit]

    def size(self, limit: int | None) -> int:
        """How many questions decide how the benchmark is answered: those of its search, or of its test alone."""
        return len(self.take("search", limit)) or len(self.take("test", limit))


def choices_of(row: Row) -> tuple[str, ...]:
    """The columns of a multiple-choice row that hold its choices."""
    return tuple(column for column in CHOICES if column in row)


def halve(
    rows: Sequence[Row],
    *,
    name: str,
    question: str | None,
    choices: Sequence[str] = (),
    category: str | None = None,
) -> Halves:
    """Split a benchmark's questions in two halves; with an odd number the search half has one more.

    Args:
        rows: The benchmark's rows, in any order.
        name: The benchmark, for messages.
        question: The column that holds the question; None where only the whole row tells questions apart. What merely
            numbers a row (`NUMBERS`) does not.
        choices: Further columns that are part of the question, where a row has them.
        category: The column by which both halves are stratified: each category is dealt alternately; None for none.

    Raises:
        UsageError: Fewer than two different questions.
    """
    distinct: dict[str, Row] = {}
    for row in rows:
        distinct.setdefault(_hash(row, question, choices), row)
    if len(distinct) < 2:
        raise UsageError(
            f"benchmark {name} has {len(distinct)} distinct question(s); it must be halved into search and test",
            "give it two questions at the very least; nothing can be decided with fewer than 18",
        )
    # One deal through all categories, so that the odd ones do not all favour the same half.
    dealt = sorted(distinct, key=lambda key: (str(distinct[key].get(category, "")) if category else "", key))
    search, test = ([Item(key[:16], distinct[key]) for key in sorted(dealt[half::2])] for half in (0, 1))
    return Halves(search=tuple(search), test=tuple(test), duplicates=len(rows) - len(distinct))


def _hash(row: Row, question: str | None, choices: Sequence[str]) -> str:
    if question and not (chosen := [row[column] for column in choices if column in row]):
        text = str(row[question])
    elif question:
        text = _json([row[question], *chosen])
    else:
        text = _json({column: cell for column, cell in row.items() if str(column).lower() not in NUMBERS})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
