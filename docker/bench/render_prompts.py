"""Renders a few questions exactly as an evaluation sends them, as token ids. Runs inside the bench environment.

    python render_prompts.py request.json

The questions take the whole way through the engine, wrapper and prompt code included, up to the model: in its place
stands one that notes the ids which it is given. No weights are loaded. `rendered.json` in the request's output
directory receives one object for each engine and tokenizer (see `Asked`).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import compass_model
import score
from compass_data import Request

TASK = {
    "task": "rendering",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match"}],
}


@dataclass(frozen=True)
class Asked:
    """What one engine sends where the tokenizer is that of the base ("base") or of a trained model ("trained").

    Attributes:
        prompts: Ids for each question. texts: the same as text, special tokens included.
        follows: What the tokenizer's chat template puts after the prompt where the answer is there already; None
            where it has no chat template, or where that changes the prompt.
        stops: Ids at which an answer ends. chat: whether the tokenizer has a chat template.
        vocabulary: Tokens that the model knows.
    """

    engine: str
    tokenizer: str
    prompts: list[list[int]]
    texts: list[str]
    follows: list[str | None]
    stops: list[int]
    chat: bool
    vocabulary: int


class Listener:
    """Stands where the model would: notes what it is to continue, and answers nothing."""

    def __init__(self, directory: str) -> None:
        import torch
        from transformers import AutoConfig, GenerationConfig

        self.config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if (Path(directory) / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(directory)
        else:
            self.generation_config = GenerationConfig.from_model_config(self.config)
        self.device, self.dtype, self.name_or_path = torch.device("cpu"), torch.float32, directory
        self.heard: list[list[int]] = []

    def num_parameters(self) -> int:
        """None; the wrappers choose their batches by it."""
        return 0

    def generate(self, input_ids: Any, **_: Any) -> Any:
        """The same ids, with nothing added."""
        self.heard += input_ids.tolist()
        return input_ids


def main(path: str) -> int:
    """Render the request in the file `path`; the exit code."""
    request = json.loads(Path(path).read_text("utf-8"))
    found = [
        ENGINES[engine](request, name, directory)
        for engine in request["engines"]
        for name, directory in request["tokenizers"].items()
    ]
    output = Path(request["output"])
    (output / "rendered.json").write_text(json.dumps([asdict(each) for each in found]), "utf-8")
    print(f"rendered {len(request['probes'])} questions in {len(found)} ways", flush=True)
    return 0


def by_lm_eval(request: dict[str, Any], name: str, directory: str | None) -> Asked:
    """What lm-eval sends."""
    from lm_eval.models.huggingface import HFLM

    listener = Listener(request["model"])
    HFLM._create_model = lambda self, **_: setattr(self, "_model", listener)
    asked = _request(request, directory)
    model = score.load_model(asked)
    task = score.load_task(asked, request["probes"], model.max_length)
    for number in range(len(request["probes"])):
        score.evaluate(model, task, range(number, number + 1), 0)
    return _asked("lm_eval", name, request["probes"], model.tokenizer, listener)


def by_opencompass(request: dict[str, Any], name: str, directory: str | None) -> Asked:
    """What OpenCompass sends."""
    from opencompass.models import HuggingFacewithChatTemplate
    from opencompass.openicl.icl_prompt_template import PromptTemplate

    listener = Listener(request["model"])
    HuggingFacewithChatTemplate._load_model = lambda self, *_, **__: setattr(self, "model", listener)
    compass_model.with_adapter = lambda model, *_: model  # an adapter changes no prompt
    model = compass_model.Model(_request(request, directory), {}, len(request["probes"]))
    model.load()
    template = PromptTemplate({"round": [{"role": "HUMAN", "prompt": "{question}"}]})
    for probe in request["probes"]:
        model.loaded.generate_from_template([template.generate_item(probe)], max_out_len=1)
    return _asked("opencompass", name, request["probes"], model.loaded.tokenizer, listener)


ENGINES = {"lm_eval": by_lm_eval, "opencompass": by_opencompass}


def _request(request: dict[str, Any], directory: str | None) -> Request:
    """As for an adapter, whose directory brings the tokenizer; None for the base model."""
    return Request(
        model=request["model"],
        adapter=directory,
        task={"config": dict(TASK)},
        questions="",
        metric="exact_match",
        filter="none",
        device="cpu",
        dtype="float32",
        output=request["output"],
    )


def _asked(engine: str, name: str, probes: list[dict[str, str]], tokenizer: Any, listener: Listener) -> Asked:
    ends = listener.generation_config.eos_token_id
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    return Asked(
        engine=engine,
        tokenizer=name,
        prompts=listener.heard,
        texts=[tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in listener.heard],
        follows=[_follows(tokenizer, probe) for probe in probes],
        stops=sorted(stops),
        chat=bool(tokenizer.chat_template),
        vocabulary=int(getattr(listener.config, "vocab_size", 0) or len(tokenizer)),
    )


def _follows(tokenizer: Any, probe: dict[str, str]) -> str | None:
    if not tokenizer.chat_template:
        return None
    asked = [{"role": "user", "content": probe["question"]}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    answered = [*asked, {"role": "assistant", "content": probe["answer"]}]
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    return whole[len(prompt) :] if whole.startswith(prompt) else None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1]))
