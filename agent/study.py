"""A study at work: journal, budget, runner and view joined, so that a stage is recorded before and after it runs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from agent.budget import Budget
from agent.errors import BudgetEnded, StudyError, TrialFailed
from agent.interrupted import end_interrupted
from agent.journal import (
    NOTHING,
    Call,
    CallEnded,
    CallStarted,
    Journal,
    OutputWritten,
    SealOpened,
    StageEnded,
    StageEnding,
    StageStarted,
    TrialEnded,
    encode,
)
from agent.propose import Proposer
from agent.records import (
    HOST_STAGES,
    STAGES,
    Failure,
    History,
    MiniRun,
    Scores,
    Sealed,
    StudyReport,
    TrainingData,
    Trial,
    Usage,
)
from agent.report import View
from agent.run import Job, Outcome, Runner
from agent.run.attended import attend
from agent.store import StudyPaths, empty_directory, replace_directory
from scenarios import Bench, Progress, Scenario, Stop

BASE = 0
"""The base model's place among the trial numbers."""

LEFT_BEHIND = ("training_args.bin", "trainer_*", "*_results.json", "checkpoint-*", "README.md")
"""What a trainer leaves beside the weights and nobody needs to use them; the first is a pickle, the last a form."""

SCRIPT = "process_data.py"
"""The data script, beside the recipe that it belongs to."""

Record = TypeVar("Record", bound=msgspec.Struct)


@dataclass(frozen=True)
class StageBench:
    """What a stage may use: its directory, the runner under the call's budget, and a voice."""

    directory: Path
    name: str
    labels: dict[str, str]
    runner: Runner
    budget: Budget
    view: View
    consumed: list[Usage] = field(default_factory=list)

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        """Count what a language model consumed in this stage; `paid` where its cost is charged already."""
        self.consumed.append(usage)
        if not paid:
            self.budget.money.spend(usage.cost or 0.0)

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        """Run a job; BudgetEnded where the call's time stopped it, MachineError where its engine went away.

        A job that `stop` ended is returned, with "stopped" for its kind and what `stop` said for its reason.
        """

        def over() -> str | None:
            self.view.budget(self.budget.left())
            if progress is not None and (now := progress()) is not None:
                self.view.progress(*now)
            return self.budget.over()

        labelled = msgspec.structs.replace(job, labels={**self.labels, **job.labels})
        return attend(self.runner, labelled, over, stop)

    def say(self, message: str) -> None:
        """Tell the person at the terminal."""
        self.view.say(message)

    def left(self) -> float | None:
        """Seconds that this call has left for the stage; None where they are not limited."""
        return self.budget.left()

    def whole(self) -> float | None:
        """Seconds that a new call of the same length would have for it; None where they are not limited."""
        return self.budget.whole()


