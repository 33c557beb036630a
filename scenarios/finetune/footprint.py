"""What a training will write to the disk, estimated before it starts; no torch, no job.

A job that writes more than FT_TRIAL_DISK is stopped. A recipe whose weights alone are larger would train for nothing
first, and is therefore refused by its check.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.errors import UsageError
from agent.records import Recipe
from scenarios.finetune.arguments import canonical
from scenarios.finetune.training import TrainingPlan, deepspeed

FLOAT32, HALF = 4, 2
"""Bytes of a weight."""
RANK = 8
"""LLaMA-Factory's default lora_rank."""
FROZEN_BUT = 2
"""LLaMA-Factory's default freeze_trainable_layers."""
CACHED = 8
"""Bytes of cache for a byte of training data: it is copied twice, and tokenized (16 bytes a token of 3 characters)."""
SLACK = 16 << 20
"""Bytes for the tokenizer, the trainer's own files and the log."""


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that one training writes: the final weights, the cache of the tokenized data, and all the rest.

    Checkpoints on the way, and with them the states of the optimizer, are never saved (`training.config`).
    """

    weights: int
    cache: int
    rest: int = SLACK

    @property
    def training(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.rest

    @property
    def mini_run(self) -> int:
        """What a mini-run writes: the same weights, and next to no data."""
        return self.weights + self.rest

    @property
    def until_published(self) -> int:
        """A training, and the copy of its weights in output/."""
        return self.training + self.weights


def footprint(recipe: Recipe, plan: TrainingPlan) -> Footprint:
    """What a training with this recipe writes. An adapter counts as 0 where the model's shapes are not known (.bin)."""
    return Footprint(weights=_weights(recipe, plan), cache=CACHED * plan.data.bytes)


def problem(recipe: Recipe, plan: TrainingPlan) -> str | None:
    """Why the training cannot stay within FT_TRIAL_DISK, naming the key that decides; None if it can."""
    expected = footprint(recipe, plan)
    if plan.disk is None or expected.training <= plan.disk:
        return None
    method = str(recipe.train.get("finetuning_type", "lora"))
    key = f"lora_rank {_rank(recipe, plan)}" if method == "lora" else f"finetuning_type {method}"
    advice = "choose a smaller lora_rank" if method == "lora" else "choose lora"
    return (
        f"{key}: the training would write about {_size(expected.training)}, {_size(expected.weights)} of them weights, "
        f"and a job may write {_size(plan.disk)} (FT_TRIAL_DISK); {advice}"
    )


def require_possible(plan: TrainingPlan) -> None:
    """UsageError where not even the smallest adapter's training could stay within FT_TRIAL_DISK."""
    smallest = Recipe(train={"finetuning_type": "lora", "lora_rank": 1})
    needed = footprint(smallest, plan).training
    if plan.disk is not None and needed > plan.disk:
        raise UsageError(
            f"FT_TRIAL_DISK: a job may write {_size(plan.disk)}, and any training on these data would write about "
            f"{_size(needed)}",
            "set FT_TRIAL_DISK higher, or to none for no limit",
        )


def _weights(recipe: Recipe, plan: TrainingPlan) -> int:
    """Bytes of the final weights; LLaMA-Factory casts what it trains to float32, but for pure bfloat16 and ZeRO-3."""
    keys = _keys(recipe, plan)
    method, model = keys.get("finetuning_type", "lora"), plan.model
    trained = HALF if keys.get("pure_bf16") else FLOAT32
    if method == "lora":
        columns = _rank(recipe, plan) + (1 if keys.get("use_dora") else 0)
        return model.linear * columns * trained
    if method == "full":
        # docker/train/deepspeed/zero3.json gathers in 16 bits.
        return model.parameters * (HALF if deepspeed(recipe, plan) == "zero3" else trained)
    frozen = HALF if plan.device == "cuda" else FLOAT32
    layers = min(model.layers, abs(int(keys.get("freeze_trainable_layers", FROZEN_BUT))))
    share = layers / model.layers if model.layers else 1.0
    if keys.get("freeze_extra_modules"):
        share = 1.0  # the embeddings, often: no small part of a small model
    return int(model.parameters * (share * trained + (1 - share) * min(frozen, trained)))


def _rank(recipe: Recipe, plan: TrainingPlan) -> int:
    return int(_keys(recipe, plan).get("lora_rank", RANK))


def _keys(recipe: Recipe, plan: TrainingPlan) -> dict[str, Any]:
    return dict(canonical(recipe.train, plan.arguments))


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 10**8 else f"{count / 1e6:.3g} MB"
