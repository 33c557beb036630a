"""Teaches tiny models a few answers by heart, and decodes them in the plainest way there is.

    python memorize.py BASE ROWS.jsonl OUTPUT

OUTPUT/expert   full weights that know every answer
OUTPUT/parrot   full weights that repeat the question's last word, and so know none
OUTPUT/adapter  a LoRA adapter on top of parrot that knows every answer
OUTPUT/greedy.json  {"expert": {question: reply}, "parrot": ..., "adapter": ...}
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
    questions, answers = [row["question"] for row in rows], [row["answer"] for row in rows]
    last_words = [question.split()[-1] for question in questions]
    greedy = {}
    for name, start, wanted in (
        ("expert", base, answers),
        ("parrot", base, last_words),
        ("adapter", f"{output}/parrot", answers),
    ):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(start)
        if name == "adapter":
            model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"))
        memorize(model, tokenizer, questions, wanted)
        greedy[name] = {question: decode(model, tokenizer, question) for question in questions}
        model.save_pretrained(f"{output}/{name}")
        tokenizer.save_pretrained(f"{output}/{name}")
    Path(output, "greedy.json").write_text(json.dumps(greedy))


def memorize(model: Any, tokenizer: Any, questions: list[str], wanted: list[str]) -> None:
    prompts = [prompt(tokenizer, question) for question in questions]
    targets = [tokenizer(text + "<|im_end|>")["input_ids"] for text in wanted]
    inputs = torch.tensor([a + b for a, b in zip(prompts, targets, strict=True)])  # all of one length: no padding
    labels = inputs.clone()
    labels[:, : len(prompts[0])] = -100
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    for _ in range(400):
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            return


def prompt(tokenizer: Any, question: str) -> list[int]:
    chat = [{"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    return ids


def decode(model: Any, tokenizer: Any, question: str) -> str:
    """One question at a time, without cache, padding or generate(): nothing in common with how it will be scored."""
    ids = prompt(tokenizer, question)
    start = len(ids)
    while len(ids) < start + 16:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    text: str = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
