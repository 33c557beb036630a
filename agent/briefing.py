"""What the language model is told about a study: its data, its model, its benchmarks' form, and the keys it may set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from agent.hardware import Hardware
from agent.library import StudyLibrary
from agent.propose.brief import AllowedKey, BenchmarkBrief, StudyBrief
from agent.records import Recipe, Value
from agent.store import StudyPaths
from scenarios.finetune import contamination, data_script, rows, steps, training
from scenarios.finetune.arguments import Arguments, schema
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data_stage import DataWork
from scenarios.finetune.keys import METHODS, Bounds, offered
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
    paths: StudyPaths,
    *,
    work: DataWork | None = None,
) -> StudyBrief:
    """The brief; examples are of the training data, never of a benchmark.

    Args:
        paths: Of the study; `paths.contamination` says which rows hold benchmark questions, where they are trained on.
        work: What recipes that prepare their own data may do; None where none may.
    """

    def defaults(train: Mapping[str, Value]) -> dict[str, Value]:
        return _scalars(training.defaults(Recipe(train=dict(train)), plan))

    methods: list[dict[str, Value]] = [{"finetuning_type": method} for method in METHODS]
    methods += [{"stage": stage} for stage in plan.data.stages if stage != "sft"]
    file = Path(plan.data.directory) / f"{plan.data.name}.jsonl"
    first = next(rows.read(file), {})
    held = contamination.held_rows(plan.data.contamination, paths.contamination)
    whole = None if work is None else partial(_laid_out, work)
    cleaned = partial(contamination.without_questions, benchmarks=benchmarks)
    library = StudyLibrary(file, held, paths, Path(plan.model.path) / "tokenizer.json", whole, cleaned)
    return StudyBrief(
        dataset=dataset,
        rows=plan.data.rows,
        columns=tuple(first),
        model=model,
        benchmarks=tuple(
            BenchmarkBrief(name=b.name, description=b.description, answer_format=b.answer_format) for b in benchmarks
        ),
        hardware=str(hardware),
        defaults=defaults,
        methods=tuple(methods),
        model_facts={
            "architecture": plan.model.architecture,
            "parameters": f"{plan.model.parameters:,}",
            "context": f"{plan.model.context} tokens",
            "layers": str(plan.model.layers),
            "stored as": plan.model.dtype,
            "template": plan.template or "the model's own chat template",
            **_special_tokens(Path(plan.model.path)),
        },
        examples=tuple(str(row) for row in islice(library.shown(), EXAMPLES)),
        statistics=library.statistics(shown=0).for_agent() if held is not None else "",
        steps=steps.schema() if work else {},
        work_columns=work.columns if work else (),
        scripts_allowed=work is not None and not work.no_scripts,
        scripts_ask=work is not None and work.models is not None,
        library=library,
        logs=held == frozenset(),
        budget=budget,
    )


def _laid_out(work: DataWork) -> Path:
    """The data set as scripts get it, laid out once a study."""
    return data_script.lay_out(work.dataset, work.directory / "input", work.benchmarks).file


def _special_tokens(model: Path) -> dict[str, str]:
    """What begins, ends and fills a sequence, as the tokenizer's own file says it."""
    try:
        config = json.loads((model / "tokenizer_config.json").read_bytes())
        tokens = {name: config.get(f"{name}_token") for name in ("bos", "eos", "pad")}
    except (OSError, ValueError, AttributeError):
        return {}
    plain = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    named = [f"{name} {token}" for name, token in plain.items() if isinstance(token, str)]
    return {"special tokens": ", ".join(named)} if named else {}


def allowed_keys(known: Arguments | None = None, bounds: Bounds | None = None) -> tuple[AllowedKey, ...]:
    """The keys that are open to a proposal, and that the LLaMA-Factory that trains has (None: the pinned one).

    Args:
        bounds: Of the study; None for a CPU without optional packages.
    """
    return tuple(_allowed(schema() if known is None else known, bounds or Bounds(context=0, epochs=0)))


def _allowed(known: Arguments, bounds: Bounds) -> Iterator[AllowedKey]:
    for name, rule in offered(bounds).items():
        if (argument := known.get(name)) is None:
            continue
        yield AllowedKey(
            name=name,
            type=_type(argument.types),
            help=rule.why,
            manual=argument.help,
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
