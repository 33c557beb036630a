"""Refuses what cannot fit into memory, with the nearest change that does; and what follows an out-of-memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.hardware import Hardware
from agent.records import Recipe
from agent.run.lock import RESERVE
from scenarios.finetune.arguments import Argument, canonical
from scenarios.finetune.estimate import Estimate, estimate
from scenarios.finetune.estimate_shapes import Shapes, read_shapes
from scenarios.finetune.keys import OPEN
from scenarios.finetune.preferences import longest_sequence
from scenarios.finetune.training import TrainingPlan, deepspeed, defaults

BATCH, SUMMED, UNSAVED = "per_device_train_batch_size", "gradient_accumulation_steps", "disable_gradient_checkpointing"
TEMPLATE = 128
"""Tokens that a chat template adds, at most, to a row's text."""
SHORTEST = 128
"""Tokens below which no shorter cutoff_len is advised."""
LORA_RANK = 8
"""LLaMA-Factory's default."""
LARGEST = ("logits", "activations", "optimizer", "weights", "gradients", "reference")

UNREFUSED = 2 << 30
"""Bytes that any machine is taken to have free for a training on its CPU."""

Change = Mapping[str, Any]


def memory_for_training(machine: Hardware) -> int | None:
    """Bytes that a training may hold on each device: the smallest GPU's, or what is free; None if unknown.

    On a CPU no more than a container gets, and never less than `UNREFUSED`: what is free changes from minute to minute.
    """
    if machine.gpus:
        return min(machine.gpus)
    if machine.free is None:
        return None
    return max(UNREFUSED, min(machine.free, machine.memory - min(RESERVE, machine.memory // 8)))


def needed(recipe: Recipe, plan: TrainingPlan) -> Estimate | None:
    """What a training with this recipe needs on each device; None where the model's config does not say its sizes."""
    model = _shapes(plan)
    return None if model is None else _estimate(model, recipe, plan, {})


def problem(recipe: Recipe, plan: TrainingPlan, available_bytes: int, *, tokens: int | None = None) -> str | None:
    """Why the training cannot fit into memory, and the nearest change that does; None if it fits, or nobody can say.

    Args:
        recipe: One without other problems.
        plan: The study's.
        available_bytes: Memory of each device, for all that the training's process holds.
        tokens: Of the longest row; None for that of the plan's data.
    """
    model = _shapes(plan)
    if model is None:
        return None
    found = _estimate(model, recipe, plan, {}, tokens)
    if found.total <= available_bytes:
        return None
    parts = sorted(((getattr(found, name), name) for name in LARGEST), reverse=True)
    most = ", ".join(f"{name} {_size(size)}" for size, name in parts[:2])
    where = "each GPU" if plan.device == "cuda" and plan.gpus > 1 else "the GPU" if plan.device == "cuda" else "memory"
    keys = _keys(recipe, plan)
    said = f"the training needs about {_size(found.total)} of the {_size(available_bytes)} of {where} (most: {most})"
    for change in _changes(keys):
        smaller = _estimate(model, recipe, plan, change, tokens)
        if smaller.total <= available_bytes:
            words = " and ".join(f"{key} {_value(keys.get(key))} -> {_value(value)}" for key, value in change.items())
            return f"{said}; {words} needs {_size(smaller.total)}"
    return f"{said}, and no batch, length or method makes it fit: a smaller model is needed"


def after_oom(recipe: Recipe, known: Mapping[str, Argument] | None = None) -> Recipe | None:
    """The recipe with half the batch and twice the accumulation, which trains the same; None where there is no half.

    An odd batch is divided by its smallest divisor, so that as many rows go into each update as before.

    Args:
        recipe: What ran out of memory.
        known: The arguments of the LLaMA-Factory that trains (`TrainingPlan.arguments`).
    """
    batch, summed = (int(_number(recipe, key, known)) for key in (BATCH, SUMMED))
    smaller = _divided(batch, summed)
    return None if smaller is None else msgspec.structs.replace(recipe, train=recipe.train | smaller)


def _divided(batch: int, summed: int, times: int | None = None) -> dict[str, int] | None:
    """The batch divided by `times`, or by its smallest divisor; None where it cannot be."""
    times = times or next((divisor for divisor in range(2, batch + 1) if batch % divisor == 0), None)
    most = OPEN[SUMMED].high
    if times is None or (most is not None and summed * times > most):
        return None
    return {BATCH: batch // times, SUMMED: summed * times}


def _changes(keys: Mapping[str, Any]) -> Iterator[Change]:
    """Changes that need less memory, the nearest first: what trains the same, then what is slower, then the rest."""
    batch, summed = int(keys[BATCH]), int(keys[SUMMED])
    divisors = [times for times in range(2, batch + 1) if batch % times == 0]
    batches: list[Change] = [change for times in divisors if (change := _divided(batch, summed, times))]
    yield from batches
    slower: Change = {UNSAVED: False} if keys.get(UNSAVED) else {}
    if keys.get("flash_attn") == "disabled":
        slower = {**slower, "flash_attn": "auto"}
    if slower:
        yield slower
        yield from ({**change, **slower} for change in batches)
    least: Change = {**(batches[-1] if batches else {}), **slower}
    smaller: Change = {}
    if keys.get("finetuning_type", "lora") != "lora":
        smaller = {"finetuning_type": "lora"}
    elif int(keys.get("lora_rank", LORA_RANK)) > LORA_RANK:
        smaller = {"lora_rank": LORA_RANK}
    if smaller:
        yield smaller
        yield from ({**smaller, **change} for change in batches)
        least = {**smaller, **least}
        yield least
    length = int(keys["cutoff_len"])
    while (length := length // 2) >= SHORTEST:
        yield {"cutoff_len": length}
        yield {**least, "cutoff_len": length}


def _estimate(model: Shapes, recipe: Recipe, plan: TrainingPlan, change: Change, tokens: int | None = None) -> Estimate:
    """With some keys changed."""
    train = {**recipe.train, **change}
    if change.get("finetuning_type") == "lora":  # keys of the method that it no longer uses
        train = {key: value for key, value in train.items() if "lora" in (_methods(key) or ("lora",))}
    changed = msgspec.structs.replace(recipe, train=train)
    return estimate(
        model,
        _keys(changed, plan),
        device=plan.device,
        tokens=tokens or longest_tokens(plan.data.longest),
        gpus=plan.gpus,
        zero=deepspeed(changed, plan),
    )


def _methods(key: str) -> tuple[str, ...]:
    return OPEN[key].methods if key in OPEN else ()


def _keys(recipe: Recipe, plan: TrainingPlan) -> dict[str, Any]:
    """As `training.config` lays them over each other."""
    return defaults(recipe, plan) | canonical(recipe.train, plan.arguments)


def longest_tokens(longest: Path) -> int | None:
    """No row has more tokens than this: a token has a byte at least; None where the rows are not there.

    Args:
        longest: The longest rows, longest first (`Prepared.longest`).
    """
    try:
        with longest.open(encoding="utf-8") as rows:
            row = longest_sequence(json.loads(rows.readline()))
    except (OSError, ValueError):
        return None
    return len(json.dumps(row, ensure_ascii=False).encode()) + TEMPLATE


def _shapes(plan: TrainingPlan) -> Shapes | None:
    try:
        return read_shapes(Path(plan.model.path), parameters=plan.model.parameters, dtype=plan.model.dtype)
    except (OSError, ValueError, TypeError):
        return None


def _number(recipe: Recipe, key: str, known: Mapping[str, Argument] | None) -> float:
    """A key's value, or its default as in `training.defaults`."""
    value = canonical({key: recipe.train[key]}, known)[key] if key in recipe.train else {BATCH: 8, SUMMED: 1}[key]
    assert isinstance(value, int | float)
    return value


def _value(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
