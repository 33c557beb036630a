"""The loop: propose, check, mini-run, train, bench, accept, record, until the budget ends.

python agent/loop.py --dataset demo/reverse --loop_n 1
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: be `agent.loop`, loaded once, with the root and not agent/ on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.modules["agent.loop"] = sys.modules["__main__"]

from collections.abc import Sequence

import msgspec

from agent.confirm import confirm
from agent.errors import BudgetEnded, FtloopError, MachineError, ProposerError, SettingError, TrialFailed
from agent.llm import EndpointError
from agent.options import parse
from agent.propose import Author
from agent.records import (
    REFLECT,
    Checked,
    Checkpoint,
    Comparison,
    Failure,
    History,
    Lesson,
    MiniRun,
    Proposal,
    Score,
    Scores,
    Sealed,
    TrainingData,
    Trial,
)
from agent.report.words import relation
from agent.study import BASE, Lab
from scenarios import Bench

IN_A_ROW = 5
"""So many trials without a valid proposal, or failed in the same words, end the call: it does not mend by itself."""


def run_call(lab: Lab) -> str:
    """One call on a study: search, open the seal for the winner, put it where it is used; return why it ended."""
    ending, over, last = "an error of ftloop itself", False, "the sealed test"
    try:
        try:
            end = search(lab)
        except (ProposerError, SettingError):
            open_seal(lab)  # what was won before is not lost
            raise
        ending = end.reason
        if not end.pause:
            open_seal(lab)
            last = "training from other seeds (--confirm)"
            confirm(lab)
            over = True
    except BudgetEnded as late:
        ending = f"{ending}; {last} was not finished: {late.reason}"
    except KeyboardInterrupt:
        ending = "stopped by the user"
        raise
    except FtloopError as error:
        ending = error.message
        raise
    finally:
        lab.study.end_call(ending, over=over)
    return ending


def search(lab: Lab) -> BudgetEnded:
    """Score the base, then try one idea after the other until the budget ends; return how it ended."""
    try:
        score_base(lab)
        while True:
            keep_time_for_the_end(lab)
            stop_at_ceiling(lab)
            lab.study.budget.before_trial()
            rescore_best(lab)
            trial = run_trial(lab)
            if invalid_in_a_row(lab.study.history()) >= IN_A_ROW:
                raise no_valid_proposal(lab, trial)
            stop_if_no_recipe_helps(lab.study.history())
    except BudgetEnded as end:
        return end


def score_base(lab: Lab) -> Scores:
    """Score the base model first: it is what a candidate has to beat."""
    try:
        scores = lab.study.stage(BASE, "bench", lab.scenario.baseline, Scores)
    except TrialFailed as finding:
        raise not_scored("the base model", finding) from None
    lab.study.view.base(scores)
    return scores


def keep_time_for_the_end(lab: Lab) -> None:
    """Reserve what comes after the search, and a quarter more, as slow as the slowest candidate so far.

    That is the sealed test of base and winner, and with --confirm the winner's trainings and their scores.
    """
    base = lab.study.base()
    assert base is not None
    trials, (_, trained) = lab.study.history().trials, lab.study.ran()
    candidates = [seconds_in_full(trial.scores, base.scores) for trial in trials if trial.scores]
    slowest = max(candidates, default=sum(score.seconds for score in base.scores))
    again = lab.confirm * (max(trained, default=0.0) + slowest)
    what = "the sealed test and --confirm" if lab.confirm else "the sealed test"
    lab.study.budget.reserve(1.25 * (lab.scenario.seal_seconds(base, slowest) + again), what)


def seconds_in_full(scores: Sequence[Score], base: Sequence[Score]) -> float:
    """Seconds that a candidate's scores take, or would have taken if its race had gone to the end.

    Benchmarks that it was not asked take as long as the base took for them, times how much slower it was until then.
    """
    seconds = sum(score.seconds * (score.planned or 1) / (score.asked or score.planned or 1) for score in scores)
    before, after = (sum(s.seconds for s in part) for part in (base[: len(scores)], base[len(scores) :]))
    return seconds + after * (seconds / before if before else 1.0)


def invalid_in_a_row(history: History) -> int:
    """How many of the last trials had no recipe that could be run, over all calls."""
    kinds = [trial.failure.kind if trial.failure else "" for trial in reversed(history.trials)]
    return next((index for index, kind in enumerate(kinds) if kind not in ("proposal", "check")), len(kinds))


def run_trial(lab: Lab) -> Trial:
    """One attempt, each stage cheaper than the next, so that a bad idea dies early. Always recorded."""
    study, scenario = lab.study, lab.scenario
    number, history = study.next_trial(), study.history()
    try:
        proposal = study.stage(number, "propose", lambda _: lab.proposer.propose(history, ()), Proposal)
        recipe = proposal.recipe
        study.stage(number, "check", lambda _: scenario.check(recipe), Checked)
        data = prepare_data(lab, number, proposal) if recipe.prepares else None
        measured = study.stage(
            number, "mini-run", lambda bench: scenario.mini_run(bench, recipe, *study.ran(), data), MiniRun
        )
        checkpoint = study.stage(
            number, "train", lambda bench: scenario.train(bench, recipe, measured, data), Checkpoint
        )
        (against, best), nth = history.incumbent, history.compared + 1
        scores = study.stage(number, "bench", lambda bench: scenario.score(bench, checkpoint, best, nth), Scores)
        study.stage(number, "accept", lambda _: scenario.compare(scores.scores, best, against, nth), Comparison)
    except TrialFailed:
        pass  # journaled by its stage: a failed trial is a finding
    return study.end_trial(lambda trial: learned(lab, history, trial))


def prepare_data(lab: Lab, number: int, proposal: Proposal) -> TrainingData:
    """The recipe's data work; a script that cannot be used goes back to its author, with what was wrong."""

    def work(bench: Bench) -> TrainingData:
        def mend(script: str, problem: str) -> str:
            if not isinstance(lab.proposer, Author):
                raise TrialFailed("data", problem)
            recipe = msgspec.structs.replace(proposal.recipe, script=script)
            mended = lab.proposer.mend(msgspec.structs.replace(proposal, recipe=recipe), problem)
            bench.spend(mended.usage, paid=True)
            return mended.recipe.script

        return lab.scenario.prepare(bench, proposal.recipe, mend)

    return lab.study.stage(number, "data", work, TrainingData)


