"""`ftloop sweep`: trains the cells of a grid, one after another or a few at once, and records each in its place."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent import hardware
from agent.errors import CellsFailed, TrialFailed, UsageError
from agent.experiments import ledger, names, provenance, single
from agent.experiments.cells import DataUsed, State
from agent.experiments.grid import Grid, read
from agent.experiments.laboratory import writing
from agent.experiments.single import HandBench
from agent.experiments.worker import Sweep
from agent.hardware import Hardware
from agent.report.plain import PlainView
from agent.report.words import count
from agent.ruler import choose_judges
from agent.run import Runner, Say
from agent.run.gpus import environment_of_jobs, visible_gpus
from agent.settings import Settings, load
from agent.store import Workspace
from agent.wiring import choose_runner, terminated_like_ctrl_c
from scenarios.finetune import data, template_check
from scenarios.finetune.measures import Measures, measures
from scenarios.finetune.models import ModelInfo, inspect, weights_hash
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.training import TrainingPlan

ROOT = Path("Results_v2")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line said.

    Attributes:
        file: The training_config.yaml. root: Directory of the results.
        parallel: Cells at once. anew: Begin a new sweep though an equal one lacks cells.
        runner, settings: As for `ftloop loop`: where jobs run, and a YAML file with settings.
    """

    file: Path
    root: Path = ROOT
    parallel: int = 1
    dry_run: bool = False
    anew: bool = False
    runner: str | None = None
    settings: Path | None = None


def run(options: Options) -> int:
    """Run, or continue, the sweep; 0 where all of its cells are done.

    Raises:
        CellsFailed: Some are not. UsageError, MachineError, StudyError: See agent/errors.py.
    """
    grid = read(options.file)
    if options.dry_run:
        print("\n".join(plan_lines(grid, options.root)))
        return 0
    settings = load({"runner": options.runner}, options.settings, os.environ, Path.cwd())
    settings.export(os.environ)
    say = _voice()
    for warning in (*grid.warnings, *grid.shared()):
        say(warning)
    with terminated_like_ctrl_c(), writing(options.root), _opened(options, grid, settings, say) as sweep:
        for name in sweep.runners[0].reap():
            say(f"ended what a killed call had left running: {name}")
        ended = sweep.work_off()
        return _told(sweep, ended)


