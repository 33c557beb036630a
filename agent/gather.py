"""What a study is about: finds, chooses, downloads or makes data, model and benchmarks, and takes fingerprints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import hub
from agent.budget import Budget
from agent.errors import FtloopError, UsageError
from agent.hardware import Hardware
from agent.options import LoopOptions
from agent.records import SEARCHED, Identity
from agent.report import View
from agent.ruler import asked_how, choose_judges
from agent.run import Runner
from agent.settings import Settings
from agent.store import Workspace
from agent.study import StageBench
from scenarios.finetune import choose, data, demo, relevance
from scenarios.finetune.measures import Measures, measures, require_names
from scenarios.finetune.models import ModelInfo, inspect, weights_hash
from scenarios.finetune.registry import skill_of


@dataclass(frozen=True)
class Subject:
    """What is studied: the data, the base model and what it is measured with."""

    dataset: str
    data_path: Path
    columns: dict[str, str] | None
    model: str
    info: ModelInfo
    weights: str
    measures: Measures
    identity: Identity


def gather(
    options: LoopOptions, settings: Settings, workspace: Workspace, runner: Runner, machine: Hardware, view: View
) -> Subject:
    """Find, choose, download or make data, model and benchmarks."""
    dataset, data_path, measured = _data(options, settings, workspace, view)
    for line in data.recognise(data_path, settings.columns).left_out:
        view.say(line)
    judges = choose_judges(settings, measured.all, workspace.scores)
    model, path = choose_base(options, settings, workspace, runner, machine, view)
    info = inspect(path)
    if not info.chat_template and settings.template is None:
        view.say(f"{model} has no chat template: it is trained and asked in plain text, without an end-of-turn token")
    if info.bytes > 1 << 30:
        view.say(f"reading {info.bytes / 2**30:.1f} GiB of weights once, for their fingerprint")
    weights = weights_hash(path)
    identity = Identity(
        dataset=dataset,
        dataset_fingerprint=data.fingerprint(data_path, settings.columns),
        model=model,
        model_fingerprint=weights,
        benchmarks=tuple(benchmark.name for benchmark in measured.sealed),
        limit=settings.benchmark_limit,
        generation={
            "template": settings.template or "the tokenizer's own",
            "cutoff_len": settings.cutoff_len,
            **({"contamination": "mark"} if settings.contamination == "mark" else {}),  # trains on other rows
            **({SEARCHED: ", ".join(b.name for b in measured.search)} if measured.pooled else {}),
            **{b.name: asked_how(b, settings, judges) for b in measured.all},
        },
    )
    return Subject(dataset, data_path, settings.columns, model, info, weights, measured, identity)


def benchmark_names(options: LoopOptions, settings: Settings) -> tuple[str, ...]:
    """What is aimed at; a demo data set brings its own benchmark where none is named."""
    if options.dataset in demo.DEMO and settings.origin("benchmark_datasets") == "default":
        return (options.dataset.removeprefix("demo/"),)
    return settings.benchmark_datasets


def make_demo(name: str, workspace: Workspace) -> Path:
    """Make a demo's data in the workspace; UsageError for a demo that there is not."""
    if name not in demo.DEMO:
        raise UsageError(f"there is no demo data set {name!r}", f"choose one of {', '.join(demo.DEMO)}")
    folder = workspace.root / "datasets" / name
    demo.make_data(folder, name)
    return folder


def require_data_set(options: LoopOptions, root: Path) -> None:
    """UsageError where no data set is named, and none lies in the workspace `root` that could be chosen."""
    if options.dataset is None and not relevance.directories(root / "datasets"):
        raise UsageError(
            f"--dataset is required, as there is none in {root / 'datasets'}",
            "name a Hugging Face data set (owner/name), a directory with JSON, JSONL, CSV or Parquet files, "
            "or demo/reverse",
        )


