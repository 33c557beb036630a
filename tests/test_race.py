"""Races: who is dropped and when, what is left of a score then, and what can never come of it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from agent import accept, verdicts
from agent.budget import Budget
from agent.errors import BudgetEnded, TrialFailed
from agent.journal import Journal
from agent.loop import run_call
from agent.records import Checkpoint, Comparison, FileRef, Score, Scores
from agent.report.plain import PlainView
from agent.report.words import saved
from agent.run import Job, Mount
from agent.run.environments import Environments
from agent.run.local import LocalRunner
from agent.study import StageBench as RealBench
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.race import Race, Watcher, race
from scenarios.finetune.results import wilson
from scenarios.finetune.score_cache import load_questions
from tests import toy
from tests.records_factory import make_trial
from tests.test_scoring import StageBench, ask, lay_benchmark, make_bench, real_bench, real_models
from tests.toy import ThisPython

__all__ = ["real_bench", "real_models"]

# Answers block by block, as docker/bench/score.py does, right where RIGHT says so.
IN_BLOCKS = """
right = {right}
for index, answer in enumerate(answers): answer["score"] = float(right(index))
start = 0
for end in request["blocks"]:
    with open(output / "answers.jsonl", "a") as file:
        file.writelines(json.dumps(answer) + "\\n" for answer in answers[start:end])
    start = end
    time.sleep({pause})
write()
"""


def questions(n: int) -> list[dict[str, str]]:
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(2 * n)]


def answering(directory: Path, right: str, pause: float = 0.0) -> StageBench:
    return make_bench(directory, IN_BLOCKS.replace("{right}", right).replace("{pause}", str(pause)))


def candidate(root: Path) -> Checkpoint:
    (root / "adapter").mkdir(exist_ok=True)
    return Checkpoint(path=str(root / "adapter"), weights="x", adapter=True)


def answers(score: Score) -> dict[str, float | None]:
    return {question.id: question.score for question in load_questions(score.questions)}


def raced(
    tmp_path: Path, right: str, *, best: str = "lambda i: i % 2 == 0"
) -> tuple[StageBench, Score, Score, Benchmark]:
    """The base's score, and that of a candidate raced against it, 100 questions."""
    benchmark = lay_benchmark(tmp_path, questions(100))
    base = ask(answering(tmp_path, "lambda i: i % 2 == 0"), tmp_path, benchmark)
    bench = answering(tmp_path, right, pause=0.3)
    checkpoint = candidate(tmp_path)
    score = ask(bench, tmp_path, benchmark, checkpoint=checkpoint, race=race([], [base], 1, answers))
    return bench, base, score, benchmark


def test_who_cannot_win_is_dropped_and_nobody_takes_the_score_for_a_full_one(tmp_path: Path) -> None:
    bench, base, score, benchmark = raced(tmp_path, "lambda i: False")
    assert (score.asked, score.planned, score.n, score.mean) == (20, 100, 20, 0.0)
    asked = load_questions(score.questions)
    assert [question.id for question in asked] == [item.id for item in benchmark.halves.search[:20]]
    assert "dropped after 20 of 100 questions" in bench.said[-1]
    assert len(score.mistakes) == 4
    found = verdicts.compare([score], [base], "base", 1, answers)
    assert (found.verdict, found.asked, found.planned, found.n) == ("worse", 20, 100, 20)
    assert found.detectable == verdicts.compare([base], [base], "base", 1, answers).detectable
    assert [path.name for path in (tmp_path / "scores").iterdir()] == [base.key], "a part of a score is not kept"
    again = answering(tmp_path, "lambda i: False")
    whole = ask(again, tmp_path, benchmark, checkpoint=candidate(tmp_path))
    assert (len(again.jobs), whole.n, whole.asked) == (1, 100, None)


def test_who_may_win_is_asked_to_the_end(tmp_path: Path) -> None:
    _, base, score, _ = raced(tmp_path, "lambda i: i % 4 < 3")
    assert (score.asked, score.n) == (None, 100)
    assert verdicts.compare([score], [base], "base", 1, answers).verdict == "better"


def test_what_was_scored_in_full_before_is_not_raced(tmp_path: Path) -> None:
    benchmark = lay_benchmark(tmp_path, questions(100))
    base = ask(answering(tmp_path, "lambda i: True"), tmp_path, benchmark)
    bench = answering(tmp_path, "lambda i: False", pause=0.3)
    ask(bench, tmp_path, benchmark, checkpoint=candidate(tmp_path))
    kept = ask(bench, tmp_path, benchmark, checkpoint=candidate(tmp_path), race=race([], [base], 1, answers))
    assert (len(bench.jobs), kept.n, kept.asked) == (1, 100, None)


