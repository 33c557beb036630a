"""`ftloop compare A B`: what differs between two recipes, and how their scores do, question by question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from agent import verdicts
from agent.errors import StudyError
from agent.experiments.grid import ALIASES
from agent.experiments.listing import label, plain, say
from agent.experiments.results import Every, Result, resolve
from agent.records import Comparison, Score
from agent.report import words
from agent.run import written
from scenarios.finetune.arguments import schema
from scenarios.finetune.score_cache import load_questions

_SETTINGS = ("fewshot", "metric", "filter")
"""What must be equal for two scores of a benchmark to be comparable, as far as it is recorded."""
_LARGEST = 1 << 20
_HARNESS = frozenset(
    [
        *("model_name_or_path", "dataset", "dataset_dir", "output_dir", "finetuning_type", "stage", "do_train"),
        *("overwrite_cache", "overwrite_output_dir", "preprocessing_num_workers", "deepspeed", "data_seed"),
        *("logging_steps", "logging_nan_inf_filter", "plot_loss", "push_to_hub", "report_to", "trust_remote_code"),
        *("save_only_model", "save_safetensors", "save_strategy"),
    ]
)
"""Keys of train.yaml that are said otherwise, or change nothing about what is learned."""


def run(found: Every, a: str, b: str, *, as_json: bool = False) -> int:
    """Print it; UsageError where one of them is no result."""
    first, second = resolve(found, a), resolve(found, b)
    comparison, why_not = scores(first, second)
    if as_json:
        content = {
            "a": plain(first),
            "b": plain(second),
            "differences": [{"key": key, "a": x, "b": y} for key, x, y in differences(first, second)],
            "comparison": msgspec.to_builtins(comparison) if comparison else None,
            "why_not": why_not,
        }
        say(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
    else:
        say("\n".join(lines(first, second, comparison, why_not)))
    return 0


def differences(a: Result, b: Result) -> list[tuple[str, Any, Any]]:
    """(key, A's value, B's value) of everything that makes them other experiments.

    Of what the trainer was given, where that is there for both; else of what their authors wrote.
    """
    given = (_given(a), _given(b))
    if given[0] and given[1]:
        default = {key: argument.default for key, argument in schema().items()}
        keys = sorted({*given[0], *given[1]})
        sides = [{key: one.get(key, default.get(key)) for key in keys} for one in given if one]
    else:
        sides = [{ALIASES.get(key, key): value for key, value in one.hyperparameters.items()} for one in (a, b)]
    about_a, about_b = _about(a) | sides[0], _about(b) | sides[1]
    keys_of_both = dict.fromkeys([*about_a, *about_b])
    return [(key, about_a.get(key), about_b.get(key)) for key in keys_of_both if about_a.get(key) != about_b.get(key)]


def _about(one: Result) -> dict[str, Any]:
    """What defines an experiment beside its trainer's keys."""
    recipe = one.recipe
    prepares = {"data script": recipe.script or None, "data steps": list(recipe.data) or None} if recipe else {}
    return {
        "model": one.model,
        "weights": one.weights[:12],
        "method": {"fo_full": "full", "fo_lora": "lora"}.get(one.method, one.method),
        "data": one.data.path,
        "data fingerprint": one.data.fingerprint[:12],
        **prepares,
    }


def _given(one: Result) -> dict[str, Any] | None:
    """What the trainer was given, without what says where and how it is run; None where that is gone."""
    for name in ("train.yaml", "train/train.yaml"):
        try:
            content = yaml.safe_load(written.read(Path(one.path), name, _LARGEST))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(content, dict):
            return {str(key): value for key, value in content.items() if key not in _HARNESS}
    return None


def scores(a: Result, b: Result) -> tuple[Comparison | None, str]:
    """B against A, paired by question on the benchmarks that both were scored on; else None and why not."""
    for one in (a, b):
        if not one.scores:
            return None, f"{label(one)} has no score" + (f": {one.failure}" if one.failure else "")
    pairs, reasons = [], []
    for old in a.scores:
        new = next((score for score in b.scores if score.benchmark == old.benchmark and score.split == old.split), None)
        if new is None:
            reasons.append(f"{b.id} was not scored on {old.benchmark} ({old.split})")
        elif reason := _unlike(new, old):
            reasons.append(f"{old.benchmark}: {reason}")
        else:
            pairs.append((new, old))
    if not pairs:
        return None, "; ".join(reasons)
    try:
        new_scores, old_scores = [list(side) for side in zip(*pairs, strict=True)]
        return verdicts.compare(new_scores, old_scores, a.id, None, _answers), "; ".join(reasons)
    except (StudyError, ValueError) as error:
        return None, getattr(error, "message", str(error))


def _unlike(new: Score, old: Score) -> str:
    """Why two scores of a benchmark cannot be paired; empty where they can."""
    for key in _SETTINGS:
        if new.settings.get(key) != old.settings.get(key):
            return f"asked with another {key}: {new.settings.get(key)} and {old.settings.get(key)}"
    if new.samples != old.samples:
        return f"answered {new.samples} and {old.samples} times a question"
    try:
        asked = [set(_answers(score)) for score in (new, old)]
    except StudyError as error:
        return f"no per-question results: {error.message}"
    if asked[0] != asked[1]:
        common = len(asked[0] & asked[1])
        return f"asked other questions: {len(asked[0])} and {len(asked[1])}, {common} of them the same"
    return ""


def _answers(score: Score) -> dict[str, float | None]:
    return {question.id: question.score for question in load_questions(score.questions)}


def lines(a: Result, b: Result, comparison: Comparison | None, why_not: str) -> Iterator[str]:
    """For a person."""
    for letter, one in (("A", a), ("B", b)):
        yield f"{letter}: {label(one)}, {one.verdict or one.status}"
    yield ""
    found = differences(a, b)
    yield "recipes: the same" if not found else "recipes differ in"
    yield from (f"  {key}: {_shown(x)} -> {_shown(y)}" for key, x, y in found)
    yield ""
    for letter, one in (("A", a), ("B", b)):
        loss = "" if one.train_loss is None else f"training loss {one.train_loss:.4g}"
        each = [f"{words.clean(score.benchmark)} {words.score(score)}" for score in one.scores]
        yield f"{letter}: " + (", ".join(filter(None, [*each, loss])) or "nothing measured")
    if comparison is not None:
        yield f"B is {words.RELATIONS[comparison.verdict]} A: {words.difference(comparison)}"
        yield _detail(comparison)
    if why_not:
        yield f"not compared: {words.clean(why_not, 500)}" if comparison is None else f"left out: {why_not}"


def _detail(found: Comparison) -> str:
    return (
        f"  {found.n} questions, paired: only B right {found.wins}, only A right {found.losses}; "
        f"p {found.p_value:.3g} (one-sided); a gain of {found.detectable * 100:.0f} points would be found"
    )


def _shown(value: Any) -> str:
    return "unset" if value is None or value == "" else words.clean(str(value))
