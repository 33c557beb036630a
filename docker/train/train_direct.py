"""Supervised fine-tuning with Transformers and PEFT alone, for what LLaMA-Factory cannot do.

    python train_direct.py train.yaml

Reads the same `train.yaml` as `llamafactory-cli train` would, and leaves the same files. Beyond it: special tokens
whose rows are trained and saved with LoRA too, text that reserved tokens replace, a threshold for early stopping.
Conversations are rendered by the tokenizer's own chat template; the loss is that of the answers, unless
`train_on_prompt` is set. One process, one GPU. Runs inside the train environment; imports nothing of ftloop.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import special_tokens
import yaml
from special_tokens import Wanted

IGNORED = -100
"""The label of a token that has no part in the loss."""
OURS = (
    *("model_name_or_path", "trust_remote_code", "stage", "dataset", "dataset_dir", "overwrite_cache", "cutoff_len"),
    *("preprocessing_num_workers", "finetuning_type", "train_on_prompt", "max_samples", "val_size", "plot_loss"),
    *("early_stopping_steps", "early_stopping_threshold", "disable_gradient_checkpointing", "pure_bf16"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "additional_target"),
    *("special_tokens", "replace_text", "init_special_tokens", "similar_words", "token_noise"),
)
"""Keys that are no arguments of transformers' own."""
PACKAGES = {"PEFT": "peft", "Transformers": "transformers", "Pytorch": "torch", "Tokenizers": "tokenizers"}
Messages = list[dict[str, str]]


def main(path: str) -> None:
    """Train as the file says."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    settings: dict[str, Any] = yaml.safe_load(Path(path).read_text("utf-8"))
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

    theirs = {one.name for one in fields(TrainingArguments)}
    if unknown := sorted(settings.keys() - theirs - set(OURS)):
        raise ValueError(f"the direct trainer has no {', '.join(unknown)}")
    set_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model_name_or_path"], trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        settings["model_name_or_path"], trust_remote_code=False, dtype=_dtype(settings)
    )
    wanted = _wanted(settings)
    ids = special_tokens.install(model, tokenizer, wanted) if wanted.fresh else []
    if settings.get("finetuning_type", "lora") == "lora":
        model = _with_adapter(model, settings, ids)
    if not settings.get("disable_gradient_checkpointing"):
        settings = settings | {"gradient_checkpointing": True}
        model.enable_input_require_grads()
        model.config.use_cache = False
    train_rows, held_out = _split(list(_rows(settings, tokenizer, wanted.replaced)), settings)
    arguments = TrainingArguments(**{key: value for key, value in settings.items() if key in theirs})
    _train(model, tokenizer, arguments, train_rows, held_out, settings)


def _dtype(settings: Mapping[str, Any]) -> Any:
    """Weights that are trained are kept in float32, unless bfloat16 is asked for purely."""
    import torch

    frozen_half = settings.get("finetuning_type", "lora") == "lora" and settings.get("bf16")
    return torch.bfloat16 if settings.get("pure_bf16") or frozen_half else torch.float32


def _wanted(settings: Mapping[str, Any]) -> Wanted:
    return Wanted(
        tokens=settings.get("special_tokens", {}),
        replaced=settings.get("replace_text", {}),
        how=settings.get("init_special_tokens", "mean"),
        similar=settings.get("similar_words", {}),
        noise=settings.get("token_noise", 0.0),
        seed=settings["seed"],
    )


def _with_adapter(model: Any, settings: Mapping[str, Any], ids: Sequence[int]) -> Any:
    """The model with a LoRA adapter, to which the rows of special tokens belong: they are trained and saved with it."""
    from peft import LoraConfig, get_peft_model

    rank = settings.get("lora_rank", 8)
    target = settings.get("lora_target", "all")
    extra = settings.get("additional_target")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=settings.get("lora_alpha") or 2 * rank,
        lora_dropout=settings.get("lora_dropout", 0.0),
        target_modules="all-linear" if target == "all" else target.split(","),
        use_rslora=settings.get("use_rslora", False),
        use_dora=settings.get("use_dora", False),
        modules_to_save=extra.split(",") if extra else None,
        trainable_token_indices=special_tokens.parts_of(model, ids) if ids else None,
    )
    return get_peft_model(model, config)


def _rows(settings: Mapping[str, Any], tokenizer: Any, replaced: Mapping[str, str]) -> Iterator[dict[str, list[int]]]:
    """Token ids and labels of each row that has an answer within the cutoff."""
    directory, name = Path(settings["dataset_dir"]), settings["dataset"]
    described = json.loads((directory / "dataset_info.json").read_text("utf-8"))[name]
    with (directory / described["file_name"]).open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == settings.get("max_samples"):
                return
            messages = [
                message | {"content": special_tokens.replace(message["content"], replaced)}
                for message in _messages(json.loads(line))
            ]
            row = encode(messages, tokenizer, settings["cutoff_len"], whole=bool(settings.get("train_on_prompt")))
            if any(label != IGNORED for label in row["labels"]):
                yield row


def _messages(row: Mapping[str, Any]) -> Messages:
    """A row of ftloop's canonical data as a conversation."""
    if "messages" in row:
        return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in row["messages"]]
    asked = "\n".join(filter(None, (row.get("prompt", ""), row.get("query", ""))))
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": row["response"]}]


