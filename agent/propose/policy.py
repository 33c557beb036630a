"""What kind of attempt comes next: a draft, an improvement or a repair, over the tree of a study's trials.

The tree is AIDE's (Jiang et al. 2025, arXiv 2502.13138): drafts are its roots, improvements and repairs its branches.
Its dice are left out: the same history gives the same answer. The first of these rules that applies decides:

1. The last recipe failed in a way that another recipe may not: debug it, `DEBUGS` times in a row at most, and not again
   where the repair failed in the same words.
2. There are fewer than `DRAFTS` drafts, or none of them has a score: draft.
3. Since the last "better" and the last draft, `PLATEAU` comparisons showed no progress: draft, with another strategy.
4. Improve the scored trial of the greatest `weight`: a good score, few children, unlike those that are better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from agent.propose import Directive
from agent.records import Failure, History, Recipe, Score, Trial

DRAFTS = 3
"""Drafts before anything is improved. AIDE takes five, of twenty cheap steps; a training is dear."""
DEBUGS = 2
"""Repairs in a row, beyond which a line is given up."""
PLATEAU = 4
"""Comparisons without progress after which the strategy is changed."""
PROMISING = 0.1
"""A one-sided p-value below which a candidate that was not called better is progress all the same."""
MENDABLE = ("check", "data", "mini-run", "train:oom", "train:timeout", "train:exit", "bench")
"""Failures that another recipe may mend; a failing judge is not the recipe's doing, and no proposal is no recipe."""
NOISE = 0.01
"""Least standard error that scores are told apart by: where all answers agree it is 0."""
STRATEGY = ("stage", "finetuning_type", "use_dora", "use_galore", "use_apollo", "use_badam", "quantization_bit")
"""Keys that name what is done to the model, where a recipe sets them."""


def direct(history: History) -> Directive:
    """What to attempt next; the same for the same history."""
    if (failed := _to_mend(history)) is not None and failed.failure is not None:
        times = _repairs(failed, history) + 1
        why = f"trial {failed.number} failed ({failed.failure.kind}); repair {times} of at most {DEBUGS}"
        return Directive("debug", failed.number, why)
    drafts = [trial for trial in history.trials if is_draft(trial)]
    scored = {trial.number: mean for trial in history.trials if (mean := history.estimate(trial)) is not None}
    if not drafts:
        return Directive("draft", None, "nothing was tried yet: begin with a sound recipe")
    if len(drafts) < DRAFTS or not scored:
        said = f"draft {len(drafts) + 1} of {DRAFTS}" if len(drafts) < DRAFTS else "no trial has a score yet"
        return Directive("draft", None, f"{said}: take a strategy unlike those tried so far ({strategies(history)})")
    if (fruitless := without_progress(history)) >= PLATEAU:
        against, _ = history.incumbent
        why = f"{fruitless} comparisons in a row brought nothing beyond {against}: another strategy of data or method"
        return Directive("draft", None, f"{why} than those tried so far ({strategies(history)})")
    best = max(scored, key=lambda number: (weight(number, scored, history), number))
    children = _children(best, history)
    tried = f"{children} attempts built on it" if children != 1 else "one attempt built on it"
    return Directive("improve", best, f"trial {best} scored {scored[best]:.3f}, {tried} so far")


def is_draft(trial: Trial) -> bool:
    """Whether a trial is a root of the tree; no trial without a recipe is."""
    return trial.proposal is not None and (trial.proposal.mode == "draft" or trial.proposal.parent is None)


def without_progress(history: History) -> int:
    """Comparisons, since the last "better" and the last draft, in which the paired difference showed no progress."""
    count = 0
    for trial in reversed(history.trials):
        found = trial.comparison
        if found is not None and found.verdict != "better" and found.p_value >= PROMISING:
            count += 1
        if is_draft(trial) or (found is not None and found.verdict == "better"):
            break
    return count


