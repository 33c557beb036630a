"""Finds everything that was ever trained.

Through the index of FT_FILE_PATH, and by looking below the sweeps' roots, ./outputs and FT_FILE_PATH/studies. What each
result is, its own files say, never a directory's name.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from agent.errors import StudyError, UsageError
from agent.experiments import cells, ledger, names, yaml_text
from agent.experiments.arguments import TrainArguments, fields
from agent.experiments.cells import DataUsed
from agent.experiments.places import HIDDEN, OUTPUTS
from agent.experiments.results import Every, Kind, Result
from agent.journal import Journal, State, events
from agent.records import Checkpoint, FileRef, Identity, Proposal, Recipe, Score, Scores, Value
from agent.settings import load
from agent.store import IndexEntry, Workspace

BASE = 0
ORDER: tuple[Kind, ...] = ("cell", "run", "trial", "base")
_JOURNAL = "journal.jsonl"
_ABOUT = (  # what a result says elsewhere, and what concerns its evaluation
    *("run_name", "model_name_or_path", "model_name", "dataset", "columns", "output_dir", "finetuning_type"),
    *("description", "tasks", "num_fewshot", "limit", "samples"),
)


def every(config: Path | None, root: Path, cwd: Path | None = None) -> Every:
    """Find all results.

    Args:
        config: YAML file with settings. root: The sweeps' root of this call, relative to `cwd`.
    """
    cwd = cwd or Path.cwd()
    settings = load({}, config, os.environ, cwd)
    workspace = Workspace(settings.file_path)  # looked at, not made
    entries = workspace.index()
    notes: list[str] = []
    found = [
        *_cells([cwd / root, *_roots(entries)], notes),
        *_journals("run", _runs(cwd, entries), workspace.root, entries, notes),
        *_journals("trial", _studies(workspace.root, entries), workspace.root, entries, notes),
    ]
    found.sort(key=_place)  # stable: trials stay in their order
    return Every(cwd / root, workspace.root, tuple(found), tuple(notes))


def _place(one: Result) -> tuple[Any, ...]:
    """Cells as a grid is read, from the largest learning rate to the smallest; all others as they came."""
    first = (ORDER.index(one.kind), one.purpose, one.study)
    if one.kind != "cell":
        return first
    rate = one.hyperparameters.get("learning_rate")
    rate = -rate if isinstance(rate, int | float) else 0.0
    return (*first, one.model, one.task, one.method, one.data.path, rate, one.time, one.id)


# Cells


def _roots(entries: Iterable[IndexEntry]) -> Iterator[Path]:
    """The roots of sweeps that the index knows, also of cells that were moved within them."""
    for entry in entries:
        if entry.kind == "cell":
            yield from [path for path in Path(entry.path).parents if (path / ledger.SWEEPS).is_dir()][:1]


def _cells(roots: Iterable[Path], notes: list[str]) -> Iterator[Result]:
    found = (directory for root in dict.fromkeys(root.resolve() for root in roots) for directory in cells.find(root))
    for directory in dict.fromkeys(found):  # once, where a root lies in another one
        try:
            yield _cell(directory)
        except UsageError as error:
            notes.append(error.message)


def _cell(directory: Path) -> Result:
    """A result from its own files; what the directory is called plays no part."""
    experiment = cells.read(directory)
    status, metrics = cells.status(directory), cells.metrics(directory)
    identifier = f"{experiment.sweep}:{experiment.cell}" if experiment.sweep else str(directory)
    return Result(
        kind="cell",
        id=identifier,
        path=str(directory),
        purpose=experiment.experiment_purpose,
        model=experiment.model,
        name=experiment.name or _name(experiment),
        task=experiment.task,
        method=experiment.method,
        time=experiment.timestamp,
        status=status.now if status else ("killed" if experiment.sweep else "unknown"),
        failure=status.failure if status else "",
        hyperparameters={key: number(value) for key, value in experiment.hyperparameters.items()},
        data=experiment.data,
        weights=experiment.weights,
        train_loss=metrics.train_loss if metrics else None,
        scores=_here(metrics.scores if metrics else (), directory),
    )


def _name(experiment: cells.Experiment) -> str:
    """The documented name, of an experiment that another tool wrote down."""
    rate = number(experiment.hyperparameters.get("learning_rate"))
    kind = experiment.data.type or names.data_type(experiment.data.path)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        return f"{experiment.task}_{experiment.method}_{kind}"
    return names.experiment(experiment.task, experiment.method, kind, rate)


def number(value: Value) -> Value:
    """A number that YAML read as text (`1e-6`) as a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


