"""Where things lie: the workspace under FT_FILE_PATH, the directory of a study, and the one index that knows all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import MachineError, StudyError
from agent.records import Identity


def identity_hash(identity: Identity) -> str:
    """What equal studies share: fingerprints, benchmarks and settings, however data and model were named."""
    parts = (
        identity.dataset_fingerprint,
        identity.model_fingerprint,
        identity.benchmarks,
        identity.limit,
        identity.generation,
    )
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:10]


def study_id(identity: Identity) -> str:
    """A name that a person recognises: `reverse-tiny-1f2e3d4c5b`."""
    words = [re.sub(r"[^a-z0-9]+", "-", Path(name).name.lower()) for name in (identity.dataset, identity.model)]
    return "-".join([*filter(None, (word.strip("-")[:24].strip("-") for word in words)), identity_hash(identity)])


@dataclass(frozen=True)
class StudyPaths:
    """Every path of one study."""

    root: Path

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.root / "journal.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the study."""
        return self.root / "study.lock"

    @property
    def data(self) -> Path:
        """The training data as LLaMA-Factory reads it, with its dataset_info.json."""
        return self.root / "data"

    @property
    def contamination(self) -> Path:
        """Which rows of the data hold which benchmark questions; outside of `data`, which jobs see."""
        return self.root / "contamination.jsonl"

    @property
    def work(self) -> Path:
        """What trials that prepare their own data share: rows, results of scripts, answers of models."""
        return self.root / "data-work"

    @property
    def templates(self) -> Path:
        """How training and evaluation render the same prompts, and the logs of the jobs that did."""
        return self.root / "templates"

    @property
    def arguments(self) -> Path:
        """The arguments of the study's LLaMA-Factory, where that is not the installed one."""
        return self.root / "arguments.json"

    @property
    def llama_factory(self) -> Path:
        """The source of the study's LLaMA-Factory, from which its image can be built again without a network."""
        return self.root / "llama-factory.tar"

    @property
    def transcript(self) -> Path:
        """What was said to the language model and what it answered."""
        return self.root / "transcript.jsonl"

    def trial(self, number: int) -> Path:
        """A trial's directory; number 0 is the base."""
        return self.root / ("base" if number == 0 else f"trials/{number:04d}")

    def stage(self, number: int, stage: str) -> Path:
        """A stage's directory."""
        return self.trial(number) / stage

    def weights(self, number: int, stage: str) -> Path:
        """Where a stage that trains leaves its weights."""
        return self.stage(number, stage) / "model"


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One study, single run or sweep's cell, wherever its files lie."""

    id: str
    kind: Literal["study", "run", "cell"]
    path: str
    created: float
    dataset: str
    model: str
    benchmarks: tuple[str, ...]


@dataclass(frozen=True)
class Workspace:
    """The directory that FT_FILE_PATH names."""

    root: Path

    @property
    def scores(self) -> Path:
        """Scores by the content that they depend on, shared by all studies."""
        return self.root / "scores"

    @property
    def index_file(self) -> Path:
        """The index of all studies and runs."""
        return self.root / "index.jsonl"

    def study(self, identity: Identity) -> StudyPaths:
        """The paths of a study: those that it has already, whatever its data and model were called then."""
        studies = self.root / "studies"
        known = sorted(studies.glob(f"*-{identity_hash(identity)}"))
        return StudyPaths(known[0] if known else studies / study_id(identity))

    def output(self, name: str) -> Path:
        """Where a study's winner is put."""
        return self.root / "output" / name

    def index(self) -> list[IndexEntry]:
        """All entries, oldest first, the last entry of an id winning; lines that a crash tore are skipped."""
        if not self.index_file.exists():
            return []
        entries: dict[str, IndexEntry] = {}
        for line in self.index_file.read_bytes().splitlines():
            try:
                entry = msgspec.json.decode(line, type=IndexEntry)
            except msgspec.MsgspecError:
                continue  # rebuilt by the next call of that study; the studies themselves hold the truth
            entries[entry.id] = entry
        return list(entries.values())

    def enter(self, entry: IndexEntry) -> None:
        """Add an entry unless it is there."""
        if any(known.id == entry.id and known.path == entry.path for known in self.index()):
            return
        with self.index_file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                file.write(b"\n")  # a crash tore the last line: it must not take this one along
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(paths: StudyPaths) -> Iterator[None]:
    """Hold a study for this process; StudyError where another process holds it."""
    paths.root.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StudyError(
                f"the study {paths.root.name} is being worked on by process {file.read().strip() or '?'}",
                "wait for it, or stop it with Ctrl-C; `ftloop report` shows how far it is",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(paths: StudyPaths) -> str | None:
    """The process that works on a study just now; None where none does."""
    if not paths.lock.exists():
        return None
    with paths.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "?"
    return None


def require_disk(path: Path, bytes_needed: int, purpose: str) -> None:
    """MachineError where less is free than a step is about to write."""
    free = shutil.disk_usage(path).free
    if free < bytes_needed:
        raise MachineError(
            f"{path}: {free / 1e9:.1f} GB are free, {purpose} may need {bytes_needed / 1e9:.1f} GB",
            "free some space there, or point FT_FILE_PATH at a larger disk",
        )


def empty_directory(path: Path) -> Path:
    """Make `path` an existing, empty directory that survives a power cut together with its parent."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    for directory in (path.parent, path.parent.parent):
        handle = os.open(directory, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return path


def replace_directory(draft: Path, target: Path) -> None:
    """Put a finished directory in the place of another one, so that a kill leaves the old, the new, or neither."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def new_entry(study: str, identity: Identity, path: Path) -> IndexEntry:
    """The index entry of a study."""
    return IndexEntry(
        id=study,
        kind="study",
        path=str(path),
        created=time.time(),
        dataset=identity.dataset,
        model=identity.model,
        benchmarks=identity.benchmarks,
    )
