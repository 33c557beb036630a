"""The benchmarks that can be named in FT_BENCHMARK_DATASETS, one registry row each, and any lm-eval task YAML by path.

Their data lies under <workspace>/benchmarks/<name>/{train,test}.jsonl; what is missing there is downloaded once, and
laid there.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import UsageError
from agent.resources import resource
from scenarios.finetune import rows
from scenarios.finetune.demo import BENCHMARK_FILE
from scenarios.finetune.files import replacing
from scenarios.finetune.rows import Row
from scenarios.finetune.splits import Halves, halve
from scenarios.finetune.tasks import LocalTask, read_task

Fetch = Callable[[str], Path]
"""Download a data set of the hub, by its id; where its files lie now."""

OPENCOMPASS = ("aime25", "aime24", "mmlu", "math")
"""Short names that need OpenCompass, which this version cannot run yet."""
LOCK = "docker/bench/requirements.lock"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What to ask, and how an answer becomes a score.

    Attributes:
        description, answer_format: For people and for prompts: what is asked, and what a right answer looks like.
        fewshots: Settings at which the base is scored, zero first; the better one is what a candidate must beat.
        metric, filter: Which number of lm-eval is a question's score, and after which of its filters.
        task: For docker/bench/score.py: {"shipped": ...}, {"file": ...} or {"config": ...}.
        generation: Decoding settings that replace the task's own.
        halves: Its questions, already split. shots: rows for few-shot examples.
        sources: The files of a task of the user's own: all that a job needs of it besides the questions.
        fingerprint: Hash of questions, examples, task and lm-eval version.
    """

    name: str
    description: str
    answer_format: str
    fewshots: tuple[int, ...]
    metric: str
    filter: str
    task: dict[str, Any]
    generation: dict[str, Any]
    halves: Halves
    shots: tuple[Row, ...] = ()
    sources: tuple[Path, ...] = ()
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registry row: everything about a benchmark except its rows.

    `dataset` and `subset` say where it is downloaded from; None for one that comes with a demo data set.
    """

    description: str
    answer_format: str
    fewshots: tuple[int, ...]
    metric: str
    filter: str
    task: dict[str, Any]
    generation: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    subset: str = ""


REGISTRY: dict[str, Entry] = {
    "gsm8k": Entry(
        description="grade-school word problems that take two to eight steps of arithmetic (GSM8K, Cobbe et al. 2021)",
        answer_format='asked as "Question: {question}\\nAnswer:"; the last number in the reply is taken as the answer '
        '(the reference solutions reason first and end with "#### <number>")',
        fewshots=(0, 5),
        metric="exact_match",
        filter="flexible-extract",
        task={"shipped": "gsm8k/gsm8k.yaml"},
        generation={"max_gen_toks": 512},
        dataset="openai/gsm8k",
        subset="main",
    ),
    "reverse": Entry(
        description="the demo: reverse eight digits",
        answer_format="the digits in reverse order and nothing else",
        fewshots=(0,),
        metric="exact_match",
        filter="none",
        # As measured, these settings give what direct greedy decoding gives, on 200 of 200 questions. A description,
        # a prefix or one trailing space would not.
        task={
            "config": {
                "task": "reverse",
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": ["<|im_end|>"]},
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            }
        },
        generation={"max_gen_toks": 16},
    ),
}


def resolve(names: Sequence[str], root: Path, fetch: Fetch, demo: Path | None = None) -> tuple[Benchmark, ...]:
    """The benchmarks of these names, with their data read, checked and halved.

    Args:
        names: Short names of `REGISTRY`, or paths of lm-eval task YAMLs.
        root: The workspace.
        fetch: Called for a data set that is not on disk.
        demo: Directory of the demo data set in use, which brings the demo's questions.

    Raises:
        UsageError: An unknown name, unusable data, or the same benchmark twice.
    """
    for name in names:
        require_known(name)  # all of them, before anything is downloaded for the first
    found = tuple(_resolve(name, root, fetch, demo) for name in names)
    for benchmark in found:
        if sum(other.name == benchmark.name for other in found) > 1:
            raise UsageError(f"benchmark {benchmark.name} is named twice", "name each benchmark once")
    return found


def require_known(name: str) -> None:
    """UsageError for a name that no benchmark can have; reads no data and downloads nothing."""
    if name in REGISTRY or name.endswith((".yaml", ".yml")):
        return
    anywhere = ", ".join(name for name, entry in REGISTRY.items() if entry.dataset)
    available = f"set FT_BENCHMARK_DATASETS; available: {anywhere}, or the path of an lm-eval task YAML"
    if name in OPENCOMPASS:
        raise UsageError(f"benchmark {name} needs OpenCompass, which this version cannot run yet", available)
    near = difflib.get_close_matches(name, [*REGISTRY, *OPENCOMPASS], n=1)
    raise UsageError(f"unknown benchmark {name!r}" + (f"; did you mean {near[0]}?" if near else ""), available)


def _resolve(name: str, root: Path, fetch: Fetch, demo: Path | None) -> Benchmark:
    if name in REGISTRY:
        entry = REGISTRY[name]
        if entry.dataset is None:
            return _registered(name, entry, _demo_rows(name, demo), ())
        directory = root / "benchmarks" / name
        _lay(name, entry, directory, fetch)
        return _registered(name, entry, _rows([directory / "test.jsonl"]), _rows([directory / "train.jsonl"]))
    return _local(read_task(Path(name).expanduser()))


def _registered(name: str, entry: Entry, questions: Sequence[Row], shots: Sequence[Row]) -> Benchmark:
    return Benchmark(
        name=name,
        description=entry.description,
        answer_format=entry.answer_format,
        fewshots=entry.fewshots,
        metric=entry.metric,
        filter=entry.filter,
        task=entry.task,
        generation=entry.generation,
        halves=halve(questions, name=name, question="question"),
        shots=tuple(shots),
        fingerprint=_fingerprint(
            entry.task, entry.generation, entry.metric, entry.filter, list(questions), list(shots)
        ),
    )


def _local(task: LocalTask) -> Benchmark:
    return Benchmark(
        name=task.name,
        description=str(task.config.get("description") or f"the lm-eval task {task.path}").strip(),
        answer_format=f"see {task.path.name}: scored by {task.metric} after the filter {task.filter}",
        fewshots=(0, task.fewshot) if task.fewshot else (0,),
        metric=task.metric,
        filter=task.filter,
        task={"file": str(task.path)},
        generation={},
        halves=halve(task.questions, name=task.name, question=task.question),
        shots=task.shots,
        sources=tuple(map(Path, task.sources)),
        fingerprint=_fingerprint(
            task.config, sorted(task.sources.values()), task.metric, task.filter, task.questions, task.shots
        ),
    )


# Data


def _demo_rows(name: str, demo: Path | None) -> list[Row]:
    if demo is None:
        raise UsageError(
            f"benchmark {name} belongs to the demo data set demo/{name}",
            f"use it with --dataset demo/{name}, or choose another: "
            + ", ".join(other for other in REGISTRY if REGISTRY[other].dataset),
        )
    return _rows([demo / BENCHMARK_FILE])


def _lay(name: str, entry: Entry, directory: Path, fetch: Fetch) -> None:
    """Write the train and test file that `directory` lacks; one that is there already stays as it is."""
    missing = [split for split in ("train", "test") if not (directory / f"{split}.jsonl").is_file()]
    if not missing:
        return
    assert entry.dataset is not None
    fetched = fetch(entry.dataset)
    for split in missing:
        file = directory / f"{split}.jsonl"
        if not (found := _of_split(fetched, split, entry.subset)):
            raise UsageError(
                f"benchmark {name}: the data set {entry.dataset} in {fetched} has no file of the {split} split",
                f"lay it there by hand: {file}, one object with question and answer a line",
            )
        laid = _rows(found)
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(file) as target:
            target.writelines(json.dumps(row) + "\n" for row in laid)


def _of_split(directory: Path, split: str, subset: str) -> list[Path]:
    """The files of one split, by their names; only those of the subset where there are such."""
    files = [
        path
        for path in sorted(directory.rglob("*"))
        if rows.suffix(path) in rows.SUFFIXES and re.search(rf"(?<![a-z]){split}(?![a-z])", path.name.lower())
    ]
    return [path for path in files if subset in path.relative_to(directory).parts[:-1]] or files


def _rows(files: Sequence[Path]) -> list[Row]:
    """Rows whose question and answer are texts; other columns are left out."""
    found: list[Row] = []
    for file in files:
        if not file.is_file():
            raise UsageError(f"benchmark data {file} does not exist", "lay the file there, or let it be made anew")
        for number, row in enumerate(rows.read(file), 1):
            for column in ("question", "answer"):
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise UsageError(
                        f"{file}, row {number}: {column!r} must be a text, found {row.get(column)!r}",
                        f"each row needs question and answer as texts; its columns are {', '.join(map(str, row))}",
                    )
            found.append({"question": row["question"], "answer": row["answer"]})
    return found


def _fingerprint(*parts: object) -> str:
    text = json.dumps([_lm_eval_version(), *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _lm_eval_version() -> str:
    pinned = re.search(r"^lm[_-]eval==(\S+)", resource(LOCK).read_text("utf-8"), re.MULTILINE)
    assert pinned, f"{LOCK} does not pin lm_eval"
    return pinned[1]
