"""Keeps the benchmarks' questions out of the training data: scans it once a study, before anything is trained.

What counts as holding a question stands in `overlap.py`. Both halves of every benchmark are looked for. The outcome is
in `Prepared.contamination`, in the journal and in the report, and which row holds which question in a file of the
study's directory, outside of what jobs and proposers see.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from agent.errors import UsageError
from agent.records import Contamination
from scenarios.finetune import data
from scenarios.finetune.asked import strings, texts
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data import Dataset, Prepared
from scenarios.finetune.files import replacing
from scenarios.finetune.splits import Item

if TYPE_CHECKING:
    from scenarios.finetune.overlap import Held, Index

Mode = Literal["remove", "refuse", "mark"]

FEWEST = 10
"""Rows that must be left, and at least half of them: otherwise the data set is the benchmark, and is left whole."""
LEFT_OUT = "(left out)"
"""Stands for a line that holds a question."""
RULES = 2
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


def without_questions(text: str, benchmarks: Sequence[Benchmark]) -> str:
    """A text for a proposer without the lines that hold questions of the benchmarks, as JSON or as they are."""
    from scenarios.finetune.overlap import find

    indexes = [index(benchmark) for benchmark in benchmarks]

    def held(rows: Sequence[str]) -> set[int]:
        return {one.row for found in find([[_unescaped(row)] for row in rows], indexes) for one in found}

    lines = text.splitlines()
    found = held(lines)
    kept = [LEFT_OUT if number in found else line for number, line in enumerate(lines)]
    if held(["\n".join(kept)]):  # spread over several lines
        kept = [*kept[:1], LEFT_OUT]
    return "\n".join(kept)


def index(benchmark: Benchmark, items: Sequence[Item] | None = None) -> Index:
    """What a benchmark's questions and their solutions are recognised by: of both halves, or these items'."""
    from scenarios.finetune.overlap import Index, Known

    items = (*benchmark.halves.search, *benchmark.halves.test) if items is None else items
    return Index(
        [
            Known(item.id, text, "question" if asks else "solution")
            for item in items
            for asks, text in texts(item.row)
            if text.strip()
        ]
    )


def held_rows(contamination: Contamination | None, listing: Path) -> frozenset[int] | None:
    """The numbers (from 1) of the rows that are trained on although they hold questions of a benchmark.

    Args:
        listing: What `prepare` wrote.

    Returns:
        No number where there is no such row; None where there are, and nothing says which.
    """
    if contamination is None or contamination.action in ("none", "removed"):
        return frozenset()
    try:
        held = frozenset(json.loads(line)["row"] for line in listing.read_text("utf-8").splitlines())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return held if len(held) == contamination.flagged else None


def _rows(path: Path) -> Iterator[list[str]]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as lines:
        for line in lines:
            yield list(strings(decode(line)))


def _unescaped(text: str) -> str:
    """A text in which JSON escapes are what they stand for."""
    text = re.sub(r"\\[nrt]", " ", text)
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)


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