def rescore_best(lab: Lab) -> None:
    """Score an adopted best afresh before anything is compared with it: it was adopted for a lucky score.

    With greedy decoding a fresh score is the same one by construction, and nothing is done.
    """
    study, best = lab.study, lab.study.journal.state.best
    if best is None or not lab.scenario.sampled:
        return
    checkpoint = study.journal.state.trial(best).checkpoint
    assert checkpoint is not None
    if study.history().fresh:
        return
    try:
        study.stage(best, "rescore", lambda bench: lab.scenario.rescore(bench, checkpoint), Scores)
    except TrialFailed as finding:
        raise not_scored(f"trial {best}, the best so far,", finding) from None


def stop_if_no_recipe_helps(history: History) -> None:
    """End the call where trial after trial fails in the same words: then it is not the recipes."""
    last = [t.failure for t in history.trials[-IN_A_ROW:]]
    first = last[0]
    if len(last) < IN_A_ROW or first is None or any(_words(one) != _words(first) for one in last):
        return
    if first.kind == "train:oom":
        return
    raise SettingError(
        f"the last {IN_A_ROW} trials failed in the same words ({first.kind}): {first.reason}",
        "no recipe is going to help: look at the log of the last trial, and at settings such as FT_TEMPLATE",
    )


def _words(failure: Failure | None) -> tuple[str, ...] | None:
    """What makes two failures the same; trainings that are too long differ in their numbers alone."""
    if failure is None:
        return None
    return (failure.kind,) if failure.kind == "train:timeout" else (failure.kind, failure.reason)


def stop_at_ceiling(lab: Lab) -> None:
    """End the search where nothing could be called better any more, unless a number of trials was asked for."""
    history = lab.study.history()
    against, best = history.incumbent
    if not lab.study.budget.counted and (reason := lab.scenario.ceiling(best, history.compared + 1)):
        raise BudgetEnded(f"{against} is at the ceiling: {reason}")


def lesson(trial: Trial) -> str:
    """What a trial teaches the next one, from the harness's own numbers."""
    what = trial.proposal.change if trial.proposal else "no valid proposal"
    if trial.failure is not None:
        return f"{what}: {trial.failure.kind}: {trial.failure.reason}"
    found = trial.comparison
    assert found is not None
    dropped = "" if found.asked is None else f", dropped after {found.asked} of {found.planned} questions"
    return f"{what}: {relation(found)} ({found.difference:+.3f}{dropped})"


def learned(lab: Lab, history: History, trial: Trial) -> str:
    """What a trial teaches: the harness's words, and behind them those of an author that can reflect on it.

    Its endpoint, its money or the call's time may end meanwhile: the trial is recorded all the same.
    """
    found, author = lesson(trial), lab.proposer
    if not isinstance(author, Author) or trial.proposal is None:
        return found
    try:
        return lab.study.stage(trial.number, REFLECT, lambda _: author.reflect(history, trial, found), Lesson).text
    except (EndpointError, BudgetEnded) as error:
        reason = error.reason if isinstance(error, BudgetEnded) else error.message
        lab.study.view.say(f"trial {trial.number}: its lesson is the program's own: {reason}")
        return found


def open_seal(lab: Lab) -> None:
    """After the search: put the winner where it is used, and score it and the base on the sealed test split."""
    study, best = lab.study, lab.study.journal.state.best
    base = study.base()
    if best is None or base is None:
        return
    winner = study.journal.state.trial(best)
    assert winner.checkpoint is not None
    checkpoint = winner.checkpoint
    study.budget.release()
    study.publish(winner, lab.output)
    study.opening(best)
    try:
        study.stage(best, "test", lambda bench: lab.scenario.open_seal(bench, checkpoint, base.scores), Sealed)
    except TrialFailed as finding:
        raise not_scored("the sealed test", finding) from None


def not_scored(what: str, finding: TrialFailed) -> MachineError:
    """Base and sealed test must be scored: without them nothing can be called better."""
    tail = f"\n{finding.tail}" if finding.tail else ""
    return MachineError(
        f"{what} could not be scored: {finding.reason}{tail}", "mend this and run the same command again"
    )


def no_valid_proposal(lab: Lab, trial: Trial) -> ProposerError:
    """The study ends after too many proposals that could not be run."""
    reason = trial.failure.reason if trial.failure else ""
    return ProposerError(
        f"{IN_A_ROW} proposals in a row by {lab.proposer.name} were invalid; the last one: {reason}",
        "try another model (FT_CHAT_MODEL), or go on without one: --proposer tpe",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    from agent import dry_run, wiring  # here, because --help has no need of settings, runners and models

    try:
        if options.dry_run:
            dry_run.show(options)
            return 0
        with wiring.connect(options) as lab:
            run_call(lab)
    except KeyboardInterrupt:
        print("\nstopped; everything done is recorded, the same command goes on from here", file=sys.stderr)
        return 130
    except FtloopError as error:
        print(f"\nftloop: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"\nftloop: the disk is full: {error}\n  -> make room; the same command goes on from here", file=sys.stderr
        )
        return MachineError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
