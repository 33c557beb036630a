"""A reply's form: the JSON schema that constrains it, and what makes a valid proposal of it or tells what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from agent.llm import Reply
from agent.prompts import one_line
from agent.propose import Check
from agent.propose.brief import AllowedKey, StudyBrief
from agent.propose.duplicates import parsed, twin
from agent.records import History, Mode, Proposal, Recipe, Trial, Value

RECIPE = 8_000  # characters of a recipe's keys, or of its data steps, as JSON
SCRIPT = 60_000  # characters of a data script
PROSE = 600  # ... of each text that the model writes into a proposal
PARENTS = "parent"
"""What `script` says where the parent's is to be taken, so that it need not be written again."""


class Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reply's form."""

    hypothesis: str
    change: str
    train: dict[str, Any]
    reason: str = ""
    expected: str = ""
    parent: int | None = None
    mode: Literal["", "draft", "improve", "debug"] | None = ""
    data: list[dict[str, Any]] | None = None
    script: str | None = None


@dataclass(frozen=True)
class DraftReader:
    """Turns replies into proposals.

    Attributes:
        check: The scenario's verdict on a recipe. allowed: The keys that are offered; `check` decides.
        author: Who is named as the author.
    """

    brief: StudyBrief
    check: Check
    allowed: tuple[AllowedKey, ...]
    author: str

    def read(self, reply: Reply, history: History, pending: Sequence[Proposal]) -> tuple[Proposal | None, list[str]]:
        """A proposal, or the problems that the model is told."""
        if reply.data is None:
            return None, [reply.problem]
        try:
            draft = msgspec.convert(reply.data, Draft)
        except (msgspec.ValidationError, RecursionError) as error:
            return None, [str(error)]
        if problems := [*_prose_problems(draft, history), *_train_problems(draft), *self._data_problems(draft)]:
            return None, problems
        parent = _trial(history, draft.parent)
        script = draft.script or ""
        if script.strip() == PARENTS:
            if parent is None or parent.trained is None or not parent.trained.script:
                return None, ["script: the parent has none; write one, or null for none"]
            script = parent.trained.script
        recipe = Recipe(train=draft.train, script=script if script.strip() else "", data=tuple(draft.data or ()))
        problems = self.check(recipe)
        if not problems and (same := twin(recipe, history, pending, self.defaults)) is not None:
            problems = [same]
        return (None, problems) if problems else (self._proposal(draft, recipe, parent), [])

    def defaults(self, train: Mapping[str, Value]) -> dict[str, Value]:
        """The brief's defaults over the training program's own."""
        return {**{key.name: key.default for key in self.allowed}, **self.brief.defaults(train)}

    def _proposal(self, draft: Draft, recipe: Recipe, parent: Trial | None) -> Proposal:
        return Proposal(
            hypothesis=one_line(draft.hypothesis, PROSE),
            change=one_line(draft.change, PROSE),
            reason=one_line(draft.reason, PROSE),
            expected=one_line(draft.expected, PROSE),
            recipe=recipe,
            parent=draft.parent,
            author=self.author,
            mode=_mode(draft.mode or "", parent),
        )

    def _data_problems(self, draft: Draft) -> list[str]:
        """Data work that this study does not offer, or that no journal should hold."""
        problems = []
        script = (draft.script or "").strip()
        if draft.data and not self.brief.steps:
            problems.append("data: no data steps are offered in this study; leave it out")
        if draft.data and len(json.dumps(draft.data)) > RECIPE:
            problems.append(f"data is longer than {RECIPE} characters")
        if script and not self.brief.scripts_allowed:
            problems.append("script: no data script can be run in this study; leave it out")
        return problems if script == PARENTS else [*problems, *script_problems(draft.script or "")]


def reply_schema(
    allowed: Sequence[AllowedKey], steps: Mapping[str, Any] | None = None, *, scripts: bool = False
) -> dict[str, Any]:
    """The JSON schema of a reply, for endpoints that constrain their models with one.

    Args:
        steps: Schema of the list of data steps; none where a recipe may have none. scripts: It may have a script.
    """
    prose = {"type": "string"}
    train = {"type": "object", "properties": {key.name: _key_schema(key) for key in allowed}}
    properties: dict[str, Any] = {
        "hypothesis": prose,
        "reason": prose,
        "expected": prose,
        "change": prose,
        "parent": {"type": ["integer", "null"]},
        "mode": {"enum": ["draft", "improve", "debug"]},
        "train": train | {"additionalProperties": False},
    }
    definitions = {}
    if steps:
        definitions = dict(steps.get("$defs", {}))
        properties["data"] = {key: value for key, value in steps.items() if key != "$defs"}
    if scripts:
        properties["script"] = {"type": ["string", "null"]}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return schema | ({"$defs": definitions} if definitions else {})


def script_problems(script: str) -> list[str]:
    """Why a text is no script that could be tried at all."""
    if len(script) > SCRIPT:
        return [f"script: {len(script):,} characters, at most {SCRIPT:,} are allowed"]
    try:
        parsed(script)
    except SyntaxError as error:
        return [f"script: line {error.lineno or 1}: {error.msg}"]
    except (ValueError, RecursionError, MemoryError) as error:
        return [f"script: it is no Python: {error}"]
    return []


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


def _prose_problems(draft: Draft, history: History) -> list[str]:
    """What no type says: empty texts, an unknown parent."""
    problems = [f"{name} is empty" for name in ("hypothesis", "change") if not getattr(draft, name).strip()]
    if draft.parent is not None and _trial(history, draft.parent) is None:
        known = ", ".join(str(trial.number) for trial in history.trials[-20:]) or "none yet"
        problems.append(f"parent {draft.parent} is no finished trial (finished: {known}); use one of them, or null")
    return problems


def _train_problems(draft: Draft) -> list[str]:
    """Values that no recipe can hold."""
    if len(json.dumps(draft.train)) > RECIPE:
        return [f"train is longer than {RECIPE} characters"]
    problems = []
    for key, value in draft.train.items():
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
        ):
            problems.append(f"train.{key}: must be a number, a string, true, false, null or a flat list")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"train.{key}: must be finite")
    return problems


def _trial(history: History, number: int | None) -> Trial | None:
    return next((trial for trial in history.trials if trial.number == number), None)


def _mode(said: Mode, parent: Trial | None) -> Mode:
    """What kind of attempt it is; what was said counts unless the parent contradicts it."""
    if parent is None:
        return "draft"
    failed = parent.failure is not None
    if said == "draft" or (said == "debug") == failed:
        return said or "improve"
    return "debug" if failed else "improve"