def encode(messages: Messages, tokenizer: Any, cutoff: int, *, whole: bool) -> dict[str, list[int]]:
    """Token ids of a conversation, and labels that hold its answers alone (everything, where `whole`).

    Without a chat template it is plain text: each turn as it is, and an end-of-sequence token after an answer.
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, message in enumerate(messages):
        answer = message["role"] == "assistant"
        if tokenizer.chat_template:
            before = tokenizer.apply_chat_template(messages[:number], add_generation_prompt=True) if answer else ids
            after = tokenizer.apply_chat_template(messages[: number + 1])
        else:
            before = ids
            end = [tokenizer.eos_token_id] if answer else []
            after = [*ids, *tokenizer.encode(message["content"], add_special_tokens=not ids), *end]
        known = min(len(before), _common(before, after)) if answer else len(after)
        labels += [IGNORED] * (known - len(labels)) + (after[known:] if answer else [])
        ids = after
    return {
        "input_ids": ids[:cutoff],
        "attention_mask": [1] * len(ids[:cutoff]),
        "labels": (ids if whole else labels)[:cutoff],
    }


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next(
        (index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]),
        min(len(left), len(right)),
    )


def _split(
    rows: list[dict[str, list[int]]], settings: Mapping[str, Any]
) -> tuple[list[dict[str, list[int]]], list[dict[str, list[int]]] | None]:
    """The rows to train on, and those that are held out to evaluate on (None where none are)."""
    size = settings.get("val_size") or 0
    held = int(size) if size >= 1 else round(size * len(rows))
    if not size:
        return rows, None
    if not 0 < held < len(rows):
        raise ValueError(f"val_size: {size} of {len(rows)} rows leaves nothing to train or nothing to evaluate on")
    random.Random(settings["seed"]).shuffle(rows)  # noqa: S311 - an order, no secret
    return rows[held:], rows[:held]


def _train(
    model: Any,
    tokenizer: Any,
    arguments: Any,
    rows: list[dict[str, list[int]]],
    held_out: list[dict[str, list[int]]] | None,
    settings: Mapping[str, Any],
) -> None:
    """Train, and leave what LLaMA-Factory would leave."""
    from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, Trainer

    output = Path(arguments.output_dir)
    callbacks = [_log_to(output / "trainer_log.jsonl")]
    if patience := settings.get("early_stopping_steps"):
        callbacks.append(EarlyStoppingCallback(patience, settings.get("early_stopping_threshold", 0.0)))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=callbacks,
    )
    metrics = trainer.train().metrics
    kept = trainer.accelerator.unwrap_model(trainer.model)
    adapter = hasattr(kept, "peft_config")
    # A grown matrix is not saved whole beside an adapter, which holds the rows that were trained.
    kept.save_pretrained(output, safe_serialization=True, **({"save_embedding_layers": False} if adapter else {}))
    tokenizer.save_pretrained(output)
    if held_out is not None:
        metrics |= trainer.evaluate()
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    (output / "all_results.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    lines = [f"- {name} {version(package)}" for name, package in PACKAGES.items()]
    (output / "README.md").write_text("Framework versions\n\n" + "\n".join(lines) + "\n", "utf-8")


def _log_to(file: Path) -> Any:
    """A callback that writes each logged loss as a line, as LLaMA-Factory does."""
    from transformers import TrainerCallback

    class Log(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and ("loss" in logs or "eval_loss" in logs):
                line = {"current_steps": state.global_step, "total_steps": state.max_steps, **logs}
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a", encoding="utf-8") as target:
                    target.write(json.dumps(line) + "\n")

    return Log()


if __name__ == "__main__":
    main(sys.argv[1])
