"""What is left of special tokens after saving and loading, seen in the training environment.

    python reload_tokens.py DOCKER_TRAIN RUN TOKEN...

Prints one JSON object: of the adapter that was trained in RUN/train, the rows of some tokens and the loss on the rows
that the training held out; and of a model whose output layer is a matrix of its own, what each way to start a row gives
and whether the rows are the same after training, saving and loading.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml


def main(programs: str, run: str, *tokens: str) -> None:
    sys.path.insert(0, programs)
    found = {"trained": trained(Path(run) / "train", tokens), "untied": untied(), "learned": learned()}
    print(json.dumps(found))


def trained(directory: Path, tokens: tuple[str, ...]) -> dict[str, Any]:
    """The adapter as anybody would load it: base, room for new tokens, adapter."""
    import torch
    import train_direct
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

    settings = yaml.safe_load((directory / "train.yaml").read_text())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    base = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"], dtype=torch.float32)
    before = base.get_input_embeddings().weight.detach().clone()
    mean = before.mean(0)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(base, str(directory)).eval()
    _, held_out = train_direct._split(list(train_direct._rows(settings, tokenizer, settings["replace_text"])), settings)
    assert held_out is not None
    batches = [held_out[start : start + 8] for start in range(0, len(held_out), 8)]
    collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=train_direct.IGNORED)
    with torch.no_grad():
        losses = [float(model(**collate(batch)).loss) for batch in batches]
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    merged = model.merge_and_unload()
    inputs, outputs = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    others = [index for index in range(len(before)) if index not in ids]
    return {
        "loss": sum(losses) / len(losses),
        "single": [len(tokenizer.encode(token, add_special_tokens=False)) for token in tokens],
        "tied": bool(torch.equal(inputs[ids], outputs[ids])),
        "moved": [float((inputs[index] - mean).abs().max()) for index in ids],
        "others_kept": bool(torch.equal(inputs[others], before[others])),
        "in_the_loss": [any(index in row["labels"] for row in held_out) for index in ids],
    }


def untied() -> dict[str, Any]:
    """Ways to start a row, and a row in two matrices that is trained, saved and loaded."""
    import special_tokens
    import torch
    from make_demo_model import make_tokenizer
    from peft import LoraConfig, PeftModel, get_peft_model
    from special_tokens import Wanted
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def model(tokenizer: Any) -> Any:
        torch.manual_seed(1)
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer) + 5,  # rows without a token, as many models have them
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                tie_word_embeddings=False,
            )
        )

    found: dict[str, Any] = {}
    word, other = "reverse", "digit"
    for how in ("mean", "description", "semantic", "combined"):
        tokenizer = make_tokenizer()
        known = len(tokenizer)
        loaded = model(tokenizer)
        wanted = Wanted(tokens={"<new>": word}, how=how, similar={"<new>": [other]})
        (index,) = special_tokens.install(loaded, tokenizer, wanted)
        for name, module in (("in", loaded.get_input_embeddings()), ("out", loaded.get_output_embeddings())):
            weight = module.weight.detach()
            described, similar = (weight[tokenizer.encode(text)].mean(0) for text in (word, other))
            start = {"mean": weight[:known].mean(0), "description": described, "semantic": similar}
            start["combined"] = (described + similar) / 2
            found[f"{how} {name}"] = bool(torch.allclose(weight[index], start[how], atol=1e-6))
        found[f"{how} size"] = (index, len(loaded.get_input_embeddings().weight)) == (known, known + 5)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules="all-linear",
        trainable_token_indices=special_tokens.parts_of(loaded, [index]),
    )
    adapted = get_peft_model(loaded, config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    ids = torch.tensor([[index, 5, index, 7, index]])
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    with tempfile.TemporaryDirectory() as directory:
        adapted.save_pretrained(directory, save_embedding_layers=False)
        again = PeftModel.from_pretrained(model(make_tokenizer()), directory).merge_and_unload()
    after = adapted.merge_and_unload()
    for name, first, second in (
        ("in", after.get_input_embeddings(), again.get_input_embeddings()),
        ("out", after.get_output_embeddings(), again.get_output_embeddings()),
    ):
        found[f"kept {name}"] = bool(torch.equal(first.weight[index], second.weight[index]))
        found[f"trained {name}"] = bool((first.weight[index] - start["combined"]).abs().max() > 1e-3)
    return found


def learned() -> dict[str, str]:
    """What the loss of a conversation is taken over, in text."""
    import train_direct
    from make_demo_model import make_tokenizer

    turns = [("system", "Be brief."), ("user", "Reverse 12"), ("assistant", "21"), ("user", "43"), ("assistant", "34")]
    messages = [{"role": role, "content": text} for role, text in turns]
    tokenizer = make_tokenizer()

    def text(cutoff: int = 1000, *, whole: bool = False) -> str:
        row = train_direct.encode(messages, tokenizer, cutoff, whole=whole)
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"]) <= cutoff
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (token, train_direct.IGNORED) for token, label in pairs)
        return str(tokenizer.decode([label for label in row["labels"] if label != train_direct.IGNORED]))

    found = {"answers": text(), "whole": text(whole=True), "cut": text(30)}
    tokenizer.chat_template = None
    return found | {"plain": text(), "plain whole": text(whole=True)}


if __name__ == "__main__":
    main(*sys.argv[1:])
