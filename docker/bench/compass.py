"""Answers a benchmark's questions with one model and scores them with OpenCompass. Runs inside the bench environment.

    python compass.py request.json

The request is that of score.py (see `Request` there and here), and so are the files in its output directory; beside
them `predictions.jsonl` keeps every answer, so that a later request can have them judged without asking the model
again.

OpenCompass is used as a library, in one process: its command line ends with exit code 0 whatever failed, loads the
model once a data set, and scores data sets as a whole. Its configs, loaders, prompts, generation loop, extraction and
evaluators are its own; not its own are:
- the meta-template: by default it sends an empty system turn, which adds a newline to every prompt;
- decoding: greedy, or plain sampling at the request's temperature, whatever the model's generation_config.json says;
- the score of an answer: each is evaluated alone, so that an evaluator that skips one cannot shift the others';
- the verdict on a judged answer: the judge's whole reply and nothing else, where OpenCompass takes the first A or B.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import score
from compass_data import CONFIGS, Reply, Request, check_data, evaluator_name, groups, load_configs, place
from compass_model import Model
from compass_scores import Mark, evaluate, judging

PACKAGES = ("opencompass", "transformers", "torch", "peft", "tokenizers")


def main(path: str) -> int:
    """Score the request in the file `path`; the exit code."""
    return score.run(Request(**json.loads(Path(path).read_text("utf-8"))), answer)


def answer(request: Request, questions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers in the order of the questions, and the settings they were made with."""
    os.environ["COMPASS_DATA_CACHE"] = request.task["data"]
    configs = load_configs(request.task["compass"])
    placed = place(questions, configs, request.task["datasets"])
    check_data(questions, configs, placed)
    model = Model(request, configs, len(questions))
    answers: list[dict[str, Any]] = []
    with judging(request, configs) as judge:
        for end in request.blocks or [len(questions)]:
            block = range(len(answers), end)
            fresh: dict[int, dict[str, Any]] = {}
            for group in groups(block, configs, placed):
                passes = [model.replies(group, questions, sample) for sample in range(request.samples)]
                marks = [evaluate(request, group, questions, replies, judge) for replies in passes]
                for place_, index in enumerate(group.questions):
                    samples = [(replies[place_], found[place_]) for replies, found in zip(passes, marks, strict=True)]
                    fresh[index] = told(questions[index]["id"], samples)
            with (Path(request.output) / "answers.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(fresh[index]) + "\n" for index in block)
            answers += [fresh[index] for index in block]
    return answers, settings_of(request, configs, model)


def told(name: str, samples: list[tuple[Reply, Mark]]) -> dict[str, Any]:
    """One question as the host reads it: the mean of its scored answers, and the first of them in full."""
    scored = [found.score for _, found in samples if found.score is not None]
    reply, first = samples[0]
    return {
        "id": name,
        "score": math.fsum(scored) / len(scored) if scored else None,
        "scores": [found.score for _, found in samples] if len(samples) > 1 else [],
        "response": reply.response,
        "extracted": first.extracted,
        "formatted": any(found.formatted for _, found in samples),
    }


def settings_of(request: Request, configs: dict[str, Any], model: Model) -> dict[str, Any]:
    """How the answers were made and scored."""
    module = sys.modules[f"{CONFIGS}.{request.task['compass'].replace('/', '.')}"]
    assert module.__file__ is not None
    return {
        "engine": "opencompass",
        "config": request.task["compass"],
        "config_sha256": hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest(),
        "fewshot": request.fewshot,
        "metric": "accuracy",
        "evaluator": sorted({evaluator_name(config) for config in configs.values()}),
        "judge": request.judge["model"] if request.judge else None,
        "samples": request.samples,
        "seed": request.seed if request.samples > 1 else None,
        "device": request.device,
        "dtype": request.dtype,
        "versions": {package: version(package) for package in PACKAGES},
        **model.made,
    }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1]))
