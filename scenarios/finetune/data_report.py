"""Looks at what a data script wrote, as hostile as it may be, and says what can be trained on and what is wrong."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

import msgspec

from agent.errors import UsageError
from scenarios.finetune import cells, data, preferences
from scenarios.finetune.data_statistics import DataStatistics, describe, shown_row
from scenarios.finetune.files import replacing, scratch
from scenarios.finetune.rows import Row

LEAST = 10
"""Different rows that a training needs at least."""
LONGEST_LINE = 4 << 20  # bytes
MOST_LINES = 2_000_000
SAMPLED = 50  # rows that decide about the format
TOLERATED = {"malformed": 0.01, "without content": 0.5, "too long": 0.5}
"""Share of the rows that may be so before the whole is of no use."""
QUOTED = 200  # characters of an example
TOLD = 6_000  # characters of all that is told

Run = Literal["debug", "full", "steps"]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong with some rows, or with the whole.

    Attributes:
        what: In a few words. rows: How many rows; 0 where it is about the whole. example: The first one, cut.
        fatal: The data cannot be trained on.
    """

    what: str
    rows: int = 0
    example: str = ""
    fatal: bool = False


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one run of a data script.

    Attributes:
        run: Of the script, "debug" or "full"; or "steps": what the steps made.
        rows: Lines that it wrote. kept: Rows that can be trained on, within the limit.
        format: The layout that the rows have; "preference" for pairs of answers, "labelled" for answers with a label.
        columns: Role -> column.
        problems: The fatal ones first.
        statistics: Of the rows kept; None where there are none.
        failure: Why the run itself failed, "" if it ended well. tail: The log's last lines then.
    """

    run: Run
    rows: int = 0
    kept: int = 0
    format: str = ""
    columns: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    statistics: DataStatistics | None = None
    failure: str = ""
    tail: str = ""

    @property
    def usable(self) -> bool:
        """Whether a training may be tried on it."""
        return not self.failure and not any(problem.fatal for problem in self.problems)

    @property
    def reason(self) -> str:
        """Why a training may not be tried on it, in one line; empty where it may."""
        what = "the steps" if self.run == "steps" else f"the script's {self.run} run"
        fatal = (problem.what for problem in self.problems if problem.fatal)
        return "" if self.usable else f"{what}: {self.failure or next(fatal)}"

    def for_agent(self) -> str:
        """All of it as text, for the one who must repair the script or judge its data."""
        what = "the data after the steps" if self.run == "steps" else f"{self.run} run of process_data.py"
        lines = [f"{what}: {'usable' if self.usable else 'NOT usable'}"]
        if self.failure:
            lines.append(f"it failed: {self.failure}")
        else:
            form = f", format {self.format} ({_as_map(self.columns)})" if self.format else ""
            lines.append(f"rows written {self.rows:,}, kept {self.kept:,}{form}")
        for problem in self.problems:
            count = f"{problem.rows:,} row{'s' * (problem.rows > 1)}: " if problem.rows else ""
            example = (
                f"\n  the first: {problem.example}" if problem.example else ""
            )  # a line that may have to be left out
            lines.append(f"{'fatal: ' if problem.fatal else ''}{count}{problem.what}{example}")
        if self.tail:
            lines.append(f"the log ends with:\n{self.tail[-TOLD // 2 :]}")
        if self.statistics:
            lines.append(self.statistics.for_agent())
        return "\n".join(lines)[:TOLD]


def examine(
    file: Path,
    kept: Path,
    *,
    run: Run,
    cutoff_len: int,
    most: int,
    seed: int = 0,
    bytes_per_token: float = cells.BYTES_PER_TOKEN,
    columns: Mapping[str, str] | None = None,
) -> DataReport:
    """Judge the JSON Lines in `file`, and write the rows that can be trained on to `kept`.

    Args:
        file: A regular file that a job wrote; the job has ended.
        kept: JSON Lines with the columns that have a role, and no others; written where the report is usable.
        run: A debug run may give few rows.
        cutoff_len: Tokens after which a training cuts a row.
        most: Rows to keep at most; of more, so many are drawn by `seed`.
        seed: See `most`. bytes_per_token: How lengths are counted.
        columns: Role -> column of the study's data; they hold where the rows still have these columns.
    """
    lines = _Lines(file)
    try:
        layout = _layout(_Lines(file).rows(), columns)
    except UsageError as error:
        deque(lines.rows(), maxlen=0)  # for the account of all lines
        found = (*lines.problems(), Problem(what=error.message, fatal=True))
        return DataReport(run=run, rows=lines.count, problems=found)
    draft = scratch(kept)
    try:
        judge = _Judge(layout, cutoff_len, bytes_per_token)
        with draft.open("x", encoding="utf-8") as target:
            for row in lines.rows():
                if judge.accepts(row):
                    target.write(json.dumps({name: row[name] for name in layout.wanted if name in row}) + "\n")
        problems = _verdicts(lines, judge, 1 if run == "debug" else LEAST, cutoff_len)
        count = min(judge.kept, most)
        if judge.kept > most:
            problems.append(Problem(what=f"more than the limit of {most:,}: {most:,} were drawn (seed {seed})"))
        statistics = None
        if count:
            with replacing(kept) as final:
                drawn = _drawn(draft, judge.kept, count, seed, final)
                statistics = describe(drawn, layout.columns, seed=seed, bytes_per_token=bytes_per_token)
    finally:
        draft.unlink(missing_ok=True)
    return DataReport(
        run=run,
        rows=lines.count,
        kept=count,
        format=layout.format,
        columns=layout.columns,
        problems=tuple(sorted(problems, key=lambda problem: not problem.fatal)),
        statistics=statistics,
    )


class _Layout(msgspec.Struct, frozen=True):
    """The format's name, and role -> column."""

    format: str
    columns: dict[str, str]

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(self.columns.values())

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that no row may lack."""
        return tuple(name for role, name in self.columns.items() if role not in ("query", "system"))


class _Lines:
    """The rows of a file of JSON Lines, and an account of the lines that hold none."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.count = 0
        self.wrong: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.too_many = False

    def rows(self) -> Iterator[Row]:
        descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as source:
            while line := source.readline(LONGEST_LINE + 1):
                if not line.strip():
                    continue
                if self.count >= MOST_LINES:
                    self.too_many = True
                    return
                self.count += 1
                if len(line) > LONGEST_LINE:
                    self._note(f"longer than {LONGEST_LINE >> 20} MiB", line[:QUOTED])
                    while line and not line.endswith(b"\n"):
                        line = source.readline(LONGEST_LINE)
                elif (row := self._row(line)) is not None:
                    yield row

    def problems(self) -> list[Problem]:
        """About the lines that hold no row."""
        bad = sum(self.wrong.values())
        fatal = bad > self.count * TOLERATED["malformed"]
        found = [
            Problem(what=what, rows=count, example=self.examples[what], fatal=fatal)
            for what, count in self.wrong.items()
        ]
        if self.too_many:
            found.append(Problem(what=f"more than {MOST_LINES:,} lines", fatal=True))
        return found

    def _row(self, line: bytes) -> Row | None:
        try:
            row = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._note("no JSON", line[:QUOTED], f" ({error})"[:QUOTED])
            return None
        if isinstance(row, dict):
            return row
        self._note("JSON, but no object with columns", line[:QUOTED])
        return None

    def _note(self, what: str, line: bytes, why: str = "") -> None:
        self.wrong[what] += 1
        self.examples.setdefault(what, f"line {self.count}: {line.decode('utf-8', 'replace').strip()!r}{why}")


