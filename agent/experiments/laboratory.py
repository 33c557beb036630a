"""What a run by hand works with, as a study does: settings, workspace, runner, models, data, a journal."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent import hardware, hub, wiring
from agent.budget import Budget
from agent.errors import BudgetEnded, FtloopError, MachineError, StudyError
from agent.experiments.places import Places
from agent.experiments.single import find_data, find_model
from agent.gather import make_demo
from agent.hardware import Hardware
from agent.journal import Journal
from agent.records import Identity
from agent.report import View
from agent.report.live import make_view
from agent.run import Runner
from agent.run.gpus import environment_of_jobs
from agent.settings import Settings, load
from agent.store import IndexEntry, Workspace, locked
from agent.study import Study
from scenarios.finetune import demo
from scenarios.finetune.benchmarks import Benchmark, resolve
from scenarios.finetune.models import inspect, weights_hash

AUTHOR = "by hand"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Laboratory:
    """One call's."""

    settings: Settings
    workspace: Workspace
    runner: Runner
    machine: Hardware
    view: View
    cwd: Path

    def base_model(self, name: str) -> Path:
        """The directory of a model that is on disk, downloaded, or the demo's, made on the spot."""
        return find_model(name, self.workspace, self.runner, self.view.say, "model_name_or_path")

    def dataset(self, name: str) -> Path:
        """The file or directory of a data set that is on disk, downloaded, or a demo's."""
        return find_data(name, self.workspace, self.view.say, "dataset")

    def weights(self, model: Path) -> str:
        """Hash of a model's weights; says so where that takes a while."""
        size = inspect(model).bytes
        if size > 1 << 30:
            self.view.say(f"reading {size / 2**30:.1f} GiB of weights, for their fingerprint")
        return weights_hash(model)

    def benchmarks(self, names: Sequence[str], dataset: str = "") -> tuple[Benchmark, ...]:
        """The benchmarks of these names, with their data; a demo's where its data set is named or its benchmark is."""
        ours = [data for data in demo.DEMO if data == dataset or data.removeprefix("demo/") in names]
        folder = make_demo(ours[0], self.workspace) if ours else None

        def fetch(name: str) -> Path:
            return hub.fetch("dataset", name, self.workspace.root, self.view.say).path

        return resolve(names, self.workspace.root, fetch, folder, setting="tasks")

    def tasks(self, named: Sequence[str], dataset: str = "") -> list[str]:
        """What is measured: as named, else the demo's benchmark, else FT_BENCHMARK_DATASETS."""
        if named:
            return list(named)
        if dataset in demo.DEMO:
            return [dataset.removeprefix("demo/")]
        return list(self.settings.benchmark_datasets)


@contextmanager
def laboratory(runner: str | None, cwd: Path) -> Iterator[Laboratory]:
    """What the machine offers; `runner` outranks FT_RUNNER."""
    settings = load({"runner": runner}, None, os.environ, cwd)
    settings.export(os.environ)
    workspace = Workspace(settings.workspace())
    view = make_view(sys.stdout)
    try:
        with wiring.terminated_like_ctrl_c(), writing(cwd):
            for note in settings.notes():
                view.say(note)
            machine = hardware.look(environment_of_jobs(os.environ, settings.gpus))
            yield Laboratory(settings, workspace, wiring.choose_runner(settings, view.say), machine, view, cwd)
    finally:
        view.close()


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """A disk that is full or closed, or a file in the way, is no defect; `root` is named where the error names none."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*_DISK, *_IN_THE_WAY):
            raise
        raise MachineError(
            f"{error.filename or root} cannot be read or written: {error.strerror}",
            "mend that, and run the same command again: what is done is kept",
        ) from error


@contextmanager
def alone(places: Places) -> Iterator[None]:
    """Hold a run's directory for this process."""
    try:
        with locked(places.paths):
            yield
    except StudyError as error:
        if "being worked on" in error.message:
            error.message = f"{places.root}: {error.message.replace(f'the study {places.paths.root.name}', 'this run')}"
            error.hint = "wait for it, or give this one another run_name"
        raise


@contextmanager
def recorded(lab: Laboratory, places: Places, identity: Identity, run: str) -> Iterator[Study]:
    """The run as a study of one trial: each stage is journaled before it starts and when it ends.

    Args:
        identity: Of a run that is not there yet. run: Its id in the index.
    """
    for name in lab.runner.reap():
        lab.view.say(f"ended what a killed call had left running: {name}")
    journal = wiring.open_journal(places.paths, identity) if identity.dataset else _evaluated(places, identity)
    entry = IndexEntry(
        id=run,
        kind="run",
        path=str(places.root),
        created=time.time(),
        dataset=identity.dataset,
        model=identity.model,
        benchmarks=identity.benchmarks,
    )
    lab.workspace.enter(entry)
    study = Study(run, places.paths, journal, lab.runner, lab.view, Budget(gpus=len(lab.machine.gpus)))
    ending = "broken"
    study.start_call(proposer=AUTHOR, timeout=None, loop_n=1, step_n=None, gpus=len(lab.machine.gpus))
    try:
        yield study
        ending = "done"
    except KeyboardInterrupt:
        ending = "stopped by the user"
        raise
    except (FtloopError, BudgetEnded) as error:
        ending = getattr(error, "message", str(error))
        raise
    finally:
        study.end_call(ending)
        journal.close()


def _evaluated(places: Places, identity: Identity) -> Journal:
    """The journal of what is evaluated: that of its training, or one begun for a model that was not trained here."""
    journal = Journal(places.paths.journal)
    return journal if journal.state.identity is not None else wiring.open_journal(places.paths, identity)
