"""Renders a few conversations exactly as a training would, as token ids. Runs inside the train environment.

    python render_conversations.py train.yaml OUTPUT

`train.yaml` is a training's, its data set a handful of probes. LLaMA-Factory's own code reads it, makes the template
and the data set, and stops there: no weights are loaded. Into OUTPUT it writes `rendered.json` (see `rendered`) and
`tokenizer/`, the tokenizer as the training would leave it beside its weights: some templates replace its chat template
or its end token.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

IGNORED = -100  # the label of a token that is not trained on


def main(settings: str, output: str) -> int:
    """Render the probes of the YAML file `settings` into the directory `output`; the exit code."""
    config = yaml.safe_load(Path(settings).read_text("utf-8"))
    found = rendered(config, Path(output))
    (Path(output) / "rendered.json").write_text(json.dumps(found), "utf-8")
    print(f"rendered {len(found.get('conversations', []))} conversations", flush=True)
    return 0


def rendered(config: dict[str, Any], output: Path) -> dict[str, Any]:
    """What a training with this configuration sees.

    Returns:
        "conversations": for each probe {"prompt": ids, "prompt_text", "target": ids, "target_text", "start": the text
        before the answer, null where the target does not hold the answer, "end": [id, text] of each token after it};
        "special": ids of all special and added tokens; "alike": names of the templates that render as the tokenizer's
        own chat template does. Or "problem": why there is no such training; "templates": all names, where its
        template is none of them.
    """
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    name = config.get("template")
    if name is not None and name not in TEMPLATES:
        return {"problem": f"LLaMA-Factory has no template {name!r}", "templates": sorted(TEMPLATES)}
    model_args, data_args, training_args, _, _ = get_train_args(config)
    untouched = load_tokenizer(model_args)["tokenizer"]
    probes = read_probes(config)
    alike = [each for each, one in sorted(TEMPLATES.items()) if renders_alike(one, untouched, probes)]
    module = load_tokenizer(model_args)
    tokenizer = module["tokenizer"]
    try:
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
    except Exception as error:  # a template of the tokenizer's own that refuses a system turn, say: any Jinja error
        return {"problem": f"LLaMA-Factory cannot use it: {type(error).__name__}: {error}", "alike": alike}
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    tokenizer.save_pretrained(output / "tokenizer")
    return {
        "conversations": [
            conversation(tokenizer, row, probe["response"]) for row, probe in zip(rows, probes, strict=True)
        ],
        "special": sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}),
        "alike": alike,
    }


def read_probes(config: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of the data set, {"prompt", "response"}, in their order."""
    lines = (Path(config["dataset_dir"]) / f"{config['dataset']}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in lines.split("\n") if line]


def conversation(tokenizer: Any, row: dict[str, Any], answer: str) -> dict[str, Any]:
    """One row of LLaMA-Factory's data set, taken apart into prompt, answer and what stands around the answer."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    first = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
    prompt, target = ids[:first], ids[first:]
    text = decode(tokenizer, target)
    start, end = None, []
    if answer in text:
        start = text[: text.index(answer)]
        after = next(n for n in range(1, len(target) + 1) if answer in decode(tokenizer, target[:n]))
        end = [[token, decode(tokenizer, [token])] for token in target[after:]]
    return {
        "prompt": prompt,
        "prompt_text": decode(tokenizer, prompt),
        "target": target,
        "target_text": text,
        "start": start,
        "end": end,
    }


def renders_alike(template: Any, tokenizer: Any, probes: list[dict[str, str]]) -> bool:
    """Whether it renders prompts as the tokenizer's own chat template does, and teaches the tokenizer's end token.

    Only for advice on what to choose instead: the tokenizer is not made to fit each of them.
    """
    if not tokenizer.chat_template:
        return False
    ends = [template.stop_words[0]] if template.replace_eos else [tokenizer.eos_token]
    try:
        for probe in probes:
            asked = [{"role": "user", "content": probe["prompt"]}]
            own = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            told = [*asked, {"role": "assistant", "content": probe["response"]}]
            prompt, target = deepcopy(template).encode_oneturn(tokenizer, told)
            text = decode(tokenizer, target)
            if prompt != tokenizer.encode(own, add_special_tokens=False) or not text.startswith(probe["response"]):
                return False
            if not (template.efficient_eos or any(end and end in text for end in ends)):
                return False
    except Exception:
        return False
    return True


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of these tokens, special ones included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
