"""Random search (Bergstra & Bengio 2012): uniform draws from the search space, the baseline of all others."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from agent.propose import Check
from agent.propose.tpe import ATTEMPTS, SWEEP, describe, first_new, recipes, sweep
from agent.records import History, Proposal, Recipe, Value
from agent.space import Space


class Random:
    """Proposes uniform draws; the n-th proposal is a pure function of the seed, of n and of what may not be repeated.

    Args:
        space: What varies; logarithmic ranges are drawn from logarithmically.
        check: Why a recipe may not run; invalid draws are passed over.
        seed: Another seed gives another sequence.
    """

    name = "random"

    def __init__(self, space: Space, check: Check, seed: int) -> None:
        self._space = space
        self._check = check
        self._seed = seed

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next draw that was not tried before.

        Raises:
            BudgetEnded: The space holds no more valid recipes that are new.
            TrialFailed: "proposal": of the recipes that were looked at, none is valid.
        """
        tried = recipes(history, pending)
        drawn = itertools.islice(self._draws(len(history.trials), len(pending)), ATTEMPTS + len(tried))
        swept = itertools.islice(sweep(self._space, self._seed), SWEEP + len(tried))
        known = any(self._space.restrict(recipe.train) is not None for recipe in tried)
        found = first_new(itertools.chain(drawn, swept), self._recipe, self._check, tried, known=known)
        return describe(found, history, f"Random draw {len(history.trials) + 1}: ", self.name)

    def _draws(self, *place: int) -> Iterator[dict[str, Value]]:
        """An endless sequence of independent points, decided by the seed and the place in the study."""
        rng = random.Random(f"{self._seed}/{place}")  # noqa: S311
        while True:
            values: dict[str, Value] = {}
            for parameter in self._space.walk(values):
                values[parameter.key] = parameter.domain.at(rng.random())
            yield values

    def _recipe(self, values: dict[str, Value]) -> Recipe:
        return Recipe(train={**self._space.fixed, **values})
