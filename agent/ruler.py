"""What a study is measured with: how its benchmarks are asked, who marks the answers, and what they can show at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import accept
from agent.errors import UsageError
from agent.money import Money
from agent.records import Split
from agent.settings import Settings
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.judging import Judges
from scenarios.finetune.measures import Measures
from scenarios.finetune.score_cache import Sampling, sampling_for

MORE_SAMPLES = 8
"""Answers a question beyond which more of them show little more."""

EXAMPLE_POOL = ("aime24", "math")


def asked_how(benchmark: Benchmark, settings: Settings, judges: Judges | None) -> str:
    """All that makes scores of a benchmark comparable, for the study's identity."""
    judged = f", judged by {judges.identity}" if judges and benchmark.verdicts else ""
    version = benchmark.fingerprint[:12]
    return f"{_sampling(benchmark, settings)[1]}, {benchmark.fewshots}-shot, version {version}{judged}"


def choose_judges(
    settings: Settings, benchmarks: Sequence[Benchmark], scores: Path, money: Money | None = None
) -> Judges | None:
    """Who marks answers; None where no benchmark needs that.

    Args:
        scores: Directory of the scores of all studies, which keeps verdicts as well.
        money: Of the study; what is left of it when a score begins is what judging may cost.

    Raises:
        UsageError: A benchmark needs a judge, and no endpoint is configured, or its price is not known.
    """
    judged = [benchmark.name for benchmark in benchmarks if benchmark.verdicts]
    if not judged:
        return None
    found = settings.judge_endpoint()
    if found is None:
        raise UsageError(
            f"the answers of {', '.join(judged)} are marked by a judge model, and no endpoint is configured",
            "set FT_JUDGE_MODEL with FT_JUDGE_API_KEY or FT_JUDGE_API_BASE, or choose another benchmark",
        )
    from agent.gateway import Gateway, Judge, Limits
    from agent.llm import Endpoint, Price, quote

    endpoint = Endpoint.of(found, "FT_JUDGE")
    given = Price(input=settings.judge_price_input, output=settings.judge_price_output)
    price = quote(endpoint, given, settings.prices, "FT_JUDGE").price

    def gateway(verdicts: Sequence[str], directory: Path) -> Gateway:
        role = Judge(tuple(verdicts), scores / "verdicts")
        limits = Limits(cost=money.left() if money else None)
        return Gateway(endpoint, price, role, transcript=directory / "judge.jsonl", limits=limits)

    return Judges(found.model, gateway, endpoint.address)


def sensitivity(measures: Measures, settings: Settings) -> Iterator[str]:
    """What the search can show at all and what it costs to ask, said before anything is spent."""
    shown = []
    for benchmark in measures.search:
        n, sampling = _sampling(benchmark, settings)
        smallest = accept.detectable(n, samples=sampling.samples)
        shown.append(smallest)
        answers = f", {sampling}" if sampling.samples > 1 else ""
        alone = " alone" if len(measures.search) > 1 else ""
        if smallest <= accept.HOPELESS:
            gain = f"a gain of {_points(smallest)} would be found{alone}"
        else:
            gain = f"too few to prove a gain{alone}: undecidable"
        yield f"{benchmark.name}: {n} questions to search with{answers}; {gain}"
        if benchmark.halves.duplicates:
            yield f"{benchmark.name}: {benchmark.halves.duplicates} repeated questions are asked once"
    if (smallest := accept.together(shown)) > accept.HOPELESS:
        yield from _hopeless(measures, settings)
    elif len(shown) > 1:
        yield f"together: a gain of {_points(smallest)} on each would be found"
    yield from _cost(measures, settings)


def _hopeless(measures: Measures, settings: Settings) -> Iterator[str]:
    """That no candidate can win, and what would help."""
    yield "this study is hopeless as it is: with so few questions no candidate can ever be called better (undecidable)"
    helps = []
    if settings.benchmark_limit is not None and any(_more(benchmark, settings) for benchmark in measures.search):
        helps.append(f"a larger FT_BENCHMARK_LIMIT than {settings.benchmark_limit}")
    if _decidable(measures, settings, MORE_SAMPLES):
        helps.append(f"FT_BENCHMARK_SAMPLES={MORE_SAMPLES}")
    if measures.pooled:
        helps.append("more benchmarks in FT_SEARCH_BENCHMARKS")
    else:
        pool = [name for name in EXAMPLE_POOL if name not in {benchmark.name for benchmark in measures.sealed}]
        helps.append(f"other benchmarks to search with, as in FT_SEARCH_BENCHMARKS={json.dumps(pool)}")
    yield f"what would help: {', or '.join(helps)}"


def _more(benchmark: Benchmark, settings: Settings) -> bool:
    return len(benchmark.halves.search) > (settings.benchmark_limit or 0)


def _decidable(measures: Measures, settings: Settings, samples: int) -> bool:
    """Whether that many answers a question would make the search decidable."""
    sizes = [_sampling(benchmark, settings)[0] for benchmark in measures.search]
    return accept.together([accept.detectable(n, samples=samples) for n in sizes]) <= accept.HOPELESS


def _cost(measures: Measures, settings: Settings) -> Iterator[str]:
    """How many answers one candidate and the sealed test take, and how many of them a judge marks."""

    def answers(benchmarks: Sequence[Benchmark], split: Split) -> int:
        each = [(_sampling(b, settings)[1].samples, b.halves.take(split, settings.benchmark_limit)) for b in benchmarks]
        return sum(samples * len(items) for samples, items in each)

    candidate, sealed = answers(measures.search, "search"), answers(measures.sealed, "test")
    judged = [benchmark for benchmark in measures.search if benchmark.verdicts]
    marked = f" ({answers(judged, 'search'):,} marked by {settings.judge_model})" if judged else ""
    yield f"each candidate gives up to {candidate:,} answers{marked}; the sealed test takes {sealed:,} of each model"


def _points(share: float) -> str:
    return f"{share * 100:.0f} points"


def _sampling(benchmark: Benchmark, settings: Settings) -> tuple[int, Sampling]:
    """How many questions of it are asked, and how they are answered."""
    n = benchmark.halves.size(settings.benchmark_limit)
    return n, sampling_for(n, settings.benchmark_samples)
