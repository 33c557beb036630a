"""One training as a person asked for it: what it is trained on, the plan, and the run itself.

Unlike a study's trial, nothing is changed to make it fit: a training that runs out of memory or time fails and says so.
"""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent import hub
from agent.errors import TrialFailed, UsageError
from agent.experiments.resolve import CUTOFF
from agent.hardware import Hardware
from agent.plans import plan_on
from agent.records import Checkpoint, Recipe, Usage
from agent.run import Job, Outcome, Runner, Say
from agent.run.attended import attend
from agent.settings import Settings
from agent.store import Workspace, require_disk
from scenarios import Bench, Progress, Stop
from scenarios.finetune import contamination, data, demo, estimate_rules, footprint, training
from scenarios.finetune.arguments import problems
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan

ROOM = 1 << 30
"""Bytes of disk that are left to everything else."""


@dataclass(frozen=True, kw_only=True)
class HandBench:
    """A bench without a study: a directory, a runner, and a way to be stopped.

    Attributes:
        out: File name in `directory` that receives a training's standard output. err: its standard error, which ends
            in the reason of a failure. Both None: one train.log.
        stopped: Asked about twice a second; a reason ends the job.
    """

    directory: Path
    name: str
    runner: Runner
    say_line: Say
    labels: Mapping[str, str]
    stopped: Callable[[], str | None] = lambda: None
    out: str | None = None
    err: str | None = None

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        """Money is a study's matter."""

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        """Run a job; BudgetEnded where it was stopped from outside, MachineError where its engine went away."""
        return attend(self.runner, self.prepared(job), self.stopped, stop)

    def prepared(self, job: Job) -> Job:
        """The job with this bench's labels, and with its two outputs in two files where it is the training."""
        job = msgspec.structs.replace(job, labels={**self.labels, **job.labels})
        if self.out is None or self.err is None or job.log != str(self.directory / "train.log"):
            return job
        script = f'exec "$@" >{shlex.quote(self.out)}'
        return msgspec.structs.replace(
            job, argv=("sh", "-c", script, "sh", *job.argv), log=str(self.directory / self.err)
        )

    def say(self, message: str) -> None:
        """Tell the person at the terminal."""
        self.say_line(message)

    def left(self) -> float | None:
        """A training by hand may take as long as FT_FULL_TIMEOUT lets it."""
        return None

    def whole(self) -> float | None:
        """The same."""
        return None


def train_once(bench: Bench, recipe: Recipe, plan: TrainingPlan) -> Checkpoint:
    """Train exactly this recipe; the weights end in `<bench directory>/model`.

    Raises:
        TrialFailed: "check" for a recipe that cannot run here, "train:oom", "train:timeout" or "train:exit".
        BudgetEnded: It was stopped. MachineError: The job was lost, or its environment is broken.
    """
    require(recipe, plan)
    require_disk(bench.directory, footprint.footprint(recipe, plan).training + ROOM, "a training")
    return training.train(bench, recipe, plan)


def require(recipe: Recipe, plan: TrainingPlan) -> None:
    """TrialFailed("check") where this recipe cannot be trained with this plan."""
    found = problems(recipe.train, plan.bounds, plan.arguments)
    if not found:
        memory = None if plan.memory is None else estimate_rules.problem(recipe, plan, plan.memory)
        found = [problem for problem in (footprint.problem(recipe, plan), memory) if problem]
    if found:
        raise TrialFailed("check", "; ".join(found))


def job(bench: HandBench, plan: TrainingPlan) -> Job:
    """The program that a training on this bench runs, for the record."""
    return training.job(bench, plan, deadline=plan.full_timeout)


def find_data(name: str, workspace: Workspace, say: Say, key: str) -> Path:
    """Where the data lie: a file, a directory, a demo (made on the spot), the workspace's, or the hub's.

    Args:
        key: What the user calls this, for errors.
    """
    if name in demo.DEMO:
        folder = workspace.root / "datasets" / name
        demo.make_data(folder, name)
        return folder / demo.TRAIN_FILE
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    return _fetched("dataset", name, workspace, say, key)


def find_model(name: str, workspace: Workspace, runner: Runner, say: Say, key: str) -> Path:
    """Where the base model lies: a directory, the demo's (made on the spot), the workspace's, or the hub's."""
    if name != demo.MODEL:
        return _fetched("model", name, workspace, say, key)
    path = workspace.root / "models" / name
    runner.ready("train", say)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=workspace.root / "models") as directory:
        bench = HandBench(
            directory=Path(directory), name=f"demo-{Path(directory).name}", runner=runner, say_line=say, labels={}
        )
        demo.make_model(bench, path)
    return path


def make_plan(
    settings: Settings,
    machine: Hardware,
    model: ModelInfo,
    dataset: data.Dataset,
    directory: Path,
    say: Say,
    *,
    template: str | None = None,
    benchmarks: Sequence[Benchmark] = (),
    mode: contamination.Mode = "mark",
    at_once: int = 1,
) -> TrainingPlan:
    """What all trainings of this model on these data share; writes the data into `directory`/data.

    Args:
        template: LLaMA-Factory's; None for the model's own chat template.
        benchmarks: What will be asked. mode: What becomes of rows that hold their questions.
        at_once: How many trainings share the machine.
    """
    prepared = (
        contamination.prepare(dataset, directory / "data", benchmarks, mode, directory / "contamination.jsonl", say)
        if benchmarks
        else data.write(dataset, directory / "data")
    )
    plan = plan_on(
        machine,
        settings,
        model,
        prepared,
        cutoff_len=CUTOFF,
        template=template,
        max_epochs=math.inf,
        at_once=at_once,
    )
    footprint.require_possible(plan)
    return plan


def _fetched(kind: hub.Kind, name: str, workspace: Workspace, say: Say, key: str) -> Path:
    try:
        return hub.fetch(kind, name, workspace.root, say).path
    except UsageError as error:
        error.message, error.hint = (text.replace(f"--{kind}", key) for text in (error.message, error.hint))
        raise
