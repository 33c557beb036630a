"""The loop: propose, check, mini-run, train, bench, accept, record, until the budget ends.

python agent/loop.py --dataset demo/reverse --loop_n 1
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: be `agent.loop`, loaded once, with the root and not agent/ on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.modules["agent.loop"] = sys.modules["__main__"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import BudgetEnded, FtloopError, ProposerError, TrialFailed

if TYPE_CHECKING:
    from agent.propose import Proposer
    from agent.records import Score, Scores, Trial
    from agent.study import Study
    from scenarios import Scenario

INVALID_IN_A_ROW = 5
"""So many trials without a valid proposal end the study: the proposer is not going to recover by itself."""


@dataclass(frozen=True)
class Lab:
    """What the loop works with; joined in agent/wiring.py."""

    study: Study
    proposer: Proposer
    scenario: Scenario
    output: Path


def search(lab: Lab) -> str:
    """Score the base, then try one idea after the other until the budget ends; return why it ended."""
    invalid = 0
    try:
        score_base(lab)
        while True:
            stop_at_ceiling(lab)
            lab.study.budget.before_trial()
            trial = run_trial(lab)
            invalid = invalid + 1 if trial.failure and trial.failure.kind in ("proposal", "check") else 0
            if invalid == INVALID_IN_A_ROW:
                raise no_valid_proposal(lab, trial)
    except BudgetEnded as end:
        return end.reason


def score_base(lab: Lab) -> Scores:
    """Score the base model first, and keep time back for opening the sealed test at the end."""
    from agent.records import Scores
    from agent.study import BASE

    try:
        scores = lab.study.stage(BASE, "bench", lab.scenario.baseline, Scores)
    except TrialFailed as finding:
        raise base_failed(finding) from None
    lab.study.view.base(scores)
    lab.study.budget.reserve(2.5 * sum(score.seconds for score in scores.scores))
    return scores


def run_trial(lab: Lab) -> Trial:
    """One attempt, each stage cheaper than the next, so that a bad idea dies early. Always recorded."""
    from agent.records import Checked, Checkpoint, Comparison, MiniRun, Proposal, Scores

    study, scenario = lab.study, lab.scenario
    number, history = study.next_trial(), study.history()
    try:
        proposal = study.stage(number, "propose", lambda _: lab.proposer.propose(history, ()), Proposal)
        recipe = proposal.recipe
        study.stage(number, "check", lambda _: scenario.check(recipe), Checked)
        study.stage(number, "mini-run", lambda bench: scenario.mini_run(bench, recipe, study.mini_runs()), MiniRun)
        checkpoint = study.stage(number, "train", lambda bench: scenario.train(bench, recipe), Checkpoint)
        scores = study.stage(number, "bench", lambda bench: scenario.score(bench, checkpoint), Scores)
        against, best = incumbent(lab)
        study.stage(number, "accept", lambda _: scenario.compare(scores.scores, best, against), Comparison)
    except TrialFailed:
        pass  # journaled by its stage: a failed trial is a finding
    return study.end_trial(lesson)


def incumbent(lab: Lab) -> tuple[str, Sequence[Score]]:
    """Who is to be beaten, and its scores."""
    history = lab.study.history()
    if history.best is None:
        return "base", history.base
    return f"trial {history.best}", history.trials[history.best - 1].scores


def stop_at_ceiling(lab: Lab) -> None:
    """End the search where nothing could be called better any more, unless a number of trials was asked for."""
    against, best = incumbent(lab)
    if not lab.study.budget.counted and (reason := lab.scenario.ceiling(best)):
        raise BudgetEnded(f"{against} is at the ceiling: {reason}")


def lesson(trial: Trial) -> str:
    """What a trial teaches the next one, from the harness's own numbers."""
    what = trial.proposal.change if trial.proposal else "no valid proposal"
    if trial.failure is not None:
        return f"{what}: {trial.failure.kind}: {trial.failure.reason}"
    assert trial.comparison is not None
    return f"{what}: {trial.comparison.verdict} than {trial.comparison.against} ({trial.comparison.difference:+.3f})"


def open_seal(lab: Lab) -> None:
    """After the search: score the winner and the base on the sealed test split, and put the winner where it is used."""
    from agent.records import Sealed

    study, best = lab.study, lab.study.journal.state.best
    base = study.base()
    if best is None or base is None:
        return
    checkpoint = study.journal.state.trial(best).checkpoint
    assert checkpoint is not None
    lab.study.budget.release()
    study.opening(best)
    study.stage(best, "test", lambda bench: lab.scenario.open_seal(bench, checkpoint, base.scores), Sealed)


def base_failed(finding: TrialFailed) -> FtloopError:
    """The base must be scored: without it nothing can be called better."""
    from agent.errors import MachineError

    tail = f"\n{finding.tail}" if finding.tail else ""
    return MachineError(f"the base model could not be scored: {finding.reason}{tail}", "mend this, then run it again")


def no_valid_proposal(lab: Lab, trial: Trial) -> ProposerError:
    """The study ends after too many proposals that could not be run."""
    reason = trial.failure.reason if trial.failure else ""
    return ProposerError(
        f"{INVALID_IN_A_ROW} proposals in a row by {lab.proposer.name} were invalid; the last one: {reason}",
        "try another model (FT_CHAT_MODEL), or go on without one: --proposer tpe",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from agent.options import parse

    options = parse(sys.argv[1:] if argv is None else argv)
    from agent.wiring import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
