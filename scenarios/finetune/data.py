"""Training data: finds the train split's files, recognises their columns, and writes what LLaMA-Factory reads.

Whatever the data looked like, a training gets one canonical JSON Lines file that holds only the mapped columns, as
strings, and a `dataset_info.json` that names no other file, hub or script. Nothing in the data can reach further.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import UsageError
from agent.records import Contamination
from scenarios.finetune import preferences
from scenarios.finetune.conversations import messages, text
from scenarios.finetune.data_files import choose
from scenarios.finetune.files import replacing
from scenarios.finetune.rows import SUFFIXES, Row, read, suffix

ROLES = ("prompt", "query", "response", "system", "messages", "chosen", "rejected", "label")
FORMATS: tuple[tuple[str, dict[str, str]], ...] = (  # after preferences; the first whose columns hold something wins
    ("chat", {"messages": "messages"}),
    ("sharegpt", {"messages": "conversations"}),
    ("sharegpt", {"messages": "conversation"}),
    ("alpaca", {"prompt": "instruction", "query": "input", "response": "output"}),
    ("dolly", {"prompt": "instruction", "query": "context", "response": "response"}),
    ("prompt/completion", {"prompt": "prompt", "response": "completion"}),
    ("prompt/response", {"prompt": "prompt", "response": "response"}),
    ("question/answer", {"prompt": "question", "response": "answer"}),
    ("question/response", {"prompt": "question", "response": "response"}),
    ("problem/solution", {"prompt": "problem", "response": "solution"}),
    ("problem/answer", {"prompt": "problem", "response": "answer"}),
    ("query/response", {"prompt": "query", "response": "response"}),
    ("input/output", {"prompt": "input", "response": "output"}),
)
DONE = "prepared.json"  # written last
SUPERVISED = "supervised"
"""Name of the data set with the better answers alone, beside one of preferences."""
SAMPLED = 50
LONGEST = 64


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Which files to train on, and what their columns mean.

    Attributes:
        root: The file or directory that was named. files: The chosen ones, sorted.
        format: Name of the recognised layout, or "columns" for an explicit map.
        columns: Role -> column.
        left_out: What was not chosen and why, one line each, for people.
    """

    root: str
    files: tuple[str, ...]
    format: str
    columns: dict[str, str]
    left_out: tuple[str, ...] = ()


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Data as LLaMA-Factory reads it: `name` in the `dataset_info.json` of `directory`.

    Attributes:
        rows: Rows written. dropped: Rows left out because prompt or response was empty or no text.
        fingerprint: sha256 of the chosen files' content and the column map; no path or time is in it.
        format: As recognised. left_out: Files that were not used, and why. bytes: Of what was written; 0 if unknown.
        contamination: What was found of the benchmarks' questions, once that was looked for (contamination.py).
        stages: LLaMA-Factory's training stages that such data can be trained in.
        supervised: Rows of the data set that stage sft trains on, where that is another one; else 0.
    """

    directory: str
    name: str
    rows: int
    dropped: int
    fingerprint: str
    format: str
    left_out: tuple[str, ...] = ()
    contamination: Contamination | None = None
    bytes: int = 0
    stages: tuple[str, ...] = ("sft",)
    supervised: int = 0

    def dataset(self, stage: str) -> tuple[str, int]:
        """Name and number of rows of the data set that a stage trains on."""
        return (SUPERVISED, self.supervised) if stage == "sft" and self.supervised else (self.name, self.rows)

    @property
    def longest(self) -> Path:
        """The longest rows, longest first: a mini-run on them needs as much memory as any step can."""
        return Path(self.directory) / "longest.jsonl"


def recognise(path: Path, columns: Mapping[str, str] | None = None) -> Dataset:
    """Choose the training files below `path` and recognise their columns.

    Args:
        path: A JSON, JSON Lines, CSV or Parquet file, or a directory of them (a hub snapshot, say).
        columns: Role -> column, instead of recognising: "prompt" and "response", or "messages", or "chosen" and
            "rejected", or one of the first two and "label"; "query", "system".

    Raises:
        UsageError: Nothing usable is there; the message names what was found.
    """
    if not path.exists():
        raise UsageError(f"data set {path} does not exist", "give a file or directory, or a data set's name on the hub")
    files, left_out = ([path], []) if path.is_file() else choose(path)
    if path.is_file() and suffix(path) not in SUFFIXES:
        raise UsageError(f"{path} is not a data file", f"supported: {', '.join(SUFFIXES)}")
    sample = list(islice(read(files[0]), SAMPLED))
    if not sample:
        raise UsageError(f"{files[0]} holds no rows", "a data set needs at least one row")
    form, mapped = _explicit(sample, columns, files[0]) if columns else layout(sample, str(files[0]))
    return Dataset(root=str(path), files=tuple(map(str, files)), format=form, columns=mapped, left_out=tuple(left_out))


def fingerprint(path: Path, columns: Mapping[str, str] | None = None) -> str:
    """sha256 of the content that would be trained on: the chosen files, in order, and the column map."""
    return fingerprint_of(recognise(path, columns))


def fingerprint_of(dataset: Dataset) -> str:
    """The same of files that were chosen already."""
    return _fingerprint(dataset)


def usable(dataset: Dataset) -> tuple[int, int]:
    """Rows that `write` would write, and those that it would leave out; reads all of them, and raises as it does."""
    rows = dropped = 0
    for canonical in _canonical_rows(dataset):
        rows, dropped = (rows, dropped + 1) if canonical is None else (rows + 1, dropped)
    if not rows:
        raise _no_usable_row(dataset, dropped)
    return rows, dropped


def write(dataset: Dataset, directory: Path, *, again: bool = False) -> Prepared:
    """Write the canonical data set; one that is already there, of the same content, is kept, unless `again`.

    Raises:
        UsageError: A file cannot be read, or no row is usable.
    """
    digest = _fingerprint(dataset)
    if (kept := _kept(directory)) is not None and kept.fingerprint == digest and not again:
        return kept
    directory.mkdir(parents=True, exist_ok=True)
    dropped = 0

    def lines() -> Iterator[str]:
        nonlocal dropped
        for canonical in _canonical_rows(dataset):
            if canonical is None:
                dropped += 1
            else:
                yield json.dumps(canonical, ensure_ascii=False)

    rows = _write_rows(directory, "train", lines())
    if not rows:
        raise _no_usable_row(dataset, dropped)
    with replacing(directory / "dataset_info.json") as target:
        target.write(json.dumps(info(dataset.columns), indent=2) + "\n")
    prepared = Prepared(
        directory=str(directory),
        name="train",
        rows=rows,
        dropped=dropped,
        fingerprint=digest,
        format=dataset.format,
        left_out=dataset.left_out,
        bytes=(directory / "train.jsonl").stat().st_size,
        stages=preferences.stages(dataset.columns),
    )
    return _done(_with_supervised(prepared) if preferences.kind(dataset.columns) else prepared)


def without(prepared: Prepared, rows: Set[int], contamination: Contamination) -> Prepared:
    """Take some rows (from 0) out of a written data set, and record why."""
    left = prepared.rows
    if rows:
        directory = Path(prepared.directory)
        with (directory / f"{prepared.name}.jsonl").open(encoding="utf-8") as source:
            kept = (line.rstrip("\n") for number, line in enumerate(source) if number not in rows)
            left = _write_rows(directory, prepared.name, kept)
    size = (Path(prepared.directory) / f"{prepared.name}.jsonl").stat().st_size
    found = msgspec.structs.replace(prepared, rows=left, bytes=size, contamination=contamination)
    return _done(_with_supervised(found) if rows and found.supervised else found)


def _with_supervised(prepared: Prepared) -> Prepared:
    """Write the better answers beside data of preferences, and leave out the stages for which one kind is missing.

    Raises:
        UsageError: Every answer is labelled as a bad one.
    """
    directory = Path(prepared.directory)
    found = 0
    file = directory / f"{prepared.name}.jsonl"
    with file.open(encoding="utf-8") as source, replacing(directory / f"{SUPERVISED}.jsonl") as target:
        for row in filter(preferences.good, map(json.loads, source)):
            target.write(json.dumps(preferences.supervised(row), ensure_ascii=False) + "\n")
            found += 1
    if not found:
        raise UsageError(
            f"{directory}: every answer is labelled false, and there is none to learn", "label good answers true"
        )
    one_kind = "kto" in prepared.stages and found == prepared.rows
    stages = ("sft",) if one_kind else prepared.stages
    return msgspec.structs.replace(prepared, stages=stages, supervised=found)


def _write_rows(directory: Path, name: str, lines: Iterable[str]) -> int:
    """Write the rows and, beside them, the longest ones; returns how many there are."""
    rows = 0
    longest: list[tuple[int, int, str]] = []
    (directory / DONE).unlink(missing_ok=True)  # from here on, what it says is not what lies beside it
    with replacing(directory / f"{name}.jsonl") as target:
        for line in lines:
            target.write(line + "\n")
            entry = (preferences.sequence_length(line), -rows, line)
            heapq.heappush(longest, entry) if len(longest) < LONGEST else heapq.heappushpop(longest, entry)
            rows += 1
    with replacing(directory / "longest.jsonl") as target:
        target.writelines(f"{line}\n" for _, _, line in sorted(longest, reverse=True))
    return rows


def _done(prepared: Prepared) -> Prepared:
    """Record that all of it is written."""
    with replacing(Path(prepared.directory) / DONE) as target:
        target.write(msgspec.json.encode(prepared).decode())
    return prepared


def load(directory: Path) -> Prepared | None:
    """What `write` left in a directory; None where it is not all there."""
    return _kept(directory)


def _kept(directory: Path) -> Prepared | None:
    """What was written here before; None where it is not all there, or cannot be read."""
    try:
        kept = msgspec.json.decode((directory / DONE).read_bytes(), type=Prepared)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    kept = msgspec.structs.replace(kept, directory=str(directory))
    files = [directory / "train.jsonl", directory / "dataset_info.json", kept.longest]
    files += [directory / f"{SUPERVISED}.jsonl"] if kept.supervised else []
    return kept if all(file.exists() for file in files) else None


def info(columns: Mapping[str, str], name: str = "train") -> dict[str, Any]:
    """LLaMA-Factory's `dataset_info.json` for a canonical file `<name>.jsonl` with these roles.

    Preferences have a second data set beside them, `SUPERVISED`.
    """
    if found := preferences.kind(columns):
        extra: dict[str, Any] = {"columns": {"messages": "messages", "kto_tag": "label"}}
        if found == preferences.PAIRS:
            extra = {"ranking": True, "columns": {role: role for role in ("messages", "chosen", "rejected")}}
        return {name: _talks(name) | extra, SUPERVISED: _talks(SUPERVISED)}
    if "messages" in columns:
        return {name: _talks(name)}
    mapped = {role: role for role in ROLES if role in columns}
    return {name: {"file_name": f"{name}.jsonl", "formatting": "alpaca", "columns": mapped}}


def _talks(name: str) -> dict[str, Any]:
    """The entry of conversations."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags["system_tag"] = "system"
    columns = {"messages": "messages"}
    return {"file_name": f"{name}.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}


def _explicit(sample: Sequence[Row], columns: Mapping[str, str], file: Path) -> tuple[str, dict[str, str]]:
    mapped = {role: columns[role] for role in ROLES if columns.get(role)}
    if unknown := set(columns) - set(ROLES):
        raise UsageError(f"--columns: {', '.join(sorted(unknown))} is no role", f"roles: {', '.join(ROLES)}")
    enough: tuple[set[str], ...] = ({"messages"}, {"prompt", "response"}, {"chosen", "rejected"})
    if not any(needed <= mapped.keys() for needed in enough):
        raise UsageError("--columns needs prompt and response, or messages", "--columns prompt=...,response=...")
    found = _columns(sample)
    if missing := [column for column in mapped.values() if column not in found]:
        raise UsageError(f"{file} has no column {', '.join(missing)}", f"columns found: {', '.join(found)}")
    return "columns", mapped


def layout(sample: Sequence[Row], where: str) -> tuple[str, dict[str, str]]:
    """The name of the layout that some rows have, and role -> column; UsageError where none is known."""
    found = _columns(sample)
    names = {column.lower(): column for column in reversed(found)}

    def usable(role: str, column: str) -> bool:
        cells = [row.get(names[column]) for row in sample] if column in names else []
        return any((messages(cell) if role == "messages" else text(cell).strip()) for cell in cells)

    if preferred := preferences.layout(sample, names):
        return preferred
    if {"chosen", "rejected"} <= names.keys():
        raise UsageError(
            f"{where}: chosen and rejected need a prompt beside them, found {', '.join(found)}",
            f"one of {', '.join(preferences.PROMPTS)}, a conversation in messages, or whole conversations in both",
        )
    for form, roles in FORMATS:
        if all(usable(role, column) for role, column in roles.items() if role != "query"):
            mapped = {role: names[column] for role, column in roles.items() if column in names}
            return form, mapped | ({"system": names["system"]} if usable("system", "system") else {})
    raise UsageError(
        f"{where}: no usable columns among {', '.join(found) or 'none'}",
        "name them with --columns prompt=...,response=... (or messages=... for conversations)",
    )


def _columns(sample: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(column) for row in sample for column in row))