def choose_base(
    options: LoopOptions, settings: Settings, workspace: Workspace, runner: Runner, machine: Hardware, view: View
) -> tuple[str, Path]:
    """The base model's name and directory: as named, else the demo's, else chosen from the disk or the list."""
    name = options.model
    if name is None and options.dataset in demo.DEMO:
        name = demo.DEMO[options.dataset].model
        view.say(f"model: {name}, the one that the demo is made for")
    if name == demo.MODEL:
        path = workspace.root / "models" / name
        runner.ready("train", view.say)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=workspace.root / "models") as directory:
            demo.make_model(StageBench(Path(directory), "make-demo-model", {}, runner, Budget(), view), path)
        return name, path
    if name is None:
        choice = best_model((*benchmark_names(options, settings), *settings.search_benchmarks), settings, machine)
        view.say(f"model: {choice.name}, {choice.reason}")
        for line in choice.passed_over:
            view.say(f"model not taken: {line}")
        if choice.path is not None:
            return choice.name, choice.path
        name = choice.name
    return name, hub.fetch("model", name, workspace.root, view.say).path


def best_model(benchmarks: Sequence[str], settings: Settings, machine: Hardware) -> choose.Choice:
    """The base model that is taken where none is named, for these benchmarks; downloads nothing."""
    root = settings.file_path
    place = next(path for path in (root, *root.parents) if path.exists())
    return choose.choose(
        root / "models",
        machine,
        {skill_of(name) for name in benchmarks},
        cutoff_len=settings.cutoff_len,
        room=shutil.disk_usage(place).free,
    )


def best_data_set(settings: Settings) -> relevance.Relevant | None:
    """The data set that is taken where none is named; None until the benchmarks' data are on disk, by which it is.

    Raises:
        UsageError: None can be chosen.
    """
    measured = measures_on_disk(settings.benchmark_datasets, settings)
    return relevance.choose(settings.file_path / "datasets", measured.all, settings.columns) if measured else None


def measures_on_disk(names: Sequence[str], settings: Settings, demo_data: Path | None = None) -> Measures | None:
    """What these benchmarks measure with, where their data are on disk; downloads nothing."""

    class NotHere(Exception):
        pass

    def fetch(dataset: str) -> Path:
        raise NotHere

    try:
        return measures(names, settings.search_benchmarks, settings.file_path, fetch, demo_data)
    except NotHere:
        return None


def _data(options: LoopOptions, settings: Settings, workspace: Workspace, view: View) -> tuple[str, Path, Measures]:
    """The data set's name and place, and what is measured with; where no data set is named, that chooses it."""
    names, pool, root = benchmark_names(options, settings), settings.search_benchmarks, workspace.root
    require_names(names, pool)  # before a data set is downloaded for nothing

    def fetch(dataset: str) -> Path:
        try:
            return hub.fetch("dataset", dataset, root, view.say).path
        except FtloopError as error:
            by_hand = root / "benchmarks" / "<name>"
            error.message = f"a benchmark's data: {error.message}"
            error.hint = f"or lay its rows by hand in {by_hand}/train.jsonl and test.jsonl (see the README)"
            raise

    if options.dataset is None:
        require_data_set(options, root)
        measured = measures(names, pool, root, fetch)
        chosen = relevance.choose(root / "datasets", measured.all, settings.columns)
        view.say(f"data set: {chosen.name}, {chosen.reason}; --dataset takes another")
        for line in chosen.others:
            view.say(f"data set not taken: {line}")
        return chosen.name, chosen.path, measured
    if options.dataset.startswith("demo/"):
        folder = make_demo(options.dataset, workspace)
        return options.dataset, folder / demo.TRAIN_FILE, measures(names, pool, root, fetch, folder)
    path = hub.fetch("dataset", options.dataset, root, view.say).path
    data.recognise(path, settings.columns)  # before a benchmark is downloaded for nothing
    return options.dataset, path, measures(names, pool, root, fetch)
