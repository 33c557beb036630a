"""What the stages of a trial leave behind: why it failed, its data, its mini-run, its weights."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.records.recipes import Value

Stage = Literal["propose", "check", "data", "mini-run", "train", "bench", "accept"]
STAGES: tuple[Stage, ...] = ("propose", "check", "data", "mini-run", "train", "bench", "accept")
REFLECT = "reflect"
"""The stage after a trial's last one, in which its lesson is written; no part of what the trial has to show."""
HOST_STAGES = ("propose", "check", "data", "accept", REFLECT)
"""Stages that use no GPU: they have no job, or one that is given none."""
FailureKind = Literal[
    "proposal", "check", "data", "mini-run", "train:oom", "train:timeout", "train:exit", "bench", "judge"
]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a trial ended without a score."""

    kind: FailureKind
    reason: str
    tail: str = ""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe that passed every check that needs no job; `changed` names what differs from the defaults."""

    changed: tuple[str, ...] = ()


class TrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe's data work gave.

    Attributes:
        path: The directory that holds it as the trainer reads it. rows: How many.
        script: The script that made it, mended where it had to be. repairs: How often that was.
        summary: Its figures, for the next proposal: bounded, and without a row of any benchmark.
        reused: The same work had been done before.
    """

    path: str
    rows: int
    script: str = ""
    repairs: int = 0
    summary: str = ""
    reused: bool = False


class MiniRun(msgspec.Struct, frozen=True, kw_only=True):
    """A few steps at the full sequence length: does it start, fit and learn at all?

    Attributes:
        shape: Equal where a mini-run would find the same (model, method, batch, lengths).
        seconds: Of the whole job. step_seconds: of one optimizer step on the longest rows.
        accumulation: Batches that such a step sums.
        startup: Seconds before and after the steps: imports, loading, tokenizing, saving.
        reused_from: The trial whose mini-run had the same shape.
        changed: Keys that had to be changed for it to fit into memory; the training keeps them. why: In words.
    """

    shape: str
    steps: int
    seconds: float
    step_seconds: float | None = None
    accumulation: int = 1
    startup: float = 0.0
    reused_from: int | None = None
    changed: dict[str, Value] = {}
    why: str = ""


class Loss(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One point of the loss history."""

    step: int
    loss: float


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Trained weights: a full model directory, or an adapter on top of the base.

    Attributes:
        path: The directory. weights: sha256 over its weight files.
        adapter: True where `path` holds a PEFT adapter and the base is needed beside it.
        versions: Versions of the packages that wrote it ("transformers", ...).
        changed: Keys that were trained with other values than the recipe's, for memory or time. why: In words.
    """

    path: str
    weights: str
    adapter: bool
    losses: tuple[Loss, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = {}
    changed: dict[str, Value] = {}
    why: str = ""
