"""The model that answers, behind OpenCompass' own wrapper, prompts and generation loop."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import score
from compass_data import TURNS, Group, Reply, Request
from score import CannotScore


class Model:
    """The model behind OpenCompass' wrapper, loaded when the first question needs it.

    On CPU and GPU alike it computes with transformers. `load` is the one place that would have to know another way,
    such as a server of the serve image: what it returns needs `generate` and a template parser, as all models of
    OpenCompass have.
    """

    def __init__(self, request: Request, configs: dict[str, Any], total: int) -> None:
        self.request = request
        self.total = total
        self.loaded: Any = None
        self.longest = self.batch = 0
        self.truncated = 0
        self._answered = 0
        self._configs = configs
        self._written = 0.0
        self._known, self._made = read_predictions(request.predictions)
        self._kept = Path(request.output) / "predictions.jsonl"

    @property
    def made(self) -> dict[str, Any]:
        """How the answers were made; by an earlier run, where none had to be made anew."""
        if self.loaded is None:
            return self._made
        template, sampled = self.loaded.tokenizer.chat_template, self.request.samples > 1
        return {
            "generation": {
                "do_sample": sampled,
                "temperature": self.request.temperature if sampled else 0.0,
                "max_gen_toks": self.longest,
            },
            "chat_template": score.template_hash(template),
            "truncated": self.truncated,
            "batch_size": self.batch,
        }

    def replies(self, group: Group, questions: list[dict[str, Any]], sample: int) -> list[Reply]:
        """One answer to each question of the group; those known from an earlier run are not asked again."""
        keys = [(questions[index]["id"], sample) for index in group.questions]
        if not all(key in self._known for key in keys):
            found = self._infer(group, sample)
            if len(found) != len(keys):
                raise CannotScore(f"{len(keys)} questions gave {len(found)} predictions")
            self._known |= dict(zip(keys, found, strict=True))
        else:
            self._answered += len(keys)
        with self._kept.open("a", encoding="utf-8") as file:
            for key in keys:
                known = self._known[key]
                line = {"id": key[0], "sample": sample, "prompt": known.prompt, "response": known.response}
                file.write(json.dumps(line) + "\n")
            file.write(json.dumps({"made": self.made}) + "\n")
        self._progress()
        return [self._known[key] for key in keys]

    def _infer(self, group: Group, sample: int) -> list[Reply]:
        import torch
        from mmengine.config import ConfigDict
        from opencompass.tasks import OpenICLInferTask

        if self.loaded is None:
            self.load()
        config = deepcopy(group.config)
        config["reader_cfg"]["test_range"] = group.rows
        inferencer = config["infer_cfg"]["inferencer"]
        inferencer["max_out_len"] = self.longest
        if self.request.samples > 1:
            torch.manual_seed(random.Random(f"{self.request.seed + sample} {group.questions[0]}").getrandbits(48))  # noqa: S311
        work = Path(self.request.output) / "opencompass"
        shutil.rmtree(work, ignore_errors=True)
        inferencer["output_json_filepath"] = str(work / "unused")  # it makes one wherever the job runs
        while True:
            described = {"abbr": "model", "path": self.request.model, "type": "-", "batch_size": self.batch}
            task = ConfigDict(models=[described], datasets=[[config]], work_dir=str(work))
            try:
                OpenICLInferTask(task).run(cur_model=self.loaded, cur_model_abbr="model")
                break
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                torch.cuda.empty_cache()
                self.batch //= 2
                print(f"out of GPU memory: going on with batches of {self.batch}", flush=True)
        written = json.loads((work / "predictions/model" / f"{config['abbr']}.json").read_text("utf-8"))
        shutil.rmtree(work, ignore_errors=True)
        return [
            Reply(written[str(i)].get("origin_prompt"), str(written[str(i)]["prediction"])) for i in range(len(written))
        ]

    def load(self) -> None:
        """Load it with its own chat template, or as a plain text model where it has none."""
        import torch
        from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
        from transformers import AutoConfig, AutoTokenizer

        request = self.request
        if request.device == "cuda" and not torch.cuda.is_available():
            raise CannotScore("No CUDA GPUs are available, and this score is to be made on one")
        tokenizer = AutoTokenizer.from_pretrained(score.tokenizer_of(request), trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            raise CannotScore(f"the tokenizer of {request.model} has no end-of-sequence token")
        context = context_of(AutoConfig.from_pretrained(request.model, trust_remote_code=False))
        self.longest = self._longest_answer(context)
        base = HuggingFacewithChatTemplate if tokenizer.chat_template else HuggingFaceBaseModel
        decoding: dict[str, Any] = {"do_sample": False}
        if request.samples > 1:  # from the whole distribution: transformers would take the 50 likeliest tokens
            decoding = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}
        wrapped = _counted(base, self)
        self.loaded = wrapped(
            path=request.model,
            tokenizer_path=score.tokenizer_of(request),
            model_kwargs={"device_map": request.device, "torch_dtype": request.dtype, "trust_remote_code": False},
            tokenizer_kwargs={"trust_remote_code": False},
            peft_path=request.adapter,
            generation_kwargs=decoding,
            max_seq_len=context - self.longest,
            **({"meta_template": TURNS} if tokenizer.chat_template else {}),
        )
        plain_decoding(self.loaded)
        self.batch = score.batch_size(self.loaded.model.num_parameters(), request.device)

    def _longest_answer(self, context: int) -> int:
        """New tokens: as the request says, else as the config, else as many as fit."""
        room = context // score.ANSWER_SHARE
        configured = [config["infer_cfg"]["inferencer"].get("max_out_len") for config in self._configs.values()]
        wanted = self.request.generation.get("max_gen_toks") or min(filter(None, configured), default=room)
        return min(int(wanted), room)

    def count(self, answered: int, truncated: int) -> None:
        """One batch is done."""
        self._answered += answered
        self.truncated += truncated
        if time.monotonic() - self._written > 0.5:
            self._progress()

    def _progress(self) -> None:
        self._written = time.monotonic()
        score.write(Path(self.request.output) / "progress", f"{self._answered // self.request.samples}/{self.total}")


def with_adapter(model: Any, tokenizer: Any, path: str) -> Any:
    """The model under an adapter; one that brings tokens of its own needs room for them before it is laid on."""
    from peft import PeftModel

    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    return PeftModel.from_pretrained(model, path).eval()


def _counted(base: type[Any], told: Model) -> type[Any]:
    """OpenCompass' wrapper, which counts what it answers and is told no stop words."""

    class Counted(base):  # type: ignore[misc]
        model: Any

        def _get_potential_stop_words(self, path: str | None) -> list[str]:
            """Those of the model's own configuration fail where it names no end token; `plain_decoding` sets them."""
            return [self.tokenizer.eos_token]

        def _load_model(
            self, path: str, kwargs: dict[str, Any], peft_path: str | None = None, peft_kwargs: Any = None
        ) -> None:
            super()._load_model(path, kwargs)
            if peft_path is not None:
                self.model = with_adapter(self.model, self.tokenizer, peft_path)

        def generate(
            self,
            inputs: Any,
            max_out_len: int,
            min_out_len: int | None = None,
            stopping_criteria: Any = (),
            **kwargs: Any,
        ) -> list[str]:
            answers: list[str] = super().generate(inputs, max_out_len, min_out_len, list(stopping_criteria), **kwargs)
            told.count(len(answers), sum(self.get_token_len(each) > self.max_seq_len for each in inputs))
            return answers

    return Counted


