"""Scores a model on one split of one benchmark: a job in the bench environment, whose result is checked."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import TrialFailed
from agent.records import Checkpoint, FileRef, Question, Score, Split
from agent.resources import resource
from agent.run import Job, Mount, Outcome, written
from agent.store import require_disk
from scenarios import Bench, Progress
from scenarios.finetune import outputs, score_cache
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.broken import raise_if_broken
from scenarios.finetune.score_cache import DTYPES, QUESTIONS, Device, decode_questions, score_key, sha256
from scenarios.finetune.splits import Item

ROOM = 256 * 1024**2
"""Bytes of disk that must be free: for the answers, a log, and what libraries leave in their caches."""
Z95 = 1.959963984540054
TINY_BYTES = 64 * 1024**2
"""Weights below this run on one thread: twelve times faster than on two, because the threads only wait."""
LARGEST_ANSWER = 256 * 1024
"""Bytes of questions.jsonl allowed a question."""


class Result(msgspec.Struct, frozen=True):
    """The result.json of docker/bench/score.py."""

    n: int
    mean: float
    settings: dict[str, Any]


class Unusable(Exception):
    """The job ended well, but what it wrote is no result."""


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

    Returns:
        The score, with the seconds that it took to measure, also where it is reused. Its questions lie in the stage's
        own directory, on the disk for good.

    Raises:
        TrialFailed: "bench": the job failed, took too long, or wrote no usable result.
        MachineError: The runner lost the job, its environment is broken, or the disk is full.
    """
    items = benchmark.halves.take(split, limit)
    key = score_key(model, checkpoint, benchmark, split, items, fewshot=fewshot, weights=weights, device=device)
    entry = cache / key
    stage = bench.directory / f"{benchmark.name}-{split}-{fewshot}shot-{key[:8]}"
    if entry.is_dir():
        if (kept := score_cache.load(entry)) is not None:
            bench.say(f"{benchmark.name} ({split}, {fewshot}-shot): the same was scored before, reused")
            return score_cache.place(stage, *kept)
        bench.say(f"the stored score {entry} is damaged; it is measured again")
        shutil.rmtree(entry, ignore_errors=True)
    require_disk(bench.directory, ROOM, "scoring")
    job = _job(bench, stage, model, checkpoint, benchmark, items, fewshot=fewshot, timeout=timeout, device=device)
    outcome = bench.run(job, _progress(stage / "output" / "progress", len(items), benchmark.name))
    _require_success(outcome, benchmark.name, stage, timeout)
    try:
        result, questions = read_result(stage / "output", items)
    except Unusable as error:
        raise TrialFailed("bench", f"{benchmark.name}: {error}; log: {outcome.log}", outcome.tail) from None
    content = b"".join(msgspec.json.encode(question) + b"\n" for question in questions)
    file = FileRef(path=QUESTIONS, sha256=sha256(content))
    made = summarize(benchmark, split, questions, file, result.settings, key=key, seconds=outcome.seconds)
    return score_cache.place(stage, *score_cache.store(entry, made, content))


def wilson(mean: float, n: int) -> tuple[float, float]:
    """95% score interval of a mean in [0, 1] over n questions; never empty, also at 0 and 1 (Wilson 1927)."""
    centre = mean + Z95**2 / (2 * n)
    reach = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    # Rounding must not push a mean of exactly 0 or 1 out of its interval.
    return max(0.0, min(mean, (centre - reach) / scale)), min(1.0, max(mean, (centre + reach) / scale))


# The job


