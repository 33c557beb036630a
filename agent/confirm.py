"""Trains the winner's recipe again from fresh seeds, to say how much of its score was the luck of one training."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from agent.errors import TrialFailed
from agent.journal import confirm_stage
from agent.records import Checkpoint, Comparison, MiniRun, Scores, Trial
from agent.report.words import mean, relation
from agent.study import Lab


def confirm(lab: Lab) -> None:
    """Train and score the winner's recipe `lab.confirm` times, on the search split; nothing is chosen by it.

    A training that fails is recorded, and the next one goes on. What an earlier call finished is kept.
    """
    study, best, base = lab.study, lab.study.journal.state.best, lab.study.base()
    if best is None or base is None:
        return
    for index in range(1, lab.confirm + 1):
        with suppress(TrialFailed):  # journaled by its stage: a recipe that fails from another seed is a finding too
            _once(lab, study.journal.state.trial(best), index, base)
        study.drop_weights(best, confirm_stage(index, "train"))


def _once(lab: Lab, winner: Trial, index: int, base: Scores) -> None:
    """One training from the seed that is `index` further, scored afresh and compared with the base."""
    study, scenario, number = lab.study, lab.scenario, winner.number
    recipe, measured = winner.trained, study.journal.state.result(number, "mini-run", MiniRun)
    assert recipe is not None
    assert measured is not None
    other = msgspec.structs.replace(recipe, seed=recipe.seed + index)
    checkpoint = study.stage(
        number,
        confirm_stage(index, "train"),
        lambda bench: scenario.train(bench, other, measured, winner.data),
        Checkpoint,
    )
    scores = study.stage(
        number,
        confirm_stage(index, "bench"),
        lambda bench: scenario.rescore(bench, checkpoint, fresh=1 + index),  # the first fresh seeds are the winner's
        Scores,
    )
    comparison = study.stage(
        number,
        confirm_stage(index, "accept"),
        lambda _: scenario.compare(scores.scores, base.scores, "base"),
        Comparison,
    )
    study.view.say(f"seed {other.seed}: {mean(scores.scores)}, {relation(comparison)}")