# Runs and studies: both keep a journal


def _runs(cwd: Path, entries: Iterable[IndexEntry]) -> Iterator[Path]:
    yield from sorted((cwd / OUTPUTS).glob(f"**/{HIDDEN}/{_JOURNAL}"))
    yield from (Path(entry.path) / HIDDEN / _JOURNAL for entry in entries if entry.kind == "run")


def _studies(workspace: Path, entries: Iterable[IndexEntry]) -> Iterator[Path]:
    yield from sorted((workspace / "studies").glob(f"*/{_JOURNAL}"))
    yield from (Path(entry.path) / _JOURNAL for entry in entries if entry.kind == "study")


def _journals(
    kind: Kind, files: Iterable[Path], workspace: Path, entries: Iterable[IndexEntry], notes: list[str]
) -> Iterator[Result]:
    named = {entry.path: entry.id for entry in entries if entry.kind == "run"}
    for file in dict.fromkeys(file.resolve() for file in files if file.is_file()):
        try:
            journal = Journal(file)
        except (StudyError, OSError) as error:
            notes.append(getattr(error, "message", str(error)))
            continue
        identity = journal.state.identity
        if identity is None:
            notes.append(f"{file}: it does not say what was trained")
            continue
        root = file.parent.parent
        try:
            if kind == "run":
                identifier = named.get(str(root), "/".join(root.parts[-3:]))
                yield _run(identifier, file, journal.state, identity, workspace)
            else:
                yield from list(_trials(file, journal.state, identity, workspace))
        except msgspec.MsgspecError as error:
            notes.append(f"{file}: what it records cannot be read: {error}")


def _run(identifier: str, file: Path, state: State, identity: Identity, workspace: Path) -> Result:
    """A run by hand: the last of its attempts, with whatever it was evaluated on."""
    root = file.parent.parent
    snapshot = _snapshot(root / "train_config.yaml")
    attempts = sorted({trial for trial, _ in state.attempts if trial > BASE}, reverse=True)
    trial = attempts[0] if attempts else 1
    proposal = state.result(trial, "propose", Proposal)
    checkpoint = state.result(trial, "train", Checkpoint)
    failures = [ended.failure for (number, _), ended in state.stages.items() if number == trial and ended.failure]
    scores = [
        score
        for number, stage in state.stages
        if number == trial and stage.startswith(("eval/", "bench")) and (made := state.result(number, stage, Scores))
        for score in made.scores
    ]
    failure = failures[-1] if failures else None
    return Result(
        kind="run",
        id=identifier,
        path=str(root),
        model=identity.model,
        name="/".join(root.parts[-3:]),
        run_name=str(snapshot.get("run_name") or ""),
        method=str(proposal.recipe.train.get("finetuning_type", "lora")) if proposal else "",
        time=_began(file),
        status="failed" if failure else "done" if checkpoint or scores else "killed" if state.running else "stopped",
        failure=f"{failure.kind}: {failure.reason}" if failure else "",
        hyperparameters=_arguments(snapshot) or (_hyperparameters(proposal.recipe) if proposal else {}),
        recipe=proposal.recipe if proposal else None,
        data=msgspec.structs.replace(_data(identity, file, workspace), columns=snapshot.get("columns") or {}),
        weights=identity.model_fingerprint,
        train_loss=_loss(checkpoint),
        scores=_here(scores, root),
    )


