"""What compass.py is asked, and OpenCompass' configs with the data that they read."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import score
from score import CannotScore

CONFIGS = "opencompass.configs.datasets"
TURNS = {
    "round": [{"role": "HUMAN", "api_role": "HUMAN"}, {"role": "BOT", "api_role": "BOT", "generate": True}],
}
"""The meta-template: a system turn only where a config has one."""


@dataclass(frozen=True)
class Request(score.Request):
    """What to score, as for score.py, with OpenCompass' parts.

    Attributes:
        task: {"compass": config module below opencompass.configs.datasets, "data": the directory that OpenCompass calls
            $COMPASS_DATA_CACHE, "datasets": for each question the `name` of the module's data set that it belongs to,
            or None where there is one, "verdicts": those allowed to a judge, correct first, "form": what an answer in
            the form asked for matches, where nothing is extracted}.
        judge: {"socket": the gateway's, "model": its name}; None where no judge is asked.
        predictions: A predictions.jsonl of an earlier run: answers in it are not asked for again.
    """

    judge: dict[str, str] | None = None
    predictions: str | None = None


@dataclass(frozen=True)
class Group:
    """Questions of one block that lie in one data set: rows `start` to `end` of it."""

    config: Any
    questions: tuple[int, ...]
    start: int
    end: int

    @property
    def rows(self) -> str:
        """As OpenCompass' `test_range`."""
        return f"[{self.start}:{self.end}]"


@dataclass
class Reply:
    """One answer: the prompt as OpenCompass made it, and the text."""

    prompt: Any
    response: str


def load_configs(module: str) -> dict[str, Any]:
    """The module's data sets by their `name`, or by "" where it has but one."""
    from mmengine.config import ConfigDict

    try:
        config = importlib.import_module(f"{CONFIGS}.{module.replace('/', '.')}")
    except ModuleNotFoundError as error:
        raise CannotScore(f"OpenCompass {version('opencompass')} has no config {module}: {error}") from error
    found = [
        ConfigDict(_named(each))
        for key, value in vars(config).items()
        if key.endswith("_datasets")
        for each in list(value)
    ]
    if not found:
        raise CannotScore(f"the config {module} has no data set")
    if any(config.get("n", 1) != 1 for config in found):
        raise CannotScore(f"the config {module} asks each question several times; choose its plain one and set samples")
    return {"": found[0]} if len(found) == 1 else {str(config.get("name", config["abbr"])): config for config in found}


def _named(value: Any) -> Any:
    """The same with functions by their names, as OpenCompass' registries want them and its config files have them."""
    if isinstance(value, dict):
        return {key: _named(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_named(part) for part in value]
    return f"{value.__module__}.{value.__qualname__}" if inspect.isfunction(value) else value


def place(
    questions: list[dict[str, Any]], configs: dict[str, Any], datasets: list[str] | None
) -> list[tuple[str, int]]:
    """For each question its data set and its row there; each data set has its questions in their order."""
    names = datasets or [""] * len(questions)
    if unknown := set(names) - configs.keys():
        raise CannotScore(f"the config has no data set {sorted(unknown)}, only {sorted(configs)}")
    rows = dict.fromkeys(names, 0)
    placed = []
    for name in names:
        placed.append((name, rows[name]))
        rows[name] += 1
    return placed


def check_data(questions: list[dict[str, Any]], configs: dict[str, Any], placed: list[tuple[str, int]]) -> None:
    """OpenCompass must read the very questions that were asked for, in the same order, and never fetch others."""
    from opencompass.utils import build_dataset_from_cfg

    loaded = {name: build_dataset_from_cfg(configs[name]).test for name in {name for name, _ in placed}}
    for name, rows in loaded.items():
        if len(rows) != sum(name == other for other, _ in placed):
            raise CannotScore(f"OpenCompass read {len(rows)} rows of the data set {name or 'laid out'}: not as asked")
    for question, (name, row) in zip(questions, placed, strict=True):
        asked = question["row"].get("question")
        texts = {_plain(cell) for cell in loaded[name][row].values() if isinstance(cell, str)}
        if isinstance(asked, str) and _plain(asked) not in texts:
            raise CannotScore(f"OpenCompass read another question than {question['id']} in its place")


def groups(block: range, configs: dict[str, Any], placed: list[tuple[str, int]]) -> Iterator[Group]:
    """The block's questions by data set; within one, a block is always a run of rows."""
    for name in dict.fromkeys(placed[index][0] for index in block):
        members = tuple(index for index in block if placed[index][0] == name)
        yield Group(configs[name], members, placed[members[0]][1], placed[members[-1]][1] + 1)


def evaluator_name(config: Any) -> str:
    """The evaluator's class name."""
    kind = config["eval_cfg"]["evaluator"]["type"]
    return str(kind if isinstance(kind, str) else kind.__name__).rsplit(".", 1)[-1]


def is_judged(config: Any) -> bool:
    """Whether the config asks a judge."""
    name = evaluator_name(config)
    if name != "GenericLLMEvaluator" and ("judge_cfg" in str(config["eval_cfg"]) or "Cascade" in name):
        raise CannotScore(f"OpenCompass' {name} is not supported; of the judges, GenericLLMEvaluator is")
    return name == "GenericLLMEvaluator"


def _plain(text: str) -> str:
    return " ".join(text.split())
