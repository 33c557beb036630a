"""What the language model may look up while it thinks: read-only, bounded, and nothing of the sealed test.

The tools are made of two things: the history, which holds the search split alone, and a `Library`, which holds the
training data without the benchmarks' questions and the logs of jobs that see no benchmark. There is nothing else here
that they could reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec

from agent.llm import ToolCall
from agent.prompts import clip, fence, one_line
from agent.propose.digest import recipe_lines, scores_text
from agent.records import History, Mistake, Trial

ROUNDS = 8  # replies in which tools may be asked for, in one conversation
ANSWER = 4_000  # characters of what a tool says
ALL_ANSWERS = 24_000  # ... of what all of them say in one conversation
MOST_ROWS = 20
MOST_MISTAKES = 10
QUOTE = 600  # characters of a question or an answer

LogStage = Literal["data", "mini-run", "train"]
"""Stages whose jobs see the training data and no benchmark."""


class Library(Protocol):
    """What may be looked up beside the history; never a row that holds a benchmark's question."""

    def rows(self, start: int, count: int) -> Sequence[str]:
        """Training rows from `start` (the first is 1), a bounded line each."""
        ...

    def column(self, name: str) -> str:
        """Figures of a column; raises ValueError, which names the columns, where there is no such one."""
        ...

    def log(self, trial: int, stage: LogStage) -> str:
        """The end of a job's log; "" where there is none."""
        ...


class LookAtRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the training data."""

    start: Annotated[int, msgspec.Meta(ge=1, description="number of the first row, from 1")] = 1
    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)] = 5


class ColumnStatistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of one column of the training data: kind, how often it is filled, lengths, most frequent values."""

    column: str


class LogTail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of the log of a trial's job."""

    trial: int
    stage: LogStage = "train"


class ErrorSamples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Questions of the search split that were answered wrong, and what was answered."""

    benchmark: str
    trial: Annotated[int | None, msgspec.Meta(description="null: the best so far; 0: the base model")] = None


class EarlierRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole recipe of an earlier trial, its data work included, with its result."""

    trial: int


Arguments = LookAtRows | ColumnStatistics | LogTail | ErrorSamples | EarlierRecipe
KINDS: dict[str, type[Arguments]] = {
    "look_at_rows": LookAtRows,
    "column_statistics": ColumnStatistics,
    "log_tail": LogTail,
    "error_samples": ErrorSamples,
    "earlier_recipe": EarlierRecipe,
}


class Toolbox:
    """The tools of one conversation.

    Args:
        library: None where nothing but the history may be looked at.
        logs: Whether logs may be read: not where the data hold questions of a benchmark.
    """

    def __init__(self, history: History, library: Library | None, *, logs: bool) -> None:
        self._history = history
        self._library = library
        self._left = ALL_ANSWERS
        self._answered: set[tuple[str, str]] = set()
        hidden = set() if library else {"look_at_rows", "column_statistics", "log_tail"}
        self._kinds = {name: kind for name, kind in KINDS.items() if name not in hidden}
        if not logs:
            self._kinds.pop("log_tail", None)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as a request names them."""
        return [_schema(name, kind) for name, kind in self._kinds.items()]

    def answer(self, call: ToolCall) -> str:
        """What the tool says, as a block of data; whatever is wrong with the call is said in its place."""
        try:
            said = self._said(call)
        except ValueError as error:
            said = f"error: {one_line(str(error), QUOTE)}"
        if self._left <= 0:
            said = "error: you have looked enough; answer now"
        self._left -= min(ANSWER, len(said))
        return fence(clip(said, ANSWER, keep_end=call.name == "log_tail"), call.name or "no tool")

    def _said(self, call: ToolCall) -> str:
        if (call.name, call.arguments) in self._answered:
            raise ValueError("you have asked exactly this before; its answer stands above")
        self._answered.add((call.name, call.arguments))
        kind = self._kinds.get(call.name)
        if kind is None:
            raise ValueError(f"there is no tool {call.name!r}; there is {', '.join(self._kinds)}")
        try:
            wanted = msgspec.convert(json.loads(call.arguments or "{}"), kind)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the arguments of {call.name} cannot be used: {error}") from None
        run: dict[type, Callable[[Any], str]] = {
            LookAtRows: self._rows,
            ColumnStatistics: self._column,
            LogTail: self._log,
            ErrorSamples: self._errors,
            EarlierRecipe: self._recipe,
        }
        return run[kind](wanted)

    def _rows(self, wanted: LookAtRows) -> str:
        assert self._library is not None
        rows = self._library.rows(wanted.start, wanted.count)
        return "\n".join(clip(row, ANSWER // len(rows)) for row in rows) or f"there is no row {wanted.start}"

    def _column(self, wanted: ColumnStatistics) -> str:
        assert self._library is not None
        return self._library.column(wanted.column)

    def _log(self, wanted: LogTail) -> str:
        assert self._library is not None
        trial = self._trial(wanted.trial)
        said = self._library.log(trial.number, wanted.stage)
        return said or f"trial {trial.number} has no log of {wanted.stage}"

    def _errors(self, wanted: ErrorSamples) -> str:
        if wanted.trial is None:
            scores = self._history.incumbent[1]
        else:
            scores = self._trial(wanted.trial).scores if wanted.trial else self._history.base
        score = next((score for score in scores if score.benchmark == wanted.benchmark), None)
        if score is None:
            names = ", ".join(score.benchmark for score in scores) or "none"
            raise ValueError(f"there is no score of {wanted.benchmark[:80]!r}; there is one of {names}")
        return "\n".join(map(_mistake, score.mistakes[:MOST_MISTAKES])) or "no wrong answer was kept"

    def _recipe(self, wanted: EarlierRecipe) -> str:
        trial = self._trial(wanted.trial)
        if trial.trained is None:
            return f"trial {trial.number} had no valid proposal"
        lines = [f"trial {trial.number}, {trial.verdict}: {scores_text(trial.scores)}", *recipe_lines(trial.trained)]
        if trial.data is not None and trial.data.summary:
            lines.append(f"what its data work gave: {trial.data.rows:,} rows; {trial.data.summary}")
        return "\n".join([*lines, f"script:\n{trial.trained.script}" if trial.trained.script else "no script"])

    def _trial(self, number: int) -> Trial:
        for trial in self._history.trials:
            if trial.number == number:
                return trial
        known = ", ".join(str(trial.number) for trial in self._history.trials[-20:]) or "none yet"
        raise ValueError(f"there is no finished trial {number} (finished: {known})")


def _mistake(wrong: Mistake) -> str:
    taken = "nothing, no answer found in it" if wrong.extracted is None else one_line(wrong.extracted, QUOTE)
    return (
        f"question: {one_line(wrong.question, QUOTE)}\n  answer: {one_line(wrong.response, QUOTE)}\n  taken as: {taken}"
    )


def _schema(name: str, kind: type[Arguments]) -> dict[str, Any]:
    parameters = next(iter(msgspec.json.schema(kind)["$defs"].values()))
    del parameters["title"]
    described = {"name": name, "description": parameters.pop("description"), "parameters": parameters}
    return {"type": "function", "function": described}
