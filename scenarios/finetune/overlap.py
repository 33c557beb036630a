"""Which texts hold a benchmark's questions: the index, and the rules that tell a copy from a turn of phrase.

What a benchmark's question shares with another one of the same benchmark says nothing, and is left out of the index.
Of what remains, a row of training data holds a question where one of these is in it:

- *copy*: half of the question's runs of 40 letters, numbers left out, so that a copy with other numbers, spacing,
  punctuation or a new frame is found as well;
- *same*: a line or a whole text that is the question, numbers included (with its punctuation where little else is
  there). It decides about short questions, and about those that differ by their numbers alone;
- *part*: one such run, or a whole sentence of the question of 15 letters or more, unless most of it is in more than
  ten different rows: then it is a stock phrase ("how much money does he have left").

A reference solution is held as a *copy* or *part* from 60 letters on. Imports numpy: import this where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scenarios.finetune.shingles import MIX, WINDOW, Hashes, Places, Shingles, shingles

HALF = 0.5
"""Of a question's own runs of letters; a row with fewer holds a part of it."""
SENTENCE = 15
"""Letters. Shorter sentences ("How many are left?") are anybody's."""
LINE = 12
"""Letters and digits from which on a line can be a question; "2+2" without its punctuation is in every other text."""
SOLUTION = 60
"""Letters that a solution must share: solutions are more alike than questions."""
STOCK = 10
"""Different rows; a part that more of them hold is nobody's own."""
CHUNK = 1 << 20
"""Characters hashed at once."""
OVERLAP = 4096
"""Characters that two pieces of a longer text have in common."""
KEPT = 16
"""Parts of one row that are remembered until it is known which of them are stock phrases."""

Role = Literal["question", "solution"]
How = Literal["copy", "same", "part"]


class Known(NamedTuple):
    """One text of a benchmark: a question, or a reference solution, of the item with this id."""

    item: str
    text: str
    role: Role


class Held(NamedTuple):
    """A row (from 0) that holds an item of a benchmark, and how."""

    row: int
    item: str
    how: How


def find(rows: Iterable[Sequence[str]], indexes: Sequence[Index]) -> list[list[Held]]:
    """What some rows hold, one list an index. A row is the texts in it; rows are read once, a megabyte at a time."""
    findings = [_Findings() for _ in indexes]
    for texts, row_of in _chunks(rows):
        read = shingles(texts)
        for index, found in zip(indexes, findings, strict=True):
            index.look(read, row_of, found)
    return [index.decide(found) for index, found in zip(indexes, findings, strict=True)]


def _chunks(rows: Iterable[Sequence[str]]) -> Iterator[tuple[list[str], Places]]:
    """About `CHUNK` characters of texts at a time, with the row of each."""
    texts: list[str] = []
    numbers: list[int] = []
    size = 0
    for number, row in enumerate(rows):
        for text in row:
            for start in range(0, max(1, len(text) - OVERLAP), CHUNK - OVERLAP):
                piece = text[start : start + CHUNK] if len(text) > CHUNK else text
                if size + len(piece) > CHUNK and texts:
                    yield texts, np.array(numbers, np.int64)
                    texts, numbers, size = [], [], 0
                texts.append(piece)
                numbers.append(number)
                size += len(piece) + 1
    if texts:
        yield texts, np.array(numbers, np.int64)


@dataclass
class _Findings:
    """What was seen so far: (row, item) -> how, and the parts that may turn out to be stock phrases."""

    held: dict[tuple[int, int], How] = field(default_factory=dict)
    parts: list[tuple[int, int, int, tuple[int, ...]]] = field(default_factory=list)
    """Row, hash of all its texts, item, and which parts of the item it has."""


