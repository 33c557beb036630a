"""Resolves the names in FT_BENCHMARK_DATASETS: short names (`registry`), OpenCompass configs, lm-eval tasks.

Their data lies under <workspace>/benchmarks/<name>/{train,test}.jsonl; what is missing there is downloaded once, and
laid there.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import UsageError
from agent.resources import resource
from scenarios.finetune import rows
from scenarios.finetune.asked import asked_texts, normalised
from scenarios.finetune.compass_configs import require_config
from scenarios.finetune.demo import BENCHMARK_FILE
from scenarios.finetune.files import replacing
from scenarios.finetune.registry import EXECUTED, JUDGED, REGISTRY, Engine, Entry, Source
from scenarios.finetune.rows import Row
from scenarios.finetune.splits import Halves, choices_of, halve
from scenarios.finetune.tasks import LocalTask, read_task

Fetch = Callable[[str], Path]
"""Download a data set of the hub, by its id; where its files lie now."""

LOCK = "docker/bench/requirements.lock"
ENGINES: dict[Engine, str] = {"lm_eval": "lm_eval", "opencompass": "opencompass"}
"""The package of the lock that each engine is."""
PREFIXES = ("opencompass:", "lm_eval:")
TELLING = 12
"""Letters and digits from which on a text in another file is a question of the benchmark, and no accident."""
JUDGED_NAME = re.compile(r"llm_?(judge|verify|eval)", re.IGNORECASE)
"""Holds for the names of OpenCompass' configs that ask a judge."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What to ask, and how an answer becomes a score.

    Attributes:
        engine: Whose program asks: docker/bench/score.py (lm_eval) or docker/bench/compass.py (opencompass).
        description, answer_format: For people and for prompts: what is asked, and what a right answer looks like.
        fewshots: Settings at which the base is scored, zero first; the better one is what a candidate must beat.
        metric, filter: lm-eval: which of its numbers is a question's score, and after which of its filters; empty for
            the task's first.
        task: lm-eval: {"shipped": ...}, {"file": ...} or {"config": ...}, as the request has it. OpenCompass: what
            `compass.lay_out` makes the request's task from.
        verdicts: What a judge may answer, the one for "correct" first; empty where no judge is asked.
        generation: Decoding settings that replace the task's own.
        halves: Its questions, already split. shots: rows for few-shot examples.
        sources: The files of a task of the user's own: all that a job needs of it besides the questions.
        fingerprint: Hash of questions, examples, task and the engine's version.
    """

    name: str
    engine: Engine
    description: str
    answer_format: str
    fewshots: tuple[int, ...]
    metric: str
    filter: str
    task: dict[str, Any]
    generation: dict[str, Any]
    halves: Halves
    verdicts: tuple[str, ...] = ()
    shots: tuple[Row, ...] = ()
    sources: tuple[Path, ...] = ()
    fingerprint: str


def resolve(
    names: Sequence[str],
    root: Path,
    fetch: Fetch,
    demo: Path | None = None,
    *,
    setting: str = "FT_BENCHMARK_DATASETS",
) -> tuple[Benchmark, ...]:
    """The benchmarks of these names, with their data read, checked and halved.

    Args:
        names: Short names of `REGISTRY`, `opencompass:<config module>`, `lm_eval:<task>`, or paths of lm-eval task
            YAMLs.
        root: The workspace.
        fetch: Called for a data set that is not on disk.
        demo: Directory of the demo data set in use, which brings the demo's questions.
        setting: Where the names come from, for messages.

    Raises:
        UsageError: An unknown name, unusable data, or the same benchmark twice.
    """
    for name in names:
        require_known(name, setting)  # all of them, before anything is downloaded for the first
    found = tuple(_resolve(name, root, fetch, demo) for name in names)
    for benchmark in found:
        if sum(other.name == benchmark.name for other in found) > 1:
            raise UsageError(f"benchmark {benchmark.name} is named twice", "name each benchmark once")
    return found


def require_known(name: str, setting: str = "FT_BENCHMARK_DATASETS") -> None:
    """UsageError for a name in `setting` that no benchmark can have; reads no data and downloads nothing."""
    if name in REGISTRY or name.endswith((".yaml", ".yml")):
        return
    anywhere = ", ".join(name for name, entry in REGISTRY.items() if entry.source)
    available = (
        f"set {setting}; available: {anywhere}, opencompass:<config module>, lm_eval:<task>, "
        "or the path of an lm-eval task YAML"
    )
    if name.startswith(PREFIXES):
        if not re.fullmatch(r"\w[\w-]*([./]\w[\w-]*)*", name.split(":", 1)[1]):
            kind = "an OpenCompass config" if name.startswith("opencompass:") else "an lm-eval task"
            raise UsageError(f"benchmark {name!r}: no name of {kind}", available)
        if name.startswith("opencompass:"):
            require_config(name)
        return
    if name in EXECUTED:
        raise UsageError(
            f"benchmark {name} is scored by running code that the model wrote, which is not supported", available
        )
    near = difflib.get_close_matches(name, REGISTRY, n=1)
    raise UsageError(f"unknown benchmark {name!r}" + (f"; did you mean {near[0]}?" if near else ""), available)


def needs_judge(name: str) -> bool:
    """Whether the benchmark of this name asks a judge."""
    if name in REGISTRY:
        return bool(REGISTRY[name].verdicts)
    return name.startswith("opencompass:") and JUDGED_NAME.search(name) is not None


def data_directory(name: str, root: Path) -> Path:
    """Where the data of a short name, a config of OpenCompass or a task of lm-eval lies."""
    if name in REGISTRY:
        return root / "benchmarks" / (REGISTRY[name].data or name)
    return root / "benchmarks" / Path(*name.split(":", 1))


def _resolve(name: str, root: Path, fetch: Fetch, demo: Path | None) -> Benchmark:
    if name in REGISTRY:
        entry = REGISTRY[name]
        if entry.source is None:
            return _registered(name, entry, _rows([_demo_file(name, demo)], entry), ())
        directory = data_directory(name, root)
        _lay(name, entry, entry.source, directory, fetch)
        shots = _rows([directory / "train.jsonl"], entry) if "train" in entry.files else []
        return _registered(name, entry, _rows([directory / "test.jsonl"], entry), shots)
    if name.startswith("opencompass:"):
        return _compass_config(name, root)
    if name.startswith("lm_eval:"):
        return _shipped_task(name, root)
    return _local(read_task(Path(name).expanduser()))


def _registered(name: str, entry: Entry, questions: Sequence[Row], shots: Sequence[Row]) -> Benchmark:
    task = entry.task
    if entry.engine == "opencompass":
        modules = {str(count): module for count, module in entry.modules.items()}
        task = {"modules": modules, "layout": entry.layout, "form": entry.form}
    return Benchmark(
        name=_file_name(name),
        engine=entry.engine,
        description=entry.description,
        answer_format=entry.answer_format,
        fewshots=entry.fewshots,
        metric=entry.metric,
        filter=entry.filter,
        task=task,
        generation=entry.generation,
        halves=_halve(name, questions, entry.category),
        verdicts=entry.verdicts,
        shots=tuple(shots),
        fingerprint=_fingerprint(
            entry.engine, task, entry.generation, entry.metric, entry.filter, list(questions), list(shots)
        ),
    )


def _compass_config(name: str, root: Path) -> Benchmark:
    """Any config of OpenCompass, its data laid by hand as OpenCompass has it."""
    module = name.removeprefix("opencompass:")
    directory = data_directory(name, root)
    file = _question_file(name, directory)
    questions = _raw_rows(file)
    task = {
        "modules": {"0": module},
        "files": str(directory),
        "questions": file.relative_to(directory).as_posix(),
        "form": "",
    }
    others = sorted(path for path in directory.rglob("*") if path.is_file() and path != file)
    for other in others:
        _refuse_questions(name, other, questions)
    hashes = {path.relative_to(directory).as_posix(): _file_hash(path) for path in others}
    verdicts = JUDGED if needs_judge(name) else ()
    return Benchmark(
        name=_file_name(name),
        engine="opencompass",
        description=f"the OpenCompass config {module}",
        answer_format=f"as OpenCompass' config {module} asks for it",
        fewshots=(0,),
        metric="accuracy",
        filter="",
        task=task,
        generation={},
        halves=_halve(name, questions),
        verdicts=verdicts,
        fingerprint=_fingerprint("opencompass", module, verdicts, task["questions"], questions, hashes),
    )


def _shipped_task(name: str, root: Path) -> Benchmark:
    """Any generation task that lm-eval ships, its rows laid by hand with the columns that the task's prompt reads."""
    task = name.removeprefix("lm_eval:")
    directory = data_directory(name, root)
    questions = _raw_rows(_question_file(name, directory))
    shots = _raw_rows(directory / "train.jsonl") if (directory / "train.jsonl").is_file() else []
    config = {"shipped": f"{task if '/' in task else f'{task}/{task}'}.yaml"}
    return Benchmark(
        name=_file_name(name),
        engine="lm_eval",
        description=f"the lm-eval task {task}",
        answer_format=f"as lm-eval's task {task} asks for it",
        fewshots=(0,),
        metric="",
        filter="",
        task=config,
        generation={},
        halves=_halve(name, questions),
        shots=tuple(shots),
        fingerprint=_fingerprint("lm_eval", config, questions, shots),
    )


