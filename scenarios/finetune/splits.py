"""Halves a benchmark into the search split and the sealed test split, always in the same way.

A question's half depends on nothing but its own text and category and the other questions': order by sha256 of the
text, within each category, deal alternately. So the halves do not move when a file is shuffled, and nobody chose them.
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


def halve(rows: Sequence[Row], *, name: str, question: str | None, category: str | None = None) -> Halves:
    """Split a benchmark's questions in two halves; with an odd number the search half has one more.

    Args:
        rows: The benchmark's rows, in any order.
        name: The benchmark, for messages.
        question: The column that holds the question; None where only the whole row tells questions apart. What merely
            numbers a row (`NUMBERS`) does not.
        category: The column by which both halves are stratified: each category is dealt alternately; None for none.

    Raises:
        UsageError: Fewer than two different questions.
    """
    distinct: dict[str, Row] = {}
    for row in rows:
        distinct.setdefault(_hash(row, question), row)
    if len(distinct) < 2:
        raise UsageError(
            f"benchmark {name} has {len(distinct)} distinct question(s); it must be halved into search and test",
            "give it two questions at the very least; nothing can be decided with fewer than 18",
        )
    # One deal through all categories, so that the odd ones do not all favour the same half.
    dealt = sorted(distinct, key=lambda key: (str(distinct[key].get(category, "")) if category else "", key))
    search, test = ([Item(key[:16], distinct[key]) for key in sorted(dealt[half::2])] for half in (0, 1))
    return Halves(search=tuple(search), test=tuple(test), duplicates=len(rows) - len(distinct))


def _hash(row: Row, question: str | None) -> str:
    told = {column: cell for column, cell in row.items() if str(column).lower() not in NUMBERS}
    text = row[question] if question else json.dumps(told, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest()
