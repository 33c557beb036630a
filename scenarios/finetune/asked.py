"""What a benchmark's row asks, whatever its columns are called: how a question is known again in another layout."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping

from scenarios.finetune.rows import Row
from scenarios.finetune.splits import NUMBERS, choices_of

ASKED = (
    *("question", "problem", "prompt", "origin_prompt", "original_prompt", "query", "instruction", "input", "text"),
    *("doc", "ctx", "goal", "sentence", "stem", "question_text", "problem_text", "problem_statement"),
)
"""Columns that ask; of a benchmark with other names alone, every column that is no answer."""
ANSWERS = (
    *("answer", "answers", "solution", "solutions", "target", "output", "response", "completion", "explanation"),
    *("rationale", "gold", "gold_answer", "gold_solution", "reference", "reference_answer", "expected_answer"),
    *("final_answer", "correct_answer", "ground_truth", "label", "labels", "answer_key", "answerkey"),
)


def asked_texts(row: Row) -> list[str]:
    """What a benchmark's row asks, whatever its columns are called; without its choices."""
    return [text for asks, text in texts(row) if asks]


def normalised(text: str) -> str:
    """Its letters and digits, whatever their case and form: how a text is compared across benchmarks and layouts."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def asked_key(row: Row) -> str:
    """What makes two rows the same question: what they ask, and the choices that they give; normalised."""
    chosen = [text for column in choices_of(row) for text in strings(row[column])]
    return normalised(" ".join([*asked_texts(row), *chosen]))


def texts(row: Row) -> Iterator[tuple[bool, str]]:
    """The texts of a benchmark's row, and whether each is what it asks."""
    columns = {str(column).lower(): cell for column, cell in row.items() if str(column).lower() not in NUMBERS}
    asked = set(ASKED) & columns.keys() or columns.keys() - set(ANSWERS)
    for column, cell in columns.items():
        for text in strings(cell):
            yield column in asked, text


def strings(cell: object) -> Iterator[str]:
    """Every text in a cell, however deep; the name of a role in a conversation is none."""
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, Mapping):
        for key, value in cell.items():
            if key != "role":
                yield from strings(value)
    elif isinstance(cell, list | tuple):
        for value in cell:
            yield from strings(value)
