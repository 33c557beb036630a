"""training_config.yaml: what is to be trained, and the grid that the lists among its hyper-parameters span."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from agent.errors import UsageError
from agent.experiments import names, yaml_text
from agent.records import Recipe, Value
from scenarios.finetune import by_hand
from scenarios.finetune.arguments import canonical, nearest
from scenarios.finetune.contamination import Mode
from scenarios.finetune.keys import OPEN

ALIASES = {"batch_size": "per_device_train_batch_size", "steps": "max_steps", "epochs": "num_train_epochs"}
"""How the file calls what LLaMA-Factory calls otherwise."""
TYPES = {"fo_full": "full", "fo_lora": "lora"}
"""The `finetuning_type` of a method."""
SEED, STEPS = "seed", "steps"
_KEYS: dict[str, tuple[str, ...]] = {
    "": ("experiment", "model", "task", "method", "template", "data", "hyperparameters", "evaluation"),
    "experiment": ("purpose", "description"),
    "data": ("path", "type", "columns"),
    "evaluation": ("benchmarks", "limit", "contamination"),
}
_MOST_CELLS = 1000
_MOST_STEPS = 10**9


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the grid: `hyperparameters` are scalars, in the file's order and under the file's names.

    `number` counts from 1.
    """

    number: int
    hyperparameters: dict[str, Value]

    @property
    def by_hand(self) -> dict[str, Value]:
        """What is no recipe's to set, under the trainer's names: the number of steps."""
        return {ALIASES[STEPS]: self.hyperparameters[STEPS]} if STEPS in self.hyperparameters else {}

    @property
    def learning_rate(self) -> float:
        """The learning rate."""
        return float(str(self.hyperparameters["learning_rate"]))

    def recipe(self, method: str) -> Recipe:
        """What is trained, but for `by_hand`."""
        train: dict[str, Value] = {"finetuning_type": TYPES[method]}
        train |= {ALIASES.get(key, key): v for key, v in self.hyperparameters.items() if key not in (SEED, STEPS)}
        seed = self.hyperparameters.get(SEED)
        return Recipe(train=train, seed=seed) if isinstance(seed, int) else Recipe(train=train)


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """A training_config.yaml that was read and found good.

    Attributes:
        data: `data.path`, or what the old `data.type` stands for. data_type: What names call it.
        columns: Role -> column of the data, where the file says so.
        varied: The hyper-parameters with several values.
        template: LLaMA-Factory's; None for the model's own chat template.
        benchmarks: What each trained model is scored on; empty for none. limit: Questions of each; None for all.
        contamination: What becomes of rows that hold these questions, as FT_CONTAMINATION has it for studies.
        warnings: What the user should be told.
    """

    file: str
    purpose: str
    description: str
    model: str
    task: str
    method: str
    data: str
    data_type: str
    columns: dict[str, str] | None
    cells: tuple[Cell, ...]
    varied: tuple[str, ...]
    benchmarks: tuple[str, ...] = ()
    limit: int | None = None
    contamination: Mode = "mark"
    template: str | None = None
    warnings: tuple[str, ...] = ()

    def name(self, cell: Cell) -> str:
        """A cell's name, which other cells may share."""
        return names.experiment(self.task, self.method, self.data_type, cell.learning_rate)

    def directory(self, cell: Cell) -> Path:
        """Where a cell belongs below the results' root, without its time."""
        return Path(self.purpose) / names.model_directory(self.model) / self.name(cell)

    def shared(self) -> Iterator[str]:
        """What its names do not say, for a person: cells with one name, and names that can be read in several ways."""
        by_name: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_name.setdefault(self.name(cell), []).append(cell)
        for name, cells in by_name.items():
            if len(cells) > 1:
                yield f"{len(cells)} cells are called {name}: their experiment_config.yaml tells them apart"
        ways = names.readings(next(iter(by_name)))
        if len(ways) > 1:
            found = " or ".join(f"task {task}, method {method}, data {data}" for task, method, data, _ in ways)
            yield f"the name {next(iter(by_name))} is ambiguous ({found}): experiment_config.yaml says what it is"


def read(file: Path, data_root: Path = Path("Data_v2")) -> Grid:
    """Read a training_config.yaml.

    Args:
        data_root: Where the old `data.type` is looked up.

    Raises:
        UsageError: The file cannot be read, or says something that cannot be run; names the key and its line.
    """
    return _Reader(file, data_root).grid()


