"""Keeps the benchmarks' questions out of the training data: scans it once a study, before anything is trained.

What counts as holding a question stands in `overlap.py`. Both halves of every benchmark are looked for. The outcome is
in `Prepared.contamination`, in the journal and in the report, and which row holds which question in a file of the
study's directory, outside of what jobs and proposers see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agent.errors import UsageError
from agent.records import Contamination
from scenarios.finetune import data
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data import Dataset, Prepared
from scenarios.finetune.files import replacing
from scenarios.finetune.splits import NUMBERS

if TYPE_CHECKING:
    from scenarios.finetune.overlap import Held, Index

Mode = Literal["remove", "refuse", "mark"]

FEWEST = 10
"""Rows that must be left, and at least half of them: otherwise the data set is the benchmark, and is left whole."""
ASKED = ("question", "problem", "prompt", "query", "instruction", "input", "text", "doc", "ctx", "goal", "sentence")
"""Columns that ask; of a benchmark with other names alone, every column that is no answer."""
ANSWERS = ("answer", "answers", "solution", "target", "output", "response", "completion", "explanation", "rationale")
RULES = 1
"""Counted up when what counts as holding a question changes: studies scan their data again."""


def prepare(
    dataset: Dataset,
    directory: Path,
    benchmarks: Sequence[Benchmark],
    mode: Mode,
    listing: Path,
    say: Callable[[str], None],
) -> Prepared:
    """Write the data set as `data.write` does, without the rows that hold questions of the benchmarks.

    What was scanned before, for the same data, benchmarks and rules, is not scanned again.

    Args:
        directory: Of the study's copy of the data.
        mode: FT_CONTAMINATION: "remove" drops the rows; "refuse" ends the call; "mark" trains on them.
        listing: A file for people: one JSON object a row found, with its number (from 1), benchmark, question, how.

    Raises:
        UsageError: As `data.write`; or rows were found, and the mode is "refuse".
    """
    prepared = data.write(dataset, directory)
    key = _key(prepared.fingerprint, benchmarks, mode)
    if prepared.contamination is not None and prepared.contamination.key == key:
        _tell(prepared.contamination, say)
        return prepared
    if prepared.contamination is not None and prepared.contamination.action == "removed":
        prepared = data.write(dataset, directory, again=True)  # under other rules; they need to see all rows
    found = scan(directory / f"{prepared.name}.jsonl", benchmarks)
    _list(found, listing)
    rows = {held.row for holds in found.values() for held in holds}
    counts = {name: len({held.row for held in holds}) for name, holds in found.items() if holds}
    contamination = Contamination(
        key=key, rows=prepared.rows, found=counts, flagged=len(rows), action=_action(mode, len(rows), prepared.rows)
    )
    if rows and mode == "refuse":
        raise UsageError(
            f"{dataset.root}: {contamination.summary} (FT_CONTAMINATION=refuse; they are listed in {listing})",
            "take these rows out, or set FT_CONTAMINATION to remove (drops them) or mark (marks every score)",
        )
    prepared = data.without(prepared, rows if contamination.action == "removed" else set(), contamination)
    _tell(contamination, say)
    return prepared


def scan(path: Path, benchmarks: Sequence[Benchmark]) -> dict[str, list[Held]]:
    """Which rows (from 0) of a canonical JSON Lines file hold questions, by benchmark. A second for 20,000 rows."""
    from scenarios.finetune.overlap import find

    found = find(_rows(path), [index(benchmark) for benchmark in benchmarks])
    return {benchmark.name: held for benchmark, held in zip(benchmarks, found, strict=True)}


def index(benchmark: Benchmark) -> Index:
    """What a benchmark's questions, of both halves, and their solutions are recognised by."""
    from scenarios.finetune.overlap import Index, Known

    items = (*benchmark.halves.search, *benchmark.halves.test)
    return Index(
        [
            Known(item.id, text, "question" if asks else "solution")
            for item in items
            for asks, text in _texts(item.row)
            if text.strip()
        ]
    )


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """The texts of a benchmark's row, and whether each is what it asks."""
    columns = {str(column).lower(): cell for column, cell in row.items() if str(column).lower() not in NUMBERS}
    asked = set(ASKED) & columns.keys() or columns.keys() - set(ANSWERS)
    for column, cell in columns.items():
        for text in _strings(cell):
            yield column in asked, text


def _strings(cell: object) -> Iterator[str]:
    """Every text in a cell, however deep; the name of a role in a conversation is none."""
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, Mapping):
        for key, value in cell.items():
            if key != "role":
                yield from _strings(value)
    elif isinstance(cell, list | tuple):
        for value in cell:
            yield from _strings(value)


def _rows(path: Path) -> Iterator[list[str]]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as lines:
        for line in lines:
            yield list(_strings(decode(line)))


def _action(mode: Mode, flagged: int, rows: int) -> Literal["none", "removed", "marked", "kept"]:
    if not flagged:
        return "none"
    if mode == "mark":
        return "marked"
    return "removed" if rows - flagged >= max(FEWEST, flagged) else "kept"


def _tell(contamination: Contamination, say: Callable[[str], None]) -> None:
    if contamination.flagged:
        say(f"contamination: {contamination.summary}: {contamination.done}")


def _list(found: Mapping[str, Sequence[Held]], listing: Path) -> None:
    with replacing(listing) as target:
        for name, holds in found.items():
            for held in holds:
                line = {"row": held.row + 1, "benchmark": name, "question": held.item, "how": held.how}
                target.write(json.dumps(line) + "\n")


def _key(fingerprint: str, benchmarks: Sequence[Benchmark], mode: Mode) -> str:
    """Hash of all that decides what is found and done."""
    parts = [RULES, FEWEST, fingerprint, mode, sorted(benchmark.fingerprint for benchmark in benchmarks)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
