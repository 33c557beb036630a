"""The proposer that is a language model: it writes a hypothesis and a recipe; the program checks, and asks again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.errors import TrialFailed
from agent.llm import ChatModel, EndpointError, Message, Replay, Reply, Transcript, charge
from agent.prompts import clip, one_line, printable, render
from agent.propose import Check
from agent.propose.digest import Defaults, best_text, in_effect, mistakes_text, pending_text, scores_text, trials_text
from agent.records import History, Proposal, Recipe, Scalar, Usage, Value

HISTORY = 24_000  # characters of the prompt for the finished trials
KEYS = 24_000  # ... for the allowed keys
EXAMPLES, EXAMPLE = 3, 600  # rows shown, characters of each
FACTS = 2_000  # ... for each free text of the brief
BAD_REPLY = 4_000  # ... of an unusable reply, when it is quoted back
PROBLEMS, PROBLEM = 8, 500  # problems named in a repair turn, characters of each
RECIPE = 8_000  # ... of a recipe as JSON
PROSE = 600  # ... of each text that the model writes into a proposal


class BenchmarkBrief(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark as the model may know it; never a question of it."""

    name: str
    description: str
    answer_format: str


class StudyBrief(msgspec.Struct, frozen=True, kw_only=True):
    """What the model knows besides the history.

    Attributes:
        examples: A few training rows as text.
        defaults: What holds where the keys of a recipe say nothing.
        methods: Recipes whose defaults differ; the model is told the defaults of each.
        logs: Whether the words of a failed training may be told: not where its data hold questions of a benchmark.
        budget: What is left of the call's budget, in words; asked anew for each proposal.
    """

    dataset: str
    rows: int
    columns: tuple[str, ...]
    model: str
    benchmarks: tuple[BenchmarkBrief, ...]
    hardware: str
    defaults: Defaults
    methods: tuple[dict[str, Value], ...] = ()
    model_facts: dict[str, str] = {}
    examples: tuple[str, ...] = ()
    logs: bool = True
    budget: Callable[[], str] = lambda: "no limit"


class AllowedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe key that the model may set; `bounds` are the smallest and the largest value, None where open.

    `default` is the training program's own; it holds only where `StudyBrief.defaults` says nothing.
    """

    name: str
    type: Literal["bool", "int", "float", "str", "list"]
    help: str = ""
    default: Value = None
    choices: tuple[Scalar, ...] = ()
    bounds: tuple[float | None, float | None] = (None, None)


class ProposalFailed(TrialFailed):
    """No valid proposal came of all attempts; `usage` is what they consumed."""

    def __init__(self, reason: str, tail: str, usage: Usage) -> None:
        super().__init__("proposal", reason, tail)
        self.usage = usage


class _Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reply's form."""

    hypothesis: str
    change: str
    train: dict[str, Any]
    reason: str = ""
    expected: str = ""
    parent: int | None = None


def author(model: ChatModel | Replay) -> str:
    """Who is named as the author of a model's proposals."""
    return f"llm:{model.endpoint.model}"


