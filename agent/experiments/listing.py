"""`ftloop list`: everything that was trained, in summary, in detail, or as JSON."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import UsageError
from agent.experiments.results import Every, Result
from agent.report import words

_WIDTH = 80
_SHORT = {"learning_rate": "LR", "batch_size": "BS", "steps": "Steps", "epochs": "Epochs", "seed": "Seed"}
_SCORE = ("benchmark", "split", "mean", "stderr", "low", "high", "n", "unscored")
_QUIET = ("done", "unknown")
_NOTHING = "Nothing was trained yet: ftloop loop, train and sweep do that."
_TITLES = {"cell": "Experiment purpose", "run": "Single runs", "trial": "Agent study"}


def run(found: Every, *, detail: bool = False, purpose: str | None = None, as_json: bool = False) -> int:
    """Print it; UsageError where there is no such purpose."""
    results = of_purpose(found.trained, purpose)
    if as_json:
        say(msgspec.json.format(msgspec.json.encode([plain(one) for one in results]), indent=2).decode())
    else:
        say("\n".join(details(results) if detail else summary(results, shown(str(found.root)))))
    for note in found.notes:
        print(f"ftloop: not shown: {note}", file=sys.stderr)
    return 0


def of_purpose(results: Sequence[Result], purpose: str | None) -> list[Result]:
    """The results of one purpose, or all; UsageError names the purposes that there are."""
    if purpose is None:
        return list(results)
    if found := [one for one in results if one.kind == "cell" and one.purpose == purpose]:
        return found
    known = sorted({one.purpose for one in results if one.kind == "cell"})
    raise UsageError(
        f"there is no experiment with the purpose {purpose!r}",
        f"purposes: {', '.join(known)}" if known else "no sweep was run yet: ftloop sweep training_config.yaml",
    )


def summary(results: Sequence[Result], root: str) -> Iterator[str]:
    """How many experiments there are of each purpose and model."""
    yield from _headed(f"Training results summary - {root}")
    for title, group in _groups(results):
        yield from ("", f"📁 {title}", f"   Experiments: {len(group)}")
        models = Counter(one.model for one in group)
        for index, (model, number) in enumerate(models.items(), start=1):
            corner = "└─" if index == len(models) else "├─"
            yield f"   {corner} {words.clean(model)}: {words.count(number, 'experiment')}"
        other = Counter(one.status for one in group if one.status not in _QUIET)
        if other:
            yield f"   Not done: {', '.join(f'{number} {status}' for status, number in sorted(other.items()))}"
    if not results:
        yield from ("", _NOTHING)
    yield ""
    yield from _headed(f"Total: {_total(results)}")


def details(results: Sequence[Result]) -> Iterator[str]:
    """Every experiment with its hyper-parameters, data and scores."""
    yield from _headed("Training results details")
    for title, group in _groups(results):
        yield from ("", f"📁 {title}", "-" * _WIDTH)
        for number, one in enumerate(group, start=1):
            yield from ("", f"  [{number}] {words.clean(one.name or one.id)}")
            yield from (f"      {line}" for line in _lines(one))
    if not results:
        yield from ("", _NOTHING)


def _lines(one: Result) -> Iterator[str]:
    if one.id != one.path:
        yield f"Id: {words.clean(one.id)}"
    yield f"Model: {words.clean(one.model)}"
    yield f"Time: {words.clean(one.time)}"
    yield f"Path: {words.clean(shown(one.path), 1000)}"
    if one.task:
        yield f"Task: {words.clean(one.task)}"
    if one.method:
        yield f"Method: {words.clean(one.method)}"
    if one.hyperparameters:
        yield "Hyperparameters:"
        yield from (f"  - {_SHORT.get(key, key)}: {_value(value)}" for key, value in one.hyperparameters.items())
    if one.data.path:
        yield f"Data: {words.clean(one.data.path, 500)}"
    if one.status and one.status != "unknown":
        why = f" ({words.clean(one.failure)})" if one.failure else ""
        yield f"Status: {one.verdict or one.status}{why}"
    if one.train_loss is not None:
        yield f"Training loss: {one.train_loss:.4g}"
    yield from (f"Score: {words.clean(score.benchmark)} {words.score(score)}" for score in one.scores)


def _groups(results: Iterable[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Results by purpose, all single runs together, and by study, each group with its title."""
    groups: dict[str, list[Result]] = {}
    for one in results:
        of = {"cell": one.purpose, "trial": one.study}.get(one.kind)
        title = f"{_TITLES[one.kind]}: {words.clean(of)}" if of is not None else _TITLES[one.kind]
        groups.setdefault(title, []).append(one)
    yield from groups.items()


def _total(results: Sequence[Result]) -> str:
    """ "3 experiment purposes, 24 training experiments", and what else there is."""
    cells = [one for one in results if one.kind == "cell"]
    trials = [one for one in results if one.kind == "trial"]
    runs = len(results) - len(cells) - len(trials)
    purposes = len({one.purpose for one in cells})
    said = [words.count(purposes, "experiment purpose"), words.count(len(cells), "training experiment")]
    if runs:
        said.append(words.count(runs, "single run"))
    if trials:
        studies = len({one.study for one in trials})
        said.append(
            f"{studies} agent {'study' if studies == 1 else 'studies'} with {words.count(len(trials), 'trial')}"
        )
    return ", ".join(said)


def _headed(title: str) -> tuple[str, str, str]:
    return "=" * _WIDTH, title, "=" * _WIDTH


def _value(value: Any) -> str:
    return words.clean(str(value))


def shown(path: str) -> str:
    """A path as it is best read: from the working directory where it lies below that."""
    here = Path.cwd()
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else path


def plain(one: Result) -> dict[str, Any]:
    """A result as JSON: what a script wants to know; the questions behind a score are a file."""
    content: dict[str, Any] = msgspec.to_builtins(one)
    content["scores"] = [
        {name: getattr(score, name) for name in _SCORE} | {"questions": score.questions.path} for score in one.scores
    ]
    if one.recipe is not None and not one.recipe.prepares:
        content["recipe"] = None  # its keys are the hyper-parameters
    return content


def label(one: Result) -> str:
    """What a result is called in a sentence, and how it is named to ftloop."""
    return f"{words.clean(one.name or one.id)} ({words.clean(one.id if one.id != one.path else shown(one.path), 1000)})"


def say(text: str) -> None:
    """Print what the terminal's encoding may not hold, to a pipe that may be closed (`ftloop list | head`)."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
