"""The journal: one append-only JSONL file a study, fsynced line by line. Replaying it is resuming.

A stage is written down before it starts and when it ends, so a kill at any moment leaves a started stage without an
end: the next call records it as interrupted and runs it again inside the same trial. (The scheme is Optuna's
JournalFileBackend; only a torn last line is forgiven.)
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from agent.errors import MachineError, StudyError
from agent.records import (
    HOST_STAGES,
    REFLECT,
    STAGES,
    Checkpoint,
    Comparison,
    Confirmation,
    Contamination,
    Failure,
    Identity,
    MiniRun,
    Proposal,
    Scores,
    TrainingData,
    Trial,
    Usage,
)

FORMAT = 1
NOTHING = msgspec.Raw(b"null")
StageEnding = Literal["done", "failed", "stopped", "interrupted", "broken"]
ConfirmStage = Literal["train", "bench", "accept"]
CONFIRM_STAGES: tuple[ConfirmStage, ...] = ("train", "bench", "accept")
Record = TypeVar("Record", bound=msgspec.Struct)


class StudyOpened(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="study opened"):
    """The first line: what is being searched."""

    at: float
    format: int
    study: str
    identity: Identity


class CallStarted(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="call started"):
    """One run of the command line begins, with its budget."""

    at: float
    call: int
    pid: int
    runner: str
    proposer: str
    loop_n: int | None
    step_n: int | None
    timeout: float | None
    gpus: int = 0


class CallEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="call ended"):
    """It ended by itself (budget, Ctrl-C, an error); a killed call has no such line."""

    at: float
    call: int
    reason: str
    seconds: float


class StageStarted(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="stage started"):
    """A stage is about to run. Trial 0 is the base; `attempt` counts from 1."""

    at: float
    call: int
    trial: int
    stage: str
    attempt: int


class StageEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="stage ended"):
    """How it ended: with a result (done), a finding (failed), or to be run again (all others)."""

    at: float
    trial: int
    stage: str
    ending: StageEnding
    seconds: float
    result: msgspec.Raw = NOTHING
    failure: Failure | None = None
    usage: Usage | None = None


class TrialEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="trial ended"):
    """A trial is over; what it was stands in its stages."""

    at: float
    call: int
    trial: int
    lesson: str


class SealOpened(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="seal opened"):
    """The sealed test split is about to be scored for this trial's model and the base."""

    at: float
    trial: int


class OutputWritten(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="output written"):
    """The winner's weights were copied to where the user looks for them."""

    at: float
    trial: int
    path: str


class DataScanned(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="data scanned"):
    """The training data was searched for the benchmarks' questions; written where the finding is a new one."""

    at: float
    contamination: Contamination


class LlamaFactoryChosen(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="LLaMA-Factory chosen"):
    """What all trials of the study train with: a commit, or the installed version (None) for the reason in `why`.

    `arguments` is the SHA-256 of the study's file that holds the commit's arguments, `source` that of the file that
    holds its source (None where only its image was there).
    """

    at: float
    commit: str | None
    arguments: str | None
    why: str
    source: str | None = None


Event = (
    StudyOpened
    | CallStarted
    | CallEnded
    | StageStarted
    | StageEnded
    | TrialEnded
    | SealOpened
    | OutputWritten
    | DataScanned
    | LlamaFactoryChosen
)


def confirm_stage(index: int, stage: ConfirmStage) -> str:
    """The name of a stage in which the winner's recipe is trained again, from 1 on: "confirm-1-train"."""
    return f"confirm-{index}-{stage}"


@dataclass
class Call:
    """What one call asked for and how far it came."""

    number: int
    loop_n: int | None
    step_n: int | None
    gpus: int = 0
    trials: int = 0
    stages: int = 0
    ended: str | None = None


