"""A job that somebody may call off: the call that pays for it, or the stage that has seen enough."""

from __future__ import annotations

from agent.errors import BudgetEnded, MachineError
from agent.run import Job, Outcome, Runner, Watch


def attend(runner: Runner, job: Job, over: Watch, stop: Watch | None) -> Outcome:
    """Run a job to its end; one that `stop` ended is returned, with "stopped" for its kind and its words as reason.

    Args:
        over: Why the call may go no further, if it may not.
        stop: Why this job need not go on, if that is so.

    Raises:
        BudgetEnded: `over` stopped it.
        MachineError: Its engine went away.
    """
    ended_by_stop = False

    def watch() -> str | None:
        nonlocal ended_by_stop
        if (reason := over()) is None and stop is not None:
            reason = stop()
            ended_by_stop = reason is not None
        return reason

    outcome = runner.run(job, watch)
    if outcome.kind == "stopped" and not ended_by_stop:
        raise BudgetEnded(outcome.reason)
    if outcome.kind == "lost":
        raise MachineError(
            f"the {runner.name} runner lost the job {job.name}: {outcome.reason}",
            f"bring it back and run the same command again; the job's log is {outcome.log}",
        )
    return outcome
