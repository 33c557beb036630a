"""Reads a user's lm-eval task YAML without running any of it, and finds its data.

Only the evaluation job, in its own environment, resolves `!function` tags; here they stay text.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.errors import UsageError
from scenarios.finetune import rows
from scenarios.finetune.rows import Row

FUNCTION = "!function "
UNSUPPORTED = {
    "group": "name the tasks of a group one by one",
    "class": "tasks written as Python classes are not supported; write it as a YAML task",
    "custom_dataset": "give the data as files: dataset_path: json with dataset_kwargs.data_files",
    "unsafe_code": "tasks that run the model's answers as code are not supported",
    "doc_to_image": "only text benchmarks are supported",
    "doc_to_audio": "only text benchmarks are supported",
    "use_prompt": "write the prompt into doc_to_text",
}
EXAMPLE = "dataset_path: json, dataset_kwargs: {data_files: {test: questions.jsonl}}, test_split: test"


@dataclass(frozen=True)
class LocalTask:
    """A task YAML with its includes merged, and what it needs.

    Attributes:
        path: The YAML. config: its keys; functions as "!function module.name".
        questions: Rows of the split it evaluates. shots: rows of the split its few-shot examples come from.
        sources: sha256 of every file that decides how it scores, by path: the YAMLs, and the Python files beside them
            that their functions are in. A job needs these, and nothing else that lies there.
    """

    path: Path
    config: dict[str, Any]
    questions: tuple[Row, ...]
    shots: tuple[Row, ...]
    sources: dict[str, str]

    @property
    def name(self) -> str:
        """The task's own name."""
        return str(self.config["task"])

    @property
    def fewshot(self) -> int:
        """How many examples it asks for."""
        return int(self.config.get("num_fewshot") or 0)

    @property
    def metric(self) -> str:
        """The first metric it lists."""
        metrics = self.config.get("metric_list") or [{"metric": "exact_match"}]
        return str(metrics[0]["metric"]).removeprefix(FUNCTION).rsplit(".", 1)[-1]

    @property
    def filter(self) -> str:
        """The first filter it lists."""
        filters = self.config.get("filter_list") or [{"name": "none"}]
        return str(filters[0]["name"])

    @property
    def question(self) -> str | None:
        """The one column that its prompt is made of; None where that is several, or code makes it."""
        prompt = str(self.config["doc_to_text"])
        if prompt.startswith(FUNCTION) or self.config.get("process_docs"):
            return None
        named = {prompt} if all(prompt in row for row in self.questions) else _variables(prompt)
        return named.pop() if len(named) == 1 and all(named <= row.keys() for row in self.questions) else None


def read_task(path: Path) -> LocalTask:
    """Read and check a task YAML.

    Raises:
        UsageError: It is no task that can be scored here; the message names file and key and what to write instead.
    """
    files: list[Path] = []
    config = _merged(path.resolve(), files)
    _check(path, config)
    questions, shots = _data(path, config)
    sources = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return LocalTask(path.resolve(), config, questions, shots, sources)


def _merged(path: Path, files: list[Path]) -> dict[str, Any]:
    """The keys of a YAML over those it includes, as lm-eval merges them; `files` receives all that it consists of."""
    if path in files:
        raise UsageError(f"{path} includes itself", "remove the circle of include: lines")
    if not path.is_file():
        raise UsageError(f"{path}: no such task YAML", "give the path of an existing file")
    files.append(path)
    try:
        config = yaml.load(path.read_text("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader that knows one more tag
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}", "correct the file") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no keys, so it is no lm-eval task", f"write a task, with {EXAMPLE}")
    files.extend(file for file in _code(path.parent, config) if file not in files)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= _merged((path.parent / str(include)).resolve(), files)
    return merged | config


def _code(directory: Path, value: object) -> list[Path]:
    """The Python files in `directory` that `!function` tags name; one that is not there may be an installed module."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [file for part in parts for file in _code(directory, part)]
    if not isinstance(value, str) or not value.startswith(FUNCTION):
        return []
    *packages, module = value.removeprefix(FUNCTION).strip().split(".")[:-1] or [""]
    if not all(name.isidentifier() for name in (*packages, module)):
        return []  # an empty name would lead out of the directory
    file = directory.joinpath(*packages, f"{module}.py")
    return [file] if file.is_file() else []


def _variables(template: str) -> set[str]:
    """The names that a Jinja template takes from a row; none where it is no template."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        return meta.find_undeclared_variables(Environment().parse(template))  # noqa: S701 - parsed, never rendered
    except TemplateSyntaxError:
        return set()


class _Loader(yaml.SafeLoader):
    """A SafeLoader that leaves lm-eval's `!function` tags as text."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return FUNCTION + str(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def _check(path: Path, config: dict[str, Any]) -> None:
    def refuse(what: str, hint: str) -> UsageError:
        return UsageError(f"{path}: {what}", hint)

    for key, hint in UNSUPPORTED.items():
        if config.get(key):
            raise refuse(f"key {key} is not supported", hint)
    if not re.fullmatch(r"[\w.-]+", str(config.get("task") or "")):
        raise refuse("key task must name the task in letters, digits, '.', '_' and '-'", "add task: my_task")
    if (kind := config.get("output_type", "generate_until")) != "generate_until":
        raise refuse(
            f"output_type is {kind}", "only generate_until can be scored so far: let the model write its answer"
        )
    if config.get("dataset_path") != "json":
        raise refuse(f"dataset_path is {config.get('dataset_path')!r}, not json", f"lay its data on disk: {EXAMPLE}")
    if not all(config.get(key) is not None for key in ("doc_to_text", "doc_to_target")):
        raise refuse("doc_to_text or doc_to_target is missing", 'for example doc_to_text: "{{question}}"')
    if (config.get("generation_kwargs") or {}).get("do_sample"):
        raise refuse("generation_kwargs.do_sample is true", "answers are decoded greedily: set do_sample: false")
    if (metrics := config.get("metric_list")) and metrics[0].get("higher_is_better") is False:
        raise refuse(
            f"metric {metrics[0].get('metric')} is better when lower", "list a metric first that is better when higher"
        )


def _data(path: Path, config: dict[str, Any]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The rows to score, and those that few-shot examples are drawn from."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    files = files if isinstance(files, dict) else {"train": files} if files else {}
    questions = config.get("test_split") or config.get("validation_split")
    if questions not in files:
        raise UsageError(
            f"{path}: no data file for its test split (test_split: {questions}, data_files for {sorted(files)})",
            f"name one: {EXAMPLE}",
        )
    if not config.get("num_fewshot") or (config.get("fewshot_config") or {}).get("samples"):
        return _rows(path, files[questions]), ()
    shots = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
    shots = shots or config.get("training_split")
    if shots not in files or shots == questions:
        raise UsageError(
            f"{path}: num_fewshot is {config['num_fewshot']}, but the examples have no data file of their own",
            "set fewshot_split to a split in data_files that is not the one being scored, or num_fewshot: 0",
        )
    return _rows(path, files[questions]), _rows(path, files[shots])


def _rows(path: Path, files: object) -> tuple[Row, ...]:
    found: list[Row] = []
    for name in files if isinstance(files, list) else [files]:
        file = path.resolve().parent / str(name)
        if not file.is_file():
            raise UsageError(f"{path}: its data file {file} does not exist", "correct data_files or lay the file there")
        found.extend(rows.read(file))
    return tuple(found)