def plan_lines(grid: Grid, root: Path) -> Iterator[str]:
    """What a sweep would do, for --dry-run: its warnings, cells and directories."""
    for line in (*grid.warnings, *grid.shared()):
        yield f"note: {line}"
    yield f"{count(len(grid.cells), 'cell')}: {grid.method} of {grid.model} on {grid.data}"
    for cell in grid.cells:
        yield f"  [{cell.number}] {root / grid.directory(cell)}/{{time}}"
        shown = grid.varied or tuple(cell.hyperparameters)
        yield "      " + ", ".join(f"{key} {cell.hyperparameters[key]}" for key in shown)
    scored = f"scored on {', '.join(grid.benchmarks)}" if grid.benchmarks else "not scored (no evaluation in the file)"
    yield f"each is {scored}; nothing was written"


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What a sweep is about: base model, data, and what is asked (None for nothing)."""

    model: ModelInfo
    weights: str
    dataset: data.Dataset
    used: DataUsed
    measured: Measures | None


@contextmanager
def _opened(options: Options, grid: Grid, settings: Settings, say: Say) -> Iterator[Sweep]:
    """Find or make all that the sweep needs, and hold it."""
    workspace = Workspace(settings.workspace())
    machine = hardware.look(environment_of_jobs(os.environ, settings.gpus))
    workers = min(options.parallel, len(grid.cells))
    runners = worker_runners(settings, machine, workers, say)
    subject = _gathered(grid, workspace, runners[0], say)
    key, stamp = _key(grid, subject), time.strftime(names.TIME)
    with ledger.held(options.root.absolute(), key, len(grid.cells), stamp, anew=options.anew) as held:
        if held.continued:
            say(_continued(held, len(grid.cells)))
        plan = single.make_plan(
            settings,
            msgspec.structs.replace(machine, gpus=machine.gpus[: len(machine.gpus) // workers]),
            subject.model,
            subject.dataset,
            held.directory,
            say,
            template=grid.template,
            benchmarks=subject.measured.all if subject.measured else (),
            mode=grid.contamination,
            at_once=workers,
        )
        _require_some_possible(grid, plan)
        runners[0].ready("train", say)
        sweep = Sweep(
            grid=grid,
            root=options.root,
            held=held,
            workspace=workspace,
            plan=plan,
            used=msgspec.structs.replace(subject.used, rows=plan.data.rows),
            weights=subject.weights,
            scenario=_scenario(grid, settings, workspace, plan, subject),
            runners=runners,
            stamp=stamp,
            say=say,
        )
        if subject.measured:
            _require_same_prompts(sweep, subject.measured)
        yield sweep


def _require_some_possible(grid: Grid, plan: TrainingPlan) -> None:
    """UsageError where no cell can be trained on these data and this machine: then it is the file that is wrong."""
    reasons = []
    for cell in grid.cells:
        try:
            single.require(cell.recipe(grid.method), msgspec.structs.replace(plan, by_hand=cell.by_hand))
            return
        except TrialFailed as failed:
            reasons.append(failed.reason)
    raise UsageError(f"{grid.file}: no cell can be trained: {reasons[0]}", "change the hyper-parameters, or the data")


def _gathered(grid: Grid, workspace: Workspace, runner: Runner, say: Say) -> _Subject:
    """Find, download or make data, model and benchmarks, and take their fingerprints."""
    where = single.find_data(grid.data, workspace, say, "data.path")
    dataset = data.recognise(where, grid.columns)
    model = inspect(single.find_model(grid.model, workspace, runner, say, "model"))
    if not model.chat_template and grid.template is None:
        say(f"{grid.model} has no chat template: it is trained in plain text, without an end-of-turn token")
    if model.bytes > 1 << 30:
        say(f"reading {model.bytes / 2**30:.1f} GiB of weights once, for their fingerprint")
    return _Subject(
        model=model,
        weights=weights_hash(Path(model.path)),
        dataset=dataset,
        used=provenance.data_used(grid.data, grid.data_type, where, dataset),
        measured=_measured(grid, workspace, say),
    )


def worker_runners(settings: Settings, machine: Hardware, workers: int, say: Say) -> list[Runner]:
    """One a worker; where there are GPUs, each sees its own share of them."""
    if not machine.gpus or workers == 1:
        return [choose_runner(settings, say)] * workers
    if workers > len(machine.gpus):
        raise UsageError(
            f"--parallel {workers}: there is no GPU for each, only {len(machine.gpus)}",
            f"--parallel {len(machine.gpus)} at most",
        )
    known = visible_gpus(settings.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = known or tuple(map(str, range(len(machine.gpus))))
    each = len(devices) // workers
    shares = [",".join(devices[i * each : (i + 1) * each]) for i in range(workers)]
    said: list[Say] = [say, *[_silent] * (workers - 1)]
    return [
        choose_runner(settings.model_copy(update={"gpus": share}), tell)
        for share, tell in zip(shares, said, strict=True)
    ]


def _measured(grid: Grid, workspace: Workspace, say: Say) -> Measures | None:
    """The benchmarks that the file asks for, read; None where it asks for none."""
    if not grid.benchmarks:
        return None
    folder = None
    if any(f"demo/{name}" == grid.data for name in grid.benchmarks):
        folder = workspace.root / "datasets" / grid.data

    def fetch(name: str) -> Path:
        return single.find_data(name, workspace, say, "a benchmark's data")

    return measures(grid.benchmarks, (), workspace.root, fetch, folder)


def _scenario(
    grid: Grid, settings: Settings, workspace: Workspace, plan: TrainingPlan, subject: _Subject
) -> FineTune | None:
    """What scores a trained model."""
    if (measured := subject.measured) is None:
        return None
    return FineTune(
        plan=plan,
        benchmarks=measured.search,
        limit=grid.limit,
        timeout=settings.benchmark_timeout,
        cache=workspace.scores,
        weights=subject.weights,
        samples=settings.benchmark_samples,
        judges=choose_judges(settings, measured.all, workspace.scores),
    )


def _require_same_prompts(sweep: Sweep, measured: Measures) -> None:
    """Scores say something about a training only where both see the same prompt."""
    sweep.runners[0].ready("bench", sweep.say)
    bench = HandBench(
        directory=sweep.held.directory / "templates",
        name=f"sweep-{sweep.held.id}-templates",
        runner=sweep.runners[0],
        say_line=sweep.say,
        labels={"sweep": sweep.held.id},
    )
    template_check.check(bench, sweep.plan, [benchmark.engine for benchmark in measured.all])


def _key(grid: Grid, subject: _Subject) -> str:
    """Equal for sweeps that train and score the same, however their files were written."""
    parts = (
        (grid.purpose, grid.model, grid.task, grid.method, grid.data, grid.cells, grid.benchmarks, grid.limit),
        (grid.contamination, grid.template, subject.used.fingerprint, subject.weights),
    )
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:10]


def _continued(held: ledger.Held, size: int) -> str:
    lacking = [f"{os.path.relpath(path)} was {state}" for path, state in held.others.items()]
    again = f"; {', '.join(lacking)}" if lacking else ""
    return f"continues the sweep {held.id}: {len(held.done)} of {size} cells are done{again}"


def _told(sweep: Sweep, ended: dict[int, State]) -> int:
    """Say how it ended; CellsFailed where a cell has no result."""
    size = len(sweep.grid.cells)
    failed = [number for number, state in sorted(ended.items()) if state != "done"]
    done = size - len(failed)
    if not failed:
        whole = "the cell is done" if size == 1 else f"all {size} cells are done"
        sweep.say(f"{whole}; to see more: ftloop list --detail --purpose {sweep.grid.purpose}")
        return 0
    names_ = ", ".join(f"[{number}] {sweep.grid.name(sweep.grid.cells[number - 1])}" for number in failed)
    raise CellsFailed(
        f"{done} of {size} cells are done; failed: {names_}",
        "their status.json and .err files say why; the same command runs only these again",
    )


def _voice() -> Say:
    """Lines to the terminal, whole ones, whichever thread says them."""
    view, lock = PlainView(sys.stdout), threading.Lock()

    def say(message: str) -> None:
        with lock:
            view.say(message)

    return say


def _silent(message: str) -> None:
    """Says nothing."""
