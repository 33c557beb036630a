"""What a recipe may do to its data without code: filter, dedupe, sample, shuffle, limit, template.

A language model writes them as a list in the recipe, `data: [{"step": "filter", "columns": "answer", ...}, ...]`, so
they are untrusted: no pattern hangs and no template grows without bound. `apply` (scenarios/finetune/step_rows.py) runs
them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, get_args

import msgspec

from agent.errors import UsageError

MOST_STEPS = 20
LONGEST_PATTERN = 200
MOST_REPEATED = 100
"""Product of a pattern's counted repetitions: the automaton grows with it."""
LONGEST_TEMPLATE = 20_000
MOST_PLACEHOLDERS = 50
SAID = 80  # characters of what was written, in a message

Count = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Length = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Names = Name | Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=50)]
Some = Name | Annotated[tuple[Name, ...], msgspec.Meta(max_length=50)]
Words = str | Annotated[tuple[str, ...], msgspec.Meta(max_length=50)]


class _Step(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", forbid_unknown_fields=True):
    pass


class Filter(_Step, frozen=True, kw_only=True, tag="filter"):
    """Keep the rows that pass every test given; the text of several columns is tested together.

    Attributes:
        columns: Whose text is tested.
        min_tokens, max_tokens, min_characters, max_characters: Its length; tokens are approximate.
        contains: Any of these words must be in it. lacks: None of these may be.
        pattern: A regular expression (RE2) that must match somewhere in it.
        ignore_case: For `contains`, `lacks` and `pattern`.
        not_empty: Each of the columns must say something.
    """

    columns: Names
    min_tokens: Length | None = None
    max_tokens: Length | None = None
    min_characters: Length | None = None
    max_characters: Length | None = None
    contains: Words = ()
    lacks: Words = ()
    pattern: str | None = None
    ignore_case: bool = False
    not_empty: bool = False


class Dedupe(_Step, frozen=True, kw_only=True, tag="dedupe"):
    """Keep the first of the rows whose columns say the same, but for case, width and blanks."""

    columns: Names


class Sample(_Step, frozen=True, kw_only=True, tag="sample"):
    """Keep at most `n` rows of each value of `column`, or of all; drawn by `seed`, in the order that they had."""

    n: Count
    column: Name | None = None
    seed: Seed = 0


class Shuffle(_Step, frozen=True, kw_only=True, tag="shuffle"):
    """Put the rows into an order drawn by `seed`."""

    seed: Seed = 0


class Limit(_Step, frozen=True, kw_only=True, tag="limit"):
    """Keep the first `n` rows."""

    n: Count


class Template(_Step, frozen=True, kw_only=True, tag="template"):
    """Compose new columns from the old ones, which go unless `keep` names them.

    Attributes:
        columns: New column -> text in which `{name}` stands for a column, `{{` and `}}` for braces.
        keep: Old columns that stay.
    """

    columns: Annotated[dict[Name, str], msgspec.Meta(min_length=1, max_length=20)]
    keep: Some = ()


Step = Filter | Dedupe | Sample | Shuffle | Limit | Template
KINDS: dict[str, type[Step]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Step)}
TESTS = ("min_tokens", "max_tokens", "min_characters", "max_characters", "contains", "lacks", "pattern", "not_empty")


def parse(value: object, columns: Iterable[str] | None = None) -> tuple[Step, ...]:
    """The steps that a recipe holds.

    Args:
        value: As decoded from JSON or YAML.
        columns: Those of the data, where they are known: then steps that name others are refused.

    Raises:
        UsageError: One line for each problem, naming step, key or column, and the nearest name.
    """
    steps, wrong = _read(value, columns)
    if wrong:
        raise UsageError("\n".join(wrong), f"steps: {', '.join(KINDS)}")
    return steps