class _Judge:
    """Takes rows one by one, and counts what is wrong with them."""

    def __init__(self, layout: _Layout, cutoff_len: int, bytes_per_token: float) -> None:
        self._layout = layout
        self._cutoff_len = cutoff_len
        self._bytes_per_token = bytes_per_token
        self._seen: set[int] = set()
        self.kept = self.too_long = self.longest = 0
        self.lacking: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    @property
    def different(self) -> int:
        """Rows kept that no earlier one equals."""
        return len(self._seen)

    def accepts(self, row: Row) -> bool:
        """Whether the row can be trained on."""
        if missing := [name for name in self._layout.needed if name not in row]:
            return self._refuse(self.lacking, f"without the column {missing[0]!r}", row)
        if why := self._lacks_content(row):
            return self._refuse(self.empty, why, row)
        said = [cells.text(row.get(name)) for name in self._layout.wanted]
        length = sum(cells.tokens(text, self._bytes_per_token) for text in said)
        self.too_long += length > self._cutoff_len
        self.longest = max(self.longest, length)
        self._seen.add(hash("\0".join(map(cells.normalised, said))))
        self.kept += 1
        return True

    def _lacks_content(self, row: Row) -> str | None:
        columns = self._layout.columns
        if data.canonical(row, columns) is not None:
            return None
        texts = [column for role, column in columns.items() if role not in ("messages", "query", "system", "label")]
        if empty := [column for column in texts if not cells.text(row.get(column)).strip()]:
            return f"with an empty {empty[0]!r}"
        if "label" in columns and preferences.label(row.get(columns["label"])) is None:
            return f"whose {columns['label']!r} is neither true nor false"
        if preferences.kind(columns) == preferences.PAIRS:
            chosen, rejected = (row.get(columns[role]) for role in ("chosen", "rejected"))
            if chosen == rejected:
                return "whose chosen and rejected answers are the same"
            return "whose chosen and rejected are no answers to the same question"
        if "messages" in columns:
            return f"whose {columns['messages']!r} are no turns of user and assistant with content"
        return "with a prompt or response that is no text"

    def _refuse(self, counter: Counter[str], why: str, row: Row) -> Literal[False]:
        counter[why] += 1
        self.examples.setdefault(why, shown_row(row, QUOTED)[:QUOTED])
        return False


