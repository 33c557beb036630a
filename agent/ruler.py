"""What a study is measured with: how its benchmarks are asked, who marks the answers, and what they can show at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import accept
from agent.errors import UsageError
from agent.settings import Settings
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.judging import Judges
from scenarios.finetune.score_cache import Sampling, sampling_for


def asked_how(benchmark: Benchmark, settings: Settings, judges: Judges | None) -> str:
    """All that makes scores of a benchmark comparable, for the study's identity."""
    judged = f", judged by {judges.model}" if judges and benchmark.verdicts else ""
    version = benchmark.fingerprint[:12]
    return f"{_sampling(benchmark, settings)[1]}, {benchmark.fewshots}-shot, version {version}{judged}"


def choose_judges(settings: Settings, benchmarks: Sequence[Benchmark], scores: Path) -> Judges | None:
    """Who marks answers; None where no benchmark needs that.

    Args:
        scores: Directory of the scores of all studies, which keeps verdicts as well.

    Raises:
        UsageError: A benchmark needs a judge, and no endpoint is configured.
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
    from agent.gateway import Gateway, Judge
    from agent.llm import Endpoint, Price

    endpoint = Endpoint.of(found, "FT_JUDGE")

    def gateway(verdicts: Sequence[str], directory: Path) -> Gateway:
        role = Judge(tuple(verdicts), scores / "verdicts")
        return Gateway(endpoint, Price(), role, transcript=directory / "judge.jsonl")

    return Judges(found.model, gateway)


def sensitivity(benchmarks: Sequence[Benchmark], settings: Settings) -> Iterator[str]:
    """What each benchmark's search half can show at all, said before anything is spent."""
    for benchmark in benchmarks:
        n, sampling = _sampling(benchmark, settings)
        answers = f", {sampling}" if sampling.samples > 1 else ""
        smallest = accept.detectable(n, samples=sampling.samples)
        if accept.decidable(n, samples=sampling.samples):
            gain = f"a gain of {smallest * 100:.0f} points would be found"
            yield f"{benchmark.name}: {n} questions to search with{answers}; {gain}"
        else:
            yield f"{benchmark.name}: {n} questions to search with{answers} are too few to prove a gain: undecidable"
        if benchmark.halves.duplicates:
            yield f"{benchmark.name}: {benchmark.halves.duplicates} repeated questions are asked once"


def _sampling(benchmark: Benchmark, settings: Settings) -> tuple[int, Sampling]:
    """How many questions its search half has, and how they are answered."""
    n = len(benchmark.halves.take("search", settings.benchmark_limit))
    return n, sampling_for(n, settings.benchmark_samples)
