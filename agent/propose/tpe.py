"""Search without a language model: a space-filling start, then TPE (Bergstra et al. 2011) by Optuna.

There is no second storage: every proposal is a pure function of the seed and the history.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agent.errors import BudgetEnded, TrialFailed
from agent.propose import Check
from agent.records import History, Proposal, Recipe, Trial, Value
from agent.space import Choice, Float, Int, Parameter, Space

if TYPE_CHECKING:
    import optuna

START = 8
"""Recipes of the space-filling start: a power of two, so that they lie evenly."""
ATTEMPTS = 50
"""Draws in which a new recipe is usually found."""
SWEEP = 1_000
"""Points, beyond those that were tried, that are looked through before the space counts as exhausted."""


class Tpe:
    """Proposes points of a search space.

    Args:
        space: What varies. Put the most important parameter first.
        check: Why a recipe may not run; invalid points are passed over.
        seed: Another seed gives another, equally good sequence.
        base: What every recipe has besides: keys, data work. Then only trials that have exactly this besides teach TPE.
        start: Recipes of the space-filling start. skip: how many of its points are passed over.
    """

    name = "tpe"

    def __init__(
        self,
        space: Space,
        check: Check,
        seed: int,
        *,
        base: Recipe | None = None,
        start: int = START,
        skip: int = 0,
    ) -> None:
        self._space = space
        self._check = check
        self._seed = seed
        self._base = base
        self._start = start
        self._skip = skip

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next point that was not tried before; trials outside the space are avoided but teach TPE nothing.

        Raises:
            BudgetEnded: The space holds no more valid recipes that are new.
            TrialFailed: "proposal": of the points of the space that were looked at, none is valid.
        """
        tried = recipes(history, pending)
        within = sum(self._values(recipe) is not None for recipe in tried)
        start = within < self._start or not self._stands_out(history)
        filling = itertools.islice(design(self._space, self._seed), self._skip, None)
        points = filling if start else self._ask(history, pending)
        drawn = itertools.islice(points, ATTEMPTS + len(tried))
        swept = itertools.islice(sweep(self._space, self._seed), SWEEP + len(tried))
        found = first_new(itertools.chain(drawn, swept), self._recipe, self._check, tried, known=within > 0)
        why = self._why(history, within, start=start, swept=found.draw >= ATTEMPTS + len(tried))
        return describe(found, history, f"{why}: ", self.name)

    def _stands_out(self, history: History) -> bool:
        """Whether a score is above others: while all are equal (often 0), a model of them would follow noise.

        The others are those of the space; of a part of it, which a base makes, all those of the study.
        """
        known = self._known(history)
        mine = [mean for trial in known if (mean := history.estimate(trial)) is not None]
        among = history.trials if self._base else known
        others = [mean for trial in among if (mean := history.estimate(trial)) is not None]
        return bool(mine) and max(mine) > min(others)

    def _recipe(self, values: dict[str, Value]) -> Recipe:
        """The whole recipe of a point."""
        base = self._base or Recipe(train={})
        return msgspec.structs.replace(base, train={**base.train, **self._space.fixed, **values})

    def _values(self, recipe: Recipe) -> dict[str, Value] | None:
        """The point of a recipe; None where it lies outside the space, or differs from the base in more."""
        values = self._space.restrict(recipe.train)
        if values is None or self._base is None:
            return values
        return values if self._recipe(values) == recipe else None

    def _ask(self, history: History, pending: Sequence[Proposal]) -> Iterator[dict[str, Value]]:
        """Points from TPE: multivariate, grouped by what is conditional; each unused one repels the next."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`; the version is pinned
            sampler = optuna.samplers.TPESampler(
                seed=zlib.crc32(f"{self._seed}/{len(history.trials)}/{len(pending)}".encode()),
                n_startup_trials=0,  # the space-filling start takes their place
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        state = optuna.trial.TrialState
        for trial in self._known(history):
            assert trial.proposal
            # A failure counts as worse than any score: Optuna would ignore FAIL.
            mean = history.estimate(trial)
            self._tell(study, trial.proposal, state.PRUNED if mean is None else state.COMPLETE, mean)
        for proposal in pending:
            self._tell(study, proposal, state.RUNNING)
        while True:
            asked = study.ask()
            values: dict[str, Value] = {}
            for parameter in self._space.walk(values):
                domain = parameter.domain
                if isinstance(domain, Choice):
                    values[parameter.key] = asked.suggest_categorical(parameter.key, domain.values)
                elif isinstance(domain, Int):
                    values[parameter.key] = asked.suggest_int(parameter.key, domain.low, domain.high, log=domain.log)
                else:
                    real = asked.suggest_float(parameter.key, domain.low, domain.high, log=domain.log)
                    values[parameter.key] = domain.round(real)
            yield values

    def _known(self, history: History) -> list[Trial]:
        """The trials inside the space."""
        return [t for t in history.trials if t.proposal and self._values(t.proposal.recipe) is not None]

    def _tell(
        self, study: optuna.Study, proposal: Proposal, state: optuna.trial.TrialState, mean: float | None = None
    ) -> None:
        """Add an earlier trial to the study, unless it lies outside the space."""
        import optuna

        values = self._values(proposal.recipe)
        if values is None:
            return
        domains = {p.key: _distribution(p.domain) for p in self._space.parameters if p.key in values}
        study.add_trial(optuna.create_trial(state=state, value=mean, params=dict(values), distributions=domains))

    def _why(self, history: History, within: int, *, start: bool, swept: bool) -> str:
        """How a point was found."""
        if swept:
            return "One of the last recipes of the search space"
        if start and within < self._start:
            return f"Space-filling start {within + 1} of {self._start}"
        if start:
            return f"Space-filling, point {within + 1}: no score stands out yet"
        means = {trial.number: history.estimate(trial) for trial in self._known(history)}
        best, near = max((mean, -number) for number, mean in means.items() if mean is not None)
        return f"TPE, after {len(history.trials)} trials (the best, trial {-near}, scored {best:.3f})"


class Point(msgspec.Struct, frozen=True):
    """A recipe that is new and may run, the values in it that vary, and which of the points looked at it was."""

    recipe: Recipe
    values: dict[str, Value]
    draw: int


def recipes(history: History, pending: Sequence[Proposal]) -> list[Recipe]:
    """All recipes that were tried, or are being tried."""
    tried = [trial.proposal.recipe for trial in history.trials if trial.proposal]
    return [*tried, *(proposal.recipe for proposal in pending)]


def first_new(
    points: Iterable[dict[str, Value]],
    recipe_of: Callable[[dict[str, Value]], Recipe],
    check: Check,
    tried: Sequence[Recipe],
    *,
    known: bool,
) -> Point:
    """The first of the points whose recipe is new and may run.

    Args:
        known: Whether any recipe of this space was tried, so that there are valid ones.

    Raises:
        BudgetEnded: None is new and valid.
        TrialFailed: "proposal": none is valid, nor ever was.
    """
    problems: list[str] = []
    for draw, values in enumerate(points):
        recipe = recipe_of(values)
        if recipe in tried:
            continue
        found = check(recipe)
        if not found:
            return Point(recipe, values, draw)
        problems = found
    if problems and not known:
        raise TrialFailed(
            "proposal", f"the search space holds no valid recipe; the last one's problem: {'; '.join(problems)}"
        )
    every = "every valid recipe" if problems else "every recipe"
    raise BudgetEnded(f"the search space is exhausted: {every} in it was tried")


def describe(point: Point, history: History, why: str, author: str) -> Proposal:
    """The proposal of a point; `why` opens its hypothesis."""
    best = next((trial for trial in history.trials if trial.number == history.best), None)
    before = best.proposal.recipe.train if best and best.proposal else {}
    change = {key: value for key, value in point.values.items() if before.get(key) != value}
    return Proposal(
        hypothesis=f"{why}{in_words(point.values)}",
        change=in_words(change),
        recipe=point.recipe,
        author=author,
        parent=history.best,
    )


def design(space: Space, seed: int) -> Iterator[dict[str, Value]]:
    """An endless space-filling sequence of points, decided by the seed.

    It comes in blocks of `START` points. The first two parameters follow a Sobol sequence (Sobol 1967) with a random
    digital shift: in each block, every quarter of the first one's range holds two points, one in each half of the
    second's. The others are stratified (Latin hypercube, McKay et al. 1979); of several such blocks the one with the
    widest smallest distance is taken (Johnson et al. 1990).
    """
    rng = random.Random(seed)  # noqa: S311
    shifts = rng.getrandbits(32), rng.getrandbits(32)
    others = max(len(space.parameters) - 2, 0)
    for start in itertools.count(step=START):
        pairs = [sobol_pair(start + i, *shifts) for i in range(START)]
        blocks = [list(zip(*(_strata(rng) for _ in range(others)), strict=True)) for _ in range(64 if others else 0)]
        candidates = [[(*pair, *rest) for pair, rest in zip(pairs, block, strict=True)] for block in blocks]
        for units in max(candidates, key=_smallest_distance, default=pairs):
            values: dict[str, Value] = {}
            # Inactive parameters keep their column, so that a condition never shifts the others.
            position = {parameter.key: unit for parameter, unit in zip(space.parameters, units, strict=False)}
            for parameter in space.walk(values):
                values[parameter.key] = parameter.domain.at(position[parameter.key])
            yield values


def sweep(space: Space, seed: int) -> Iterator[dict[str, Value]]:
    """Every point of a space of whole numbers and choices, once; `design` where there are real numbers."""
    if any(isinstance(parameter.domain, Float) for parameter in space.parameters):
        return design(space, seed)
    return _grid({}, space.parameters)


def _grid(values: dict[str, Value], parameters: Sequence[Parameter]) -> Iterator[dict[str, Value]]:
    """`values`, continued by every combination of the parameters that are active."""
    if not parameters:
        yield values
        return
    first, *rest = parameters
    if not first.active(values):
        yield from _grid(values, rest)
    elif not isinstance(first.domain, Float):
        domain = first.domain
        for value in domain.values if isinstance(domain, Choice) else range(domain.low, domain.high + 1):
            yield from _grid({**values, first.key: value}, rest)


def sobol_pair(index: int, shift: int = 0, other_shift: int = 0) -> tuple[float, float]:
    """Point `index` (below 2**32) of the two-dimensional Sobol sequence, in [0, 1) x [0, 1); shifts are 32 bits."""
    first, second = shift, other_shift
    one = two = 1 << 31
    while index:
        if index & 1:
            first ^= one
            second ^= two
        one, two, index = one >> 1, two ^ two >> 1, index >> 1
    return first / 2**32, second / 2**32


def _strata(rng: random.Random) -> list[float]:
    """One value in each of `START` equal strata, in random order."""
    return [(stratum + rng.random()) / START for stratum in rng.sample(range(START), START)]


def _smallest_distance(points: Sequence[Sequence[float]]) -> float:
    return min(math.dist(one, other) for one, other in itertools.combinations(points, 2))


def _distribution(domain: Float | Int | Choice) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    kind = IntDistribution if isinstance(domain, Int) else FloatDistribution
    return kind(domain.low, domain.high, log=domain.log)


def in_words(values: Mapping[str, Value]) -> str:
    """Recipe values for people: "learning_rate 8.1e-04, finetuning_type full"."""
    parts = (f"{key} {value:.1e}" if _tiny(value) else f"{key} {value}" for key, value in values.items())
    return ", ".join(parts) or "nothing but the seed"


def _tiny(value: Value) -> bool:
    return isinstance(value, float) and 0 < abs(value) < 0.01
