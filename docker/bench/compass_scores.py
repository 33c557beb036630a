"""What an answer is worth: OpenCompass' own extraction and evaluators, or the verdict of a judge."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compass_data import TURNS, Group, Reply, Request, evaluator_name, is_judged
from forward import forwarding
from score import CannotScore

VERDICT_KEYS = ("correct", "is_correct")
NOTHING_FOUND = ("", "NULL", "[]", "None")
"""What OpenCompass' extractions give where they find no answer."""
STRICT = ("MATHVerifyEvaluator",)
"""Evaluators that leave out a question whose reference they cannot read; it has no score."""
JUDGE_WORKERS = 16
JUDGE_TOKENS = 4096
"""A judge that reasons needs some; the gateway may ask for fewer."""
JUDGE_TIMEOUT = 3600
"""Seconds for one verdict; the gateway, which answers in any case, is the one that bounds it."""


@dataclass(frozen=True)
class Mark:
    """What an answer is worth: `score` None where nobody could say, `extracted` None where nothing was taken out."""

    score: float | None
    extracted: str | None
    formatted: bool


def evaluate(
    request: Request, group: Group, questions: list[dict[str, Any]], replies: Sequence[Reply], judge: str | None
) -> list[Mark]:
    """A mark for each answer, by the config's own extraction and evaluator."""
    from opencompass.registry import TEXT_POSTPROCESSORS
    from opencompass.utils import build_dataset_from_cfg

    config = deepcopy(group.config)
    config["reader_cfg"]["test_range"] = group.rows
    rules, column = config["eval_cfg"], config["reader_cfg"]["output_column"]
    rows = build_dataset_from_cfg(config).test

    def processed(key: str, texts: Sequence[Any]) -> list[Any]:
        if not (settings := deepcopy(rules.get(key))):
            return list(texts)
        kind = settings.pop("type")
        process = TEXT_POSTPROCESSORS.get(kind) if isinstance(kind, str) else kind
        return [process(text, **settings) for text in texts]

    extracted = processed("pred_postprocessor", [reply.response for reply in replies])
    references = []
    for index, reference in zip(group.questions, rows[column], strict=True):
        try:
            references += processed("dataset_postprocessor", [reference])
        except Exception as error:
            raise CannotScore(
                f"the reference answer of question {questions[index]['id']} is not in the form that "
                f"{request.task['compass']} reads: {reference!r}"
            ) from error
    rows = rows.remove_columns(column).add_column(column, references)
    if is_judged(config):
        assert judge is not None
        verdicts = ask_judge(request, config, group, rows, extracted, references, judge)
        form = request.task["form"]
        return [
            Mark(verdict, None, bool(_matches(form, reply.response)))
            for verdict, reply in zip(verdicts, replies, strict=True)
        ]
    return [
        mark(config, rows.select([i]), extracted[i], references[i], replies[i]) for i in range(len(group.questions))
    ]


def mark(config: Any, rows: Any, extracted: Any, reference: Any, reply: Reply) -> Mark:
    """The mark of one answer, from the evaluator's details on it, or from its accuracy where it gives none."""
    evaluator, name = build_evaluator(config), evaluator_name(config)
    extracted = evaluator.pred_postprocess([extracted])[0] if hasattr(evaluator, "pred_postprocess") else extracted
    offered = {
        "predictions": [extracted],
        "references": [reference],
        "test_set": rows,
        "origin_prompt": [reply.prompt],
    }
    wanted = inspect.signature(evaluator.score).parameters
    if missing := [key for key in wanted if key not in offered]:
        raise CannotScore(f"OpenCompass' {name} needs {missing[0]}, which is not supported")
    result = evaluator.score(**{key: offered[key] for key in wanted})
    if "error" in result:
        raise CannotScore(f"OpenCompass' {name}: {result['error']}")
    details = result.get("details")
    if details is None and "accuracy" not in result:
        raise CannotScore(f"OpenCompass' {name} reports no accuracy, only {sorted(result)}")
    detail = (list(details.values()) if isinstance(details, dict) else details or [{}])[0]
    found = detail.get("pred", extracted) if name in STRICT else extracted
    if name in STRICT and not details:
        return Mark(None, _shown(found), formatted=True)
    value = next((detail[key] for key in VERDICT_KEYS if key in detail), None)
    value = float(result["accuracy"]) / 100 if value is None else float(value)
    if not 0.0 <= value <= 1.0:  # neither is NaN
        raise CannotScore(f"OpenCompass' {name} gave {value} for an answer, not a number from 0 to 1")
    return Mark(value, _shown(found), formatted=_shown(found) not in NOTHING_FOUND)


def build_evaluator(config: Any) -> Any:
    """A fresh evaluator."""
    from opencompass.registry import ICL_EVALUATORS

    return ICL_EVALUATORS.build(deepcopy(config["eval_cfg"]["evaluator"]))


@contextlib.contextmanager
def judging(request: Request, configs: dict[str, Any]) -> Iterator[str | None]:
    """The gateway's base URL while answers are judged; None where nothing is."""
    judged = [is_judged(config) for config in configs.values()]
    if not any(judged):
        yield None
    elif request.judge is None:
        raise CannotScore(f"{request.task['compass']} is scored by a judge, and none was given")
    elif len(request.task["verdicts"]) != 2:
        raise CannotScore(f"{request.task['compass']} is scored by a judge, but no verdicts were named")
    else:
        with forwarding(request.judge["socket"]) as url:
            yield url


def ask_judge(
    request: Request, config: Any, group: Group, rows: Any, extracted: list[Any], references: list[Any], url: str
) -> list[float | None]:
    """1 for the first of the allowed verdicts, 0 for the second, None for whatever else the gateway answers."""
    from opencompass.models import OpenAISDK

    assert request.judge is not None
    rules = config["eval_cfg"]["evaluator"]
    rules["judge_cfg"] = {
        "type": OpenAISDK,
        "path": request.judge["model"],
        "key": "none",
        "openai_api_base": url,
        "meta_template": TURNS,
        "query_per_second": 1000,
        "batch_size": len(rows),
        "max_workers": JUDGE_WORKERS,
        "retry": 1,
        "timeout": JUDGE_TIMEOUT,
        "temperature": 0.0,
        "max_out_len": JUDGE_TOKENS,
        "max_seq_len": 1 << 20,
        "tokenizer_path": request.model,  # else it fetches one; it only measures how long the prompt is
    }
    if rules.get("dataset_cfg"):
        rules["dataset_cfg"]["reader_cfg"]["test_range"] = group.rows
    evaluator = build_evaluator(config)
    work = Path(request.output) / "opencompass-judge"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    evaluator._out_dir = str(work / "judged")  # where its own evaluation task puts it
    evaluator.score(predictions=evaluator.pred_postprocess(extracted), references=references, test_set=rows)
    replies = json.loads((work / "judged_replica0.json").read_text("utf-8"))
    shutil.rmtree(work, ignore_errors=True)
    if len(replies) != len(rows):
        raise CannotScore(f"{len(rows)} answers gave {len(replies)} verdicts")
    right, wrong = request.task["verdicts"]
    return [{right: 1.0, wrong: 0.0}.get(replies[str(i)]["prediction"]) for i in range(len(rows))]


def _matches(form: str, response: str) -> bool:
    return bool(response.strip()) and (not form or re.search(form, response) is not None)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
