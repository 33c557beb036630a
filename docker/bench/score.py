"""Answers a benchmark's questions with one model and scores them, one by one. Runs inside the bench environment.

    python score.py request.json

The request (see `Request`) names the model, the lm-eval task, the questions and the directory for the answers, which
receives `result.json` and `questions.jsonl`; while it runs, `progress` and block by block `answers.jsonl`, so that
whoever waits can end a race early; and `error.txt` with one reason where it fails (exit code 1). It imports nothing of
ftloop: it runs where only this folder is mounted.

lm-eval's own defaults are not used where they cost the score its meaning or seconds: the rows reach the task as they
are (its JSON reader turns strings that look like dates into dates), its index of 10,000 tasks is not read, and no
environment report is made (it runs `pip list`). Decoding is greedy, or plain sampling at the request's temperature,
whatever the model's generation_config.json says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

SEED = 1234
"""Of the few-shot choice."""
NOTHING_FOUND = ("", "[invalid]")
"""What lm-eval's filters give where they find no answer."""
PACKAGES = ("lm_eval", "transformers", "torch", "peft", "tokenizers")
MODEL_PARTS = {
    "config.json": ("config.json",),
    "weights": ("*.safetensors", "*.bin"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken"),
}
ADAPTER_PARTS = {"adapter_config.json": ("adapter_config.json",), "weights": ("*.safetensors", "*.bin")}
TINY, SMALL = 20_000_000, 1_000_000_000  # parameters
ANSWER_SHARE = 2
"""Of a context of n tokens, at most n / ANSWER_SHARE are kept for the answer."""


class CannotScore(Exception):
    """A reason that a person can act on, told in one line."""


@dataclass(frozen=True)
class Request:
    """What to score.

    Attributes:
        model: Directory of the model. adapter: directory of a PEFT adapter on top of it.
        written_by: Version of transformers that wrote the trained weights, where the model's files do not say.
        task: {"shipped": path under lm_eval/tasks}, {"file": path of a YAML} or {"config": the task itself}.
        generation: Decoding settings that replace the task's own.
        questions: JSONL of {"id", "row"}. shots: JSONL of rows for few-shot examples.
        metric, filter: Which of the task's numbers is the score, and after which of its filters; empty for the first.
        device, dtype: What to compute on and in, no other: "cpu" or "cuda"; a name of torch ("float32").
        output: Directory to write to.
        samples: Answers a question. With more than one they are drawn at `temperature`, sample i with seed + i.
        blocks: Questions answered when a block is done, the last being all; empty for one block.
    """

    model: str
    task: dict[str, Any]
    questions: str
    output: str
    metric: str
    filter: str
    device: str
    dtype: str
    fewshot: int = 0
    adapter: str | None = None
    written_by: str | None = None
    shots: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    blocks: Sequence[int] = ()


AnyRequest = TypeVar("AnyRequest", bound=Request)
Answered = tuple[list[dict[str, Any]], dict[str, Any]]
"""Answers in the order of the questions, and the settings they were made with."""


class Counter:
    """Writes how many questions are answered into a small file; lm-eval calls it after each answer."""

    def __init__(self, file: Path, total: int, samples: int) -> None:
        self._file, self._total, self._samples, self._answered, self._written = file, total, samples, 0, 0.0

    def add_partial(self, kind: str, request: Any, answer: str) -> None:
        """lm-eval's cache hook: one more answer is there."""
        self._answered += 1
        if time.monotonic() - self._written > 0.5:
            self._written = time.monotonic()
            write(self._file, f"{self._answered // self._samples}/{self._total}")


def main(path: str) -> int:
    """Score the request in the file `path`; the exit code."""
    return run(Request(**json.loads(Path(path).read_text("utf-8"))), answer)


def run(request: AnyRequest, answer: Callable[[AnyRequest, list[dict[str, Any]]], Answered]) -> int:
    """Have the questions answered and lay down what became of it, whichever engine answers; the exit code."""
    output = Path(request.output)
    try:
        started = time.monotonic()
        questions = list(_lines(request.questions))
        check_model(request)
        answers, settings = answer(request, questions)
        settings["seconds"] = round(time.monotonic() - started, 3)
        write(output / "questions.jsonl", "".join(json.dumps(one) + "\n" for one in answers))
        scored = [one["score"] for one in answers if one["score"] is not None]
        if not scored:
            raise CannotScore(f"not one of {len(answers)} questions has a score")
        mean = math.fsum(scored) / len(scored)
        write(output / "result.json", json.dumps({"n": len(answers), "mean": mean, "settings": settings}))
    except CannotScore as error:
        write(output / "error.txt", str(error))
        print(f"cannot score: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the traceback goes to the log, its last line to the person
        write(output / "error.txt", f"{type(error).__name__}: {error}"[:2000])
        raise
    print(f"scored {len(scored)} of {len(answers)} questions: {request.metric} {mean:.4f}", flush=True)
    return 0


def check_model(request: Request) -> None:
    """Refuse an incomplete model, and weights that another major version of transformers wrote.

    Those would load, with silently wrong parameters: version 5 writes `rope_parameters` where 4 reads `rope_theta`,
    and a theta of 1e6 becomes 10,000 without a word.
    """
    for directory, parts in ((request.model, MODEL_PARTS), (request.adapter, ADAPTER_PARTS)):
        for part, patterns in parts.items():
            if directory and not any(any(Path(directory).glob(pattern)) for pattern in patterns):
                raise CannotScore(f"{directory} has no {part} ({' or '.join(patterns)})")
    ours = version("transformers")
    base = json.loads(Path(request.model, "config.json").read_text("utf-8")).get("transformers_version")
    for what, theirs in ((request.model, base), (request.adapter or request.model, request.written_by)):
        if theirs and str(theirs).split(".")[0] != ours.split(".")[0]:
            raise CannotScore(
                f"{what} was written by transformers {theirs}, and scores are made with {ours}; "
                "another major version reads its parameters wrongly without saying so"
            )


def answer(request: Request, questions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers in the order of the questions, and the settings they were made with."""
    import torch

    if request.device == "cuda" and not torch.cuda.is_available():
        raise CannotScore("No CUDA GPUs are available, and this score is to be made on one")
    model = load_model(request)
    model.batch_size_per_gpu = batch_size(model.model.num_parameters(), request.device)
    model.set_cache_hook(Counter(Path(request.output) / "progress", len(questions), request.samples))
    task = load_task(request, [question["row"] for question in questions], model.max_length)
    if len(task.eval_docs) != len(questions):
        raise CannotScore(
            f"{len(questions)} questions became {len(task.eval_docs)}; "
            "a task's process_docs must keep each question, in order"
        )
    generation = dict(task.config.generation_kwargs)
    room = model.max_length - generation["max_gen_toks"]
    answers: list[dict[str, Any]] = []
    truncated = 0
    with (Path(request.output) / "answers.jsonl").open("a", encoding="utf-8") as file:
        for end in request.blocks or [len(questions)]:
            block = range(len(answers), end)
            passes = [evaluate(model, task, block, request.seed + i) for i in range(request.samples)]
            fresh = per_question(passes, block, questions, request)
            file.writelines(json.dumps(one) + "\n" for one in fresh)
            file.flush()
            answers += fresh
            used = chosen_numbers(request, passes[0])
            prompts = {sample["doc_id"]: sample["arguments"][0][0] for sample in passes[0]}
            truncated += sum(len(model.tok_encode(prompt)) > room for prompt in prompts.values())
    settings = {
        "fewshot": request.fewshot,
        "metric": used.metric,
        "filter": used.filter,
        "generation": generation,
        "samples": request.samples,
        "seed": request.seed if request.samples > 1 else None,
        "chat_template": template_hash(model.tokenizer.chat_template),
        "truncated": truncated,
        "device": model.device.type,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "batch_size": model.batch_size_per_gpu,
        "versions": {package: version(package) for package in PACKAGES},
    }
    return answers, settings


def tokenizer_of(request: Request) -> str:
    """Directory of the tokenizer: what a training left beside an adapter holds the chat template it trained with."""
    beside = bool(request.adapter) and Path(str(request.adapter), "tokenizer_config.json").is_file()
    return str(request.adapter) if beside else request.model


def load_model(request: Request) -> Any:
    """lm-eval's wrapper of the model, set to plain greedy decoding."""
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    model = HFLM(
        pretrained=request.model,
        tokenizer=tokenizer_of(request),
        peft=request.adapter,
        device=request.device,
        dtype=request.dtype,
        batch_size=1,
        trust_remote_code=False,
    )
    if model.tokenizer.eos_token_id is None:
        raise CannotScore(f"the tokenizer of {request.model} has no end-of-sequence token")
    if model.tokenizer.chat_template is not None:
        model.add_bos_token = False  # the template has it, or the model was trained without; as OpenCompass does
    theirs = model.model.generation_config
    # A repetition penalty or sampling temperature in the checkpoint would make two models decode differently.
    model.model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=theirs.eos_token_id or model.tokenizer.eos_token_id,
        pad_token_id=model.tokenizer.pad_token_id,
        bos_token_id=theirs.bos_token_id,
    )
    return model


def load_task(request: Request, rows: list[dict[str, Any]], context: int) -> Any:
    """The lm-eval task, with these rows as its data; `!function` tags are resolved by lm-eval's own loader."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    if "config" in request.task:
        config = dict(request.task["config"])
    else:
        shipped = Path(lm_eval.__file__).parent / "tasks" / request.task.get("shipped", "")
        config = load_yaml(request.task.get("file") or shipped)
    data = {"questions": datasets.Dataset.from_list(rows)}
    shown = config.get("fewshot_config") or {}
    if request.shots:
        data["shots"] = datasets.Dataset.from_list(list(_lines(request.shots)))
        shown = {**shown, "split": "shots"}
    generation = {**(config.get("generation_kwargs") or {}), **request.generation}
    longest = min(int(generation.get("max_gen_toks", 256)), context // ANSWER_SHARE)
    decoding = {"do_sample": False, "temperature": 0.0}
    if request.samples > 1:  # from the whole distribution: transformers would take the 50 likeliest tokens
        decoding = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": None,
        "custom_dataset": lambda **_: data,
        "training_split": None,
        "validation_split": None,
        "test_split": "questions",
        "fewshot_split": "shots" if request.shots else None,
        "fewshot_config": shown if request.fewshot else None,
        "num_fewshot": request.fewshot,
        "generation_kwargs": {**generation, **decoding, "max_gen_toks": longest},
        "repeats": 1,
    }
    return next(iter(TaskManager(include_defaults=False).load([config])["tasks"].values()))


def evaluate(model: Any, task: Any, block: range, seed: int) -> list[dict[str, Any]]:
    """lm-eval's samples for a block of questions: one for each question and filter."""
    import lm_eval
    import torch

    while True:
        task.set_fewshot_seed(seed=SEED + block.start)
        # Two blocks must not draw the same numbers, nor a sample of one block those of another sample.
        torch.manual_seed(seed * 1_000_003 + block.start)
        try:
            result = lm_eval.evaluate(
                lm=model,
                task_dict={"tasks": {task.task_name: task}},
                samples={task.task_name: list(block)},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=model.tokenizer.chat_template is not None,
                fewshot_as_multiturn=True,
            )
            samples: list[dict[str, Any]] = result["samples"][task.task_name]
            return samples
        except torch.OutOfMemoryError:
            if model.batch_size_per_gpu == 1:
                raise
            torch.cuda.empty_cache()
            model.batch_size_per_gpu //= 2
            print(f"out of GPU memory: going on with batches of {model.batch_size_per_gpu}", flush=True)


def per_question(
    passes: Sequence[list[dict[str, Any]]], block: range, questions: list[dict[str, Any]], request: Request
) -> list[dict[str, Any]]:
    """One line a question of the block, in their order, or `CannotScore`."""
    request = chosen_numbers(request, passes[0])
    chosen = [_chosen(samples, block, request) for samples in passes]
    answers = []
    for index in block:
        name = questions[index]["id"]
        scores = [_score(samples[index], name, request) for samples in chosen]
        extracted = [samples[index]["filtered_resps"][0] for samples in chosen]
        first = extracted[0]
        line = {
            "id": name,
            "score": math.fsum(scores) / len(scores),
            "response": chosen[0][index]["resps"][0][0],
            "extracted": first if isinstance(first, str) else json.dumps(first, ensure_ascii=False),
            "formatted": any(_is_answer(one) for one in extracted),
        }
        answers.append(line | {"scores": scores} if len(scores) > 1 else line)
    return answers


def chosen_numbers(request: Request, samples: Sequence[dict[str, Any]]) -> Request:
    """The request with the task's first metric and filter where it names none."""
    first = samples[0]
    return replace(request, metric=request.metric or first["metrics"][0], filter=request.filter or first["filter"])


def _chosen(samples: list[dict[str, Any]], block: range, request: Request) -> dict[int, dict[str, Any]]:
    chosen = {sample["doc_id"]: sample for sample in samples if sample["filter"] == request.filter}
    if not chosen:
        raise CannotScore(f"the task has no filter {request.filter!r}, only {sorted({s['filter'] for s in samples})}")
    if sorted(chosen) != list(block):
        raise CannotScore(f"{len(block)} questions gave {len(chosen)} predictions")
    return chosen


def _score(sample: dict[str, Any], question: str, request: Request) -> float:
    if request.metric not in sample:
        raise CannotScore(f"the task does not report {request.metric!r}, only {sample['metrics']}")
    score = sample[request.metric]
    if not _is_score(score):
        raise CannotScore(f"{request.metric} of question {question} is {score!r}, not a number from 0 to 1")
    return float(score)


def _is_answer(extracted: Any) -> bool:
    return extracted is not None and str(extracted).strip() not in NOTHING_FOUND


def batch_size(parameters: int, device: str) -> int:
    """Questions answered at a time: what fits on a GPU is found by halving, on a CPU it is a matter of cache."""
    if parameters < TINY:
        return 128
    if device == "cuda":
        return 64
    return 16 if parameters < SMALL else 4


def _is_score(value: Any) -> bool:
    try:
        return 0.0 <= float(value) <= 1.0
    except (TypeError, ValueError):
        return False


def template_hash(template: Any) -> str | None:
    """What a chat template is known by in a score's settings; None where there is none."""
    if template is None:
        return None
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def _lines(path: str) -> Iterator[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)


def write(path: Path, text: str) -> None:
    """Never half a file: readers outside look at any time."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, "utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1]))
