"""Scores by the content that they depend on, so that nothing is measured twice; and each study's own copy of them.

    cache/<key>/score.json        the `Score`
    cache/<key>/questions.jsonl   one `Question` a line
    <stage>/questions.jsonl       the copy that a study refers to: whatever becomes of the cache, it stays

The key is a hash of everything that the score depends on, so an entry never becomes wrong: weights, tokenizer and chat
template, questions and task, few-shot count, decoding, seeds and blocks, device and dtype, the judge and its verdicts,
the scoring program and the locked versions it runs with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from agent import accept
from agent.errors import StudyError
from agent.records import Checkpoint, FileRef, Question, Score, Split
from agent.resources import resource
from scenarios.finetune.benchmarks import LOCK, Benchmark
from scenarios.finetune.files import scratch, sync, sync_tree
from scenarios.finetune.registry import Engine
from scenarios.finetune.splits import Item

Device = Literal["cpu", "cuda"]
DTYPES: dict[Device, str] = {"cpu": "float32", "cuda": "bfloat16"}
"""What a model computes in while it is scored."""
PROGRAMS: dict[Engine, str] = {"lm_eval": "docker/bench/score.py", "opencompass": "docker/bench/compass.py"}
SCORE, QUESTIONS = "score.json", "questions.jsonl"
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


@dataclass(frozen=True)
class Sampling:
    """How answers are decoded: greedily, or `samples` a question at `temperature`, sample i with `seed` + i."""

    samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        return "greedy" if self.samples == 1 else f"{self.samples} samples at temperature {self.temperature}"


GREEDY = Sampling()
TEMPERATURE, SEED, SEEDS = 0.6, 42, 1000
"""Of sampled answers; a fresh score takes its seeds that far from the first one's."""


def sampling_for(questions: int, samples: int | None, fresh: int = 0) -> Sampling:
    """How a benchmark of so many search questions is answered; `samples` as asked for, None for what its size needs.

    `fresh` counts the scores that were made of the same model before.
    """
    number = samples or accept.default_samples(questions)
    return Sampling(number, TEMPERATURE, SEED + SEEDS * fresh) if number > 1 else GREEDY


def score_key(
    model: Path,
    checkpoint: Checkpoint | None,
    benchmark: Benchmark,
    split: Split,
    items: Sequence[Item],
    *,
    fewshot: int,
    weights: str,
    device: Device,
    sampling: Sampling = GREEDY,
    judge: str = "",
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
        "sampling": [sampling.samples, sampling.temperature, sampling.seed],
        "blocks": accept.looks(len(items)),  # they decide what is padded beside what
        "judge": [judge, benchmark.verdicts],
        "device": [device, DTYPES[device]],
        "program": _program(benchmark.engine),
        "versions": sha256(resource(LOCK).read_bytes()),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode())


def load(entry: Path) -> tuple[Score, bytes] | None:
    """A stored score and the content of its questions; None where they are damaged."""
    try:
        kept = msgspec.json.decode((entry / SCORE).read_bytes(), type=Score)
        content = (entry / QUESTIONS).read_bytes()
    except (OSError, msgspec.MsgspecError):
        return None
    return (kept, content) if sha256(content) == kept.questions.sha256 else None


def store(entry: Path, made: Score, content: bytes) -> tuple[Score, bytes]:
    """Keep a new score and its questions; whoever comes second gets the first one's."""
    draft = scratch(entry)
    draft.mkdir(parents=True)
    try:
        (draft / QUESTIONS).write_bytes(content)
        (draft / SCORE).write_bytes(msgspec.json.encode(made))
        sync_tree(draft)
        draft.rename(entry)
    except OSError:
        if (first := load(entry)) is None:
            raise
        return first
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync(entry.parent)
    return made, content


def place(stage: Path, score: Score, content: bytes) -> Score:
    """The score with its questions in the stage's own directory, on the disk before a journal can name them."""
    stage.mkdir(parents=True, exist_ok=True)
    file = stage / QUESTIONS
    file.write_bytes(content)
    for path in (file, stage, *stage.parents[:2]):
        sync(path)
    return msgspec.structs.replace(score, questions=FileRef(path=str(file), sha256=score.questions.sha256))


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
    if sha256(content) != file.sha256:
        raise StudyError(f"per-question results {file.path} are not those that the study recorded", hint)
    return decode_questions(content)


def decode_questions(content: bytes) -> tuple[Question, ...]:
    """Questions from JSON Lines."""
    return tuple(msgspec.json.decode(line, type=Question) for line in content.split(b"\n") if line.strip())


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _program(engine: Engine) -> str:
    """Hash of the engine's program; that of OpenCompass is spread over all files that lie beside it."""
    program = resource(PROGRAMS[engine])
    files = [program] if engine == "lm_eval" else sorted(program.parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files))


def _file_hashes(directory: Path) -> dict[str, str]:
    return {name: _file_hash(directory / name) for name in MODEL_FILES if (directory / name).is_file()}


def _file_hash(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "adapter_config.json":
        with suppress(ValueError, TypeError):  # PEFT notes where the base lay, which decides nothing
            content = json.dumps(json.loads(content) | {"base_model_name_or_path": None}, sort_keys=True).encode()
    return sha256(content)