@dataclass
class State:
    """What the journal says, replayed."""

    study: str = ""
    identity: Identity | None = None
    calls: list[Call] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    stages: dict[tuple[int, str], StageEnded] = field(default_factory=dict)
    attempts: dict[tuple[int, str], int] = field(default_factory=dict)
    running: StageStarted | None = None
    openings: list[int] = field(default_factory=list)
    output: str | None = None
    published: int | None = None
    llama_factory: LlamaFactoryChosen | None = None
    best: int | None = None
    contamination: Contamination | None = None
    usage: Usage = field(default_factory=Usage)
    judging: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    _trial_seconds: dict[int, float] = field(default_factory=dict)

    def result(self, trial: int, stage: str, kind: type[Record]) -> Record | None:
        """The record that a completed stage left, or None."""
        ended = self.stages.get((trial, stage))
        if ended is None or ended.result == NOTHING:
            return None
        return msgspec.json.decode(ended.result, type=kind)

    def trial(self, number: int) -> Trial:
        """A finished trial by its number."""
        return self.trials[number - 1]

    def apply(self, event: Event) -> None:
        """Fold one event in; raises ValueError where it cannot follow what came before."""
        match event:
            case StudyOpened():
                self.study, self.identity = event.study, event.identity
            case CallStarted():
                self.calls.append(Call(event.call, event.loop_n, event.step_n, event.gpus))
            case CallEnded():
                self.calls[-1].ended = event.reason
            case StageStarted():
                key = (event.trial, event.stage)
                self.attempts[key] = event.attempt
                self.running = event
            case StageEnded():
                self._end_stage(event)
            case TrialEnded():
                self._end_trial(event)
            case SealOpened():
                if event.trial not in self.openings:
                    self.openings.append(event.trial)
            case OutputWritten():
                self.output, self.published = event.path, event.trial
            case DataScanned():
                self.contamination = event.contamination
            case LlamaFactoryChosen():
                self.llama_factory = event

    def _end_stage(self, event: StageEnded) -> None:
        self.running = None
        self.seconds += event.seconds
        if self.calls and event.stage not in HOST_STAGES:
            self.gpu_seconds += event.seconds * self.calls[-1].gpus
        self._trial_seconds[event.trial] = self._trial_seconds.get(event.trial, 0.0) + event.seconds
        if event.usage is not None and event.stage in ("propose", "data", REFLECT):
            self.usage = self.usage + event.usage
        elif event.usage is not None:
            self.judging = self.judging + event.usage
        if event.ending in ("done", "failed"):
            self.stages[(event.trial, event.stage)] = event
            if event.trial > 0 and event.stage in STAGES and self.calls:
                self.calls[-1].stages += 1

    def _end_trial(self, event: TrialEnded) -> None:
        number = event.trial
        if number != len(self.trials) + 1:
            raise ValueError(f"trial {number} ended after trial {len(self.trials)}")
        trial = self.assemble(number, event.lesson)
        self.trials.append(trial)
        if trial.verdict == "better":
            self.best = number
        if self.calls:
            self.calls[-1].trials += 1

    def assemble(self, number: int, lesson: str) -> Trial:
        """A trial's record from what its stages left; ValueError where they do not make one."""
        scores = self.result(number, "bench", Scores)
        failures = [ended.failure for stage in STAGES if (ended := self.stages.get((number, stage))) and ended.failure]
        return Trial(
            number=number,
            proposal=self.result(number, "propose", Proposal),
            data=self.result(number, "data", TrainingData),
            checkpoint=self.result(number, "train", Checkpoint),
            scores=scores.scores if scores else (),
            comparison=self.result(number, "accept", Comparison),
            failure=failures[-1] if failures else None,
            lesson=lesson,
            seconds=self._trial_seconds.get(number, 0.0),
        )

    def confirmations(self) -> tuple[Confirmation, ...]:
        """The winner's trainings from other seeds that are over, in the order of their seeds."""
        if self.best is None or (proposal := self.trial(self.best).proposal) is None:
            return ()
        found, index = [], 0
        while (self.best, confirm_stage(index := index + 1, "train")) in self.attempts:
            ended = [self.stages.get((self.best, confirm_stage(index, stage))) for stage in CONFIRM_STAGES]
            failure = next((stage.failure for stage in ended if stage and stage.failure), None)
            if failure is None and ended[-1] is None:
                continue  # interrupted, and not gone on with yet
            scores = self.result(self.best, confirm_stage(index, "bench"), Scores)
            found.append(
                Confirmation(
                    seed=proposal.recipe.seed + index,
                    scores=scores.scores if scores else (),
                    comparison=self.result(self.best, confirm_stage(index, "accept"), Comparison),
                    failure=failure,
                )
            )
        return tuple(found)

    @property
    def begun(self) -> bool:
        """Whether a trial was ever begun."""
        return any(trial > 0 for trial, _ in self.attempts)

    def mini_runs(self) -> list[tuple[int, MiniRun]]:
        """The successful mini-runs so far, by trial number."""
        done = ((trial, self.result(trial, stage, MiniRun)) for trial, stage in self.stages if stage == "mini-run")
        return [(trial, run) for trial, run in done if run is not None]


class Journal:
    """The file and its replayed state, kept together.

    Args:
        path: The JSONL file; created on the first append.
        clock: Seconds since the epoch.

    Raises:
        StudyError: A line that is not the last cannot be read; names file and line.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.state = State()
        self.torn = False
        self._clock = clock
        self._encoder = msgspec.json.Encoder()
        self._good_bytes = 0
        if path.exists():
            self._replay(path.read_bytes())
        self._file: int | None = None

    def now(self) -> float:
        """Seconds since the epoch, for an event's `at`."""
        return self._clock()

    def append(self, event: Event) -> None:
        """Write one event and wait until it is on the disk; MachineError, and nothing half-written, if it cannot be."""
        line = self._encoder.encode(event) + b"\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self._good_bytes)
            os.pwrite(self._file, line, self._good_bytes)
            if os.fstat(self._file).st_size != self._good_bytes + len(line):
                os.ftruncate(self._file, self._good_bytes)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            raise MachineError(
                f"{self.path} cannot be written: {error.strerror}",
                "make room on that disk and run the same command again: what was finished is kept",
            ) from error
        self._good_bytes += len(line)
        self.state.apply(event)

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _replay(self, data: bytes) -> None:
        for number, line, is_last in _lines(data):
            try:
                self.state.apply(_DECODER.decode(line))
            except (msgspec.MsgspecError, ValueError, IndexError) as error:
                if is_last and not data.endswith(b"\n"):
                    self.torn = True  # the machine stopped in the middle of this write: the event never happened
                    return
                raise StudyError(
                    f"{self.path}, line {number}: this line of the journal cannot be read ({error})",
                    "restore the file from a backup, or cut it before that line: what follows it would be lost",
                ) from None
            if is_last and not data.endswith(b"\n"):
                self.torn = True  # whole, but its newline is missing: rewritten rather than trusted
                self.state, self._good_bytes = State(), 0
                self._replay(data[: data.rfind(b"\n") + 1])
                return
            self._good_bytes += len(line) + 1


_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line, number == len(lines)


def encode(record: msgspec.Struct) -> msgspec.Raw:
    """A record as it stands in a stage's `result`."""
    return msgspec.Raw(msgspec.json.encode(record))


def events(path: Path) -> Iterable[dict[str, Any]]:
    """The journal's lines as plain objects, for people and tests."""
    return [msgspec.json.decode(line) for _, line, _ in _lines(path.read_bytes())]
