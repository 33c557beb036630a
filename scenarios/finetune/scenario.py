"""Fine-tuning as a scenario: LLaMA-Factory trains, lm-eval or OpenCompass asks, paired statistics decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent import accept, verdicts
from agent.errors import MachineError, TrialFailed
from agent.records import (
    Checked,
    Checkpoint,
    Comparison,
    MiniRun,
    Question,
    Recipe,
    Score,
    Scores,
    Sealed,
    Split,
    TrainingData,
)
from agent.store import require_disk
from scenarios import Bench, Mend
from scenarios.finetune import adapt, data_stage, estimate_rules, footprint, training
from scenarios.finetune import data as training_data
from scenarios.finetune.arguments import canonical, problems
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data_stage import DataWork
from scenarios.finetune.judging import Judges
from scenarios.finetune.race import Race, race
from scenarios.finetune.score_cache import Sampling, load_questions, sampling_for
from scenarios.finetune.scoring import score
from scenarios.finetune.training import TrainingPlan

WORTH = 10
"""A training that has taken less than so many mini-runs finds out by itself as soon as a mini-run would."""

AS_IT_IS = "data: this study trains on its data as it is"
ROOM = 1 << 30
"""Bytes of disk that are left to everything else, the study's own files included."""


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """One base model, one data set, some benchmarks.

    Attributes:
        plan: What is the same for all trainings.
        benchmarks: What candidates are compared on, in the order of the user.
        targets: What is sealed, where a search pool stands in for the search halves; None for the other halves.
        limit: Questions of each half of a benchmark, of whole ones where there is a pool; None for all.
        timeout: Seconds that one evaluation may take (FT_BENCHMARK_TIMEOUT).
        cache: Scores by content. weights: Hash of the base model.
        samples: Answers a question (FT_BENCHMARK_SAMPLES); None for what the size of each benchmark calls for.
        judges: Who marks answers, where a benchmark needs that.
        work: What recipes need that prepare their own data; None where none may.
    """

    plan: TrainingPlan
    benchmarks: tuple[Benchmark, ...]
    limit: int | None
    timeout: float
    cache: Path
    weights: str
    targets: tuple[Benchmark, ...] | None = None
    samples: int | None = None
    judges: Judges | None = None
    work: DataWork | None = None

    @property
    def scripts(self) -> bool:
        """Whether recipes may hold a data script here."""
        return self.work is not None and not self.work.no_scripts

    def problems(self, recipe: Recipe) -> list[str]:
        """Why this recipe may not run; no job, no torch."""
        if not recipe.prepares:
            return _problems(recipe, self.plan)
        found = problems(recipe.train, self.plan.bounds_of(recipe), self.plan.arguments)
        found += [AS_IT_IS] if self.work is None else self.work.problems(recipe)
        if found or self.plan.memory is None:
            return found
        # How long its rows will be is not known; what cannot even hold the shortest is not worth their making.
        too_large = estimate_rules.problem(recipe, self.plan, self.plan.memory, tokens=1)
        return [too_large] if too_large else []

    def check(self, recipe: Recipe) -> Checked:
        """The same as a stage."""
        if found := self.problems(recipe):
            raise TrialFailed("check", "; ".join(found))
        return Checked(changed=tuple(canonical(recipe.train, self.plan.arguments)))

    def prepare(self, bench: Bench, recipe: Recipe, mend: Mend) -> TrainingData:
        """Run the recipe's script and steps, and write what they gave without the benchmarks' questions."""
        if self.work is None:
            raise TrialFailed("data", AS_IT_IS)
        made = data_stage.prepare(bench, recipe, self.plan, self.work, mend)
        if found := _problems(recipe, self._plan_for(made)):
            raise TrialFailed("check", f"with the data that it made: {'; '.join(found)}")
        return made

    def _plan_for(self, data: TrainingData | None) -> TrainingPlan:
        """The study's plan, or the same with a trial's own data."""
        if data is None:
            return self.plan
        if (made := training_data.load(Path(data.path))) is None:
            raise MachineError(
                f"{data.path}: the data that this trial made is not there any more",
                "bring it back from a backup, or search anew in another workspace (FT_FILE_PATH)",
            )
        return msgspec.structs.replace(self.plan, data=made)

    def mini_run(
        self,
        bench: Bench,
        recipe: Recipe,
        earlier: Sequence[tuple[int, MiniRun]],
        trained: Sequence[float],
        data: TrainingData | None = None,
    ) -> MiniRun:
        """A few steps on the longest rows, unless the same shape has run before, or it would save next to nothing.

        Where they run out of memory, once more with half the batch.
        """
        plan = self._plan_for(data)
        larger = plan.data.bytes > self.plan.data.bytes  # then no earlier training says how long this one takes
        ran = [run.seconds for _, run in earlier if run.steps and run.reused_from is None]
        if not larger and ran and trained and max(trained) < WORTH * min(ran):
            bench.say(f"mini-run left out: {min(ran):.0f} s of it would guard a training of {max(trained):.0f} s")
            return MiniRun(shape=training.shape(recipe, plan), steps=0, seconds=0.0)
        needed = footprint.footprint(recipe, plan).mini_run
        require_disk(bench.directory, needed + ROOM, "a mini-run")
        return adapt.mini_run(bench, recipe, plan, earlier)

    def train(self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None) -> Checkpoint:
        """Train, or as near to it as memory and time allow, if the disk has room for weights and their copy."""
        plan = self._plan_for(data)
        needed = footprint.footprint(recipe, plan).until_published
        require_disk(bench.directory, needed + ROOM, "a training and the copy of its weights")
        return adapt.train(bench, recipe, plan, measured)

    def baseline(self, bench: Bench) -> Scores:
        """The base at its better setting of each benchmark, so that a candidate has to beat the best prompt as well."""
        return self._better(bench, self.benchmarks, "search")

    def _better(self, bench: Bench, benchmarks: Sequence[Benchmark], split: Split) -> Scores:
        better, others = [], []
        for benchmark in benchmarks:
            found = [self._score(bench, None, benchmark, split, shots) for shots in benchmark.fewshots]
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

    def rescore(self, bench: Bench, checkpoint: Checkpoint, fresh: int = 1) -> Scores:
        """An adopted best or its like, from seeds that had no part in its adoption."""
        found = (self._score(bench, checkpoint, b, "search", 0, fresh=fresh) for b in self.benchmarks)
        return Scores(scores=tuple(found))

    def compare(
        self, candidate: Sequence[Score], incumbent: Sequence[Score], against: str, number: int | None = None
    ) -> Comparison:
        """The paired verdict, question by question; of a race that ended early, on the questions that were asked."""
        return verdicts.compare(candidate, incumbent, against, number, _answers, _filled)

    def open_seal(self, bench: Bench, checkpoint: Checkpoint, base: Sequence[Score]) -> Sealed:
        """Winner and base on the sealed split, the base at the setting that its search score was made with.

        Targets of a search pool have no such score: there the base is scored at all of its settings, and the winner
        has to beat the best of them, which can only be harder than any choice made beforehand.
        """
        winner = tuple(self._score(bench, checkpoint, benchmark, "test", 0) for benchmark in self._sealed)
        if self.targets is not None:
            found = self._better(bench, self.targets, "test")
        else:
            shots = [int(search.settings["fewshot"]) for search in base]
            asked = zip(self.benchmarks, shots, strict=True)
            found = Scores(scores=tuple(self._score(bench, None, one, "test", count) for one, count in asked))
        comparison = self.compare(winner, found.scores, "base")
        return Sealed(winner=winner, base=found.scores, comparison=comparison, others=found.others)

    def seal_seconds(self, base: Scores, candidate: float) -> float:
        """As many seconds an answer as in the search."""
        again = base.scores if self.targets is None else (*base.scores, *base.others)
        share = self._workload(self._sealed, "test") / self._workload(self.benchmarks, "search")
        return share * (sum(score.seconds for score in again) + candidate)

    @property
    def _sealed(self) -> tuple[Benchmark, ...]:
        return self.benchmarks if self.targets is None else self.targets

    def _workload(self, benchmarks: Sequence[Benchmark], split: Split) -> int:
        """How many answers one score of these benchmarks takes."""
        return sum(len(b.halves.take(split, self.limit)) * self.sampling(b).samples for b in benchmarks)

    def ceiling(self, incumbent: Sequence[Score], number: int) -> str | None:
        """Why the study's `number`-th candidate could not be called better than this."""
        samples = [score.samples for score in incumbent]
        if accept.can_improve([_answers(score) for score in incumbent], samples=samples, alpha=accept.level(number)):
            return None
        wrong = sum(round(score.n * (1 - score.mean)) for score in incumbent)
        return f"{wrong} questions of the search split are still wrong, too few to call anything better"

    def sampling(self, benchmark: Benchmark, fresh: int = 0) -> Sampling:
        """How a benchmark is answered: greedily where one answer a question is enough, else sampled."""
        return sampling_for(benchmark.halves.size(self.limit), self.samples, fresh)

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
        found = self.plan.data.contamination
        return msgspec.structs.replace(made, marked=found.mark(benchmark.name) if found else "")


def _problems(recipe: Recipe, plan: TrainingPlan) -> list[str]:
    """What keeps a recipe from being trained on the plan's data."""
    found = problems(recipe.train, plan.bounds, plan.arguments)
    if found:
        return found  # a broken recipe has no size
    too_large = (
        footprint.problem(recipe, plan),
        None if plan.memory is None else estimate_rules.problem(recipe, plan, plan.memory),
    )
    return [problem for problem in too_large if problem]


def _answers(score: Score) -> dict[str, float | None]:
    return {question.id: question.score for question in load_questions(score.questions)}


def _filled(score: Score, unscored: float) -> dict[str, float | None]:
    def mean(question: Question) -> float:
        each = question.scores or (question.score,)
        return sum(unscored if one is None else one for one in each) / len(each)

    return {question.id: mean(question) for question in load_questions(score.questions)}
