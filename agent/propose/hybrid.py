"""A language model for the structure of a recipe, TPE for its numbers.

The structure is all of a recipe but the numeric keys of the search space: method, data work, categorical choices, and
numbers that the space does not know. The author writes a structure where the policy wants a draft or a repair, and
where the numbers of a structure are exhausted; else TPE goes on with the structure of the trial that the policy names,
from the trials that share it.

Numbers that the author writes are kept in the first trial of its structure, as a warm start; those that it leaves out
are taken from a space-filling sequence that runs through the whole study. From the second trial on they are TPE's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from agent.errors import BudgetEnded, TrialFailed
from agent.propose import Author, Check, Directive, Policy
from agent.propose.digest import Defaults, in_effect
from agent.propose.policy import DEBUGS, direct
from agent.propose.tpe import Tpe, in_words
from agent.records import History, Lesson, Proposal, Recipe, Trial, Value
from agent.space import Choice, Domain, Float, Int, Parameter, Space

START = 4
"""Trials of the study before TPE models the numbers of a structure: by then its drafts have covered their range."""
NUMBERS = (
    "Choose the structure: the method, the data work, all that is no number. TPE searches {keys} in it: set one of "
    "them only where you know a value to begin with"
)


class Hybrid:
    """Implements `agent.propose.Author`.

    Args:
        author: Writes structures, mends data scripts, reflects; `asked_for` is the policy to give it.
        space: Its numeric parameters are what TPE varies.
        check: Why a recipe may not run.
        seed: Of TPE.
        defaults: What holds where a recipe's keys say nothing.
    """

    def __init__(
        self, author: Author, space: Space, check: Check, seed: int, defaults: Defaults = lambda train: {}
    ) -> None:
        self._author = author
        self._space = space
        self._check = check
        self._seed = seed
        self._defaults = defaults

    @property
    def name(self) -> str:
        """ "hybrid:gpt-4"."""
        return f"hybrid:{self._author.name.removeprefix('llm:')}"

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next numbers of a structure, or a new structure; raises as the author's `propose` does."""
        directive = _directive(history)
        if directive.mode == "improve" and directive.parent is not None:
            try:
                return self._vary(history.trials[directive.parent - 1], directive, history, pending)
            except (BudgetEnded, TrialFailed):
                pass  # the structure has no further numbers that may run
        return self._completed(self._author.propose(history, pending), history, pending)

    def mend(self, proposal: Proposal, problem: str) -> Proposal:
        """As the author's."""
        return self._author.mend(proposal, problem)

    def reflect(self, history: History, trial: Trial, found: str) -> Lesson:
        """As the author's."""
        return self._author.reflect(history, trial, found)

    def _vary(self, parent: Trial, directive: Directive, history: History, pending: Sequence[Proposal]) -> Proposal:
        """Other numbers in the structure of a trial."""
        seen = msgspec.structs.replace(history, trials=tuple(self._seen(trial) for trial in history.trials))
        proposal = seen.trials[parent.number - 1].proposal
        assert proposal is not None
        recipe = proposal.recipe
        parameters = numeric(self._space, in_effect(recipe.train, self._defaults))
        keys = {parameter.key for parameter in parameters}
        structure = _without(recipe, keys)
        tried = [other.proposal.recipe for other in seen.trials if other.proposal is not None]
        shared = [one.train for one in tried if _without(one, keys) == structure]
        space = Space(tuple(_widened(p, [train[p.key] for train in shared if p.key in train]) for p in parameters))
        found = self._tpe(space, structure, history, len(shared)).propose(seen, pending)
        change = {key: found.recipe.train[key] for key in keys if found.recipe.train[key] != recipe.train.get(key)}
        return msgspec.structs.replace(
            found,
            change=in_words(dict(sorted(change.items()))),
            reason=f"{directive.why}; its structure is kept",
            parent=parent.number,
            mode="improve",
        )

    def _completed(self, proposal: Proposal, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The author's proposal with the numbers that it left out."""
        train = proposal.recipe.train
        left_out = [p for p in numeric(self._space, in_effect(train, self._defaults)) if train.get(p.key) is None]
        if not left_out:
            return proposal
        base = _without(proposal.recipe, {parameter.key for parameter in left_out})
        try:
            found = self._tpe(Space(tuple(left_out)), base, history, 0).propose(history, pending)
        except (BudgetEnded, TrialFailed):
            return proposal
        values = {parameter.key: found.recipe.train[parameter.key] for parameter in left_out}
        return msgspec.structs.replace(
            proposal, recipe=found.recipe, reason=f"{proposal.reason} Numbers left open: {in_words(values)}.".strip()
        )

    def _tpe(self, space: Space, base: Recipe, history: History, shared: int) -> Tpe:
        """TPE over the numbers of a structure that so many trials share; its start is that of the whole study."""
        trials = len(history.trials)
        start = max(1, START - (trials - shared))
        return Tpe(space, self._check, self._seed, base=base, start=start, skip=trials)

    def _seen(self, trial: Trial) -> Trial:
        """The trial with the script that was really run, and every number that it was trained with written down."""
        if trial.proposal is None or trial.trained is None:
            return trial
        recipe = msgspec.structs.replace(trial.proposal.recipe, script=trial.trained.script)
        held = in_effect(recipe.train, self._defaults)
        numbers = {p.key: held[p.key] for p in numeric(self._space, held) if held.get(p.key) is not None}
        recipe = msgspec.structs.replace(recipe, train={**recipe.train, **numbers})
        return msgspec.structs.replace(trial, proposal=msgspec.structs.replace(trial.proposal, recipe=recipe))


def asked_for(space: Space) -> Policy:
    """The policy of an author whose numbers are TPE's: it is told so."""
    keys = [parameter.key for parameter in space.parameters if _is_numeric(parameter.domain)]
    words = NUMBERS.format(keys=", ".join(keys))

    def policy(history: History) -> Directive:
        directive = direct(history)
        return msgspec.structs.replace(directive, why=f"{directive.why}. {words}")

    return policy


def _directive(history: History) -> Directive:
    """As the policy's; but where only numbers failed, other numbers are the repair, `DEBUGS` times in a row."""
    directive = direct(history)
    if directive.mode != "debug" or directive.parent is None:
        return directive
    latest = history.trials[-1 - DEBUGS :]
    failed = history.trials[directive.parent - 1].proposal
    in_a_row = sum(t.failure is not None and t.proposal is not None and t.proposal.author == Tpe.name for t in latest)
    if failed is None or failed.author != Tpe.name or failed.parent is None or in_a_row > DEBUGS:
        return directive
    return Directive("improve", failed.parent, directive.why)


def numeric(space: Space, train: Mapping[str, Value]) -> tuple[Parameter, ...]:
    """The parameters of a recipe's structure that hold numbers, without the conditions that it fulfils."""
    keys = {parameter.key for parameter in space.parameters if _is_numeric(parameter.domain)}
    return tuple(
        Parameter(parameter.key, parameter.domain)
        for parameter in space.parameters
        if parameter.key in keys and parameter.active(train)
    )


def _is_numeric(domain: Domain) -> bool:
    if isinstance(domain, Choice):
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in domain.values)
    return True


def _widened(parameter: Parameter, values: Sequence[Value]) -> Parameter:
    """The parameter with room for values that the author chose outside the space."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    domain = parameter.domain
    if isinstance(domain, Choice):
        return Parameter(parameter.key, Choice(tuple(dict.fromkeys((*domain.values, *numbers)))))
    positive = [number for number in numbers if number > 0 or not domain.log]
    low, high = min((domain.low, *positive)), max((domain.high, *positive))
    if isinstance(domain, Float):
        return Parameter(parameter.key, msgspec.structs.replace(domain, low=low, high=high))
    return Parameter(parameter.key, Int(round(low), round(high), domain.log))


def _without(recipe: Recipe, keys: set[str]) -> Recipe:
    train = {key: value for key, value in recipe.train.items() if key not in keys}
    return msgspec.structs.replace(recipe, train=train)