def problems(value: object, columns: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the steps of a proposal, one line each; as `parse` says it."""
    return _read(value, columns)[1]


def schema() -> dict[str, Any]:
    """JSON Schema of the list of steps, for a structured proposal."""
    return msgspec.json.schema(list[Step])


def names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (value,) if isinstance(value, str) else value


def placeholders(template: str) -> list[tuple[str, str | None]]:
    """A template in parts: text, and the column that follows it; None after the last.

    Raises:
        ValueError: A brace has no partner.
    """
    parts: list[tuple[str, str | None]] = []
    text = ""
    for piece in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+", template):
        if piece in ("{", "}"):
            raise ValueError(f"a brace without its partner in {template[:SAID]!r}: write {{{{ and }}}} for braces")
        if piece.startswith("{") and piece != "{{":
            parts.append((text, piece[1:-1].strip()))
            text = ""
        else:
            text += {"{{": "{", "}}": "}"}.get(piece, piece)
    return [*parts, (text, None)]


def _read(value: object, columns: Iterable[str] | None) -> tuple[tuple[Step, ...], list[str]]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return (), [f"data: wanted a list of steps, found {type(value).__name__}"]
    if len(value) > MOST_STEPS:
        return (), [f"data: {len(value)} steps, at most {MOST_STEPS} are allowed"]
    steps: list[Step] = []
    wrong: list[str] = []
    known = None if columns is None else dict.fromkeys(columns)
    for number, entry in enumerate(value, 1):
        step, found = _step(entry)
        where = f"data, step {number}" + (f" ({_tag(step)})" if step else "")
        if step:
            steps.append(step)
            found = _meaning(step)
            if known is not None:
                found += [_unknown(name, known, "column") for name in _used(step) if name not in known]
            if isinstance(step, Template):
                known = dict.fromkeys((*names(step.keep), *step.columns))
        else:
            known = None  # what it would have made is not known
        wrong += [f"{where}: {problem}" for problem in found]
    return tuple(steps), wrong


def _step(entry: object) -> tuple[Step | None, list[str]]:
    if not isinstance(entry, Mapping):
        return None, [f'wanted an object such as {{"step": "shuffle"}}, found {repr(entry)[:SAID]}']
    kind = entry.get("step")
    if not isinstance(kind, str):
        return None, [f'"step" must say which one it is: {", ".join(KINDS)}']
    if kind not in KINDS:
        return None, [_unknown(kind, KINDS, "step")]
    fields = ("step", *KINDS[kind].__struct_fields__)
    if strange := [str(key) for key in entry if key not in fields]:
        return None, [f"({kind}) {_unknown(key, fields, 'key')}" for key in strange]
    try:
        step: Step = msgspec.convert(dict(entry), KINDS[kind])
    except (msgspec.ValidationError, RecursionError) as error:
        message, _, place = str(error).partition(" - at ")
        return None, [f"({kind}) {place.strip('`').removeprefix('$.') or 'step'}: {message}"]
    return step, []


def _tag(step: Step) -> str:
    return str(step.__struct_config__.tag)


def _used(step: Step) -> list[str]:
    """The columns that a step needs."""
    if isinstance(step, Filter | Dedupe):
        return list(names(step.columns))
    if isinstance(step, Sample):
        return [step.column] if step.column else []
    if isinstance(step, Template):
        try:
            used = [name for text in step.columns.values() for _, name in placeholders(text) if name is not None]
        except ValueError:
            used = []
        return list(dict.fromkeys([*used, *names(step.keep)]))
    return []


def _meaning(step: Step) -> list[str]:
    """What is wrong with a step beyond its types."""
    if isinstance(step, Filter):
        return _filter_problems(step)
    if not isinstance(step, Template):
        return []
    wrong = [f"{name}: both composed and kept" for name in names(step.keep) if name in step.columns]
    for column, text in step.columns.items():
        try:
            count = len(placeholders(text)) - 1 if len(text) <= LONGEST_TEMPLATE else 0
        except ValueError as error:
            wrong.append(f"{column}: {error}")
            continue
        if len(text) > LONGEST_TEMPLATE or count > MOST_PLACEHOLDERS:
            most = f"{LONGEST_TEMPLATE:,} characters and {MOST_PLACEHOLDERS} placeholders"
            wrong.append(f"{column}: the template is too long; at most {most}")
    return wrong


def _filter_problems(step: Filter) -> list[str]:
    if not any(getattr(step, test) not in (None, (), False, "") for test in TESTS):
        return [f"tests nothing; give one or more of {', '.join(TESTS)}"]
    wrong = [
        f"min_{unit} {low} is more than max_{unit} {high}"
        for unit in ("tokens", "characters")
        if (low := getattr(step, f"min_{unit}")) is not None
        and (high := getattr(step, f"max_{unit}")) is not None
        and low > high
    ]
    return wrong + ([problem] if step.pattern and (problem := _pattern_problem(step.pattern)) else [])


def _pattern_problem(pattern: str) -> str | None:
    """Why a pattern is not taken. RE2 matches in time linear in the text, but its automaton must stay small too."""
    import pyarrow
    import pyarrow.compute

    if len(pattern) > LONGEST_PATTERN:
        return f"pattern: {len(pattern)} characters, at most {LONGEST_PATTERN} are allowed"
    counted = [
        max(map(int, re.findall(r"\d{1,9}", bounds)), default=1) for bounds in re.findall(r"\{[\d,]+\}", pattern)
    ]
    if math.prod(max(1, count) for count in counted) > MOST_REPEATED:
        return f"pattern: its counted repetitions multiply to more than {MOST_REPEATED}; use * or +"
    try:
        pyarrow.compute.match_substring_regex(pyarrow.array([""]), pattern)
    except (pyarrow.ArrowException, UnicodeError) as error:
        reason = str(error).removeprefix("Invalid regular expression: ").splitlines()[0]
        return f"pattern: {reason} (RE2 syntax: no look-around, no back references)"
    return None


def _unknown(name: str, known: Iterable[str], what: str) -> str:
    known = [str(one) for one in known]
    near = difflib.get_close_matches(name[:SAID].lower(), known, n=1, cutoff=0.6)
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") if known else "none"
    return f"no {what} {name[:SAID]!r}; " + (f"did you mean {near[0]}?" if near else f"there is {listed}")