def _layout(rows: Iterator[Row], columns: Mapping[str, str] | None) -> _Layout:
    """The layout of the first rows; UsageError says why there is none."""
    sample = list(islice(rows, SAMPLED))
    if not sample:
        raise UsageError("no row was written")
    if columns and set(columns.values()) <= {name for row in sample for name in row}:
        return _Layout("columns", dict(columns))
    try:
        return _Layout(*data.layout(sample, "the output"))
    except UsageError as error:
        wanted = "instruction and output, messages, instruction with chosen and rejected, or these with a label"
        raise UsageError(f"{error.message[: QUOTED * 2]}; wanted: {wanted}") from None


def _verdicts(lines: _Lines, judge: _Judge, least: int, cutoff_len: int) -> list[Problem]:
    def of(counter: Mapping[str, int], fatal: bool) -> list[Problem]:
        return [
            Problem(what=what, rows=count, example=judge.examples[what], fatal=fatal) for what, count in counter.items()
        ]

    malformed = sum(judge.lacking.values()) > lines.count * TOLERATED["malformed"]
    found = lines.problems() + of(judge.lacking, malformed)
    found += of(judge.empty, sum(judge.empty.values()) > lines.count * TOLERATED["without content"])
    if judge.too_long:
        what = f"longer than cutoff_len {cutoff_len} (about {judge.longest:,} tokens the longest): their ends are cut"
        found.append(Problem(what=what, rows=judge.too_long, fatal=judge.too_long > judge.kept * TOLERATED["too long"]))
    if repeated := judge.kept - judge.different:
        found.append(Problem(what="the same as an earlier row", rows=repeated))
    if judge.different < least:
        what = f"too few different rows that can be trained on: {judge.different}, at least {least} are needed"
        found.append(Problem(what=what, fatal=True))
    return found


def _drawn(draft: Path, rows: int, count: int, seed: int, target: TextIO) -> Iterator[Row]:
    """Copies `count` of the rows to `target`, and gives them."""
    chosen = set(random.Random(seed).sample(range(rows), count)) if count < rows else None  # noqa: S311
    with draft.open(encoding="utf-8") as source:
        for number, line in enumerate(source):
            if chosen is None or number in chosen:
                target.write(line)
                row: Row = json.loads(line)
                yield row


def _as_map(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{role}={name}" for role, name in columns.items())
