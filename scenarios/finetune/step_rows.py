"""Applies the steps of a recipe to rows, one row at a time wherever the step allows it.

A shuffle and a sample need all rows before they give one: those lie in a temporary file meanwhile, so a million rows
need about 100 MB of memory, whatever is in them.
"""

from __future__ import annotations

import heapq
import json
import random
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import TrialFailed
from scenarios.finetune import cells
from scenarios.finetune.rows import Row
from scenarios.finetune.steps import (
    Dedupe,
    Filter,
    Limit,
    Sample,
    Shuffle,
    Step,
    Template,
    names,
    parse,
    placeholders,
)

SAMPLED = 50  # rows that say which columns there are
LARGEST_CELL = 1_000_000
"""Characters that a template may compose: one that feeds on its own results grows exponentially."""
MOST_STRATA = 10_000
MATCHED = 200_000
"""Characters of a row that a pattern is tried on; longer rows do not pass."""
MATCHED_AT_ONCE = 64_000
PATIENCE = 120.0
"""Seconds that the patterns of one step may take in all."""


class StepStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did.

    Attributes:
        step: Its kind. rows_in, rows_out: Rows that came to it, and went on.
        reasons: Why rows were left out -> how many.
    """

    step: str
    rows_in: int
    rows_out: int
    reasons: dict[str, int] = {}


class Applied:
    """Rows after all steps. To be iterated once; `statistics` are complete when that is done."""

    def __init__(self, rows: Iterator[Row], tallies: Sequence[_Tally]) -> None:
        self._rows = rows
        self._tallies = tallies

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    @property
    def statistics(self) -> tuple[StepStatistics, ...]:
        """What each step has done so far."""
        return tuple(
            StepStatistics(step=tally.step, rows_in=tally.came, rows_out=tally.went, reasons=dict(tally.reasons))
            for tally in self._tallies
        )


class _Tally:
    def __init__(self, number: int, step: Step) -> None:
        self.step = str(step.__struct_config__.tag)
        self.where = f"data, step {number} ({self.step})"
        self.came = self.went = 0
        self.reasons: Counter[str] = Counter()

    def coming(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.came += 1
            yield row

    def going(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.went += 1
            yield row


def apply(
    steps: Sequence[Step],
    rows: Iterable[Row],
    *,
    bytes_per_token: float = cells.BYTES_PER_TOKEN,
    scratch: Path | None = None,
    patience: float = PATIENCE,
) -> Applied:
    """The rows that the steps leave, as an iterator, with statistics.

    Args:
        steps: As parsed. rows: Read once, as they are needed.
        bytes_per_token: How lengths in tokens are counted; see `cells.bytes_per_token`.
        scratch: Directory of temporary files; the system's own unless said otherwise.
        patience: Seconds that the patterns of one step may take.

    Raises:
        UsageError: A step names a column that the first rows do not have.
        TrialFailed: "data", while the rows are iterated: a pattern is too slow, a template makes a giant, a column has
            too many values to sample by.
    """
    source = iter(rows)
    first = list(islice(source, SAMPLED))
    if first:
        # The steps are valid already: only their columns are looked at.
        parse([msgspec.to_builtins(step) for step in steps], dict.fromkeys(str(key) for row in first for key in row))
    stream: Iterator[Row] = chain(first, source)
    tallies = []
    for number, step in enumerate(steps, 1):
        tally = _Tally(number, step)
        stream = tally.going(_run(step, tally.coming(stream), tally, bytes_per_token, scratch, patience))
        tallies.append(tally)
    return Applied(stream, tallies)


def for_agent(statistics: Iterable[StepStatistics]) -> str:
    """A line for each step, for the next proposal."""
    lines = []
    for number, step in enumerate(statistics, 1):
        reasons = "; ".join(f"{count:,} {why}" for why, count in step.reasons.items())
        lines.append(
            f"{number}. {step.step}: {step.rows_in:,} -> {step.rows_out:,} rows" + (f" ({reasons})" * bool(reasons))
        )
    return "\n".join(lines)


def _run(
    step: Step, rows: Iterator[Row], tally: _Tally, bytes_per_token: float, scratch: Path | None, patience: float
) -> Iterator[Row]:
    if isinstance(step, Filter):
        return _filtered(step, rows, tally, bytes_per_token, patience)
    if isinstance(step, Dedupe):
        return _deduped(step, rows, tally)
    if isinstance(step, Sample):
        return _sampled(step, rows, tally, scratch)
    if isinstance(step, Shuffle):
        return _shuffled(step, rows, scratch)
    if isinstance(step, Limit):
        return _limited(step, rows, tally)
    return _composed(step, rows, tally)


def _filtered(step: Filter, rows: Iterator[Row], tally: _Tally, per_token: float, patience: float) -> Iterator[Row]:
    why_not = _test(step, per_token)
    matching = _Matching(step, tally, patience)
    for row in rows:
        said = [cells.text(row.get(name)) for name in names(step.columns)]
        if why := why_not(said):
            tally.reasons[why] += 1
        elif step.pattern and sum(map(len, said)) > MATCHED:
            tally.reasons[f"longer than the {MATCHED:,} characters that a pattern is tried on"] += 1
        elif step.pattern:
            yield from matching.take(row, "\n".join(said))
        else:
            yield row
    yield from matching.rest()


def _test(step: Filter, per_token: float) -> Callable[[list[str]], str | None]:
    """Why the text of a row's columns does not pass, by everything but the pattern; None if it does."""

    def words(value: str | tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.casefold() if step.ignore_case else word for word in names(value) if word)

    contains, lacks = words(step.contains), words(step.lacks)
    bounds = (("tokens", step.min_tokens, step.max_tokens), ("characters", step.min_characters, step.max_characters))

    def why_not(cell_texts: list[str]) -> str | None:
        if step.not_empty and not all(map(str.strip, cell_texts)):
            return "empty"
        said = "\n".join(cell_texts)
        for unit, low, high in bounds:
            if low is None and high is None:
                continue
            length = cells.tokens(said, per_token) if unit == "tokens" else len(said)
            if low is not None and length < low:
                return f"shorter than {low} {unit}"
            if high is not None and length > high:
                return f"longer than {high} {unit}"
        if contains or lacks:
            said = said.casefold() if step.ignore_case else said
            if contains and not any(word in said for word in contains):
                return "without the wanted words"
            if any(word in said for word in lacks):
                return "with unwanted words"
        return None

    return why_not


