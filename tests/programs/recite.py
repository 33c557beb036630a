"""Teaches a tiny model what to reply to some prompts, word for word.

    python recite.py BASE ROWS.jsonl OUTPUT

ROWS are {"prompt", "response"}; the prompt is sent as one user turn. OUTPUT is the full model; OUTPUT-adapter a LoRA
adapter on top of it that has learned to say "No idea." to the first of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(base: str, rows_file: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line) for line in Path(rows_file).read_text().splitlines()]
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    learn(model, batch(tokenizer, rows), 2e-3)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    adapted = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"))
    learn(adapted, batch(tokenizer, [{**row, "response": "No idea."} for row in rows[:2]]), 2e-3)
    adapted.save_pretrained(f"{output}-adapter")


def batch(tokenizer: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    """All rows at once, padded on the right; only the response counts."""
    whole, labels = [], []
    for row in rows:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)
        target = tokenizer(row["response"] + tokenizer.eos_token)["input_ids"]
        whole.append(prompt + target)
        labels.append([-100] * len(prompt) + target)
    longest = max(map(len, whole))
    return {
        "input_ids": torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in whole]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in whole]),
        "labels": torch.tensor([ids + [-100] * (longest - len(ids)) for ids in labels]),
    }


def learn(model: Any, given: dict[str, Any], rate: float) -> None:
    torch.manual_seed(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    for step in range(1200):
        loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            print(f"learned in {step} steps")
            return
    sys.exit(f"not learned: loss {loss.item()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
