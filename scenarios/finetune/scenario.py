"""Fine-tuning as a scenario: LLaMA-Factory trains, lm-eval asks, paired statistics decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import accept
from agent.errors import TrialFailed
from agent.records import Checked, Checkpoint, Comparison, MiniRun, Recipe, Score, Scores, Sealed, Split
from agent.store import require_disk
from scenarios import Bench
from scenarios.finetune import footprint, training
from scenarios.finetune.arguments import canonical, problems
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.score_cache import load_questions
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
    """

    plan: TrainingPlan
    benchmarks: tuple[Benchmark, ...]
    limit: int | None
    timeout: float
    cache: Path
    weights: str

    def problems(self, recipe: Recipe) -> list[str]:
        """Why this recipe may not run; no job, no torch."""
        found = problems(recipe.train, self.plan.bounds, self.plan.arguments)
        if not found and (too_large := footprint.problem(recipe, self.plan)):  # a broken recipe has no size
            found = [too_large]
        return found

    def check(self, recipe: Recipe) -> Checked:
        """The same as a stage."""
        if found := self.problems(recipe):
            raise TrialFailed("check", "; ".join(found))
        return Checked(changed=tuple(canonical(recipe.train, self.plan.arguments)))

    def mini_run(
        self, bench: Bench, recipe: Recipe, earlier: Sequence[tuple[int, MiniRun]], trained: Sequence[float]
    ) -> MiniRun:
        """A few steps on the longest rows, unless the same shape has run before, or it would save next to nothing."""
        ran = [run.seconds for _, run in earlier if run.steps and run.reused_from is None]
        if ran and trained and max(trained) < WORTH * min(ran):
            bench.say(f"mini-run left out: {min(ran):.0f} s of it would guard a training of {max(trained):.0f} s")
            return MiniRun(shape=training.shape(recipe, self.plan), steps=0, seconds=0.0)
        needed = footprint.footprint(recipe, self.plan).mini_run
        require_disk(bench.directory, needed + ROOM, "a mini-run")
        return training.mini_run(bench, recipe, self.plan, earlier)

    def train(self, bench: Bench, recipe: Recipe) -> Checkpoint:
        """Train, if the disk has room for weights and their copy in output/."""
        needed = footprint.footprint(recipe, self.plan).until_published
        require_disk(bench.directory, needed + ROOM, "a training and the copy of its weights")
        return training.train(bench, recipe, self.plan)

    def baseline(self, bench: Bench) -> Scores:
        """The base at its better setting of each benchmark, so that a candidate has to beat the best prompt as well."""
        return Scores(
            scores=tuple(
                max(
                    (self._score(bench, None, benchmark, "search", shots) for shots in benchmark.fewshots),
                    key=lambda score: score.mean,  # the first, zero-shot, where they are equal
                )
                for benchmark in self.benchmarks
            )
        )

    def score(self, bench: Bench, checkpoint: Checkpoint) -> Scores:
        """A candidate, always zero-shot."""
        return Scores(scores=tuple(self._score(bench, checkpoint, b, "search", 0) for b in self.benchmarks))

    def compare(self, candidate: Sequence[Score], incumbent: Sequence[Score], against: str) -> Comparison:
        """The paired verdict, question by question."""
        pairs = [
            accept.Paired(benchmark=new.benchmark, candidate=_answers(new), best=_answers(old))
            for new, old in zip(candidate, incumbent, strict=True)
        ]
        return accept.compare(pairs, against=against)

    def open_seal(self, bench: Bench, checkpoint: Checkpoint, base: Sequence[Score]) -> Sealed:
        """Winner and base on the sealed split, the base at the setting that its search score was made with."""
        winner = tuple(self._score(bench, checkpoint, benchmark, "test", 0) for benchmark in self.benchmarks)
        floor = tuple(
            self._score(bench, None, benchmark, "test", int(search.settings["fewshot"]))
            for benchmark, search in zip(self.benchmarks, base, strict=True)
        )
        return Sealed(winner=winner, base=floor, comparison=self.compare(winner, floor, "base"))

    def ceiling(self, incumbent: Sequence[Score]) -> str | None:
        """Why no candidate could be called better than this any more."""
        if accept.can_improve([_answers(score) for score in incumbent]):
            return None
        wrong = sum(round(score.n * (1 - score.mean)) for score in incumbent)
        return f"{wrong} questions of the search split are still wrong, too few to call anything better"

    def _score(
        self, bench: Bench, checkpoint: Checkpoint | None, benchmark: Benchmark, split: Split, shots: int
    ) -> Score:
        return score(
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
        )


def _answers(score: Score) -> dict[str, float | None]:
    return {question.id: question.score for question in load_questions(score.questions)}
