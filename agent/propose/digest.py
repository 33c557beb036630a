"""The history of a study as a language model reads it: compact, bounded, the older trials shortened first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence, Set

import msgspec

from agent.prompts import clip, one_line
from agent.records import Comparison, History, Proposal, Recipe, Score, Trial, Value

TAIL = 1_200  # characters of a failed job's log, in full detail
RECIPE = 1_500  # characters of a recipe
PROSE = 300  # characters of a hypothesis, a reason, a lesson or a wrong answer
MISTAKES = 3  # wrong answers shown of each benchmark

READS_DATA = ("data", "mini-run", "train:oom", "train:timeout", "train:exit")
"""Failures of jobs that see the training data."""

Defaults = Callable[[Mapping[str, Value]], Mapping[str, Value]]
"""What holds where a recipe's keys say nothing; it depends on the keys that they set."""


def scores_text(scores: Sequence[Score]) -> str:
    """ "gsm8k 0.350 ± 0.048 (n=100)" for each benchmark."""
    if not scores:
        return "not scored"
    return "; ".join(_score(score) for score in scores)


def best_text(history: History) -> str:
    """Which trial leads, with its scores and its recipe."""
    best = next((trial for trial in history.trials if trial.number == history.best), None)
    if best is None:
        return "the base model, still unbeaten"
    recipe = "; ".join(recipe_lines(best.trained)) if best.trained else "recipe unknown"
    return f"trial {best.number}: {scores_text(history.incumbent[1])}, with {recipe}"


def mistakes_text(history: History) -> str:
    """Some questions of the search split that the best model got wrong, a bounded line each."""
    return "\n".join(
        f"{score.benchmark}: {_quoted(wrong.question)} -> {_quoted(wrong.response)}, "
        + ("no answer found in it" if wrong.extracted is None else f"taken as {_quoted(wrong.extracted)}")
        for score in history.incumbent[1]
        for wrong in score.mistakes[:MISTAKES]
    )


def _quoted(text: str) -> str:
    return json.dumps(one_line(text, PROSE), ensure_ascii=False)


def recipe_text(train: Mapping[str, Value]) -> str:
    """A recipe's keys as compact JSON, sorted."""
    return json.dumps(dict(sorted(train.items())), ensure_ascii=False)


def recipe_lines(recipe: Recipe) -> list[str]:
    """What defines a training, a line each: keys, data steps, and that there is a script, which is told elsewhere."""
    lines = [f"recipe: {clip(recipe_text(recipe.train), RECIPE)}"]
    if recipe.data:
        lines.append(f"data: {clip(json.dumps(recipe.data, ensure_ascii=False, default=str), RECIPE)}")
    if recipe.script:
        digest = hashlib.sha256(recipe.script.encode("utf-8", "replace")).hexdigest()[:8]
        lines.append(f"script: {len(recipe.script.splitlines())} lines ({digest})")
    return lines


def children_text(history: History, parent: int) -> str:
    """What was built on a trial already, a line each."""
    return "\n".join(
        _in_a_line(trial, history.estimate(trial))
        for trial in history.trials
        if trial.proposal is not None and trial.proposal.parent == parent
    )


def pending_text(pending: Sequence[Proposal]) -> str:
    """The proposals that are still running."""
    return "\n".join(
        f"- {one_line(one.change, PROSE)}: {clip(recipe_text(one.recipe.train), RECIPE)}" for one in pending
    )


def in_effect(train: Mapping[str, Value], defaults: Defaults) -> dict[str, Value]:
    """What is trained with: the defaults, under the recipe's keys; null leaves a key to its default."""
    return {**defaults(train), **{key: value for key, value in train.items() if value is not None}}


def trials_text(
    history: History, defaults: Defaults, limit: int, *, logs: bool = True, whole: Set[int] = frozenset()
) -> str:
    """All finished trials in at most about `limit` characters.

    The newest are told in full, older ones in a line each, the oldest not at all; the best is always told in full.

    Args:
        logs: Whether what a failed training said is told; its log may quote rows of its data.
        whole: Further trials that are always told in full.
    """
    recipes = {trial.number: trial.proposal.recipe.train for trial in history.trials if trial.proposal}
    told: list[str] = []
    left = limit
    for trial in reversed(history.trials):
        full = _in_full(trial if logs else _silenced(trial), recipes, defaults)
        # Half of the room is for full accounts; the best's is never shortened away.
        if trial.number == history.best or trial.number in whole or len(full) <= left - limit // 2:
            text = full
        elif len(line := _in_a_line(trial, history.estimate(trial))) <= left:
            text = line
        else:
            continue
        told.append(text)
        left -= len(text)
    missing = len(history.trials) - len(told)
    note = [f"({missing} earlier trials are left out)"] if missing else []
    return "\n".join([*note, *reversed(told)])