def _local(task: LocalTask) -> Benchmark:
    return Benchmark(
        name=task.name,
        engine="lm_eval",
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
            "lm_eval",
            task.config,
            sorted(task.sources.values()),
            task.metric,
            task.filter,
            task.questions,
            task.shots,
        ),
    )


def _file_name(name: str) -> str:
    """The benchmark's name as directories, jobs and mounts can bear it: gsm8k, lm_eval-gsm8k."""
    return re.sub(r"[:/]", "-", name)


# Data


def _demo_file(name: str, demo: Path | None) -> Path:
    if demo is None:
        raise UsageError(
            f"benchmark {name} belongs to the demo data set demo/{name}",
            f"use it with --dataset demo/{name}, or choose another: "
            + ", ".join(other for other in REGISTRY if REGISTRY[other].source),
        )
    return demo / BENCHMARK_FILE


def _lay(name: str, entry: Entry, source: Source, directory: Path, fetch: Fetch) -> None:
    """Write the train and test file that `directory` lacks; one that is there already stays as it is."""
    missing = [split for split in entry.files if not (directory / f"{split}.jsonl").is_file()]
    if not missing:
        return
    fetched = fetch(source.dataset)
    for split in missing:
        file, named = directory / f"{split}.jsonl", entry.files[split]
        if not (found := _of_split(fetched, named, source.subset)):
            raise UsageError(
                f"benchmark {name}: the data set {source.dataset} in {fetched} has no file of the {named} split",
                f"lay it there by hand: {file}, one object with {', '.join(entry.columns)} a line",
            )
        laid = _rows(found, entry, source)
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