def plain_decoding(wrapped: Any) -> None:
    """A repetition penalty or sampling temperature in the checkpoint would make two models decode differently."""
    from transformers import GenerationConfig

    theirs, tokenizer = wrapped.model.generation_config, wrapped.tokenizer
    named = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    ends = [token for token in dict.fromkeys([*named, tokenizer.eos_token_id]) if token is not None]
    wrapped.stop_words = list(dict.fromkeys([*wrapped.stop_words, *map(tokenizer.decode, ends)]))
    wrapped.model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, bos_token_id=theirs.bos_token_id
    )


def context_of(config: Any) -> int:
    """Tokens that the model can hold."""
    for key in ("max_position_embeddings", "seq_length", "n_positions", "model_max_length"):
        if isinstance(getattr(config, key, None), int):
            return int(getattr(config, key))
    raise CannotScore("the model's config.json does not say how many tokens it can hold (max_position_embeddings)")


def read_predictions(path: str | None) -> tuple[dict[tuple[str, int], Reply], dict[str, Any]]:
    """The answers of an earlier run by question and sample, and how they were made.

    Half a last line, of a killed run, is left out.
    """
    known: dict[tuple[str, int], Reply] = {}
    made: dict[str, Any] = {}
    if path and Path(path).is_file():
        for line in Path(path).read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError):
                row = json.loads(line)
                made = row.get("made", made)
                known[row["id"], row["sample"]] = Reply(row["prompt"], row["response"])
    return known, made