class Writer:
    """Implements `agent.propose.Proposer` with a chat model.

    Args:
        check: The scenario's verdict on a recipe.
        allowed: The keys that are offered; `check` decides.
        repairs: Further attempts for one proposal after an unusable reply.
        transcript: JSONL file that receives every request and reply, without keys.
    """

    def __init__(
        self,
        model: ChatModel | Replay,
        brief: StudyBrief,
        check: Check,
        allowed: Sequence[AllowedKey],
        repairs: int = 3,
        transcript: Path | None = None,
    ) -> None:
        self._model = model
        self._brief = brief
        self._check = check
        self._allowed = tuple(allowed)
        self._repairs = repairs
        self._transcript = Transcript(transcript, model.endpoint)
        self._schema = reply_schema(allowed)

    @property
    def name(self) -> str:
        """The author of its proposals."""
        return author(self._model)

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next proposal; raises ProposalFailed after too many unusable replies, EndpointError, BudgetEnded.

        Whatever leaves it, KeyboardInterrupt included, carries in `usage` what was consumed until then.
        """
        messages = self._opening(history, pending)
        usage = Usage()
        problems: list[str] = []
        text = ""
        try:
            for turn in range(1 + self._repairs):
                if turn:
                    messages += _repair_turn(text, problems, last=turn == self._repairs)
                where = {"turn": turn + 1, "turns": 1 + self._repairs}
                reply = self._ask(messages, where)
                usage += reply.usage
                text = reply.text
                proposal, problems = self._read(reply, history, pending)
                said = {"reply": text, "problem": reply.problem, "problems": problems, "usage": reply.usage}
                self._transcript.write(messages, **where, **said)
                if proposal is not None:
                    return msgspec.structs.replace(proposal, usage=usage)
        except BaseException as error:
            charge(error, usage)
            raise
        reason = f"no valid proposal in {1 + self._repairs} replies; the last one: {_shortened(problems)}"
        raise ProposalFailed(one_line(reason, 4 * PROSE), clip(printable(text), BAD_REPLY), usage)

    def _opening(self, history: History, pending: Sequence[Proposal]) -> list[Message]:
        brief = self._brief
        system = render(
            "propose_system",
            brief=_bounded(brief),
            keys=_keys_text(self._allowed, {key for method in _methods(brief) for key in brief.defaults(method)}),
            defaults=defaults_text(brief),
            examples="\n".join(clip(one_line(row, 10 * EXAMPLE), EXAMPLE) for row in brief.examples[:EXAMPLES]),
        )
        user = render(
            "propose_user",
            base=scores_text(history.base),
            best=best_text(history),
            mistakes=mistakes_text(history),
            budget=brief.budget(),
            trials=trials_text(history, brief.defaults, HISTORY, logs=brief.logs),
            pending=clip(pending_text(pending), HISTORY // 4),
        )
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _ask(self, messages: list[Message], where: Mapping[str, int]) -> Reply:
        try:
            return self._model.complete(messages, self._schema)
        except EndpointError as error:
            self._transcript.write(messages, **where, error=str(error), usage=error.usage)
            raise

    def _read(self, reply: Reply, history: History, pending: Sequence[Proposal]) -> tuple[Proposal | None, list[str]]:
        """A proposal, or the problems that the model is told."""
        if reply.data is None:
            return None, [reply.problem]
        try:
            draft = msgspec.convert(reply.data, _Draft)
        except (msgspec.ValidationError, RecursionError) as error:
            return None, [str(error)]
        recipe = Recipe(train=draft.train)
        problems = _form_problems(draft, {trial.number for trial in history.trials})
        problems = problems or self._check(recipe) or self._repeats(recipe, history, pending)
        if problems:
            return None, problems
        proposal = Proposal(
            hypothesis=one_line(draft.hypothesis, PROSE),
            change=one_line(draft.change, PROSE),
            reason=one_line(draft.reason, PROSE),
            expected=one_line(draft.expected, PROSE),
            recipe=recipe,
            parent=draft.parent,
            author=self.name,
        )
        return proposal, []

    def _repeats(self, recipe: Recipe, history: History, pending: Sequence[Proposal]) -> list[str]:
        """That a recipe was tried before, or is being tried."""
        wanted = canonical(recipe.train, self._defaults)
        for trial in history.trials:
            if trial.proposal is not None and canonical(trial.proposal.recipe.train, self._defaults) == wanted:
                return [f"this recipe equals that of trial {trial.number} ({trial.verdict}); propose another one"]
        if any(canonical(other.recipe.train, self._defaults) == wanted for other in pending):
            return ["this recipe equals one that is still running; propose another one"]
        return []

    def _defaults(self, train: Mapping[str, Value]) -> dict[str, Value]:
        """The brief's defaults over the training program's own."""
        return {**{key.name: key.default for key in self._allowed}, **self._brief.defaults(train)}


def reply_schema(allowed: Sequence[AllowedKey]) -> dict[str, Any]:
    """The JSON schema of a reply, for endpoints that constrain their models with one."""
    prose = {"type": "string"}
    train = {"type": "object", "properties": {key.name: _key_schema(key) for key in allowed}}
    return {
        "type": "object",
        "properties": {
            "hypothesis": prose,
            "reason": prose,
            "expected": prose,
            "change": prose,
            "parent": {"type": ["integer", "null"]},
            "train": train | {"additionalProperties": False},
        },
        "required": ["hypothesis", "reason", "expected", "change", "parent", "train"],
        "additionalProperties": False,
    }


def canonical(train: Mapping[str, Value], defaults: Defaults) -> str:
    """One text for all ways to write a recipe: a default may be written or not, order does not count, and 1.0 is 1."""
    plain = {key: _plain_number(value) for key, value in in_effect(train, defaults).items()}
    return json.dumps({key: value for key, value in plain.items() if value is not None}, sort_keys=True)


def defaults_text(brief: StudyBrief) -> str:
    """The defaults of an empty recipe, then for each method what is different with it."""
    usual = brief.defaults({})
    lines = [json.dumps(usual, ensure_ascii=False)]
    for method in brief.methods:
        found = {**brief.defaults(method), **method}
        other = {key: value for key, value in found.items() if usual.get(key) != value}
        other |= {key: None for key in usual if key not in found}
        if other:
            lines.append(f"  - with {json.dumps(method, ensure_ascii=False)}: {json.dumps(other, ensure_ascii=False)}")
    return "\n".join(lines)


def _methods(brief: StudyBrief) -> tuple[dict[str, Value], ...]:
    return ({}, *brief.methods)


def _plain_number(value: Value) -> Value:
    """`value`, with whole numbers as int and strings that spell a number ("1e-3") as that number."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    if not isinstance(number, float) or not math.isfinite(number):
        return value
    return int(number) if number.is_integer() else number


