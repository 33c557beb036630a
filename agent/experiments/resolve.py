"""What arguments come to: the recipe, the plan, and the values of a snapshot that is trained the same way once more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import UsageError
from agent.experiments.arguments import TrainArguments
from agent.experiments.fields import Field
from agent.experiments.sources import Values
from agent.hardware import Hardware
from agent.plans import plan_on
from agent.records import Recipe, Value
from agent.settings import Settings
from scenarios.finetune import by_hand, training
from scenarios.finetune.arguments import canonical, problems
from scenarios.finetune.data import Prepared
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan

EPOCHS = 3.0
"""LLaMA-Factory's own default."""
CUTOFF = 2048
"""Longest training example in tokens, as for a study that sets none."""
_NO_DATA = Prepared(directory="", name="train", rows=0, dropped=0, fingerprint="", format="")


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """A training with nothing left to decide.

    Attributes:
        values: Of every argument, for the snapshot. plan: Without its data, which are not written yet.
    """

    values: dict[str, Any]
    recipe: Recipe
    plan: TrainingPlan

    @property
    def method(self) -> str:
        """The recipe's finetuning_type."""
        return str(self.recipe.train["finetuning_type"])


def resolve(
    known: Mapping[str, Field],
    values: Values,
    arguments: TrainArguments,
    *,
    model: ModelInfo,
    machine: Hardware,
    settings: Settings,
    tasks: Sequence[str],
    stages: Sequence[str],
) -> Resolved:
    """Decide all that was left open; what is decided already stays, so that a snapshot resolves to itself.

    Args:
        tasks: What is measured. stages: Those that the data can be trained in.

    Raises:
        UsageError: Something cannot be trained; says where it was asked for.
    """
    plan = plan_on(
        machine, settings, model, _NO_DATA, cutoff_len=CUTOFF, template=arguments.template, max_epochs=math.inf
    )
    try:
        given = canonical(values.part(known, "recipe"))
    except ValueError as error:
        raise _refused(values, [str(error)]) from None
    extra = {name: _joined(value) for name, value in values.part(known, "trainer").items()}
    own = _of_direct(arguments)
    trainer = by_hand.choose_trainer(arguments.trainer, own)
    found = problems(given, msgspec.structs.replace(plan.bounds, rows=None, stages=tuple(stages))) or by_hand.problems(
        given | extra, trainer
    )
    if trainer == "direct" and arguments.template is not None:
        found.append("template: the direct trainer renders with the model's own chat template; leave it out")
    if found or (found := by_hand.token_problems(own, extra)):
        raise _refused(values, found)
    train = training.defaults(Recipe(train=given), plan) | by_hand.by_method(str(given.get("finetuning_type", "lora")))
    if given.get("lr_scheduler_type") == "constant":
        train.pop("warmup_ratio", None)  # it has no effect there, and is refused
    train |= given
    extra |= by_hand.implied(train | extra)
    laid = extra if trainer == "llama_factory" else extra | by_hand.for_direct(own)
    if trainer == "direct":
        plan = msgspec.structs.replace(plan, gpus=1, program=by_hand.program(), reads=by_hand.reads())
    decided = {
        "model_name_or_path": _absolute(arguments.model_name_or_path),
        "dataset": _absolute(arguments.dataset),
        "output_dir": None if arguments.output_dir is None else _absolute(arguments.output_dir, always=True),
        "trainer": trainer,
        "tasks": list(tasks),
    }
    return Resolved(
        values=values.values | decided | train | extra,
        recipe=Recipe(train=train, seed=arguments.seed),
        plan=msgspec.structs.replace(plan, by_hand=laid),
    )


def _of_direct(arguments: TrainArguments) -> dict[str, Any]:
    """What only the direct trainer can do, as it was asked for."""
    tokens = arguments.special_tokens
    return {
        "special_tokens": dict.fromkeys(tokens, "") if isinstance(tokens, tuple) else tokens,
        "replace_text": arguments.replace_text,
        "early_stopping_threshold": arguments.early_stopping_threshold,
    } | (
        {
            "init_special_tokens": arguments.init_special_tokens,
            "similar_words": arguments.similar_words,
            "token_noise": arguments.token_noise,
        }
        if tokens or arguments.replace_text
        else {}
    )


def _refused(values: Values, found: Sequence[str]) -> UsageError:
    """The problems, each with the place that its key was set in."""
    keys = [line.split(":")[0].strip("'") for line in found]
    lines = [f"{values.origin(key)}: {line}" for key, line in zip(keys, found, strict=True)]
    return UsageError("\n".join(lines), "ftloop train --help says what each argument may be")


def _joined(value: Any) -> Value:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _absolute(name: str, *, always: bool = False) -> str:
    """A path on disk in full, so that a snapshot holds wherever it is read; another name as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if always or path.exists() else name
