"""`--dry-run`: what a call would do, from the settings and what is on disk. No network, no job, no file written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import hardware, hub
from agent.chat import ALONE, NUMBERS, chosen_endpoint, price, price_in_words, require_proposer
from agent.data_work import data_models, in_words
from agent.errors import UsageError
from agent.gather import benchmark_names, best_data_set, best_model, measures_on_disk, require_data_set
from agent.llm import Endpoint
from agent.options import LoopOptions
from agent.records import STAGES
from agent.report.words import count, duration
from agent.ruler import sensitivity
from agent.run.gpus import environment_of_jobs
from agent.settings import Settings, load
from scenarios.finetune import data, demo, relevance
from scenarios.finetune.measures import require_names
from scenarios.finetune.registry import REGISTRY


def show(options: LoopOptions) -> None:
    """Print the plan; UsageError for whatever can be known to be wrong already."""
    settings = load(options.settings(), Path(options.config) if options.config else None, os.environ, Path.cwd())
    lines = [f"{name:<11} {words}" for name, words in rows(options, settings)]  # all of it, or only what is wrong
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nor is the rest to be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rows(options: LoopOptions, settings: Settings) -> Iterator[tuple[str, str]]:
    """The plan, one (name, words) a line."""
    yield from _data_set(options, settings)
    yield from _model(options, settings)
    yield from _benchmarks(options, settings)
    limit, pool = settings.benchmark_limit, settings.search_benchmarks
    yield "questions", "all" if limit is None else f"{limit} of each {'' if pool else 'half of a '}benchmark"
    yield from (("", line) for line in _shown(options, settings))
    yield "runner", {"auto": "docker if an engine answers, else local"}.get(settings.runner, settings.runner)
    yield "proposer", _proposer(options, settings)
    yield from _scripts(options, settings)
    yield "budget", _budget(options)
    yield "first", f"score the base on {'the search benchmarks' if pool else 'the search half of each benchmark'}"
    yield "each trial", " -> ".join(f"({stage})" if stage == "data" else stage for stage in STAGES)
    yield "mini-run", f"at most {duration(settings.debug_timeout)} (FT_DEBUG_TIMEOUT)"
    yield "train", f"at most {duration(settings.full_timeout)} (FT_FULL_TIMEOUT)"
    yield "bench", f"at most {duration(settings.benchmark_timeout)} (FT_BENCHMARK_TIMEOUT)"
    sealed = "the sealed benchmarks" if pool else "the sealed half"
    yield "last", f"open {sealed} for the winner and the base; put the winner under output/"
    if options.confirm:
        times = count(options.confirm, "other seed")
        yield "confirm", f"train the winner's recipe from {times}, and score it as candidates are"
    yield "workspace", f"{settings.file_path} (FT_FILE_PATH: {settings.origin('file_path')})"


def _data_set(options: LoopOptions, settings: Settings) -> Iterator[tuple[str, str]]:
    """Where the data are; where they are on disk already, also how they would be read."""
    name = options.dataset
    if name is None:
        require_data_set(options, settings.file_path)
        if (chosen := best_data_set(settings)) is None:
            among = ", ".join(relevance.directories(settings.file_path / "datasets"))
            yield "data set", f"chosen of {among} once the benchmarks' data are on disk"
            return
        yield "data set", f"{chosen.name}, {chosen.reason}"
        yield from (("", f"not taken: {line}") for line in chosen.others)
        yield from _rows(chosen.path, settings)
        return
    if name.startswith("demo/"):
        if name not in demo.DEMO:
            raise UsageError(f"there is no demo data set {name!r}", f"choose one of {', '.join(demo.DEMO)}")
        there = settings.file_path / "datasets" / name
        yield "data set", f"{name}, {_made(there, demo.TRAIN_FILE)} ({demo.DEMO[name].summary})"
        return
    found = hub.find("dataset", name, settings.file_path)
    yield "data set", f"{name}, {_where('dataset', name, found)}"
    if found is not None:
        yield from _rows(found.path, settings)


def _rows(path: Path, settings: Settings) -> Iterator[tuple[str, str]]:
    """How data on disk would be read; UsageError where they cannot be."""
    dataset = data.recognise(path, settings.columns)
    rows, dropped = data.usable(dataset)
    empty = f"; {count(dropped, 'empty row')} dropped" if dropped else ""
    yield "rows", f"{rows:,}, read as {dataset.format} ({data.as_option(dataset.columns)}){empty}"
    for line in dataset.left_out:
        yield "", line


def _model(options: LoopOptions, settings: Settings) -> Iterator[tuple[str, str]]:
    root, name = settings.file_path, options.model
    if name is None and options.dataset in demo.DEMO:
        name = demo.DEMO[options.dataset].model
    if name == demo.MODEL:
        yield "model", f"{name}, {_made(root / 'models' / name, 'config.json')}"
    elif name is not None:
        yield "model", f"{name}, {_where('model', name, hub.find('model', name, root))}"
    else:
        machine = hardware.look(environment_of_jobs(os.environ, settings.gpus))
        names = (*benchmark_names(options, settings), *settings.search_benchmarks)
        chosen = best_model(names, settings, machine)
        hub_words = "" if chosen.path else "; to be downloaded from the Hugging Face hub"
        yield "model", f"{chosen.name}, {chosen.reason}{hub_words}"
        yield from (("", f"not taken: {line}") for line in chosen.passed_over)


def _where(kind: hub.Kind, name: str, found: hub.Fetched | None) -> str:
    if found:
        return f"on disk in {found.path}"
    hub.require_name(kind, name)
    return "to be downloaded from the Hugging Face hub"


def _made(directory: Path, file: str) -> str:
    """Where a part of the demo is, known by one of its files."""
    return f"on disk in {directory}" if (directory / file).is_file() else "to be made on the spot"


def _benchmarks(options: LoopOptions, settings: Settings) -> Iterator[tuple[str, str]]:
    names, pool = benchmark_names(options, settings), settings.search_benchmarks
    require_names(names, pool)
    for name in (*names, *pool):
        if name in REGISTRY and REGISTRY[name].source is None and options.dataset not in demo.DEMO:
            raise UsageError(f"benchmark {name} belongs to the demo data set demo/{name}", "choose another one")
        if name.endswith((".yaml", ".yml")) and not Path(name).expanduser().is_file():
            raise UsageError(f"there is no task YAML {name}", "give the path of an lm-eval task YAML")
    yield "benchmarks", _described(names) + (", sealed whole" if pool else "")
    if pool:
        yield "searched", f"with {_described(pool)}"


def _described(names: Sequence[str]) -> str:
    return ", ".join(f"{name} ({REGISTRY[name].description})" if name in REGISTRY else name for name in names)


def _shown(options: LoopOptions, settings: Settings) -> Iterator[str]:
    """What the questions can show at all, where their data are on disk already."""

    folder = settings.file_path / "datasets" / options.dataset if options.dataset in demo.DEMO else None
    there = folder is None or (folder / demo.BENCHMARK_FILE).is_file()
    if not there or (found := measures_on_disk(benchmark_names(options, settings), settings, folder)) is None:
        yield "what they can show is said once their data are on disk"
        return
    yield from (*found.notes, *sensitivity(found, settings))


def _proposer(options: LoopOptions, settings: Settings) -> str:
    require_proposer(options, settings)
    if options.replay is not None:
        return f"a language model, replayed from {options.replay}"
    configured = chosen_endpoint(settings)
    if configured is None:
        return "random" if settings.proposer == "random" else "tpe"
    endpoint = Endpoint.of(configured)
    numbers = NUMBERS if settings.proposer == "hybrid" else ""
    return f"{endpoint.model} at {endpoint.address}, {price_in_words(price(settings, endpoint))}{numbers}"


def _scripts(options: LoopOptions, settings: Settings) -> Iterator[tuple[str, str]]:
    """The models that data scripts ask, where some are named; UsageError where the price of one is not known."""
    named = settings.strong_models or settings.weak_models
    if not named or options.replay is not None or settings.proposer in ALONE or settings.chat_endpoint() is None:
        return
    if options.unsafe_local or settings.runner == "docker":
        yield "scripts", f"may ask models, {in_words(data_models(settings))}"
    else:
        yield "scripts", "none without --unsafe-local" + ("" if settings.runner == "local" else " or an engine")


def _budget(options: LoopOptions) -> str:
    limits = [
        count(options.loop_n, "trial") if options.loop_n else "",
        count(options.step_n, "stage") if options.step_n else "",
        duration(options.timeout) if options.timeout else "",
    ]
    return ", ".join(filter(None, limits)) or "no limit: runs until Ctrl-C, or until nothing can be better"