def weight(number: int, scored: dict[int, float], history: History) -> float:
    """How much is to be hoped of improving a trial.

    As in ShinkaEvolve (Lange et al. 2025, arXiv 2509.19349) a sigmoid of the score over one more than the number of
    children; here the score is how far the trial lies behind the best one, in standard errors, and what is unlike all
    better trials counts up to twice.

    Args:
        scored: The estimated mean of every trial that has one.
    """
    behind = (max(scored.values()) - scored[number]) / _noise(history.trials[number - 1].scores)
    better = [other for other, mean in scored.items() if (mean, -other) > (scored[number], -number)]
    novelty = min((distance(_recipe(history, number), _recipe(history, other)) for other in better), default=1.0)
    return (1 + novelty) / (1 + math.exp(min(behind, 50.0))) / (1 + _children(number, history))


def distance(one: Recipe, other: Recipe) -> float:
    """How unlike two recipes are, in [0, 1]: the mean over the keys that either sets (Gower 1971).

    Positive numbers a decade or more apart are wholly unlike; the script and the steps count as one key each.
    """
    mine, theirs = _parts(one), _parts(other)
    keys = mine.keys() | theirs.keys()
    return sum(_apart(mine.get(key), theirs.get(key)) for key in keys) / len(keys) if keys else 0.0


def strategies(history: History) -> str:
    """What was tried, and how often: "lora: 3 trials; full, with a data script: 1 trial"."""
    counts = Counter(strategy(trial.proposal.recipe) for trial in history.trials if trial.proposal)
    return "; ".join(f"{name}: {n} trial{'s' if n > 1 else ''}" for name, n in counts.most_common())


def strategy(recipe: Recipe) -> str:
    """A recipe's method and data work in a few words."""
    found = [(key, recipe.train[key]) for key in STRATEGY if recipe.train.get(key) not in (None, False)]
    words = [value if isinstance(value, str) else key.removeprefix("use_") for key, value in found]
    work = [name for name, there in (("a data script", recipe.script), ("data steps", recipe.data)) if there]
    return " ".join(words or ["the default method"]) + (f", with {' and '.join(work)}" if work else "")


def _to_mend(history: History) -> Trial | None:
    """The last trial that has a recipe, if its failure is to be mended."""
    last = next((trial for trial in reversed(history.trials) if trial.proposal is not None), None)
    if last is None or last.failure is None or last.failure.kind not in MENDABLE:
        return None
    if _repairs(last, history) >= DEBUGS:
        return None
    mended = _parent(last, history) if _is_repair(last) else None
    return None if mended is not None and _same(mended.failure, last.failure) else last


def _repairs(trial: Trial, history: History) -> int:
    """How many repairs in a row led to this trial."""
    count = 0
    found: Trial | None = trial
    while found is not None and _is_repair(found):
        count, found = count + 1, _parent(found, history)
    return count


def _is_repair(trial: Trial) -> bool:
    return trial.proposal is not None and trial.proposal.mode == "debug"


def _parent(trial: Trial, history: History) -> Trial | None:
    """An earlier trial on which this one builds; None for a root."""
    number = trial.proposal.parent if trial.proposal else None
    return history.trials[number - 1] if number is not None and 0 < number < trial.number else None


def _children(number: int, history: History) -> int:
    return sum(trial.proposal is not None and trial.proposal.parent == number for trial in history.trials)


def _same(one: Failure | None, other: Failure) -> bool:
    return one is not None and (one.kind, one.reason) == (other.kind, other.reason)


def _noise(scores: Sequence[Score]) -> float:
    """The standard error of the mean over the benchmarks."""
    return max(math.sqrt(sum(score.stderr**2 for score in scores)) / len(scores), NOISE)


def _recipe(history: History, number: int) -> Recipe:
    trained = history.trials[number - 1].trained
    assert trained is not None
    return trained


def _parts(recipe: Recipe) -> dict[str, object]:
    work: dict[str, object] = {"data script": recipe.script, "data steps": recipe.data}
    return {**recipe.train, **{key: value for key, value in work.items() if value}}


def _apart(one: object, other: object) -> float:
    if one == other:
        return 0.0
    numbers = [value for value in (one, other) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < 2 or min(numbers) <= 0:
        return 1.0
    return min(abs(math.log10(numbers[0] / numbers[1])), 1.0)
