"""Fine-tuning as a scenario: LLaMA-Factory trains, lm-eval asks, paired statistics decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent import accept, verdicts
from agent.errors import TrialFailed
from agent.records import Checked, Checkpoint, Comparison, MiniRun, Recipe, Score, Scores, Sealed, Split
from agent.store import require_disk
from scenarios import Bench
from scenarios.finetune import adapt, estimate_rules, footprint, training
from scenarios.finetune.arguments import canonical, problems
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.judging import Judges
from scenarios.finetune.race import Race, race
from scenarios.finetune.score_cache import Sampling, load_questions, sampling_for
from scenarios.finetune.scoring import score
from scenarios.finetune.training import TrainingPlan

WORTH = 10
"""A training that has taken less than so many mini-runs finds out by itself as soon as a mini-run would."""


ROOM = 1 << 30
"""Bytes of disk that are left to everything else, the study's own files included."""


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """One base model, one data set, some benchmarks.

    Attributes:
        plan: What is the same for all trainings. benchmarks: In the order of the user.
        limit: Questions of each half of a benchmark; None for all.
        timeout: Seconds that one evaluation may take (FT_BENCHMARK_TIMEOUT).
        cache: Scores by content. weights: Hash of the base model.
        samples: Answers a question (FT_BENCHMARK_SAMPLES); None for what the size of each benchmark calls for.
        judges: Who marks answers, where a benchmark needs that.
    """

    plan: TrainingPlan
    benchmarks: tuple[Benchmark, ...]
    limit: int | None
    timeout: float
    cache: Path
    weights: str
    samples: int | None = None
    judges: Judges | None = None

    def problems(self, recipe: Recipe) -> list[str]:
        """Why this recipe may not run; no job, no torch."""
        found = problems(recipe.train, self.plan.bounds, self.plan.arguments)
        if found:
            return found  # a broken recipe has no size
        memory = self.plan.memory
        too_large = (
            footprint.problem(recipe, self.plan),
            None if memory is None else estimate_rules.problem(recipe, self.plan, memory),
        )
        return [problem for problem in too_large if problem]

    def check(self, recipe: Recipe) -> Checked:
        """The same as a stage."""
        if found := self.problems(recipe):
            raise TrialFailed("check", "; ".join(found))
        return Checked(changed=tuple(canonical(recipe.train, self.plan.arguments)))

    def mini_run(
        self, bench: Bench, recipe: Recipe, earlier: Sequence[tuple[int, MiniRun]], trained: Sequence[float]
    ) -> MiniRun:
        """A few steps on the longest rows, unless the same shape has run before, or it would save next to nothing.

        Where they run out of memory, once more with half the batch.
        """
        ran = [run.seconds for _, run in earlier if run.steps and run.reused_from is None]
        if ran and trained and max(trained) < WORTH * min(ran):
            bench.say(f"mini-run left out: {min(ran):.0f} s of it would guard a training of {max(trained):.0f} s")
            return MiniRun(shape=training.shape(recipe, self.plan), steps=0, seconds=0.0)
        needed = footprint.footprint(recipe, self.plan).mini_run
        require_disk(bench.directory, needed + ROOM, "a mini-run")
        return adapt.mini_run(bench, recipe, self.plan, earlier)

    def train(self, bench: Bench, recipe: Recipe, measured: MiniRun) -> Checkpoint:
        """Train, or as near to it as memory and time allow, if the disk has room for weights and their copy."""
        needed = footprint.footprint(recipe, self.plan).until_published
        require_disk(bench.directory, needed + ROOM, "a training and the copy of its weights")
        return adapt.train(bench, recipe, self.plan, measured)

    def baseline(self, bench: Bench) -> Scores:
        """The base at its better setting of each benchmark, so that a candidate has to beat the best prompt as well."""
        better, others = [], []
        for benchmark in self.benchmarks:
            found = [self._score(bench, None, benchmark, "search", shots) for shots in benchmark.fewshots]
            best = max(found, key=lambda score: score.mean)  # the first, zero-shot, where they are equal
            better.append(best)
            others += [score for score in found if score is not best]
        return Scores(scores=tuple(better), others=tuple(others))

    def score(self, bench: Bench, checkpoint: Checkpoint, incumbent: Sequence[Score], number: int) -> Scores:
        """A candidate, always zero-shot, in a race; where it drops out, benchmarks still to come are not asked."""
        scores: list[Score] = []
        for benchmark in self.benchmarks:
            against = race(scores, incumbent, number, _answers)
            if scores and (scores[-1].asked is not None or against.futile(())):
                break
            scores.append(self._score(bench, checkpoint, benchmark, "search", 0, against=against))
        return Scores(scores=tuple(scores))

    @property
    def sampled(self) -> bool:
        """Whether any benchmark is answered several times; greedy answers would be the same the second time."""
        return any(self.sampling(benchmark).samples > 1 for benchmark in self.benchmarks)

    def rescore(self, bench: Bench, checkpoint: Checkpoint) -> Scores:
        """An adopted best, from seeds that had no part in its adoption."""
        return Scores(scores=tuple(self._score(bench, checkpoint, b, "search", 0, fresh=1) for b in self.benchmarks))

    def compare(
        self, candidate: Sequence[Score], incumbent: Sequence[Score], against: str, number: int | None = None
    ) -> Comparison:
        """The paired verdict, question by question; of a race that ended early, on the questions that were asked."""
        return verdicts.compare(candidate, incumbent, against, number, _answers)

    def open_seal(self, bench: Bench, checkpoint: Checkpoint, base: Sequence[Score]) -> Sealed:
        """Winner and base on the sealed split, the base at the setting that its search score was made with."""
        winner = tuple(self._score(bench, checkpoint, benchmark, "test", 0) for benchmark in self.benchmarks)
        floor = tuple(
            self._score(bench, None, benchmark, "test", int(search.settings["fewshot"]))
            for benchmark, search in zip(self.benchmarks, base, strict=True)
        )
        return Sealed(winner=winner, base=floor, comparison=self.compare(winner, floor, "base"))

    def ceiling(self, incumbent: Sequence[Score], number: int) -> str | None:
        """Why the study's `number`-th candidate could not be called better than this."""
        if accept.can_improve([_answers(score) for score in incumbent], alpha=accept.level(number)):
            return None
        wrong = sum(round(score.n * (1 - score.mean)) for score in incumbent)
        return f"{wrong} questions of the search split are still wrong, too few to call anything better"

    def sampling(self, benchmark: Benchmark, fresh: int = 0) -> Sampling:
        """How a benchmark is answered: greedily where one answer a question is enough, else sampled."""
        return sampling_for(len(benchmark.halves.take("search", self.limit)), self.samples, fresh)

    def _score(
        self,
        bench: Bench,
        checkpoint: Checkpoint | None,
        benchmark: Benchmark,
        split: Split,
        shots: int,
        *,
        against: Race | None = None,
        fresh: int = 0,
    ) -> Score:
        made = score(
            bench,
            Path(self.plan.model.path),
            checkpoint,
            benchmark,
            split,
            fewshot=shots,
            limit=self.limit,
            timeout=self.timeout,
            cache=self.cache,
            weights=self.weights,
            device=self.plan.device,
            sampling=self.sampling(benchmark, fresh),
            judges=self.judges,
            race=against,
        )
        return msgspec.structs.replace(made, marked=self._mark(benchmark))

    def _mark(self, benchmark: Benchmark) -> str:
        found = self.plan.data.contamination
        trained_on = found is not None and found.action in ("marked", "kept") and benchmark.name in found.found
        return f"contaminated: {found.summary}" if found is not None and trained_on else ""


def _answers(score: Score) -> dict[str, float | None]:
    return {question.id: question.score for question in load_questions(score.questions)}