def _rows(files: Sequence[Path], entry: Entry, source: Source | None = None) -> list[Row]:
    """Rows whose columns are texts, as the entry names them; others are left out. Those of a `source` are converted."""
    found: list[Row] = []
    for file in files:
        for number, raw in enumerate(_raw_rows(file), 1):
            row = source.convert(raw) if source else raw
            for column in entry.columns:
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise UsageError(
                        f"{file}, row {number}: {column!r} must be a text, found {row.get(column)!r}",
                        f"each row needs {', '.join(entry.columns)} as texts; its columns are "
                        + ", ".join(map(str, raw)),
                    )
            kept = [*entry.columns, *([entry.category] if entry.category and entry.category in row else [])]
            found.append({column: row[column] for column in dict.fromkeys(kept)})
    return found


def _raw_rows(file: Path) -> list[Row]:
    if not file.is_file():
        raise UsageError(f"benchmark data {file} does not exist", "lay the file there, or let it be made anew")
    return list(rows.read(file))


def _question_file(name: str, directory: Path) -> Path:
    """The one JSON Lines file that holds the questions of a benchmark laid by hand."""
    files = sorted(directory.rglob("*.jsonl")) if directory.is_dir() else []
    named = [file for file in files if re.search(r"(?<![a-z])test(?![a-z])", file.name.lower())] or files
    if len(named) != 1:
        found = ", ".join(str(file.relative_to(directory)) for file in named) or "none"
        raise UsageError(
            f"benchmark {name}: wanted one file of questions, test.jsonl or the only *.jsonl, in {directory}; "
            f"found {found}",
            "lay its data there by hand, one object a line: docs/benchmarks.md",
        )
    return named[0]


def _refuse_questions(name: str, file: Path, questions: Sequence[Row]) -> None:
    """UsageError for a file beside the questions that holds one: jobs of the search get it, whichever half that is."""
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(
            f"benchmark {name}: {file} is no text, so nobody can tell whether it holds questions of the test split",
            "take it away, or lay it as plain text: jobs receive every file that lies there",
        ) from None
    seen = {normalised(text), normalised(_unescaped(text))}
    for number, row in enumerate(questions, 1):
        asks = max((normalised(text) for text in asked_texts(row)), key=len, default="")
        if len(asks) >= TELLING and any(asks in one for one in seen):
            raise UsageError(
                f"benchmark {name}: {file} holds question {number} of the benchmark too",
                "take it away: jobs receive every file that lies there, and half of the questions must stay sealed",
            )


def _unescaped(text: str) -> str:
    r"""JSON's text without its escapes: "\\frac" is "\frac", and a "\n" is no letter n."""
    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", lambda found: _character(found[1], found[2]), text)


def _character(code: str | None, letter: str) -> str:
    return chr(int(code, 16)) if code else " " if letter in "bfnrt" else letter


def _halve(name: str, questions: Sequence[Row], category: str | None = None) -> Halves:
    """Halves of rows that may have any columns: a question is its text and its choices, or else its whole row."""
    asks = "question" if all(isinstance(row.get("question"), str) for row in questions) else None
    choices = choices_of(questions[0]) if questions else ()
    return halve(questions, name=name, question=asks, choices=choices, category=category)


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fingerprint(engine: Engine, *parts: object) -> str:
    text = json.dumps([engine_version(engine), *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def engine_version(engine: Engine) -> str:
    """The version of an engine that the bench environment is locked to."""
    package = ENGINES[engine].replace("_", "[_-]")
    pinned = re.search(rf"^{package}==(\S+)", resource(LOCK).read_text("utf-8"), re.MULTILINE)
    assert pinned, f"{LOCK} does not pin {engine}"
    return pinned[1]
