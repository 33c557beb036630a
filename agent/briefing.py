"""What the language model is told about a study: its data, its model, its benchmarks' form, and the keys it may set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

from agent.hardware import Hardware
from agent.propose.writer import AllowedKey, BenchmarkBrief, StudyBrief
from agent.records import Recipe, Value
from scenarios.finetune import rows, training
from scenarios.finetune.arguments import Arguments, schema
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.keys import METHODS, OPEN
from scenarios.finetune.training import TrainingPlan

EXAMPLES = 3

KeyType = Literal["bool", "int", "float", "str", "list"]


def study_brief(
    dataset: str,
    model: str,
    plan: TrainingPlan,
    benchmarks: tuple[Benchmark, ...],
    hardware: Hardware,
    budget: Callable[[], str],
) -> StudyBrief:
    """The brief; examples are of the training data, never of a benchmark."""

    def defaults(train: Mapping[str, Value]) -> dict[str, Value]:
        return _scalars(training.defaults(Recipe(train=dict(train)), plan))

    examples = list(islice(rows.read(Path(plan.data.directory) / f"{plan.data.name}.jsonl"), EXAMPLES))
    return StudyBrief(
        dataset=dataset,
        rows=plan.data.rows,
        columns=tuple(examples[0]) if examples else (),
        model=model,
        benchmarks=tuple(
            BenchmarkBrief(name=b.name, description=b.description, answer_format=b.answer_format) for b in benchmarks
        ),
        hardware=str(hardware),
        defaults=defaults,
        methods=tuple({"finetuning_type": method} for method in METHODS),
        model_facts={
            "architecture": plan.model.architecture,
            "parameters": f"{plan.model.parameters:,}",
            "context": f"{plan.model.context} tokens",
            "layers": str(plan.model.layers),
            "stored as": plan.model.dtype,
        },
        examples=tuple(str(example) for example in examples),
        budget=budget,
    )


def allowed_keys(known: Arguments | None = None) -> tuple[AllowedKey, ...]:
    """The keys that are open to a proposal, and that the LLaMA-Factory that trains has (None: the pinned one)."""
    return tuple(_allowed(schema() if known is None else known))


def _allowed(known: Arguments) -> Iterator[AllowedKey]:
    for name, rule in OPEN.items():
        if (argument := known.get(name)) is None:
            continue
        yield AllowedKey(
            name=name,
            type=_type(argument.types),
            help=rule.why,
            default=argument.default,
            choices=rule.choices or argument.choices,
            bounds=(
                rule.low if rule.low is not None else rule.above,
                rule.high if rule.high is not None else rule.below,
            ),
        )


def _type(types: tuple[str, ...]) -> KeyType:
    wide: tuple[KeyType, ...] = ("list", "float", "int", "bool")
    return next((kind for kind in wide if kind in types), "str")


def _scalars(defaults: dict[str, object]) -> dict[str, Value]:
    return {key: value for key, value in defaults.items() if isinstance(value, bool | int | float | str)}
