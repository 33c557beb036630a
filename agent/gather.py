"""What a study is about: finds, downloads or makes data, base model and benchmarks, and takes their fingerprints."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent import hub
from agent.budget import Budget
from agent.errors import FtloopError, UsageError
from agent.hardware import Hardware
from agent.options import LoopOptions
from agent.records import Identity
from agent.report import View
from agent.ruler import asked_how, choose_judges
from agent.run import Runner
from agent.settings import Settings
from agent.store import Workspace
from agent.study import StageBench
from scenarios.finetune import data, demo
from scenarios.finetune.benchmarks import Benchmark, require_known, resolve
from scenarios.finetune.models import ModelInfo, choose_model, inspect, weights_hash

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
"""Downloaded where none is named and none on disk fits: small, freely licensed, with a chat template."""


@dataclass(frozen=True)
class Subject:
    """What is studied: the data, the base model and what it is measured by."""

    dataset: str
    data_path: Path
    columns: dict[str, str] | None
    model: str
    info: ModelInfo
    weights: str
    benchmarks: tuple[Benchmark, ...]
    identity: Identity


def gather(
    options: LoopOptions, settings: Settings, workspace: Workspace, runner: Runner, machine: Hardware, view: View
) -> Subject:
    """Find, download or make data, model and benchmarks."""
    names, folder = settings.benchmark_datasets, None
    if options.dataset.startswith("demo/"):
        folder = make_demo(options.dataset, workspace)
        data_path = folder / demo.TRAIN_FILE
        if settings.origin("benchmark_datasets") == "default":
            names = (options.dataset.removeprefix("demo/"),)
    else:
        for name in names:
            require_known(name)  # before a data set is downloaded for nothing
        data_path = hub.fetch("dataset", options.dataset, workspace.root, view.say).path
    recognised = data.recognise(data_path, settings.columns)
    for line in recognised.left_out:
        view.say(line)

    def fetch(dataset: str) -> Path:
        try:
            return hub.fetch("dataset", dataset, workspace.root, view.say).path
        except FtloopError as error:
            by_hand = workspace.root / "benchmarks" / "<name>"
            error.message = f"a benchmark's data: {error.message}"
            error.hint = f"or lay its rows by hand in {by_hand}/train.jsonl and test.jsonl (see the README)"
            raise

    benchmarks = resolve(names, workspace.root, fetch, folder)
    judges = choose_judges(settings, benchmarks, workspace.scores)
    model, path = choose_base(options, workspace, runner, machine, view)
    info = inspect(path)
    if not info.chat_template and settings.template is None:
        view.say(f"{model} has no chat template: it is trained and asked in plain text, without an end-of-turn token")
    if info.bytes > 1 << 30:
        view.say(f"reading {info.bytes / 2**30:.1f} GiB of weights once, for their fingerprint")
    weights = weights_hash(path)
    identity = Identity(
        dataset=options.dataset,
        dataset_fingerprint=data.fingerprint(data_path, settings.columns),
        model=model,
        model_fingerprint=weights,
        benchmarks=tuple(benchmark.name for benchmark in benchmarks),
        limit=settings.benchmark_limit,
        generation={
            "template": settings.template or "the tokenizer's own",
            "cutoff_len": settings.cutoff_len,
            **({"contamination": "mark"} if settings.contamination == "mark" else {}),  # trains on other rows
            **{b.name: asked_how(b, settings, judges) for b in benchmarks},
        },
    )
    return Subject(options.dataset, data_path, settings.columns, model, info, weights, benchmarks, identity)


def make_demo(name: str, workspace: Workspace) -> Path:
    """Make a demo's data in the workspace; UsageError for a demo that there is not."""
    if name not in demo.DEMO:
        raise UsageError(f"there is no demo data set {name!r}", f"choose one of {', '.join(demo.DEMO)}")
    folder = workspace.root / "datasets" / name
    demo.make_data(folder, name)
    return folder


def choose_base(
    options: LoopOptions, workspace: Workspace, runner: Runner, machine: Hardware, view: View
) -> tuple[str, Path]:
    """The base model's name and directory: as named, else the demo's, else the best on disk, else downloaded."""
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
    if name is None and (found := choose_model(workspace.root / "models", machine.device_memory)) is not None:
        path, reason = found
        view.say(f"model: {path.relative_to(workspace.root / 'models')}, {reason}")
        return str(path.relative_to(workspace.root / "models")), path
    if name is None:
        name = DEFAULT_MODEL
        view.say(f"model: {name}, because none was named and none in {workspace.root / 'models'} fits")
    return name, hub.fetch("model", name, workspace.root, view.say).path