def _score(score: Score) -> str:
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    unformatted = f", {score.unformatted} without an answer" if score.unformatted else ""
    partial = "" if score.asked is None else f", after {score.asked} of {score.planned} questions"
    return f"{score.benchmark} {score.mean:.3f} ± {score.stderr:.3f} (n={score.n}{partial}{unformatted}{unscored})"


def _comparison(comparison: Comparison) -> str:
    interval = f"[{comparison.low:+.3f}, {comparison.high:+.3f}]"
    asked, planned = comparison.asked, comparison.planned
    dropped = "" if asked is None else f", dropped after {asked} of {planned} questions"
    return f"{comparison.verdict}: {comparison.difference:+.3f} {interval} against {comparison.against}{dropped}"


def _in_full(trial: Trial, recipes: Mapping[int, Mapping[str, Value]], defaults: Defaults) -> str:
    lines = [f"trial {trial.number} ({trial.seconds:.0f} s)"]
    if (proposal := trial.proposal) is not None:
        parent = recipes.get(proposal.parent) if proposal.parent is not None else None
        against = f"trial {proposal.parent}" if parent is not None else "the defaults"
        changed = _difference(in_effect(proposal.recipe.train, defaults), in_effect(parent or {}, defaults))
        lines += [
            f"  hypothesis: {one_line(proposal.hypothesis, PROSE)}",
            f"  change: {one_line(proposal.change, PROSE)}",
            *(f"  {line}" for line in recipe_lines(proposal.recipe)),
            f"  against {against}: {clip(changed, RECIPE) or 'no key differs'}",
        ]
    if trial.data is not None and trial.data.summary:
        mended = f", script mended {trial.data.repairs} times" if trial.data.repairs else ""
        lines.append(f"  data work: {trial.data.rows:,} rows{mended}")
        lines += [f"    | {line}" for line in clip(trial.data.summary.strip(), TAIL).splitlines()]
    if trial.checkpoint is not None and trial.checkpoint.why:
        lines.append(f"  changed before the training: {one_line(trial.checkpoint.why, PROSE)}")
    if trial.comparison is not None:
        lines += [f"  score: {scores_text(trial.scores)}", f"  verdict: {_comparison(trial.comparison)}"]
        if trial.checkpoint is not None and trial.checkpoint.losses:
            first, last = trial.checkpoint.losses[0], trial.checkpoint.losses[-1]
            lines.append(f"  training loss: {first.loss:.3g} (step {first.step}) -> {last.loss:.3g} (step {last.step})")
    if trial.failure is not None:
        lines.append(f"  verdict: failed ({trial.failure.kind}): {one_line(trial.failure.reason, 2 * PROSE)}")
        if trial.failure.tail:
            tail = clip(trial.failure.tail.strip(), TAIL, keep_end=True)
            lines += ["  end of the log:", *(f"    | {line}" for line in tail.splitlines())]
    return "\n".join(lines)


def silenced(history: History) -> History:
    """The history without the words of jobs that read the training data."""
    return msgspec.structs.replace(history, trials=tuple(map(_silenced, history.trials)))


def _silenced(trial: Trial) -> Trial:
    """The trial without the words of a job that read the training data."""
    if trial.failure is None or trial.failure.kind not in READS_DATA:
        return trial
    failure = msgspec.structs.replace(trial.failure, reason="(not shown: its log may quote the data)", tail="")
    return msgspec.structs.replace(trial, failure=failure, lesson="")


def _in_a_line(trial: Trial, estimate: float | None) -> str:
    change = one_line(trial.proposal.change, 100) if trial.proposal else "no proposal"
    found = trial.comparison
    partial = "" if found is None or found.asked is None else f" (after {found.asked} of {found.planned} questions)"
    score = "" if estimate is None else f", score {'about ' if partial else ''}{estimate:.3f}{partial}"
    return f"trial {trial.number}: {change}{score}, {trial.verdict}"


def _difference(new: Mapping[str, Value], old: Mapping[str, Value]) -> str:
    """ "learning_rate 1e-05 -> 0.001; packing unset -> True"."""
    keys = sorted(key for key in {*new, *old} if new.get(key) != old.get(key))
    return "; ".join(f"{key} {_value(old, key)} -> {_value(new, key)}" for key in keys)


def _value(recipe: Mapping[str, Value], key: str) -> str:
    return str(recipe[key]) if key in recipe else "unset"