class _Reader:
    """One file, with the line of each key for its errors."""

    def __init__(self, file: Path, data_root: Path) -> None:
        self._file, self._data_root = file, data_root
        self._lines: dict[str, int] = {}
        try:
            node, content = yaml_text.parse(file.read_text(encoding="utf-8"))
            self._note(node)
        except (OSError, UnicodeDecodeError) as error:
            hint = "name a file like docs/examples/training_config.yaml"
            raise UsageError(f"{file} cannot be read: {error}", hint) from error
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{file} is no YAML: {error}", "mend the file") from error
        self._content = self._mapping(content, "")
        self._warnings: list[str] = []

    def grid(self) -> Grid:
        experiment, data = self._section("experiment"), self._section("data")
        hyperparameters, evaluation = self._section("hyperparameters", keys=None), self._section("evaluation")
        task = names.plain(self._text(self._content, "task"), f"{self._where('task')}: task")
        method = self._method()
        path, kind = self._data(data, task)
        benchmarks = evaluation.get("benchmarks", [])
        benchmarks = [benchmarks] if isinstance(benchmarks, str) else benchmarks
        if not isinstance(benchmarks, list) or not all(isinstance(one, str) and one for one in benchmarks):
            raise self._wrong("evaluation.benchmarks", "wanted a list of benchmark names", "as in [gsm8k]")
        limit = evaluation.get("limit")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise self._wrong("evaluation.limit", f"wanted a whole number, found {limit!r}", "leave it out for all")
        mode = evaluation.get("contamination", "mark")
        if mode not in get_args(Mode):
            raise self._wrong("evaluation.contamination", f"{mode!r} is none of these", " or ".join(get_args(Mode)))
        cells, varied = self._cells(hyperparameters)
        return Grid(
            file=str(self._file),
            purpose=self._purpose(experiment),
            description=str(experiment.get("description") or ""),
            model=self._text(self._content, "model"),
            task=task,
            method=method,
            data=path,
            data_type=kind,
            columns=self._columns(data),
            cells=cells,
            varied=varied,
            benchmarks=tuple(benchmarks),
            limit=limit,
            contamination=mode,
            template=None if self._content.get("template") is None else self._text(self._content, "template"),
            warnings=tuple(self._warnings),
        )

    def _purpose(self, experiment: Mapping[str, Any]) -> str:
        purpose = experiment.get("purpose")
        if purpose is None:
            self._warnings.append(
                f"{self._file}: experiment.purpose is not set: results go to {names.UNCATEGORIZED}/ "
                "(it is never taken from the data's path)"
            )
            return names.UNCATEGORIZED
        return names.plain(str(purpose), f"{self._where('experiment.purpose')}: experiment.purpose")

    def _method(self) -> str:
        method = self._text(self._content, "method")
        if method in TYPES:
            return method
        if method.split("_")[0].lower() in (*names.LATER, "mezo"):
            raise self._wrong(
                "method",
                f"{method} (zeroth-order training) is not there yet; a later version brings it",
                f"train with {' or '.join(TYPES)} until then",
            )
        near = difflib.get_close_matches(method, TYPES, n=1)
        raise self._wrong("method", f"there is no method {method!r}", f"use {near[0] if near else ' or '.join(TYPES)}")

    def _data(self, data: Mapping[str, Any], task: str) -> tuple[str, str]:
        """The data's path, and what names call it."""
        if data.get("path") is not None:
            if data.get("type") is not None:
                self._warnings.append(f"{self._where('data.type')}: data.type is ignored, as data.path is set")
            path = self._text(data, "path", "data.path")
            return path, names.data_type(path)
        if data.get("type") is None:
            raise self._wrong("data", "data.path is not set", "name the data: data: {path: Data_v2/original/Copa}")
        kind = names.plain(self._text(data, "type", "data.type"), f"{self._where('data.type')}: data.type")
        found = self._of_type(kind, task)
        self._warnings.append(
            f"{self._where('data.type')}: data.type is deprecated; write data.path: {found} in its place"
        )
        return str(found), kind

    def _of_type(self, kind: str, task: str) -> Path:
        """The data set that an old `data.type` means."""
        root, identifier = self._data_root, kind.removeprefix("synthetic_")
        looked = [root / kind / task, *sorted(root.glob(f"synthetic/*/{identifier}/{task}"))]
        found = [path for path in looked if path.exists()]
        if len(found) == 1:
            return found[0]
        if found:
            several = " or ".join(map(str, found))
            raise self._wrong("data.type", f"{kind} could be {several}", "write the one you mean as data.path")
        raise self._wrong(
            "data.type",
            f"there is neither {root / kind / task} nor {root}/synthetic/*/{identifier}/{task}",
            "write the data's directory as data.path",
        )

    def _columns(self, data: Mapping[str, Any]) -> dict[str, str] | None:
        columns = data.get("columns")
        if columns is None:
            return None
        if not isinstance(columns, dict) or not all(isinstance(v, str) and v for pair in columns.items() for v in pair):
            raise self._wrong("data.columns", "wanted roles and their columns", "{prompt: question, response: answer}")
        return columns

    def _cells(self, given: Mapping[str, Any]) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
        if "learning_rate" not in given:
            raise self._wrong("hyperparameters", "learning_rate is missing; names are made of it", "set it")
        if STEPS in given and "epochs" in given:
            raise self._wrong("hyperparameters.epochs", "steps and epochs contradict each other", "leave one out")
        for short, long in ALIASES.items():
            if short in given and long in given:
                raise self._wrong(f"hyperparameters.{long}", f"it is {short} by another name", "leave one out")
        values = {key: self._values(key, value) for key, value in given.items()}
        total = 1
        for each in values.values():
            total *= len(each)
        if total > _MOST_CELLS:
            raise self._wrong("hyperparameters", f"the grid has {total:,} cells", f"{_MOST_CELLS:,} at most")
        points = itertools.product(*values.values())
        cells = tuple(
            Cell(number=number, hyperparameters=dict(zip(values, point, strict=True)))
            for number, point in enumerate(points, start=1)
        )
        return cells, tuple(key for key, each in values.items() if len(each) > 1)

    def _values(self, key: str, value: Any) -> Sequence[Value]:
        """All values of one hyper-parameter, with the type that the trainer wants."""
        where = f"hyperparameters.{key}"
        if key not in (SEED, *ALIASES) and key not in OPEN:
            near = difflib.get_close_matches(key, (SEED, *ALIASES, *OPEN), n=1) or [nearest(key) or ""]
            raise self._wrong(where, "there is no such hyper-parameter", f"did you mean {near[0]}?" if near[0] else "")
        if key == "finetuning_type":
            raise self._wrong(where, "the method says what is trained", "use method: fo_full or fo_lora")
        if isinstance(value, list) and not value:
            raise self._wrong(where, "an empty list spans no grid", "give at least one value, or leave it out")
        if isinstance(value, list) and len(value) > _MOST_CELLS:
            raise self._wrong(where, f"the grid has {len(value):,} cells", f"{_MOST_CELLS:,} at most")
        found = [self._value(key, one) for one in (value if isinstance(value, list) else [value])]
        if twice := [one for index, one in enumerate(found) if one in found[:index]]:
            raise self._wrong(where, f"{twice[0]} is there twice", "each value once")
        return found

    def _value(self, key: str, value: Any) -> Value:
        where = f"hyperparameters.{key}"
        if key in (SEED, STEPS):
            least = 1 if key == STEPS else 0
            number = _whole(value)
            if number is None or not least <= number <= (_MOST_STEPS if key == STEPS else 2**32 - 1):
                raise self._wrong(where, f"wanted a whole number from {least} on, found {value!r}", "")
            return number
        name = ALIASES.get(key, key)
        try:
            typed = canonical({name: value}).get(name)
        except ValueError as error:
            raise self._wrong(where, str(error).removeprefix(f"{name}: "), "") from None
        if typed is None:
            raise self._wrong(where, "has no value", "give one, or leave the key out")
        if found := by_hand.out_of_bounds(where, typed, OPEN[name], TYPES[self._method()]):
            raise UsageError(f"{self._where(where)}: {found[0]}", "mend the file")
        return typed

    def _section(self, name: str, keys: Sequence[str] | None = ()) -> dict[str, Any]:
        content = self._content.get(name)
        return self._mapping({} if content is None else content, name, check=keys is not None)

    def _mapping(self, content: Any, name: str, *, check: bool = True) -> dict[str, Any]:
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise UsageError(f"{self._where(name)}: {name or 'the file'} must hold keys and values", "see the README")
        for key in content if check else ():
            if key not in _KEYS[name]:
                near = difflib.get_close_matches(key, _KEYS[name], n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KEYS[name])}"
                raise self._wrong(f"{name}.{key}".lstrip("."), "there is no such key", hint)
        return content

    def _text(self, content: Mapping[str, Any], key: str, where: str = "") -> str:
        value = content.get(key)
        if isinstance(value, list):
            raise self._wrong(where or key, "only hyper-parameters may be lists", "write one file for each")
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise self._wrong(
                where or key, "is missing" if value is None else f"wanted text, found {value!r}", "set it"
            )
        return str(value).strip()

    def _where(self, key: str) -> str:
        while key and key not in self._lines:
            key = key.rpartition(".")[0]
        return f"{self._file}:{self._lines[key]}" if key else str(self._file)

    def _wrong(self, key: str, problem: str, hint: str) -> UsageError:
        return UsageError(f"{self._where(key)}: {key}: {problem}", hint)

    def _note(self, node: yaml.Node | None, prefix: str = "") -> None:
        """Remember the line of each key; a key that is there twice would be lost without a word."""
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{prefix}{getattr(key, 'value', '')}"
            line = key.start_mark.line + 1
            if name in self._lines:
                raise UsageError(f"{self._file}:{line}: {name} is there twice", "leave one of them out")
            self._lines[name] = line
            self._note(value, f"{name}.")


def _whole(value: Any) -> int | None:
    """A whole number, also one that YAML read as text (1e3)."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return int(number) if number is not None and number.is_integer() else None