def canonical(row: Row, columns: Mapping[str, str]) -> dict[str, Any] | None:
    """A row with its roles as keys; None for one that cannot be trained on.

    Args:
        row: As read. columns: Role -> column, as `recognise` found them.
    """
    if preferences.kind(columns):
        return preferences.canonical(row, columns)
    if "messages" in columns:
        system = text(row.get(columns["system"])) if "system" in columns else ""
        turns = messages(row.get(columns["messages"]), system)
        return {"messages": turns} if turns else None
    cells = {role: text(row.get(columns[role])) for role in ROLES if role in columns}
    return cells if cells["prompt"].strip() and cells["response"].strip() else None


def _canonical_rows(dataset: Dataset) -> Iterator[dict[str, Any] | None]:
    for file in dataset.files:
        for row in read(Path(file), tuple(dataset.columns.values())):
            yield canonical(row, dataset.columns)


def _no_usable_row(dataset: Dataset, dropped: int) -> UsageError:
    return UsageError(
        f"{dataset.root}: all {dropped} rows have an empty prompt or response, or no text in them",
        f"columns used: {as_option(dataset.columns)}; name others with --columns prompt=...,response=...",
    )


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256(json.dumps(dataset.columns, sort_keys=True).encode())
    for file in dataset.files:
        with Path(file).open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def as_option(columns: Mapping[str, str]) -> str:
    """The column map as --columns takes it."""
    return ",".join(f"{role}={column}" for role, column in columns.items())
