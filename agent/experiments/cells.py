"""The directory of one trained experiment: experiment_config.yaml, status.json, metrics.json, the logs, the weights.

experiment_config.yaml is written first and never again, and is the authority on what the experiment is: a directory
that is renamed or moved by hand stays what it was. Nothing that exists is ever written over; a time that is taken
gets `_2`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from agent.errors import UsageError
from agent.records import Checkpoint, Score, Value
from agent.run import owner
from scenarios.finetune.files import replacing, sync

CONFIG, STATUS, METRICS = "experiment_config.yaml", "status.json", "metrics.json"
Record = TypeVar("Record", bound=msgspec.Struct)
State = Literal["running", "done", "failed", "stopped", "broken"]
_LARGEST = 1 << 22
_DEEPEST = 8
"""Directories between a results' root and an experiment: purpose, model (2), name, time, and some for people."""


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was trained on, and what it held then."""

    path: str
    sha256: str
    bytes: int


class DataUsed(msgspec.Struct, frozen=True, kw_only=True):
    """What was trained on.

    Attributes:
        path: As the user wrote it. location: Where that was, absolute.
        fingerprint: sha256 over the files' content and the column map. rows: that were trained on.
        metadata: The experiment_metadata.json above the data; empty where there is none.
    """

    path: str = ""
    type: str = ""
    location: str = ""
    fingerprint: str = ""
    rows: int = 0
    columns: dict[str, str] = {}
    files: tuple[DataFile, ...] = ()
    metadata: str = ""


class TrainingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The program that trained. `env_vars` are those that ftloop set; nothing secret is among them."""

    env_vars: dict[str, str] = {}
    command: str = ""
    out_file: str = ""
    err_file: str = ""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in experiment_config.yaml; only the first five are sure to be there.

    Attributes:
        timestamp: When it began, as in its directory's name. name: As its directory was called.
        hyperparameters: Scalars, under the names of training_config.yaml.
        weights: Hash of the base model. sweep: Id of the sweep that it belongs to. cell: Its number there.
    """

    timestamp: str
    experiment_purpose: str
    model: str
    task: str
    method: str
    data: DataUsed = DataUsed()
    hyperparameters: dict[str, Value] = {}
    training_info: TrainingInfo = TrainingInfo()
    description: str = ""
    name: str = ""
    weights: str = ""
    sweep: str = ""
    cell: int = 0
    ftloop: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How far an experiment is. `owner` names the process (agent/run/owner.py); `failure` is its kind and reason."""

    state: State
    started: float
    owner: str = ""
    ended: float | None = None
    failure: str = ""

    @property
    def now(self) -> str:
        """The state; "killed" where it says that it runs and the process is gone."""
        return "killed" if self.state == "running" and owner.is_dead(self.owner) else self.state


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a training gave: `train_loss` is the last one logged; scores where it was evaluated."""

    checkpoint: Checkpoint
    train_loss: float | None = None
    scores: tuple[Score, ...] = ()


def claim(parent: Path, stamp: str) -> Path:
    """A new directory below `parent`, named by the time; with `_2`, `_3`, ... where that is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        sync(parent)
        return path
    raise AssertionError("a count has no end")


def write(directory: Path, experiment: Experiment) -> None:
    """Write experiment_config.yaml, whole or not at all."""
    with replacing(directory / CONFIG) as file:
        file.write(msgspec.yaml.encode(experiment).decode())


def begin(directory: Path) -> Status:
    """Record that this process works on it."""
    status = Status(state="running", started=time.time(), owner=owner.this_process())
    _put(directory / STATUS, status)
    return status


def end(directory: Path, status: Status, state: State, failure: str = "") -> None:
    """Record how it ended."""
    _put(directory / STATUS, msgspec.structs.replace(status, state=state, ended=time.time(), failure=failure))


def write_metrics(directory: Path, metrics: Metrics) -> None:
    """Write metrics.json."""
    _put(directory / METRICS, metrics)


def read(directory: Path) -> Experiment:
    """What an experiment_config.yaml says, ours or another tool's; UsageError where it cannot be read."""
    file = directory / CONFIG
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MB")
        return msgspec.yaml.decode(file.read_bytes(), type=Experiment)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's and UnicodeDecodeError are ValueErrors
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} cannot be read: {reason}", "restore it; nothing else says what was trained") from None


def status(directory: Path) -> Status | None:
    """How far it is; None where nothing was recorded."""
    return _get(directory / STATUS, Status)


def metrics(directory: Path) -> Metrics | None:
    """What it gave; None where it gave nothing yet."""
    return _get(directory / METRICS, Metrics)


def find(root: Path) -> Iterator[Path]:
    """The directories below `root` that hold an experiment_config.yaml, in the order of their names.

    Hidden directories are left out, and nothing is looked for inside an experiment.
    """
    yield from _below(root, _DEEPEST)


def _below(directory: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    if any(entry.name == CONFIG and entry.is_file() for entry in entries):
        yield directory
        return
    for entry in entries if depth else ():
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), depth - 1)


def _put(path: Path, record: msgspec.Struct) -> None:
    with replacing(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n")


def _get(path: Path, kind: type[Record]) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