def _job(
    bench: Bench,
    stage: Path,
    model: Path,
    checkpoint: Checkpoint | None,
    benchmark: Benchmark,
    items: Sequence[Item],
    *,
    fewshot: int,
    timeout: float,
    device: Device,
) -> Job:
    """The job, with its input written: only the split being scored is ever inside its reach."""
    program = resource("docker/bench/score.py")
    given, output = stage / "input", stage / "output"
    shutil.rmtree(stage, ignore_errors=True)
    given.mkdir(parents=True)
    output.mkdir()
    _write_lines(given / "questions.jsonl", [{"id": item.id, "row": item.row} for item in items])
    if fewshot and benchmark.shots:
        _write_lines(given / "shots.jsonl", list(benchmark.shots))
    adapter = checkpoint.path if checkpoint and checkpoint.adapter else None
    loaded = model if checkpoint is None or adapter else Path(checkpoint.path)
    request = {
        "model": str(loaded),
        "adapter": adapter,
        "written_by": checkpoint.versions.get("transformers") if checkpoint else None,
        "task": benchmark.task,
        "generation": benchmark.generation,
        "questions": str(given / "questions.jsonl"),
        "shots": str(given / "shots.jsonl") if fewshot and benchmark.shots else None,
        "fewshot": fewshot,
        "metric": benchmark.metric,
        "filter": benchmark.filter,
        "device": device,
        "dtype": DTYPES[device],
        "output": str(output),
    }
    (given / "request.json").write_text(json.dumps(request, indent=1), "utf-8")
    readable = [loaded, *([Path(adapter)] if adapter else []), program.parent, given, *benchmark.sources]
    return Job(
        name=f"{bench.name}-{stage.name}",
        environment="bench",
        argv=("python", str(program), str(given / "request.json")),
        cwd=str(output),
        mounts=(*(Mount(str(path)) for path in readable), Mount(str(output), writable=True)),
        variables=_variables(loaded, output),
        log=str(stage / "bench.log"),
        deadline=timeout,
    )


def _variables(model: Path, output: Path) -> dict[str, str]:
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(output / "huggingface"),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # its bars are no use in a log; progress has a file of its own
    }
    size = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in model.glob(pattern))
    return variables | {"OMP_NUM_THREADS": "1"} if size < TINY_BYTES else variables


def _progress(file: Path, total: int, name: str) -> Progress:
    def look() -> tuple[float, str] | None:
        try:
            answered = int(_read(file, 100).split(b"/")[0])
        except (Unusable, ValueError):
            return None
        return min(answered / total, 1.0), f"{name}: {answered}/{total} questions"

    return look


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
        return " ".join(_read(file, LARGEST_ANSWER).decode("utf-8", "replace").split())[:1000]
    except Unusable:
        return ""


# The result: written by a job that read untrusted weights and questions, so nothing in it is taken on trust


def read_result(output: Path, items: Sequence[Item]) -> tuple[Result, tuple[Question, ...]]:
    """The job's result, checked against the questions it was given.

    Raises:
        Unusable: Missing or malformed, another number of predictions than questions, other questions, a score that is
            no number in [0, 1], or a mean that is not theirs.
    """
    try:
        result = msgspec.json.decode(_read(output / "result.json", 1024**2), type=Result)
        questions = decode_questions(_read(output / "questions.jsonl", LARGEST_ANSWER * len(items)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(f"the scoring program wrote no valid result ({error})") from error
    if not len(questions) == result.n == len(items):
        raise Unusable(f"{len(items)} questions gave {len(questions)} predictions (the summary says {result.n})")
    if [question.id for question in questions] != [item.id for item in items]:
        raise Unusable("the predictions are not for the questions that were asked")
    for question in questions:
        if question.score is not None and not 0.0 <= question.score <= 1.0:
            raise Unusable(f"question {question.id} has the score {question.score}, which is not in [0, 1]")
    scores = _scores(questions)
    if not scores:
        raise Unusable("not one question has a score")
    if not math.isclose(result.mean, math.fsum(scores) / len(scores), abs_tol=1e-9):
        raise Unusable(f"the summary's mean {result.mean} is not that of the questions")
    return result, questions


def _read(path: Path, limit: int) -> bytes:
    try:
        return written.read(path.parent, path.name, limit)
    except OSError as error:
        raise Unusable(f"{path.name} cannot be read: {error.strerror}") from error


def _scores(questions: Sequence[Question]) -> list[float]:
    return [question.score for question in questions if question.score is not None]


def summarize(
    benchmark: Benchmark,
    split: Split,
    questions: Sequence[Question],
    file: FileRef,
    settings: dict[str, Any],
    *,
    key: str,
    seconds: float,
) -> Score:
    """Mean, standard error and interval over the scored questions."""
    scores = _scores(questions)
    mean = min(1.0, math.fsum(scores) / len(scores))
    variance = sum((value - mean) ** 2 for value in scores) / max(len(scores) - 1, 1)
    low, high = wilson(mean, len(scores))
    return Score(
        benchmark=benchmark.name,
        split=split,
        n=len(scores),
        mean=mean,
        stderr=math.sqrt(variance / len(scores)),
        low=low,
        high=high,
        unscored=len(questions) - len(scores),
        questions=file,
        settings=settings,
        key=key,
        seconds=seconds,
    )


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines), "utf-8")
