"""A scenario in miniature, for tests of the loop: real jobs in real processes, seconds instead of hours.

Its "model" is a number, its training a Python one-liner that writes it, its benchmark a hundred coins weighed by it.

    python tests/toy.py WORKSPACE --loop_n 2 --seconds 0.5 --skills 0.2,0.9
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import msgspec

from agent import accept, verdicts
from agent.budget import Budget
from agent.errors import TrialFailed
from agent.journal import Journal, StudyOpened
from agent.loop import run_call
from agent.propose import Proposer
from agent.propose.brief import BenchmarkBrief, StudyBrief
from agent.propose.tpe import Tpe
from agent.records import (
    Checked,
    Checkpoint,
    Comparison,
    FileRef,
    History,
    MiniRun,
    Proposal,
    Question,
    Recipe,
    Score,
    Scores,
    Sealed,
    Split,
    TrainingData,
)
from agent.report.plain import PlainView
from agent.run import EnvironmentName, Job, Mount, Outcome, Runner, Say, Watch
from agent.run.local import LocalRunner
from agent.space import Float, Parameter, Space
from agent.store import StudyPaths, locked
from agent.study import Lab, Study, allowance
from scenarios import Bench, Mend
from tests.records_factory import make_identity

QUESTIONS = 100
BRIEF = StudyBrief(
    dataset="toy",
    rows=10,
    columns=("a",),
    model="coin",
    benchmarks=(BenchmarkBrief(name="coins", description="Coins.", answer_format="heads"),),
    hardware="2 cores",
    defaults=lambda train: {},
)
IDENTITY = make_identity(dataset="toy", model="coin", benchmarks=("coins",), limit=None, generation={})


class ThisPython:
    """Stands in for the locked environments: the interpreter that runs the tests."""

    def python(self, name: EnvironmentName) -> Path:
        return Path(sys.executable)

    def ready(self, name: EnvironmentName, say: Say) -> None:
        return None


class Instant:
    """A runner whose jobs cost nothing: it does at once what Toy's one-liner would do."""

    name = "instant"

    def ready(self, environment: EnvironmentName, say: Say) -> None:
        return None

    def refuses(self) -> str:
        return ""

    def run(self, job: Job, watch: Watch | None = None) -> Outcome:
        (Path(job.cwd) / "model").mkdir()
        (Path(job.cwd) / "model" / "weights").write_text("0.5")
        return Outcome(kind="ok", code=0, seconds=0.0, log=job.log, tail="", reason="")

    def reap(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Toy:
    """`seconds`: how long a training sleeps; `bench_seconds`: how long a scoring says that it took.

    `sampled`: a best is scored afresh, and turns out a little worse.
    `spread`: how much skill is lost with each seed after the first. `fails_from`: a seed whose training fails.
    Recipes: {"skill": 0..1, "fail": kind}.
    """

    seconds: float = 0.0
    bench_seconds: float = 0.0
    sampled: bool = False
    spread: float = 0.0
    fails_from: int | None = None

    def problems(self, recipe: Recipe) -> list[str]:
        return [] if 0 <= float(str(recipe.train["skill"])) <= 1 else ["skill: must lie in [0, 1]"]

    def check(self, recipe: Recipe) -> Checked:
        if problems := self.problems(recipe):
            raise TrialFailed("check", "; ".join(problems))
        return Checked()

    def prepare(self, bench: Bench, recipe: Recipe, mend: Mend) -> TrainingData:
        """A script is its own data; one that says "broken" has to be mended, three times at most."""
        script = recipe.script
        for repairs in range(4):
            if "broken" not in script:
                return TrainingData(path=str(bench.directory), rows=10, script=script, repairs=repairs)
            script = mend(script, "it is broken")
        raise TrialFailed("data", "it is broken")

    def mini_run(
        self,
        bench: Bench,
        recipe: Recipe,
        earlier: Sequence[tuple[int, MiniRun]],
        trained: Sequence[float],
        data: TrainingData | None = None,
    ) -> MiniRun:
        return MiniRun(shape="toy", steps=1, seconds=0.0)

    def train(self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None) -> Checkpoint:
        model = bench.directory / "model"
        skill = float(str(recipe.train["skill"])) - self.spread * (recipe.seed - Recipe(train={}).seed)
        fails = recipe.train.get("fail") or recipe.seed == self.fails_from
        code = (
            f"import pathlib, sys, time; print('training', flush=True); time.sleep({self.seconds}); "
            f"sys.exit(7) if {fails!r} else pathlib.Path('model').mkdir(); "
            f"pathlib.Path('model/weights').write_text('{skill}')"
        )
        outcome = bench.run(
            Job(
                name=bench.name,
                environment="train",
                argv=("python", "-c", code),
                cwd=str(bench.directory),
                log=str(bench.directory / "job.log"),
                deadline=60.0,
                mounts=(Mount(str(bench.directory), writable=True),),
            )
        )
        if outcome.kind != "ok":
            raise TrialFailed("train:exit", outcome.reason, outcome.tail)
        weights = (model / "weights").read_text()
        return Checkpoint(path=str(model), weights=hashlib.sha256(weights.encode()).hexdigest(), adapter=False)

    def baseline(self, bench: Bench) -> Scores:
        return self._score(bench, 0.1, "search")

    def score(self, bench: Bench, checkpoint: Checkpoint, incumbent: Sequence[Score], number: int) -> Scores:
        return self._score(bench, float((Path(checkpoint.path) / "weights").read_text()), "search")

    def rescore(self, bench: Bench, checkpoint: Checkpoint, fresh: int = 1) -> Scores:
        skill = float((Path(checkpoint.path) / "weights").read_text())
        return self._score(bench, skill - 0.05, "search")  # it was lucky the first time

    def compare(
        self, candidate: Sequence[Score], incumbent: Sequence[Score], against: str, number: int | None = None
    ) -> Comparison:
        return verdicts.compare(candidate, incumbent, against, number, _answers)

    def open_seal(self, bench: Bench, checkpoint: Checkpoint, base: Sequence[Score]) -> Sealed:
        winner = self._score(bench, float((Path(checkpoint.path) / "weights").read_text()), "test").scores
        floor = self._score(bench, 0.1, "test").scores
        return Sealed(winner=winner, base=floor, comparison=self.compare(winner, floor, "base"))

    def seal_seconds(self, base: Scores, candidate: float) -> float:
        return sum(score.seconds for score in base.scores) + candidate

    def ceiling(self, incumbent: Sequence[Score], number: int) -> str | None:
        answers = [_answers(score) for score in incumbent]
        return None if accept.can_improve(answers, alpha=accept.level(number)) else "all solved"

    def _score(self, bench: Bench, skill: float, split: Split) -> Scores:
        questions = [
            Question(id=f"{split}-{i}", score=float(random.Random(f"{split}-{i}").random() < skill))
            for i in range(QUESTIONS)
        ]
        file = bench.directory / f"{skill}.json"
        file.write_bytes(msgspec.json.encode(questions))
        mean = sum(q.score or 0.0 for q in questions) / QUESTIONS
        score = Score(
            benchmark="coins",
            split=split,
            n=QUESTIONS,
            mean=mean,
            stderr=0.05,
            low=max(0.0, mean - 0.1),
            high=min(1.0, mean + 0.1),
            unscored=0,
            key=f"{skill}",
            settings={},
            seconds=self.bench_seconds,
            questions=FileRef(path=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest()),
        )
        return Scores(scores=(score,))


def _answers(score: Score) -> dict[str, float | None]:
    rows = msgspec.json.decode(Path(score.questions.path).read_bytes(), type=list[Question])
    return {row.id: row.score for row in rows}


@dataclass(frozen=True)
class Listed:
    """Proposes the skills of a list, in turn."""

    skills: Sequence[float | str]

    @property
    def name(self) -> str:
        return "list"

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        skill = self.skills[len(history.trials) % len(self.skills)]
        if skill == "invalid":
            raise TrialFailed("proposal", "no valid reply")
        recipe = Recipe(train={"skill": skill} if isinstance(skill, float) else {"skill": 0.5, "fail": skill})
        return Proposal(hypothesis=f"skill {skill}", change=f"skill={skill}", recipe=recipe, author="list")


def searching() -> Tpe:
    """The real TPE proposer over the toy's one key."""
    return Tpe(Space((Parameter("skill", Float(0.01, 1.0)),)), Toy().problems, seed=0)


@contextmanager
def lab(
    root: Path,
    *,
    proposer: Proposer,
    scenario: Toy | None = None,
    runner: Runner | None = None,
    loop_n: int | None = None,
    step_n: int | None = None,
    timeout: float | None = None,
    confirm: int = 0,
    out: TextIO | None = None,
) -> Iterator[Lab]:
    """The toy study under `root`, opened for one call."""
    runner = runner or LocalRunner(ThisPython())
    paths = StudyPaths(root / "studies" / "toy")
    with locked(paths):
        runner.reap()
        journal = Journal(paths.journal)
        if journal.state.identity is None:
            journal.append(StudyOpened(at=journal.now(), format=1, study="toy", identity=IDENTITY))
        trials, stages = allowance(journal.state.calls, loop_n, step_n)
        budget = Budget(trials, stages, timeout)
        study = Study("toy", paths, journal, runner, PlainView(out or sys.stdout), budget)
        study.start_call(proposer=proposer.name, timeout=timeout, loop_n=trials, step_n=stages)
        output = root / "output" / "toy"
        yield Lab(study=study, proposer=proposer, scenario=scenario or Toy(), output=output, confirm=confirm)
        journal.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--loop_n", type=int)
    parser.add_argument("--confirm", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--skills", default="0.5")
    options = parser.parse_args()
    skills = json.loads(f"[{options.skills}]")
    scenario = Toy(options.seconds, spread=0.02)
    proposer = Listed(skills)
    with lab(options.root, proposer=proposer, scenario=scenario, loop_n=options.loop_n, confirm=options.confirm) as toy:
        print("ended:", run_call(toy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