def _snapshot(file: Path) -> dict[str, Any]:
    """Every argument of a run; empty where it was not trained, or the file cannot be read."""
    try:
        content = yaml_text.parse(file.read_text(encoding="utf-8"))[1]
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _arguments(snapshot: dict[str, Any]) -> dict[str, Any]:
    """What of a run's arguments makes it the training that it is: all that is set, but for ftloop's own defaults."""
    known = fields(TrainArguments)
    found = {}
    for name, value in snapshot.items():
        one = known.get(name)
        default = name != "seed" and one is not None and one.part == "run" and value == one.default
        if name not in _ABOUT and value not in (None, "", [], {}) and not default:
            found[name] = value
    return found


def _trials(file: Path, state: State, identity: Identity, workspace: Path) -> Iterator[Result]:
    study, used = state.study, _data(identity, file, workspace)
    times = {event["trial"]: event["at"] for event in events(file) if event.get("event") == "trial ended"}
    base = state.result(BASE, "bench", Scores)
    yield Result(
        kind="base",
        id=f"{study}:{BASE}",
        path=str(file.parent / "base"),
        study=study,
        name="base",
        model=identity.model,
        weights=identity.model_fingerprint,
        status="done" if base else "",
        scores=_here(base.scores if base else (), file.parent),
    )
    for trial in state.trials:
        trained = trial.trained
        yield Result(
            kind="trial",
            id=f"{study}:{trial.number}",
            path=str(file.parent / f"trials/{trial.number:04d}"),
            study=study,
            name=f"trial {trial.number}: {trial.proposal.change}" if trial.proposal else f"trial {trial.number}",
            model=identity.model,
            method=str(trained.train.get("finetuning_type", "lora")) if trained else "",
            time=_stamp(times.get(trial.number)),
            status="failed" if trial.failure else "done",
            verdict=trial.verdict if trial.comparison else "",
            failure=f"{trial.failure.kind}: {trial.failure.reason}" if trial.failure else "",
            hyperparameters=_hyperparameters(trained) if trained else {},
            recipe=trained,
            data=used,
            weights=identity.model_fingerprint,
            train_loss=_loss(trial.checkpoint),
            scores=_here(trial.scores, file.parent),
        )


def _data(identity: Identity, file: Path, workspace: Path) -> DataUsed:
    """What a journal's study was trained on: one fingerprint over all files, which is what it recorded."""
    path = Path(identity.dataset).expanduser()
    places = (path, workspace / "datasets" / identity.dataset)
    found = next((place for place in places if place.exists()), None)
    return DataUsed(
        path=identity.dataset,
        location=str(found.resolve()) if found else "",
        fingerprint=identity.dataset_fingerprint,
        rows=_rows(file.parent / "data" / "prepared.json"),
    )


def _rows(file: Path) -> int:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Prepared).rows
    except (OSError, msgspec.MsgspecError):
        return 0


class _Prepared(msgspec.Struct):
    rows: int = 0


def _hyperparameters(recipe: Recipe) -> dict[str, Any]:
    return {**{key: value for key, value in recipe.train.items() if key != "finetuning_type"}, "seed": recipe.seed}


def _loss(checkpoint: Checkpoint | None) -> float | None:
    return checkpoint.losses[-1].loss if checkpoint and checkpoint.losses else None


def _began(file: Path) -> str:
    return _stamp(next((event.get("at") for event in events(file)), None))


def _stamp(at: float | None) -> str:
    return time.strftime(names.TIME, time.localtime(at)) if at is not None else ""


def _here(scores: Iterable[Score], root: Path) -> tuple[Score, ...]:
    """The scores with the places of their questions as they are now, also where `root` was renamed or moved."""

    def found(file: FileRef) -> FileRef:
        parts = Path(file.path).parts
        if Path(file.path).is_file():
            return file
        places = (root.joinpath(*parts[-count:]) for count in range(1, len(parts)))
        return next((FileRef(path=str(place), sha256=file.sha256) for place in places if place.is_file()), file)

    return tuple(msgspec.structs.replace(score, questions=found(score.questions)) for score in scores)
