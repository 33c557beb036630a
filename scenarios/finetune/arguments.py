"""Checks a recipe's keys against LLaMA-Factory's own arguments, on the host, without torch.

LLaMA-Factory finds an unknown key after ten seconds, and lets wrong types and choices pass: `train_on_prompt: maybe`
trains on the prompt. `arguments.json` is made from the pinned version's dataclasses by docker/train/make_arguments.py;
a study with another version (FT_UPDATE_LLAMA_FACTORY) hands its arguments down as `known`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from agent.records import Scalar, Value
from scenarios.finetune.keys import NO_STAGES, OPEN, SCHEDULER_OPTIONS, Bounds, Open, why_closed, why_unavailable

MODULES = re.compile(r"[A-Za-z_][\w.]*(\s*,\s*[A-Za-z_][\w.]*)*")
STAGE_NEEDS = {
    "dpo": "pairs of a chosen and a rejected answer",
    "kto": "answers labelled true or false, some of each",
}
LOSS_KEYS = {  # keys of stage dpo -> the losses that read them
    "pref_bco_weight": ("sigmoid",),
    "dpo_label_smoothing": ("sigmoid",),
    "simpo_gamma": ("simpo",),
}
SPECIAL = ("galore", "apollo", "badam", "adam_mini", "muon")  # optimizers of LLaMA-Factory's own, by their key use_*
MOST_KEYS = 100  # an answer with more is no recipe; keeps the check fast on anything that a model may write


class Argument(msgspec.Struct, frozen=True):
    """One argument as LLaMA-Factory declares it."""

    owner: str = msgspec.field(name="class")
    types: tuple[str, ...]
    default: Any
    help: str
    choices: tuple[Scalar, ...] = ()


Arguments = Mapping[str, Argument]
"""Every argument of one version of LLaMA-Factory, by name."""


@cache
def schema() -> Arguments:
    """The arguments of the pinned LLaMA-Factory."""
    return MappingProxyType(decode(Path(__file__).with_name("arguments.json").read_bytes()))


def decode(text: bytes) -> dict[str, Argument]:
    """What docker/train/make_arguments.py wrote; raises msgspec.DecodeError where it is something else."""
    return msgspec.json.decode(text, type=dict[str, Argument])


def problems(train: Mapping[str, Value], bounds: Bounds, known: Arguments | None = None) -> list[str]:
    """Why these keys may not be trained with; one line a problem, with what to write instead; empty if they may.

    Args:
        train: The recipe's keys.
        bounds: What model, data and device allow.
        known: The arguments of the version that trains; None for the pinned one.
    """
    known = schema() if known is None else known
    if len(train) > MOST_KEYS:
        return [f"{len(train)} keys are too many for a recipe: at most {MOST_KEYS}"]
    found: list[str] = []
    typed: dict[str, Value] = {}
    for key in sorted(train):
        try:
            value = _typed(key, train[key], known)
        except ValueError as error:
            found.append(str(error))
            continue
        if value is not None:
            typed[key] = value
            found += _out_of_bounds(key, value, OPEN[key], known[key].choices, bounds)
    for rule in (_stages, _methods, _special, _precision, _data, _schedule):
        found += rule(typed, bounds)
    return found


def canonical(train: Mapping[str, Value], known: Arguments | None = None) -> dict[str, Value]:
    """The same keys with the types that LLaMA-Factory declares, sorted; those that are null, its default, are left out.

    Raises:
        ValueError: A key has a problem; `problems` says all of them.
    """
    known = schema() if known is None else known
    typed = {key: _typed(key, train[key], known) for key in sorted(train)}
    return {key: value for key, value in typed.items() if value is not None}


def nearest(key: str, known: Arguments | None = None) -> str | None:
    """The valid name that `key` was probably meant to be: one that may be set, if any is near."""
    known = schema() if known is None else known
    word = key.lower().replace("-", "_")[:80]
    allowed = [name for name in OPEN if name in known]
    if match := difflib.get_close_matches(word, allowed, n=1, cutoff=0.7):
        return match[0]
    if len(word) > 3 and (longer := [name for name in allowed if word in name]):
        return min(longer, key=len)  # "batch_size", "epochs"
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return match[0] if match else None


def _typed(key: str, value: object, known: Arguments) -> Value:
    """The value with its declared type; raises ValueError with the problem's line."""
    argument = known.get(key)
    if argument is None:
        near = nearest(key, known)
        hint = f"did you mean {near}?" if near else "leave it out"
        raise ValueError(f"{_show(key)}: LLaMA-Factory has no such key; {hint}")
    if key not in OPEN:
        raise ValueError(f"{key}: may not be set; {why_closed(key)}")
    if value is None and "null" in argument.types:
        return None
    for name, convert in CONVERSIONS.items():
        if name in argument.types and (converted := convert(value, OPEN[key])) is not None:
            return converted
    wanted = " or ".join(WORDS[name] for name in argument.types if name in WORDS)
    if OPEN[key].names:
        wanted = "module names with commas between them, or all"
    raise ValueError(f"{key}: wanted {wanted}, found {_show(value)}")


