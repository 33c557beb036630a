"""What a language model is told of a study besides its history; made by `agent/briefing.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from agent.propose.digest import Defaults
from agent.propose.tools import Library
from agent.records import Scalar, Value


class BenchmarkBrief(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark as the model may know it; never a question of it."""

    name: str
    description: str
    answer_format: str


class StudyBrief(msgspec.Struct, frozen=True, kw_only=True):
    """What the model knows besides the history.

    Attributes:
        examples: A few training rows as text.
        statistics: The training data in figures.
        defaults: What holds where the keys of a recipe say nothing.
        methods: Recipes whose defaults differ; the model is told the defaults of each.
        steps: JSON Schema of a recipe's data steps; empty where it may have none.
        work_columns: Of the data as steps and scripts get it: before what is trained on was chosen from it.
        scripts_allowed: Whether a recipe may have a data script: only where it can be confined.
        scripts_ask: Whether such a script may ask language models.
        library: What its tools may look up besides the history; None where they see that alone.
        tools: Whether it is offered tools at all.
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
    statistics: str = ""
    steps: dict[str, Any] = {}
    work_columns: tuple[str, ...] = ()
    scripts_allowed: bool = False
    scripts_ask: bool = False
    library: Library | None = None
    tools: bool = True
    logs: bool = True
    budget: Callable[[], str] = lambda: "no limit"


class AllowedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe key that the model may set; `bounds` are the smallest and the largest value, None where open.

    `default` is the training program's own; it holds only where `StudyBrief.defaults` says nothing. `help` says what
    the key is good for, `manual` is the training program's own text.
    """

    name: str
    type: Literal["bool", "int", "float", "str", "list"]
    help: str = ""
    manual: str = ""
    default: Value = None
    choices: tuple[Scalar, ...] = ()
    bounds: tuple[float | None, float | None] = (None, None)
