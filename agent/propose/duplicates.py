"""Recipes that are written differently and are the same, or so nearly the same that a trial would teach nothing."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from agent.propose.digest import Defaults, in_effect
from agent.records import History, Proposal, Recipe, Value

NEAR = 0.05
"""Numbers whose ratio is nearer to 1 than this are taken for equal: less than any seed moves a score by."""


def twin(recipe: Recipe, history: History, pending: Sequence[Proposal], defaults: Defaults) -> str | None:
    """Why a recipe is not worth a trial: it equals, or nearly equals, one that was tried or is being tried."""
    for trial in reversed(history.trials):
        if trial.proposal is None:
            continue
        tried = [trial.proposal.recipe, *([trial.trained] if trial.data and trial.trained else [])]
        for other in tried:
            if (change := difference(recipe, _untouched(other, trial.proposal.recipe), defaults)) is not None:
                return _refusal(change, f"that of trial {trial.number} ({trial.verdict})")
    for proposal in pending:
        if (change := difference(recipe, proposal.recipe, defaults)) is not None:
            return _refusal(change, "one that is still running")
    return None


def difference(new: Recipe, old: Recipe, defaults: Defaults) -> str | None:
    """The numbers in which near twins differ, in words, empty for equal ones; None where they are no twins."""
    if data_work(new) != data_work(old):
        return None
    ours, theirs = (plain(recipe.train, defaults) for recipe in (new, old))
    moved = [key for key in sorted({*ours, *theirs}) if not _same(ours.get(key), theirs.get(key))]
    if not all(_near(ours.get(key), theirs.get(key)) for key in moved):
        return None
    return ", ".join(f"{key} {theirs[key]} -> {ours[key]}" for key in moved)


def canonical(train: Mapping[str, Value], defaults: Defaults) -> str:
    """One text for all ways to write a recipe: a default may be written or not, order does not count, and 1.0 is 1."""
    return json.dumps(plain(train, defaults), sort_keys=True)


def plain(train: Mapping[str, Value], defaults: Defaults) -> dict[str, Value]:
    """What is in effect, numbers written in one way, without nulls."""
    found = {key: _plain_number(value) for key, value in in_effect(train, defaults).items()}
    return {key: value for key, value in found.items() if value is not None}


def data_work(recipe: Recipe) -> tuple[str, str]:
    """Script and steps, without what makes no difference: comments and blanks, the order of keys, nulls."""
    steps = [{key: value for key, value in step.items() if value is not None} for step in recipe.data]
    return same_script(recipe.script), json.dumps(steps, sort_keys=True, default=str)


def same_script(script: str) -> str:
    """One text for all scripts that differ in comments, blank lines and layout; the lines where it is no Python."""
    try:
        return ast.dump(parsed(script))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "\n".join(filter(None, (line.strip() for line in script.splitlines())))


def parsed(script: str) -> ast.Module:
    """A script's syntax; nothing of it is run. Raises SyntaxError, ValueError, RecursionError or MemoryError."""
    with warnings.catch_warnings(action="ignore"):
        return ast.parse(script)


def _refusal(change: str, whose: str) -> str:
    if not change:
        return f"this recipe equals {whose}; propose another one"
    return f"this recipe nearly equals {whose}: {change} is too little to teach anything; propose another one"


def _untouched(recipe: Recipe, proposed: Recipe) -> Recipe:
    """A mended script with the keys that were proposed: what memory or time changed would be changed again."""
    return Recipe(train=proposed.train, script=recipe.script, data=recipe.data)


def _same(one: Any, other: Any) -> bool:
    """1 is no True: what a key means by them may differ."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _near(one: Any, other: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if not numbers or one * other <= 0 or not all(map(math.isfinite, (one, other))):
        return False
    return abs(math.log(abs(one)) - math.log(abs(other))) < math.log1p(NEAR)


def _plain_number(value: Value) -> Value:
    """`value`, with whole numbers as int and strings that spell a number ("1e-3") as that number."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    if not isinstance(number, float) or not math.isfinite(number):
        return value
    return int(number) if number.is_integer() else number
