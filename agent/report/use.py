"""How a person uses the winner: commands to copy, with every path quoted."""

from __future__ import annotations

import shlex

from agent.records import StudyReport, Trial

DEFAULT_LORA_RANK = 8  # LLaMA-Factory's lora_rank
VLLM_LORA_RANK = 16  # what vllm accepts without --max-lora-rank


def winner(report: StudyReport) -> Trial | None:
    """The best trial, None while the base is unbeaten."""
    return next((trial for trial in report.trials if trial.number == report.best), None)


def python_snippet(path: str, adapter: bool) -> str:
    """Load the winner and ask it something; the adapter's own configuration names its base."""
    library, name = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    imports = (
        [f"from {library} import {name}", "from transformers import AutoTokenizer"]
        if adapter
        else [f"from transformers import {name}, AutoTokenizer"]
    )
    return "\n".join(
        [
            *imports,
            f"path = {path!r}",
            f"model, tokenizer = {name}.from_pretrained(path), AutoTokenizer.from_pretrained(path)",
            'chat = [{"role": "user", "content": "<what you ask>"}]',
            'as_tensors = dict(add_generation_prompt=True, return_tensors="pt", return_dict=True)',
            "prompt = tokenizer.apply_chat_template(chat, **as_tensors)",
            "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=512)[0]))",
        ]
    )


def serve_command(path: str, trial: Trial, base: str) -> str:
    """The vllm command line; `base` is the base model's directory or hub name."""
    if not (trial.checkpoint and trial.checkpoint.adapter):
        return shlex.join(["vllm", "serve", path])
    argv = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"tuned={path}"]
    rank = trial.trained.train.get("lora_rank", DEFAULT_LORA_RANK) if trial.trained else DEFAULT_LORA_RANK
    if isinstance(rank, int) and rank > VLLM_LORA_RANK:
        argv += ["--max-lora-rank", str(rank)]
    return shlex.join(argv)