def _key_schema(key: AllowedKey) -> dict[str, Any]:
    if key.choices:
        return {"enum": list(key.choices)}
    names = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "list": "array"}
    schema: dict[str, Any] = {"type": names[key.type]}
    if key.type == "list":
        schema["items"] = {"type": ["string", "number", "boolean", "null"]}
    for name, bound in zip(("minimum", "maximum"), key.bounds, strict=True):
        if bound is not None:
            schema[name] = bound
    return schema


def _keys_text(allowed: Sequence[AllowedKey], overruled: Set[str]) -> str:
    """One line a key; where there are too many, the help is shortened before names are.

    Args:
        overruled: Keys whose own default never holds; it is left out.
    """
    text = ""
    for help_length in (200, 80, 0):
        text = "\n".join(_key_line(key, help_length, told=key.name not in overruled) for key in allowed)
        if len(text) <= KEYS:
            break
    return clip(text, KEYS)


def _key_line(key: AllowedKey, help_length: int, *, told: bool) -> str:
    low, high = key.bounds
    values = f" one of {json.dumps(list(key.choices))}" if key.choices else ""
    if low is not None or high is not None:
        values += f" from {'any' if low is None else f'{low:g}'} to {'any' if high is None else f'{high:g}'}"
    about = f": {clip(one_line(key.help, 1_000), help_length)}" if help_length and key.help else ""
    default = f", default {json.dumps(key.default)}" if told else ""
    return f"{key.name} ({key.type}{default}{values}){about}"


def _bounded(brief: StudyBrief) -> StudyBrief:
    """The brief with every free text on one line of bounded length."""
    return msgspec.structs.replace(
        brief,
        columns=tuple(one_line(column, 100) for column in brief.columns[:50]),
        hardware=one_line(brief.hardware, FACTS),
        model_facts={name: one_line(value, FACTS // 10) for name, value in brief.model_facts.items()},
        benchmarks=tuple(
            BenchmarkBrief(
                name=one.name,
                description=one_line(one.description, FACTS),
                answer_format=one_line(one.answer_format, FACTS),
            )
            for one in brief.benchmarks
        ),
    )


def _form_problems(draft: _Draft, numbers: set[int]) -> list[str]:
    """What no type says: empty texts, an unknown parent, values that no recipe can hold."""
    problems = [f"{name} is empty" for name in ("hypothesis", "change") if not getattr(draft, name).strip()]
    if draft.parent is not None and draft.parent not in numbers:
        known = ", ".join(map(str, sorted(numbers)[-20:])) or "none yet"
        problems.append(f"parent {draft.parent} is no finished trial (finished: {known}); use one of them, or null")
    if len(json.dumps(draft.train)) > RECIPE:
        return [*problems, f"train is longer than {RECIPE} characters"]
    for key, value in draft.train.items():
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
        ):
            problems.append(f"train.{key}: must be a number, a string, true, false, null or a flat list")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"train.{key}: must be finite")
    return problems


def _repair_turn(text: str, problems: Sequence[str], *, last: bool) -> list[Message]:
    quoted = "\n".join(f"- {clip(problem, PROBLEM)}" for problem in problems[:PROBLEMS])
    return [
        {"role": "assistant", "content": clip(text, BAD_REPLY) or "(an empty reply)"},
        {"role": "user", "content": render("repair", problems=quoted, last=last)},
    ]


def _shortened(problems: Sequence[str]) -> str:
    return "; ".join(clip(problem, PROBLEM) for problem in problems[:PROBLEMS])