@pytest.mark.parametrize(
    "written",
    [b'{"id": "other", "score": 0.0}\n' * 20, b"[1]\n", b'{"id": 3', b'{"id": "x", "score": 7.0}\n', b""],
)
def test_answers_that_are_none_drop_nobody(tmp_path: Path, written: bytes) -> None:
    items = lay_benchmark(tmp_path, questions(100)).halves.search
    against = Race(1, (), {item.id: 1.0 for item in items}, 1, (), (100,))
    (tmp_path / "answers.jsonl").write_bytes(written)
    watcher = Watcher(against, tmp_path, items, 1)
    assert watcher() is None
    assert watcher.dropped == ()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    items = lay_benchmark(tmp_path, questions(100)).halves.search
    lines = "".join(json.dumps({"id": item.id, "score": 0.0}) + "\n" for item in items[:20])
    watcher = Watcher(Race(1, (), {item.id: 1.0 for item in items}, 1, (), (100,)), tmp_path, items, 1)
    (tmp_path / "answers.jsonl").write_text(lines[:-5])
    assert watcher() is None
    (tmp_path / "answers.jsonl").write_text(lines)
    assert watcher() == "dropped after 20 of 100 questions"


def test_unanswered_benchmarks_to_come_keep_a_candidate_in_the_race(tmp_path: Path) -> None:
    items = lay_benchmark(tmp_path, questions(100)).halves.search
    best = {item.id: 1.0 for item in items}
    lines = (json.dumps({"id": item.id, "score": 0.0}) + "\n" for item in items[:20])
    (tmp_path / "answers.jsonl").write_text("".join(lines))
    later = (accept.Paired("b", {}, {}),) * 9
    alone = Watcher(Race(1, (), best, 1, (), (100,)), tmp_path, items, 1)
    first_of_ten = Watcher(Race(1, (), best, 1, later, (100,) * 10), tmp_path, items, 1)
    assert (alone() is None, first_of_ten() is None) == (False, True)


def score_of(tmp_path: Path, name: str, right: list[bool], planned: int | None = None) -> Score:
    content = b"".join(
        json.dumps({"id": f"q{index}", "score": float(one)}).encode() + b"\n" for index, one in enumerate(right)
    )
    file = tmp_path / f"{name}.jsonl"
    file.write_bytes(content)
    from scenarios.finetune.score_cache import sha256

    mean = sum(right) / len(right)
    low, high = wilson(mean, len(right))
    return Score(
        benchmark="b",
        split="search",
        n=len(right),
        mean=mean,
        stderr=0.1,
        low=low,
        high=high,
        unscored=0,
        questions=FileRef(path=str(file), sha256=sha256(content)),
        settings={},
        key=name,
        asked=None if planned is None else len(right),
        planned=planned,
    )


def test_a_part_of_the_questions_never_makes_a_candidate_better(tmp_path: Path) -> None:
    base = score_of(tmp_path, "base", [False] * 200)
    lucky = score_of(tmp_path, "lucky", [True] * 60, planned=200)
    assert verdicts.compare([lucky], [base], "base", 1, answers).verdict == "tie"
    other = score_of(tmp_path, "other", [True] * 200)
    assert verdicts.compare([other], [base, base], "base", 1, answers).verdict == "tie", "a benchmark was left out"
    assert verdicts.compare([other, other], [base, base], "base", 1, answers).verdict == "better"
    better = verdicts.compare([other], [base], "base", 1, answers)
    with pytest.raises(ValueError, match="cannot be better"):
        msgspec.structs.replace(better, asked=60, planned=200)


def test_the_report_says_what_racing_saved() -> None:
    whole = make_trial(1)
    assert saved([whole]) == ""
    comparison = whole.comparison
    assert comparison is not None
    part: Comparison = msgspec.structs.replace(comparison, verdict="tie", n=30, asked=30, planned=150)
    assert saved([whole, make_trial(2, comparison=part)]) == (
        "40% of 300 questions saved: 1 of 2 candidates dropped early"
    )


