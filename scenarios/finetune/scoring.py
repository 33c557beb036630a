"""Scores a model on one split of one benchmark: a job in the bench environment, a checked result, a cache by content.

    cache/<key>/score.json        the `Score`
    cache/<key>/questions.jsonl   one `Question` a line

The key is a hash of everything that the score depends on, so an entry never becomes wrong: weights, tokenizer and chat
template, questions and task, few-shot count, decoding, the scoring program and the locked versions it runs with.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import MachineError, StudyError, TrialFailed
from agent.records import Checkpoint, FileRef, Question, Score, Split
from agent.resources import resource
from agent.run import Job, Mount, Outcome, written
from scenarios import Bench, Progress
from scenarios.finetune.benchmarks import LOCK, Benchmark
from scenarios.finetune.splits import Item

SCORE, QUESTIONS = "score.json", "questions.jsonl"
Z95 = 1.959963984540054
TINY_BYTES = 64 * 1024**2
"""Weights below this run on one thread: twelve times faster than on two, because the threads only wait."""
LARGEST_ANSWER = 256 * 1024
"""Bytes of questions.jsonl allowed a question."""
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What decides, beside the weights, how a model reads and writes."""


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
) -> Score:
    """Score a checkpoint, or the base model where there is none; an equal score that exists already is reused.

    Args:
        bench: The stage's directory and runner; a subdirectory of its own is used for every call.
        model: Directory of the base model.
        limit: Questions of the split to ask, first in hash order; None for all.
        timeout: Seconds the job may take.
        cache: Directory of the scores of all studies.
        weights: Hash of the base model's weights.

    Raises:
        TrialFailed: "bench": the job failed, took too long, or wrote no usable result.
        MachineError: The runner lost the job.
    """
    items = benchmark.halves.take(split, limit)
    key = score_key(model, checkpoint, benchmark, split, items, fewshot=fewshot, weights=weights)
    entry = cache / key
    if entry.is_dir():
        if (kept := _load(entry)) is not None:
            bench.say(f"{benchmark.name} ({split}, {fewshot}-shot): the same was scored before, reused")
            return kept
        bench.say(f"the stored score {entry} is damaged; it is measured again")
        shutil.rmtree(entry)
    stage = bench.directory / f"{benchmark.name}-{split}-{fewshot}shot-{key[:8]}"
    job = _job(bench, stage, model, checkpoint, benchmark, items, fewshot=fewshot, timeout=timeout)
    outcome = bench.run(job, _progress(stage / "output" / "progress", len(items), benchmark.name))
    _require_success(outcome, benchmark.name, stage, timeout)
    try:
        result, questions = read_result(stage / "output", items)
    except Unusable as error:
        raise TrialFailed("bench", f"{benchmark.name}: {error}; log: {outcome.log}", outcome.tail) from None
    content = b"".join(msgspec.json.encode(question) + b"\n" for question in questions)
    file = FileRef(path=str(entry / QUESTIONS), sha256=_hash(content))
    made = summarize(benchmark, split, questions, file, result.settings, key=key, seconds=outcome.seconds)
    return _store(entry, made, content)


def score_key(
    model: Path,
    checkpoint: Checkpoint | None,
    benchmark: Benchmark,
    split: Split,
    items: Sequence[Item],
    *,
    fewshot: int,
    weights: str,
) -> str:
    """sha256 over everything that the score depends on."""
    adapter = checkpoint is not None and checkpoint.adapter
    trained = {"weights": checkpoint.weights, "files": _file_hashes(Path(checkpoint.path))} if checkpoint else None
    base = {"weights": weights, "files": _file_hashes(model)} if checkpoint is None or adapter else None
    parts = {
        "base": base,
        "trained": trained,
        "adapter": adapter,
        "benchmark": [benchmark.name, benchmark.fingerprint],
        "split": split,
        "questions": [item.id for item in items],
        "fewshot": fewshot,
        "program": _hash(resource("docker/bench/score.py").read_bytes()),
        "versions": _hash(resource(LOCK).read_bytes()),
    }
    return _hash(json.dumps(parts, sort_keys=True).encode())


def load_questions(file: FileRef) -> tuple[Question, ...]:
    """The per-question results of a score.

    Raises:
        StudyError: The file is missing, or no longer what was recorded.
    """
    hint = "restore the file, or start a new study; what it said can be measured again but not guessed"
    try:
        content = Path(file.path).read_bytes()
    except OSError as error:
        raise StudyError(f"per-question results {file.path} cannot be read: {error.strerror}", hint) from error
    if _hash(content) != file.sha256:
        raise StudyError(f"per-question results {file.path} are not those that the study recorded", hint)
    return _questions(content)


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
        "output": str(output),
    }
    (given / "request.json").write_text(json.dumps(request, indent=1), "utf-8")
    readable = [loaded, *([Path(adapter)] if adapter else []), program.parent, given, *benchmark.directories]
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
    if outcome.kind == "lost":
        raise MachineError(
            f"{name}: the scoring job was lost: {outcome.reason}",
            "bring the engine back and run the same command again",
        )
    if outcome.kind == "full":
        raise MachineError(f"{name}: the scoring job {outcome.reason}", "free some disk space")
    said = _reason(stage / "output" / "error.txt") or outcome.reason
    if outcome.kind == "disk":
        said = outcome.reason
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
        questions = _questions(_read(output / "questions.jsonl", LARGEST_ANSWER * len(items)))
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


def _questions(content: bytes) -> tuple[Question, ...]:
    return tuple(msgspec.json.decode(line, type=Question) for line in content.splitlines() if line.strip())


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


# The cache


def _store(entry: Path, made: Score, content: bytes) -> Score:
    """Keep a new score and its questions; whoever comes second takes the first one's."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    (part / QUESTIONS).write_bytes(content)
    (part / SCORE).write_bytes(msgspec.json.encode(made))
    try:
        part.rename(entry)
    except OSError:
        shutil.rmtree(part)
        if (first := _load(entry)) is None:
            raise
        return first
    return made


def _load(entry: Path) -> Score | None:
    """A stored score, which cost nothing this time; None where it is damaged."""
    try:
        kept = msgspec.json.decode((entry / SCORE).read_bytes(), type=Score)
        questions = FileRef(path=str(entry / QUESTIONS), sha256=kept.questions.sha256)
        load_questions(questions)
    except (OSError, msgspec.DecodeError, StudyError):
        return None
    return msgspec.structs.replace(kept, seconds=0.0, questions=questions)


def _file_hashes(directory: Path) -> dict[str, str]:
    return {name: _file_hash(directory / name) for name in MODEL_FILES if (directory / name).is_file()}


def _file_hash(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "adapter_config.json":
        with suppress(ValueError, TypeError):  # PEFT notes where the base lay, which decides nothing
            content = json.dumps(json.loads(content) | {"base_model_name_or_path": None}, sort_keys=True).encode()
    return _hash(content)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines), "utf-8")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
