"""Where training data came from: its files' hashes, and the record of how it was made that lies above it."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from agent.experiments.cells import DataFile, DataUsed
from scenarios.finetune import data

METADATA = "experiment_metadata.json"
_HIGHEST = 4


def version() -> str:
    """Of ftloop; empty where it is not installed."""
    try:
        return installed("ftloop")
    except PackageNotFoundError:
        return ""


def data_used(named: str, kind: str, where: Path, dataset: data.Dataset) -> DataUsed:
    """The record of the data: every file with its hash.

    Args:
        named: As the user wrote the path. kind: What names call it. where: Where that is.
    """
    found = metadata(where)
    return DataUsed(
        path=named,
        type=kind,
        location=str(where.resolve()),
        fingerprint=data.fingerprint_of(dataset),
        columns=dataset.columns,
        files=tuple(map(hashed, map(Path, dataset.files))),
        metadata=str(found) if found else "",
    )


def hashed(file: Path) -> DataFile:
    """A file as it is now."""
    with file.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return DataFile(path=str(file.resolve()), sha256=digest, bytes=file.stat().st_size)


def metadata(where: Path) -> Path | None:
    """The nearest experiment_metadata.json at or above some data; None where there is none."""
    start = where.resolve()
    for directory in [start, *start.parents][: _HIGHEST + 1]:
        if (file := directory / METADATA).is_file():
            return file
    return None