class _Matching:
    """Tries a pattern on many rows at once. RE2 runs in linear time; how long that may be has a limit as well."""

    def __init__(self, step: Filter, tally: _Tally, patience: float) -> None:
        self._step = step
        self._tally = tally
        self._left = patience
        self._patience = patience
        self._rows: list[Row] = []
        self._texts: list[str] = []
        self._size = 0

    def take(self, row: Row, said: str) -> Iterator[Row]:
        """Rows that match, of those that were held back until now."""
        self._rows.append(row)
        self._texts.append(said.encode("utf-8", "replace").decode())
        self._size += len(self._texts[-1]) + 16
        return self.rest() if self._size >= MATCHED_AT_ONCE else iter(())

    def rest(self) -> Iterator[Row]:
        """The same, of all rows that are still held back."""
        import pyarrow
        import pyarrow.compute

        if not self._rows:
            return
        started = time.monotonic()
        found = pyarrow.compute.match_substring_regex(
            pyarrow.array(self._texts, pyarrow.string()), self._step.pattern, ignore_case=self._step.ignore_case
        ).to_pylist()
        self._left -= time.monotonic() - started
        if self._left < 0:
            raise TrialFailed(
                "data", f"{self._tally.where}: the pattern takes more than {self._patience:g} s; simplify it"
            )
        held, self._rows, self._texts, self._size = self._rows, [], [], 0
        for row, matches in zip(held, found, strict=True):
            if matches:
                yield row
            else:
                self._tally.reasons["not matching the pattern"] += 1


def _deduped(step: Dedupe, rows: Iterator[Row], tally: _Tally) -> Iterator[Row]:
    seen: set[int] = set()
    for row in rows:
        said = "\0".join(cells.normalised(cells.text(row.get(name))) for name in names(step.columns))
        key = cells.digest(said)
        if key in seen:
            tally.reasons["duplicates"] += 1
        else:
            seen.add(key)
            yield row


def _sampled(step: Sample, rows: Iterator[Row], tally: _Tally, scratch: Path | None) -> Iterator[Row]:
    draw = random.Random(step.seed)  # noqa: S311 - a sample, not a secret
    strata: dict[str, list[tuple[float, int]]] = {}
    with _Spool(scratch) as spool:
        for index, row in enumerate(rows):
            value = cells.text(row.get(step.column))[:200] if step.column else ""
            drawn = strata.setdefault(value, [])
            entry = (draw.random(), index)
            heapq.heappush(drawn, entry) if len(drawn) < step.n else heapq.heappushpop(drawn, entry)
            if len(strata) > MOST_STRATA:
                raise TrialFailed(
                    "data",
                    f"{tally.where}: column {step.column!r} has more than {MOST_STRATA:,} different values; "
                    "sample by a column with fewer",
                )
            spool.add(row)
        chosen = array("q", sorted(index for drawn in strata.values() for _, index in drawn))
        strata.clear()
        if left := len(spool) - len(chosen):
            tally.reasons["not drawn"] += left
        yield from map(spool.row, chosen)


def _shuffled(step: Shuffle, rows: Iterator[Row], scratch: Path | None) -> Iterator[Row]:
    with _Spool(scratch) as spool:
        for row in rows:
            spool.add(row)
        order = array("q", range(len(spool)))
        random.Random(step.seed).shuffle(order)  # noqa: S311
        yield from map(spool.row, order)


def _limited(step: Limit, rows: Iterator[Row], tally: _Tally) -> Iterator[Row]:
    yield from islice(rows, step.n)
    for _ in rows:  # to the end, so that the steps before have counted all
        tally.reasons["beyond the limit"] += 1


def _composed(step: Template, rows: Iterator[Row], tally: _Tally) -> Iterator[Row]:
    templates = {column: placeholders(template) for column, template in step.columns.items()}
    for number, row in enumerate(rows, 1):
        composed: Row = {name: row.get(name) for name in names(step.keep)}
        for column, parts in templates.items():
            said = [
                piece for text, name in parts for piece in (text, "" if name is None else cells.text(row.get(name)))
            ]
            if sum(map(len, said)) > LARGEST_CELL:
                raise TrialFailed(
                    "data", f"{tally.where}: row {number}: {column!r} has more than {LARGEST_CELL:,} characters"
                )
            composed[column] = "".join(said)
        yield composed


class _Spool:
    """Rows in a temporary file, by number; gone when the block is left."""

    def __init__(self, scratch: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by __exit__
        self._starts = array("q", [0])
        self._written = 0

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, row: Row) -> None:
        """Append a row; what JSON does not know becomes text."""
        content = json.dumps(row, default=str).encode()
        self._file.write(content)
        self._written += len(content)
        self._starts.append(self._written)

    def row(self, number: int) -> Row:
        """The row of this number, counted from 0; no row may be added any more."""
        start, end = self._starts[number], self._starts[number + 1]
        self._file.seek(start)
        row: dict[str, Any] = json.loads(self._file.read(end - start))
        return row
