"""`ftloop eval`: benchmarks over a model or an adapter, asked in full, by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import RunFailed, TrialFailed, UsageError
from agent.experiments import snapshots
from agent.experiments.arguments import EvalArguments
from agent.experiments.fields import Field
from agent.experiments.laboratory import AUTHOR, Laboratory, alone, recorded
from agent.experiments.places import Places, model_name, places, run_id, tracker_name
from agent.experiments.sources import Values
from agent.records import Checkpoint, Identity, Score, Scores
from agent.ruler import choose_judges
from scenarios import Bench
from scenarios.finetune import outputs
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.judging import Judges
from scenarios.finetune.models import inspect, weights_hash
from scenarios.finetune.score_cache import sampling_for
from scenarios.finetune.scoring import score
from scenarios.finetune.splits import Halves


def evaluate(
    lab: Laboratory, known: Mapping[str, Field], values: Values, arguments: EvalArguments
) -> tuple[Path, Scores]:
    """Score, unless that was done; the file with the results, and the scores.

    Raises:
        RunFailed: The scoring failed. UsageError: It cannot be done, or other results are in its place.
    """
    tasks = lab.tasks(arguments.tasks)
    benchmarks = _benchmarks(lab, values, arguments, tasks)
    asked = _Asked(lab, arguments, choose_judges(lab.settings, benchmarks, lab.workspace.scores))
    lab.runner.ready("bench", lab.view.say)
    model = arguments.model_name or model_name(arguments.model_name_or_path)
    where = places(model, arguments.run_name, arguments.finetuning_type, arguments.output_dir, "eval", lab.cwd)
    names = [benchmark.name for benchmark in benchmarks]
    stage, text = where.stage(names), snapshots.snapshot(known, values.values | _full(arguments, tasks), "eval")
    identity = Identity(
        dataset="",
        dataset_fingerprint="",
        model=arguments.model_name_or_path,
        model_fingerprint=asked.weights[0],
        benchmarks=tuple(names),
        limit=arguments.limit,
        generation={"author": AUTHOR},
    )
    tracker = tracker_name(model, arguments.run_name, arguments.stage)
    with alone(where), recorded(lab, where, identity, run_id(tracker, where.root)) as study:
        trial = study.next_trial()  # the trained one, as it never ends
        if arguments.overwrite or not _there(where, stage, text, asked.weights):
            study.journal.state.stages.pop((trial, stage), None)  # what is no longer there is scored again

        def work(bench: Bench) -> Scores:
            snapshots.write(bench.directory / "eval_config.yaml", text)
            found = study.journal.state.contamination
            made = (asked.score(bench, benchmark) for benchmark in benchmarks)
            marked = (msgspec.structs.replace(one, marked=found.mark(one.benchmark) if found else "") for one in made)
            return Scores(scores=tuple(marked))

        try:
            scores = study.stage(trial, stage, work, Scores)
        except TrialFailed as failed:
            raise RunFailed(f"{where.root}: {failed.kind}: {failed.reason}", "change the arguments") from None
        file = where.results(names)
        snapshots.write(file, json.dumps(_results(arguments, tracker, asked.weights, scores), indent=2) + "\n")
        if not where.config("eval").exists():
            snapshots.write(where.config("eval"), text)
            snapshots.write_script(where.script, where.config("eval"), lab.cwd)
    return file, scores


def _benchmarks(
    lab: Laboratory, values: Values, arguments: EvalArguments, tasks: Sequence[str]
) -> tuple[Benchmark, ...]:
    """What is asked, whole; UsageError where one has no prompt with so many examples."""
    found = tuple(whole(benchmark) for benchmark in lab.benchmarks(tasks))
    for benchmark in found:
        if arguments.num_fewshot not in benchmark.fewshots:
            raise UsageError(
                f"{values.origin('num_fewshot')}: num_fewshot: {benchmark.name} is asked with "
                f"{' or '.join(map(str, benchmark.fewshots))} examples, not {arguments.num_fewshot}",
                "choose one of these",
            )
    return found


def whole(benchmark: Benchmark) -> Benchmark:
    """The benchmark with all of its questions in one split, in hash order as each half is.

    That is the test split: nothing of it is ever kept for a proposal.
    """
    halves = benchmark.halves
    items = tuple(sorted((*halves.search, *halves.test), key=lambda item: item.id))
    return dataclasses.replace(benchmark, halves=Halves((), items, halves.duplicates))


class _Asked:
    """What one evaluation asks of which model, and who marks the answers."""

    def __init__(self, lab: Laboratory, arguments: EvalArguments, judges: Judges | None) -> None:
        self._lab, self._arguments, self._judges = lab, arguments, judges
        self._base = lab.base_model(arguments.model_name_or_path)
        self._adapter = _adapter(arguments.adapter_name_or_path) if arguments.adapter_name_or_path else None
        self.weights = (lab.weights(self._base), self._adapter.weights if self._adapter else "")

    def score(self, bench: Bench, benchmark: Benchmark) -> Score:
        """The score on one benchmark."""
        return score(
            bench,
            self._base,
            self._adapter,
            benchmark,
            "test",
            fewshot=self._arguments.num_fewshot,
            limit=self._arguments.limit,
            timeout=self._lab.settings.benchmark_timeout,
            cache=self._lab.workspace.scores,
            weights=self.weights[0],
            device="cuda" if self._lab.machine.gpus else "cpu",
            sampling=sampling_for(benchmark.halves.size(self._arguments.limit), self._arguments.samples),
            judges=self._judges,
        )


def _adapter(name: str) -> Checkpoint:
    path = Path(name).expanduser().absolute()
    if not inspect(path).adapter:
        raise UsageError(f"adapter_name_or_path: {path} is no PEFT adapter", "give a model as model_name_or_path")
    return Checkpoint(path=str(path), weights=weights_hash(path), adapter=True, versions=outputs.versions(path))


def _there(where: Places, stage: str, text: str, weights: Sequence[str]) -> bool:
    """Whether the results of this very evaluation are there; UsageError where those of another one are."""
    results, config = where.root / stage / "results.json", where.root / stage / "eval_config.yaml"
    if not results.exists():
        return False
    found = snapshots.differences(config.read_text("utf-8"), text) if config.exists() else ["eval_config.yaml is gone"]
    try:
        scored = msgspec.json.decode(results.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        found.append(f"it cannot be read: {error}")
    else:
        if scored.get("weights") != list(weights):
            found.append("the weights are other ones")
    if found:
        raise UsageError(
            f"{results} is another evaluation's ({'; '.join(found[:5])})",
            "give this one another run_name, or replace it with --overwrite",
        )
    return True


def _full(arguments: EvalArguments, tasks: Sequence[str]) -> dict[str, Any]:
    """What a snapshot says in full: paths, and the tasks that were meant."""
    found: dict[str, Any] = {"tasks": list(tasks)}
    for name in ("model_name_or_path", "adapter_name_or_path", "output_dir"):
        value = getattr(arguments, name)
        if value is not None and (name == "output_dir" or Path(value).expanduser().exists()):
            found[name] = str(Path(value).expanduser().absolute())
    return found


def _results(arguments: EvalArguments, tracker: str, weights: Sequence[str], scores: Scores) -> dict[str, Any]:
    """What results.json says."""
    return {
        "run": tracker,
        "model": arguments.model_name_or_path,
        "adapter": arguments.adapter_name_or_path,
        "weights": list(weights),
        "split": "whole",
        "results": {one.benchmark: _result(one) for one in scores.scores},
    }


def _result(one: Score) -> dict[str, Any]:
    return {
        "mean": one.mean,
        "n": one.n,
        "stderr": one.stderr,
        "interval": [one.low, one.high],
        "unscored": one.unscored,
        "unformatted": one.unformatted,
        "samples": one.samples,
        "marked": one.marked,
        "versions": one.settings.get("versions", {}),
        "settings": {name: value for name, value in one.settings.items() if name != "versions"},
        "questions": one.questions.path,
        "key": one.key,
        "seconds": one.seconds,
    }
