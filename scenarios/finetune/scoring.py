"""Scores a model on one split of one benchmark: a job in the bench environment, whose result is checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from agent.errors import TrialFailed
from agent.records import Checkpoint, FileRef, Score, Split
from agent.run import Outcome
from agent.store import require_disk
from scenarios import Bench
from scenarios.finetune import asking, outputs, score_cache
from scenarios.finetune.asking import Asked
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.broken import raise_if_broken
from scenarios.finetune.judging import Judges, require_scores, session
from scenarios.finetune.race import Race, Watcher
from scenarios.finetune.results import (
    LARGEST_ANSWER,
    NothingScored,
    Unusable,
    mistakes,
    read_bounded,
    read_result,
    summarize,
)
from scenarios.finetune.score_cache import GREEDY, QUESTIONS, Device, Sampling, score_key, sha256

ROOM = 256 * 1024**2
"""Bytes of disk that must be free: for the answers, a log, and what libraries leave in their caches."""


def score(
    bench: Bench,
    model: Path,
    checkpoint: Checkpoint | None,
    benchmark: Benchmark,
    split: Split,
    *,
    fewshot: int,
    limit: int | None,
    timeout: float,
    cache: Path,
    weights: str,
    device: Device,
    sampling: Sampling = GREEDY,
    judges: Judges | None = None,
    race: Race | None = None,
) -> Score:
    """Score a checkpoint, or the base model where there is none; an equal score that exists already is reused.

    Args:
        bench: The stage's directory and runner; a subdirectory of its own is used for every call.
        model: Directory of the base model.
        limit: Questions of the split to ask, first in hash order; None for all.
        timeout: Seconds the job may take.
        cache: Directory of the scores of all studies.
        weights: Hash of the base model's weights.
        device: What the model computes on.
        sampling: How the answers are decoded.
        judges: Who marks the answers, where the benchmark needs a judge.
        race: Whom it is raced against; the job ends as soon as the model cannot win.

    Returns:
        The score, with the seconds that it took to measure, also where it is reused. Its questions lie in the stage's
        own directory, on the disk for good. Where the race was lost, a score of the questions asked until then, which
        is not kept for others.

    Raises:
        TrialFailed: "bench": the job failed, took too long, or wrote no usable result. "judge": too many answers have
            no verdict.
        MachineError: The runner lost the job, its environment is broken, the disk is full, or the judge is down.
    """
    items = benchmark.halves.take(split, limit)
    judge = judges.model if judges and benchmark.verdicts else ""
    key = score_key(
        model,
        checkpoint,
        benchmark,
        split,
        items,
        fewshot=fewshot,
        weights=weights,
        device=device,
        sampling=sampling,
        judge=judge,
    )
    entry = cache / key
    stage = bench.directory / f"{benchmark.name}-{split}-{fewshot}shot-{key[:8]}"
    if entry.is_dir():
        if (kept := score_cache.load(entry)) is not None:
            bench.say(f"{benchmark.name} ({split}, {fewshot}-shot): the same was scored before, reused")
            return score_cache.place(stage, *kept)
        bench.say(f"the stored score {entry} is damaged; it is measured again")
        shutil.rmtree(entry, ignore_errors=True)
    require_disk(bench.directory, ROOM, "scoring")
    asked = Asked(
        model=model,
        checkpoint=checkpoint,
        benchmark=benchmark,
        items=items,
        fewshot=fewshot,
        sampling=sampling,
        device=device,
        timeout=timeout,
        kept=cache / f"{key}.predictions.jsonl" if benchmark.verdicts else None,
    )
    return _ask(bench, stage, entry, asked, split, judges, race)


def _ask(
    bench: Bench, stage: Path, entry: Path, asked: Asked, split: Split, judges: Judges | None, race: Race | None
) -> Score:
    """Run the job, and make a score of what it wrote."""
    benchmark, items, samples = asked.benchmark, asked.items, asked.sampling.samples
    watcher = Watcher(race, stage / "output", items, samples) if race else None
    with session(judges, benchmark.verdicts, bench.directory) as judging:
        job = asking.job(bench, stage, asked, judging.door, judging.model)
        try:
            outcome = bench.run(job, asking.progress(stage / "output", len(items), benchmark.name), watcher)
        finally:  # whatever ends it
            asking.keep_predictions(stage / "output", asked)
    judging.require_judge(benchmark.name)
    if watcher and watcher.dropped and outcome.kind == "stopped":
        return _dropped(bench, stage, entry.name, asked, split, watcher, outcome)
    _require_success(outcome, benchmark.name, stage, asked.timeout)
    try:
        result, questions = read_result(stage / "output", items, samples)
    except Unusable as error:
        kind = "judge" if isinstance(error, NothingScored) and benchmark.verdicts else "bench"
        raise TrialFailed(kind, f"{benchmark.name}: {error}; log: {outcome.log}", outcome.tail) from None
    require_scores(benchmark.name, questions)
    content = b"".join(msgspec.json.encode(question) + b"\n" for question in questions)
    made = summarize(
        benchmark,
        split,
        questions,
        FileRef(path=QUESTIONS, sha256=sha256(content)),
        {**result.settings, **judging.account()},
        key=entry.name,
        seconds=outcome.seconds,
        samples=samples,
        wrong=mistakes(questions, items) if split == "search" else (),
    )
    kept = score_cache.place(stage, *score_cache.store(entry, made, content))
    if asked.kept:
        asked.kept.unlink(missing_ok=True)
    return kept


def _dropped(
    bench: Bench, stage: Path, key: str, asked: Asked, split: Split, watcher: Watcher, outcome: Outcome
) -> Score:
    """The score of a race that was lost: of the questions asked until then, under a key of its own."""
    name, questions = asked.benchmark.name, watcher.dropped
    bench.say(f"{name}: {outcome.reason}: it cannot become better than the best")
    content = b"".join(msgspec.json.encode(question) + b"\n" for question in questions)
    settings = {"fewshot": asked.fewshot, "metric": asked.benchmark.metric, "filter": asked.benchmark.filter}
    made = summarize(
        asked.benchmark,
        split,
        questions,
        FileRef(path=QUESTIONS, sha256=sha256(content)),
        settings,
        key=f"{key}-{len(questions)}",
        seconds=outcome.seconds,
        samples=asked.sampling.samples,
        planned=len(asked.items),
        wrong=mistakes(questions, asked.items),
    )
    return score_cache.place(stage, made, content)


def _require_success(outcome: Outcome, name: str, stage: Path, timeout: float) -> None:
    if outcome.kind == "ok":
        return
    said = _reason(stage / "output" / "error.txt") or outputs.telling_line(outcome.tail) or outcome.reason
    said = outcome.reason if outcome.kind == "disk" else said
    raise_if_broken(f"{name}: scoring", "bench", outcome, said)
    if outcome.kind == "timeout":
        said = f"not done after {timeout:g} s (FT_BENCHMARK_TIMEOUT)"
    raise TrialFailed("bench", f"{name}: {said}; log: {outcome.log}", outcome.tail)


def _reason(file: Path) -> str:
    """The job's own last word, as one bounded line."""
    try:
        return " ".join(read_bounded(file, LARGEST_ANSWER).decode("utf-8", "replace").split())[:1000]
    except Unusable:
        return ""
