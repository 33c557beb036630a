"""Works a sweep's grid off: each cell is trained, scored and recorded in a directory of its own."""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import BudgetEnded, TrialFailed
from agent.experiments import cells, ledger, names, provenance, single
from agent.experiments.cells import DataUsed, Experiment, Metrics, State, TrainingInfo
from agent.experiments.grid import ALIASES, SEED, STEPS, Cell, Grid
from agent.experiments.single import HandBench
from agent.records import Checkpoint, Score, Value
from agent.report.words import clean, duration
from agent.run import Runner, Say
from agent.store import IndexEntry, Workspace
from scenarios.finetune import training
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.training import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One call's work on a sweep.

    Attributes:
        plan: What is the same for all cells, on one worker's share of the machine.
        used: The data, for the record. weights: Hash of the base model.
        scenario: Scores a trained model; None where the file asks for no evaluation.
        runners: One a worker. stamp: The time of this call, as directories bear it.
    """

    grid: Grid
    root: Path
    held: ledger.Held
    workspace: Workspace
    plan: TrainingPlan
    used: DataUsed
    weights: str
    scenario: FineTune | None
    runners: Sequence[Runner]
    stamp: str
    say: Say
    stop: threading.Event = field(default_factory=threading.Event)

    def work_off(self) -> dict[int, State]:
        """Train what is missing; how each of these cells ended, by number.

        A machine that is broken, and Ctrl-C, end all of them; what was not finished is recorded as such.
        """
        missing = [cell for cell in self.grid.cells if cell.number not in self.held.done]
        free: queue.SimpleQueue[Runner] = queue.SimpleQueue()
        for runner in self.runners:
            free.put(runner)

        def work(cell: Cell) -> State:
            if self.stop.is_set():
                return "stopped"
            runner = free.get()
            try:
                return self._cell(cell, runner)
            except BaseException:
                self.stop.set()  # before another worker begins the next cell
                raise
            finally:
                free.put(runner)

        ended: dict[int, State] = {}
        pool = ThreadPoolExecutor(len(self.runners), thread_name_prefix="cell")
        try:
            futures: dict[Future[State], Cell] = {pool.submit(work, cell): cell for cell in missing}
            for future in as_completed(futures):
                ended[futures[future].number] = future.result()
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return ended

    def _cell(self, cell: Cell, runner: Runner) -> State:
        grid = self.grid
        plan = msgspec.structs.replace(self.plan, by_hand=cell.by_hand)
        directory = cells.claim((self.root / grid.directory(cell)).absolute(), self.stamp)
        title = f"[{cell.number}/{len(grid.cells)}] {grid.name(cell)}"
        rate = names.rate(cell.learning_rate)
        bench = HandBench(
            directory=directory,
            name=f"sweep-{self.held.id}-{cell.number}-{directory.name}",
            runner=runner,
            say_line=lambda message: self.say(f"{title}: {message}"),
            labels={"sweep": self.held.id, "cell": str(cell.number)},
            stopped=lambda: "the sweep was stopped" if self.stop.is_set() else None,
            out=f"{rate}_train.out",
            err=f"{rate}_train.err",
        )
        cells.write(directory, self._experiment(cell, bench, plan))
        status = cells.begin(directory)
        self.workspace.enter(self._entry(directory))
        bench.say(f"training, in {os.path.relpath(directory)}")
        try:
            state, failure = self._run(cell, bench, plan)
        finally:
            shutil.rmtree(directory / ".home", ignore_errors=True)  # the job's
        cells.end(directory, status, state, failure)
        bench.say(f"{state} after {duration(time.time() - status.started)}" + (f": {failure}" if failure else ""))
        return state

    def _run(self, cell: Cell, bench: HandBench, plan: TrainingPlan) -> tuple[State, str]:
        """Train and score; how that ended, and why."""
        status = cells.status(bench.directory)
        assert status is not None
        try:
            made = single.train_once(bench, cell.recipe(self.grid.method), plan)
            cells.write_metrics(bench.directory, _metrics(made))
            if self.scenario is not None:
                cells.write_metrics(bench.directory, _metrics(made, self._scores(bench, made)))
        except TrialFailed as failed:
            return "failed", f"{failed.kind}: {failed.reason}"
        except BudgetEnded as ended:
            return "stopped", ended.reason
        except BaseException as error:
            cells.end(bench.directory, status, "broken", clean(str(error), 500))
            raise
        return "done", ""

    def _scores(self, bench: HandBench, made: Checkpoint) -> tuple[Score, ...]:
        """On the search half of each benchmark: the sealed half stays sealed."""
        assert self.scenario is not None
        return self.scenario.rescore(bench, made, fresh=0).scores

    def _experiment(self, cell: Cell, bench: HandBench, plan: TrainingPlan) -> Experiment:
        job = single.job(bench, plan)
        return Experiment(
            timestamp=self.stamp,
            experiment_purpose=self.grid.purpose,
            description=self.grid.description,
            model=self.grid.model,
            task=self.grid.task,
            method=self.grid.method,
            data=self.used,
            hyperparameters=_complete(
                cell, training.config(cell.recipe(self.grid.method), plan, bench.directory, mini=False)
            ),
            training_info=TrainingInfo(
                env_vars=job.variables,
                command=shlex.join(job.argv),
                out_file=str(bench.out),
                err_file=str(bench.err),
            ),
            name=self.grid.name(cell),
            weights=self.weights,
            sweep=self.held.id,
            cell=cell.number,
            ftloop=provenance.version(),
        )

    def _entry(self, directory: Path) -> IndexEntry:
        return IndexEntry(
            id=f"{self.held.id}/{directory.parent.name}/{directory.name}",
            kind="cell",
            path=str(directory),
            created=time.time(),
            dataset=self.grid.data,
            model=self.grid.model,
            benchmarks=self.grid.benchmarks,
        )


def _complete(cell: Cell, config: Mapping[str, Any]) -> dict[str, Value]:
    """The hyper-parameters, with those that the file left to their defaults."""
    found = dict(cell.hyperparameters)
    for key, name in (("batch_size", ALIASES["batch_size"]), ("epochs", ALIASES["epochs"]), (SEED, SEED)):
        if name not in found and not (key == "epochs" and STEPS in found):
            found.setdefault(key, config[name])
    return found


def _metrics(made: Checkpoint, scores: tuple[Score, ...] = ()) -> Metrics:
    return Metrics(checkpoint=made, train_loss=made.losses[-1].loss if made.losses else None, scores=scores)