class Index:
    """What makes a benchmark's texts recognisable; what several items have in common is left out."""

    def __init__(self, known: Sequence[Known]) -> None:
        self._ids = list(dict.fromkeys(one.item for one in known))
        numbers = {item: number for number, item in enumerate(self._ids)}
        self._item = np.array([numbers[one.item] for one in known], np.int64)
        self._asks = np.array([one.role == "question" for one in known], np.bool_)
        read = shingles([one.text for one in known])
        runs = read.inside()
        asked = self._asks
        sentences = read.sentences.where(asked[read.sentences.text] & (read.sentences.length >= SENTENCE))
        self._runs = self._table(read.windows[runs], read.texts_of(runs))
        self._sentences = self._table(sentences.hashes, sentences.text)
        self._lines, self._exact = (
            self._table(spans.hashes, spans.text)
            for spans in (
                read.wholes.where(asked & (read.wholes.length >= LINE)),
                read.exact.where(asked & (read.wholes.length < LINE) & (read.exact.length > 0)),
            )
        )
        self._runs_of = np.bincount(self._runs.text, minlength=len(known))

    def _table(self, hashes: Hashes, texts: Places) -> _Table:
        """Those that belong to one item alone."""
        order = np.argsort(hashes, kind="stable")
        hashes, texts = hashes[order], texts[order]
        first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
        if len(first):
            items = self._item[texts]
            first = first[np.minimum.reduceat(items, first) == np.maximum.reduceat(items, first)]
        return _Table(hashes[first], texts[first])

    def look(self, read: Shingles, row_of: Places, found: _Findings) -> None:
        """Add what these texts hold; `row_of` gives the row of each, in rising order."""
        for table, spans in (
            (self._lines, read.lines.where(read.lines.length >= LINE)),
            (self._lines, read.wholes.where(read.wholes.length >= LINE)),
            (self._exact, read.exact),
        ):
            places, entries = table.find(spans.hashes)
            pairs = zip(row_of[spans.text[places]].tolist(), self._item[table.text[entries]].tolist(), strict=True)
            found.held.update(dict.fromkeys(pairs, "same"))
        first = np.flatnonzero(np.concatenate([[True], row_of[1:] != row_of[:-1]]))
        prints = dict(zip(row_of[first].tolist(), np.add.reduceat(read.wholes.hashes, first).tolist(), strict=True))

        places, entries = self._runs.find(read.windows)
        self._judge(row_of[read.texts_of(places)], entries, prints, found)

        spans = read.sentences.where(read.sentences.length >= SENTENCE)
        places, entries = self._sentences.find(spans.hashes)
        rows = row_of[spans.text[places]].tolist()
        items = self._item[self._sentences.text[entries]].tolist()
        for row, item, entry in zip(rows, items, entries.tolist(), strict=True):
            found.parts.append((row, prints[row], item, (len(self._runs.hashes) + entry,)))

    def _judge(self, rows: Places, entries: Places, prints: dict[int, int], found: _Findings) -> None:
        """Tell copies from parts by how many of a text's runs are in a row."""
        if not len(rows):
            return
        size = len(self._runs.hashes)
        pairs = np.unique(rows * size + entries)
        rows, entries = pairs // size, pairs % size
        order = np.lexsort((entries, self._runs.text[entries], rows))
        rows, entries, texts = rows[order], entries[order], self._runs.text[entries[order]]
        change = np.concatenate([[True], (rows[1:] != rows[:-1]) | (texts[1:] != texts[:-1])])
        starts = np.flatnonzero(change)
        counts = np.diff(np.append(starts, len(rows)))
        least = np.where(self._asks[texts[starts]], 1, SOLUTION - WINDOW + 1)
        copied = counts >= HALF * self._runs_of[texts[starts]]
        for at in np.flatnonzero(counts >= least).tolist():
            start, row = starts[at], int(rows[starts[at]])
            item = int(self._item[texts[start]])
            if copied[at]:
                found.held.setdefault((row, item), "copy")
            else:
                evidence = entries[start : start + min(KEPT, counts[at])]
                found.parts.append((row, prints[row], item, tuple(evidence.tolist())))

    def decide(self, found: _Findings) -> list[Held]:
        """What is held by which row, once all rows have been seen; in the order of the rows."""
        holders: dict[int, set[int]] = {}
        for _, fingerprint, _, evidence in found.parts:
            for part in evidence:
                if len(rows := holders.setdefault(part, set())) <= STOCK:
                    rows.add(fingerprint)  # copies of one row count once
        held = dict(found.held)
        for row, _, item, evidence in found.parts:
            if 2 * sum(len(holders[part]) <= STOCK for part in evidence) >= len(evidence):
                held.setdefault((row, item), "part")
        return [Held(row, self._ids[item], how) for (row, item), how in sorted(held.items())]


class _Table:
    """Hashes in order and the text that each belongs to, behind a filter that answers most questions at once."""

    def __init__(self, hashes: Hashes, text: Places) -> None:
        self.hashes, self.text = hashes, text
        bits = min(28, max(16, (64 * len(hashes)).bit_length()))  # one place in 64 or more is taken
        self._shift = np.uint64(64 - bits)
        self._filter: NDArray[np.bool_] = np.zeros(1 << bits, np.bool_)
        self._filter[(hashes * MIX) >> self._shift] = True

    def find(self, asked: Hashes) -> tuple[Places, Places]:
        """Which of `asked` are known, and where in the table they are."""
        if not len(self.hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        likely = np.flatnonzero(self._filter[(asked * MIX) >> self._shift])
        at = np.searchsorted(self.hashes, asked[likely])
        at[at == len(self.hashes)] = 0
        known = self.hashes[at] == asked[likely]
        return likely[known], at[known]
