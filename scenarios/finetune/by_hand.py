"""What a person may ask of a training beyond what a proposal may: more keys, early stopping, special tokens.

A proposal may not hold rows out, stop early or grow the vocabulary, as its trials would then no longer be comparable.
A person's run is compared with nothing by the program, so all of that is theirs to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.errors import UsageError
from agent.records import Value
from agent.resources import resource
from scenarios.finetune.arguments import schema
from scenarios.finetune.keys import LORA, Open

TRAINERS = ("llama_factory", "direct")
INITIALISATIONS = ("mean", "description", "semantic", "combined")
PROGRAM = "docker/train/train_direct.py"

KEYS: dict[str, Open] = {
    # how long, and on what
    "max_steps": Open(why="updates to make, whatever num_train_epochs says", low=1),
    "max_samples": Open(why="rows to train on, the first ones", low=1),
    # evaluation during training, and what stops it early
    "val_size": Open(why="rows held out to evaluate on while training: a share below 1, or a number", low=0),
    "eval_strategy": Open(why="when to evaluate on them"),
    "eval_steps": Open(why="how often, in steps", above=0),
    "per_device_eval_batch_size": Open(why="rows a batch then", low=1, high=1024),
    "early_stopping_steps": Open(why="evaluations without anything better after which training stops", low=1),
    "load_best_model_at_end": Open(why="keep the best evaluated weights rather than the last"),
    "metric_for_best_model": Open(why="what is better: eval_loss, or another number of the evaluation"),
    "greater_is_better": Open(why="whether more of it is better"),
    # what is written
    "logging_steps": Open(why="how often the loss is logged: steps, or a share of them below 1", above=0),
    "save_strategy": Open(why="when to keep checkpoints; the last weights are kept in any case"),
    "save_steps": Open(why="how often, in steps", above=0),
    "save_total_limit": Open(why="most checkpoints to keep", low=1),
    "plot_loss": Open(why="draw the loss curve"),
    # PEFT
    "additional_target": Open(why="modules to train whole beside the adapter", names=True, methods=LORA),
    "loraplus_lr_embedding": Open(why="LoRA+: learning rate of embeddings", above=0, high=1, methods=LORA),
}
"""Keys that only people set; types, defaults and choices are those that LLaMA-Factory declares."""

DIRECT_KEYS = frozenset(  # of LLaMA-Factory's own, beside those of transformers' TrainingArguments
    [
        *("finetuning_type", "cutoff_len", "train_on_prompt", "max_samples", "val_size", "early_stopping_steps"),
        *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "additional_target"),
        *("disable_gradient_checkpointing", "plot_loss", "pure_bf16", "stage"),
    ]
)
"""What the direct trainer does of what LLaMA-Factory adds to transformers."""
_DECISIVE = {
    "lora": ("lora_rank", "lora_dropout", "lora_target", "use_rslora", "use_dora"),
    "freeze": ("freeze_trainable_layers", "freeze_trainable_modules"),
}
_EMBEDDINGS = {"embed_tokens", "lm_head", "wte"}
_DIRECT_TYPES = ("lora", "full")


def choose_trainer(wanted: str, needs_direct: Mapping[str, Any]) -> str:
    """Which trainer runs: as asked for, or LLaMA-Factory unless something set needs the other.

    Args:
        needs_direct: Arguments that LLaMA-Factory has no like of, with their values; unset ones are falsy.
    """
    found = [name for name, value in needs_direct.items() if value]
    if wanted == "llama_factory" and found:
        raise UsageError(
            f"trainer: LLaMA-Factory cannot do {', '.join(found)}", "leave trainer out, or set it to direct"
        )
    return ("direct" if found else "llama_factory") if wanted == "auto" else wanted


def problems(keys: Mapping[str, Value], trainer: str) -> list[str]:
    """What is wrong with these keys, those of a recipe and those of `KEYS` alike, beyond what their types say."""
    method = keys.get("finetuning_type", "lora")
    found = [line for key, rule in KEYS.items() if key in keys for line in out_of_bounds(key, keys[key], rule, method)]
    if "early_stopping_steps" in keys and not keys.get("val_size"):
        found.append("early_stopping_steps: needs rows to evaluate on; set val_size, as in val_size: 0.1")
    if keys.get("eval_strategy", "no") != "no" and not keys.get("val_size"):
        found.append("eval_strategy: needs rows to evaluate on; set val_size, as in val_size: 0.1")
    if trainer == "direct":
        if method not in _DIRECT_TYPES:
            found.append(f"finetuning_type: the direct trainer does {' and '.join(_DIRECT_TYPES)}, not {method}")
        if (stage := keys.get("stage", "sft")) != "sft":
            found.append(f"stage: the direct trainer does sft, not {stage}")
        found += [
            f"{key}: the direct trainer has no such thing; leave it out"
            for key, value in keys.items()
            if value not in (None, False) and not _in_direct(key)
        ]
    return found


def _in_direct(key: str) -> bool:
    return key in DIRECT_KEYS or key not in schema() or schema()[key].owner == "TrainingArguments"


def out_of_bounds(key: str, value: Value, rule: Open, method: Value) -> list[str]:
    """What is wrong with one value by its key's own rule, which `key` names; `method` is the finetuning_type."""
    if (needed := rule.methods) and method not in needed:
        return [f"{key}: has no effect with finetuning_type: {method}; leave it out, or train with {needed[0]}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    limits = (
        ("at least", rule.low, rule.low is not None and value < rule.low),
        ("more than", rule.above, rule.above is not None and value <= rule.above),
        ("at most", rule.high, rule.high is not None and value > rule.high),
        ("less than", rule.below, rule.below is not None and value >= rule.below),
    )
    return [f"{key}: must be {words} {limit:g}, is {value:g}" for words, limit, broken in limits if broken]