def _bool(value: object, rule: Open) -> bool | None:
    return value if isinstance(value, bool) else None


def _int(value: object, rule: Open) -> int | None:
    number = _float(value, rule)
    return int(number) if number is not None and number.is_integer() else None


def _float(value: object, rule: Open) -> float | None:
    """A finite number; PyYAML reads `1e-3` as a string, so a string that spells a number is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _str(value: object, rule: Open) -> str | None:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    if rule.names:
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        return re.sub(r"\s", "", text) if isinstance(text, str) and MODULES.fullmatch(text) else None
    return value if isinstance(value, str) else None


CONVERSIONS: dict[str, Callable[[object, Open], Scalar]] = {"bool": _bool, "int": _int, "float": _float, "str": _str}
WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a string", "null": "null"}


def _out_of_bounds(key: str, value: Value, rule: Open, declared: tuple[Scalar, ...], bounds: Bounds) -> Iterator[str]:
    choices = rule.choices or declared
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value)[:80], map(str, choices), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        if key == "stage" and value in NO_STAGES:
            hint = f": {NO_STAGES[value]}"
        yield f"{key}: {_show(value)} is none of {', '.join(map(str, choices))}{hint}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    high, why = rule.high, ""
    if key == "cutoff_len":
        high, why = bounds.context, ", the model's context length"
    elif key == "num_train_epochs":
        high, why = bounds.epochs, ", the study's limit"
    elif key == "freeze_trainable_layers" and bounds.layers is not None:
        high, why = bounds.layers, ", the model's layers"
        if value < -bounds.layers:
            yield f"{key}: must be at least {-bounds.layers}{why}, is {value}"
    limits = (
        ("at least", rule.low, rule.low is not None and value < rule.low),
        ("more than", rule.above, rule.above is not None and value <= rule.above),
        ("at most", high, high is not None and value > high),
        ("less than", rule.below, rule.below is not None and value >= rule.below),
    )
    for words, limit, broken in limits:
        if broken:
            yield f"{key}: must be {words} {limit:g}{why if limit == high else ''}, is {value:g}"


def _stages(train: Mapping[str, Value], bounds: Bounds) -> Iterator[str]:
    """Stages that the data do not allow, and keys of one stage with another."""
    stage = str(train.get("stage", "sft"))
    if stage in STAGE_NEEDS and stage not in bounds.stages:
        yield f"stage: {stage} needs {STAGE_NEEDS[stage]}; these data can be trained with {', '.join(bounds.stages)}"
        return
    for key in train:
        rule = OPEN[key]
        if why := why_unavailable(rule, bounds):
            yield f"{key}: {why}; leave it out"
        elif rule.stages and stage not in rule.stages:
            possible = [f"stage: {name}" for name in rule.stages if name in bounds.stages]
            hint = f", or train with {' or '.join(possible)}" if possible else ""
            yield f"{key}: has no effect with stage: {stage}; leave it out{hint}"
    loss = str(train.get("pref_loss", "sigmoid"))
    for key, losses in LOSS_KEYS.items():
        if key in train and stage == "dpo" and loss not in losses:
            yield f"{key}: has no effect with pref_loss: {loss}; leave it out, or use {' or '.join(losses)}"


def _methods(train: Mapping[str, Value], bounds: Bounds) -> Iterator[str]:
    """Keys of one method with another: LLaMA-Factory ignores most of them without a word."""
    method = train.get("finetuning_type", "lora")
    for key in train:
        rule = OPEN[key]
        if rule.methods and method not in rule.methods and why_unavailable(rule, bounds) is None:
            wanted = " or ".join(rule.methods)
            yield f"{key}: has no effect with finetuning_type: {method}; leave it out, or train with {wanted}"
    if train.get("freeze_trainable_layers") == 0:
        yield "freeze_trainable_layers: 0 would train no layer; use 2 for the last two, -2 for the first two"
    if train.get("use_muon") and "loraplus_lr_ratio" in train:
        yield "use_muon: has no effect with loraplus_lr_ratio; leave one of them out"
    if train.get("use_muon") and "optim" in train:
        yield "optim: has no effect with use_muon; leave one of them out"
    if train.get("use_dft_loss") and train.get("use_eaft_loss"):
        yield "use_eaft_loss: has no effect with use_dft_loss; leave one of them out"
    if "eaft_alpha" in train and not train.get("use_eaft_loss"):
        yield "eaft_alpha: has no effect without use_eaft_loss: true"
    if train.get("label_smoothing_factor") and (train.get("use_dft_loss") or train.get("use_eaft_loss")):
        yield "label_smoothing_factor: has no effect with another loss; leave one of them out"


def _special(train: Mapping[str, Value], bounds: Bounds) -> Iterator[str]:
    """What LLaMA-Factory refuses to combine once it runs: GaLore and its like, and quantized models."""
    used = [name for name in SPECIAL if train.get(f"use_{name}")]
    if len(used) > 1:
        yield f"use_{used[1]}: cannot be combined with use_{used[0]}; leave one of them out"
    for key in train:
        if (name := key.split("_")[0]) in SPECIAL and name not in used:
            yield f"{key}: has no effect without use_{name}: true"
    if {"galore", "apollo"} & set(used) and train.get("optim", "adamw_torch") not in ("adamw_torch", "adafactor"):
        yield f"optim: use_{used[0]} needs adamw_torch or adafactor, is {train['optim']}"
    if "double_quantization" in train and "quantization_bit" not in train:
        yield "double_quantization: has no effect without quantization_bit"


def _precision(train: Mapping[str, Value], bounds: Bounds) -> Iterator[str]:
    if train.get("fp16") and (train.get("bf16") or train.get("pure_bf16")):
        yield "fp16: cannot be combined with bf16; leave one of them out"
    for key in ("fp16", "pure_bf16", "tf32"):
        if train.get(key) and bounds.device == "cpu":
            yield f"{key}: needs a GPU, and this training runs on the CPU; leave it out"


def _data(train: Mapping[str, Value], bounds: Bounds) -> Iterator[str]:
    if train.get("train_on_prompt") and train.get("mask_history"):
        yield "mask_history: cannot be combined with train_on_prompt; leave one of them out"
    if train.get("neat_packing") and train.get("packing") is False:
        yield "packing: neat_packing turns it on; leave packing out, or set neat_packing to false"
    if train.get("group_by_length") and (train.get("packing") or train.get("neat_packing")):
        yield "group_by_length: has no effect with packing; leave one of them out"
    if train.get("group_by_length") and train.get("disable_shuffling"):
        yield "disable_shuffling: cannot be combined with group_by_length; leave one of them out"
    batch = train.get("per_device_train_batch_size", 0)
    if train.get("dataloader_drop_last") and bounds.rows is not None and isinstance(batch, int) and batch > bounds.rows:
        yield f"dataloader_drop_last: would drop the only batch, of {bounds.rows} rows; leave it out"


def _schedule(train: Mapping[str, Value], bounds: Bounds) -> Iterator[str]:
    scheduler = str(train.get("lr_scheduler_type", "cosine"))
    if train.get("warmup_ratio") and train.get("warmup_steps"):
        yield "warmup_ratio: has no effect with warmup_steps; leave one of them out"
    if scheduler == "constant" and (train.get("warmup_ratio") or train.get("warmup_steps")):
        yield "lr_scheduler_type: constant has no warm-up; use constant_with_warmup"
    options: dict[str, float] = {}
    if (text := train.get("lr_scheduler_kwargs")) is not None:
        try:
            options = msgspec.json.decode(str(text), type=dict[str, float])
        except msgspec.DecodeError:
            yield f"lr_scheduler_kwargs: wanted a JSON object of numbers, found {_show(text)}"
    known = SCHEDULER_OPTIONS.get(scheduler, ())
    for option, number in sorted(options.items()):
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            yield f"lr_scheduler_kwargs: {scheduler} has no {_show(option)}; {takes}"
        elif not 0 <= number <= 1e6 or (option == "timescale" and number < 1):
            yield f"lr_scheduler_kwargs: {option} must be {'1' if option == 'timescale' else '0'} to 1e6, is {number:g}"
    floors = {"min_lr", "min_lr_rate"} & options.keys()
    if scheduler == "cosine_with_min_lr" and len(floors) != 1:
        yield "lr_scheduler_kwargs: cosine_with_min_lr needs one of min_lr and min_lr_rate: '{\"min_lr_rate\": 0.1}'"

    rate = train.get("learning_rate", 1e-4)
    end = options.get("lr_end", 1e-7)
    if scheduler == "polynomial" and isinstance(rate, float) and rate <= end:
        yield f"learning_rate: must be more than the polynomial scheduler's lr_end, {end:g}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
