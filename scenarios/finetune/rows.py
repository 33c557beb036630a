"""Reads rows from JSON, JSON Lines, CSV and Parquet files; JSON arrays are held in memory, the others are streamed."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from agent.errors import UsageError

Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz")
LONGEST_CELL = 2**31 - 1


def suffix(path: Path) -> str:
    """The suffix that says the format, lower case: ".jsonl.gz" where the file is compressed."""
    suffixes = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    return "".join(suffixes).lower()


def read(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of one file in order; only `columns` where the format allows to skip the others.

    Raises:
        UsageError: The file is not what its name says; the message names file and line.
    """
    kind = suffix(path).removesuffix(".gz")
    if kind == ".parquet":
        yield from _parquet(path, columns)
        return
    try:
        with _open(path) as source:
            if kind == ".json":
                yield from _json(path, source)
            elif kind in (".csv", ".tsv"):
                yield from _csv(path, source, "\t" if kind == ".tsv" else ",")
            else:
                yield from _json_lines(path, source)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason})", "convert the file to UTF-8") from error
    except PermissionError as error:
        raise UsageError(f"{path}: may not be read", "give the file to the user who runs this") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise UsageError(f"{path}: not a complete gzip file ({error})", "fetch the file again") from error


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path, source: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON ({error})", "one JSON object a line") from error
        yield _object(row, f"{path}, line {number}")


def _json(path: Path, source: IO[str]) -> Iterator[Row]:
    """An array of objects, an object with one such array in it, or JSON Lines under the name of .json."""
    text = source.read()
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _json_lines(path, io.StringIO(text))
            return
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{path}{where}: not JSON ({error})", "an array of objects, or one object a line") from error
    if isinstance(value, dict):
        tables = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
        value = tables[0] if len(tables) == 1 and not {"messages", "conversations"} & value.keys() else [value]
    if not isinstance(value, list):
        raise UsageError(f"{path}: holds a single value, no rows", "an array of objects, or one object a line")
    for number, row in enumerate(value, 1):
        yield _object(row, f"{path}, row {number}")


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: wanted a JSON object, found {type(row).__name__}", "one object a row, with columns")
    return row


def _csv(path: Path, source: IO[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)  # the module's own limit of 128 KiB is smaller than a long document
    reader = csv.DictReader(source, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise UsageError(
                    f"{path}, line {reader.line_num}: more cells than columns", "quote cells that hold a delimiter"
                )
            yield dict(row)
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not CSV ({error})", "quote cells as in RFC 4180") from error


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            known = set(file.schema_arrow.names)
            wanted = [column for column in columns if column in known] if columns else None
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not Parquet ({str(error).splitlines()[0]})", "fetch the file again") from error