def implied(keys: Mapping[str, Value]) -> dict[str, Value]:
    """What early stopping and keeping the best weights need beside what was said, so that a snapshot shows it."""
    found: dict[str, Value] = {}
    if keys.get("early_stopping_steps") or keys.get("load_best_model_at_end"):
        found |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps"}
        found["greater_is_better"] = not str(keys.get("metric_for_best_model", "eval_loss")).endswith("loss")
    evaluated = keys.get("eval_strategy", found.get("eval_strategy", "no"))
    if evaluated == "steps":
        found["eval_steps"] = 0.1  # of all steps
    if found.get("load_best_model_at_end") and keys.get("load_best_model_at_end", True):
        # transformers keeps the best of what it saved, so it must save whenever it evaluates
        found |= {"save_strategy": evaluated, "save_total_limit": 1}
        if evaluated == "steps":
            found["save_steps"] = keys.get("eval_steps", found["eval_steps"])
    return {key: value for key, value in found.items() if key not in keys}


def by_method(method: str) -> dict[str, Value]:
    """LLaMA-Factory's own defaults of what makes a method what it is, so that a snapshot says them."""
    return {key: schema()[key].default for key in _DECISIVE.get(method, ())}


def token_problems(own: Mapping[str, Any], keys: Mapping[str, Value]) -> list[str]:
    """What is wrong with the special tokens that were asked for; `own` as for `for_direct`, `keys` as in `problems`."""
    tokens, replaced = own.get("special_tokens") or {}, own.get("replace_text") or {}
    how, similar = own.get("init_special_tokens", "mean"), own.get("similar_words") or {}
    found = [
        f"{name}: {given!r} must map a token to a text"
        for name, given in (("special_tokens", tokens), ("replace_text", replaced))
        if not all(isinstance(text, str) for text in given.values())
    ]
    found += [
        f"{name}: an empty text is no {what}"
        for name, what, given in (
            ("special_tokens", "token", list(tokens)),
            ("replace_text", "text to replace, and no token", [*replaced, *replaced.values()]),
        )
        if "" in given
    ]
    fresh = [*tokens, *(token for token in dict.fromkeys(replaced.values()) if token not in tokens)]
    if how in ("description", "combined") and (bare := [token for token in fresh if not tokens.get(token)]):
        found.append(
            f"special_tokens: init_special_tokens: {how} needs a description of {', '.join(bare)}, "
            "as in special_tokens: {TOKEN: what it means}"
        )
    if how in ("semantic", "combined") and (bare := [token for token in fresh if not similar.get(token)]):
        found.append(f"similar_words: init_special_tokens: {how} needs words like {', '.join(bare)}")
    whole = set(str(keys.get("additional_target", "")).split(",")) & _EMBEDDINGS
    if fresh and whole:
        found.append(f"additional_target: {', '.join(sorted(whole))}: special tokens have their rows trained already")
    if not 0 <= own.get("token_noise", 0.0) <= 10:
        found.append("token_noise: must be 0 to 10")
    if own.get("early_stopping_threshold", 0.0) < 0:
        found.append("early_stopping_threshold: must be at least 0")
    return found


def for_direct(own: Mapping[str, Any]) -> dict[str, Any]:
    """The direct trainer's own keys, as they stand in its `train.yaml`; what is unset is left out."""
    return {name: value for name, value in own.items() if value not in (None, {}, 0.0)}


def program() -> tuple[str, ...]:
    """What runs the direct trainer on a `train.yaml`."""
    return ("python", str(resource(PROGRAM)), "train.yaml")


def reads() -> tuple[str, ...]:
    """The folder of its programs, which its job must see."""
    return (str(resource(PROGRAM).parent),)
