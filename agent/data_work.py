"""What trials need that prepare their own data, and which models their scripts may ask, at what price."""

from __future__ import annotations

from pathlib import Path

from agent.chat import ALONE
from agent.errors import UsageError
from agent.journal import LlamaFactoryChosen
from agent.llm import Endpoint, Price, quote
from agent.money import Money
from agent.options import LoopOptions
from agent.run import Runner, Say
from agent.settings import Settings
from agent.store import StudyPaths
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data import Dataset
from scenarios.finetune.data_stage import DataWork, columns_of
from scenarios.finetune.synthesis import Open

PATIENCE = 850.0
"""Seconds for one answer, all attempts together: a script waits a little longer (docker/train/ftloop_llm.py)."""

Models = dict[str, list[tuple[Endpoint, Price]]]


def require_prices(options: LoopOptions, settings: Settings, runner: Runner) -> None:
    """Raises UsageError where a script might ask a model whose price is not known, before anything is done."""
    if options.replay is None and settings.proposer not in ALONE and not runner.refuses():
        data_models(settings)


def data_work(
    settings: Settings,
    dataset: Dataset,
    benchmarks: tuple[Benchmark, ...],
    paths: StudyPaths,
    runner: Runner,
    trainer: LlamaFactoryChosen | None,
    money: Money,
    say: Say,
    *,
    asks: bool,
    replay: Path | None = None,
) -> DataWork:
    """What the study's trials may do to its data.

    Args:
        trainer: The LLaMA-Factory in whose environment scripts run.
        asks: Whether a language model proposes; else nobody writes scripts, and no model is offered to them.
        replay: The transcript of the study that is replayed: scripts are answered as they were there.
    """
    refused = runner.refuses()
    models = None
    if asks and refused:
        say(f"data scripts are not open to the proposer: {refused}")
    elif asks:
        models = replay_data_models(replay) if replay else choose_data_models(settings, paths, money, say)
    return DataWork(
        dataset=dataset,
        columns=columns_of(dataset),
        directory=paths.work,
        benchmarks=benchmarks,
        refuse=settings.contamination == "refuse",
        most=settings.upper_data_size_limit,
        no_scripts=f"a data script cannot run here: {refused}" if refused else "",
        models=models,
        environment=(trainer and trainer.commit) or "",
    )


def data_models(settings: Settings) -> Models:
    """The models of each role with their prices; empty where no endpoint is configured.

    Raises:
        UsageError: A price is not known.
    """
    agents = Price(input=settings.price_input, output=settings.price_output)

    def priced(role: str, endpoint: Endpoint) -> tuple[Endpoint, Price]:
        if endpoint.model == settings.chat_model:
            return endpoint, quote(endpoint, agents, settings.prices).price
        try:
            return endpoint, quote(endpoint, Price(), settings.prices, prefix="").price
        except UsageError as error:
            error.message = f"FT_{role.upper()}_MODELS: {error.message}"
            raise

    configured = settings.data_endpoints()
    return {role: [priced(role, Endpoint.of(one)) for one in several] for role, several in configured.items()}


def in_words(models: Models) -> str:
    """The models of each role: `strong: gpt-4o; weak: gpt-4o-mini`."""
    return "; ".join(f"{name}: {', '.join(one.model for one, _ in several)}" for name, several in models.items())


def choose_data_models(settings: Settings, paths: StudyPaths, money: Money, say: Say) -> Open | None:
    """The gateway that each run of a data script gets; None where no endpoint is configured. Says which models."""
    models = data_models(settings)
    if not models:
        return None
    from agent.gateway import AnswerStore, Chat, Gateway, Limits

    role = Chat(models, AnswerStore(paths.work))
    first, price = models["strong"][0]
    call = min(float(settings.llm_timeout), PATIENCE / 2)
    limits = Limits(concurrency=settings.data_concurrency, call=call, patience=PATIENCE, money=money)
    say(f"data scripts may ask models, {in_words(models)}")
    return lambda: Gateway(first, price, role, transcript=paths.work / "transcript.jsonl", limits=limits)


def replay_data_models(transcript: Path) -> Open:
    """Gateways that give the answers that the study beside a transcript was given, and ask nobody."""
    from agent.gateway import AnswerStore, Chat, Gateway

    nobody = Endpoint(model="replay", base_url="http://replay.localhost"), Price()
    answers = AnswerStore(StudyPaths(transcript.parent).work)
    role = Chat({name: [nobody] for name in ("strong", "weak")}, replayed=answers)
    return lambda: Gateway(*nobody, role)