class Study:
    """One study and one call's work on it.

    Args:
        name: The study's id.
        paths: Where its files lie; held by this process (`agent.store.locked`).
        journal: Its journal, already opened with an identity.
        runner: Where jobs run.
        view: What is told what happens.
        budget: What this call may spend.
    """

    def __init__(
        self, name: str, paths: StudyPaths, journal: Journal, runner: Runner, view: View, budget: Budget
    ) -> None:
        self.name = name
        self.paths = paths
        self.journal = journal
        self.view = view
        self.budget = budget
        self.over = False
        self._runner = runner

    def start_call(
        self, *, proposer: str, timeout: float | None, loop_n: int | None, step_n: int | None, gpus: int = 0
    ) -> None:
        """Record that this call begins, and whatever a killed call left unfinished."""
        end_interrupted(self.journal, self.paths, self.view)
        call = len(self.journal.state.calls) + 1
        self.journal.append(
            CallStarted(
                at=self.journal.now(),
                call=call,
                pid=os.getpid(),
                runner=self._runner.name,
                proposer=proposer,
                loop_n=loop_n,
                step_n=step_n,
                timeout=timeout,
                gpus=gpus,
            )
        )
        for trial in self.journal.state.trials:  # a kill may have come between a trial's end and its pruning
            self._prune(trial.number)

    def end_call(self, reason: str, *, over: bool = False) -> None:
        """Record why this call ended; `over` where the study has nothing left to do until another call adds to it."""
        self.over = over
        state = self.journal.state
        self.journal.append(
            CallEnded(at=self.journal.now(), call=len(state.calls), reason=reason, seconds=self.budget.spent())
        )

    def next_trial(self) -> int:
        """The trial in hand: an unfinished one, or the next."""
        return len(self.journal.state.trials) + 1

    def stage(self, trial: int, stage: str, work: Callable[[Bench], Record], kind: type[Record]) -> Record:
        """The record of one stage: kept if an earlier call completed it, else `work` is run and journaled.

        Raises:
            TrialFailed: The stage failed, now or in an earlier call.
            BudgetEnded: The call may not start it, or its time ended in the middle of it.
        """
        ended = self.journal.state.stages.get((trial, stage))
        if ended is not None and ended.failure is not None and _final(trial, stage):
            raise TrialFailed(ended.failure.kind, ended.failure.reason, ended.failure.tail)
        kept = self.journal.state.result(trial, stage, kind)
        if kept is not None:
            self.view.stage_ended(trial, stage, "kept", ended.seconds if ended else 0.0)
            return kept
        return self._run(trial, stage, work)

    def _run(self, trial: int, stage: str, work: Callable[[Bench], Record]) -> Record:
        counted = _counted(trial, stage)
        self.budget.before_stage(counted=counted)
        attempt = self.journal.state.attempts.get((trial, stage), 0) + 1
        call = len(self.journal.state.calls)
        self.journal.append(StageStarted(at=self.journal.now(), call=call, trial=trial, stage=stage, attempt=attempt))
        self.view.budget(self.budget.left())
        self.view.stage_started(trial, stage, attempt)
        started = time.monotonic()
        bench = self._bench(trial, stage)
        try:
            with nullcontext() if stage in HOST_STAGES else self.budget.using_gpus():
                result = work(bench)
        except TrialFailed as finding:
            failure = Failure(kind=finding.kind, reason=finding.reason, tail=finding.tail)  # type: ignore[arg-type]
            usage = _consumed(bench, finding)
            self._end_stage(trial, stage, "failed", time.monotonic() - started, failure=failure, usage=usage)
            if counted:
                self.budget.count_stage()
            raise
        except BaseException as error:
            ending: StageEnding = "stopped" if isinstance(error, KeyboardInterrupt | BudgetEnded) else "broken"
            self._end_stage(trial, stage, ending, time.monotonic() - started, usage=_consumed(bench, error))
            raise
        usage = _consumed(bench, result)
        self._end_stage(trial, stage, "done", time.monotonic() - started, result=encode(result), usage=usage)
        if counted:
            self.budget.count_stage()
        return result

    def _bench(self, trial: int, stage: str) -> StageBench:
        return StageBench(
            directory=empty_directory(self.paths.stage(trial, stage)),
            name=f"{self.name}-{trial:04d}-{stage}",
            labels={"study": self.name, "trial": str(trial), "stage": stage},
            runner=self._runner,
            budget=self.budget,
            view=self.view,
        )

    def _end_stage(
        self,
        trial: int,
        stage: str,
        ending: StageEnding,
        seconds: float,
        *,
        result: msgspec.Raw = NOTHING,
        failure: Failure | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.journal.append(
            StageEnded(
                at=self.journal.now(),
                trial=trial,
                stage=stage,
                ending=ending,
                seconds=seconds,
                result=result,
                failure=failure,
                usage=usage,
            )
        )
        self.view.stage_ended(trial, stage, ending, seconds)

    def end_trial(self, lesson: Callable[[Trial], str]) -> Trial:
        """Record that the trial in hand is over, with what it teaches, and drop weights that nobody needs now."""
        number = self.next_trial()
        call = len(self.journal.state.calls)
        before = self.journal.state.best
        draft = self.journal.state.assemble(number, lesson="")
        self.journal.append(TrialEnded(at=self.journal.now(), call=call, trial=number, lesson=lesson(draft)))
        self.budget.count_trial()
        trial = self.journal.state.trial(number)
        self.view.trial_ended(trial, self.journal.state.best)
        self._prune(number)
        if before is not None:
            self._prune(before)  # it may have lost its place
        return trial

    def base(self) -> Scores | None:
        """The base's search scores, once they are there."""
        return self.journal.state.result(BASE, "bench", Scores)

    def ran(self) -> tuple[list[tuple[int, MiniRun]], list[float]]:
        """The successful mini-runs so far, by trial number, and the seconds that each training took."""
        state = self.journal.state
        return state.mini_runs(), [trial.checkpoint.seconds for trial in state.trials if trial.checkpoint]

    def history(self) -> History:
        """What a proposer may know."""
        base = self.base()
        state = self.journal.state
        fresh = state.result(state.best, "rescore", Scores) if state.best is not None else None
        return History(
            base=base.scores if base else (),
            trials=tuple(state.trials),
            best=state.best,
            fresh=fresh.scores if fresh else (),
        )

    def _prune(self, number: int) -> None:
        """Delete a finished trial's weights and data unless it is the best; its logs, recipe and scores stay."""
        state, made = self.journal.state, self.journal.state.trial(number).data
        if made is not None and Path(made.path) not in self._data_in_use():
            shutil.rmtree(made.path, ignore_errors=True)
        for stage in ("mini-run",) if number == state.best else ("mini-run", "train"):
            shutil.rmtree(self.paths.weights(number, stage), ignore_errors=True)

    def _data_in_use(self) -> set[Path]:
        """What the best trial and the one in hand train on, which other trials may have made as well."""
        state = self.journal.state
        users = [self.next_trial(), *([state.best] if state.best is not None else [])]
        found = (state.result(number, "data", TrainingData) for number in users)
        return {Path(made.path) for made in found if made is not None}

    def drop_weights(self, trial: int, stage: str) -> None:
        """Delete what a training left that is scored, or failed."""
        shutil.rmtree(self.paths.weights(trial, stage), ignore_errors=True)

    def opening(self, trial: int) -> None:
        """Record that the sealed split is being opened for this trial's model."""
        if trial not in self.journal.state.openings:
            self.journal.append(SealOpened(at=self.journal.now(), trial=trial))

    def publish(self, winner: Trial, output: Path) -> None:
        """Copy the winner's weights and recipe to `output`, whole or not at all, and record it.

        Raises:
            StudyError: `output` does not have them, and the checkpoint was removed.
        """
        assert winner.checkpoint is not None
        assert winner.proposal is not None
        trained = winner.trained
        assert trained is not None
        why = f"# {winner.checkpoint.why}\n" if winner.checkpoint.why else ""
        work = ({"data": list(trained.data)} if trained.data else {}) | ({"script": SCRIPT} if trained.script else {})
        recipe = f"# {self.name}, trial {winner.number}\n{why}" + yaml.safe_dump(
            {**trained.train, "seed": trained.seed, **work}, sort_keys=True
        )
        marker = output / "recipe.yaml"
        gone = not Path(winner.checkpoint.path).is_dir()
        published = gone and self.journal.state.published == winner.number and output.is_dir()
        if not published and (not marker.exists() or marker.read_text() != recipe):
            if gone:
                raise StudyError(
                    f"trial {winner.number}'s weights are neither in {winner.checkpoint.path} nor in {output} any more",
                    f"bring one of them back from a backup, or move {self.paths.root} away and search anew",
                )
            draft = output.with_name(f".{output.name}.new")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(
                winner.checkpoint.path,
                draft,
                ignore=shutil.ignore_patterns(*LEFT_BEHIND),
                copy_function=shutil.copyfile,  # not the modes: weights are written for one user only
            )
            if trained.script:
                (draft / SCRIPT).write_text(trained.script, encoding="utf-8")
            (draft / marker.name).write_text(recipe)
            replace_directory(draft, output)
        if self.journal.state.published != winner.number:
            self.journal.append(OutputWritten(at=self.journal.now(), trial=winner.number, path=str(output)))


@dataclass(frozen=True)
class Lab:
    """What the loop works with; joined in agent/wiring.py.

    `output` receives the winner, whose recipe is trained `confirm` times more.
    """

    study: Study
    proposer: Proposer
    scenario: Scenario
    output: Path
    confirm: int = 0


def allowance(calls: list[Call], loop_n: int | None, step_n: int | None) -> tuple[int | None, int | None]:
    """Trials and stages that a call may complete: its own count, after what a killed call still owed."""
    owed_trials = owed_stages = 0
    if calls and calls[-1].ended is None:
        last = calls[-1]
        owed_trials = max(0, (last.loop_n or 0) - last.trials)
        owed_stages = max(0, (last.step_n or 0) - last.stages)
    return (
        None if loop_n is None else loop_n + owed_trials,
        None if step_n is None else step_n + owed_stages,
    )


def study_report(journal: Journal, directory: Path, holder: str | None = None) -> StudyReport:
    """All that a report shows, from the journal; `holder` is the process that works on the study just now."""
    state = journal.state
    if state.identity is None:
        raise ValueError("a study without an identity has no report")
    base = state.result(BASE, "bench", Scores)
    return StudyReport(
        study=state.study,
        directory=str(directory),
        identity=state.identity,
        base=base.scores if base else (),
        others=base.others if base else (),
        trials=tuple(state.trials),
        best=state.best,
        sealed=state.result(state.best, "test", Sealed) if state.best is not None else None,
        openings=len(state.openings),
        output=state.output,
        usage=state.usage,
        active_seconds=state.seconds,
        ending=(state.calls[-1].ended or (f"running in process {holder}" if holder else "killed"))
        if state.calls
        else "",
        contamination=state.contamination,
        confirmations=state.confirmations(),
        judging=state.judging,
    )


def _counted(trial: int, stage: str) -> bool:
    """Whether a stage belongs to a trial; the base's score, a fresh one of the best and the sealed test are retried."""
    return trial != BASE and stage in STAGES


def _final(trial: int, stage: str) -> bool:
    """Whether a failure of the stage stays one: that of a trial, and of the winner's training from another seed."""
    return _counted(trial, stage) or stage.startswith("confirm-")


def _consumed(bench: StageBench, end: object) -> Usage | None:
    """What language models consumed in a stage: as its bench was told, and as its result or error carries it."""
    carried = getattr(end, "usage", None)
    usages = [*bench.consumed, *([carried] if isinstance(carried, Usage) else [])]
    return sum(usages, Usage()) if any(usage.calls for usage in usages) else None
