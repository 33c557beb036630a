"""One training as a record, whoever asked for it: cells of sweeps, runs by hand, trials of agent studies."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.errors import UsageError
from agent.experiments.cells import DataUsed
from agent.records import Recipe, Score

Kind = Literal["cell", "run", "trial", "base"]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One training, or the base model of a study.

    Attributes:
        id: What `ftloop trace` and `compare` take. path: Its directory.
        run_name: Of a run, as its author gave it. purpose: Of a cell. study: Of a trial. All are empty for others.
        name: A cell's or run's own; what a trial changed. method: As a cell says, else the finetuning_type.
        time: When it began, as directories are named; empty if unknown.
        status: "done", "failed", "running", "killed", "stopped", "broken". verdict: Of a trial.
        hyperparameters: As its author wrote them; of runs and trials, the recipe's keys and the seed.
        recipe: What cannot be said in a few keys: data script and steps. weights: Hash of the base model.
        scores: Of the search split, where it was scored.
    """

    kind: Kind
    id: str
    path: str
    model: str
    name: str = ""
    run_name: str = ""
    purpose: str = ""
    study: str = ""
    task: str = ""
    method: str = ""
    time: str = ""
    status: str = ""
    verdict: str = ""
    failure: str = ""
    hyperparameters: dict[str, Any] = {}
    recipe: Recipe | None = None
    data: DataUsed = DataUsed()
    weights: str = ""
    train_loss: float | None = None
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Every:
    """All results of a workspace.

    Attributes:
        root: The sweeps' root of this call. workspace: Directory of FT_FILE_PATH.
        notes: What could not be read, and why.
    """

    root: Path
    workspace: Path
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> list[Result]:
        """Without the base models."""
        return [one for one in self.results if one.kind != "base"]


def resolve(found: Every, text: str) -> Result:
    """The result that an id, a directory, the beginning of an id, or a name means; UsageError where none or several."""
    wanted = text.rstrip("/")
    if exact := _best(
        [one for one in found.results if wanted in (one.id, f"{one.study}:base" if one.kind == "base" else "")]
    ):
        return exact
    path = Path(text).expanduser()
    if path.exists():
        here = path.resolve()
        inside = [one for one in found.results if one.path and _within(Path(one.path), here) and one.kind != "base"]
        return _only(inside, text, f"{text} holds no result, and is below no result's directory")
    if beginning := [one for one in found.trained if one.id.startswith(wanted)]:
        return _only(beginning, text, "")
    named = [one for one in found.trained if wanted and wanted in (one.name, one.run_name)]
    return _only(named, text, f"there is no result {text!r}")


def _only(candidates: list[Result], text: str, nothing: str) -> Result:
    if not candidates:
        raise UsageError(nothing, "ftloop list --detail shows every result with its id and path")
    if len({one.id for one in candidates}) > 1:
        shown = ", ".join(one.id for one in candidates[:8])
        more = f" and {len(candidates) - 8} more" if len(candidates) > 8 else ""
        raise UsageError(f"{text!r} could be {shown}{more}", "name one of them")
    found = _best(candidates)
    assert found is not None
    return found


def _best(candidates: list[Result]) -> Result | None:
    """Of several attempts at one cell, the one that is done, else the last."""
    done = [one for one in candidates if one.status == "done"]
    return max(done or candidates, key=lambda one: one.time, default=None)


def _within(one: Path, other: Path) -> bool:
    """Whether one of two directories is the other, or lies in it."""
    with suppress(OSError):
        one = one.resolve()
    return one == other or other in one.parents or one in other.parents
