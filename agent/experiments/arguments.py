"""All arguments of `ftloop train` and `ftloop eval`; the one place where one is added.

An argument of ftloop itself is one field of `TrainArguments` or `EvalArguments`. A key of LLaMA-Factory is one line in
`scenarios/finetune/keys.py` (an agent may set it too) or `scenarios/finetune/by_hand.py` (only people set it); its
types and default are LLaMA-Factory's own. Whatever stands here works from the command line and YAML, shows in --help
and in the snapshot, and reaches the trainer.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from agent.experiments.fields import Field, Part, Type
from agent.options import RUNNERS
from agent.records import Scalar
from scenarios.finetune import by_hand
from scenarios.finetune.arguments import schema
from scenarios.finetune.keys import OPEN, STAGES, Open

Kind = TypeVar("Kind")
_TYPES: tuple[Type, ...] = ("bool", "int", "float", "dict", "list", "str", "null")  # texts late: anything is one


class About(msgspec.Struct, frozen=True):
    """What people are told about an argument. choices: All allowed values; empty for any. low, high: Inclusive."""

    help: str
    choices: tuple[Scalar, ...] = ()
    part: Part = "run"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What training and evaluation have in common; a field without a default is required."""

    run_name: Annotated[str, About("name of the run and its directory; trackers say {model_name}_{run_name}_{stage}")]
    model_name_or_path: Annotated[str, About("base model: a Hugging Face name, a directory, or demo/tiny")]
    model_name: Annotated[
        str | None, About("its name in paths; unset: the last part of model_name_or_path, in lower case")
    ] = None
    stage: Annotated[str, About("how it is trained", STAGES)] = "sft"
    output_dir: Annotated[
        str | None,
        About("directory of what is written; unset: outputs/{model_name}/{run_name}/{finetuning_type}/{train|eval}"),
    ] = None
    tasks: Annotated[
        tuple[str, ...],
        About("benchmarks, as in FT_BENCHMARK_DATASETS; empty: those of the demo, else of FT_BENCHMARK_DATASETS"),
    ] = ()
    num_fewshot: Annotated[int, About("examples before each question", low=0)] = 0
    limit: Annotated[int | None, About("questions of each benchmark; unset: all", low=1)] = None
    samples: Annotated[
        int | None, About("answers a question, whose mean is its score; unset: more where questions are few", low=1)
    ] = None
    overwrite: Annotated[bool, About("replace what an earlier run of this name left", part="call")] = False
    dry_run: Annotated[bool, About("print the arguments, where each comes from, and stop", part="call")] = False
    runner: Annotated[str | None, About("where jobs run; unset: FT_RUNNER", choices=RUNNERS, part="call")] = None


@dataclass(frozen=True, kw_only=True)
class TrainArguments(_Common):
    """What defines a training, beside the keys of the trainer."""

    dataset: Annotated[str, About("training data: a Hugging Face name, a directory, a file, or demo/reverse")]
    columns: Annotated[dict[str, str] | None, About("role: column of the data; unset: recognised")] = None
    contamination: Annotated[
        Literal["mark", "remove", "refuse"],
        About("rows that hold questions of the tasks: trained on, and scores are marked; removed; or refused"),
    ] = "mark"
    template: Annotated[str | None, About("LLaMA-Factory's template; unset: the model's own chat template")] = None
    seed: Annotated[
        int, About("seed of weights that are made, and of the order of the data", low=0, high=2**32 - 1)
    ] = 42
    trainer: Annotated[
        str,
        About("direct is Transformers and PEFT alone; auto is LLaMA-Factory where it can", ("auto", *by_hand.TRAINERS)),
    ] = "auto"
    special_tokens: Annotated[
        dict[str, str] | tuple[str, ...] | None,
        About("tokens that the model gets, as token: description; their rows are trained and saved, with LoRA too"),
    ] = None
    init_special_tokens: Annotated[
        str,
        About(
            "what a new row starts as: the mean of all rows, of its description's, of similar words', or both",
            by_hand.INITIALISATIONS,
        ),
    ] = "mean"
    similar_words: Annotated[dict[str, list[str]] | None, About("token: words like it, for semantic and combined")] = (
        None
    )
    token_noise: Annotated[float, About("noise on new rows, as a share of the deviation of all rows")] = 0.0
    replace_text: Annotated[
        dict[str, str] | None,
        About("text in the data: token of the model that stands for it, such as a reserved one; its row starts anew"),
    ] = None
    early_stopping_threshold: Annotated[float, About("by how much an evaluation must be better to count")] = 0.0
    description: Annotated[str, About("why this run, for lists and reports")] = ""


@dataclass(frozen=True, kw_only=True)
class EvalArguments(_Common):
    """What defines an evaluation."""

    adapter_name_or_path: Annotated[str | None, About("PEFT adapter on top of the model")] = None
    finetuning_type: Annotated[str, About("of what is evaluated, for its place: lora, full, freeze, or base")] = "base"


def fields(kind: type[Any]) -> dict[str, Field]:
    """All arguments of one kind by name, in the order of --help and snapshots.

    `kind` is `TrainArguments`, `EvalArguments`, or a dataclass that adds to one of them.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    own = {one.name: _field(one, hints[one.name]) for one in dataclasses.fields(kind)}
    ordered = dict(sorted(own.items(), key=lambda item: (not item[1].required, item[1].part == "call")))
    if not issubclass(kind, TrainArguments):
        return ordered
    keys = _trainer_keys()
    for name in ordered.keys() & keys.keys():  # a key of the trainer that ftloop has a default for
        keys[name] = msgspec.structs.replace(ordered[name], part=keys[name].part)
    return ordered | keys


def build(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """The typed arguments of a kind out of all values; those of the trainer are left out."""
    names = {one.name for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in values.items() if name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _field(one: dataclasses.Field[Any], hint: Any) -> Field:
    annotated, about = typing.get_args(hint)[:2]
    literal = typing.get_args(annotated) if typing.get_origin(annotated) is Literal else ()
    return Field(
        name=one.name,
        types=("str",) if literal else _types(annotated),
        help=about.help,
        default=None if one.default is dataclasses.MISSING else one.default,
        choices=literal or about.choices,
        low=about.low,
        high=about.high,
        parts=None if literal else annotated,
        required=one.default is dataclasses.MISSING,
        part=about.part,
    )


def _types(hint: Any) -> tuple[Type, ...]:
    """The types that an annotation allows, in the order in which they are tried; a list is kept as a tuple."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    names = {"null" if part is type(None) else (typing.get_origin(part) or part).__name__ for part in parts}
    return tuple(name for name in _TYPES if name in names or (name == "list" and "tuple" in names))


def _trainer_keys() -> dict[str, Field]:
    tables: tuple[tuple[Mapping[str, Open], Part], ...] = ((OPEN, "recipe"), (by_hand.KEYS, "trainer"))
    return {name: _key(name, rule, part) for table, part in tables for name, rule in table.items()}


def _key(name: str, rule: Open, part: Part) -> Field:
    """A key of LLaMA-Factory; unset is its own default, or what ftloop trains with where nobody says otherwise."""
    declared = schema()[name]
    declares = ("list", "str") if rule.names else declared.types
    return Field(
        name=name,
        types=tuple(one for one in _TYPES if one in declares or one == "null"),
        help=f"{rule.why} ({' or '.join(rule.methods)} only)" if rule.methods else rule.why,
        choices=rule.choices or declared.choices,
        part=part,
    )