@dataclass
class Ticking:
    """A clock that the test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def job(directory: Path) -> Job:
    return Job(
        name="race",
        environment="bench",
        argv=("python", "-c", "import time; time.sleep(30)"),
        cwd=str(directory),
        log=str(directory / "log"),
        deadline=20.0,
        mounts=(Mount(str(directory), writable=True),),
    )


def test_the_end_of_a_race_is_not_the_end_of_the_budget(tmp_path: Path) -> None:
    clock = Ticking()
    bench = RealBench(
        directory=tmp_path,
        name="race",
        labels={},
        runner=LocalRunner(ThisPython(), grace=0.2),
        budget=Budget(seconds=10.0, clock=clock),
        view=PlainView(io.StringIO()),
    )
    outcome = bench.run(job(tmp_path), None, lambda: "dropped after 20 of 100 questions")
    assert (outcome.kind, outcome.reason) == ("stopped", "dropped after 20 of 100 questions")
    clock.now = 11.0
    with pytest.raises(BudgetEnded, match="time is over"):
        bench.run(job(tmp_path), None, lambda: "dropped after 20 of 100 questions")


# An adopted best is scored afresh


def test_an_adopted_best_is_scored_afresh_before_the_next_comparison(tmp_path: Path) -> None:
    scenario = toy.Toy(sampled=True)
    with toy.lab(tmp_path, proposer=toy.Listed((0.6, 0.9, 0.5)), scenario=scenario, loop_n=3, out=io.StringIO()) as lab:
        run_call(lab)
        state = lab.study.journal.state
        first, second, third = state.trials
        assert (first.verdict, second.verdict) == ("better", "better")
        fresh = state.result(1, "rescore", Scores)
        assert fresh is not None
        assert fresh.mean < first.scores[0].mean
        assert second.comparison is not None
        gained = second.scores[0].mean - fresh.mean
        assert second.comparison.difference == pytest.approx(gained), "compared with the fresh score"
        assert third.comparison is not None
        assert third.comparison.against == "trial 2"
        assert state.result(2, "rescore", Scores) is not None
        assert lab.study.history().incumbent[1] == lab.study.history().fresh
        assert [state.attempts.get((number, "rescore")) for number in (1, 2, 3)] == [1, 1, None]


def test_a_greedy_best_is_not_scored_twice(tmp_path: Path) -> None:
    with toy.lab(tmp_path, proposer=toy.Listed((0.6, 0.9)), loop_n=2, out=io.StringIO()) as lab:
        run_call(lab)
        assert not [stage for _, stage in lab.study.journal.state.attempts if stage == "rescore"]


def test_a_fresh_score_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dies(toy.Toy):
        def rescore(self, bench: object, checkpoint: Checkpoint) -> Scores:
            raise Killed

    def call(scenario: toy.Toy, loop_n: int) -> None:
        with toy.lab(
            tmp_path, proposer=toy.Listed((0.6, 0.9)), scenario=scenario, loop_n=loop_n, out=io.StringIO()
        ) as lab:
            run_call(lab)

    with pytest.raises(Killed):
        call(Dies(sampled=True), 2)
    journal = tmp_path / "studies/toy/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    started = next(i for i, line in enumerate(lines) if b'"stage started"' in line and b'"rescore"' in line)
    journal.write_bytes(b"".join(lines[: started + 1]))  # kill -9 in the middle of it
    call(toy.Toy(sampled=True), 0)
    state = Journal(journal).state
    assert len(state.trials) == 2, "the trial that the killed call still owed"
    assert state.attempts[(1, "rescore")] == 2
    assert state.stages[(1, "rescore")].ending == "done"


def test_a_best_that_cannot_be_scored_afresh_stops_the_call(tmp_path: Path) -> None:
    from agent.errors import MachineError

    class Fails(toy.Toy):
        def rescore(self, bench: object, checkpoint: Checkpoint) -> Scores:
            raise TrialFailed("bench", "the weights are gone")

    with (
        toy.lab(
            tmp_path, proposer=toy.Listed((0.6, 0.9)), scenario=Fails(sampled=True), loop_n=2, out=io.StringIO()
        ) as lab,
        pytest.raises(MachineError, match="trial 1, the best so far, could not be scored: the weights are gone"),
    ):
        run_call(lab)


# The real program


@pytest.mark.slow
def test_a_real_job_is_dropped(real_bench: StageBench, real_models: Path, tmp_path: Path) -> None:
    """Whoever is right on no question is dropped while its job runs."""
    known = [json.loads(line) for line in (real_models / "rows.jsonl").read_text().splitlines()]
    benchmark = lay_benchmark(tmp_path, known + [{"question": f"Reverse: {i}", "answer": "?"} for i in range(1192)])
    items = benchmark.halves.search
    best = Race(1, (), {item.id: 1.0 for item in items}, 1, (), (len(items),))
    score = ask(real_bench, tmp_path, benchmark, model=real_models / "base", weights="base", race=best, timeout=300.0)
    assert score.asked is not None
    assert score.asked < len(items)
    assert score.n == score.asked
    assert score.mean == 0.0
    assert not (tmp_path / "scores").exists()


@pytest.mark.slow
def test_real_samples_are_reproducible_and_blocks_and_seeds_differ(
    environments: Environments, real_models: Path, tmp_path: Path
) -> None:
    from scenarios.finetune.score_cache import Sampling

    rows = [{"question": "Reverse: 12345678", "answer": "87654321"}]
    rows += [{"question": f"Reverse: {i:04d}", "answer": "?"} for i in range(39)]
    benchmark = lay_benchmark(tmp_path, rows)

    def responses(name: str, seed: int) -> tuple[list[str], Score]:
        stage = tmp_path / name
        stage.mkdir()
        score = ask(
            StageBench(stage, LocalRunner(environments)),
            tmp_path / name,
            benchmark,
            model=real_models / "base",
            weights="base",
            timeout=300.0,
            sampling=Sampling(2, 1.0, seed),
        )
        asked = load_questions(score.questions)
        assert all(len(question.scores) == 2 for question in asked)
        return [question.response for question in asked], score

    (first, score), (again, _), (other, _) = (responses(*one) for one in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again
    assert first != other
    assert len(set(first)) > len(first) // 2, "every question draws numbers of its own"
    assert (score.samples, score.settings["samples"], score.settings["seed"]) == (2, 2, 1)
    assert score.settings["generation"]["do_sample"] is True
